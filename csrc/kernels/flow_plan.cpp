#include <algorithm>

#include "kernels/optical_flow.h"

namespace sdrt {

FlowPlan::FlowPlan(int64_t full_height, int64_t full_width, const FlowSettings& settings_)
    : octave(0), levels(0), settings(settings_) {
    const int64_t shorter = std::min(full_height, full_width);
    while ((full_height >> octave) * (full_width >> octave) > settings.area &&
           shorter >> (octave + 1) > 0 && octave < kMaxOctave) {
        ++octave;
    }
    luma_at[0] = node_at[0] = 0;
    do {
        const int k = levels++;
        height[k] = static_cast<int32_t>(full_height >> (octave + k));
        width[k] = static_cast<int32_t>(full_width >> (octave + k));
        const FlowGrid g = grid(k);
        luma_at[k + 1] = luma_at[k] + int64_t{stride(k)} * (height[k] + 2 * kBorder);
        node_at[k + 1] = node_at[k] + int64_t{g.columns} * g.rows;
    } while (std::min(height[levels - 1], width[levels - 1]) >= kCoarsest);
}

FlowScratch::FlowScratch(const FlowPlan& plan, int64_t pictures) {
    constexpr int64_t kAligned = 256;
    const int64_t pairs = pictures - 1;
    const FlowGrid g = plan.grid(0);
    int64_t end = 0;
    const auto next = [&end](int64_t size) {
        const int64_t begin = end;
        end += (size + kAligned - 1) / kAligned * kAligned;
        return begin;
    };
    plane_size = int64_t{g.columns + 2} * (g.rows + 2);
    lumas = next(pictures * plan.luma_at[plan.levels] * static_cast<int64_t>(sizeof(float)));
    found = next(pairs * plan.node_at[1] * static_cast<int64_t>(sizeof(Node)));
    nodes = next(pairs * plan.node_at[plan.levels] * static_cast<int64_t>(sizeof(Node)));
    planes = next(pairs * 4 * plane_size * static_cast<int64_t>(sizeof(float)));
    field = next(pairs * plan.pixels() * static_cast<int64_t>(sizeof(Motion)));
    bytes = std::max(end, kAligned);
}

}  // namespace sdrt
