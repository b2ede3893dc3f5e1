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

struct Node {
    Motion motion;
    float cost;
    float weight;
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

float weight_of(float confidence, float cost) {
    return confidence / (cost + 2.0f) + 1e-3f;
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
            node.weight = weight_of(patch.confidence, node.cost);
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
            node.weight = weight_of(patch.confidence, node.cost);
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
