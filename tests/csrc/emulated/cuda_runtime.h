// As much of CUDA as the kernels here need, on one thread of the host: blocks run one after
// another, the threads of a block are fibers that take turns. Not fast, and no proof of how a
// device orders memory; but indices, barriers, shuffles and arithmetic are those of the kernels. A
// barrier that not all threads reach ends the process.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[1 << 16]};
    dim3 index;
    bool done = false;
};

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline unsigned current = 0;
inline std::function<void()> body;
inline bool progress = false;
inline Barrier block_barrier;
inline std::map<std::pair<unsigned, unsigned>, Barrier> lane_barriers;  // by warp and mask
inline std::vector<float> slots;

inline void meet(Barrier& barrier, unsigned count) {
    const unsigned before = barrier.generation;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.generation;
        progress = true;
        return;
    }
    while (barrier.generation == before) swapcontext(&fibers[current].context, &scheduler);
}

inline void run_fiber() {
    body();
    fibers[current].done = progress = true;
    swapcontext(&fibers[current].context, &scheduler);
}

inline void run_block(dim3 threads) {
    const unsigned count = threads.x * threads.y * threads.z;
    if (fibers.size() < count) fibers.resize(count);
    slots.assign(count, 0.0f);
    lane_barriers.clear();
    block_barrier = {};
    for (unsigned i = 0; i < count; ++i) {
        Fiber& f = fibers[i];
        f.index = {i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y)};
        f.done = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = 1 << 16;
        makecontext(&f.context, run_fiber, 0);
    }
    for (unsigned left = count; left > 0;) {
        progress = false;
        left = 0;
        for (current = 0; current < count; ++current) {
            if (fibers[current].done) continue;
            threadIdx = fibers[current].index;
            swapcontext(&scheduler, &fibers[current].context);
            left += !fibers[current].done;
        }
        if (left > 0 && !progress) {
            std::fprintf(stderr, "emulated: threads of a block wait for others that never come\n");
            std::abort();
        }
    }
}

inline void launch(dim3 blocks, dim3 threads, std::function<void()> kernel) {
    body = std::move(kernel);
    gridDim = blocks;
    blockDim = threads;
    for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z) {
        for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
            for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) run_block(threads);
        }
    }
}

}  // namespace emulated

inline void __syncthreads() {
    emulated::meet(emulated::block_barrier, blockDim.x * blockDim.y * blockDim.z);
}

inline float __shfl_xor_sync(unsigned mask, float v, int step) {
    using namespace emulated;
    const unsigned me = current, lanes = static_cast<unsigned>(__builtin_popcount(mask));
    if ((mask >> me % 32 & mask >> (me ^ step) % 32 & 1u) == 0) std::abort();
    Barrier& barrier = lane_barriers[{me / 32, mask}];
    slots[me] = v;
    meet(barrier, lanes);
    const float other = slots[me ^ step];
    meet(barrier, lanes);
    return other;
}

template <typename T>
T atomicAdd(T* at, T v) {
    return std::exchange(*at, *at + v);
}

template <typename T>
T atomicMax(T* at, T v) {
    return std::exchange(*at, std::max(*at, v));
}
