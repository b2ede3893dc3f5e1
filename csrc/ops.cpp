#include "ops.h"

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "device.h"
#include "kernels/frame_difference.h"
#include "kernels/frames_to_pixels.h"
#include "kernels/mix_noise.h"
#include "kernels/optical_flow.h"
#include "kernels/philox_normal.h"
#include "kernels/pixels_to_frames.h"
#include "kernels/renoise.h"
#include "kernels/threads.h"

namespace sdrt {
namespace {

constexpr int64_t kGrainPixels = 1 << 17;  // a thread for less costs more than it saves

int64_t rows_for(int64_t pixels, int64_t width) {
    return std::max<int64_t>(1, pixels / width);
}

float* floats(const Array& a) {
    return static_cast<float*>(a.data);
}

int32_t narrow(int64_t v) {
    return static_cast<int32_t>(v);
}

// A latent and what is written of it: one shape, one format, one place; on a device without gaps.
void check_latent(const char* name, const Array& a, const char* out_name, const Array& out) {
    check_dtype(name, a, {Dtype::f32, Dtype::f16, Dtype::bf16});
    if (a.size() < 1) throw ArgumentError(name, describe(a), "at least one element");
    if (a.size() > (int64_t{1} << 34))
        throw ArgumentError(name, describe(a), "at most 2^34 elements");
    check_same_shape(out_name, out, name, a);
    check_dtype(out_name, out, {a.dtype});
    check_device(out_name, out, a.device);
    if (a.device == kHost) return;
    check_contiguous(name, a);
    check_contiguous(out_name, out);
}

// One number, or a record of them, where the latent is.
void check_record(const char* name, const Array& a, int64_t count, const Array& latent) {
    check_dtype(name, a, {Dtype::f32});
    check_shape(name, a, {count});
    check_contiguous(name, a);
    check_device(name, a, latent.device);
}

}  // namespace

void frames_to_pixels(std::span<const Array> frames, const Array& out, Where where) {
    const int device = check_frames(frames, false);
    check_threads(where.threads);
    check_dtype("out", out, {Dtype::f32, Dtype::f16, Dtype::bf16});
    const auto count = static_cast<int64_t>(frames.size());
    check_shape("out", out, {3, count, kAny, kAny});
    check_range("height", static_cast<double>(out.shape[2]), 1, kLargest);
    check_range("width", static_cast<double>(out.shape[3]), 1, kLargest);
    check_writable("out", out);
    check_device("out", out, device);
    const int64_t size = size_of(out.dtype);
    const auto view = [&](int64_t t) {
        const Array& f = frames[t];
        return FrameView{static_cast<const uint8_t*>(f.data),
                         narrow(f.shape[0]),
                         narrow(f.shape[1]),
                         f.strides[0],
                         f.strides[1],
                         f.strides[2]};
    };
    const auto target = [&](int64_t t) {
        return PixelView{static_cast<char*>(out.data) + t * out.strides[1],
                         out.dtype,
                         narrow(out.shape[2]),
                         narrow(out.shape[3]),
                         out.strides[0] / size,
                         out.strides[2] / size,
                         out.strides[3] / size};
    };
    if (device != kHost) {
        const DeviceGuard guard(device);
        for (int64_t t = 0; t < count; ++t) {
            launch([&] { frames_to_pixels_cuda(view(t), target(t), where.stream); });
        }
        return;
    }
    const int64_t rows = out.shape[2];
    const int64_t work = std::max(out.shape[3], frames[0].shape[0] * frames[0].shape[1] / rows);
    parallel_for(count * rows, rows_for(kGrainPixels, work), where.threads,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t t = begin / rows; t * rows < end; ++t) {
                         frames_to_pixels_host(view(t), target(t),
                                               narrow(std::max<int64_t>(begin - t * rows, 0)),
                                               narrow(std::min(end - t * rows, rows)));
                     }
                 });
}

