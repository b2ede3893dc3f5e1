#include "kernels/matrix_amx.h"

#if defined(SDRT_X86_SETS)

// GCC 12 takes the undefined operands inside its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SDRT_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))

namespace sdrt::amx {
namespace {

// A register holds 16 rows of 64 bytes. For every 32 of the depth a panel has four of them, 16
// columns each: upper parts, upper, lower, lower. Row p holds the pairs (2p, 2p+1) of the depth. A
// left-hand side is laid out alike, with 16 rows of 32 values.
constexpr int kDepth = 32;
constexpr int kTile = 1024;
constexpr int kQuad = 4 * kTile;

int64_t quads(int64_t depth) {
    return (depth + kDepth - 1) / kDepth;
}

struct Halves {
    __m512i upper, lower;  // bfloat16 of 32 values, in order
};

SDRT_AMX inline __m256i low(__m512i v) {
    return _mm512_castsi512_si256(v);
}

SDRT_AMX inline __m256i high(__m512i v) {
    return _mm512_extracti64x4_epi64(v, 1);
}

// 16 pairs: of each the first comes from `first`.
SDRT_AMX inline __m512i pairs(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

SDRT_AMX inline __m512 floats_of(__m256i bfloats) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloats), 16));
}

// 32 values from p, of which `count` exist, each as a sum of two bfloat16.
SDRT_AMX inline Halves split(const float* p, int64_t count) {
    const uint32_t here = count >= 32 ? ~0u : (1u << count) - 1;
    const __m512 a = _mm512_maskz_loadu_ps(static_cast<__mmask16>(here), p);
    const __m512 b = _mm512_maskz_loadu_ps(static_cast<__mmask16>(here >> 16), p + 16);
    const auto upper = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512 rest_a = _mm512_sub_ps(a, floats_of(low(upper)));
    const __m512 rest_b = _mm512_sub_ps(b, floats_of(high(upper)));
    return {upper, (__m512i)_mm512_cvtne2ps_pbh(rest_b, rest_a)};
}

struct alignas(64) Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The 32 x 32 sums of registers 0 to 3: upper times upper, upper times lower, lower times upper.
SDRT_AMX inline void multiply(const char* a, const char* b, int64_t count) {
    for (int64_t i = 0; i < count; ++i, a += kQuad, b += kQuad) {
        _tile_loadd(4, a, 64);
        _tile_loadd(5, a + kTile, 64);
        _tile_loadd(6, b + 2 * kTile, 64);
        _tile_loadd(7, b + 3 * kTile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + kTile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, a + 2 * kTile, 64);
        _tile_loadd(5, a + 3 * kTile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// Registers 0 to 3 to c [32, 32].
SDRT_AMX inline void store(float* c, int64_t ldc) {
    _tile_stored(0, c, ldc * 4);
    _tile_stored(1, c + 16, ldc * 4);
    _tile_stored(2, c + 16 * ldc, ldc * 4);
    _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
}

SDRT_AMX inline void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// The left-hand side in the layout above, at `out`.
SDRT_AMX void arrange(const float* a, int64_t lda, int rows, int64_t depth, char* out) {
    for (int64_t k = 0; k < depth; k += kDepth, out += kQuad) {
        for (int r = 0; r < kTileRows; ++r) {
            const Halves v = r < rows ? split(a + r * lda + k, depth - k) : Halves{};
            _mm512_store_si512(out + r * 64, v.upper);
            _mm512_store_si512(out + 2 * kTile + r * 64, v.lower);
        }
    }
}

}  // namespace

bool present() {
    // CPUID leaf 7: AMX-BF16 and AMX-TILE are bits 22 and 24 of EDX; leaf 7.1: AVX512-BF16 is bit 5
    // of EAX. Linux lets a process use tile data (component 18) after arch_prctl(0x1023).
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl")) return false;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    if ((d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a >> 5 & 1) == 0) return false;
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

size_t panel_bytes(int64_t depth) {
    return quads(depth) * kQuad;
}

size_t scratch_bytes(int64_t depth) {
    return panel_bytes(depth) + 2 * kTileRows * kColumns * sizeof(float);
}

SDRT_AMX void pack_transposed(const float* const* rows, int count, int64_t depth, char* panel) {
    const __m512i places =
        _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                           _mm512_set1_epi32(64));
    for (int64_t k = 0; k < depth; k += kDepth, panel += kQuad) {
        for (int j = 0; j < kColumns; ++j) {
            const Halves v = j < count ? split(rows[j] + k, depth - k) : Halves{};
            char* to = panel + j / 16 * kTile + j % 16 * 4;
            _mm512_i32scatter_epi32(to, places, v.upper, 1);
            _mm512_i32scatter_epi32(to + 2 * kTile, places, v.lower, 1);
        }
    }
}

SDRT_AMX void pack(const float* const* rows, int64_t begin, int64_t end, int count, int64_t,
                   char* panel) {
    // The pairs of a register's row come from two rows.
    const int64_t stop = quads(end) * kDepth;
    for (int64_t k = begin; k < stop; k += 2) {
        const Halves a = k < end ? split(rows[k], count) : Halves{};
        const Halves b = k + 1 < end ? split(rows[k + 1], count) : Halves{};
        char* to = panel + k / kDepth * kQuad + k % kDepth / 2 * 64;
        _mm512_store_si512(to, pairs(low(a.upper), low(b.upper)));
        _mm512_store_si512(to + kTile, pairs(high(a.upper), high(b.upper)));
        _mm512_store_si512(to + 2 * kTile, pairs(low(a.lower), low(b.lower)));
        _mm512_store_si512(to + 3 * kTile, pairs(high(a.lower), high(b.lower)));
    }
}

SDRT_AMX void product(const float* a, int64_t lda, int rows, int64_t depth, const char* b,
                      int64_t columns, FinishColumns finish_columns, const Finish* finish, float* c,
                      int64_t ldc, char* scratch) {
    const Config config;
    _tile_loadconfig(&config);
    arrange(a, lda, rows, depth, scratch);
    const int64_t panels = (columns + kColumns - 1) / kColumns;
    float* sums[2];
    sums[0] = reinterpret_cast<float*>(scratch + panel_bytes(depth));
    sums[1] = sums[0] + kTileRows * kColumns;
    // What was stored from a register takes long to be read back: a panel is finished after the
    // next one.
    const auto end = [&](int64_t panel) {
        const int64_t first = panel * kColumns;
        const int64_t count = columns - first < kColumns ? columns - first : kColumns;
        finish_columns(sums[panel % 2], rows, first, count, finish != nullptr ? *finish : Finish{},
                       c, ldc);
    };
    const bool direct = finish == nullptr && columns % kColumns == 0 && rows == kTileRows;
    for (int64_t panel = 0; panel < panels; ++panel) {
        clear();
        multiply(scratch, b + panel * panel_bytes(depth), quads(depth));
        direct ? store(c + panel * kColumns, ldc) : store(sums[panel % 2], kColumns);
        if (!direct && panel > 0) end(panel - 1);
    }
    if (!direct) end(panels - 1);
    _tile_release();
}

}  // namespace sdrt::amx
#endif
