#include "kernels/pixels_to_frames.h"

#include <algorithm>

#include "kernels/block.h"
#include "kernels/interleave.h"

namespace sdrt {
namespace {

constexpr int kPiece = 256;  // pixels of one row that stay in the first-level cache

SDRT_CLONES void packed_of_planes(const float* __restrict r, const float* __restrict g,
                                  const float* __restrict b, int n, uint8_t* __restrict rgb) {
    uint8_t bytes[3][kPiece];
    for (int i = 0; i < n; ++i) bytes[0][i] = byte_of(r[i]);
    for (int i = 0; i < n; ++i) bytes[1][i] = byte_of(g[i]);
    for (int i = 0; i < n; ++i) bytes[2][i] = byte_of(b[i]);
    join_rgb(bytes[0], bytes[1], bytes[2], n, rgb);
}

const float* plane_row(const PlanarView& pixels, int c, int32_t y, int32_t x, int32_t n,
                       float* copy) {
    const int64_t size = size_of(pixels.dtype);
    const char* p = static_cast<const char*>(pixels.data) +
                    (c * pixels.channel + y * pixels.row + x * pixels.column) * size;
    if (pixels.dtype == Dtype::f32 && pixels.column == 1) return reinterpret_cast<const float*>(p);
    Array row;
    row.data = const_cast<char*>(p);
    row.dtype = pixels.dtype;
    row.ndim = 1;
    row.shape[0] = n;
    row.strides[0] = pixels.column * size;
    load_block(row, 0, n, copy);
    return copy;
}

}  // namespace

void pixels_to_frames_host(const PlanarView& pixels, const BytesView& out, int32_t begin,
                           int32_t end) {
    float plane[3][kPiece];
    uint8_t copy[3 * kPiece];
    const bool direct = out.channel == 1 && out.column == 3;
    for (int32_t y = begin; y < end; ++y) {
        for (int32_t x = 0; x < pixels.width; x += kPiece) {
            const int32_t n = std::min(kPiece, pixels.width - x);
            uint8_t* target = out.data + y * out.row + x * out.column;
            packed_of_planes(plane_row(pixels, 0, y, x, n, plane[0]),
                             plane_row(pixels, 1, y, x, n, plane[1]),
                             plane_row(pixels, 2, y, x, n, plane[2]), n, direct ? target : copy);
            if (direct) continue;
            for (int32_t i = 0; i < n; ++i) {
                for (int c = 0; c < 3; ++c) {
                    target[i * out.column + c * out.channel] = copy[3 * i + c];
                }
            }
        }
    }
}

}  // namespace sdrt
