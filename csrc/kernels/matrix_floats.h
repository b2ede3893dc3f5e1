// Products and attention in float32, for an instruction set whose matrix_body.h comes before.

namespace sdrt {
namespace SDRT_SET {

constexpr int64_t kDepth = 256;  // of a panel that is gone through while it is in the nearest cache

// c [R, two vectors] (+)= a [R, depth] times b [depth, two vectors]. Turned: a is [depth, R].
template <int R, bool Turned>
static inline void tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                        float* c, int64_t ldc, bool more) {
    Floats left[R], right[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        left[r] = more ? load(c + r * ldc) : Floats{};
        right[r] = more ? load(c + r * ldc + kLanes) : Floats{};
    }
    for (int64_t k = 0; k < depth; ++k) {
        const Floats b0 = load(b + k * ldb), b1 = load(b + k * ldb + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const float x = Turned ? a[k * lda + r] : a[r * lda + k];
            left[r] += b0 * x;
            right[r] += b1 * x;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        store(c + r * ldc, left[r]);
        store(c + r * ldc + kLanes, right[r]);
    }
}

// The same for up to SDRT_ROWS rows.
template <int R, bool Turned>
static void few_rows(int rows, const float* a, int64_t lda, const float* b, int64_t ldb,
                     int64_t depth, float* c, int64_t ldc, bool more) {
    if constexpr (R > 1) {
        if (rows < R) return few_rows<R - 1, Turned>(rows, a, lda, b, ldb, depth, c, ldc, more);
    }
    tile<R, Turned>(a, lda, b, ldb, depth, c, ldc, more);
}

// The same for any number of rows. With every group of them `some` of what comes next is fetched.
template <bool Turned>
static void tiles(int rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                  float* c, int64_t ldc, bool more, const float* next = nullptr, int64_t some = 0) {
    for (int r = 0; r < rows; r += SDRT_ROWS, a += Turned ? SDRT_ROWS : SDRT_ROWS * lda) {
        if (next != nullptr) fetch(next + r / SDRT_ROWS * some, some);
        const int few = rows - r < SDRT_ROWS ? rows - r : SDRT_ROWS;
        few_rows<SDRT_ROWS, Turned>(few, a, lda, b, ldb, depth, c + r * ldc, ldc, more);
    }
}

static size_t panel_bytes(int64_t depth) {
    return depth * kColumns * sizeof(float);
}

static size_t scratch_bytes(int64_t) {
    return kMostRows * kColumns * sizeof(float);
}

static void pack_transposed(const float* const* rows, int count, int64_t depth, char* panel) {
    auto* out = reinterpret_cast<float*>(panel);
    for (int64_t k = 0; k < depth; ++k) {
        for (int j = 0; j < kColumns; ++j) out[k * kColumns + j] = j < count ? rows[j][k] : 0.0f;
    }
}

[[maybe_unused]] static void pack(const float* const* rows, int64_t begin, int64_t end, int count,
                                  int64_t, char* panel) {
    auto* out = reinterpret_cast<float*>(panel);
    for (int64_t k = begin; k < end; ++k) {
        for (int j = 0; j < kColumns; ++j) out[k * kColumns + j] = j < count ? rows[k][j] : 0.0f;
    }
}

static void product(const float* a, int64_t lda, int rows, int64_t depth, const char* panels,
                    int64_t columns, const Finish* finish, float* c, int64_t ldc, char* scratch) {
    auto* partial = reinterpret_cast<float*>(scratch);
    for (int64_t first = 0; first < columns; first += kColumns) {
        const auto* b = reinterpret_cast<const float*>(panels) + first * depth;
        const int64_t count = columns - first < kColumns ? columns - first : kColumns;
        const bool direct = finish == nullptr && count == kColumns;
        float* to = direct ? c + first : partial;
        const int64_t ld = direct ? ldc : kColumns;
        for (int64_t k = 0; k < depth; k += kDepth) {
            const int64_t some = depth - k < kDepth ? depth - k : kDepth;
            const int groups = (rows + SDRT_ROWS - 1) / SDRT_ROWS;
            const int64_t left = (columns - first) * depth - k * kColumns - some * kColumns;
            const float* const next = left >= some * kColumns ? b + (k + some) * kColumns : nullptr;
            tiles<false>(rows, a + k, lda, b + k * kColumns, kColumns, some, to, ld, k > 0, next,
                         some * kColumns / groups);
        }
        if (!direct)
            finish_columns(partial, rows, first, count, finish ? *finish : Finish{}, c, ldc);
    }
}

[[maybe_unused]] static void exponentials(float* x, int64_t ldx, int rows, int64_t count,
                                          int64_t padded, float* scale) {
    constexpr float kLog2E = 1.44269504f;
    for (int r = 0; r < rows; ++r) {
        float* row = x + r * ldx;
        for (int64_t j = count; j < padded; ++j) row[j] = -__builtin_inff();
        Floats most = load(row), sum = {};
        for (int64_t j = kLanes; j < padded; j += kLanes) most = larger(load(row + j), most);
        float largest = most[0];
        for (int i = 1; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
        const float start = largest * kLog2E;
        for (int64_t j = 0; j < padded; j += kLanes) {
            const Floats e = power_of_two(load(row + j) * kLog2E - start);
            store(row + j, e);
            sum += e;
        }
        float total = 0;
        for (int i = 0; i < kLanes; ++i) total += sum[i];
        scale[r] = 1.0f / total;
    }
}

constexpr int kKeys = 96;  // whose weights stay in the nearest cache

static size_t attend_bytes(int64_t size) {
    const int64_t padded = (size + kColumns - 1) / kColumns * kColumns;
    return (size + 2 * kKeys + padded) * kColumns * sizeof(float);
}

// Scores of `count` keys become their weights, exp(score - most so far); what was summed up to now
// is to be multiplied by the result's factors. A lane is a query: none needs another.
static void weigh(float* scores, int64_t count, Floats* most, Floats* sum, float* factors) {
    constexpr float kLog2E = 1.44269504f;
    for (int side = 0; side < 2; ++side) {
        float* const p = scores + side * kLanes;
        Floats a = most[side], b = a, c = a, d = a;
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) {
            a = larger(load(p + j * kColumns), a);
            b = larger(load(p + (j + 1) * kColumns), b);
            c = larger(load(p + (j + 2) * kColumns), c);
            d = larger(load(p + (j + 3) * kColumns), d);
        }
        for (; j < count; ++j) a = larger(load(p + j * kColumns), a);
        a = larger(larger(a, b), larger(c, d));
        const Floats factor = power_of_two((most[side] - a) * kLog2E), start = a * kLog2E;
        Floats total = sum[side] * factor;
        for (j = 0; j < count; ++j) {
            const Floats e = power_of_two(load(p + j * kColumns) * kLog2E - start);
            store(p + j * kColumns, e);
            total += e;
        }
        store(factors + side * kLanes, factor);
        most[side] = a;
        sum[side] = total;
    }
}

// At most kColumns queries.
static void attend_few(const float* q, int rows, int64_t size, const float* k, const float* v,
                       const Run* runs, int64_t count, float* out, int64_t ldo, float* scratch) {
    const int64_t padded = (size + kColumns - 1) / kColumns * kColumns;
    float* const turned = scratch;  // [size, kColumns]
    float* const weights = turned + size * kColumns;
    float* const edge = weights + kKeys * kColumns;  // values of a last, narrow group of columns
    float* const sums = edge + kKeys * kColumns;     // [kColumns, padded]
    for (int64_t i = 0; i < size; ++i) {
        for (int j = 0; j < kColumns; ++j) {
            turned[i * kColumns + j] = j < rows ? q[j * size + i] : 0.0f;
        }
    }
    Floats most[2] = {Floats{} - __builtin_inff(), Floats{} - __builtin_inff()}, sum[2] = {};
    float factors[kColumns];
    bool more = false;
    for (int64_t n = 0; n < count; ++n) {
        for (int64_t begin = runs[n].begin; begin < runs[n].end; begin += kKeys, more = true) {
            const int64_t left = runs[n].end - begin;
            const int some = static_cast<int>(left < kKeys ? left : kKeys);
            const bool follows = begin + 2 * kKeys <= runs[n].end;
            const int64_t after = (begin + kKeys) * size;
            tiles<false>(some, k + begin * size, size, turned, kColumns, size, weights, kColumns,
                         false, follows ? k + after : nullptr, SDRT_ROWS * size);
            weigh(weights, some, most, sum, factors);
            for (int r = 0; more && r < rows; ++r) {
                for (int64_t i = 0; i < padded; i += kLanes) {
                    store(sums + r * padded + i, load(sums + r * padded + i) * factors[r]);
                }
            }
            for (int64_t first = 0; first < size; first += kColumns) {
                const float* b = v + begin * size + first;
                int64_t ldb = size;
                if (size - first < kColumns) {
                    for (int j = 0; j < some; ++j) {
                        for (int64_t i = 0; i < kColumns; ++i) {
                            edge[j * kColumns + i] = first + i < size ? b[j * size + i] : 0.0f;
                        }
                    }
                    b = edge;
                    ldb = kColumns;
                }
                const int64_t groups = (rows + SDRT_ROWS - 1) / SDRT_ROWS;
                tiles<true>(rows, weights, kColumns, b, ldb, some, sums + first, padded, more,
                            follows && first == 0 ? v + after : nullptr, kKeys * size / groups);
            }
        }
    }
    store(factors, 1.0f / sum[0]);
    store(factors + kLanes, 1.0f / sum[1]);
    for (int r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < size; ++i) out[r * ldo + i] = sums[r * padded + i] * factors[r];
    }
}

static void attend(const float* q, int rows, int64_t size, const float* k, const float* v,
                   const Run* runs, int64_t count, float* out, int64_t ldo, char* scratch) {
    for (int r = 0; r < rows; r += kColumns) {
        attend_few(q + r * size, rows - r < kColumns ? rows - r : kColumns, size, k, v, runs, count,
                   out + r * ldo, ldo, reinterpret_cast<float*>(scratch));
    }
}

}  // namespace SDRT_SET
}  // namespace sdrt
