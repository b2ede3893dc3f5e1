// Optical flow of pictures on the host and on a device: the plan of a call, and what is made of a
// finished field. The arithmetic is in flow_patch.h and flow_grid.h.
#pragma once

#include <span>
#include <vector>

#include "array.h"
#include "kernels/flow_grid.h"

namespace sdrt {

struct FlowSettings {
    int64_t area;  // most pixels at the working resolution
    int32_t step;
    int32_t iterations;
    int32_t rounds;  // of settling
    float smooth;    // what the motion of a neighbour counts there
};

constexpr FlowSettings kFastFlow{32768, 4, 4, 12, 100.0f};
constexpr FlowSettings kAccurateFlow{131072, 4, 8, 24, 300.0f};

constexpr int kMaxOctave = 8;      // the working resolution is at most 2^8 to each side smaller
constexpr int kMaxLevels = 20;     // more than the largest picture has
constexpr int32_t kCoarsest = 16;  // no level below a picture whose shorter side is under this

// Sizes of all levels for one size of picture, finest first, and where each begins in one array of
// lumas of a picture, or of nodes of a pair.
struct FlowPlan {
    int32_t octave;  // of the finest level
    int32_t levels;
    int32_t width[kMaxLevels], height[kMaxLevels];
    int64_t luma_at[kMaxLevels + 1], node_at[kMaxLevels + 1];
    FlowSettings settings;

    FlowPlan(int64_t full_height, int64_t full_width, const FlowSettings& settings);

    SDRT_HD int32_t stride(int k) const { return width[k] + 2 * kBorder; }

    SDRT_HD FlowGrid grid(int k) const {
        const auto count = [this](int32_t extent) {
            return extent <= kPatch ? 1 : (extent - kPatch + settings.step - 1) / settings.step + 1;
        };
        return {count(width[k]), count(height[k]), settings.step};
    }

    SDRT_HD Luma luma(const float* picture, int k) const {
        const int64_t origin = luma_at[k] + int64_t{kBorder} * stride(k) + kBorder;
        return {picture + origin, width[k], height[k], stride(k)};
    }

    SDRT_HD FlowLevel level(const float* a, const float* b, int k) const {
        return {luma(a, k), luma(b, k),          grid(k),
                octave + k, settings.iterations, k + 1 < levels ? kInheritedGain : kCoarsestGain};
    }

    int64_t pixels() const { return int64_t{width[0]} * height[0]; }
};

// Luma of 2^octave to each side: sums of the three channels, Rec. 601 weights.
SDRT_HD float luma_of(uint32_t r, uint32_t g, uint32_t b, float scale) {
    return (0.299f * static_cast<float>(r) + 0.587f * static_cast<float>(g) +
            0.114f * static_cast<float>(b)) *
           scale;
}

SDRT_HD float halve(const float* a, const float* b) {
    return 0.25f * (a[0] + a[1] + b[0] + b[1]);
}

// One axis of the bilinear picture of a field at a larger size: the sample before, and how far on.
SDRT_HD int32_t place_of(int32_t index, int32_t extent, float scale, float& part) {
    float at = (static_cast<float>(index) + 0.5f) * scale - 0.5f;
    at = at > 0.0f ? at : 0.0f;
    at = at < static_cast<float>(extent - 1) ? at : static_cast<float>(extent - 1);
    const auto whole = static_cast<int32_t>(at);
    const int32_t low = whole < extent - 1 || extent == 1 ? whole : extent - 2;
    part = at - static_cast<float>(low);
    return low;
}

// Motion of pixel (x, y) of the full picture, from a field at the working resolution.
SDRT_HD Motion motion_at(const Motion* field, int32_t width, int32_t height, int32_t octave,
                         int32_t x, int32_t y) {
    const float scale = 1.0f / static_cast<float>(1 << octave);
    float fx, fy;
    const int32_t low_y = place_of(y, height, scale, fy), low_x = place_of(x, width, scale, fx);
    const int32_t down = height > 1 ? width : 0, right = width > 1 ? 1 : 0;
    const Motion* p = field + int64_t{low_y} * width + low_x;
    const auto mix = [&](float a, float b, float c, float d) {
        return (a + (b - a) * fx) + ((c + (d - c) * fx) - (a + (b - a) * fx)) * fy;
    };
    return {mix(p[0].u, p[right].u, p[down].u, p[down + right].u),
            mix(p[0].v, p[right].v, p[down].v, p[down + right].v), 1.0f};
}

// Statistics. Lengths are added up as whole numbers of 2^-20 pixels, so that the order in which
// threads add does not matter; ranks are exact.
SDRT_HD float length_of(const Motion& m) {
    return sqrtf(m.u * m.u + m.v * m.v);
}

SDRT_HD uint64_t units_of(float length) {
    return static_cast<uint64_t>(length * 1048576.0f);
}

SDRT_HD float mean_of(uint64_t units, int64_t count) {
    return static_cast<float>(static_cast<double>(units) /
                              (1048576.0 * static_cast<double>(count)));
}

SDRT_HD bool moves(float length) {
    return length > 0.5f;
}

// Nearest rank: the place in order of the value that `percent` of `count` do not exceed.
SDRT_HD int64_t rank_of(int64_t count, int64_t percent) {
    const int64_t rank = (count * percent + 99) / 100;
    return rank > 1 ? rank - 1 : 0;
}

// On the host. Levels of one picture, all in one array; field of one pair at working resolution.
std::vector<float> luma_pyramid(const FlowPlan& plan, const Array& frame);
std::vector<Motion> flow_between(const FlowPlan& plan, const std::vector<float>& a,
                                 const std::vector<float>& b, int threads);
// Field to float32 [H, W, 2]; rows [begin, end).
void expand_flow(const FlowPlan& plan, const std::vector<Motion>& field, const Array& out,
                 int32_t begin, int32_t end);
// Mean, median, 90th percentile, maximum, share above half a pixel.
void flow_statistics(const std::vector<Motion>& field, float out[5]);

// Where everything lies in the scratch memory of a call on a device, in bytes from its beginning,
// which is at a multiple of 256.
struct FlowScratch {
    int64_t lumas;       // float [pictures, luma_at[levels]]
    int64_t found;       // Node [pairs, node_at[1]]: of the level at work, before the offers
    int64_t nodes;       // Node [pairs, node_at[levels]]
    int64_t planes;      // float [pairs, 4, plane_size]: u, v and the next u, v of settling
    int64_t plane_size;  // elements
    int64_t field;       // Motion [pairs, height, width]
    int64_t bytes;

    FlowScratch(const FlowPlan& plan, int64_t pictures);
};

// On a device: pictures of one size, each against the one before.
void optical_flow_cuda(const FlowPlan& plan, const Array& prev, const Array& next, const Array& out,
                       void* scratch, CudaStream stream);
// out: float32 [skip + pictures.size() - 1, 5]; the first `skip` rows become 0.
void optical_flow_magnitude_cuda(const FlowPlan& plan, std::span<const Array> pictures,
                                 int64_t skip, float* out, void* scratch, CudaStream stream);

}  // namespace sdrt
