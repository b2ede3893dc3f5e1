// The floating-point formats that arrays may have: float32, float16, bfloat16. Arithmetic is
// float32.
#pragma once

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "kernels/host_device.h"

namespace sdrt {

struct Bf16 {
    uint16_t bits;
};

#if defined(__CUDACC__)
using F16 = __half;
#else
using F16 = _Float16;
#endif

SDRT_HD float to_float(float v) {
    return v;
}
SDRT_HD float to_float(F16 v) {
    return static_cast<float>(v);
}
SDRT_HD float to_float(Bf16 v) {
    return float_of(static_cast<uint32_t>(v.bits) << 16);
}

SDRT_HD void from_float(float v, float& out) {
    out = v;
}
SDRT_HD void from_float(float v, F16& out) {
    out = static_cast<F16>(v);
}

// Round to nearest, ties to even. NaN stays NaN: its payload is made quiet before the low half is
// cut.
SDRT_HD void from_float(float v, Bf16& out) {
    const uint32_t bits = bits_of(v);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

}  // namespace sdrt
