// Products and attention in whole numbers of 16 bits, summed in 32, for an instruction set whose
// matrix_body.h comes before and which has
// SDRT_DOT(sum, a, b)    sum + the two products of 16-bit halves, in every lane of 32 bits
//
// Every row of a factor is multiplied by a scale of its own and rounded, so that no product of two
// rows can leave 32 bits: the sum of their products is at most the product of their lengths.

namespace sdrt {
namespace SDRT_SET {

constexpr float kLength = 46000.0f;  // of a row: squared, and rounding added, below 2^31
constexpr float kWord = 32767.0f;    // most of a value
constexpr float kMagic = 12582912.0f;
constexpr int64_t kDepth = 64;  // that has a scale of its own
constexpr int kKeys = kBlockKeys;

typedef int16_t Halves __attribute__((vector_size(2 * SDRT_LANES), aligned(2), may_alias));
typedef Words LooseWords __attribute__((aligned(4), may_alias));

static inline Words load_words(const int32_t* p) {
    return *reinterpret_cast<const LooseWords*>(p);
}

static inline void store_words(int32_t* p, Words v) {
    *reinterpret_cast<LooseWords*>(p) = v;
}

static inline Floats floats_of(Words v) {
    return __builtin_convertvector(v, Floats);
}

// The nearest whole number is in the lower 16 bits of what this returns.
static inline Words rounded(Floats x) {
    return reinterpret_cast<Words>(x + kMagic);
}

static inline Words paired(Floats first, Floats second) {
    return (rounded(first) & 0xffff) | (rounded(second) << 16);
}

static inline int32_t paired_scalars(float first, float second) {
    const float a = first + kMagic, b = second + kMagic;
    int32_t low, high;
    __builtin_memcpy(&low, &a, 4);
    __builtin_memcpy(&high, &b, 4);
    return (low & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(high) << 16);
}

// What values are multiplied by whose squares add up to `square`, the largest of them `most`.
static inline float scale_of(float square, float most) {
    const float by_length = kLength / __builtin_sqrtf(square), by_value = kWord / most;
    const float scale = by_length < by_value ? by_length : by_value;
    return most > 0 && scale < 1e30f ? scale : 1e30f;
}

static int64_t pairs_of(int64_t n) {
    return (n + 1) / 2;
}

static inline Floats size_of(Floats x) {
    return larger(x, -x);
}

static inline float largest_of(Floats v) {
    float most = v[0];
    for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
    return most;
}

// x [n] in pairs; returns one over their scale.
static float to_pairs(const float* x, int64_t n, int32_t* out) {
    Floats squares = {}, sizes = {};
    const int64_t whole = n - n % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Floats v = load(x + i);
        squares += v * v;
        sizes = larger(size_of(v), sizes);
    }
    float square = total_of(squares), most = largest_of(sizes);
    for (int64_t i = whole; i < n; ++i) {
        square += x[i] * x[i];
        most = x[i] > most ? x[i] : -x[i] > most ? -x[i] : most;
    }
    const float scale = scale_of(square, most);
    auto* const words = reinterpret_cast<int16_t*>(out);
    for (int64_t i = 0; i < whole; i += kLanes) {
        *reinterpret_cast<Halves*>(words + i) =
            __builtin_convertvector(rounded(load(x + i) * scale), Halves);
    }
    for (int64_t i = whole; i < n; ++i) {
        words[i] = static_cast<int16_t>(paired_scalars(x[i] * scale, 0.0f));
    }
    if (n % 2 != 0) words[n] = 0;
    return 1.0f / scale;
}

// c [R, two vectors] = keep times c, plus by_row times by_column times the products of a [R, pairs]
// (turned: [pairs, R]) and b [pairs, two vectors]. Without `keep` c is new.
template <int R, bool Turned>
static inline void tile(const int32_t* a, int64_t lda, const int32_t* b, int64_t ldb, int64_t pairs,
                        const float* by_row, const float* by_column, const float* keep, float* c,
                        int64_t ldc) {
    Words left[R] = {}, right[R] = {};
    for (int64_t k = 0; k < pairs; ++k) {
        const Words b0 = load_words(b + k * ldb), b1 = load_words(b + k * ldb + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Words x = Words{} + (Turned ? a[k * lda + r] : a[r * lda + k]);
            left[r] = SDRT_DOT(left[r], x, b0);
            right[r] = SDRT_DOT(right[r], x, b1);
        }
    }
    const Floats by0 = load(by_column), by1 = load(by_column + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        Floats v0 = floats_of(left[r]) * (by0 * by_row[r]);
        Floats v1 = floats_of(right[r]) * (by1 * by_row[r]);
        if (keep != nullptr) {
            // Of two products in a sum the compiler may round either; here always these two, or a
            // row would depend on how many rows are beside it.
            asm("" : "+v"(v0), "+v"(v1));
            v0 += load(c + r * ldc) * keep[r];
            v1 += load(c + r * ldc + kLanes) * keep[r];
        }
        store(c + r * ldc, v0);
        store(c + r * ldc + kLanes, v1);
    }
}

// The same for up to SDRT_ROWS rows.
template <int R, bool Turned>
static void few_rows(int rows, const int32_t* a, int64_t lda, const int32_t* b, int64_t ldb,
                     int64_t pairs, const float* by_row, const float* by_column, const float* keep,
                     float* c, int64_t ldc) {
    if constexpr (R > 1) {
        if (rows < R) {
            return few_rows<R - 1, Turned>(rows, a, lda, b, ldb, pairs, by_row, by_column, keep, c,
                                           ldc);
        }
    }
    tile<R, Turned>(a, lda, b, ldb, pairs, by_row, by_column, keep, c, ldc);
}

// The same for any number of rows. With every group of them `some` of what comes next is fetched.
template <bool Turned>
static void tiles(int rows, const int32_t* a, int64_t lda, const int32_t* b, int64_t ldb,
                  int64_t pairs, const float* by_row, const float* by_column, const float* keep,
                  float* c, int64_t ldc, const float* next, int64_t some) {
    for (int r = 0; r < rows; r += SDRT_ROWS, a += Turned ? SDRT_ROWS : SDRT_ROWS * lda) {
        if (next != nullptr) fetch(next + r / SDRT_ROWS * some, some);
        const int few = rows - r < SDRT_ROWS ? rows - r : SDRT_ROWS;
        few_rows<SDRT_ROWS, Turned>(few, a, lda, b, ldb, pairs, by_row + r, by_column,
                                    keep == nullptr ? nullptr : keep + r, c + r * ldc, ldc);
    }
}

static int64_t parts_of(int64_t depth) {
    return (depth + kDepth - 1) / kDepth;
}

// A panel: of every part of the depth one over the scale of each column, then its pairs.
static size_t panel_bytes(int64_t depth) {
    return (parts_of(depth) + pairs_of(depth)) * kColumns * sizeof(float);
}

static size_t scratch_bytes(int64_t depth) {
    return kMostRows * (pairs_of(depth) + parts_of(depth) + kColumns + 1) * sizeof(float);
}

static void pack_transposed(const float* const* rows, int count, int64_t depth, char* panel) {
    auto* to = reinterpret_cast<int32_t*>(panel);
    for (int64_t begin = 0; begin < depth; begin += kDepth) {
        const int64_t some = depth - begin < kDepth ? depth - begin : kDepth;
        auto* const inverse = reinterpret_cast<float*>(to);
        int32_t* const pairs = to + kColumns;
        int32_t row[kDepth / 2];
        for (int j = 0; j < kColumns; ++j) {
            inverse[j] = j < count ? to_pairs(rows[j] + begin, some, row) : 0.0f;
            for (int64_t k = 0; k < pairs_of(some); ++k) {
                pairs[k * kColumns + j] = j < count ? row[k] : 0;
            }
        }
        to = pairs + pairs_of(some) * kColumns;
    }
}

static void product(const float* a, int64_t lda, int rows, int64_t depth, const char* panels,
                    int64_t columns, const Finish* finish, float* c, int64_t ldc, char* scratch) {
    const int64_t parts = parts_of(depth), pairs = pairs_of(depth);
    auto* const sums = reinterpret_cast<float*>(scratch);  // [rows, kColumns]
    float* const inverse = sums + kMostRows * kColumns;    // [parts, rows]
    float* const ones = inverse + kMostRows * parts;
    auto* const words = reinterpret_cast<int32_t*>(ones + kMostRows);  // [rows, pairs]
    for (int r = 0; r < rows; ++r) {
        ones[r] = 1.0f;
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t k = part * kDepth, some = depth - k < kDepth ? depth - k : kDepth;
            inverse[part * kMostRows + r] =
                to_pairs(a + r * lda + k, some, words + r * pairs + k / 2);
        }
    }
    const int64_t groups = (rows + SDRT_ROWS - 1) / SDRT_ROWS;
    const auto* from = reinterpret_cast<const int32_t*>(panels);
    for (int64_t first = 0; first < columns; first += kColumns) {
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t k = part * kDepth / 2,
                          some = pairs - k < kDepth / 2 ? pairs - k : kDepth / 2;
            const auto* const by = reinterpret_cast<const float*>(from);
            const int32_t* const b = from + kColumns;
            from = b + some * kColumns;
            const bool follows = first + kColumns < columns || part + 1 < parts;
            tiles<false>(rows, words + k, pairs, b, kColumns, some, inverse + part * kMostRows, by,
                         part > 0 ? ones : nullptr, sums, kColumns,
                         follows ? reinterpret_cast<const float*>(from) : nullptr,
                         some * kColumns / groups);
        }
        const int64_t count = columns - first < kColumns ? columns - first : kColumns;
        finish_columns(sums, rows, first, count, *finish, c, ldc);
    }
}

