// Entry of the noise into a latent: s * eps + (1 - s) * z, step 0 of the generator.
#pragma once

#include "array.h"
#include "kernels/philox.h"

namespace sdrt {

SDRT_HD float mix_one(float z, float eps, float s) {
    return s * eps + (1.0f - s) * z;
}

void mix_noise_host(const Array& latent, float s, const NoiseKey& key, const Array& out,
                    int threads);

// `control` is on the device: (score, noise scale, timestep, sigma). In and out may be one buffer.
void mix_noise_cuda(const void* latent, const float* control, const NoiseKey& key, void* out,
                    int64_t count, Dtype dtype, CudaStream stream);

}  // namespace sdrt
