// Products of float32 matrices, softmax and GELU on the processor: what a DiT block spends its time
// in. Written once per instruction set, chosen once per process (matrix.cpp).
//
// The right-hand side of a product is packed into panels of a few columns first. `vector` kernels
// multiply in float32. The `amx` kernel writes every factor as the sum of two bfloat16 and adds
// three products of them in float32 (the fourth is below what is kept): about 16 bits of each
// factor, against 24 of float32, at several times the speed.
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

struct MatrixKernel {
    const char* name;
    int columns;    // of a panel; a multiple of 8
    int most_rows;  // of a left-hand side

    // Bytes of a panel, and of the scratch memory that a product needs.
    size_t (*panel_bytes)(int64_t depth);
    size_t (*scratch_bytes)(int64_t depth);

    // One panel of the matrix whose column j is `rows[j]` [depth]; missing columns are zero.
    void (*pack_transposed)(const float* const* rows, int count, int64_t depth, char* panel);

    // Rows [begin, end) of one panel; begin is a multiple of 32. Row k is `rows[k]`, of which
    // the first `count` columns exist; what is missing is zero, also below the last row.
    void (*pack)(const float* const* rows, int64_t begin, int64_t end, int count, int64_t depth,
                 char* panel);

    // c [rows, columns] = a [rows, depth] times the panels, then what `finish` says; null: nothing.
    // rows <= most_rows.
    void (*product)(const float* a, int64_t lda, int rows, int64_t depth, const char* panels,
                    int64_t columns, const Finish* finish, float* c, int64_t ldc, char* scratch);

    // Every row of x [rows, padded] becomes exp(x - max) over its first `count` values, and nothing
    // that counts beyond; `scale[row]` one over the sum. `padded` is a multiple of `columns`.
    void (*exponentials)(float* x, int64_t ldx, int rows, int64_t count, int64_t padded,
                         float* scale);

    // out [rows, size] = softmax(q k^T) v over the keys of `runs`, for q [rows, size] and k and v
    // [keys, size] as they are. Null: the kernel wants them packed.
    void (*attend)(const float* q, int rows, int64_t size, const float* k, const float* v,
                   const Run* runs, int64_t count, float* out, int64_t ldo, char* scratch);
    size_t (*attend_bytes)(int64_t size);

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

}  // namespace sdrt
