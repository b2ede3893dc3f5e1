#include "device.h"

#include <string>

#include "ops.h"

#if defined(SDRT_CUDA_ARCHS)

#include <cuda_runtime_api.h>

namespace sdrt {
namespace {

void check(cudaError_t code, const char* what) {
    if (code != cudaSuccess) {
        throw DeviceError(std::string("CUDA: ") + what + ": " + cudaGetErrorString(code));
    }
}

}  // namespace

std::string cuda_archs() {
    return SDRT_CUDA_ARCHS;
}

int current_device() {
    int device = 0;
    check(cudaGetDevice(&device), "no device");
    return device;
}

void set_device(int device) {
    check(cudaSetDevice(device), "the device cannot be used");
}

void restore_device(int device) noexcept {
    cudaSetDevice(device);
}

void raise_launch_error() {
    check(cudaGetLastError(), "launch failed");
}

int device_of(const void* address) {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, address), "the address is not known");
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
        throw DeviceError("CUDA: an array says that it is on a device, but its address is not");
    }
    return attributes.device;
}

}  // namespace sdrt

#else

#include "kernels/frame_difference.h"
#include "kernels/frames_to_pixels.h"
#include "kernels/mix_noise.h"
#include "kernels/noise_control.h"
#include "kernels/optical_flow.h"
#include "kernels/pixels_to_frames.h"
#include "kernels/refresh_sinks.h"
#include "kernels/renoise.h"

namespace sdrt {
namespace {

[[noreturn]] void absent() {
    throw DeviceError(
        "the array is on a CUDA device, but rt._C was built without CUDA: install nvcc and build "
        "it "
        "again");
}

}  // namespace

std::string cuda_archs() {
    return "";
}
int current_device() {
    absent();
}
void set_device(int) {
    absent();
}
void restore_device(int) noexcept {}
void raise_launch_error() {
    absent();
}
int device_of(const void*) {
    absent();
}

void frames_to_pixels_cuda(const FrameView&, const PixelView&, CudaStream) {
    absent();
}
void frames_to_pixels_cuda(const Nv12View&, const PixelView&, CudaStream) {
    absent();
}
void pixels_to_frames_cuda(const PlanarView&, const BytesView&, CudaStream) {
    absent();
}
void mix_noise_cuda(const void*, const float*, const NoiseKey&, void*, int64_t, Dtype, CudaStream) {
    absent();
}
void renoise_cuda(const void*, const void*, const float*, const float*, const NoiseKey&, void*,
                  int64_t, Dtype, CudaStream) {
    absent();
}
void noise_control_cuda(const Scores&, const float*, bool, const NoiseRange&, const float*, int64_t,
                        float*, CudaStream) {
    absent();
}
void refresh_sinks_cuda(const SinkArrays&, const SinkRules&, CudaStream) {
    absent();
}
void optical_flow_cuda(const FlowPlan&, const Array&, const Array&, const Array&, void*,
                       CudaStream) {
    absent();
}
void optical_flow_magnitude_cuda(const FlowPlan&, std::span<const Array>, int64_t, float*, void*,
                                 CudaStream) {
    absent();
}
void squared_difference_cuda(const Array&, const Array&, uint64_t*, CudaStream) {
    absent();
}
void clear_sums_cuda(uint64_t*, int64_t, CudaStream) {
    absent();
}
void rms_cuda(const uint64_t*, int64_t, int64_t, float*, CudaStream) {
    absent();
}

}  // namespace sdrt

#endif
