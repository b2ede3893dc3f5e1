// Planar pixels in [-1, 1] to uint8 [H, W, 3]: round to nearest, ties to even, of
// (clamp(v, -1, 1) + 1) * 127.5; NaN gives 0.
#pragma once

#include <cmath>

#include "array.h"
#include "kernels/host_device.h"

namespace sdrt {

SDRT_HD float level_of(float v) {
    v = v > -1.0f ? v : -1.0f;  // also where v is NaN
    v = v < 1.0f ? v : 1.0f;
    // Adding 2^23 leaves the nearest whole number in the low bits, on every processor alike.
    return (v + 1.0f) * 127.5f + 8388608.0f;
}

SDRT_HD uint8_t byte_of(float v) {
    return static_cast<uint8_t>(bits_of(level_of(v)) & 0xffu);
}

// One frame of the input; strides in elements.
struct PlanarView {
    const void* data;
    Dtype dtype;
    int32_t height, width;
    int64_t channel, row, column;
};

// One frame of the output; strides in bytes.
struct BytesView {
    uint8_t* data;
    int64_t row, column, channel;
};

// Rows [begin, end).
void pixels_to_frames_host(const PlanarView& pixels, const BytesView& out, int32_t begin,
                           int32_t end);
void pixels_to_frames_cuda(const PlanarView& pixels, const BytesView& out, CudaStream stream);

}  // namespace sdrt
