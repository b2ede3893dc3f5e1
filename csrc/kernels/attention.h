// What a DiT block does with the kernels of matrix.h: linear layers and attention to a ring. The
// rows of a batch never share a sum, so a row's result does not depend on its neighbours, and the
// split over threads does not change a bit.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/matrix.h"

namespace sdrt {

// loop(count, body) calls body(i) once for every i in [0, count), in any order, on any thread.
using Loop = std::function<void(int64_t, const std::function<void(int64_t)>&)>;

// Memory aligned for every kernel. Grows, never shrinks.
class Room {
  public:
    char* take(size_t bytes);

  private:
    std::vector<char> bytes_;
};

// y = x W^T + bias, optionally through GELU (the one with tanh). The weights are packed once.
class Linear {
  public:
    // weight [outputs, inputs], row by row; bias [outputs] is copied.
    Linear(const MatrixKernel& kernel, const float* weight, const float* bias, int64_t outputs,
           int64_t inputs, bool gelu);

    // x [groups, rows, inputs] -> y [groups, rows, outputs]: residual + gate * (x W^T + bias), with
    // gate [groups, outputs] and residual like y, each null if it is absent.
    void operator()(const float* x, int64_t groups, int64_t rows, const float* gate,
                    const float* residual, float* y, const Loop& loop) const;

    int64_t inputs() const { return inputs_; }
    int64_t outputs() const { return outputs_; }

  private:
    const MatrixKernel& kernel_;
    int64_t outputs_, inputs_;
    bool gelu_;
    std::vector<float> bias_;
    Room room_;
    char* panels_;
};

// Layer normalisation, scale and shift of x [groups, rows, width]; scale and shift [groups, width].
void modulate(const MatrixKernel& kernel, const float* x, int64_t groups, int64_t rows,
              int64_t width, float eps, const float* scale, const float* shift, float* y,
              const Loop& loop);

struct Heads {
    int64_t batch, tokens, heads, size;
    float eps, factor;
};

// x [B, S, N*K] -> y [B, N, S, K], as MatrixKernel::split_heads has it for one row. `rope` [B, 2,
// S, K/2] holds cosines, then sines; null: nothing is turned.
void split_heads(const MatrixKernel& kernel, const Heads& shape, const float* x,
                 const float* weight, const float* rope, float* y, const Loop& loop);

struct AttentionShape {
    int64_t batch, heads, queries, keys, size;
};

// softmax(q k^T + mask) v for q [B, N, S, K], k and v [B, N, M, K] -> out [B, S, N*K], in tiles
// that stay in a cache. `mask` [B, M] holds 0 where a key is seen and -inf where not, at least one
// 0 a row; null if all are seen. What is not seen is not read.
void attention(const MatrixKernel& kernel, const AttentionShape& shape, const float* q,
               const float* k, const float* v, const float* mask, float* out, Room& room,
               const Loop& loop);

}  // namespace sdrt
