#include "checks.h"
#include "device.h"
#include "kernels/mix_noise.h"
#include "kernels/philox_normal.h"
#include "kernels/renoise.h"
#include "ops.h"

namespace sdrt {
namespace {

float* floats(const Array& a) {
    return static_cast<float*>(a.data);
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

void noise_control(const Array& scores, const Array& previous, bool has_previous,
                   const NoiseRange& range, const Array& sigmas, const Array& out, Where where) {
    check_dtype("scores", scores, {Dtype::f32});
    check_shape("scores", scores, {kAny});
    check_record("previous", previous, 4, scores);
    check_record("sigmas", sigmas, kAny, scores);
    check_record("out", out, 4, scores);
    check_writable("out", out);
    check_range("reference", range.reference, 1e-6, 1e6);
    check_range("s_max", range.s_max, 0, 1);
    check_range("s_min", range.s_min, 0, range.s_max);
    check_range("smoothing", range.smoothing, 0, 1);
    check_range("timestep_offset", range.timestep_offset, -1000, 1000);
    const Scores motion{floats(scores), scores.shape[0], scores.strides[0] / 4};
    if (scores.device == kHost) {
        if (has_previous) check_range("previous[1]", floats(previous)[1], 0, 1);
        return noise_control_host(motion, floats(previous), has_previous, range, floats(sigmas),
                                  sigmas.shape[0], floats(out));
    }
    const DeviceGuard guard(scores.device);
    launch([&] {
        noise_control_cuda(motion, floats(previous), has_previous, range, floats(sigmas),
                           sigmas.shape[0], floats(out), where.stream);
    });
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
