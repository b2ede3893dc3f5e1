// Packed RGB bytes pass through shared memory, so that global memory sees accesses of 16 bytes
// only: a thread's own pixels are 12 or 24 bytes. Device code only.
#pragma once

#include "kernels/launch.h"

namespace sdrt {

// Pixels of one thread: 16 bytes of each plane.
template <typename T>
constexpr int kPixelsEach = 16 / sizeof(T);

template <typename T>
struct alignas(16) Staged {
    uint8_t v[3 * kThreads * kPixelsEach<T>];
};

template <typename T>
struct alignas(16) Vector {
    T v[kPixelsEach<T>];
};

// By all threads of a block; both addresses are multiples of 16.
__device__ __forceinline__ void copy_bytes(const uint8_t* from, int count, uint8_t* to) {
    for (int i = threadIdx.x; i < count / 16; i += kThreads) {
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    const int tail = count / 16 * 16 + threadIdx.x;
    if (tail < count) to[tail] = from[tail];
}

// The first `count` of them, at least one.
template <typename T>
__device__ __forceinline__ void store_pixels(const Vector<T>& pixels, int count, T* to) {
    if (count >= kPixelsEach<T>) {
        *reinterpret_cast<Vector<T>*>(to) = pixels;
        return;
    }
#pragma unroll
    for (int i = 0; i < kPixelsEach<T>; ++i) {
        if (i < count) to[i] = pixels.v[i];
    }
}

template <typename T>
__device__ __forceinline__ Vector<T> load_pixels(const T* from, int count) {
    if (count >= kPixelsEach<T>) return *reinterpret_cast<const Vector<T>*>(from);
    Vector<T> pixels{};
#pragma unroll
    for (int i = 0; i < kPixelsEach<T>; ++i) {
        if (i < count) pixels.v[i] = from[i];
    }
    return pixels;
}

inline bool whole(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

template <typename T>
dim3 staged_blocks(int width, int height) {
    const int each = kThreads * kPixelsEach<T>;
    return dim3(static_cast<unsigned>((width - 1) / each + 1),
                static_cast<unsigned>(height < 65535 ? height : 65535));
}

}  // namespace sdrt
