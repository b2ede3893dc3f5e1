#include "kernels/launch.h"
#include "kernels/refresh_sinks.h"

namespace sdrt {
namespace {

constexpr int kSinkThreads = 512;
constexpr int kShared = 6144;  // doubles: what every device gives a block without being asked
constexpr int kProducts = 6;   // per sink: a.b, a.a, b.b of keys and of values

static_assert(kShared - 4 * kWidestHeadOnDevice - kProducts * kMostSinksOnDevice -
                      kWidestHeadOnDevice / 2 >=
                  kWidestHeadOnDevice,
              "the partial sums of one group have to fit beside the rest");

// The angles of one position. A function of its own, because pow, cos and sin in double cost more
// registers than all the rest.
__device__ __noinline__ void turn_all(int64_t position, int32_t pairs, double theta, float* cosines,
                                      float* sines) {
    for (int32_t p = threadIdx.x; p < pairs; p += kSinkThreads) {
        rotation_of(position, p, pairs, theta, cosines[p], sines[p]);
    }
}

// One block of threads is one block and row of the rings. Nothing here depends on the order in
// which threads run: every sum has one fixed tree.
template <typename T, int kVector>
class Team {
  public:
    __device__ Team(const SinkState<T>& state, const SinkRules& rules, double* shared)
        : a(state), rules(rules) {
        for (int i = 0; i < 4; ++i) sums_[i] = shared + i * a.head_dim;
        products_ = shared + 4 * a.head_dim;
        cosines_ = reinterpret_cast<float*>(products_ + kProducts * rules.sinks);
        sines_ = cosines_ + a.pairs;
        partial_ = products_ + kProducts * rules.sinks + a.pairs;
        room_ = static_cast<int>(shared + kShared - partial_);
    }

    __device__ void capture(int64_t frame, int32_t s) {
        turn_to(-frame);
        const int64_t slot = slot_of(frame, rules.window, rules.sinks);
        each_pair(s, slot, [&](float* time, T* key, float c, float sn) {
            rotate_pair(to_float(key[0]), to_float(key[1]), c, sn, time[0], time[1]);
        });
        if (threadIdx.x == 0) a.sink_index[s] = frame;
        __syncthreads();
    }

    __device__ void place(int32_t s, int64_t position) {
        turn_to(position);
        each_pair(s, s, [&](const float* time, T* key, float c, float sn) {
            float re, im;
            rotate_pair(time[0], time[1], c, sn, re, im);
            from_float(re, key[0]);
            from_float(im, key[1]);
        });
        __syncthreads();
    }

    __device__ void replace(int64_t frame, int32_t s) {
        struct alignas(kVector * sizeof(T)) Piece {
            T v[kVector];
        };
        const int64_t slot = slot_of(frame, rules.window, rules.sinks);
        const int64_t count = int64_t{rules.tokens} * a.head_dim;
        for (int32_t h = 0; h < a.heads; ++h) {
            auto* k = reinterpret_cast<Piece*>(a.k + h * a.k_head);
            auto* v = reinterpret_cast<Piece*>(a.v + h * a.v_head);
            const int64_t pieces = count / kVector;
            for (int64_t i = threadIdx.x; i < pieces; i += kSinkThreads) {
                k[s * pieces + i] = k[slot * pieces + i];
                v[s * pieces + i] = v[slot * pieces + i];
            }
        }
        capture(frame, s);
    }

    // As on the host, head by head: only the sums of one head are in shared memory at a time.
    __device__ int32_t least_similar(int64_t frame, double& least) {
        const int64_t slot = slot_of(frame, rules.window, rules.sinks);
        for (int i = threadIdx.x; i < kProducts * rules.sinks; i += kSinkThreads) products_[i] = 0;
        turn_to(-frame);
        const int32_t time = 2 * a.pairs;
        for (int32_t h = 0; h < a.heads; ++h) {
            add_rows<kVector>(rows(a.k, a.k_head, h, slot), a.head_dim, sums_[0]);
            add_rows<kVector>(rows(a.v, a.v_head, h, slot), a.head_dim, sums_[1]);
            for (int p = threadIdx.x; p < a.pairs; p += kSinkThreads) {
                double* pair = sums_[0] + 2 * p;
                rotate_pair(pair[0], pair[1], cosines_[p], sines_[p], pair[0], pair[1]);
            }
            for (int32_t s = 0; s < rules.sinks; ++s) {
                if (a.sink_index[s] < 0) continue;  // the same for all threads
                add_rows<kVector>(rows(a.k, a.k_head, h, s), a.head_dim, sums_[2]);
                add_rows<kVector>(rows(a.v, a.v_head, h, s), a.head_dim, sums_[3]);
                add_rows<1>(a.sink_time + h * a.time_head + int64_t{s} * rules.tokens * time, time,
                            sums_[2]);
                add_products(products_ + kProducts * s);
            }
        }
        int32_t found = -1;
        for (int32_t s = 0; s < rules.sinks; ++s) {
            if (a.sink_index[s] < 0) continue;
            const double* p = products_ + kProducts * s;
            const double similarity =
                0.5 * (cosine_of(p[0], p[1], p[2]) + cosine_of(p[3], p[4], p[5]));
            if (found >= 0 && !(similarity < least)) continue;
            found = s;
            least = similarity;
        }
        return found;
    }

  private:
    __device__ const T* rows(const T* ring, int64_t head, int32_t h, int64_t slot) const {
        return ring + h * head + slot * rules.tokens * a.head_dim;
    }

    // Waits before it overwrites the last angles and after.
    __device__ void turn_to(int64_t position) {
        __syncthreads();
        turn_all(position, a.pairs, rules.theta, cosines_, sines_);
        __syncthreads();
    }

