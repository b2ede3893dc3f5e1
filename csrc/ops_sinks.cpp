#include <limits>

#include "checks.h"
#include "kernels/refresh_sinks.h"
#include "kernels/threads.h"
#include "ops.h"

namespace sdrt {
namespace {

constexpr int64_t kGrain = 1 << 17;  // elements; a thread for less costs more than it saves

int32_t narrow(int64_t v) {
    return static_cast<int32_t>(v);
}

}  // namespace

void refresh_sinks(const Array& k_ring, const Array& v_ring, const Array& sink_time,
                   const Array& sink_index, const Array& last, const Array& query,
                   const RefreshSinks& rules, Where where) {
    check_threads(where.threads);
    check_range("window", static_cast<double>(rules.window), 1, kLargest);
    check_range("sinks", static_cast<double>(rules.sinks), 0,
                static_cast<double>(rules.window - 1));
    check_range("tokens_per_frame", static_cast<double>(rules.tokens_per_frame), 1, kLargest);
    check_range("theta", rules.theta, 1, 1e12);
    if (rules.positions != "window" && rules.positions != "absolute") {
        throw ArgumentError("positions", "\"" + rules.positions + "\"",
                            "\"window\" or \"absolute\"");
    }
    for (const auto& [name, a] :
         {std::pair{"k_ring", &k_ring}, {"v_ring", &v_ring}, {"sink_time", &sink_time}}) {
        check_dtype(name, *a, {Dtype::f32});
        check_host(name, *a);
        check_writable(name, *a);
    }
    const int64_t tokens = rules.tokens_per_frame;
    check_shape("k_ring", k_ring, {kAny, kAny, kAny, rules.window * tokens, kAny});
    check_same_shape("v_ring", v_ring, "k_ring", k_ring);
    const int64_t blocks = k_ring.shape[0], rows = k_ring.shape[1], heads = k_ring.shape[2];
    const int64_t head_dim = k_ring.shape[4];
    check_range("sinks * tokens_per_frame", static_cast<double>(rules.sinks * tokens), 0, kLargest);
    const int64_t channels = sink_time.ndim == 5 ? sink_time.shape[4] : 0;
    check_shape("sink_time", sink_time, {blocks, rows, heads, rules.sinks * tokens, channels});
    check_range("sink_time's channels", static_cast<double>(channels), 0,
                static_cast<double>(head_dim));
    if (channels % 2) throw ArgumentError("sink_time", describe(sink_time), "pairs of channels");
    for (const auto& [name, a] :
         {std::pair{"k_ring", &k_ring}, {"v_ring", &v_ring}, {"sink_time", &sink_time}}) {
        const int64_t row = a->shape[4] * 4;
        if ((a->shape[3] > 1 && a->strides[3] != row) || (a->shape[4] > 1 && a->strides[4] != 4)) {
            throw ArgumentError(name, "strided tokens", "each head's tokens without gaps");
        }
    }
    check_dtype("sink_index", sink_index, {Dtype::i64});
    check_shape("sink_index", sink_index, {blocks, rows, rules.sinks});
    check_host("sink_index", sink_index);
    check_writable("sink_index", sink_index);
    if (rules.sinks > 1 && sink_index.strides[2] != 8) {
        throw ArgumentError("sink_index", "strided sinks", "each row's sinks without gaps");
    }
    for (const auto& [name, a] : {std::pair{"last", &last}, {"query", &query}}) {
        check_dtype(name, *a, {Dtype::i64});
        check_shape(name, *a, {rows});
        check_host(name, *a);
    }
    if (rules.sinks == 0) return;
    const SinkRules plain{narrow(rules.window),
                          narrow(rules.sinks),
                          narrow(tokens),
                          rules.theta,
                          rules.threshold ? static_cast<float>(*rules.threshold)
                                          : std::numeric_limits<float>::quiet_NaN(),
                          rules.positions == "window"};
    const auto row_of = [](const Array& a, int64_t block, int64_t row) {
        return static_cast<char*>(a.data) + block * a.strides[0] + row * a.strides[1];
    };
    const int64_t work = heads * rules.sinks * tokens * head_dim;
    parallel_for(blocks * rows, 1 + kGrain / work, where.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / rows, r = i % rows;
            const SinkState state{reinterpret_cast<float*>(row_of(k_ring, b, r)),
                                  reinterpret_cast<float*>(row_of(v_ring, b, r)),
                                  reinterpret_cast<float*>(row_of(sink_time, b, r)),
                                  reinterpret_cast<int64_t*>(row_of(sink_index, b, r)),
                                  k_ring.strides[2] / 4,
                                  v_ring.strides[2] / 4,
                                  sink_time.strides[2] / 4,
                                  narrow(heads),
                                  narrow(head_dim),
                                  narrow(channels / 2)};
            refresh_sinks_host(state, plain, *reinterpret_cast<int64_t*>(last.at(r)),
                               *reinterpret_cast<int64_t*>(query.at(r)));
        }
    });
}

}  // namespace sdrt