void pixels_to_frames(const Array& pixels, const Array& out, Where where) {
    check_threads(where.threads);
    check_dtype("pixels", pixels, {Dtype::f32, Dtype::f16, Dtype::bf16});
    check_shape("pixels", pixels, {3, kAny, kAny, kAny});
    check_range("height", static_cast<double>(pixels.shape[2]), 1, kLargest);
    check_range("width", static_cast<double>(pixels.shape[3]), 1, kLargest);
    check_dtype("out", out, {Dtype::u8});
    check_shape("out", out, {pixels.shape[1], pixels.shape[2], pixels.shape[3], 3});
    check_writable("out", out);
    check_device("out", out, pixels.device);
    const int64_t size = size_of(pixels.dtype);
    const auto view = [&](int64_t t) {
        return PlanarView{static_cast<const char*>(pixels.data) + t * pixels.strides[1],
                          pixels.dtype,
                          narrow(pixels.shape[2]),
                          narrow(pixels.shape[3]),
                          pixels.strides[0] / size,
                          pixels.strides[2] / size,
                          pixels.strides[3] / size};
    };
    const auto target = [&](int64_t t) {
        return BytesView{static_cast<uint8_t*>(out.data) + t * out.strides[0], out.strides[1],
                         out.strides[2], out.strides[3]};
    };
    if (pixels.device != kHost) {
        const DeviceGuard guard(pixels.device);
        for (int64_t t = 0; t < pixels.shape[1]; ++t) {
            launch([&] { pixels_to_frames_cuda(view(t), target(t), where.stream); });
        }
        return;
    }
    const int64_t rows = pixels.shape[2];
    parallel_for(pixels.shape[1] * rows, rows_for(kGrainPixels, pixels.shape[3]), where.threads,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t t = begin / rows; t * rows < end; ++t) {
                         pixels_to_frames_host(view(t), target(t),
                                               narrow(std::max<int64_t>(begin - t * rows, 0)),
                                               narrow(std::min(end - t * rows, rows)));
                     }
                 });
}

void optical_flow(const Array& prev, const Array& next, const std::string& quality,
                  const Array& out, Where where) {
    check_threads(where.threads);
    check_frame("prev", prev);
    check_frame("next", next);
    check_host("prev", prev);
    check_host("next", next);
    check_same_shape("next", next, "prev", prev);
    if (quality != "accurate" && quality != "fast") {
        throw ArgumentError("quality", "\"" + quality + "\"", "\"accurate\" or \"fast\"");
    }
    check_dtype("out", out, {Dtype::f32});
    check_shape("out", out, {prev.shape[0], prev.shape[1], 2});
    check_writable("out", out);
    check_host("out", out);
    const FlowSettings& settings = quality == "fast" ? kFastFlow : kAccurateFlow;
    const FlowField field = flow_between(luma_pyramid(prev, settings), luma_pyramid(next, settings),
                                         settings, where.threads);
    parallel_for(
        prev.shape[0], rows_for(kGrainPixels / 4, prev.shape[1]), where.threads,
        [&](int64_t begin, int64_t end) { expand_flow(field, out, narrow(begin), narrow(end)); });
}

void optical_flow_magnitude(std::span<const Array> frames, const Array* last, const Array& out,
                            Where where) {
    check_threads(where.threads);
    if (check_frames(frames, true) != kHost) check_host("frames", frames[0]);
    if (last != nullptr) {
        check_frame("last", *last);
        check_host("last", *last);
        check_same_shape("last", *last, "frames[0]", frames[0]);
    }
    const auto count = static_cast<int64_t>(frames.size());
    check_dtype("out", out, {Dtype::f32});
    check_shape("out", out, {count, 5});
    check_contiguous("out", out);
    check_writable("out", out);
    check_host("out", out);
    std::vector<Pyramid> pyramids(count + 1);
    const int64_t begin_at = last != nullptr ? 0 : 1;
    const bool heavy = frames[0].shape[0] * frames[0].shape[1] > 16384;
    const int64_t grain = heavy ? 1 : count + 1;
    parallel_for(count + 1 - begin_at, grain, where.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin + begin_at; i < end + begin_at; ++i) {
            pyramids[i] = luma_pyramid(i == 0 ? *last : frames[i - 1], kFastFlow);
        }
    });
    if (last == nullptr) std::fill_n(floats(out), 5, 0.0f);
    const int64_t pairs = count - begin_at;
    const int inner = std::max<int>(1, resolve_threads(where.threads) / std::max<int>(1, pairs));
    parallel_for(pairs, grain, where.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin + begin_at; i < end + begin_at; ++i) {
            const FlowField field = flow_between(pyramids[i], pyramids[i + 1], kFastFlow, inner);
            flow_statistics(field, floats(out) + 5 * i);
        }
    });
}