// Keys that are packed together, and their values: one over the scale of each key and of each
// column of values, the keys in pairs of their depth, the values in pairs of keys.
struct Block {
    float *key_inverse, *value_inverse;
    int32_t *keys, *values;
    int64_t pairs, padded;

    Block(char* memory, int64_t size)
        : pairs(pairs_of(size)), padded((size + kColumns - 1) / kColumns * kColumns) {
        key_inverse = reinterpret_cast<float*>(memory);
        value_inverse = key_inverse + kKeys;
        keys = reinterpret_cast<int32_t*>(value_inverse + padded);
        values = keys + kKeys * pairs;
    }
};

static size_t block_bytes(int64_t size) {
    const int64_t padded = (size + kColumns - 1) / kColumns * kColumns;
    return (kKeys + padded + kKeys * pairs_of(size) + kKeys / 2 * padded) * sizeof(float);
}

static void pack_block(const float* k, const float* v, const int64_t* keys, int count, int64_t size,
                       char* memory) {
    const Block block(memory, size);
    for (int i = 0; i < count; ++i) {
        block.key_inverse[i] = to_pairs(k + keys[i] * size, size, block.keys + i * block.pairs);
    }
    for (int64_t d = 0; d < block.padded; d += kLanes) {
        // What is beyond the last value is read as zero, lane by lane.
        const auto values = [&](int i) {
            const float* const from = v + keys[i] * size + d;
            if (d + kLanes <= size) return load(from);
            Floats some = {};
            for (int lane = 0; d + lane < size; ++lane) some[lane] = from[lane];
            return some;
        };
        Floats squares = {}, sizes = {}, scale;
        for (int i = 0; i < count; ++i) {
            const Floats x = values(i);
            squares += x * x;
            sizes = larger(size_of(x), sizes);
        }
        for (int lane = 0; lane < kLanes; ++lane)
            scale[lane] = scale_of(squares[lane], sizes[lane]);
        store(block.value_inverse + d, 1.0f / scale);
        for (int i = 0; i < count; i += 2) {
            const Floats other = i + 1 < count ? values(i + 1) * scale : Floats{};
            store_words(block.values + i / 2 * block.padded + d, paired(values(i) * scale, other));
        }
    }
}

