// What the kernels of every instruction set share; matrix.cpp includes this file once for each, and
// then the one with its products, with
// SDRT_SET      the namespace
// SDRT_LANES    floats of a vector
// SDRT_ROWS     rows of the left-hand side whose sums are held in registers
// No header may be included here, and nothing called that another file could have compiled too: the
// linker might then keep the version that an older processor cannot run.

namespace sdrt {
namespace SDRT_SET {

constexpr int kLanes = SDRT_LANES;
constexpr int kColumns = 2 * kLanes;

typedef float Floats __attribute__((vector_size(4 * SDRT_LANES)));
typedef int32_t Words __attribute__((vector_size(4 * SDRT_LANES)));
typedef float Loose __attribute__((vector_size(4 * SDRT_LANES), aligned(4), may_alias));

static inline Floats load(const float* p) {
    return *reinterpret_cast<const Loose*>(p);
}

static inline void store(float* p, Floats v) {
    *reinterpret_cast<Loose*>(p) = v;
}

static inline Floats larger(Floats a, Floats b) {
    return a > b ? a : b;
}

// 2^x for x <= 0, relative error 1e-7, but 2^-126 below -126.
static inline Floats power_of_two(Floats x) {
    const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: its sum is rounded to an integer
    const Floats held = larger(x, Floats{} - 126.0f);
    const Floats shifted = held + magic;
    const Floats f = held - (shifted - magic);
    Floats p = f * 0.00132764725f + 0.00967554189f;
    p = p * f + 0.0555071309f;
    p = p * f + 0.240221202f;
    p = p * f + 0.693146944f;
    p = p * f + 1.00000012f;
    return reinterpret_cast<Floats>(reinterpret_cast<Words>(p) +
                                    (reinterpret_cast<Words>(shifted) << 23));
}

// What comes next, into the second cache: hardware stops at the end of a page.
static inline void fetch(const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i, 0, 2);
}

// x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3), in powers of two.
static inline Floats gelu_of(Floats x) {
    const Floats z = x * (2.30220818f + 0.102943240f * (x * x));
    const Floats e = power_of_two(z > 0.0f ? -z : z);
    return x * (z > 0.0f ? Floats{} + 1.0f : e) / (1.0f + e);
}

// Columns [first, first + count) of c from `from` [rows, kColumns].
static void finish_columns(const float* from, int rows, int64_t first, int64_t count,
                           const Finish& finish, float* c, int64_t ldc) {
    float wide[4][kColumns] = {};
    for (int64_t j = 0; j < count; ++j) {
        wide[0][j] = finish.bias != nullptr ? finish.bias[first + j] : 0.0f;
        wide[1][j] = finish.gate != nullptr ? finish.gate[first + j] : 1.0f;
    }
    for (int r = 0; r < rows; ++r) {
        float* to = c + r * ldc + first;
        const float* old = finish.residual != nullptr ? finish.residual + r * ldc + first : nullptr;
        const bool whole = count == kColumns;
        for (int64_t j = 0; old != nullptr && !whole && j < count; ++j) wide[2][j] = old[j];
        for (int j = 0; j < kColumns; j += kLanes) {
            Floats v = load(from + r * kColumns + j) + load(wide[0] + j);
            if (finish.gelu) v = gelu_of(v);
            if (finish.gate != nullptr) v *= load(wide[1] + j);
            if (old != nullptr) v += load((whole ? old : wide[2]) + j);
            store((whole ? to : wide[3]) + j, v);
        }
        for (int64_t j = 0; !whole && j < count; ++j) to[j] = wide[3][j];
    }
}

static inline float total_of(Floats v) {
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += v[i];
    return total;
}

static void modulate(const float* x, int rows, int64_t width, float eps, const float* scale,
                     const float* shift, float* y) {
    const int64_t whole = width - width % kLanes;
    for (int r = 0; r < rows; ++r, x += width, y += width) {
        Floats sums = {}, squares = {};
        float sum = 0, square = 0;
        for (int64_t j = 0; j < whole; j += kLanes) sums += load(x + j);
        for (int64_t j = whole; j < width; ++j) sum += x[j];
        const float mean = (total_of(sums) + sum) / static_cast<float>(width);
        for (int64_t j = 0; j < whole; j += kLanes) {
            const Floats d = load(x + j) - mean;
            squares += d * d;
        }
        for (int64_t j = whole; j < width; ++j) square += (x[j] - mean) * (x[j] - mean);
        const float variance = (total_of(squares) + square) / static_cast<float>(width);
        const float factor = 1.0f / __builtin_sqrtf(variance + eps);
        for (int64_t j = 0; j < whole; j += kLanes) {
            const Floats normal = (load(x + j) - mean) * factor;
            store(y + j, normal * (1.0f + load(scale + j)) + load(shift + j));
        }
        for (int64_t j = whole; j < width; ++j) {
            y[j] = (x[j] - mean) * factor * (1.0f + scale[j]) + shift[j];
        }
    }
}

static void split_heads(const float* x, int64_t heads, int64_t size, float eps, const float* weight,
                        const float* cosine, const float* sine, float factor, float* y,
                        int64_t stride) {
    const int64_t width = heads * size, whole = width - width % kLanes;
    Floats squares = {};
    float square = 0;
    for (int64_t j = 0; j < whole; j += kLanes) squares += load(x + j) * load(x + j);
    for (int64_t j = whole; j < width; ++j) square += x[j] * x[j];
    const float mean = (total_of(squares) + square) / static_cast<float>(width);
    factor /= __builtin_sqrtf(mean + eps);
    for (int64_t n = 0; n < heads; ++n, x += size, weight += size, y += stride) {
        if (cosine == nullptr) {
            for (int64_t i = 0; i < size; ++i) y[i] = x[i] * weight[i] * factor;
            continue;
        }
        for (int64_t p = 0; p < size / 2; ++p) {
            const float real = x[2 * p] * weight[2 * p] * factor;
            const float imaginary = x[2 * p + 1] * weight[2 * p + 1] * factor;
            y[2 * p] = real * cosine[p] - imaginary * sine[p];
            y[2 * p + 1] = real * sine[p] + imaginary * cosine[p];
        }
    }
}

}  // namespace SDRT_SET
}  // namespace sdrt
