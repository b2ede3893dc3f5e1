#include "kernels/optical_flow.h"

#include <algorithm>
#include <cstring>

#include "kernels/threads.h"

namespace sdrt {
namespace {

// Eight lanes in whatever registers the processor has.
struct Lanes {
    typedef float Row __attribute__((vector_size(32)));
    Row v{};

    static SDRT_HD Lanes load(const float* p) {
        Lanes a;
        std::memcpy(&a.v, p, sizeof(a.v));
        return a;
    }

    SDRT_HD void store(float* p) const { std::memcpy(p, &v, sizeof(v)); }
};

SDRT_HD Lanes operator+(const Lanes& a, const Lanes& b) {
    return {a.v + b.v};
}
SDRT_HD Lanes operator-(const Lanes& a, const Lanes& b) {
    return {a.v - b.v};
}
SDRT_HD Lanes operator*(const Lanes& a, const Lanes& b) {
    return {a.v * b.v};
}
SDRT_HD Lanes operator-(const Lanes& a, float b) {
    return {a.v - b};
}
SDRT_HD Lanes operator*(const Lanes& a, float b) {
    return {a.v * b};
}

// Pairs first: the order in which threads of a device would add.
SDRT_HD float sum(const Lanes& a) {
    return ((a.v[0] + a.v[1]) + (a.v[2] + a.v[3])) + ((a.v[4] + a.v[5]) + (a.v[6] + a.v[7]));
}

// The same for lane numbers times values.
SDRT_HD float moment(const Lanes& a) {
    return ((a.v[1] + 2.0f * a.v[2]) + (3.0f * a.v[3] + 4.0f * a.v[4])) +
           ((5.0f * a.v[5] + 6.0f * a.v[6]) + 7.0f * a.v[7]);
}

struct Node {
    Motion motion;
    float cost;
    float weight;
    Measured measured;
};

struct Level {
    Luma a, b;
    FlowGrid grid;
    int iterations;
    std::vector<Node> nodes;
};

FlowGrid grid_of(const Luma& level, int32_t step) {
    const auto count = [step](int32_t extent) {
        return extent <= kPatch ? 1 : (extent - kPatch + step - 1) / step + 1;
    };
    return {count(level.width), count(level.height), step};
}

template <typename V>
SDRT_HD void describe(const Patch<V>& patch, Node& node) {
    const Measured m = measured(patch, node.motion, node.cost);
    node.measured = m;
    node.weight = (m.xx * m.yy - m.xy * m.xy) / (m.xx + m.yy + 1e-3f) + 1e-3f;
}

// Average of the nodes whose patches cover (x, y), nearer centres counting more.
SDRT_HD Motion blend(const Level& level, float x, float y) {
    const FlowGrid& g = level.grid;
    const auto first = [&](float at) {
        return std::max(0, static_cast<int32_t>((at - (kPatch - 1)) / static_cast<float>(g.step)));
    };
    float u = 0.0f, v = 0.0f, gain = 0.0f, total = 0.0f;
    for (int32_t j = std::min(first(y), g.rows - 1); j < g.rows; ++j) {
        const float dy = std::abs(y - static_cast<float>(g.origin(j, level.a.height)) - 3.5f);
        const bool last_row = j == g.rows - 1;
        if (dy >= 4.0f && !(last_row && total == 0.0f)) {
            if (static_cast<float>(g.origin(j, level.a.height)) > y) break;
            continue;
        }
        for (int32_t i = std::min(first(x), g.columns - 1); i < g.columns; ++i) {
            const float dx = std::abs(x - static_cast<float>(g.origin(i, level.a.width)) - 3.5f);
            if (dx >= 4.0f && !(i == g.columns - 1 && total == 0.0f)) {
                if (static_cast<float>(g.origin(i, level.a.width)) > x) break;
                continue;
            }
            const Node& node = level.nodes[j * g.columns + i];
            const float w = node.weight * std::max(4.25f - dx, 0.25f) * std::max(4.25f - dy, 0.25f);
            u += w * node.motion.u;
            v += w * node.motion.v;
            gain += w * node.motion.gain;
            total += w;
        }
    }
    return {u / total, v / total, gain / total};
}

// First motion of every patch of rows [begin, end): from the coarser level, or none.
SDRT_CLONES void search_rows(Level& level, const Level* coarser, int32_t begin, int32_t end) {
    const FlowGrid& g = level.grid;
    const float prior = coarser != nullptr ? kInheritedGain : kCoarsestGain;
    for (int32_t j = begin; j < end; ++j) {
        const int32_t y = g.origin(j, level.a.height);
        for (int32_t i = 0; i < g.columns; ++i) {
            const int32_t x = g.origin(i, level.a.width);
            Patch<Lanes> patch;
            prepare_patch(level.a, x, y, patch);
            Motion start{0.0f, 0.0f, 1.0f};
            if (coarser != nullptr) {
                // Centres: a pixel x of this level is (x + 1/2) / 2 - 1/2 of the coarser one.
                const Motion m = blend(*coarser, 0.5f * (static_cast<float>(x) + 3.5f) - 0.25f,
                                       0.5f * (static_cast<float>(y) + 3.5f) - 0.25f);
                start = {2.0f * m.u, 2.0f * m.v, m.gain};
            }
            Node& node = level.nodes[j * g.columns + i];
            node.motion = search(patch, level.b, x, y, start, prior, level.iterations, node.cost);
            describe(patch, node);
        }
    }
}

constexpr float kOther = 0.25f;  // pixels; a neighbour's motion nearer than this is the patch's own

// Every patch of rows [begin, end) tries its neighbours' motion, as it was before this round.
SDRT_CLONES void offer_rows(Level& level, const std::vector<Node>& before, int32_t begin,
                            int32_t end) {
    const FlowGrid& g = level.grid;
    for (int32_t j = begin; j < end; ++j) {
        const int32_t y = g.origin(j, level.a.height);
        for (int32_t i = 0; i < g.columns; ++i) {
            const int32_t x = g.origin(i, level.a.width);
            const Node& own = before[j * g.columns + i];
            Node& node = level.nodes[j * g.columns + i];
            Motion offers[4];
            int count = 0;
            const int32_t beside[4][2] = {{i - 1, j}, {i + 1, j}, {i, j - 1}, {i, j + 1}};
            for (const auto& [bi, bj] : beside) {
                if (bi < 0 || bj < 0 || bi >= g.columns || bj >= g.rows) continue;
                const Motion m = before[bj * g.columns + bi].motion;
                const float du = m.u - own.motion.u, dv = m.v - own.motion.v;
                if (du * du + dv * dv >= kOther * kOther) offers[count++] = m;
            }
            if (count == 0) continue;
            Patch<Lanes> patch;
            prepare_patch(level.a, x, y, patch);
            float least = own.cost;
            int chosen = -1;
            for (int k = 0; k < count; ++k) {
                const float cost = respond(patch, level.b, x, y, offers[k], kInheritedGain).cost;
                if (cost < least) {
                    least = cost;
                    chosen = k;
                }
            }
            if (chosen < 0) continue;
            node.motion = search(patch, level.b, x, y, offers[chosen], kInheritedGain,
                                 level.iterations, node.cost);
            describe(patch, node);
        }
    }
}

// The motion of all nodes, with one more around them for neighbours, before and after a round.
struct Plane {
    int64_t columns, rows, stride;
    std::vector<float> u, v;

