#include <algorithm>

#include "kernels/optical_flow.h"

namespace sdrt {
namespace {

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
        out[x] = luma_of(r, g, b, scale);
    }
}

SDRT_CLONES void halve_rows(const float* __restrict a, const float* __restrict b, int32_t n,
                            float* __restrict out) {
    for (int32_t x = 0; x < n; ++x) {
        out[x] = halve(a + 2 * x, b + 2 * x);
    }
}

// Beyond every edge the picture goes on in a straight line for one pixel, and then stays.
void fill_border(const Luma& level, float* origin) {
    const int64_t stride = level.stride;
    const int32_t beside = level.width > 1 ? 1 : 0, last = level.width - 1;
    for (int32_t y = 0; y < level.height; ++y) {
        float* row = origin + y * stride;
        std::fill(row - kBorder, row, beyond(row[0], row[beside]));
        std::fill_n(row + level.width, kBorder, beyond(row[last], row[last - beside]));
    }
    float* top = origin - kBorder;
    float* bottom = top + (level.height - 1) * stride;
    const int64_t below = level.height > 1 ? stride : 0;
    for (int64_t x = 0; x < stride; ++x) {
        top[x - stride] = beyond(top[x], top[x + below]);
        bottom[x + stride] = beyond(bottom[x], bottom[x - below]);
    }
    for (int y = 2; y <= kBorder; ++y) {
        std::copy_n(top - stride, stride, top - y * stride);
        std::copy_n(bottom + stride, stride, bottom + y * stride);
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

std::vector<float> luma_pyramid(const FlowPlan& plan, const Array& frame) {
    std::vector<float> picture(plan.luma_at[plan.levels]);
    const auto origin = [&](const Luma& level) {
        return picture.data() + (level.data - picture.data());
    };
    const Luma finest = plan.luma(picture.data(), 0);
    finest_level(frame, 1 << plan.octave, finest, origin(finest));
    for (int k = 1; k < plan.levels; ++k) {
        const Luma above = plan.luma(picture.data(), k - 1), level = plan.luma(picture.data(), k);
        for (int64_t y = 0; y < level.height; ++y) {
            const float* a = above.data + 2 * y * above.stride;
            halve_rows(a, a + above.stride, level.width, origin(level) + y * level.stride);
        }
        fill_border(level, origin(level));
    }
    return picture;
}

}  // namespace sdrt
