#include "kernels/refresh_sinks.h"

#include <algorithm>
#include <vector>

#include "kernels/convert.h"

namespace sdrt {
namespace {

// Adds up the rows of [tokens, width]. Double, because a threshold decides on what comes out.
template <typename T>
SDRT_HD void add_all(const T* __restrict rows, int32_t tokens, int32_t width,
                     double* __restrict sums) {
    for (int32_t t = 0; t < tokens; ++t, rows += width) {
        for (int32_t c = 0; c < width; ++c) sums[c] += static_cast<double>(to_float(rows[c]));
    }
}

SDRT_CLONES void add_rows(const float* rows, int32_t tokens, int32_t width, double* sums) {
    add_all(rows, tokens, width, sums);
}
SDRT_CLONES void add_rows(const F16* rows, int32_t tokens, int32_t width, double* sums) {
    add_all(rows, tokens, width, sums);
}
SDRT_CLONES void add_rows(const Bf16* rows, int32_t tokens, int32_t width, double* sums) {
    add_all(rows, tokens, width, sums);
}

template <typename T>
class Row {
  public:
    Row(const SinkState<T>& state, const SinkRules& rules)
        : a(state), rules(rules), cosines(state.pairs), sines(state.pairs) {}

    // Time channels of the keys of frame `frame`, in its slot, turned back into the side copy of
    // sink s.
    void capture(int64_t frame, int32_t s) {
        turn_to(-frame);
        const int64_t slot = slot_of(frame, rules.window, rules.sinks);
        each_token(s, slot, [&](float* time, T* key) { rotate(key, time); });
        a.sink_index[s] = frame;
    }

    // Sink s gets its time channels from the side copy, for `position`.
    void place(int32_t s, int64_t position) {
        turn_to(position);
        each_token(s, s, [&](float* time, T* key) { rotate(time, key); });
    }

    // Frame `frame` takes the place of sink s, whole keys (rotated as they were written) and
    // values.
    void replace(int64_t frame, int32_t s) {
        const int64_t slot = slot_of(frame, rules.window, rules.sinks);
        const int64_t count = int64_t{rules.tokens} * a.head_dim;
        for (int32_t h = 0; h < a.heads; ++h) {
            T* k = a.k + h * a.k_head;
            T* v = a.v + h * a.v_head;
            std::copy_n(k + slot * count, count, k + s * count);
            std::copy_n(v + slot * count, count, v + s * count);
        }
        capture(frame, s);
    }

    // The captured sink that is least similar to `frame` and its similarity; -1 when there is none.
    int32_t least_similar(int64_t frame, double& least) {
        const size_t width = static_cast<size_t>(a.heads) * a.head_dim;
        const int64_t slot = slot_of(frame, rules.window, rules.sinks);
        std::vector<double> key(width), value(width), sink_key(width), sink_value(width);
        sum_tokens(slot, key, value);
        turn_sums(-frame, key);
        int32_t found = -1;
        for (int32_t s = 0; s < rules.sinks; ++s) {
            if (a.sink_index[s] < 0) continue;
            sum_tokens(s, sink_key, sink_value);
            sum_times(s, sink_key);
            const double similarity = 0.5 * (cosine(key, sink_key) + cosine(value, sink_value));
            if (found >= 0 && !(similarity < least)) continue;
            found = s;
            least = similarity;
        }
        return found;
    }

  private:
    void turn_to(int64_t position) {
        for (int32_t p = 0; p < a.pairs; ++p) {
            rotation_of(position, p, a.pairs, rules.theta, cosines[p], sines[p]);
        }
    }

    template <typename From, typename To>
    void rotate(const From* from, To* to) const {
        for (int32_t p = 0; p < a.pairs; ++p) {
            float re, im;
            rotate_pair(to_float(from[2 * p]), to_float(from[2 * p + 1]), cosines[p], sines[p], re,
                        im);
            from_float(re, to[2 * p]);
            from_float(im, to[2 * p + 1]);
        }
    }

