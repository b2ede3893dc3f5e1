// Packed RGB bytes to three planes and back, 16 pixels at a time by byte shuffles. Host only;
// inlined into loops that are compiled per instruction set.
#pragma once

#include <cstring>

#include "kernels/host_device.h"

namespace sdrt {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

SDRT_HD Bytes16 load_bytes(const uint8_t* p) {
    Bytes16 v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

SDRT_HD void split_rgb(const uint8_t* __restrict rgb, int n, uint8_t* __restrict r,
                       uint8_t* __restrict g, uint8_t* __restrict b) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const Bytes16 x = load_bytes(rgb + 3 * i), y = load_bytes(rgb + 3 * i + 16);
        const Bytes16 z = load_bytes(rgb + 3 * i + 32);
        // Of each colour, first what lies in x and y, then what lies in z.
        const Bytes16 r2 =
            __builtin_shufflevector(x, y, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
        const Bytes16 g2 =
            __builtin_shufflevector(x, y, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0);
        const Bytes16 b2 =
            __builtin_shufflevector(x, y, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0);
        const Bytes16 r3 =
            __builtin_shufflevector(r2, z, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
        const Bytes16 g3 =
            __builtin_shufflevector(g2, z, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
        const Bytes16 b3 =
            __builtin_shufflevector(b2, z, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
        std::memcpy(r + i, &r3, 16);
        std::memcpy(g + i, &g3, 16);
        std::memcpy(b + i, &b3, 16);
    }
    for (; i < n; ++i) {
        r[i] = rgb[3 * i];
        g[i] = rgb[3 * i + 1];
        b[i] = rgb[3 * i + 2];
    }
}

SDRT_HD void join_rgb(const uint8_t* __restrict r, const uint8_t* __restrict g,
                      const uint8_t* __restrict b, int n, uint8_t* __restrict rgb) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const Bytes16 x = load_bytes(r + i), y = load_bytes(g + i), z = load_bytes(b + i);
        // Red and green in their places, blue's left open; then blue.
        const Bytes16 p =
            __builtin_shufflevector(x, y, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
        const Bytes16 q =
            __builtin_shufflevector(x, y, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
        const Bytes16 s =
            __builtin_shufflevector(x, y, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
        const Bytes16 first =
            __builtin_shufflevector(p, z, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
        const Bytes16 second =
            __builtin_shufflevector(q, z, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
        const Bytes16 third =
            __builtin_shufflevector(s, z, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
        std::memcpy(rgb + 3 * i, &first, 16);
        std::memcpy(rgb + 3 * i + 16, &second, 16);
        std::memcpy(rgb + 3 * i + 32, &third, 16);
    }
    for (; i < n; ++i) {
        rgb[3 * i] = r[i];
        rgb[3 * i + 1] = g[i];
        rgb[3 * i + 2] = b[i];
    }
}

}  // namespace sdrt
