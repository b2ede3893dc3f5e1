// The flow of all pairs of a call on a device, without a round trip to the host. Eight neighbouring
// threads are a patch. A level is three launches: search, offers, settling; the settling of a pair
// is one block, because its rounds wait for each other and a level has few nodes.
#include "kernels/launch.h"
#include "kernels/optical_flow.h"

namespace sdrt {
namespace {

constexpr int kSettlers = 512;  // threads of a block that works on one pair alone

// One lane of a row of a patch. Sums go over pairs first, as on the host, and come out alike in all
// lanes, so that the eight threads of a patch never part.
struct Lane {
    float v = 0.0f;

    static __device__ __forceinline__ int number() {
        return static_cast<int>(threadIdx.x) % kPatch;
    }
    static __device__ __forceinline__ Lane load(const float* p) { return {p[number()]}; }
    static __device__ __forceinline__ Lane lanes() { return {static_cast<float>(number()) - 3.5f}; }
};

__device__ __forceinline__ Lane operator+(Lane a, Lane b) {
    return {a.v + b.v};
}
__device__ __forceinline__ Lane operator-(Lane a, Lane b) {
    return {a.v - b.v};
}
__device__ __forceinline__ Lane operator*(Lane a, Lane b) {
    return {a.v * b.v};
}
__device__ __forceinline__ Lane operator-(Lane a, float b) {
    return {a.v - b};
}
__device__ __forceinline__ Lane operator*(Lane a, float b) {
    return {a.v * b};
}

__device__ __forceinline__ float sum(Lane a) {
    const unsigned patch = 0xffu << (threadIdx.x % 32 / kPatch * kPatch);
    for (int step = 1; step < kPatch; step *= 2) a.v += __shfl_xor_sync(patch, a.v, step);
    return a.v;
}

// The arrays of a call.
struct Work {
    FlowPlan plan;
    float* lumas;
    Node *found, *nodes;
    float* planes;
    int64_t plane_size;
    Motion* field;

    __device__ float* picture(int64_t i) const { return lumas + i * plan.luma_at[plan.levels]; }
    __device__ Node* nodes_of(int64_t pair, int k) const {
        return nodes + pair * plan.node_at[plan.levels] + plan.node_at[k];
    }
    __device__ Node* found_of(int64_t pair) const { return found + pair * plan.node_at[1]; }
    __device__ FlowLevel level(int64_t pair, int k) const {
        return plan.level(picture(pair), picture(pair + 1), k);
    }
};

// Pixel (x, y) of a level and its border: beyond an edge the picture goes on in a straight line for
// one pixel, and then stays.
template <typename Inside>
__device__ float with_border(int x, int y, int width, int height, const Inside& inside) {
    const int beside = width > 1 ? 1 : 0, below = height > 1 ? 1 : 0;
    const auto across = [&](int row) {
        if (x < 0) return beyond(inside(0, row), inside(beside, row));
        if (x >= width) return beyond(inside(width - 1, row), inside(width - 1 - beside, row));
        return inside(x, row);
    };
    if (y < 0) return beyond(across(0), across(below));
    if (y >= height) return beyond(across(height - 1), across(height - 1 - below));
    return across(y);
}

// For every pixel of a level and its border.
template <typename Inside>
__device__ void fill_level(const Luma& level, const Inside& inside) {
    const int x = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) - kBorder;
    if (x >= level.width + kBorder) return;
    auto* origin = const_cast<float*>(level.data);
    for (int y = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y) - kBorder;
         y < level.height + kBorder; y += static_cast<int>(gridDim.y * blockDim.y)) {
        origin[int64_t{y} * level.stride + x] =
            with_border(x, y, level.width, level.height, inside);
    }
}

struct Bytes {
    const uint8_t* data;
    int64_t row, column, channel;
};

__global__ void luma_kernel(Work work, Bytes frame, int64_t picture) {
    const int size = 1 << work.plan.octave;
    const float scale = 1.0f / static_cast<float>(size * size);
    fill_level(work.plan.luma(work.picture(picture), 0), [&](int x, int y) {
        uint32_t r = 0, g = 0, b = 0;
        for (int j = 0; j < size; ++j) {
            const uint8_t* p =
                frame.data + (int64_t{y} * size + j) * frame.row + int64_t{x} * size * frame.column;
            for (int i = 0; i < size; ++i, p += frame.column) {
                r += p[0];
                g += p[frame.channel];
                b += p[2 * frame.channel];
            }
        }
        return luma_of(r, g, b, scale);
    });
}