void frame_difference(std::span<const Array> frames, const Array* last, const Array& out,
                      Where where) {
    check_threads(where.threads);
    if (check_frames(frames, true) != kHost) check_host("frames", frames[0]);
    if (last != nullptr) {
        check_frame("last", *last);
        check_host("last", *last);
        check_same_shape("last", *last, "frames[0]", frames[0]);
    }
    const auto count = static_cast<int64_t>(frames.size());
    check_dtype("out", out, {Dtype::f32});
    check_shape("out", out, {count});
    check_contiguous("out", out);
    check_writable("out", out);
    check_host("out", out);
    const int64_t samples = frames[0].size();
    parallel_for(count, 1 + 2 * kGrainPixels / samples, where.threads,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                         const Array* before = i == 0 ? last : &frames[i - 1];
                         double mean = 0.0;
                         if (before != nullptr) {
                             mean = static_cast<double>(squared_difference(*before, frames[i])) /
                                    static_cast<double>(samples);
                         }
                         floats(out)[i] = static_cast<float>(std::sqrt(mean) / 127.5);
                     }
                 });
}

void noise_control(const Array& scores, const Array& previous, bool has_previous,
                   const NoiseRange& range, const Array& sigmas, const Array& out) {
    check_host("scores", scores);
    check_record("scores", scores, kAny, scores);
    check_record("previous", previous, 4, scores);
    check_record("sigmas", sigmas, kAny, scores);
    check_record("out", out, 4, scores);
    check_writable("out", out);
    check_range("reference", range.reference, 1e-6, 1e6);
    check_range("s_max", range.s_max, 0, 1);
    check_range("s_min", range.s_min, 0, range.s_max);
    check_range("smoothing", range.smoothing, 0, 1);
    check_range("timestep_offset", range.timestep_offset, -1000, 1000);
    if (has_previous) check_range("previous[1]", floats(previous)[1], 0, 1);
    noise_control_one(floats(scores), scores.shape[0], floats(previous), has_previous, range,
                      floats(sigmas), sigmas.shape[0], floats(out));
}

void mix_noise(const Array& latent, const Array& control, const NoiseKey& key, const Array& out,
               Where where) {
    check_threads(where.threads);
    check_latent("latent", latent, "out", out);
    check_record("control", control, 4, latent);
    check_writable("out", out);
    if (latent.device == kHost) {
        return mix_noise_host(latent, floats(control)[1], key, out, where.threads);
    }
    const DeviceGuard guard(latent.device);
    launch([&] {
        mix_noise_cuda(latent.data, floats(control), key, out.data, latent.size(), latent.dtype,
                       where.stream);
    });
}

void renoise(const Array& noisy, const Array& velocity, const Array& sigma, const Array& sigma_next,
             const NoiseKey& key, const Array& out, Where where) {
    check_threads(where.threads);
    check_latent("noisy", noisy, "velocity", velocity);
    check_latent("noisy", noisy, "out", out);
    check_record("sigma", sigma, 1, noisy);
    check_record("sigma_next", sigma_next, 1, noisy);
    check_writable("out", out);
    if (noisy.device == kHost) {
        return renoise_host(noisy, velocity, *floats(sigma), *floats(sigma_next), key, out,
                            where.threads);
    }
    const DeviceGuard guard(noisy.device);
    launch([&] {
        renoise_cuda(noisy.data, velocity.data, floats(sigma), floats(sigma_next), key, out.data,
                     noisy.size(), noisy.dtype, where.stream);
    });
}

void philox_normal(const NoiseKey& key, const Array& out, Where where) {
    check_threads(where.threads);
    check_latent("out", out, "out", out);
    check_host("out", out);
    check_writable("out", out);
    philox_normal_host(key, out, where.threads);
}

}  // namespace sdrt