static size_t attend_bytes(int64_t size) {
    const int64_t padded = (size + kColumns - 1) / kColumns * kColumns;
    return ((pairs_of(size) + kKeys + kKeys / 2 + padded) * kColumns + pairs_of(size)) *
           sizeof(float);
}

// Scores of `count` keys, to the base of 2, become their weights in pairs of keys. A lane is a
// query: none needs another. What was summed up to now is to be multiplied by `factors`, and what
// is summed of these weights by `by`.
static void weigh(float* scores, int64_t count, Floats* most, Floats* sum, int32_t* weights,
                  float* factors, float* by) {
    alignas(64) float square[kColumns], top[kColumns], scale[kColumns];
    for (int side = 0; side < 2; ++side) {
        float* const x = scores + side * kLanes;
        Floats a = load(x), b = a;
        int64_t j = 1;
        for (; j + 2 <= count; j += 2) {
            a = larger(load(x + j * kColumns), a);
            b = larger(load(x + (j + 1) * kColumns), b);
        }
        if (j < count) a = larger(load(x + j * kColumns), a);
        const Floats here = larger(a, b), start = larger(here, most[side]);
        const Floats factor = power_of_two(most[side] - start);
        Floats total = {}, squares = {};
        for (j = 0; j < count; ++j) {
            const Floats e = power_of_two(load(x + j * kColumns) - start);
            store(x + j * kColumns, e);
            total += e;
            squares += e * e;
        }
        sum[side] = sum[side] * factor + total;
        most[side] = start;
        store(factors + side * kLanes, factor);
        store(square + side * kLanes, squares);
        store(top + side * kLanes, power_of_two(here - start));
    }
    for (int i = 0; i < kColumns; ++i) {
        scale[i] = scale_of(square[i], top[i]);
        by[i] = 1.0f / scale[i];
    }
    for (int side = 0; side < 2; ++side) {
        const float* const e = scores + side * kLanes;
        const Floats times = load(scale + side * kLanes);
        for (int64_t j = 0; j < count; j += 2) {
            const Floats other = j + 1 < count ? load(e + (j + 1) * kColumns) * times : Floats{};
            store_words(weights + j / 2 * kColumns + side * kLanes,
                        paired(load(e + j * kColumns) * times, other));
        }
    }
}

