#include <algorithm>

#include "checks.h"
#include "kernels/rows.h"
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

std::vector<Tensor> tensors(const char* name, const std::vector<Array>& arrays) {
    std::vector<Tensor> all;
    for (const Array& a : arrays) {
        check_dtype(name, a, {Dtype::f32});
        check_contiguous(name, a);
        check_host(name, a);
        for (int i = 0; i < a.ndim; ++i) {
            check_range(name, static_cast<double>(a.shape[i]), 1, kLargest);
        }
        all.push_back({static_cast<float*>(a.data), {a.shape.begin(), a.shape.begin() + a.ndim}});
    }
    return all;
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

void rows(const std::string& steps, const std::vector<Array>& inputs,
          const std::vector<int>& results, const std::vector<Array>& outputs,
          const std::string& kernel, Where where) {
    check_threads(where.threads);
    const MatrixKernel& chosen = kernel_called(kernel);
    const std::vector<Tensor> from = tensors("inputs", inputs), to = tensors("outputs", outputs);
    Rows chain(chosen, parse_steps(steps), from);
    const std::vector<std::vector<int64_t>> shapes = chain.shapes(from, results);
    const auto count = static_cast<double>(shapes.size());
    check_range("number of outputs", static_cast<double>(outputs.size()), count, count);
    for (size_t i = 0; i < shapes.size(); ++i) {
        check_writable("outputs", outputs[i]);
        if (to[i].shape == shapes[i]) continue;
        Array expected = outputs[i];
        expected.ndim = static_cast<int>(shapes[i].size());
        std::copy(shapes[i].begin(), shapes[i].end(), expected.shape.begin());
        throw ArgumentError("outputs", describe(outputs[i]), describe(expected));
    }
    chain.run(from, results, to, loop_of(where.threads));
}

}  // namespace sdrt
