// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the
// normal numbers made of it by Box and Muller. Logarithm, sine and cosine are polynomials of our
// own, because the libraries of host and device round differently and these must not.
#pragma once

#include <cmath>

#include "kernels/host_device.h"

namespace sdrt {

// Who draws: together with the index of the element this decides a number completely.
struct NoiseKey {
    uint64_t seed;
    uint32_t session;
    uint32_t chunk;
    uint32_t step;
};

struct Words {
    uint32_t w0, w1, w2, w3;
};

struct Normals {
    float z0, z1, z2, z3;
};

SDRT_HD Words philox4x32(Words c, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * c.w0;
        const uint64_t b = uint64_t{0xCD9E8D57u} * c.w2;
        c = {static_cast<uint32_t>(b >> 32) ^ c.w1 ^ k0, static_cast<uint32_t>(b),
             static_cast<uint32_t>(a >> 32) ^ c.w3 ^ k1, static_cast<uint32_t>(a)};
        k0 += 0x9E3779B9u;  // golden ratio
        k1 += 0xBB67AE85u;  // sqrt(3) - 1
    }
    return c;
}

SDRT_HD Words philox4x32(const NoiseKey& key, uint32_t group) {
    return philox4x32({group, key.chunk, key.step, key.session}, static_cast<uint32_t>(key.seed),
                      static_cast<uint32_t>(key.seed >> 32));
}

// ln of n * 2^-24 for n in 1..2^24, relative error under 1e-7: exponent and mantissa in
// [sqrt(1/2), sqrt(2)), so that the result is exact at 1 and accurate beside it.
SDRT_HD float log_of_24bit(uint32_t n) {
    const uint32_t bits = bits_of(static_cast<float>(n) * 0x1p-24f);
    const uint32_t shifted = bits - 0x3f3504f3u;  // bits of sqrt(1/2)
    const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
    const float f = float_of((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float p = 0.069716114715f;
    p = p * f - 0.11479733847f;
    p = p * f + 0.11685419923f;
    p = p * f - 0.12425687331f;
    p = p * f + 0.14249057646f;
    p = p * f - 0.1666780232f;
    p = p * f + 0.20000715749f;
    p = p * f - 0.24999996958f;
    p = p * f + 0.3333333118f;
    const float e = static_cast<float>(exponent);
    const float f2 = f * f;
    // ln 2 in two parts: the first has few bits, so its product with e is exact.
    return (f - (0.5f * f2 - (f2 * f * p + e * 1.42860677e-6f))) + e * 0.693145752f;
}

// cos and sin of 2 pi n / 2^24. The quarter turn is split off exactly; the rest is within 1/8 turn.
SDRT_HD void cos_sin_of_24bit(uint32_t n, float& cos_out, float& sin_out) {
    const uint32_t quarter = (n + (1u << 21)) >> 22;
    const float t = static_cast<float>(static_cast<int32_t>(n - (quarter << 22))) * 0x1p-24f;
    const float z = t * t;
    const float s =
        t * ((((41.47283324f * z - 76.69786635f) * z + 81.605204711f) * z - 41.341702153f) * z +
             6.2831853072f);
    const float c =
        (((59.220168958f * z - 85.442844673f) * z + 64.939316136f) * z - 19.73920865f) * z + 1.0f;
    const float x = quarter & 1u ? -s : c;
    const float y = quarter & 1u ? c : s;
    cos_out = quarter & 2u ? -x : x;
    sin_out = quarter & 2u ? -y : y;
}

SDRT_HD void box_muller(uint32_t a, uint32_t b, float& first, float& second) {
    const float radius = sqrtf(-2.0f * log_of_24bit((a >> 8) + 1u));
    float c, s;
    cos_sin_of_24bit(b >> 8, c, s);
    first = radius * c;
    second = radius * s;
}

// The normal numbers of the elements 4 * group .. 4 * group + 3.
SDRT_HD Normals philox_normal(const NoiseKey& key, uint32_t group) {
    const Words w = philox4x32(key, group);
    Normals z;
    box_muller(w.w0, w.w1, z.z0, z.z1);
    box_muller(w.w2, w.w3, z.z2, z.z3);
    return z;
}

// Host loop: out[i] is the number of element `first + i`; first is a multiple of 4, count any.
void philox_normal_block(const NoiseKey& key, int64_t first, int64_t count, float* out);

}  // namespace sdrt
