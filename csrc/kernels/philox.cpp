#include "kernels/philox.h"

#include <algorithm>

namespace sdrt {
namespace {

constexpr int kGroups = 64;

// Four arrays, so that neighbouring counters are neighbouring lanes.
SDRT_CLONES void draw_groups(const NoiseKey& key, uint32_t first, float* __restrict out) {
    float z0[kGroups], z1[kGroups], z2[kGroups], z3[kGroups];
    for (int i = 0; i < kGroups; ++i) {
        const Normals z = philox_normal(key, first + static_cast<uint32_t>(i));
        z0[i] = z.z0;
        z1[i] = z.z1;
        z2[i] = z.z2;
        z3[i] = z.z3;
    }
    for (int i = 0; i < kGroups; ++i) {
        out[4 * i] = z0[i];
        out[4 * i + 1] = z1[i];
        out[4 * i + 2] = z2[i];
        out[4 * i + 3] = z3[i];
    }
}

}  // namespace

void philox_normal_block(const NoiseKey& key, int64_t first, int64_t count, float* out) {
    for (int64_t done = 0; done < count; done += 4 * kGroups) {
        const uint32_t group = static_cast<uint32_t>((first + done) / 4);
        if (count - done >= 4 * kGroups) {
            draw_groups(key, group, out + done);
        } else {
            float last[4 * kGroups];
            draw_groups(key, group, last);
            std::copy_n(last, count - done, out + done);
        }
    }
}

}  // namespace sdrt
