#include "kernels/frames_to_pixels.h"
#include "kernels/launch.h"

namespace sdrt {
namespace {

// One thread makes one output pixel. Columns are summed downwards first and then across, in the
// order of the host, so that both round alike.
template <typename T>
__global__ void frames_to_pixels_kernel(FrameView frame, PixelView out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= out.width) return;
    const Taps across = resize_taps(x, frame.width, out.width);
    for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < out.height;
         y += gridDim.y * blockDim.y) {
        const Taps down = resize_taps(y, frame.height, out.height);
        float level[3] = {0.0f, 0.0f, 0.0f};
        for (int i = 0; i < across.count; ++i) {
            const uint8_t* p =
                frame.data + down.first * frame.row + (across.first + i) * frame.column;
            float column[3] = {0.0f, 0.0f, 0.0f};
            for (int j = 0; j < down.count; ++j, p += frame.row) {
                const float w = down.weight(j);
                for (int c = 0; c < 3; ++c) {
                    column[c] += w * static_cast<float>(p[c * frame.channel]);
                }
            }
            const float w = across.weight(i);
            for (int c = 0; c < 3; ++c) level[c] += w * column[c];
        }
        T* target = static_cast<T*>(out.data) + y * out.row + x * out.column;
        for (int c = 0; c < 3; ++c) from_float(pixel_of(level[c]), target[c * out.channel]);
    }
}

}  // namespace

void frames_to_pixels_cuda(const FrameView& frame, const PixelView& out, CudaStream stream) {
    with_type(out.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        frames_to_pixels_kernel<T>
            <<<picture_blocks(out.width, out.height), picture_threads(), 0, stream>>>(frame, out);
    });
}

}  // namespace sdrt
