#include "kernels/launch.h"
#include "kernels/pixels_to_frames.h"
#include "kernels/staging.h"

namespace sdrt {
namespace {

template <typename T>
__global__ void pixels_to_frames_kernel(PlanarView pixels, BytesView out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= pixels.width) return;
    for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < pixels.height;
         y += gridDim.y * blockDim.y) {
        const T* p = static_cast<const T*>(pixels.data) + y * pixels.row + x * pixels.column;
        uint8_t* target = out.data + y * out.row + x * out.column;
        for (int c = 0; c < 3; ++c) {
            target[c * out.channel] = byte_of(to_float(p[c * pixels.channel]));
        }
    }
}

// Packed frames: read and written 16 bytes at a time, by way of shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) packed_frames_kernel(PlanarView pixels, BytesView out) {
    constexpr int kEach = kPixelsEach<T>;
    __shared__ Staged<T> bytes;
    const int first = blockIdx.x * kThreads * kEach;
    const int n = min(kThreads * kEach, pixels.width - first);
    const int mine = threadIdx.x * kEach;
    for (int y = blockIdx.y; y < pixels.height; y += gridDim.y) {
        if (mine < n) {
            Vector<T> planes[3];
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const T* p = static_cast<const T*>(pixels.data) + c * pixels.channel;
                planes[c] = load_pixels(p + y * pixels.row + first + mine, n - mine);
            }
            uint32_t words[3 * kEach / 4] = {};
#pragma unroll
            for (int at = 0; at < 3 * kEach; ++at) {
                const uint32_t level = byte_of(to_float(planes[at % 3].v[at / 3]));
                words[at / 4] |= level << (8 * (at % 4));
            }
            for (int i = 0; i < 3 * kEach / 4; ++i) {
                reinterpret_cast<uint32_t*>(bytes.v + 3 * mine)[i] = words[i];
            }
        }
        __syncthreads();
        copy_bytes(bytes.v, 3 * n, out.data + y * out.row + int64_t{3} * first);
        __syncthreads();
    }
}

template <typename T>
bool launch_packed(PlanarView pixels, BytesView out, CudaStream stream) {
    if (pixels.column != 1 || out.column != 3 || out.channel != 1) return false;
    const int64_t count = int64_t{pixels.width} * pixels.height;
    if (out.row == 3 * int64_t{pixels.width} && pixels.row == pixels.width &&
        count < INT32_MAX / 2) {
        pixels.width = static_cast<int32_t>(count);  // no gaps: one long row
        pixels.height = 1;
    }
    constexpr int kEach = kPixelsEach<T>;
    const bool many = pixels.height > 1;
    if (!whole(pixels.data) || !whole(out.data) || pixels.channel % kEach != 0 ||
        (many && (out.row % 16 != 0 || pixels.row % kEach != 0))) {
        return false;
    }
    packed_frames_kernel<T>
        <<<staged_blocks<T>(pixels.width, pixels.height), kThreads, 0, stream>>>(pixels, out);
    return true;
}

}  // namespace

void pixels_to_frames_cuda(const PlanarView& pixels, const BytesView& out, CudaStream stream) {
    with_type(pixels.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (launch_packed<T>(pixels, out, stream)) return;
        pixels_to_frames_kernel<T>
            <<<picture_blocks(pixels.width, pixels.height), picture_threads(), 0, stream>>>(pixels,
                                                                                            out);
    });
}

}  // namespace sdrt
