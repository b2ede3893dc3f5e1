// Dense optical flow, coarse to fine: overlapping 8x8 patches of luma, each moved by Gauss-Newton
// until it fits (inverse compositional, after Kroeger et al., "Fast optical flow using dense
// inverse search", ECCV 2016), neighbours offering each other their motion, then averaged into a
// field. Unlike there, gain and offset of every patch are projected out of its gradients: a change
// of brightness is no motion. And on every level the patches settle with their neighbours by least
// squares, each as sure of itself as its texture and what it leaves unexplained allow: noise and
// edges that slide along themselves are then carried by what is around them.
//
// A patch is eight rows of lanes. `V` is one row: eight floats on the host, one float in each of
// eight neighbouring threads on a device; `sum` adds its lanes up. Everything below is written once
// for both.
#pragma once

#include <cmath>
#include <vector>

#include "array.h"
#include "kernels/host_device.h"

namespace sdrt {

constexpr int kPatch = 8;
constexpr int kBorder = 16;  // replicated pixels around every level, so that patches may leave it

// One level of a pyramid; `data` is pixel (0, 0), rows are `stride` floats apart, kBorder more each
// way.
struct Luma {
    const float* data;
    int32_t width, height, stride;
};

struct Motion {
    float u, v;  // pixels of the level, to the right and down
    float gain;  // brightness of the second picture over that of the first
};

// Shape of the search at one level.
struct FlowGrid {
    int32_t columns, rows;  // patches
    int32_t step;           // pixels between them; the last one is moved inwards to fit