    // body(pair in the side copy of sink s, pair of the key in `slot`, cos, sin), all heads, tokens
    // and pairs.
    template <typename Body>
    __device__ void each_pair(int32_t s, int64_t slot, const Body& body) {
        const int64_t count = int64_t{rules.tokens} * a.pairs;
        for (int32_t h = 0; h < a.heads; ++h) {
            float* time = a.sink_time + h * a.time_head + 2 * s * count;
            T* key = a.k + h * a.k_head + slot * rules.tokens * a.head_dim;
            for (int64_t i = threadIdx.x; i < count; i += kSinkThreads) {
                const int64_t t = i / a.pairs, p = i - t * a.pairs;
                body(time + 2 * i, key + t * a.head_dim + 2 * p, cosines_[p], sines_[p]);
            }
        }
    }

    // Sums of the rows of [tokens, width] into `out`, by groups of threads that each take every
    // n-th row, and then over the groups in order.
    template <int kWide, typename Element>
    __device__ void add_rows(const Element* from, int32_t width, double* out) {
        if (width == 0) return;
        const int32_t lanes = width / kWide;
        const int32_t groups = max(1, min(kSinkThreads / lanes, room_ / width));
        for (int32_t item = threadIdx.x; item < groups * lanes; item += kSinkThreads) {
            const int32_t group = item / lanes, lane = item - group * lanes;
            double sum[kWide] = {};
            struct alignas(kWide * sizeof(Element)) Piece {
                Element v[kWide];
            };
            const Element* p = from + int64_t{group} * width + lane * kWide;
#pragma unroll 4
            for (int32_t t = group; t < rules.tokens; t += groups, p += int64_t{groups} * width) {
                const Piece piece = *reinterpret_cast<const Piece*>(p);
#pragma unroll
                for (int i = 0; i < kWide; ++i) sum[i] += static_cast<double>(to_float(piece.v[i]));
            }
#pragma unroll
            for (int i = 0; i < kWide; ++i) partial_[group * width + lane * kWide + i] = sum[i];
        }
        __syncthreads();
        for (int32_t c = threadIdx.x; c < width; c += kSinkThreads) {
            double sum = 0;
            for (int32_t g = 0; g < groups; ++g) sum += partial_[g * width + c];
            out[c] = sum;
        }
        __syncthreads();
    }

    // Adds this head's share of the six products of a sink; the first warp does it.
    __device__ void add_products(double* into) const {
        if (threadIdx.x < 32) {
            for (int pair = 0; pair < 2; ++pair) {
                double ab = 0, aa = 0, bb = 0;
                for (int32_t c = threadIdx.x; c < a.head_dim; c += 32) {
                    const double x = sums_[pair][c], y = sums_[pair + 2][c];
                    ab += x * y;
                    aa += x * x;
                    bb += y * y;
                }
                for (int step = 16; step > 0; step /= 2) {
                    ab += __shfl_down_sync(0xffffffffu, ab, step);
                    aa += __shfl_down_sync(0xffffffffu, aa, step);
                    bb += __shfl_down_sync(0xffffffffu, bb, step);
                }
                if (threadIdx.x == 0) {
                    into[3 * pair] += ab;
                    into[3 * pair + 1] += aa;
                    into[3 * pair + 2] += bb;
                }
            }
        }
        __syncthreads();
    }

    const SinkState<T>& a;
    const SinkRules& rules;
    double *sums_[4], *products_, *partial_;
    float *cosines_, *sines_;
    int room_;
};

template <typename T, int kVector>
__global__ void __launch_bounds__(kSinkThreads, 1)
    refresh_sinks_kernel(SinkArrays arrays, SinkRules rules) {
    __shared__ double shared[kShared];
    const SinkState<T> state =
        sinks_of<T>(arrays, blockIdx.x / arrays.rows, blockIdx.x % arrays.rows);
    Team<T, kVector> team(state, rules, shared);
    if (captures(rules, state.last)) {
        team.capture(state.last, static_cast<int32_t>(state.last));
    } else if (compares(rules, state.last)) {
        double similarity = 1.0;
        const int32_t s = team.least_similar(state.last, similarity);
        if (s >= 0 && similarity < rules.threshold) team.replace(state.last, s);
    }
    if (!moves(rules, state.query)) return;
    for (int32_t s = 0; s < rules.sinks; ++s) {
        if (state.sink_index[s] >= 0) team.place(s, position_of(rules, state.query, s));
    }
}

// Whether every head of both rings may be read 16 bytes at a time.
bool whole_pieces(const SinkArrays& a, int64_t elements) {
    const auto whole = [&](const void* data, const SinkArrays::Strides& s) {
        return reinterpret_cast<uintptr_t>(data) % 16 == 0 && s.block % elements == 0 &&
               s.row % elements == 0 && s.head % elements == 0;
    };
    return a.head_dim % elements == 0 && whole(a.k, a.k_step) && whole(a.v, a.v_step);
}

}  // namespace

void refresh_sinks_cuda(const SinkArrays& arrays, const SinkRules& rules, CudaStream stream) {
    const unsigned teams = static_cast<unsigned>(arrays.blocks) * arrays.rows;
    with_type(arrays.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        constexpr int kWide = 16 / sizeof(T);
        if (whole_pieces(arrays, kWide)) {
            refresh_sinks_kernel<T, kWide><<<teams, kSinkThreads, 0, stream>>>(arrays, rules);
        } else {
            refresh_sinks_kernel<T, 1><<<teams, kSinkThreads, 0, stream>>>(arrays, rules);
        }
    });
}

}  // namespace sdrt
