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
#include "kernels/matrix_floats.h"
#undef SDRT_SET
#undef SDRT_LANES
#undef SDRT_ROWS

#if defined(SDRT_X86_SETS)
#define SDRT_LANES 8
#define SDRT_ROWS 6
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SDRT_SET avx2
#include "kernels/matrix_body.h"
#include "kernels/matrix_floats.h"
#undef SDRT_SET
#pragma GCC pop_options

#if __GNUC__ >= 12
#define SDRT_AVXVNNI
#pragma GCC push_options
#pragma GCC target("avx2,fma,avxvnni")
#define SDRT_SET avxvnni
#define SDRT_DOT __builtin_ia32_vpdpwssd_v8si
#include "kernels/matrix_body.h"
#include "kernels/matrix_words.h"
#undef SDRT_SET
#undef SDRT_DOT
#pragma GCC pop_options
#endif
#undef SDRT_LANES
#undef SDRT_ROWS

#define SDRT_LANES 16
#define SDRT_ROWS 12
#pragma GCC push_options
#pragma GCC target("avx512f,prefer-vector-width=512")
#define SDRT_SET avx512
#include "kernels/matrix_body.h"
#include "kernels/matrix_floats.h"
#undef SDRT_SET
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vnni,prefer-vector-width=512")
#define SDRT_SET avx512vnni
#define SDRT_DOT __builtin_ia32_vpdpwssd_v16si
#include "kernels/matrix_body.h"
#include "kernels/matrix_words.h"
#undef SDRT_SET
#undef SDRT_DOT
#pragma GCC pop_options
#undef SDRT_LANES
#undef SDRT_ROWS
#endif

namespace sdrt {

// A kernel called `name` that is made of what stands in namespace `set`, attention aside.
#define SDRT_KERNEL(set)                      \
    {.name = #set,                            \
     .rounds = false,                         \
     .columns = set::kColumns,                \
     .most_rows = kMostRows,                  \
     .panel_bytes = set::panel_bytes,         \
     .scratch_bytes = set::scratch_bytes,     \
     .pack_transposed = set::pack_transposed, \
     .product = set::product,                 \
     .by_runs = nullptr,                      \
     .by_blocks = nullptr,                    \
     .by_panels = nullptr,                    \
     .modulate = set::modulate,               \
     .split_heads = set::split_heads}

template <typename Way>
static constexpr MatrixKernel with(MatrixKernel kernel, const Way* MatrixKernel::* place,
                                   const Way& way) {
    kernel.*place = &way;
    kernel.rounds = kernel.by_blocks != nullptr;
    return kernel;
}

#define SDRT_FLOATS(set)                                                   \
    static constexpr ByRuns runs_##set = {set::attend_bytes, set::attend}; \
    static constexpr MatrixKernel k_##set =                                \
        with(SDRT_KERNEL(set), &MatrixKernel::by_runs, runs_##set)

#define SDRT_WORDS(set)                                                               \
    static constexpr ByBlocks blocks_##set = {set::block_bytes, set::pack_block,      \
                                              set::attend_bytes, set::attend_blocks}; \
    static constexpr MatrixKernel k_##set =                                           \
        with(SDRT_KERNEL(set), &MatrixKernel::by_blocks, blocks_##set)

SDRT_FLOATS(portable);
#if defined(SDRT_X86_SETS)
SDRT_FLOATS(avx2);
SDRT_FLOATS(avx512);
SDRT_WORDS(avx512vnni);
#if defined(SDRT_AVXVNNI)
SDRT_WORDS(avxvnni);
#endif

static void amx_product(const float* a, int64_t lda, int rows, int64_t depth, const char* panels,
                        int64_t columns, const Finish* finish, float* c, int64_t ldc,
                        char* scratch) {
    amx::product(a, lda, rows, depth, panels, columns, avx512::finish_columns, finish, c, ldc,
                 scratch);
}

static_assert(avx512::kColumns == amx::kColumns);
static constexpr ByPanels panels_amx = {amx::pack, avx512::exponentials};
static constexpr MatrixKernel k_amx = {.name = "amx",
                                       .rounds = false,
                                       .columns = amx::kColumns,
                                       .most_rows = kTileRows,
                                       .panel_bytes = amx::panel_bytes,
                                       .scratch_bytes = amx::scratch_bytes,
                                       .pack_transposed = amx::pack_transposed,
                                       .product = amx_product,
                                       .by_runs = nullptr,
                                       .by_blocks = nullptr,
                                       .by_panels = &panels_amx,
                                       .modulate = avx512::modulate,
                                       .split_heads = avx512::split_heads};
#endif

// Attention as `amx` does it, on any processor: for tests.
static constexpr ByPanels panels_portable = {portable::pack, portable::exponentials};
static constexpr MatrixKernel k_panels = [] {
    MatrixKernel kernel = with(SDRT_KERNEL(portable), &MatrixKernel::by_panels, panels_portable);
    kernel.name = "panels";
    kernel.most_rows = kTileRows;
    return kernel;
}();

std::vector<const MatrixKernel*> matrix_kernels() {
    std::vector<const MatrixKernel*> found;
#if defined(SDRT_X86_SETS)
    __builtin_cpu_init();
    if (amx::present()) found.push_back(&k_amx);
    const bool avx512 = __builtin_cpu_supports("avx512f");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(&k_avx512vnni);
#if defined(SDRT_AVXVNNI)
    if (avx2 && __builtin_cpu_supports("avxvnni")) found.push_back(&k_avxvnni);
#endif
    if (avx512) found.push_back(&k_avx512);
    if (avx2) found.push_back(&k_avx2);
#endif
    found.push_back(&k_portable);
    found.push_back(&k_panels);
    return found;
}

const MatrixKernel& matrix_kernel(bool may_round) {
    for (const MatrixKernel* kernel : matrix_kernels()) {
        if (may_round || !kernel->rounds) return *kernel;
    }
    return k_portable;
}

}  // namespace sdrt
