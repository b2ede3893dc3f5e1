#include "kernels/frame_difference.h"
#include "kernels/launch.h"

namespace sdrt {
namespace {

// Rows of a picture; strides in bytes.
struct Rows {
    const uint8_t* data;
    int64_t row, column, channel;

    __device__ const uint8_t* at(int64_t y) const { return data + y * row; }
};

__device__ void add_to(uint64_t* sum, uint64_t mine) {
    for (int step = 16; step > 0; step /= 2) mine += __shfl_down_sync(0xffffffffu, mine, step);
    __shared__ uint64_t warps[kThreads / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kThreads / 32; ++w) mine += warps[w];
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(mine));
}

// 16 samples an access; n is the number of samples in a row, any.
__global__ void __launch_bounds__(kThreads)
    packed_difference_kernel(Rows a, Rows b, int64_t rows, int64_t n, uint64_t* sum) {
    uint64_t mine = 0;
    for (int64_t y = blockIdx.y; y < rows; y += gridDim.y) {
        const uint8_t *p = a.at(y), *q = b.at(y);
        const int64_t step = int64_t{gridDim.x} * kThreads;
        int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
#pragma unroll 4
        for (; i < n / 16; i += step) {
            const uint4 x = reinterpret_cast<const uint4*>(p)[i];
            const uint4 z = reinterpret_cast<const uint4*>(q)[i];
            uint32_t squares = 0;
            const uint32_t d[4] = {__vabsdiffu4(x.x, z.x), __vabsdiffu4(x.y, z.y),
                                   __vabsdiffu4(x.z, z.z), __vabsdiffu4(x.w, z.w)};
            for (int k = 0; k < 4; ++k) squares = __dp4a(d[k], d[k], squares);
            mine += squares;
        }
        const int64_t tail = n / 16 * 16 + threadIdx.x;
        if (blockIdx.x == 0 && tail < n) mine += square_of(p[tail], q[tail]);
    }
    add_to(sum, mine);
}

__global__ void __launch_bounds__(kThreads)
    strided_difference_kernel(Rows a, Rows b, int64_t rows, int64_t width, uint64_t* sum) {
    uint64_t mine = 0;
    for (int64_t y = blockIdx.y; y < rows; y += gridDim.y) {
        for (int64_t x = int64_t{blockIdx.x} * kThreads + threadIdx.x; x < width;
             x += int64_t{gridDim.x} * kThreads) {
            const uint8_t *p = a.at(y) + x * a.column, *q = b.at(y) + x * b.column;
            for (int c = 0; c < 3; ++c) mine += square_of(p[c * a.channel], q[c * b.channel]);
        }
    }
    add_to(sum, mine);
}

__global__ void clear_sums_kernel(uint64_t* sums, int64_t count) {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) sums[i] = 0;
}

__global__ void rms_kernel(const uint64_t* sums, int64_t count, int64_t samples, float* out) {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) out[i] = rms_of(sums[i], samples);
}

Rows rows_of(const Array& a) {
    return {static_cast<const uint8_t*>(a.data), a.strides[0], a.strides[1], a.strides[2]};
}

bool packed(const Array& a) {
    return a.strides[2] == 1 && a.strides[1] == 3;
}

bool whole_pieces(const Array& a, bool one_row) {
    return reinterpret_cast<uintptr_t>(a.data) % 16 == 0 && (one_row || a.strides[0] % 16 == 0);
}

dim3 blocks_of(int64_t rows, int64_t items) {
    const int64_t across = (items + kThreads - 1) / kThreads;
    const int64_t x = across < 1 ? 1 : (across < 1024 ? across : 1024);
    const int64_t y = rows < 1024 / x ? rows : 1024 / x;  // few enough that adding up costs nothing
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y < 1 ? 1 : y));
}

}  // namespace

void squared_difference_cuda(const Array& a, const Array& b, uint64_t* sum, CudaStream stream) {
    const bool one_row = a.contiguous() && b.contiguous();
    const int64_t rows = one_row ? 1 : a.shape[0];
    if (packed(a) && packed(b) && whole_pieces(a, one_row) && whole_pieces(b, one_row)) {
        const int64_t n = a.size() / rows;
        packed_difference_kernel<<<blocks_of(rows, n / 64), kThreads, 0, stream>>>(
            rows_of(a), rows_of(b), rows, n, sum);
        return;
    }
    strided_difference_kernel<<<blocks_of(a.shape[0], a.shape[1]), kThreads, 0, stream>>>(
        rows_of(a), rows_of(b), a.shape[0], a.shape[1], sum);
}

void clear_sums_cuda(uint64_t* sums, int64_t count, CudaStream stream) {
    clear_sums_kernel<<<1, kThreads, 0, stream>>>(sums, count);
}

void rms_cuda(const uint64_t* sums, int64_t count, int64_t samples, float* out, CudaStream stream) {
    rms_kernel<<<1, kThreads, 0, stream>>>(sums, count, samples, out);
}

}  // namespace sdrt