// Level k of picture blockIdx.z.
__global__ void halve_kernel(Work work, int k) {
    const float* picture = work.picture(blockIdx.z);
    const Luma above = work.plan.luma(picture, k - 1);
    fill_level(work.plan.luma(picture, k), [&](int x, int y) {
        const float* p = above.data + 2 * int64_t{y} * above.stride + 2 * int64_t{x};
        return halve(p, p + above.stride);
    });
}

// Eight threads for every node of level k of pair blockIdx.y.
__global__ void __launch_bounds__(kThreads) search_kernel(Work work, int k) {
    const int64_t pair = blockIdx.y;
    const bool coarsest = k + 1 == work.plan.levels;
    const FlowLevel level = work.level(pair, k);
    const FlowLevel coarser = work.level(pair, coarsest ? k : k + 1);
    const Node* above = coarsest ? nullptr : work.nodes_of(pair, k + 1);
    const int64_t count = work.plan.node_at[k + 1] - work.plan.node_at[k];
    const int64_t stride = int64_t{gridDim.x} * (kThreads / kPatch);
    for (int64_t n = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kPatch; n < count;
         n += stride) {
        const auto j = static_cast<int32_t>(n / level.grid.columns);
        const auto i = static_cast<int32_t>(n - int64_t{j} * level.grid.columns);
        const Node node = search_node<Lane>(level, coarser, above, i, j);
        if (Lane::number() == 0) work.found_of(pair)[n] = node;
    }
}

__global__ void __launch_bounds__(kThreads) offer_kernel(Work work, int k) {
    const int64_t pair = blockIdx.y;
    const FlowLevel level = work.level(pair, k);
    const int64_t count = work.plan.node_at[k + 1] - work.plan.node_at[k];
    const int64_t stride = int64_t{gridDim.x} * (kThreads / kPatch);
    for (int64_t n = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kPatch; n < count;
         n += stride) {
        const auto j = static_cast<int32_t>(n / level.grid.columns);
        const auto i = static_cast<int32_t>(n - int64_t{j} * level.grid.columns);
        const Node node = offer_node<Lane>(level, work.found_of(pair), i, j);
        if (Lane::number() == 0) work.nodes_of(pair, k)[n] = node;
    }
}

// One value more around a plane of columns x rows; by all threads of a block.
__device__ void continue_outwards(float* u, float* v, int columns, int rows) {
    const int64_t stride = columns + 2;
    const int64_t beside = columns > 1 ? 1 : 0, below = rows > 1 ? stride : 0;
    for (int j = threadIdx.x; j < rows; j += kSettlers) {
        for (float* plane : {u, v}) {
            float* p = plane + j * stride;
            p[-1] = beyond(p[0], p[beside]);
            p[columns] = beyond(p[columns - 1], p[columns - 1 - beside]);
        }
    }
    for (int i = threadIdx.x; i < columns; i += kSettlers) {
        for (float* plane : {u, v}) {
            float* p = plane + i;
            p[-stride] = beyond(p[0], p[below]);
            p += (rows - 1) * stride;
            p[stride] = beyond(p[0], p[-below]);
        }
    }
}

