// What is made of a finished field: a motion for every pixel of the picture, or its statistics.
#include <algorithm>
#include <cmath>

#include "kernels/optical_flow.h"

namespace sdrt {

void expand_flow(const FlowField& field, const Array& out, int32_t begin, int32_t end) {
    const float scale = 1.0f / static_cast<float>(1 << field.first);
    const auto place = [scale](int32_t index, int32_t extent, int32_t& low, float& part) {
        const float at = std::clamp((static_cast<float>(index) + 0.5f) * scale - 0.5f, 0.0f,
                                    static_cast<float>(extent - 1));
        low = std::min(static_cast<int32_t>(at), std::max(extent - 2, 0));
        part = at - static_cast<float>(low);
    };
    for (int32_t y = begin; y < end; ++y) {
        int32_t low_y, low_x;
        float fy, fx;
        place(y, field.height, low_y, fy);
        const int32_t down = field.height > 1 ? field.width : 0, right = field.width > 1 ? 1 : 0;
        for (int32_t x = 0; x < out.shape[1]; ++x) {
            place(x, field.width, low_x, fx);
            const Motion* p = field.motion.data() + int64_t{low_y} * field.width + low_x;
            const auto mix = [&](float a, float b, float c, float d) {
                return (a + (b - a) * fx) + ((c + (d - c) * fx) - (a + (b - a) * fx)) * fy;
            };
            char* target = static_cast<char*>(out.data) + y * out.strides[0] + x * out.strides[1];
            const float u = mix(p[0].u, p[right].u, p[down].u, p[down + right].u);
            const float v = mix(p[0].v, p[right].v, p[down].v, p[down + right].v);
            *reinterpret_cast<float*>(target) = u;
            *reinterpret_cast<float*>(target + out.strides[2]) = v;
        }
    }
}

void flow_statistics(const FlowField& field, float out[5]) {
    const auto n = static_cast<int64_t>(field.motion.size());
    std::vector<float> lengths(n);
    double total = 0.0;
    int64_t moving = 0;
    for (int64_t i = 0; i < n; ++i) {
        const Motion m = field.motion[i];
        lengths[i] = std::sqrt(m.u * m.u + m.v * m.v);
        total += lengths[i];
        moving += lengths[i] > 0.5f;
    }
    // Nearest rank: the value that at least this share does not exceed.
    const auto rank = [&](int64_t percent) {
        const int64_t k = std::max<int64_t>((n * percent + 99) / 100, 1) - 1;
        std::nth_element(lengths.begin(), lengths.begin() + k, lengths.end());
        return lengths[k];
    };
    out[0] = static_cast<float>(total / static_cast<double>(n));
    out[1] = rank(50);
    out[2] = rank(90);
    out[3] = *std::max_element(lengths.begin(), lengths.end());
    out[4] = static_cast<float>(moving) / static_cast<float>(n);
}

}  // namespace sdrt