    explicit Plane(const FlowGrid& g)
        : columns(g.columns),
          rows(g.rows),
          stride(g.columns + 2),
          u((g.columns + 2) * int64_t{g.rows + 2}),
          v(u.size()) {}

    int64_t row(int64_t j) const { return (j + 1) * stride + 1; }
};

// What lies around the grid continues it in a straight line.
void continue_outwards(const Plane& plane, std::vector<float>& values) {
    const int64_t columns = plane.columns, rows = plane.rows, stride = plane.stride;
    const int64_t beside = columns > 1 ? 1 : 0, below = rows > 1 ? stride : 0;
    for (int64_t j = 0; j < rows; ++j) {
        float* p = values.data() + plane.row(j);
        p[-1] = 2.0f * p[0] - p[beside];
        p[columns] = 2.0f * p[columns - 1] - p[columns - 1 - beside];
    }
    for (int64_t i = -1; i <= columns; ++i) {
        float* p = values.data() + plane.row(0) + i;
        p[-stride] = 2.0f * p[0] - p[below];
        p = values.data() + plane.row(rows - 1) + i;
        p[stride] = 2.0f * p[0] - p[-below];
    }
}

SDRT_CLONES void settle_row(const Measured* m, const Plane& before, int64_t row, float inverse,
                            float smooth, Plane& after) {
    const float *u = before.u.data() + row, *v = before.v.data() + row;
    float *out_u = after.u.data() + row, *out_v = after.v.data() + row;
    for (int64_t i = 0; i < before.columns; ++i) {
        settle_node(m[i], u + i, v + i, before.stride, inverse, smooth, out_u + i, out_v + i);
    }
}

// All nodes agree with their measurements and their neighbours. A few ten thousand of them take
// less than starting threads for every round would.
void settle(Level& level, const FlowSettings& settings) {
    Plane now(level.grid), next(level.grid);
    std::vector<Measured> measured;
    measured.reserve(level.nodes.size());
    for (const Node& node : level.nodes) measured.push_back(node.measured);
    for (int64_t j = 0; j < now.rows; ++j) {
        for (int64_t i = 0; i < now.columns; ++i) {
            now.u[now.row(j) + i] = measured[j * now.columns + i].u;
            now.v[now.row(j) + i] = measured[j * now.columns + i].v;
        }
    }
    const float inverse = 0.5f / static_cast<float>(settings.step);
    for (int round = 0; round < settings.rounds; ++round) {
        continue_outwards(now, now.u);
        continue_outwards(now, now.v);
        for (int64_t j = 0; j < now.rows; ++j) {
            settle_row(measured.data() + j * now.columns, now, now.row(j), inverse, settings.smooth,
                       next);
        }
        std::swap(now, next);
    }
    for (int64_t j = 0; j < now.rows; ++j) {
        for (int64_t i = 0; i < now.columns; ++i) {
            Motion& motion = level.nodes[j * now.columns + i].motion;
            motion = {now.u[now.row(j) + i], now.v[now.row(j) + i], motion.gain};
        }
    }
}

// The same for all pixels of row y: every patch that covers the row adds eight lanes.
SDRT_CLONES void blend_row(const Level& level, int32_t y, float scale, Motion* out) {
    const FlowGrid& g = level.grid;
    const int32_t width = level.a.width;
    std::vector<float> sums(3 * static_cast<size_t>(width + kPatch));
    float* u = sums.data();
    float* v = u + width + kPatch;
    float* total = v + width + kPatch;
    for (int32_t j = std::max(0, (y - kPatch) / g.step); j < g.rows; ++j) {
        const int32_t top = g.origin(j, level.a.height);
        if (top > y) break;
        if (top + kPatch <= y) continue;
        const float dy = std::abs(static_cast<float>(y - top) - 3.5f);
        for (int32_t i = 0; i < g.columns; ++i) {
            const Node& node = level.nodes[j * g.columns + i];
            const int32_t x = g.origin(i, width);
            const float weight = node.weight * (4.25f - dy);
            const float tent[kPatch] = {0.75f, 1.75f, 2.75f, 3.75f, 3.75f, 2.75f, 1.75f, 0.75f};
            const Lanes w = Lanes::load(tent) * weight;
            (Lanes::load(u + x) + w * node.motion.u).store(u + x);
            (Lanes::load(v + x) + w * node.motion.v).store(v + x);
            (Lanes::load(total + x) + w).store(total + x);
        }
    }
    for (int32_t x = 0; x < width; ++x) {
        const float inverse = scale / total[x];
        out[x] = {u[x] * inverse, v[x] * inverse, 1.0f};
    }
}

}  // namespace

FlowField flow_between(const Pyramid& a, const Pyramid& b, const FlowSettings& settings,
                       int threads) {
    std::vector<Level> levels(a.levels.size());
    for (size_t k = levels.size(); k-- > 0;) {
        const Level* coarser = k + 1 < levels.size() ? &levels[k + 1] : nullptr;
        Level& level = levels[k];
        level = {
            a.levels[k], b.levels[k], grid_of(a.levels[k], settings.step), settings.iterations, {}};
        level.nodes.resize(static_cast<size_t>(level.grid.columns) * level.grid.rows);
        const int64_t grain = 1 + 256 / level.grid.columns;
        parallel_for(level.grid.rows, grain, threads, [&](int64_t begin, int64_t end) {
            search_rows(level, coarser, static_cast<int32_t>(begin), static_cast<int32_t>(end));
        });
        const std::vector<Node> before = level.nodes;
        parallel_for(level.grid.rows, grain, threads, [&](int64_t begin, int64_t end) {
            offer_rows(level, before, static_cast<int32_t>(begin), static_cast<int32_t>(end));
        });
        settle(level, settings);
    }
    const Level& finest = levels.front();
    FlowField field{finest.a.width, finest.a.height, a.first, {}};
    field.motion.resize(static_cast<size_t>(field.width) * field.height);
    const auto scale = static_cast<float>(1 << a.first);
    parallel_for(field.height, 64, threads, [&](int64_t begin, int64_t end) {
        for (int64_t y = begin; y < end; ++y) {
            blend_row(finest, static_cast<int32_t>(y), scale,
                      field.motion.data() + y * field.width);
        }
    });
    return field;
}

}  // namespace sdrt
