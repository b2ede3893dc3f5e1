#include "checks.h"
#include "kernels/attention.h"
#include "kernels/threads.h"
#include "ops.h"

namespace sdrt {
namespace {

const MatrixKernel& kernel_called(const std::string& name) {
    std::string known;
    for (const MatrixKernel* kernel : matrix_kernels()) {
        if (kernel->name == name) return *kernel;
        known += known.empty() ? kernel->name : std::string(", ") + kernel->name;
    }
    throw ArgumentError("kernel", "\"" + name + "\"", "one that this processor runs: " + known);
}

void check_floats(const char* name, const Array& a, std::initializer_list<int64_t> shape) {
    check_dtype(name, a, {Dtype::f32});
    check_shape(name, a, shape);
    check_contiguous(name, a);
    check_host(name, a);
    for (int i = 0; i < a.ndim; ++i) {
        check_range(name, static_cast<double>(a.shape[i]), 1, kLargest);
    }
}

float* floats(const Array& a) {
    return static_cast<float*>(a.data);
}

const float* floats(const Array* a) {
    return a == nullptr ? nullptr : floats(*a);
}

Loop loop_of(int threads) {
    return [threads](int64_t count, const std::function<void(int64_t)>& body) {
        parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) body(i);
        });
    };
}

}  // namespace

std::vector<std::string> matrix_kernel_names() {
    std::vector<std::string> names;
    for (const MatrixKernel* kernel : matrix_kernels()) names.emplace_back(kernel->name);
    return names;
}

void linear(const Array& x, const Array& weight, const Array& bias, const Array* residual,
            const Array* gate, bool gelu, const std::string& kernel, const Array& out,
            Where where) {
    check_threads(where.threads);
    const MatrixKernel& chosen = kernel_called(kernel);
    check_floats("x", x, {kAny, kAny, kAny});
    check_floats("weight", weight, {kAny, x.shape[2]});
    const int64_t outputs = weight.shape[0];
    check_floats("bias", bias, {outputs});
    if (residual != nullptr) check_floats("residual", *residual, {x.shape[0], x.shape[1], outputs});
    if (gate != nullptr) check_floats("gate", *gate, {x.shape[0], 1, outputs});
    check_floats("out", out, {x.shape[0], x.shape[1], outputs});
    check_writable("out", out);
    const Linear layer(chosen, floats(weight), floats(bias), outputs, x.shape[2], gelu);
    layer(floats(x), x.shape[0], x.shape[1], floats(gate), floats(residual), floats(out),
          loop_of(where.threads));
}

void modulate(const Array& x, const Array& scale, const Array& shift, double eps,
              const std::string& kernel, const Array& out, Where where) {
    check_threads(where.threads);
    const MatrixKernel& chosen = kernel_called(kernel);
    check_floats("x", x, {kAny, kAny, kAny});
    check_floats("scale", scale, {x.shape[0], 1, x.shape[2]});
    check_floats("shift", shift, {x.shape[0], 1, x.shape[2]});
    check_floats("out", out, {x.shape[0], x.shape[1], x.shape[2]});
    check_writable("out", out);
    modulate(chosen, floats(x), x.shape[0], x.shape[1], x.shape[2], static_cast<float>(eps),
             floats(scale), floats(shift), floats(out), loop_of(where.threads));
}

void split_heads(const Array& x, const Array& weight, const Array* rope, double eps, double factor,
                 const std::string& kernel, const Array& out, Where where) {
    check_threads(where.threads);
    const MatrixKernel& chosen = kernel_called(kernel);
    check_floats("out", out, {kAny, kAny, kAny, kAny});
    const int64_t batch = out.shape[0], heads = out.shape[1], tokens = out.shape[2];
    const int64_t size = out.shape[3];
    check_floats("x", x, {batch, tokens, heads * size});
    check_floats("weight", weight, {heads * size});
    if (rope != nullptr) {
        check_range("head size modulo 2", static_cast<double>(size % 2), 0, 0);
        check_floats("rope", *rope, {batch, 2, tokens, size / 2});
    }
    check_writable("out", out);
    split_heads(chosen,
                {batch, tokens, heads, size, static_cast<float>(eps), static_cast<float>(factor)},
                floats(x), floats(weight), floats(rope), floats(out), loop_of(where.threads));
}

void attention(const Array& q, const Array& k, const Array& v, const Array* mask,
               const std::string& kernel, const Array& out, Where where) {
    check_threads(where.threads);
    const MatrixKernel& chosen = kernel_called(kernel);
    check_floats("q", q, {kAny, kAny, kAny, kAny});
    check_floats("k", k, {q.shape[0], q.shape[1], kAny, q.shape[3]});
    check_floats("v", v, {q.shape[0], q.shape[1], k.shape[2], q.shape[3]});
    if (mask != nullptr) check_floats("mask", *mask, {q.shape[0], 1, 1, k.shape[2]});
    check_floats("out", out, {q.shape[0], q.shape[2], q.shape[1] * q.shape[3]});
    check_writable("out", out);
    Room room;
    sdrt::attention(chosen, {q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3]}, floats(q),
                    floats(k), floats(v), floats(mask), floats(out), room, loop_of(where.threads));
}

}  // namespace sdrt
