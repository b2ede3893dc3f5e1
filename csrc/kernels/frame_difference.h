// RMS difference of two pictures scaled to [-1, 1]: the reference's measure of motion. The sum of
// squares is in integers and exact, so its order does not matter.
#pragma once

#include <cmath>

#include "array.h"
#include "kernels/host_device.h"

namespace sdrt {

SDRT_HD uint32_t square_of(uint8_t a, uint8_t b) {
    const int32_t d = static_cast<int32_t>(a) - static_cast<int32_t>(b);
    return static_cast<uint32_t>(d * d);
}

SDRT_HD float rms_of(uint64_t squares, int64_t samples) {
    const double mean = static_cast<double>(squares) / static_cast<double>(samples);
    return static_cast<float>(sqrt(mean) / 127.5);
}

// Sum of squared differences of uint8 [H, W, 3] arrays of one shape and any strides.
uint64_t squared_difference(const Array& a, const Array& b);

// Adds that sum to *sum; both are on the device.
void squared_difference_cuda(const Array& a, const Array& b, uint64_t* sum, CudaStream stream);

// Sums -> RMS, and the sums set to 0 before: the two ends of a call.
void clear_sums_cuda(uint64_t* sums, int64_t count, CudaStream stream);
void rms_cuda(const uint64_t* sums, int64_t count, int64_t samples, float* out, CudaStream stream);

}  // namespace sdrt
