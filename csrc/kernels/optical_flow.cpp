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

    // Lane numbers from the middle of the patch.
    static SDRT_HD Lanes lanes() {
        return {Row{-3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f}};
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

// Nodes of rows [begin, end).
SDRT_CLONES void search_rows(const FlowLevel& level, const FlowLevel& coarser, const Node* above,
                             int32_t begin, int32_t end, Node* nodes) {
    for (int32_t j = begin; j < end; ++j) {
        for (int32_t i = 0; i < level.grid.columns; ++i) {
            nodes[int64_t{j} * level.grid.columns + i] =
                search_node<Lanes>(level, coarser, above, i, j);
        }
    }
}

SDRT_CLONES void offer_rows(const FlowLevel& level, const Node* before, int32_t begin, int32_t end,
                            Node* nodes) {
    for (int32_t j = begin; j < end; ++j) {
        for (int32_t i = 0; i < level.grid.columns; ++i) {
            nodes[int64_t{j} * level.grid.columns + i] = offer_node<Lanes>(level, before, i, j);
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
        p[-1] = beyond(p[0], p[beside]);
        p[columns] = beyond(p[columns - 1], p[columns - 1 - beside]);
    }
    for (int64_t i = -1; i <= columns; ++i) {
        float* p = values.data() + plane.row(0) + i;
        p[-stride] = beyond(p[0], p[below]);
        p = values.data() + plane.row(rows - 1) + i;
        p[stride] = beyond(p[0], p[-below]);
    }
}

SDRT_CLONES void settle_row(const Measured* m, const Plane& before, int64_t row,
                            const Settling& settling, Plane& after) {
    const float *u = before.u.data() + row, *v = before.v.data() + row;
    float *out_u = after.u.data() + row, *out_v = after.v.data() + row;
    for (int64_t i = 0; i < before.columns; ++i) {
        settle_node(m[i], u + i, v + i, before.stride, settling, out_u + i, out_v + i);
    }
}

// All nodes agree with their measurements and their neighbours. A few ten thousand of them take
// less than starting threads for every round would.
void settle(const FlowLevel& level, const FlowSettings& settings, std::vector<Node>& nodes) {
    Plane now(level.grid), next(level.grid);
    const Settling settling(level, settings.smooth);
    std::vector<Measured> measured;
    measured.reserve(nodes.size());
    for (const Node& node : nodes) measured.push_back(node.measured);
    for (int64_t j = 0; j < now.rows; ++j) {
        for (int64_t i = 0; i < now.columns; ++i) {
            now.u[now.row(j) + i] = measured[j * now.columns + i].u;
            now.v[now.row(j) + i] = measured[j * now.columns + i].v;
        }
    }
    for (int round = 0; round < settings.rounds; ++round) {
        continue_outwards(now, now.u);
        continue_outwards(now, now.v);
        for (int64_t j = 0; j < now.rows; ++j) {
            settle_row(measured.data() + j * now.columns, now, now.row(j), settling, next);
        }
        std::swap(now, next);
    }
    for (int64_t j = 0; j < now.rows; ++j) {
        for (int64_t i = 0; i < now.columns; ++i) {
            Motion& motion = nodes[j * now.columns + i].motion;
            motion = {now.u[now.row(j) + i], now.v[now.row(j) + i], motion.gain};
        }
    }
}

// motion_of_pixel for all pixels of row y: every patch that covers the row adds eight lanes.
SDRT_CLONES void blend_row(const FlowLevel& level, const std::vector<Node>& nodes, int32_t y,
                           Motion* out) {
    const FlowGrid& g = level.grid;
    const int32_t width = level.a.width;
    std::vector<float> sums(3 * static_cast<size_t>(width + kPatch));
    float* u = sums.data();
    float* v = u + width + kPatch;
    float* total = v + width + kPatch;
    float tents[kPatch];
    for (int i = 0; i < kPatch; ++i) tents[i] = tent(i);
    for (int32_t j = std::max(0, (y - kPatch) / g.step); j < g.rows; ++j) {
        const int32_t top = g.origin(j, level.a.height);
        if (top > y) break;
        if (top + kPatch <= y) continue;
        for (int32_t i = 0; i < g.columns; ++i) {
            const Node& node = nodes[int64_t{j} * g.columns + i];
            const int32_t x = g.origin(i, width);
            const Lanes w = Lanes::load(tents) * (node.weight * tent(y - top));
            (Lanes::load(u + x) + w * node.motion.u).store(u + x);
            (Lanes::load(v + x) + w * node.motion.v).store(v + x);
            (Lanes::load(total + x) + w).store(total + x);
        }
    }
    for (int32_t x = 0; x < width; ++x) {
        const float inverse = static_cast<float>(1 << level.octave) / total[x];
        out[x] = {u[x] * inverse, v[x] * inverse, 1.0f};
    }
}

}  // namespace

std::vector<Motion> flow_between(const FlowPlan& plan, const std::vector<float>& a,
                                 const std::vector<float>& b, int threads) {
    std::vector<Node> above, nodes;
    for (int k = plan.levels - 1; k >= 0; --k) {
        const FlowLevel level = plan.level(a.data(), b.data(), k);
        const bool coarsest = k + 1 == plan.levels;
        const FlowLevel coarser = coarsest ? level : plan.level(a.data(), b.data(), k + 1);
        const int64_t grain = 1 + 512 / level.grid.columns;
        std::swap(above, nodes);
        std::vector<Node> found(static_cast<size_t>(level.grid.columns) * level.grid.rows);
        nodes.resize(found.size());
        parallel_for(level.grid.rows, grain, threads, [&](int64_t begin, int64_t end) {
            search_rows(level, coarser, coarsest ? nullptr : above.data(),
                        static_cast<int32_t>(begin), static_cast<int32_t>(end), found.data());
        });
        // Few nodes are offered anything that they do not have.
        parallel_for(level.grid.rows, 4 * grain, threads, [&](int64_t begin, int64_t end) {
            offer_rows(level, found.data(), static_cast<int32_t>(begin), static_cast<int32_t>(end),
                       nodes.data());
        });
        settle(level, plan.settings, nodes);
    }
    const FlowLevel finest = plan.level(a.data(), b.data(), 0);
    std::vector<Motion> field(plan.pixels());
    parallel_for(plan.height[0], 64, threads, [&](int64_t begin, int64_t end) {
        for (int64_t y = begin; y < end; ++y) {
            blend_row(finest, nodes, static_cast<int32_t>(y), field.data() + y * plan.width[0]);
        }
    });
    return field;
}

}  // namespace sdrt
