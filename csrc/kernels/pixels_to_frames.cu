#include "kernels/launch.h"
#include "kernels/pixels_to_frames.h"

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

}  // namespace

void pixels_to_frames_cuda(const PlanarView& pixels, const BytesView& out, CudaStream stream) {
    with_type(pixels.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        pixels_to_frames_kernel<T>
            <<<picture_blocks(pixels.width, pixels.height), picture_threads(), 0, stream>>>(pixels,
                                                                                            out);
    });
}

}  // namespace sdrt
