#include "kernels/launch.h"
#include "kernels/renoise.h"

namespace sdrt {
namespace {

template <typename T>
__global__ void renoise_kernel(const T* noisy, const T* velocity, const float* sigma,
                               const float* sigma_next, NoiseKey key, T* out, int64_t count) {
    const float now = *sigma, next = *sigma_next;
    const int64_t stride = int64_t{gridDim.x} * blockDim.x;
    for (int64_t g = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; 4 * g < count; g += stride) {
        float x[4], v[4];
        load_four(noisy + 4 * g, count - 4 * g, x);
        load_four(velocity + 4 * g, count - 4 * g, v);
        Normals eps{};
        if (next != 0.0f) eps = philox_normal(key, static_cast<uint32_t>(g));
        const float made[4] = {
            renoise_one(x[0], v[0], now, next, eps.z0), renoise_one(x[1], v[1], now, next, eps.z1),
            renoise_one(x[2], v[2], now, next, eps.z2), renoise_one(x[3], v[3], now, next, eps.z3)};
        store_four(made, count - 4 * g, out + 4 * g);
    }
}

}  // namespace

void renoise_cuda(const void* noisy, const void* velocity, const float* sigma,
                  const float* sigma_next, const NoiseKey& key, void* out, int64_t count,
                  Dtype dtype, CudaStream stream) {
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        renoise_kernel<<<blocks_for((count + 3) / 4), kThreads, 0, stream>>>(
            static_cast<const T*>(noisy), static_cast<const T*>(velocity), sigma, sigma_next, key,
            static_cast<T*>(out), count);
    });
}

}  // namespace sdrt
