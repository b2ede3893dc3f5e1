#include "kernels/mix_noise.h"

#include "kernels/block.h"
#include "kernels/threads.h"

namespace sdrt {
namespace {

SDRT_CLONES void mix_block(float* __restrict z, const float* __restrict eps, float s, int64_t n) {
    for (int64_t i = 0; i < n; ++i) z[i] = mix_one(z[i], eps[i], s);
}

}  // namespace

void mix_noise_host(const Array& latent, float s, const NoiseKey& key, const Array& out,
                    int threads) {
    const int64_t count = latent.size();
    const int64_t blocks = (count + kBlock - 1) / kBlock;
    parallel_for(blocks, 64, threads, [&](int64_t begin, int64_t end) {
        float z[kBlock], eps[kBlock];
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = b * kBlock;
            const int64_t n = std::min(kBlock, count - first);
            load_block(latent, first, n, z);
            philox_normal_block(key, first, n, eps);
            mix_block(z, eps, s, n);
            store_block(z, first, n, out);
        }
    });
}

}  // namespace sdrt
