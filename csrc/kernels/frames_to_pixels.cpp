#include "kernels/frames_to_pixels.h"

#include <algorithm>
#include <vector>

#include "kernels/block.h"
#include "kernels/interleave.h"

namespace sdrt {
namespace {

constexpr int kPiece = 256;  // pixels of one row that stay in the first-level cache

// Packed RGB to three planes, without resizing; at most kPiece pixels.
SDRT_CLONES void planes_of_row(const uint8_t* __restrict rgb, int n, float* __restrict r,
                               float* __restrict g, float* __restrict b) {
    uint8_t bytes[3][kPiece];
    split_rgb(rgb, n, bytes[0], bytes[1], bytes[2]);
    for (int i = 0; i < n; ++i) r[i] = pixel_of(static_cast<float>(bytes[0][i]));
    for (int i = 0; i < n; ++i) g[i] = pixel_of(static_cast<float>(bytes[1][i]));
    for (int i = 0; i < n; ++i) b[i] = pixel_of(static_cast<float>(bytes[2][i]));
}

SDRT_CLONES void add_weighted(const uint8_t* __restrict in, int64_t n, float weight,
                              float* __restrict sum) {
    for (int64_t i = 0; i < n; ++i) sum[i] += weight * static_cast<float>(in[i]);
}

// Horizontal pass over packed sums of one row.
SDRT_CLONES void planes_of_sums(const float* __restrict sums, const Taps* __restrict taps, int n,
                                float* __restrict r, float* __restrict g, float* __restrict b) {
    for (int x = 0; x < n; ++x) {
        const Taps& t = taps[x];
        const float* p = sums + 3 * int64_t{t.first};
        if (t.count <= 2) {  // growing: the second weight is 0 where there is one tap
            const float* q = p + 3 * (t.count - 1);
            r[x] = pixel_of(t.head * p[0] + t.last * q[0]);
            g[x] = pixel_of(t.head * p[1] + t.last * q[1]);
            b[x] = pixel_of(t.head * p[2] + t.last * q[2]);
            continue;
        }
        float sr = 0.0f, sg = 0.0f, sb = 0.0f;
        for (int i = 0; i < t.count; ++i) {
            const float w = t.weight(i);
            sr += w * p[3 * i];
            sg += w * p[3 * i + 1];
            sb += w * p[3 * i + 2];
        }
        r[x] = pixel_of(sr);
        g[x] = pixel_of(sg);
        b[x] = pixel_of(sb);
    }
}

// One row of NV12, weighted, onto packed sums; two pixels share one chroma.
SDRT_CLONES void add_nv12(const uint8_t* luma, const uint8_t* chroma, int64_t column, int32_t width,
                          const YuvMatrix& matrix, float weight, float* __restrict sum) {
    for (int64_t x = 0; x < width; ++x) {
        const uint8_t* uv = chroma + (x & ~int64_t{1}) * column;
        const Rgb level = rgb_of(luma[x * column], uv[0], uv[column], matrix);
        sum[3 * x] += weight * level.r;
        sum[3 * x + 1] += weight * level.g;
        sum[3 * x + 2] += weight * level.b;
    }
}

// Packed pixels [first, first + n) of one input row: the row itself where it is packed, else a
// copy.
const uint8_t* packed(const FrameView& frame, int32_t row, int32_t first, int32_t n,
                      uint8_t* copy) {
    const uint8_t* p = frame.data + row * frame.row + first * frame.column;
    if (frame.channel == 1 && frame.column == 3) return p;
    for (int32_t x = 0; x < n; ++x) {
        for (int c = 0; c < 3; ++c) copy[3 * x + c] = p[x * frame.column + c * frame.channel];
    }
    return copy;
}

struct Sink {
    const PixelView& out;
    float plane[3][kPiece];

    // Where plane c of this piece of a row is computed: in place when the output is packed float32.
    float* target(int c, int32_t y, int32_t x) {
        const int64_t at = c * out.channel + y * out.row + x * out.column;
        const bool direct = out.dtype == Dtype::f32 && out.column == 1;
        return direct ? static_cast<float*>(out.data) + at : plane[c];
    }

    void store(int32_t y, int32_t x, int32_t n) {
        if (out.dtype == Dtype::f32 && out.column == 1) return;
        const int64_t size = size_of(out.dtype);
        for (int c = 0; c < 3; ++c) {
            Array row;
            row.data = static_cast<char*>(out.data) +
                       (c * out.channel + y * out.row + x * out.column) * size;
            row.dtype = out.dtype;
            row.ndim = 1;
            row.shape[0] = n;
            row.strides[0] = out.column * size;
            store_block(plane[c], 0, n, row);
        }
    }
};

// Rows [begin, end) of the output; add_row(row of the frame, weight, packed sums).
template <typename AddRow>
void resize_rows(int32_t height, int32_t width, const PixelView& out, int32_t begin, int32_t end,
                 const AddRow& add_row) {
    Sink sink{out, {}};
    std::vector<Taps> taps(out.width);
    for (int32_t x = 0; x < out.width; ++x) taps[x] = resize_taps(x, width, out.width);
    std::vector<float> sums(3 * static_cast<size_t>(width));
    for (int32_t y = begin; y < end; ++y) {
        const Taps rows = resize_taps(y, height, out.height);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int32_t i = 0; i < rows.count; ++i) {
            add_row(rows.first + i, rows.weight(i), sums.data());
        }
        for (int32_t x = 0; x < out.width; x += kPiece) {
            const int32_t n = std::min(kPiece, out.width - x);
            planes_of_sums(sums.data(), taps.data() + x, n, sink.target(0, y, x),
                           sink.target(1, y, x), sink.target(2, y, x));
            sink.store(y, x, n);
        }
    }
}

}  // namespace

void frames_to_pixels_host(const FrameView& frame, const PixelView& out, int32_t begin,
                           int32_t end) {
    if (frame.height == out.height && frame.width == out.width) {
        Sink sink{out, {}};
        uint8_t copy[3 * kPiece];
        for (int32_t y = begin; y < end; ++y) {
            for (int32_t x = 0; x < out.width; x += kPiece) {
                const int32_t n = std::min(kPiece, out.width - x);
                planes_of_row(packed(frame, y, x, n, copy), n, sink.target(0, y, x),
                              sink.target(1, y, x), sink.target(2, y, x));
                sink.store(y, x, n);
            }
        }
        return;
    }
    std::vector<uint8_t> copy(3 * static_cast<size_t>(frame.width));
    resize_rows(frame.height, frame.width, out, begin, end,
                [&](int32_t row, float weight, float* sums) {
                    const uint8_t* rgb = packed(frame, row, 0, frame.width, copy.data());
                    add_weighted(rgb, 3 * int64_t{frame.width}, weight, sums);
                });
}

void frames_to_pixels_host(const Nv12View& frame, const PixelView& out, int32_t begin,
                           int32_t end) {
    const uint8_t* chroma = frame.data + int64_t{frame.height} * frame.row;
    resize_rows(frame.height, frame.width, out, begin, end,
                [&](int32_t row, float weight, float* sums) {
                    add_nv12(frame.data + row * frame.row, chroma + row / 2 * frame.row,
                             frame.column, frame.width, frame.matrix, weight, sums);
                });
}

}  // namespace sdrt
