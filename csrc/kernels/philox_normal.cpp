#include "kernels/philox_normal.h"

#include "kernels/block.h"
#include "kernels/threads.h"

namespace sdrt {

void philox_normal_host(const NoiseKey& key, const Array& out, int threads) {
    const int64_t count = out.size();
    const int64_t blocks = (count + kBlock - 1) / kBlock;
    parallel_for(blocks, 64, threads, [&](int64_t begin, int64_t end) {
        float eps[kBlock];
        for (int64_t b = begin; b < end; ++b) {
            const int64_t n = std::min(kBlock, count - b * kBlock);
            philox_normal_block(key, b * kBlock, n, eps);
            store_block(eps, b * kBlock, n, out);
        }
    });
}

}  // namespace sdrt
