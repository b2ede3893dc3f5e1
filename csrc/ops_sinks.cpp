#include <limits>

#include "checks.h"
#include "device.h"
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
    check_dtype("k_ring", k_ring, {Dtype::f32, Dtype::f16, Dtype::bf16});
    check_dtype("v_ring", v_ring, {k_ring.dtype});
    check_dtype("sink_time", sink_time, {Dtype::f32});
    for (const auto& [name, a] : {std::pair{"v_ring", &v_ring},
                                  {"sink_time", &sink_time},
                                  {"sink_index", &sink_index},
                                  {"last", &last},
                                  {"query", &query}}) {
        // An array of no elements is nowhere.
        if (a->size() > 0) check_device(name, *a, k_ring.device);
    }
    for (const auto& [name, a] : {std::pair{"k_ring", &k_ring},
                                  {"v_ring", &v_ring},
                                  {"sink_time", &sink_time},
                                  {"sink_index", &sink_index}}) {
        check_writable(name, *a);
    }
    const int64_t tokens = rules.tokens_per_frame;
    check_shape("k_ring", k_ring, {kAny, kAny, kAny, rules.window * tokens, kAny});
    check_same_shape("v_ring", v_ring, "k_ring", k_ring);
    const int64_t blocks = k_ring.shape[0], rows = k_ring.shape[1], heads = k_ring.shape[2];
    const int64_t head_dim = k_ring.shape[4];
    check_range("blocks * rows", static_cast<double>(blocks) * static_cast<double>(rows), 1,
                kLargest);
    check_range("heads", static_cast<double>(heads), 1, kLargest);
    check_range("head_dim", static_cast<double>(head_dim), 1, kLargest);
    check_range("sinks * tokens_per_frame", static_cast<double>(rules.sinks * tokens), 0, kLargest);
    const int64_t channels = sink_time.ndim == 5 ? sink_time.shape[4] : 0;
    check_shape("sink_time", sink_time, {blocks, rows, heads, rules.sinks * tokens, channels});
    check_range("sink_time's channels", static_cast<double>(channels), 0,
                static_cast<double>(head_dim));
    if (channels % 2) throw ArgumentError("sink_time", describe(sink_time), "pairs of channels");
    for (const auto& [name, a] :
         {std::pair{"k_ring", &k_ring}, {"v_ring", &v_ring}, {"sink_time", &sink_time}}) {
        const int64_t item = size_of(a->dtype), row = a->shape[4] * item;
        if ((a->shape[3] > 1 && a->strides[3] != row) ||
            (a->shape[4] > 1 && a->strides[4] != item)) {
            throw ArgumentError(name, "strided tokens", "each head's tokens without gaps");
        }
    }
    check_dtype("sink_index", sink_index, {Dtype::i64});
    check_shape("sink_index", sink_index, {blocks, rows, rules.sinks});
    if (rules.sinks > 1 && sink_index.strides[2] != 8) {
        throw ArgumentError("sink_index", "strided sinks", "each row's sinks without gaps");
    }
    for (const auto& [name, a] : {std::pair{"last", &last}, {"query", &query}}) {
        check_dtype(name, *a, {Dtype::i64});
        check_shape(name, *a, {rows});
    }
    if (rules.sinks == 0) return;
    const SinkRules plain{narrow(rules.window),
                          narrow(rules.sinks),
                          narrow(tokens),
                          rules.theta,
                          rules.threshold ? static_cast<float>(*rules.threshold)
                                          : std::numeric_limits<float>::quiet_NaN(),
                          rules.positions == "window"};
    const auto steps = [](const Array& a) {
        const int64_t item = size_of(a.dtype);
        return SinkArrays::Strides{a.strides[0] / item, a.strides[1] / item, a.strides[2] / item};
    };
    const SinkArrays arrays{k_ring.data,
                            v_ring.data,
                            static_cast<float*>(sink_time.data),
                            static_cast<int64_t*>(sink_index.data),
                            static_cast<const int64_t*>(last.data),
                            static_cast<const int64_t*>(query.data),
                            k_ring.dtype,
                            steps(k_ring),
                            steps(v_ring),
                            steps(sink_time),
                            steps(sink_index),
                            last.strides[0] / 8,
                            query.strides[0] / 8,
                            narrow(blocks),
                            narrow(rows),
                            narrow(heads),
                            narrow(head_dim),
                            narrow(channels / 2)};
    if (k_ring.device != kHost) {
        check_range("sinks", plain.sinks, 0, kMostSinksOnDevice);
        check_range("head_dim", static_cast<double>(head_dim), 1, kWidestHeadOnDevice);
        const DeviceGuard guard(k_ring.device);
        launch([&] { refresh_sinks_cuda(arrays, plain, where.stream); });
        return;
    }
    const int64_t work = heads * rules.sinks * tokens * head_dim;
    parallel_for(blocks * rows, 1 + kGrain / work, where.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) refresh_sinks_host(arrays, plain, i / rows, i % rows);
    });
}

}  // namespace sdrt
