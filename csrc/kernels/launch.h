// Shapes of launches. Device code only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "array.h"
#include "kernels/convert.h"

namespace sdrt {

constexpr int kThreads = 256;

// Enough blocks for one thread per item, but no more than fill any present device many times over:
// kernels stride over the rest.
inline unsigned blocks_for(int64_t items) {
    const int64_t blocks = (items + kThreads - 1) / kThreads;
    return static_cast<unsigned>(blocks < 65536 ? blocks : 65536);
}

inline dim3 picture_blocks(int width, int height) {
    const int64_t rows = (int64_t{height} + 7) / 8;
    return dim3(static_cast<unsigned>((width + 31) / 32),
                static_cast<unsigned>(rows < 65535 ? rows : 65535));
}

inline dim3 picture_threads() {
    return dim3(32, 8);
}

// Calls body with a null pointer of the C++ type that `dtype` is.
template <typename Body>
void with_type(Dtype dtype, const Body& body) {
    if (dtype == Dtype::f16) return body(static_cast<F16*>(nullptr));
    if (dtype == Dtype::bf16) return body(static_cast<Bf16*>(nullptr));
    body(static_cast<float*>(nullptr));
}

// Four consecutive elements: one access where the address allows it.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
    T v[4];
};

template <typename T>
__device__ __forceinline__ bool whole_fours(const T* p) {
    return (reinterpret_cast<uintptr_t>(p) & (sizeof(Four<T>) - 1)) == 0;
}

template <typename T>
__device__ __forceinline__ void load_four(const T* p, int64_t count, float out[4]) {
    if (count >= 4 && whole_fours(p)) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(p);
        for (int i = 0; i < 4; ++i) out[i] = to_float(four.v[i]);
    } else {
        for (int i = 0; i < 4; ++i) out[i] = i < count ? to_float(p[i]) : 0.0f;
    }
}

template <typename T>
__device__ __forceinline__ void store_four(const float v[4], int64_t count, T* p) {
    if (count >= 4 && whole_fours(p)) {
        Four<T> four;
        for (int i = 0; i < 4; ++i) from_float(v[i], four.v[i]);
        *reinterpret_cast<Four<T>*>(p) = four;
    } else {
        for (int i = 0; i < 4 && i < count; ++i) from_float(v[i], p[i]);
    }
}

}  // namespace sdrt
