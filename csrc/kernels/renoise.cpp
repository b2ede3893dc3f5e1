#include "kernels/renoise.h"

#include "kernels/block.h"
#include "kernels/threads.h"

namespace sdrt {
namespace {

SDRT_CLONES void renoise_block(float* __restrict x, const float* __restrict v,
                               const float* __restrict eps, float sigma, float sigma_next,
                               int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = renoise_one(x[i], v[i], sigma, sigma_next, eps[i]);
}

}  // namespace

void renoise_host(const Array& noisy, const Array& velocity, float sigma, float sigma_next,
                  const NoiseKey& key, const Array& out, int threads) {
    const int64_t count = noisy.size();
    const int64_t blocks = (count + kBlock - 1) / kBlock;
    parallel_for(blocks, 64, threads, [&](int64_t begin, int64_t end) {
        float x[kBlock], v[kBlock], eps[kBlock] = {};
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = b * kBlock;
            const int64_t n = std::min(kBlock, count - first);
            load_block(noisy, first, n, x);
            load_block(velocity, first, n, v);
            if (sigma_next != 0.0f) philox_normal_block(key, first, n, eps);
            renoise_block(x, v, eps, sigma, sigma_next, n);
            store_block(x, first, n, out);
        }
    });
}

}  // namespace sdrt
