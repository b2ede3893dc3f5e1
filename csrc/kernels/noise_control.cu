#include "kernels/launch.h"
#include "kernels/noise_control.h"

namespace sdrt {
namespace {

// One block: the table is searched by all its threads, the rest is a few operations.
__global__ void __launch_bounds__(kThreads)
    noise_control_kernel(Scores scores, const float* previous, bool has_previous, NoiseRange range,
                         const float* sigmas, int64_t table, float* out) {
    __shared__ Nearest found[kThreads];
    const NoiseScale scale =
        noise_scale_of(scores, has_previous ? previous[1] : 0.0f, has_previous, range);
    Nearest mine;
    for (int64_t i = threadIdx.x; i < table; i += kThreads) {
        mine = nearer(mine, nearest_of(sigmas[i], i, scale.timestep));
    }
    found[threadIdx.x] = mine;
    __syncthreads();
    for (int step = kThreads / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) {
            found[threadIdx.x] = nearer(found[threadIdx.x], found[threadIdx.x + step]);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) write_control(scale, sigmas[found[0].index], out);
}

}  // namespace

void noise_control_cuda(const Scores& scores, const float* previous, bool has_previous,
                        const NoiseRange& range, const float* sigmas, int64_t table, float* out,
                        CudaStream stream) {
    noise_control_kernel<<<1, kThreads, 0, stream>>>(scores, previous, has_previous, range, sigmas,
                                                     table, out);
}

}  // namespace sdrt
