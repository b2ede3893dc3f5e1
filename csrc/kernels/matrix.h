// Products of float32 matrices, softmax and GELU on the processor: what a DiT block spends its time
// in. Written once per instruction set, chosen once per process (matrix.cpp).
//
// The right-hand side of a product is packed into panels of a few columns first. `avx512`, `avx2`
// and `portable` multiply in float32. The others keep about 16 bits of each factor, against 24 of
// float32, at twice the speed and more: `amx` writes it as the sum of two bfloat16 and adds three
// products of them in float32 (the fourth is below what is kept); `avx512vnni` and `avxvnni` round
// it to whole numbers of 16 bits, with a scale for every row (matrix_words.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sdrt {

constexpr int kTileRows = 32;   // queries that one call takes at most
constexpr int kMostRows = 128;  // rows of a left-hand side that any call takes at most

// What becomes of a product p: residual + gate * activation(p + bias). Null: without.
struct Finish {
    const float* bias = nullptr;      // [columns]
    const float* gate = nullptr;      // [columns]
    const float* residual = nullptr;  // laid out like the result
    bool gelu = false;                // the one with tanh
};

// Keys [begin, end), all of them seen.
struct Run {
    int64_t begin, end;
};

// out [rows, size] = softmax(q k^T) v over the keys of `runs`, for q [rows, size] and k and v
// [keys, size] as they are.
struct ByRuns {
    size_t (*scratch_bytes)(int64_t size);
    void (*attend)(const float* q, int rows, int64_t size, const float* k, const float* v,
                   const Run* runs, int64_t count, float* out, int64_t ldo, char* scratch);
};

constexpr int kBlockKeys = 96;  // of a block; even. Their weights stay in the nearest cache

// The same over `count` keys, packed before in blocks that are full but for the last.
struct ByBlocks {
    size_t (*block_bytes)(int64_t size);
    void (*pack)(const float* k, const float* v, const int64_t* keys, int count, int64_t size,
                 char* block);
    size_t (*scratch_bytes)(int64_t size);
    void (*attend)(const float* q, int rows, int64_t size, const char* blocks, int64_t count,
                   float* out, int64_t ldo, char* scratch);
};

// The same as two products, over keys packed by `pack_transposed` and values packed by `pack`.
struct ByPanels {
    // Rows [begin, end) of one panel; begin is a multiple of 32. Row k is `rows[k]`, of which
    // the first `count` columns exist; what is missing is zero, also below the last row.
    void (*pack)(const float* const* rows, int64_t begin, int64_t end, int count, int64_t depth,
                 char* panel);

    // Every row of x [rows, padded] becomes exp(x - max) over its first `count` values, and nothing
    // that counts beyond; `scale[row]` one over the sum. `padded` is a multiple of `columns`.
    void (*exponentials)(float* x, int64_t ldx, int rows, int64_t count, int64_t padded,
                         float* scale);
};

struct MatrixKernel {
    const char* name;
    bool rounds;    // factors to whole numbers of 16 bits: only where that was asked for
    int columns;    // of a panel; a multiple of 8
    int most_rows;  // of a left-hand side

    // Bytes of a panel, and of the scratch memory that a product needs.
    size_t (*panel_bytes)(int64_t depth);
    size_t (*scratch_bytes)(int64_t depth);

    // One panel of the matrix whose column j is `rows[j]` [depth]; missing columns are zero.
    void (*pack_transposed)(const float* const* rows, int count, int64_t depth, char* panel);

    // c [rows, columns] = a [rows, depth] times the panels, then what `finish` says; null: nothing.
    // rows <= most_rows.
    void (*product)(const float* a, int64_t lda, int rows, int64_t depth, const char* panels,
                    int64_t columns, const Finish* finish, float* c, int64_t ldc, char* scratch);

    // The way in which attention is done; the others are null.
    const ByRuns* by_runs;
    const ByBlocks* by_blocks;
    const ByPanels* by_panels;

    // y = layer normalisation of x [rows, width], without weights, times 1 + scale, plus shift.
    void (*modulate)(const float* x, int rows, int64_t width, float eps, const float* scale,
                     const float* shift, float* y);

    // One row: x [heads * size], normalised by its root mean square and multiplied by `weight`,
    // then every complex pair turned by cosine and sine [size / 2] (null: not turned), times
    // `factor`. Head n goes to y + n * stride.
    void (*split_heads)(const float* x, int64_t heads, int64_t size, float eps, const float* weight,
                        const float* cosine, const float* sine, float factor, float* y,
                        int64_t stride);

    int64_t panels(int64_t n) const { return (n + columns - 1) / columns; }
};

// Kernels that this processor can run, the best one first.
std::vector<const MatrixKernel*> matrix_kernels();

// The best one; `may_round`: also of those that round.
const MatrixKernel& matrix_kernel(bool may_round);

}  // namespace sdrt
