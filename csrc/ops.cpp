#include "ops.h"

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "device.h"
#include "kernels/frame_difference.h"
#include "kernels/frames_to_pixels.h"
#include "kernels/pixels_to_frames.h"
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

}  // namespace

void frames_to_pixels(std::span<const Array> frames, const std::string& matrix, const Array& out,
                      Where where) {
    if (frames.empty()) throw ArgumentError("frames", "none", "at least one");
    const int device = frames[0].device;
    for (size_t i = 0; i < frames.size(); ++i) {
        const std::string name = "frames[" + std::to_string(i) + "]";
        frames[i].ndim == 2 ? check_nv12(name, frames[i]) : check_frame(name, frames[i]);
        check_device(name.c_str(), frames[i], device);
    }
    if (matrix != "bt601" && matrix != "bt709") {
        throw ArgumentError("matrix", "\"" + matrix + "\"", "\"bt601\" or \"bt709\"");
    }
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
    const auto nv12 = [&](int64_t t) {
        const Array& f = frames[t];
        return Nv12View{static_cast<const uint8_t*>(f.data),
                        narrow(f.shape[0] / 3 * 2),
                        narrow(f.shape[1]),
                        f.strides[0],
                        f.strides[1],
                        matrix == "bt601" ? kBt601 : kBt709};
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
            launch([&] {
                frames[t].ndim == 2 ? frames_to_pixels_cuda(nv12(t), target(t), where.stream)
                                    : frames_to_pixels_cuda(view(t), target(t), where.stream);
            });
        }
        return;
    }
    const int64_t rows = out.shape[2];
    const int64_t work = std::max(out.shape[3], frames[0].shape[0] * frames[0].shape[1] / rows);
    parallel_for(
        count * rows, rows_for(kGrainPixels, work), where.threads, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin / rows; t * rows < end; ++t) {
                const int32_t first = narrow(std::max<int64_t>(begin - t * rows, 0));
                const int32_t stop = narrow(std::min(end - t * rows, rows));
                frames[t].ndim == 2 ? frames_to_pixels_host(nv12(t), target(t), first, stop)
                                    : frames_to_pixels_host(view(t), target(t), first, stop);
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

void frame_difference(std::span<const Array> frames, const Array* last, const Array& out,
                      const Array* sums, Where where) {
    check_threads(where.threads);
    const int device = check_frames(frames, true);
    if (last != nullptr) {
        check_frame("last", *last);
        check_device("last", *last, device);
        check_same_shape("last", *last, "frames[0]", frames[0]);
    }
    const auto count = static_cast<int64_t>(frames.size());
    check_dtype("out", out, {Dtype::f32});
    check_shape("out", out, {count});
    check_contiguous("out", out);
    check_writable("out", out);
    check_device("out", out, device);
    const int64_t samples = frames[0].size();
    const auto before = [&](int64_t i) { return i == 0 ? last : &frames[i - 1]; };
    if (device != kHost) {
        if (sums == nullptr) throw ArgumentError("sums", "none", "int64 [T] beside the frames");
        check_dtype("sums", *sums, {Dtype::i64});
        check_shape("sums", *sums, {count});
        check_contiguous("sums", *sums);
        check_writable("sums", *sums);
        check_device("sums", *sums, device);
        auto* squares = static_cast<uint64_t*>(sums->data);
        const DeviceGuard guard(device);
        launch([&] { clear_sums_cuda(squares, count, where.stream); });
        for (int64_t i = last != nullptr ? 0 : 1; i < count; ++i) {
            launch(
                [&] { squared_difference_cuda(*before(i), frames[i], squares + i, where.stream); });
        }
        launch([&] { rms_cuda(squares, count, samples, floats(out), where.stream); });
        return;
    }
    parallel_for(count, 1 + 2 * kGrainPixels / samples, where.threads,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                         const uint64_t squares =
                             before(i) != nullptr ? squared_difference(*before(i), frames[i]) : 0;
                         floats(out)[i] = rms_of(squares, samples);
                     }
                 });
}

}  // namespace sdrt
