// One uint8 [H', W', 3] frame of any strides to one frame of planar pixels in [-1, 1], resized.
// Each axis is an area average where it shrinks, bilinear with half-pixel centres where it grows.
#pragma once

#include "array.h"
#include "kernels/host_device.h"

namespace sdrt {

// The input samples that one output sample is made of, along one axis.
struct Taps {
    int32_t first;
    int32_t count;
    float head;  // weight of the first, of the last, and of those between
    float last;
    float middle;

    SDRT_HD float weight(int32_t i) const {
        return i == 0 ? head : (i == count - 1 ? last : middle);
    }
};

SDRT_HD Taps resize_taps(int32_t index, int32_t in, int32_t out) {
    if (in == out) return {index, 1, 1.0f, 0.0f, 0.0f};
    if (in < out) {
        // Centre of the output sample in input coordinates, in units of 1 / (2 out): exact in
        // integers.
        int64_t twice = int64_t{2 * index + 1} * in - out;
        const int64_t most = int64_t{2} * out * (in - 1);
        twice = twice < 0 ? 0 : (twice > most ? most : twice);
        const int32_t first = static_cast<int32_t>(twice / (2 * int64_t{out}));
        const float part = static_cast<float>(twice - 2 * int64_t{out} * first) /
                           static_cast<float>(2 * int64_t{out});
        if (part == 0.0f) return {first, 1, 1.0f, 0.0f, 0.0f};
        return {first, 2, 1.0f - part, part, 0.0f};
    }
    // The output sample covers [index * in, (index + 1) * in) in units of 1 / out.
    const int64_t begin = int64_t{index} * in, end = begin + in;
    const int32_t first = static_cast<int32_t>(begin / out);
    const int32_t stop = static_cast<int32_t>((end + out - 1) / out);
    const float head = static_cast<float>((int64_t{first} + 1) * out - begin);
    const float last = static_cast<float>(end - (int64_t{stop} - 1) * out);
    const float total = static_cast<float>(in);
    return {first, stop - first, head / total, last / total, static_cast<float>(out) / total};
}

SDRT_HD float pixel_of(float level) {
    return level / 127.5f - 1.0f;
}

// A frame and where its samples lie; strides in bytes.
struct FrameView {
    const uint8_t* data;
    int32_t height, width;
    int64_t row, column, channel;
};

// One frame of the output; strides in elements.
struct PixelView {
    void* data;
    Dtype dtype;
    int32_t height, width;
    int64_t channel, row, column;
};

// Rows [begin, end) of the output.
void frames_to_pixels_host(const FrameView& frame, const PixelView& out, int32_t begin,
                           int32_t end);
void frames_to_pixels_cuda(const FrameView& frame, const PixelView& out, CudaStream stream);

}  // namespace sdrt
