#include <algorithm>

#include "kernels/optical_flow.h"

namespace sdrt {
namespace {

constexpr int32_t kCoarsest = 16;  // no level below a picture whose shorter side is under this

SDRT_CLONES void add_row(const uint8_t* __restrict in, int64_t n, uint16_t* __restrict sums) {
    for (int64_t i = 0; i < n; ++i) sums[i] = static_cast<uint16_t>(sums[i] + in[i]);
}

// Luma of blocks of `size` packed pixels, from column sums (Rec. 601 weights).
SDRT_CLONES void luma_of_sums(const uint16_t* __restrict sums, int32_t size, int32_t n, float scale,
                              float* __restrict out) {
    for (int32_t x = 0; x < n; ++x, sums += 3 * size) {
        uint32_t r = 0, g = 0, b = 0;
        for (int32_t i = 0; i < size; ++i) {
            r += sums[3 * i];
            g += sums[3 * i + 1];
            b += sums[3 * i + 2];
        }
        out[x] = (0.299f * static_cast<float>(r) + 0.587f * static_cast<float>(g) +
                  0.114f * static_cast<float>(b)) *
                 scale;
    }
}

SDRT_CLONES void halve_rows(const float* __restrict a, const float* __restrict b, int32_t n,
                            float* __restrict out) {
    for (int32_t x = 0; x < n; ++x) {
        out[x] = 0.25f * (a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1]);
    }
}

float* add_level(Pyramid& pyramid, int32_t width, int32_t height) {
    const int32_t stride = width + 2 * kBorder;
    auto& pixels =
        pyramid.storage.emplace_back(static_cast<size_t>(stride) * (height + 2 * kBorder));
    float* origin = pixels.data() + int64_t{kBorder} * stride + kBorder;
    pyramid.levels.push_back({origin, width, height, stride});
    return origin;
}

void fill_border(const Luma& level, float* origin) {
    for (int32_t y = 0; y < level.height; ++y) {
        float* row = origin + int64_t{y} * level.stride;
        std::fill(row - kBorder, row, row[0]);
        std::fill(row + level.width, row + level.width + kBorder, row[level.width - 1]);
    }
    const float* top = origin - kBorder;
    const float* bottom = top + int64_t{level.height - 1} * level.stride;
    for (int32_t y = 1; y <= kBorder; ++y) {
        std::copy_n(top, level.stride, origin - kBorder - int64_t{y} * level.stride);
        std::copy_n(bottom, level.stride,
                    origin - kBorder + int64_t{level.height - 1 + y} * level.stride);
    }
}

void finest_level(const Array& frame, int32_t size, const Luma& level, float* origin) {
    const int64_t n = 3 * int64_t{size} * level.width;
    std::vector<uint16_t> sums(n);
    std::vector<uint8_t> copy(n);
    const bool packed = frame.strides[2] == 1 && frame.strides[1] == 3;
    const float scale = 1.0f / static_cast<float>(size * size);
    for (int32_t y = 0; y < level.height; ++y) {
        std::fill(sums.begin(), sums.end(), uint16_t{0});
        for (int32_t i = 0; i < size; ++i) {
            const auto* row = static_cast<const uint8_t*>(frame.data) +
                              (int64_t{y} * size + i) * frame.strides[0];
            for (int64_t j = 0; !packed && j < n; ++j) {
                copy[j] = row[j / 3 * frame.strides[1] + j % 3 * frame.strides[2]];
            }
            add_row(packed ? row : copy.data(), n, sums.data());
        }
        luma_of_sums(sums.data(), size, level.width, scale, origin + int64_t{y} * level.stride);
    }
    fill_border(level, origin);
}

}  // namespace

Pyramid luma_pyramid(const Array& frame, const FlowSettings& settings) {
    Pyramid pyramid;
    auto height = static_cast<int32_t>(frame.shape[0]);
    auto width = static_cast<int32_t>(frame.shape[1]);
    while (int64_t{height >> pyramid.first} * (width >> pyramid.first) > settings.area &&
           std::min(height, width) >> (pyramid.first + 1) > 0 && pyramid.first < 8) {
        ++pyramid.first;
    }
    height >>= pyramid.first;
    width >>= pyramid.first;
    float* origin = add_level(pyramid, width, height);
    finest_level(frame, 1 << pyramid.first, pyramid.levels.back(), origin);
    while (std::min(height, width) >= kCoarsest) {
        const Luma above = pyramid.levels.back();
        height /= 2;
        width /= 2;
        origin = add_level(pyramid, width, height);
        const Luma& level = pyramid.levels.back();
        for (int32_t y = 0; y < height; ++y) {
            const float* a = above.data + int64_t{2 * y} * above.stride;
            halve_rows(a, a + above.stride, width, origin + int64_t{y} * level.stride);
        }
        fill_border(level, origin);
    }
    return pyramid;
}

}  // namespace sdrt
