// From the motion of a chunk to the strength of its noise and the first timestep.
#pragma once

#include "kernels/host_device.h"

namespace sdrt {

struct NoiseRange {
    double reference;  // score at which motion counts as full
    double s_max, s_min;
    double smoothing;
    int timestep_offset;
};

// (score, noise scale, timestep, sigma). Sums in double: the record is float32, and the whole part
// of 1000 s must not depend on its last bit, hence also the 1e-3 before it is cut.
SDRT_HD void noise_control_one(const float* scores, int64_t count, const float* previous,
                               bool has_previous, const NoiseRange& range, const float* sigmas,
                               int64_t table, float* out) {
    float score = 0.0f;  // NaN compares false and never becomes the score
    for (int64_t i = 0; i < count; ++i) score = scores[i] > score ? scores[i] : score;
    double s = range.s_max;
    if (has_previous) {
        double d = static_cast<double>(score) / range.reference;
        d = d < 1.0 ? d : 1.0;
        const double target = range.s_max - (range.s_max - range.s_min) * d;
        s = range.smoothing * target + (1.0 - range.smoothing) * previous[1];
    }
    int timestep = static_cast<int>(1000.0 * s + 1e-3) + range.timestep_offset;
    timestep = timestep < 1 ? 1 : timestep;
    int64_t nearest = 0;
    double least = 1e30;
    for (int64_t i = 0; i < table; ++i) {
        const double gap = 1000.0 * sigmas[i] - timestep;
        const double distance = gap < 0 ? -gap : gap;
        if (distance < least) {
            least = distance;
            nearest = i;
        }
    }
    out[0] = score;
    out[1] = static_cast<float>(s);
    out[2] = static_cast<float>(timestep);
    out[3] = sigmas[nearest];
}

}  // namespace sdrt
