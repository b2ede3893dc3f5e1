// One uint8 [H', W', 3] frame of any strides, or one NV12 frame, to one frame of planar pixels in
// [-1, 1], resized.
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

// How video levels (16 to 235, chroma around 128) become colours.
struct YuvMatrix {
    float luma, red_v, green_u, green_v, blue_u;
};

// From the weights of red and blue in luma, K_r and K_b, as the standards give them.
constexpr YuvMatrix yuv_matrix(double red, double blue) {
    const double green = 1 - red - blue, chroma = 255.0 / 224 * 2;
    return {static_cast<float>(255.0 / 219), static_cast<float>(chroma * (1 - red)),
            static_cast<float>(-chroma * blue * (1 - blue) / green),
            static_cast<float>(-chroma * red * (1 - red) / green),
            static_cast<float>(chroma * (1 - blue))};
}

constexpr YuvMatrix kBt601 = yuv_matrix(0.299, 0.114);
constexpr YuvMatrix kBt709 = yuv_matrix(0.2126, 0.0722);

// Luma [height, width] above chroma [height / 2, width] of pairs (u, v), each for 2 x 2 pixels;
// strides in bytes. Height and width are even.
struct Nv12View {
    const uint8_t* data;
    int32_t height, width;
    int64_t row, column;
    YuvMatrix matrix;
};

struct Rgb {
    float r, g, b;
};

SDRT_HD float clamp_level(float v) {
    v = v > 0.0f ? v : 0.0f;
    return v < 255.0f ? v : 255.0f;
}

// Levels 0 to 255, not rounded.
SDRT_HD Rgb rgb_of(uint8_t y, uint8_t u, uint8_t v, const YuvMatrix& m) {
    const float luma = (static_cast<float>(y) - 16.0f) * m.luma;
    const float cu = static_cast<float>(u) - 128.0f, cv = static_cast<float>(v) - 128.0f;
    return {clamp_level(luma + m.red_v * cv), clamp_level(luma + (m.green_u * cu + m.green_v * cv)),
            clamp_level(luma + m.blue_u * cu)};
}

SDRT_HD Rgb levels_at(const FrameView& f, int32_t y, int32_t x) {
    const uint8_t* p = f.data + y * f.row + x * f.column;
    return {static_cast<float>(p[0]), static_cast<float>(p[f.channel]),
            static_cast<float>(p[2 * f.channel])};
}

SDRT_HD Rgb levels_at(const Nv12View& f, int32_t y, int32_t x) {
    const uint8_t* chroma =
        f.data + (int64_t{f.height} + y / 2) * f.row + int64_t{x & ~1} * f.column;
    return rgb_of(f.data[y * f.row + x * f.column], chroma[0], chroma[f.column], f.matrix);
}

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
void frames_to_pixels_host(const Nv12View& frame, const PixelView& out, int32_t begin, int32_t end);
void frames_to_pixels_cuda(const FrameView& frame, const PixelView& out, CudaStream stream);
void frames_to_pixels_cuda(const Nv12View& frame, const PixelView& out, CudaStream stream);

}  // namespace sdrt
