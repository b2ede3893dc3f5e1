// Keeps the pinned latent frames (sinks) of the key/value rings: captures them, replaces the least
// similar one, and moves their keys to the position that the window asks for. The law is in
// docs/interfaces.md, "Ring and sinks".
#pragma once

#include <cmath>

#include "kernels/host_device.h"

namespace sdrt {

struct SinkRules {
    int32_t window, sinks, tokens;  // latent frames, latent frames, tokens per latent frame
    double theta;
    float threshold;  // similarity under which a sink is replaced; NaN: never
    bool positions_follow_window;
};

// Ring and side copy of one block and row. Heads are `*_head` elements apart, tokens of a head are
// packed.
struct SinkState {
    float* k;  // [heads, window * tokens, head_dim]
    float* v;  // the same
    float*
        sink_time;  // [heads, sinks * tokens, 2 * pairs]: key channels without their time rotation
    int64_t* sink_index;
    int64_t k_head, v_head, time_head;
    int32_t heads, head_dim, pairs;
};

SDRT_HD int64_t slot_of(int64_t frame, int64_t window, int64_t sinks) {
    return frame < window ? frame : sinks + (frame - sinks) % (window - sinks);
}

// Angle of complex pair p at position t, reduced in double so that it is right for any length of
// stream.
SDRT_HD void rotation_of(int64_t t, int32_t p, int32_t pairs, double theta, float& c, float& s) {
    const double turn = 6.283185307179586476925;
    const double angle = static_cast<double>(t) * pow(theta, -static_cast<double>(p) / pairs);
    const double reduced = angle - turn * floor(angle / turn);
    c = static_cast<float>(cos(reduced));
    s = static_cast<float>(sin(reduced));
}

SDRT_HD void rotate_pair(float re, float im, float c, float s, float& re_out, float& im_out) {
    re_out = re * c - im * s;
    im_out = re * s + im * c;
}

// `last`: the frame that this row wrote last, `query`: the frame that it is about to run; -1 is
// none.
void refresh_sinks_host(const SinkState& state, const SinkRules& rules, int64_t last,
                        int64_t query);

}  // namespace sdrt
