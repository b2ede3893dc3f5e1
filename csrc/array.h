// A view of an array that somebody else owns. Knows neither Python nor CUDA.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace sdrt {

enum class Dtype : uint8_t { u8, f16, bf16, f32, i64 };

constexpr int64_t size_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::u8:
            return 1;
        case Dtype::f16:
        case Dtype::bf16:
            return 2;
        case Dtype::f32:
            return 4;
        case Dtype::i64:
            return 8;
    }
    return 0;
}

constexpr int kHost = -1;
constexpr int kMaxDims = 8;

struct Array {
    void* data = nullptr;
    Dtype dtype = Dtype::u8;
    int ndim = 0;
    std::array<int64_t, kMaxDims> shape{};
    std::array<int64_t, kMaxDims> strides{};  // bytes, may be negative or zero
    int device = kHost;                       // ordinal of the CUDA device, or kHost
    bool readonly = false;

    int64_t size() const {
        int64_t n = 1;
        for (int d = 0; d < ndim; ++d) n *= shape[d];
        return n;
    }

    bool contiguous() const {
        int64_t expected = size_of(dtype);
        for (int d = ndim - 1; d >= 0; --d) {
            if (shape[d] > 1 && strides[d] != expected) return false;
            expected *= shape[d];
        }
        return true;
    }

    // Address of the element with this index in C order.
    char* at(int64_t index) const {
        char* p = static_cast<char*>(data);
        for (int d = ndim - 1; d >= 0; --d) {
            p += (index % shape[d]) * strides[d];
            index /= shape[d];
        }
        return p;
    }
};

// "float32 [3, 4, 64, 64]", with " on cuda:0" where it is.
std::string describe(const Array& a);

}  // namespace sdrt
