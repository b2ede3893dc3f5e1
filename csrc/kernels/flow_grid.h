// The grid of patches of one level: what each node does on its own, once for host and device. The
// search of a node, its neighbours' offers, the settling of all nodes by least squares, and the
// motion of a pixel between them.
#pragma once

#include "kernels/flow_patch.h"

namespace sdrt {

// Shape of the search at one level.
struct FlowGrid {
    int32_t columns, rows;  // patches
    int32_t step;           // pixels between them; the last one is moved inwards to fit

    SDRT_HD int32_t origin(int32_t i, int32_t extent) const {
        const int32_t most = extent > kPatch ? extent - kPatch : 0;
        return i * step < most ? i * step : most;
    }
};

// What is known of the motion of one node of the grid: its own measurement, how much that counts in
// each direction (H over the noise of the patch), where in the patch it was made, and the motion
// that the coarser level gave.
struct Measured {
    float u, v;
    float xx, xy, yy;
    float off_x, off_y;
    float start_u, start_v;
};

struct Node {
    Motion motion;
    float cost;
    float weight;  // in the motion of the pixels that its patch covers
    Measured measured;
};

struct FlowLevel {
    Luma a, b;
    FlowGrid grid;
    int32_t octave;  // a pixel here is 2^octave of the full picture to each side
    int32_t iterations;
    float prior;  // see kInheritedGain
};

constexpr float kOwnNoise = 5.0f;  // squared grey levels that a patch is never surer than

template <typename V>
SDRT_HD void describe(const Patch<V>& patch, Node& node) {
    const float sure = 1.0f / (node.cost + kOwnNoise);
    Measured& m = node.measured;
    m.u = node.motion.u;
    m.v = node.motion.v;
    m.xx = patch.xx * sure;
    m.xy = patch.xy * sure;
    m.yy = patch.yy * sure;
    m.off_x = patch.off_x;
    m.off_y = patch.off_y;
    node.weight = (m.xx * m.yy - m.xy * m.xy) / (m.xx + m.yy + 1e-3f) + 1e-3f;
}

// Average of the nodes whose patches cover (x, y), nearer centres counting more.
SDRT_HD Motion blend(const FlowLevel& level, const Node* nodes, float x, float y) {
    const FlowGrid& g = level.grid;
    const auto first = [&](float at, int32_t count) {
        const auto i = static_cast<int32_t>((at - (kPatch - 1)) / static_cast<float>(g.step));
        return i < 0 ? 0 : (i < count ? i : count - 1);
    };
    const auto share = [](float distance) {
        return 4.25f - distance > 0.25f ? 4.25f - distance : 0.25f;
    };
    float u = 0.0f, v = 0.0f, gain = 0.0f, total = 0.0f;
    for (int32_t j = first(y, g.rows); j < g.rows; ++j) {
        const auto top = static_cast<float>(g.origin(j, level.a.height));
        const float dy = fabsf(y - top - 3.5f);
        if (dy >= 4.0f && !(j == g.rows - 1 && total == 0.0f)) {
            if (top > y) break;
            continue;
        }
        for (int32_t i = first(x, g.columns); i < g.columns; ++i) {
            const auto left = static_cast<float>(g.origin(i, level.a.width));
            const float dx = fabsf(x - left - 3.5f);
            if (dx >= 4.0f && !(i == g.columns - 1 && total == 0.0f)) {
                if (left > x) break;
                continue;
            }
            const Node& node = nodes[int64_t{j} * g.columns + i];
            const float w = node.weight * share(dx) * share(dy);
            u += w * node.motion.u;
            v += w * node.motion.v;
            gain += w * node.motion.gain;
            total += w;
        }
    }
    return {u / total, v / total, gain / total};
}

// First motion of a node: from `above`, the nodes of the coarser level, or (nullptr) none.
template <typename V>
SDRT_HD Node search_node(const FlowLevel& level, const FlowLevel& coarser, const Node* above,
                         int32_t i, int32_t j) {
    const int32_t x = level.grid.origin(i, level.a.width);
    const int32_t y = level.grid.origin(j, level.a.height);
    Motion start{0.0f, 0.0f, 1.0f};
    if (above != nullptr) {
        // Centres: a pixel x of this level is (x + 1/2) / 2 - 1/2 of the coarser one.
        const Motion m = blend(coarser, above, 0.5f * (static_cast<float>(x) + 3.5f) - 0.25f,
                               0.5f * (static_cast<float>(y) + 3.5f) - 0.25f);
        start = {2.0f * m.u, 2.0f * m.v, m.gain};
    }
    Patch<V> patch;
    prepare_patch(level.a, x, y, patch);
    Node node;
    node.motion = search(patch, level.b, x, y, start, level.prior, level.iterations, node.cost);
    node.measured.start_u = start.u;
    node.measured.start_v = start.v;
    describe(patch, node);
    return node;
}

constexpr float kOther = 0.25f;  // pixels; a neighbour's motion nearer than this is the patch's own

// A node tries its neighbours' motion, as it was before this round, and goes on from the best.
template <typename V>
SDRT_HD Node offer_node(const FlowLevel& level, const Node* before, int32_t i, int32_t j) {
    const FlowGrid& g = level.grid;
    Node node = before[int64_t{j} * g.columns + i];
    const int32_t x = g.origin(i, level.a.width), y = g.origin(j, level.a.height);
    const auto offered = [&](int k, Motion& m) {
        const int32_t bi = k == 0 ? i - 1 : (k == 1 ? i + 1 : i);
        const int32_t bj = k == 2 ? j - 1 : (k == 3 ? j + 1 : j);
        if (bi < 0 || bj < 0 || bi >= g.columns || bj >= g.rows) return false;
        m = before[int64_t{bj} * g.columns + bi].motion;
        const float du = m.u - node.motion.u, dv = m.v - node.motion.v;
        return du * du + dv * dv >= kOther * kOther;
    };
    Motion m, chosen = node.motion;
    if (!offered(0, m) && !offered(1, m) && !offered(2, m) && !offered(3, m)) return node;
    Patch<V> patch;
    prepare_patch(level.a, x, y, patch);
    float least = node.cost;
    for (int k = 0; k < 4; ++k) {
        if (!offered(k, m)) continue;
        const float cost = respond(patch, level.b, x, y, m, kInheritedGain).cost;
        if (cost < least) {
            least = cost;
            chosen = m;
        }
    }
    if (least < node.cost) {
        node.motion =
            search(patch, level.b, x, y, chosen, kInheritedGain, level.iterations, node.cost);
        describe(patch, node);
    }
    return node;
}

constexpr float kTear = 1.0f;      // pixels; neighbours that differ by more hardly count
constexpr float kSteepest = 0.2f;  // largest change of motion from pixel to pixel that is believed

// Shading in whole grey levels seems to move when the light changes, and what a coarse level makes
// of that no finer one can mend. So a node leans on the motion it came with, in pixels of the full
// picture: as if kRigid had been measured for it, until it is kFar away and surely moves.
constexpr float kRigid = 0.25f;
constexpr float kFar = 1.4f;

struct Settling {
    float inverse;  // 1 over the pixels between opposite neighbours
    float smooth;   // what a neighbour counts
    float rigid;    // what the start counts
    float over_far;

