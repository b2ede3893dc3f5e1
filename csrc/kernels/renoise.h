// One step of the sampler: the clean latent that the velocity predicts, noised again for the next
// step.
#pragma once

#include "array.h"
#include "kernels/philox.h"

namespace sdrt {

// eps is not read when sigma_next is 0: the last step gives the clean latent exactly.
SDRT_HD float renoise_one(float noisy, float velocity, float sigma, float sigma_next, float eps) {
    const float clean = noisy - sigma * velocity;
    return sigma_next == 0.0f ? clean : (1.0f - sigma_next) * clean + sigma_next * eps;
}

void renoise_host(const Array& noisy, const Array& velocity, float sigma, float sigma_next,
                  const NoiseKey& key, const Array& out, int threads);

// `sigma` and `sigma_next` are on the device. `out` may be `noisy` or `velocity`.
void renoise_cuda(const void* noisy, const void* velocity, const float* sigma,
                  const float* sigma_next, const NoiseKey& key, void* out, int64_t count,
                  Dtype dtype, CudaStream stream);

}  // namespace sdrt
