// What is made of a finished field: a motion for every pixel of the picture, or its statistics.
#include <algorithm>

#include "kernels/optical_flow.h"

namespace sdrt {

void expand_flow(const FlowPlan& plan, const std::vector<Motion>& field, const Array& out,
                 int32_t begin, int32_t end) {
    for (int32_t y = begin; y < end; ++y) {
        char* row = static_cast<char*>(out.data) + y * out.strides[0];
        for (int32_t x = 0; x < out.shape[1]; ++x) {
            const Motion m =
                motion_at(field.data(), plan.width[0], plan.height[0], plan.octave, x, y);
            *reinterpret_cast<float*>(row + x * out.strides[1]) = m.u;
            *reinterpret_cast<float*>(row + x * out.strides[1] + out.strides[2]) = m.v;
        }
    }
}

void flow_statistics(const std::vector<Motion>& field, float out[5]) {
    const auto n = static_cast<int64_t>(field.size());
    std::vector<float> lengths(n);
    uint64_t units = 0;
    int64_t moving = 0;
    for (int64_t i = 0; i < n; ++i) {
        lengths[i] = length_of(field[i]);
        units += units_of(lengths[i]);
        moving += moves(lengths[i]);
    }
    const auto ranked = [&](int64_t percent) {
        const int64_t k = rank_of(n, percent);
        std::nth_element(lengths.begin(), lengths.begin() + k, lengths.end());
        return lengths[k];
    };
    out[0] = mean_of(units, n);
    out[1] = ranked(50);
    out[2] = ranked(90);
    out[3] = *std::max_element(lengths.begin(), lengths.end());
    out[4] = static_cast<float>(moving) / static_cast<float>(n);
}

}  // namespace sdrt
