// What lets one function be compiled for the host and for a device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SDRT_HD __host__ __device__ __forceinline__
#else
#define SDRT_HD inline __attribute__((always_inline))
#endif

// Host loops are compiled several times and the loader picks the best one for the processor. The
// sanitizer runtime is not up when loaders choose, so that build has one version.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && !defined(SDRT_SANITIZE)
#define SDRT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SDRT_CLONES
#endif

// The handle of a CUDA stream, declared here so that host sources need no CUDA header.
struct CUstream_st;

namespace sdrt {

using CudaStream = CUstream_st*;

SDRT_HD uint32_t bits_of(float v) {
    union {
        float f;
        uint32_t u;
    } x = {v};
    return x.u;
}

SDRT_HD float float_of(uint32_t bits) {
    union {
        uint32_t u;
        float f;
    } x = {bits};
    return x.f;
}

}  // namespace sdrt