// Level k of pair blockIdx.x: all rounds.
__global__ void __launch_bounds__(kSettlers, 1) settle_kernel(Work work, int k) {
    const int64_t pair = blockIdx.x;
    const FlowLevel level = work.level(pair, k);
    const Settling settling(level, work.plan.settings.smooth);
    const int columns = level.grid.columns, rows = level.grid.rows;
    const int64_t stride = columns + 2, count = int64_t{columns} * rows;
    Node* nodes = work.nodes_of(pair, k);
    float* planes = work.planes + pair * 4 * work.plane_size + stride + 1;
    float *u = planes, *v = u + work.plane_size;
    float *next_u = v + work.plane_size, *next_v = next_u + work.plane_size;
    for (int64_t n = threadIdx.x; n < count; n += kSettlers) {
        const int64_t at = n / columns * stride + n % columns;
        u[at] = nodes[n].measured.u;
        v[at] = nodes[n].measured.v;
    }
    for (int round = 0; round < work.plan.settings.rounds; ++round) {
        __syncthreads();
        continue_outwards(u, v, columns, rows);
        __syncthreads();
        for (int64_t n = threadIdx.x; n < count; n += kSettlers) {
            const int64_t at = n / columns * stride + n % columns;
            settle_node(nodes[n].measured, u + at, v + at, stride, settling, next_u + at,
                        next_v + at);
        }
        float *const spare_u = u, *const spare_v = v;
        u = next_u;
        v = next_v;
        next_u = spare_u;
        next_v = spare_v;
    }
    // Every thread reads back what it wrote itself.
    for (int64_t n = threadIdx.x; n < count; n += kSettlers) {
        const int64_t at = n / columns * stride + n % columns;
        nodes[n].motion.u = u[at];
        nodes[n].motion.v = v[at];
    }
}

// Pair blockIdx.z at the working resolution.
__global__ void field_kernel(Work work) {
    const int64_t pair = blockIdx.z;
    const FlowLevel level = work.level(pair, 0);
    const int width = level.a.width, height = level.a.height;
    const int x = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (x >= width) return;
    Motion* field = work.field + pair * width * height;
    for (int y = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y); y < height;
         y += static_cast<int>(gridDim.y * blockDim.y)) {
        field[int64_t{y} * width + x] = motion_of_pixel(level, work.nodes_of(pair, 0), x, y);
    }
}

// Strides in bytes.
struct FlowView {
    char* data;
    int64_t row, column, channel;
    int32_t height, width;
};

__global__ void expand_kernel(Work work, FlowView out) {
    const int x = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (x >= out.width) return;
    for (int y = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y); y < out.height;
         y += static_cast<int>(gridDim.y * blockDim.y)) {
        const Motion m =
            motion_at(work.field, work.plan.width[0], work.plan.height[0], work.plan.octave, x, y);
        char* target = out.data + y * out.row + x * out.column;
        *reinterpret_cast<float*>(target) = m.u;
        *reinterpret_cast<float*>(target + out.channel) = m.v;
    }
}

// Row blockIdx.x of the statistics. The values of two ranks are found bit by bit from the top,
// eight at a time: lengths are not negative, so their bits are in their order.
__global__ void __launch_bounds__(kSettlers, 1) statistics_kernel(Work work, int skip, float* out) {
    __shared__ unsigned counts[2][256];
    __shared__ uint32_t prefix[2];
    __shared__ unsigned long long units, rank[2];
    __shared__ unsigned moving, most;
    float* row = out + 5 * int64_t{blockIdx.x};
    if (blockIdx.x < skip) {
        if (threadIdx.x < 5) row[threadIdx.x] = 0.0f;
        return;
    }
    const int64_t n = int64_t{work.plan.width[0]} * work.plan.height[0];
    const Motion* field = work.field + (int64_t{blockIdx.x} - skip) * n;
    if (threadIdx.x == 0) {
        units = moving = most = prefix[0] = prefix[1] = 0;
        rank[0] = rank_of(n, 50);
        rank[1] = rank_of(n, 90);
    }
    __syncthreads();
    unsigned long long my_units = 0;
    unsigned my_moving = 0, my_most = 0;
    for (int64_t i = threadIdx.x; i < n; i += kSettlers) {
        const float length = length_of(field[i]);
        const uint32_t bits = bits_of(length);
        my_units += units_of(length);
        my_moving += moves(length);
        my_most = bits > my_most ? bits : my_most;
    }
    atomicAdd(&units, my_units);
    atomicAdd(&moving, my_moving);
    atomicMax(&most, my_most);
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 512; i += kSettlers) counts[i / 256][i % 256] = 0;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < n; i += kSettlers) {
            const uint64_t bits = bits_of(length_of(field[i]));
            for (int q = 0; q < 2; ++q) {
                if (bits >> (shift + 8) == prefix[q]) {
                    atomicAdd(&counts[q][bits >> shift & 0xffu], 1u);
                }
            }
        }
        __syncthreads();
        if (threadIdx.x < 2) {
            const int q = threadIdx.x;
            unsigned digit = 0;
            while (rank[q] >= counts[q][digit]) rank[q] -= counts[q][digit++];
            prefix[q] = prefix[q] << 8 | digit;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        row[0] = mean_of(units, n);
        row[1] = float_of(prefix[0]);
        row[2] = float_of(prefix[1]);
        row[3] = float_of(most);
        row[4] = static_cast<float>(moving) / static_cast<float>(n);
    }
}