    // body(time channels in the side copy of sink s, key in `slot`) for every head and token.
    template <typename Body>
    void each_token(int32_t s, int64_t slot, const Body& body) {
        for (int32_t h = 0; h < a.heads; ++h) {
            for (int32_t t = 0; t < rules.tokens; ++t) {
                float* time =
                    a.sink_time + h * a.time_head + (int64_t{s} * rules.tokens + t) * 2 * a.pairs;
                body(time, a.k + h * a.k_head + (slot * rules.tokens + t) * a.head_dim);
            }
        }
    }

    // Sums instead of means: a cosine does not see the difference.
    void sum_tokens(int64_t slot, std::vector<double>& key, std::vector<double>& value) const {
        std::fill(key.begin(), key.end(), 0.0);
        std::fill(value.begin(), value.end(), 0.0);
        for (int32_t h = 0; h < a.heads; ++h) {
            const int64_t first = slot * rules.tokens * a.head_dim;
            add_rows(a.k + h * a.k_head + first, rules.tokens, a.head_dim,
                     key.data() + int64_t{h} * a.head_dim);
            add_rows(a.v + h * a.v_head + first, rules.tokens, a.head_dim,
                     value.data() + int64_t{h} * a.head_dim);
        }
    }

    // Time channels of the sums of sink s, from its side copy.
    void sum_times(int32_t s, std::vector<double>& key) const {
        for (int32_t h = 0; h < a.heads; ++h) {
            double* sum = key.data() + int64_t{h} * a.head_dim;
            std::fill_n(sum, 2 * a.pairs, 0.0);
            const float* time =
                a.sink_time + h * a.time_head + int64_t{s} * rules.tokens * 2 * a.pairs;
            add_rows(time, rules.tokens, 2 * a.pairs, sum);
        }
    }

    // Rotation is linear, so the sum is turned back instead of every token.
    void turn_sums(int64_t position, std::vector<double>& key) {
        turn_to(position);
        for (int32_t h = 0; h < a.heads; ++h) {
            for (int32_t p = 0; p < a.pairs; ++p) {
                double* pair = key.data() + int64_t{h} * a.head_dim + 2 * p;
                rotate_pair(pair[0], pair[1], cosines[p], sines[p], pair[0], pair[1]);
            }
        }
    }

    static double cosine(const std::vector<double>& a, const std::vector<double>& b) {
        double ab = 0.0, aa = 0.0, bb = 0.0;
        for (size_t i = 0; i < a.size(); ++i) {
            ab += a[i] * b[i];
            aa += a[i] * a[i];
            bb += b[i] * b[i];
        }
        return cosine_of(ab, aa, bb);
    }

    const SinkState<T>& a;
    const SinkRules& rules;
    std::vector<float> cosines, sines;
};

template <typename T>
void refresh(const SinkState<T>& state, const SinkRules& rules) {
    Row<T> row(state, rules);
    if (captures(rules, state.last)) {
        row.capture(state.last, static_cast<int32_t>(state.last));
    } else if (compares(rules, state.last)) {
        double similarity = 1.0;
        const int32_t s = row.least_similar(state.last, similarity);
        if (s >= 0 && similarity < rules.threshold) row.replace(state.last, s);
    }
    if (!moves(rules, state.query)) return;
    for (int32_t s = 0; s < rules.sinks; ++s) {
        if (state.sink_index[s] >= 0) row.place(s, position_of(rules, state.query, s));
    }
}

}  // namespace

void refresh_sinks_host(const SinkArrays& arrays, const SinkRules& rules, int64_t block,
                        int64_t row) {
    if (arrays.dtype == Dtype::f16) return refresh(sinks_of<F16>(arrays, block, row), rules);
    if (arrays.dtype == Dtype::bf16) return refresh(sinks_of<Bf16>(arrays, block, row), rules);
    refresh(sinks_of<float>(arrays, block, row), rules);
}

}  // namespace sdrt
