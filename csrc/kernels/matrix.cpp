#include "kernels/matrix.h"

#include "kernels/matrix_amx.h"

// A multiplication and the addition after it are one instruction where there is one: half of the
// work, and nothing here has to round as a GPU does.
#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define SDRT_SET portable
#define SDRT_LANES 4
#if defined(__aarch64__)
#define SDRT_ROWS 8
#else
#define SDRT_ROWS 4
#endif
#include "kernels/matrix_body.h"
#undef SDRT_SET
#undef SDRT_LANES
#undef SDRT_ROWS

#if defined(SDRT_X86_SETS)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SDRT_SET avx2
#define SDRT_LANES 8
#define SDRT_ROWS 6
#include "kernels/matrix_body.h"
#undef SDRT_SET
#undef SDRT_LANES
#undef SDRT_ROWS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,prefer-vector-width=512")
#define SDRT_SET avx512
#define SDRT_LANES 16
#define SDRT_ROWS 12
#include "kernels/matrix_body.h"
#undef SDRT_SET
#undef SDRT_LANES
#undef SDRT_ROWS
#pragma GCC pop_options
#endif

namespace sdrt {

#define SDRT_KERNEL(set)                                       \
    static const MatrixKernel k_##set = {#set,                 \
                                         set::kColumns,        \
                                         kMostRows,            \
                                         set::panel_bytes,     \
                                         set::scratch_bytes,   \
                                         set::pack_transposed, \
                                         set::pack,            \
                                         set::product,         \
                                         set::exponentials,    \
                                         set::attend,          \
                                         set::attend_bytes,    \
                                         set::modulate,        \
                                         set::split_heads}

SDRT_KERNEL(portable);
#if defined(SDRT_X86_SETS)
SDRT_KERNEL(avx2);
SDRT_KERNEL(avx512);

static void amx_product(const float* a, int64_t lda, int rows, int64_t depth, const char* panels,
                        int64_t columns, const Finish* finish, float* c, int64_t ldc,
                        char* scratch) {
    amx::product(a, lda, rows, depth, panels, columns, avx512::finish_columns, finish, c, ldc,
                 scratch);
}

static_assert(avx512::kColumns == amx::kColumns);
static const MatrixKernel k_amx = {"amx",
                                   amx::kColumns,
                                   kTileRows,
                                   amx::panel_bytes,
                                   amx::scratch_bytes,
                                   amx::pack_transposed,
                                   amx::pack,
                                   amx_product,
                                   avx512::exponentials,
                                   nullptr,
                                   nullptr,
                                   avx512::modulate,
                                   avx512::split_heads};
#endif

// Attention over packed keys, as `amx` has it, on any processor: for tests.
static const MatrixKernel k_packed = [] {
    MatrixKernel kernel = k_portable;
    kernel.name = "packed";
    kernel.most_rows = kTileRows;
    kernel.attend = nullptr;
    return kernel;
}();

std::vector<const MatrixKernel*> matrix_kernels() {
    std::vector<const MatrixKernel*> found;
#if defined(SDRT_X86_SETS)
    __builtin_cpu_init();
    if (amx::present()) found.push_back(&k_amx);
    if (__builtin_cpu_supports("avx512f")) found.push_back(&k_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&k_avx2);
#endif
    found.push_back(&k_portable);
    found.push_back(&k_packed);
    return found;
}

}  // namespace sdrt
