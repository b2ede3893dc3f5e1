// The products of matrix.h by AMX, for processors that have it. Only matrix.cpp calls these.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matrix.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define SDRT_X86_SETS

namespace sdrt::amx {

constexpr int kColumns = 32;

using FinishColumns = void (*)(const float* from, int rows, int64_t first, int64_t count,
                               const Finish& finish, float* c, int64_t ldc);

// Whether processor and kernel offer it; asks the kernel for its registers, once per process.
bool present();

size_t panel_bytes(int64_t depth);
size_t scratch_bytes(int64_t depth);
void pack_transposed(const float* const* rows, int count, int64_t depth, char* panel);
void pack(const float* const* rows, int64_t begin, int64_t end, int count, int64_t depth,
          char* panel);
void product(const float* a, int64_t lda, int rows, int64_t depth, const char* panels,
             int64_t columns, FinishColumns finish_columns, const Finish* finish, float* c,
             int64_t ldc, char* scratch);

}  // namespace sdrt::amx
#endif
