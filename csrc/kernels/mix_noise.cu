#include "kernels/launch.h"
#include "kernels/mix_noise.h"

namespace sdrt {
namespace {

// One Philox draw and four elements per turn; the noise never leaves the registers.
template <typename T>
__global__ void mix_noise_kernel(const T* latent, const float* control, NoiseKey key, T* out,
                                 int64_t count) {
    const float s = control[1];
    const int64_t stride = int64_t{gridDim.x} * blockDim.x;
    for (int64_t g = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; 4 * g < count; g += stride) {
        float z[4];
        load_four(latent + 4 * g, count - 4 * g, z);
        const Normals eps = philox_normal(key, static_cast<uint32_t>(g));
        const float mixed[4] = {mix_one(z[0], eps.z0, s), mix_one(z[1], eps.z1, s),
                                mix_one(z[2], eps.z2, s), mix_one(z[3], eps.z3, s)};
        store_four(mixed, count - 4 * g, out + 4 * g);
    }
}

}  // namespace

void mix_noise_cuda(const void* latent, const float* control, const NoiseKey& key, void* out,
                    int64_t count, Dtype dtype, CudaStream stream) {
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        mix_noise_kernel<<<blocks_for((count + 3) / 4), kThreads, 0, stream>>>(
            static_cast<const T*>(latent), control, key, static_cast<T*>(out), count);
    });
}

}  // namespace sdrt
