#include "kernels/block.h"

#include "kernels/convert.h"

namespace sdrt {
namespace {

SDRT_CLONES void load_f32(const float* a, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = a[i];
}
SDRT_CLONES void load_f16(const F16* a, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = to_float(a[i]);
}
SDRT_CLONES void load_bf16(const Bf16* a, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = to_float(a[i]);
}
SDRT_CLONES void store_f32(const float* v, int64_t n, float* a) {
    for (int64_t i = 0; i < n; ++i) from_float(v[i], a[i]);
}
SDRT_CLONES void store_f16(const float* v, int64_t n, F16* a) {
    for (int64_t i = 0; i < n; ++i) from_float(v[i], a[i]);
}
SDRT_CLONES void store_bf16(const float* v, int64_t n, Bf16* a) {
    for (int64_t i = 0; i < n; ++i) from_float(v[i], a[i]);
}

void load_run(Dtype dtype, const char* p, int64_t n, float* out) {
    if (dtype == Dtype::f16) return load_f16(reinterpret_cast<const F16*>(p), n, out);
    if (dtype == Dtype::bf16) return load_bf16(reinterpret_cast<const Bf16*>(p), n, out);
    load_f32(reinterpret_cast<const float*>(p), n, out);
}

void store_run(const float* v, int64_t n, Dtype dtype, char* p) {
    if (dtype == Dtype::f16) return store_f16(v, n, reinterpret_cast<F16*>(p));
    if (dtype == Dtype::bf16) return store_bf16(v, n, reinterpret_cast<Bf16*>(p));
    store_f32(v, n, reinterpret_cast<float*>(p));
}

}  // namespace

void load_block(const Array& a, int64_t first, int64_t count, float* out) {
    if (a.contiguous()) {
        return load_run(a.dtype, static_cast<char*>(a.data) + first * size_of(a.dtype), count, out);
    }
    for (int64_t i = 0; i < count; ++i) load_run(a.dtype, a.at(first + i), 1, out + i);
}

void store_block(const float* values, int64_t first, int64_t count, const Array& a) {
    if (a.contiguous()) {
        char* p = static_cast<char*>(a.data) + first * size_of(a.dtype);
        return store_run(values, count, a.dtype, p);
    }
    for (int64_t i = 0; i < count; ++i) store_run(values + i, 1, a.dtype, a.at(first + i));
}

}  // namespace sdrt
