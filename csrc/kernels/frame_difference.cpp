#include "kernels/frame_difference.h"

#include <algorithm>

#include "kernels/host_device.h"

namespace sdrt {
namespace {

constexpr int64_t kRun = 65536;  // squares of bytes that a uint32 can add up: 66,051

SDRT_CLONES uint32_t squares_of_run(const uint8_t* a, const uint8_t* b, int64_t n) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += square_of(a[i], b[i]);
    }
    return sum;
}

bool rows_packed(const Array& a) {
    return a.strides[2] == 1 && a.strides[1] == 3;
}

}  // namespace

uint64_t squared_difference(const Array& a, const Array& b) {
    const bool packed = rows_packed(a) && rows_packed(b);
    uint64_t sum = 0;
    for (int64_t y = 0; y < a.shape[0]; ++y) {
        const auto* p = static_cast<const uint8_t*>(a.data) + y * a.strides[0];
        const auto* q = static_cast<const uint8_t*>(b.data) + y * b.strides[0];
        if (packed) {
            const int64_t n = 3 * a.shape[1];
            for (int64_t i = 0; i < n; i += kRun) {
                sum += squares_of_run(p + i, q + i, std::min(kRun, n - i));
            }
            continue;
        }
        for (int64_t x = 0; x < a.shape[1]; ++x) {
            for (int64_t c = 0; c < 3; ++c) {
                sum += square_of(p[x * a.strides[1] + c * a.strides[2]],
                                 q[x * b.strides[1] + c * b.strides[2]]);
            }
        }
    }
    return sum;
}

}  // namespace sdrt
