#include <algorithm>
#include <cstdint>

#include "checks.h"
#include "device.h"
#include "kernels/optical_flow.h"
#include "kernels/threads.h"
#include "ops.h"

namespace sdrt {
namespace {

constexpr int64_t kMostPictures = 1024;  // of one call on a device

const FlowSettings& settings_of(const std::string& quality) {
    if (quality == "fast") return kFastFlow;
    if (quality == "accurate") return kAccurateFlow;
    throw ArgumentError("quality", "\"" + quality + "\"", "\"accurate\" or \"fast\"");
}

void check_scratch(const Array* scratch, int64_t bytes, int device) {
    const std::string expected = "uint8 [" + std::to_string(bytes) + "] or more beside the frames";
    if (scratch == nullptr) throw ArgumentError("scratch", "none", expected);
    check_dtype("scratch", *scratch, {Dtype::u8});
    check_contiguous("scratch", *scratch);
    check_writable("scratch", *scratch);
    check_device("scratch", *scratch, device);
    if (scratch->size() < bytes) throw ArgumentError("scratch", describe(*scratch), expected);
    if (reinterpret_cast<std::uintptr_t>(scratch->data) % 256 != 0) {
        throw ArgumentError("scratch", "an odd address", "one that is a multiple of 256 bytes");
    }
}

}  // namespace

int64_t flow_scratch(int64_t height, int64_t width, int64_t pictures, const std::string& quality) {
    check_range("height", static_cast<double>(height), 1, kLargest);
    check_range("width", static_cast<double>(width), 1, kLargest);
    check_range("pictures", static_cast<double>(pictures), 1, kMostPictures);
    return FlowScratch(FlowPlan(height, width, settings_of(quality)), pictures).bytes;
}

void optical_flow(const Array& prev, const Array& next, const std::string& quality,
                  const Array& out, const Array* scratch, Where where) {
    check_threads(where.threads);
    check_frame("prev", prev);
    check_frame("next", next);
    check_device("next", next, prev.device);
    check_same_shape("next", next, "prev", prev);
    const FlowPlan plan(prev.shape[0], prev.shape[1], settings_of(quality));
    check_dtype("out", out, {Dtype::f32});
    check_shape("out", out, {prev.shape[0], prev.shape[1], 2});
    check_writable("out", out);
    check_device("out", out, prev.device);
    if (prev.device != kHost) {
        check_scratch(scratch, FlowScratch(plan, 2).bytes, prev.device);
        const DeviceGuard guard(prev.device);
        launch([&] { optical_flow_cuda(plan, prev, next, out, scratch->data, where.stream); });
        return;
    }
    const std::vector<Motion> field =
        flow_between(plan, luma_pyramid(plan, prev), luma_pyramid(plan, next), where.threads);
    parallel_for(
        prev.shape[0], 1 + 32768 / prev.shape[1], where.threads, [&](int64_t begin, int64_t end) {
            expand_flow(plan, field, out, static_cast<int32_t>(begin), static_cast<int32_t>(end));
        });
}

void optical_flow_magnitude(std::span<const Array> frames, const Array* last, const Array& out,
                            const Array* scratch, Where where) {
    check_threads(where.threads);
    const int device = check_frames(frames, true);
    if (last != nullptr) {
        check_frame("last", *last);
        check_device("last", *last, device);
        check_same_shape("last", *last, "frames[0]", frames[0]);
    }
    const auto count = static_cast<int64_t>(frames.size());
    check_dtype("out", out, {Dtype::f32});
    check_shape("out", out, {count, 5});
    check_contiguous("out", out);
    check_writable("out", out);
    check_device("out", out, device);
    auto* rows = static_cast<float*>(out.data);
    const FlowPlan plan(frames[0].shape[0], frames[0].shape[1], kFastFlow);
    std::vector<Array> pictures(frames.begin(), frames.end());
    if (last != nullptr) pictures.insert(pictures.begin(), *last);
    const int64_t skip = last != nullptr ? 0 : 1, pairs = count - skip;
    if (device != kHost) {
        check_range("frames", static_cast<double>(pictures.size()), 1, kMostPictures);
        check_scratch(scratch, FlowScratch(plan, pairs + 1).bytes, device);
        const DeviceGuard guard(device);
        launch([&] {
            optical_flow_magnitude_cuda(plan, pictures, skip, rows, scratch->data, where.stream);
        });
        return;
    }
    const bool heavy = frames[0].shape[0] * frames[0].shape[1] > 16384;
    const int64_t grain = heavy ? 1 : count + 1;
    std::vector<std::vector<float>> lumas(pictures.size());
    parallel_for(pairs + 1, grain, where.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) lumas[i] = luma_pyramid(plan, pictures[i]);
    });
    std::fill_n(rows, 5 * skip, 0.0f);
    const int inner = std::max<int>(1, resolve_threads(where.threads) / std::max<int>(1, pairs));
    parallel_for(pairs, grain, where.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            flow_statistics(flow_between(plan, lumas[i], lumas[i + 1], inner),
                            rows + 5 * (skip + i));
        }
    });
}

}  // namespace sdrt