Work work_in(const FlowPlan& plan, int64_t pictures, void* scratch) {
    const FlowScratch at(plan, pictures);
    char* base = static_cast<char*>(scratch);
    return {plan,
            reinterpret_cast<float*>(base + at.lumas),
            reinterpret_cast<Node*>(base + at.found),
            reinterpret_cast<Node*>(base + at.nodes),
            reinterpret_cast<float*>(base + at.planes),
            at.plane_size,
            reinterpret_cast<Motion*>(base + at.field)};
}

dim3 with_depth(dim3 blocks, int64_t depth) {
    blocks.z = static_cast<unsigned>(depth);
    return blocks;
}

// Fields of all pairs; at least two pictures.
void launch_fields(const Work& work, std::span<const Array> pictures, CudaStream stream) {
    const FlowPlan& plan = work.plan;
    const auto count = static_cast<int64_t>(pictures.size()), pairs = count - 1;
    const auto blocks = [&](int k) {
        return picture_blocks(plan.width[k] + 2 * kBorder, plan.height[k] + 2 * kBorder);
    };
    for (int64_t i = 0; i < count; ++i) {
        const Array& a = pictures[i];
        const Bytes frame{static_cast<const uint8_t*>(a.data), a.strides[0], a.strides[1],
                          a.strides[2]};
        luma_kernel<<<blocks(0), picture_threads(), 0, stream>>>(work, frame, i);
    }
    for (int k = 1; k < plan.levels; ++k) {
        halve_kernel<<<with_depth(blocks(k), count), picture_threads(), 0, stream>>>(work, k);
    }
    for (int k = plan.levels - 1; k >= 0; --k) {
        const int64_t nodes = plan.node_at[k + 1] - plan.node_at[k];
        const dim3 grid(blocks_for(nodes * kPatch), static_cast<unsigned>(pairs));
        search_kernel<<<grid, kThreads, 0, stream>>>(work, k);
        offer_kernel<<<grid, kThreads, 0, stream>>>(work, k);
        settle_kernel<<<static_cast<unsigned>(pairs), kSettlers, 0, stream>>>(work, k);
    }
    const dim3 fields = with_depth(picture_blocks(plan.width[0], plan.height[0]), pairs);
    field_kernel<<<fields, picture_threads(), 0, stream>>>(work);
}

}  // namespace

void optical_flow_cuda(const FlowPlan& plan, const Array& prev, const Array& next, const Array& out,
                       void* scratch, CudaStream stream) {
    const Work work = work_in(plan, 2, scratch);
    const Array pictures[2] = {prev, next};
    launch_fields(work, pictures, stream);
    const FlowView view{static_cast<char*>(out.data),
                        out.strides[0],
                        out.strides[1],
                        out.strides[2],
                        static_cast<int32_t>(out.shape[0]),
                        static_cast<int32_t>(out.shape[1])};
    const dim3 all = picture_blocks(view.width, view.height);
    expand_kernel<<<all, picture_threads(), 0, stream>>>(work, view);
}

void optical_flow_magnitude_cuda(const FlowPlan& plan, std::span<const Array> pictures,
                                 int64_t skip, float* out, void* scratch, CudaStream stream) {
    const auto count = static_cast<int64_t>(pictures.size());
    const Work work = work_in(plan, count, scratch);
    if (count > 1) launch_fields(work, pictures, stream);
    const auto rows = static_cast<unsigned>(skip + count - 1);
    if (rows > 0) {
        statistics_kernel<<<rows, kSettlers, 0, stream>>>(work, static_cast<int>(skip), out);
    }
}

}  // namespace sdrt
