// Two pieces of a DiT block on the kernels of matrix.h: a linear layer and attention. Whoever calls
// them splits the rows over threads; a row's result depends on that row alone, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/matrix.h"

namespace sdrt {

// loop(count, body) calls body(i) once for every i in [0, count), in any order, on any thread.
using Loop = std::function<void(int64_t, const std::function<void(int64_t)>&)>;

constexpr size_t kAlign = 64;  // bytes of a cache line, and of the widest vector

constexpr size_t aligned(size_t bytes) {
    return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Memory aligned for every kernel. Grows, never shrinks.
class Room {
  public:
    char* take(size_t bytes);

  private:
    std::vector<char> bytes_;
};

// y = x W^T + bias and what else `Finish` can add. The weights are packed once.
class Linear {
  public:
    // weight [outputs, inputs], row by row; bias [outputs] is copied.
    Linear(const MatrixKernel& kernel, const float* weight, const float* bias, int64_t outputs,
           int64_t inputs);

    // x [rows, inputs] -> y [rows, outputs]; `finish` without its bias.
    void operator()(const float* x, int64_t rows, Finish finish, float* y, char* work) const;

    size_t work_bytes() const { return kernel_.scratch_bytes(inputs_); }
    int64_t inputs() const { return inputs_; }
    int64_t outputs() const { return outputs_; }

  private:
    const MatrixKernel& kernel_;
    int64_t outputs_, inputs_;
    std::vector<float> bias_;
    Room room_;
    char* panels_;
};

struct AttentionShape {
    int64_t batch, heads, keys, size;
};

// Keys and values [B, N, M, K] that queries may attend to, for as long as they do not change.
// `mask` [B, M] holds 0 where a key is seen and -inf where not, at least one 0 a row of the batch;
// null if all are seen. What is not seen is not read.
class Attention {
  public:
    // Packs what is seen into `room`, if the kernel wants that.
    Attention(const MatrixKernel& kernel, const AttentionShape& shape, const float* k,
              const float* v, const float* mask, Room& room, const Loop& loop);

    // softmax(q k^T) v of one head: q [rows, size] -> out [rows, size], whose rows are `ldo` apart.
    void operator()(int64_t row, int64_t head, const float* q, int64_t rows, float* out,
                    int64_t ldo, char* work) const;

    static size_t work_bytes(const MatrixKernel& kernel, int64_t keys, int64_t size);

  private:
    // What one row of the batch sees.
    struct Seen {
        std::vector<Run> runs;
        std::vector<int64_t> keys;  // one by one: for packing
    };

    void pack(const Seen& seen, int64_t begin, const float* k, const float* v, char* packed) const;
    void attend_panels(const Seen& seen, const char* packed, const float* q, int rows, float* out,
                       int64_t ldo, char* work) const;
    char* packed(int64_t head) const { return packed_ + head * packed_bytes_; }

    const MatrixKernel& kernel_;
    AttentionShape shape_;
    const float *k_, *v_;
    std::vector<Seen> seen_;
    char* packed_ = nullptr;
    size_t packed_bytes_ = 0;  // of one head: keys, then values
};

}  // namespace sdrt
