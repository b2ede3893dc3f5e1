// Keeps the pinned latent frames (sinks) of the key/value rings: captures them, replaces the least
// similar one, and moves their keys to the position that the window asks for. The law is in
// docs/interfaces.md, "Ring and sinks".
#pragma once

#include <cmath>

#include "array.h"
#include "kernels/host_device.h"

namespace sdrt {

struct SinkRules {
    int32_t window, sinks, tokens;  // latent frames, latent frames, tokens per latent frame
    double theta;
    float threshold;  // similarity under which a sink is replaced; NaN: never
    bool positions_follow_window;
};

// Rings and side copies of all blocks and rows. Strides in elements; the tokens of a head are
// packed.
struct SinkArrays {
    struct Strides {
        int64_t block, row, head;
    };
    void *k, *v;       // [blocks, rows, heads, window * tokens, head_dim] of `dtype`
    float* sink_time;  // [blocks, rows, heads, sinks * tokens, 2 * pairs]: not rotated by time
    int64_t* sink_index;
    const int64_t *last, *query;  // [rows]
    Dtype dtype;
    Strides k_step, v_step, time_step, index_step;
    int64_t last_step, query_step;
    int32_t blocks, rows, heads, head_dim, pairs;
};

// What of them belongs to one block and row. Heads are `*_head` elements apart.
template <typename T>
struct SinkState {
    T *k, *v;
    float* sink_time;
    int64_t* sink_index;
    int64_t k_head, v_head, time_head, last, query;
    int32_t heads, head_dim, pairs;
};

template <typename T>
SDRT_HD SinkState<T> sinks_of(const SinkArrays& a, int64_t block, int64_t row) {
    const auto at = [&](const SinkArrays::Strides& s) { return block * s.block + row * s.row; };
    return {static_cast<T*>(a.k) + at(a.k_step),
            static_cast<T*>(a.v) + at(a.v_step),
            a.sink_time + at(a.time_step),
            a.sink_index + at(a.index_step),
            a.k_step.head,
            a.v_step.head,
            a.time_step.head,
            a.last[row * a.last_step],
            a.query[row * a.query_step],
            a.heads,
            a.head_dim,
            a.pairs};
}

SDRT_HD int64_t slot_of(int64_t frame, int64_t window, int64_t sinks) {
    return frame < window ? frame : sinks + (frame - sinks) % (window - sinks);
}

// What a row does before its next pass, by the frames that it wrote last and is about to run.
SDRT_HD bool captures(const SinkRules& rules, int64_t last) {
    return last >= 0 && last < rules.sinks;
}
SDRT_HD bool compares(const SinkRules& rules, int64_t last) {
    return last >= rules.window && rules.threshold == rules.threshold;
}
SDRT_HD bool moves(const SinkRules& rules, int64_t query) {
    return rules.positions_follow_window && query >= rules.window;
}
SDRT_HD int64_t position_of(const SinkRules& rules, int64_t query, int32_t sink) {
    return query - (rules.window - 1) + sink;
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

template <typename Real>
SDRT_HD void rotate_pair(Real re, Real im, float c, float s, Real& re_out, Real& im_out) {
    re_out = re * c - im * s;
    im_out = re * s + im * c;
}

// Of two vectors: their product and their squared lengths. Double, because a threshold decides on
// it.
SDRT_HD double cosine_of(double ab, double aa, double bb) {
    const double length = sqrt(aa) * sqrt(bb);
    return length > 0.0 ? ab / length : 0.0;
}

void refresh_sinks_host(const SinkArrays& arrays, const SinkRules& rules, int64_t block,
                        int64_t row);

// All blocks and rows in one launch; every array is on the device.
constexpr int32_t kMostSinksOnDevice = 64;
constexpr int32_t kWidestHeadOnDevice = 1024;
void refresh_sinks_cuda(const SinkArrays& arrays, const SinkRules& rules, CudaStream stream);

}  // namespace sdrt
