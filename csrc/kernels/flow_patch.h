// Dense optical flow, coarse to fine: overlapping 8x8 patches of luma, each moved by Gauss-Newton
// until it fits (inverse compositional, after Kroeger et al., "Fast optical flow using dense
// inverse search", ECCV 2016), neighbours offering each other their motion, then averaged into a
// field. Unlike there, what a change of light can explain of a patch (an offset, a slope, a gain)
// is projected out of its gradients: brightness is no motion. And on every level the patches settle
// with their neighbours by least squares, each as sure of itself as its texture and what it leaves
// unexplained allow: noise and edges that slide along themselves are then carried by what is around
// them (flow_grid.h).
//
// A patch is eight rows of lanes. `V` is one row: eight floats on the host, one float in each of
// eight neighbouring threads on a device; `sum` adds its lanes up. Everything below is written once
// for both.
#pragma once

#include <cmath>

#include "kernels/host_device.h"

namespace sdrt {

constexpr int kPatch = 8;
constexpr int kBorder = 16;  // pixels around every level, so that patches may leave it

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

// A patch of the first picture and what a step of its search needs.
template <typename V>
struct Patch {
    V t[kPatch];   // luma less its mean
    V sx[kPatch];  // rows of (H + damping)^-1 G', G the gradients less what light explains
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

// Turns the gradients into steps.
template <typename V>
SDRT_HD void solve_patch(Patch<V>& m) {
    const float hxx = m.xx + kDamping, hxy = m.xy, hyy = m.yy + kDamping;
    const float scale = 1.0f / (hxx * hyy - hxy * hxy);
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

// Of the gradients only that part counts which no change of light explains: neither an offset nor a
// slope of the additive light across the patch, nor (as far as the texture is strong enough to
// tell) a gain.
template <typename V>
SDRT_HD void prepare_patch(const Luma& a, int32_t x, int32_t y, Patch<V>& m) {
    constexpr float per_pixel = 1.0f / (kPatch * kPatch);
    constexpr float per_slope = 1.0f / 336.0f;  // sum over the patch of (lane - 3.5)^2
    const V lane = V::lanes();
    const float* p = a.data + int64_t{y} * a.stride + x;
    V sum_t{}, sum_x{}, sum_y{}, down_x{}, down_y{};
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
        down_x = down_x + m.sx[r] * (r - 3.5f);
        down_y = down_y + m.sy[r] * (r - 3.5f);
    }
    const float mean_t = sum(sum_t) * per_pixel;
    const float mean_x = sum(sum_x) * per_pixel, mean_y = sum(sum_y) * per_pixel;
    const V across_x = lane * (sum(sum_x * lane) * per_slope);
    const V across_y = lane * (sum(sum_y * lane) * per_slope);
    const float fall_x = sum(down_x) * per_slope, fall_y = sum(down_y) * per_slope;
    V tt{}, tx{}, ty{};
    for (int r = 0; r < kPatch; ++r) {
        m.t[r] = m.t[r] - mean_t;
        m.sx[r] = m.sx[r] - across_x - (mean_x + fall_x * (r - 3.5f));
        m.sy[r] = m.sy[r] - across_y - (mean_y + fall_y * (r - 3.5f));
        tt = tt + m.t[r] * m.t[r];
        tx = tx + m.t[r] * m.sx[r];
        ty = ty + m.t[r] * m.sy[r];
    }
    m.tt = sum(tt);
    const float inverse_t = 1.0f / (m.tt + kDamping);
    const float gain_x = sum(tx) * inverse_t, gain_y = sum(ty) * inverse_t;
    V xx{}, xy{}, yy{}, fall{};
    for (int r = 0; r < kPatch; ++r) {
        m.sx[r] = m.sx[r] - m.t[r] * gain_x;
        m.sy[r] = m.sy[r] - m.t[r] * gain_y;
        const V x2 = m.sx[r] * m.sx[r], y2 = m.sy[r] * m.sy[r];
        xx = xx + x2;
        xy = xy + m.sx[r] * m.sy[r];
        yy = yy + y2;
        fall = fall + (x2 + y2) * (r - 3.5f);
    }
    m.xx = sum(xx);
    m.xy = sum(xy);
    m.yy = sum(yy);
    const float inverse_energy = 1.0f / (m.xx + m.yy + kDamping);
    m.off_x = sum((xx + yy) * lane) * inverse_energy;
    m.off_y = sum(fall) * inverse_energy;
    solve_patch(m);
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

}  // namespace sdrt