    SDRT_HD Settling(const FlowLevel& level, float smooth_) : smooth(smooth_) {
        const auto area = static_cast<float>(int64_t{1} << (2 * level.octave));
        inverse = 0.5f / static_cast<float>(level.grid.step);
        rigid = kRigid * area;
        over_far = area / (kFar * kFar);
    }
};

// One round of settling (of Jacobi, for the least squares of all nodes): the motion that agrees
// best with the measurement, with the start and with the four neighbours. `u`, `v` point at the
// node; neighbours are 1 and `stride` away. A measurement made off the centre of its patch is
// brought there by the slope of the field: a patch that turns or grows says how its texture moves,
// not how its centre does.
SDRT_HD void settle_node(const Measured& m, const float* u, const float* v, int64_t stride,
                         const Settling& s, float* out_u, float* out_v) {
    const auto slope = [&s](float before, float after) {
        const float r = (after - before) * s.inverse;
        return r < kSteepest ? (r > -kSteepest ? r : -kSteepest) : kSteepest;
    };
    const float mu = m.u - slope(u[-1], u[1]) * m.off_x - slope(u[-stride], u[stride]) * m.off_y;
    const float mv = m.v - slope(v[-1], v[1]) * m.off_x - slope(v[-stride], v[stride]) * m.off_y;
    const float away_u = u[0] - m.start_u, away_v = v[0] - m.start_v;
    float weight = s.rigid / (1.0f + (away_u * away_u + away_v * away_v) * s.over_far) + 1e-6f;
    float wu = weight * m.start_u, wv = weight * m.start_v;
    const auto hear = [&](int64_t at) {
        const float du = u[at] - u[0], dv = v[at] - v[0];
        const float w = s.smooth / (1.0f + (du * du + dv * dv) * (1.0f / (kTear * kTear)));
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

// What lies beyond an edge continues it in a straight line: `edge` is the last value, `inner` the
// one before it.
SDRT_HD float beyond(float edge, float inner) {
    return 2.0f * edge - inner;
}

// What a node counts in column `i` (or, the same, row) of its patch.
SDRT_HD float tent(int32_t i) {
    return 4.25f - fabsf(static_cast<float>(i) - 3.5f);
}

// Motion of pixel (x, y) in pixels of the full picture: of every patch that covers it.
SDRT_HD Motion motion_of_pixel(const FlowLevel& level, const Node* nodes, int32_t x, int32_t y) {
    const FlowGrid& g = level.grid;
    float u = 0.0f, v = 0.0f, total = 0.0f;
    for (int32_t j = y < kPatch ? 0 : (y - kPatch) / g.step; j < g.rows; ++j) {
        const int32_t top = g.origin(j, level.a.height);
        if (top > y) break;
        if (top + kPatch <= y) continue;
        for (int32_t i = x < kPatch ? 0 : (x - kPatch) / g.step; i < g.columns; ++i) {
            const int32_t left = g.origin(i, level.a.width);
            if (left > x) break;
            if (left + kPatch <= x) continue;
            const Node& node = nodes[int64_t{j} * g.columns + i];
            const float w = tent(x - left) * (node.weight * tent(y - top));
            u = u + w * node.motion.u;
            v = v + w * node.motion.v;
            total = total + w;
        }
    }
    const float inverse = static_cast<float>(1 << level.octave) / total;
    return {u * inverse, v * inverse, 1.0f};
}

}  // namespace sdrt
