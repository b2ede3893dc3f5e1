// The operators on array views: checks every argument, then runs on the host or on a device, where
// the arrays are. Errors name the argument, what was got and what was expected.
#pragma once

#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "array.h"
#include "kernels/noise_control.h"
#include "kernels/philox.h"

namespace sdrt {

// The caller's mistake; becomes ValueError.
struct ArgumentError : std::invalid_argument {
    ArgumentError(const std::string& name, const std::string& got, const std::string& expected)
        : std::invalid_argument(name + ": got " + got + ", expected " + expected) {}
};

// threads: on the host, 0 is as many as cores. stream: on a device, 0 is the default stream.
struct Where {
    int threads = 0;
    CudaStream stream = nullptr;
};

struct RefreshSinks {
    int64_t window, sinks, tokens_per_frame;
    double theta;
    std::optional<double> threshold;
    std::string positions;
};

// A frame of two dimensions is NV12; `matrix` is for those.
void frames_to_pixels(std::span<const Array> frames, const std::string& matrix, const Array& out,
                      Where where);
void pixels_to_frames(const Array& pixels, const Array& out, Where where);
// quality: "accurate" or "fast". scratch: on a device uint8 of flow_scratch bytes; not read on the
// host. The magnitude is that of the fast flow.
int64_t flow_scratch(int64_t height, int64_t width, int64_t pictures, const std::string& quality);
void optical_flow(const Array& prev, const Array& next, const std::string& quality,
                  const Array& out, const Array* scratch, Where where);
void optical_flow_magnitude(std::span<const Array> frames, const Array* last, const Array& out,
                            const Array* scratch, Where where);
// sums: on a device int64 [T] to add up in; not read on the host.
void frame_difference(std::span<const Array> frames, const Array* last, const Array& out,
                      const Array* sums, Where where);
void noise_control(const Array& scores, const Array& previous, bool has_previous,
                   const NoiseRange& range, const Array& sigmas, const Array& out, Where where);
void mix_noise(const Array& latent, const Array& control, const NoiseKey& key, const Array& out,
               Where where);
void renoise(const Array& noisy, const Array& velocity, const Array& sigma, const Array& sigma_next,
             const NoiseKey& key, const Array& out, Where where);
void philox_normal(const NoiseKey& key, const Array& out, Where where);
void refresh_sinks(const Array& k_ring, const Array& v_ring, const Array& sink_time,
                   const Array& sink_index, const Array& last, const Array& query,
                   const RefreshSinks& rules, Where where);

// Kernels of matrix.h that this processor runs, the best one first.
std::vector<std::string> matrix_kernel_names();
// Steps of rows.h, all of whose inputs are given as constants, to the results of these numbers.
void rows(const std::string& steps, const std::vector<Array>& inputs,
          const std::vector<int>& results, const std::vector<Array>& outputs,
          const std::string& kernel, Where where);

// Compute capabilities that the extension was compiled for; empty without CUDA.
std::string cuda_archs();

}  // namespace sdrt
