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

// The motion of each frame; `step` elements apart.
struct Scores {
    const float* data;
    int64_t count, step;
};

struct NoiseScale {
    float score;
    double s;
    int timestep;
};

// Sums in double: the record is float32, and the whole part of 1000 s must not depend on its last
// bit, hence also the 1e-3 before it is cut. A previous scale that is none (a device cannot refuse
// it) counts as s_max.
SDRT_HD NoiseScale noise_scale_of(const Scores& scores, float previous, bool has_previous,
                                  const NoiseRange& range) {
    float score = 0.0f;  // NaN compares false and never becomes the score
    for (int64_t i = 0; i < scores.count; ++i) {
        const float v = scores.data[i * scores.step];
        score = v > score ? v : score;
    }
    double s = range.s_max;
    if (has_previous) {
        double d = static_cast<double>(score) / range.reference;
        d = d < 1.0 ? d : 1.0;
        const double target = range.s_max - (range.s_max - range.s_min) * d;
        const double before = previous >= 0.0f && previous <= 1.0f ? previous : range.s_max;
        s = range.smoothing * target + (1.0 - range.smoothing) * before;
    }
    const int timestep = static_cast<int>(1000.0 * s + 1e-3) + range.timestep_offset;
    return {score, s, timestep < 1 ? 1 : timestep};
}

// An entry of the table of sigmas and how far its timestep is; of two alike the first counts.
struct Nearest {
    double distance = 1e30;
    int64_t index = 0;
};

SDRT_HD Nearest nearest_of(float sigma, int64_t index, int timestep) {
    const double gap = 1000.0 * static_cast<double>(sigma) - timestep;
    return {gap < 0 ? -gap : gap, index};
}

SDRT_HD Nearest nearer(const Nearest& a, const Nearest& b) {
    const bool second = b.distance < a.distance || (b.distance == a.distance && b.index < a.index);
    return second ? b : a;
}

SDRT_HD void write_control(const NoiseScale& scale, float sigma, float* out) {
    out[0] = scale.score;
    out[1] = static_cast<float>(scale.s);
    out[2] = static_cast<float>(scale.timestep);
    out[3] = sigma;
}

// The record: (score, noise scale, timestep, sigma).
inline void noise_control_host(const Scores& scores, const float* previous, bool has_previous,
                               const NoiseRange& range, const float* sigmas, int64_t table,
                               float* out) {
    const NoiseScale scale =
        noise_scale_of(scores, has_previous ? previous[1] : 0.0f, has_previous, range);
    Nearest found;
    for (int64_t i = 0; i < table; ++i) {
        found = nearer(found, nearest_of(sigmas[i], i, scale.timestep));
    }
    write_control(scale, sigmas[found.index], out);
}

// Every pointer is on the device.
void noise_control_cuda(const Scores& scores, const float* previous, bool has_previous,
                        const NoiseRange& range, const float* sigmas, int64_t table, float* out,
                        CudaStream stream);

}  // namespace sdrt