    SDRT_HD int32_t origin(int32_t i, int32_t extent) const {
        const int32_t most = extent > kPatch ? extent - kPatch : 0;
        return i * step < most ? i * step : most;
    }
};

// A patch of the first picture and what a step of its search needs.
template <typename V>
struct Patch {
    V t[kPatch];   // luma less its mean
    V sx[kPatch];  // rows of (H + damping)^-1 G', G the gradients less their means
    V sy[kPatch];
    float tt;            // sum of squares of t
    float own_x, own_y;  // the step with which the patch itself would answer
    float xx, xy, yy;    // H: how well the patch pins each direction
    float off_x, off_y;  // where its texture lies, from its centre
};

// Squared grey levels; keeps a flat patch from running. One per pixel: pictures come in whole grey
// levels, and where that is all the texture there is, its steps wander with every change of light.
constexpr float kDamping = 64.0f;

// A patch alone confuses brightness with motion where its texture is poor, so its gain leans on
// that of the coarser level, as if so many squared grey levels of texture had already said so.
constexpr float kCoarsestGain = 200.0f;  // at the coarsest level, which leans on gain 1
constexpr float kInheritedGain = 1500.0f;

template <typename V>
SDRT_HD void prepare_patch(const Luma& a, int32_t x, int32_t y, Patch<V>& m) {
    const float* p = a.data + int64_t{y} * a.stride + x;
    V sum_t{}, sum_x{}, sum_y{};
    for (int r = 0; r < kPatch; ++r, p += a.stride) {
        m.t[r] = V::load(p);
        const float* q = p + a.stride;
        const float* o = p - a.stride;
        m.sx[r] = (V::load(p + 1) - V::load(p - 1)) * 0.25f +
                  (V::load(o + 1) - V::load(o - 1) + V::load(q + 1) - V::load(q - 1)) * 0.125f;
        m.sy[r] = (V::load(q) - V::load(o)) * 0.25f +
                  (V::load(q - 1) - V::load(o - 1) + V::load(q + 1) - V::load(o + 1)) * 0.125f;
        sum_t = sum_t + m.t[r];
        sum_x = sum_x + m.sx[r];
        sum_y = sum_y + m.sy[r];
    }
    constexpr float inverse = 1.0f / (kPatch * kPatch);
    const float mean_t = sum(sum_t) * inverse, mean_x = sum(sum_x) * inverse;
    const float mean_y = sum(sum_y) * inverse;
    V tt{}, xx{}, xy{}, yy{}, energy{}, low{};
    for (int r = 0; r < kPatch; ++r) {
        m.t[r] = m.t[r] - mean_t;
        m.sx[r] = m.sx[r] - mean_x;
        m.sy[r] = m.sy[r] - mean_y;
        tt = tt + m.t[r] * m.t[r];
        xx = xx + m.sx[r] * m.sx[r];
        xy = xy + m.sx[r] * m.sy[r];
        yy = yy + m.sy[r] * m.sy[r];
        low = low + energy;  // row r is counted 7 - r times
        energy = xx + yy;
    }
    low = low + V{};
    m.tt = sum(tt);
    m.xx = sum(xx);
    m.xy = sum(xy);
    m.yy = sum(yy);
    const float inverse_energy = 1.0f / (m.xx + m.yy + kDamping);
    m.off_x = (moment(energy) - 3.5f * (m.xx + m.yy)) * inverse_energy;
    m.off_y = (3.5f * (m.xx + m.yy) - sum(low)) * inverse_energy;
    const float hxx = m.xx + kDamping, hxy = m.xy, hyy = m.yy + kDamping;
    const float det = hxx * hyy - hxy * hxy;
    const float scale = 1.0f / det;
    V own_x{}, own_y{};
    for (int r = 0; r < kPatch; ++r) {
        const V gx = m.sx[r], gy = m.sy[r];
        m.sx[r] = (gx * hyy - gy * hxy) * scale;
        m.sy[r] = (gy * hxx - gx * hxy) * scale;
        own_x = own_x + m.sx[r] * m.t[r];
        own_y = own_y + m.sy[r] * m.t[r];
    }
    m.own_x = sum(own_x);
    m.own_y = sum(own_y);
}

// How the second picture, read at the patch moved by `motion`, answers to it.
struct Response {
    float dx, dy;  // Gauss-Newton step, for gain 1
    float gain;
    float cost;  // mean square of what is left of the patch when the picture has explained it
};

template <typename V>
SDRT_HD Response respond(const Patch<V>& m, const Luma& b, int32_t x, int32_t y, Motion motion,
                         float prior) {
    // A patch may leave the picture by as much as the border holds, not more.
    const float low = -(kBorder - 1.0f);
    const float high_x = b.width + (kBorder - kPatch - 2.0f);
    const float high_y = b.height + (kBorder - kPatch - 2.0f);
    float at_x = x + motion.u, at_y = y + motion.v;
    at_x = at_x > low ? (at_x < high_x ? at_x : high_x) : low;
    at_y = at_y > low ? (at_y < high_y ? at_y : high_y) : low;
    const float whole_x = floorf(at_x), whole_y = floorf(at_y);
    const float fx = at_x - whole_x, fy = at_y - whole_y;
    const float* p =
        b.data + static_cast<int64_t>(whole_y) * b.stride + static_cast<int64_t>(whole_x);
    V above = V::load(p) * (1.0f - fx) + V::load(p + 1) * fx;
    V dx{}, dy{}, ti{}, i1{}, i2{};
    for (int r = 0; r < kPatch; ++r) {
        p += b.stride;
        const V below = V::load(p) * (1.0f - fx) + V::load(p + 1) * fx;
        const V i = above * (1.0f - fy) + below * fy;
        above = below;
        dx = dx + m.sx[r] * i;
        dy = dy + m.sy[r] * i;
        ti = ti + m.t[r] * i;
        i1 = i1 + i;
        i2 = i2 + i * i;
    }
    const float sum_ti = sum(ti), sum_i = sum(i1);
    const float ii = sum(i2) - sum_i * sum_i * (1.0f / (kPatch * kPatch));
    float gain = (sum_ti + prior * motion.gain) / (m.tt + prior);
    gain = gain > 0.4f ? (gain < 2.5f ? gain : 2.5f) : 0.4f;
    const float inverse = 1.0f / gain;
    const float left = (ii * inverse - 2.0f * sum_ti) * inverse + m.tt;
    return {sum(dx), sum(dy), gain, left * (1.0f / (kPatch * kPatch))};
}

// Of each Gauss-Newton step only this much is taken: a patch that goes slowly and stops early leans
// on where it started.
constexpr float kStep = 0.5f;
constexpr float kSettled = 0.02f;  // pixels of the level; smaller steps are not taken

// Moves the patch until it fits. Returns where it went and the cost there; a search that runs away
// or ends worse than it began gives its start back.
template <typename V>
SDRT_HD Motion search(const Patch<V>& m, const Luma& b, int32_t x, int32_t y, Motion start,
                      float prior, int iterations, float& cost) {
    Motion at = start, best = start;
    float least = 0.0f;
    for (int i = 0; i <= iterations; ++i) {
        const Response r = respond(m, b, x, y, {at.u, at.v, start.gain}, prior);
        if (i == 0 || r.cost < least) {
            least = r.cost;
            best = {at.u, at.v, r.gain};
        }
        const float dx = r.dx / r.gain - m.own_x;
        const float dy = r.dy / r.gain - m.own_y;
        if (dx * dx + dy * dy < kSettled * kSettled) break;
        at = {at.u - kStep * dx, at.v - kStep * dy, start.gain};
        const float far_x = at.u - start.u, far_y = at.v - start.v;
        if (far_x * far_x + far_y * far_y > kPatch * kPatch) break;
    }
    cost = least;
    return best;
}

// What is known of the motion of one node of the grid: its own measurement, how much that counts in
// each direction (H over the noise of the patch), and where in the patch it was made.
struct Measured {
    float u, v;
    float xx, xy, yy;
    float off_x, off_y;
};

constexpr float kOwnNoise = 5.0f;  // squared grey levels that a patch is never surer than
constexpr float kTear = 1.0f;      // pixels; neighbours that differ by more hardly count
constexpr float kSteepest = 0.2f;  // largest change of motion from pixel to pixel that is believed

template <typename V>
SDRT_HD Measured measured(const Patch<V>& m, Motion motion, float cost) {
    const float sure = 1.0f / (cost + kOwnNoise);
    return {motion.u, motion.v, m.xx * sure, m.xy * sure, m.yy * sure, m.off_x, m.off_y};
}

// One round of smoothing (of Jacobi, for the least squares of all nodes): the motion that agrees
// best with the measurement and with the four neighbours, each of which counts `smooth`. `u`, `v`
// point at the node; neighbours are 1 and `stride` away. `inverse` is 1 over the pixels between
// opposite neighbours. A measurement made off the centre of its patch is brought there by the slope
// of the field: a patch that turns or grows says how its texture moves, not how its centre does.
SDRT_HD void settle_node(const Measured& m, const float* u, const float* v, int64_t stride,
                         float inverse, float smooth, float* out_u, float* out_v) {
    const auto slope = [inverse](float before, float after) {
        const float s = (after - before) * inverse;
        return s < kSteepest ? (s > -kSteepest ? s : -kSteepest) : kSteepest;
    };
    const float mu = m.u - slope(u[-1], u[1]) * m.off_x - slope(u[-stride], u[stride]) * m.off_y;
    const float mv = m.v - slope(v[-1], v[1]) * m.off_x - slope(v[-stride], v[stride]) * m.off_y;
    float weight = 1e-6f, wu = 1e-6f * u[0], wv = 1e-6f * v[0];
    const auto hear = [&](int64_t at) {
        const float du = u[at] - u[0], dv = v[at] - v[0];
        const float w = smooth / (1.0f + (du * du + dv * dv) * (1.0f / (kTear * kTear)));
        weight += w;
        wu += w * u[at];
        wv += w * v[at];
    };
    hear(-1);
    hear(1);
    hear(-stride);
    hear(stride);
    const float xx = m.xx + weight, yy = m.yy + weight;
    const float rx = m.xx * mu + m.xy * mv + wu, ry = m.xy * mu + m.yy * mv + wv;
    const float over = 1.0f / (xx * yy - m.xy * m.xy);
    *out_u = (rx * yy - ry * m.xy) * over;
    *out_v = (ry * xx - rx * m.xy) * over;
}

// Luma of one frame at the working resolution, 2^first of the full one to each side, and coarser.
struct Pyramid {
    int first = 0;
    std::vector<std::vector<float>> storage;
    std::vector<Luma> levels;  // finest first
};

// Motion in pixels of the full resolution, at the working resolution.
struct FlowField {
    int32_t width = 0, height = 0;
    int first = 0;
    std::vector<Motion> motion;
};

struct FlowSettings {
    int64_t area;  // most pixels at the working resolution
    int32_t step;
    int iterations;
    int rounds;    // of smoothing
    float smooth;  // what the motion of a neighbour counts there
};

constexpr FlowSettings kFastFlow{32768, 4, 4, 12, 100.0f};
constexpr FlowSettings kAccurateFlow{131072, 4, 8, 24, 300.0f};

Pyramid luma_pyramid(const Array& frame, const FlowSettings& settings);
FlowField flow_between(const Pyramid& a, const Pyramid& b, const FlowSettings& settings,
                       int threads);

// Field to float32 [H, W, 2], bilinear; rows [begin, end).
void expand_flow(const FlowField& field, const Array& out, int32_t begin, int32_t end);

// Mean, median, 90th percentile, maximum, share above half a pixel.
void flow_statistics(const FlowField& field, float out[5]);

}  // namespace sdrt