// At most kColumns queries, to `count` keys in blocks.
static void attend_few(const float* q, int rows, int64_t size, const char* blocks, int64_t count,
                       float* out, int64_t ldo, int32_t* scratch) {
    constexpr float kLog2E = 1.44269504f;
    const int64_t pairs = pairs_of(size), padded = (size + kColumns - 1) / kColumns * kColumns;
    int32_t* const turned = scratch;                     // [pairs, kColumns]
    int32_t* const weights = turned + pairs * kColumns;  // [kKeys / 2, kColumns]
    int32_t* const row = weights + kKeys / 2 * kColumns;
    auto* const scores = reinterpret_cast<float*>(row + pairs);  // [kKeys, kColumns]
    float* const sums = scores + kKeys * kColumns;               // [kColumns, padded]
    alignas(64) float inverse[kColumns] = {}, factors[kColumns], by[kColumns];
    for (int j = 0; j < kColumns; ++j) {
        if (j < rows) inverse[j] = to_pairs(q + j * size, size, row) * kLog2E;
        for (int64_t i = 0; i < pairs; ++i) turned[i * kColumns + j] = j < rows ? row[i] : 0;
    }
    Floats most[2] = {Floats{} - __builtin_inff(), Floats{} - __builtin_inff()}, sum[2] = {};
    for (int64_t begin = 0; begin < count; begin += kKeys, blocks += block_bytes(size)) {
        const Block block(const_cast<char*>(blocks), size);
        const int some = static_cast<int>(count - begin < kKeys ? count - begin : kKeys);
        const auto* const next = reinterpret_cast<const float*>(blocks + block_bytes(size));
        tiles<false>(some, block.keys, pairs, turned, kColumns, pairs, block.key_inverse, inverse,
                     nullptr, scores, kColumns, begin + kKeys < count ? next : nullptr,
                     SDRT_ROWS * 2 * pairs);
        weigh(scores, some, most, sum, weights, factors, by);
        for (int64_t first = 0; first < size; first += kColumns) {
            tiles<true>(rows, weights, kColumns, block.values + first, padded, pairs_of(some), by,
                        block.value_inverse + first, begin > 0 ? factors : nullptr, sums + first,
                        padded, nullptr, 0);
        }
    }
    store(factors, 1.0f / sum[0]);
    store(factors + kLanes, 1.0f / sum[1]);
    for (int r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < size; ++i) out[r * ldo + i] = sums[r * padded + i] * factors[r];
    }
}

static void attend_blocks(const float* q, int rows, int64_t size, const char* blocks, int64_t count,
                          float* out, int64_t ldo, char* scratch) {
    for (int r = 0; r < rows; r += kColumns) {
        attend_few(q + r * size, rows - r < kColumns ? rows - r : kColumns, size, blocks, count,
                   out + r * ldo, ldo, reinterpret_cast<int32_t*>(scratch));
    }
}

}  // namespace SDRT_SET
}  // namespace sdrt
