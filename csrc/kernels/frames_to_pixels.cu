#include "kernels/frames_to_pixels.h"
#include "kernels/launch.h"
#include "kernels/staging.h"

namespace sdrt {
namespace {

// One thread makes one output pixel. Columns are summed downwards first and then across, in the
// order of the host, so that both round alike.
template <typename T, typename View>
__global__ void frames_to_pixels_kernel(View frame, PixelView out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= out.width) return;
    const Taps across = resize_taps(x, frame.width, out.width);
    for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < out.height;
         y += gridDim.y * blockDim.y) {
        const Taps down = resize_taps(y, frame.height, out.height);
        Rgb level = {0.0f, 0.0f, 0.0f};
        for (int i = 0; i < across.count; ++i) {
            Rgb column = {0.0f, 0.0f, 0.0f};
            for (int j = 0; j < down.count; ++j) {
                const Rgb sample = levels_at(frame, down.first + j, across.first + i);
                const float w = down.weight(j);
                column.r += w * sample.r;
                column.g += w * sample.g;
                column.b += w * sample.b;
            }
            const float w = across.weight(i);
            level.r += w * column.r;
            level.g += w * column.g;
            level.b += w * column.b;
        }
        T* target = static_cast<T*>(out.data) + y * out.row + x * out.column;
        from_float(pixel_of(level.r), target[0]);
        from_float(pixel_of(level.g), target[out.channel]);
        from_float(pixel_of(level.b), target[2 * out.channel]);
    }
}

// Packed frames of equal size: read and written 16 bytes at a time, by way of shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) packed_pixels_kernel(FrameView frame, PixelView out) {
    constexpr int kEach = kPixelsEach<T>;
    __shared__ Staged<T> bytes;
    const int first = blockIdx.x * kThreads * kEach;
    const int n = min(kThreads * kEach, out.width - first);
    const int mine = threadIdx.x * kEach;
    for (int y = blockIdx.y; y < out.height; y += gridDim.y) {
        copy_bytes(frame.data + y * frame.row + int64_t{3} * first, 3 * n, bytes.v);
        __syncthreads();
        if (mine < n) {
            uint32_t words[3 * kEach / 4];
            for (int i = 0; i < 3 * kEach / 4; ++i) {
                words[i] = reinterpret_cast<const uint32_t*>(bytes.v + 3 * mine)[i];
            }
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                Vector<T> made;
#pragma unroll
                for (int i = 0; i < kEach; ++i) {
                    const int at = 3 * i + c;
                    const uint32_t level = words[at / 4] >> (8 * (at % 4)) & 0xffu;
                    from_float(pixel_of(static_cast<float>(level)), made.v[i]);
                }
                T* target =
                    static_cast<T*>(out.data) + c * out.channel + y * out.row + first + mine;
                store_pixels(made, n - mine, target);
            }
        }
        __syncthreads();
    }
}

template <typename T>
bool launch_packed(FrameView frame, PixelView out, CudaStream stream) {
    if (frame.height != out.height || frame.width != out.width || out.column != 1 ||
        frame.column != 3 || frame.channel != 1) {
        return false;
    }
    const int64_t pixels = int64_t{out.width} * out.height;
    if (frame.row == 3 * int64_t{frame.width} && out.row == out.width && pixels < INT32_MAX / 2) {
        frame.width = out.width = static_cast<int32_t>(pixels);  // no gaps: one long row
        frame.height = out.height = 1;
    }
    constexpr int kEach = kPixelsEach<T>;
    const bool many = out.height > 1;
    if (!whole(frame.data) || !whole(out.data) || out.channel % kEach != 0 ||
        (many && (frame.row % 16 != 0 || out.row % kEach != 0))) {
        return false;
    }
    packed_pixels_kernel<T>
        <<<staged_blocks<T>(out.width, out.height), kThreads, 0, stream>>>(frame, out);
    return true;
}

template <typename View>
void launch_any(const View& frame, const PixelView& out, CudaStream stream) {
    with_type(out.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if constexpr (std::is_same_v<View, FrameView>) {
            if (launch_packed<T>(frame, out, stream)) return;
        }
        frames_to_pixels_kernel<T, View>
            <<<picture_blocks(out.width, out.height), picture_threads(), 0, stream>>>(frame, out);
    });
}

}  // namespace

void frames_to_pixels_cuda(const FrameView& frame, const PixelView& out, CudaStream stream) {
    launch_any(frame, out, stream);
}

void frames_to_pixels_cuda(const Nv12View& frame, const PixelView& out, CudaStream stream) {
    launch_any(frame, out, stream);
}

}  // namespace sdrt
