// The memory layout of DLPack 0.x capsules ("dltensor"), as its specification gives it: the
// exchange format of array libraries. Only what is read here.
#pragma once

#include <cstdint>

namespace sdrt::dlpack {

constexpr int kCpu = 1;
constexpr int kCuda = 2;
constexpr int kCudaHost = 3;
constexpr int kCudaManaged = 13;

constexpr uint8_t kBfloat = 4;  // 0 int, 1 unsigned, 2 float

struct Tensor {
    void* data;
    int32_t device_type;
    int32_t device_id;
    int32_t ndim;
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
    int64_t* shape;
    int64_t* strides;  // elements; null when packed
    uint64_t byte_offset;
};

struct ManagedTensor {
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

}  // namespace sdrt::dlpack
