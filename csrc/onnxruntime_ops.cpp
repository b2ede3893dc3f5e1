// Operators for ONNX Runtime, domain "sdrt", found in this extension by its
// `register_custom_ops_library`:
//     Attention(q [B, N, S, K], k, v [B, N, M, K], mask? [B, 1, 1, M]) -> [B, S, N*K]
//     Linear(x [B, ..., I], weight [O, I], bias [O], residual? [B, ..., O], gate? [B, 1, O]; gelu)
//         -> residual + gate * activation(x weight^T + bias) [B, ..., O]; weights are constants
//     Modulate(x [B, S, D], scale, shift [B, 1, D]; eps) -> layer norm of x, times 1 + scale, plus
//     shift Heads(x [B, S, N*K], weight [N*K], rope? [B, 2, S, K/2]; heads, eps, factor) -> [B, N,
//     S, K]
//         normalised by its root mean square, pairs turned by rope's cosines and sines
// They run on the threads of the session.
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "onnxruntime_abi.h"

namespace sdrt {
namespace {

using namespace ort;

// What went wrong, on its way to the Status that ONNX Runtime is given.
struct Refused {
    Status* status;
};

class Library {
  public:
    explicit Library(Api* api) : api_(api) {}

    // Calls a function of the table that returns a Status.
    template <typename... Arguments>
    void call(Function place, Arguments... arguments) const {
        using Type = Status* (*)(Arguments...);
        Status* status = reinterpret_cast<Type>(api_[place])(arguments...);
        if (status != nullptr) throw Refused{status};
    }

    [[noreturn]] void refuse(const std::string& why) const { throw Refused{failure(why)}; }

    Status* failure(const std::string& why) const {
        using Type = Status* (*)(int, const char*);
        return reinterpret_cast<Type>(api_[kCreateStatus])(kFail, why.c_str());
    }

    std::vector<int64_t> shape(const Value* value) const {
        Shape* info = nullptr;
        size_t rank = 0;
        call(kGetTensorTypeAndShape, value, &info);
        call(kGetDimensionsCount, static_cast<const Shape*>(info), &rank);
        std::vector<int64_t> dims(rank);
        call(kGetDimensions, static_cast<const Shape*>(info), dims.data(), rank);
        reinterpret_cast<void (*)(Shape*)>(api_[kReleaseTensorTypeAndShapeInfo])(info);
        return dims;
    }

    const float* floats(const Value* value) const {
        return mutable_floats(const_cast<Value*>(value));
    }

    float* mutable_floats(Value* value) const {
        void* data = nullptr;
        call(kGetTensorMutableData, value, &data);
        return static_cast<float*>(data);
    }

    const Value* input(const Context* context, size_t index) const {
        const Value* value = nullptr;
        call(kKernelContextGetInput, context, index, &value);
        return value;
    }

    float* output(Context* context, const std::vector<int64_t>& shape) const {
        Value* value = nullptr;
        call(kKernelContextGetOutput, context, size_t{0}, shape.data(), shape.size(), &value);
        return mutable_floats(value);
    }

    const Value* constant(const Info* info, size_t index) const {
        const Value* value = nullptr;
        int found = 0;
        call(kKernelInfoGetConstantInput, info, index, &found, &value);
        if (found == 0) refuse("sdrt::Linear: weight and bias have to be constants");
        return value;
    }

    // The threads of the session that `context` belongs to.
    Loop threads(const Context* context) const {
        return [this, context](int64_t count, const std::function<void(int64_t)>& body) {
            const auto one = [](void* user, size_t i) {
                (*static_cast<const std::function<void(int64_t)>*>(user))(static_cast<int64_t>(i));
            };
            void (*function)(void*, size_t) = one;
            call(kKernelContextParallelFor, context, function, static_cast<size_t>(count),
                 size_t{0}, const_cast<void*>(static_cast<const void*>(&body)));
        };
    }

  private:
    Api* api_;
};

class AttentionKernel {
  public:
    AttentionKernel(Library library, const Info*) : library_(library) {}

    void compute(Context* context) {
        const Value *q = library_.input(context, 0), *k = library_.input(context, 1);
        const Value *v = library_.input(context, 2), *mask = library_.input(context, 3);
        const std::vector<int64_t> shape = library_.shape(q), keys = library_.shape(k);
        if (shape.size() != 4 || keys.size() != 4 || keys != library_.shape(v) ||
            keys[0] != shape[0] || keys[1] != shape[1] || keys[3] != shape[3]) {
            library_.refuse("sdrt::Attention: q, k and v do not fit together");
        }
        if (mask != nullptr &&
            library_.shape(mask) != std::vector<int64_t>{keys[0], 1, 1, keys[2]}) {
            library_.refuse("sdrt::Attention: the mask is not [B, 1, 1, keys]");
        }
        const std::lock_guard lock(busy_);
        attention(*matrix_kernels().front(), {shape[0], shape[1], shape[2], keys[2], shape[3]},
                  library_.floats(q), library_.floats(k), library_.floats(v),
                  mask == nullptr ? nullptr : library_.floats(mask),
                  library_.output(context, {shape[0], shape[2], shape[1] * shape[3]}), room_,
                  library_.threads(context));
    }

  private:
    Library library_;
    std::mutex busy_;  // a session may be run by several threads at once; `room_` may not
    Room room_;
};

class LinearKernel {
  public:
    LinearKernel(Library library, const Info* info) : library_(library) {
        const Value *weight = library.constant(info, 1), *bias = library.constant(info, 2);
        const std::vector<int64_t> shape = library.shape(weight);
        if (shape.size() != 2 || library.shape(bias) != std::vector<int64_t>{shape[0]}) {
            library.refuse("sdrt::Linear: weight and bias do not fit together");
        }
        int64_t gelu = 0;
        library.call(kKernelInfoGetAttributeInt, info, "gelu", &gelu);
        linear_ = std::make_unique<Linear>(*matrix_kernels().front(), library.floats(weight),
                                           library.floats(bias), shape[0], shape[1], gelu != 0);
    }

    void compute(Context* context) {
        const Value* x = library_.input(context, 0);
        std::vector<int64_t> shape = library_.shape(x);
        if (shape.size() < 2 || shape.back() != linear_->inputs()) {
            library_.refuse("sdrt::Linear: x does not fit the weight");
        }
        int64_t rows = 1;
        for (size_t i = 1; i + 1 < shape.size(); ++i) rows *= shape[i];
        shape.back() = linear_->outputs();
        const std::vector<int64_t> gate = {shape[0], 1, shape.back()};
        (*linear_)(library_.floats(x), shape[0], rows, optional(context, 4, gate),
                   optional(context, 3, shape), library_.output(context, shape),
                   library_.threads(context));
    }

  private:
    const float* optional(const Context* context, size_t index,
                          const std::vector<int64_t>& shape) const {
        const Value* value = library_.input(context, index);
        if (value == nullptr) return nullptr;
        if (library_.shape(value) != shape)
            library_.refuse("sdrt::Linear: gate or residual do not fit");
        return library_.floats(value);
    }

    Library library_;
    std::unique_ptr<Linear> linear_;
};

class ModulateKernel {
  public:
    ModulateKernel(Library library, const Info* info) : library_(library) {
        library.call(kKernelInfoGetAttributeFloat, info, "eps", &eps_);
    }

    void compute(Context* context) {
        const Value *x = library_.input(context, 0), *scale = library_.input(context, 1);
        const Value* shift = library_.input(context, 2);
        const std::vector<int64_t> shape = library_.shape(x);
        if (shape.size() != 3 ||
            library_.shape(scale) != std::vector{shape[0], int64_t{1}, shape[2]} ||
            library_.shape(shift) != library_.shape(scale)) {
            library_.refuse("sdrt::Modulate: x, scale and shift do not fit together");
        }
        modulate(*matrix_kernels().front(), library_.floats(x), shape[0], shape[1], shape[2], eps_,
                 library_.floats(scale), library_.floats(shift), library_.output(context, shape),
                 library_.threads(context));
    }

  private:
    Library library_;
    float eps_ = 0;
};

class HeadsKernel {
  public:
    HeadsKernel(Library library, const Info* info) : library_(library) {
        library.call(kKernelInfoGetAttributeInt, info, "heads", &heads_);
        library.call(kKernelInfoGetAttributeFloat, info, "eps", &eps_);
        library.call(kKernelInfoGetAttributeFloat, info, "factor", &factor_);
    }

    void compute(Context* context) {
        const Value *x = library_.input(context, 0), *weight = library_.input(context, 1);
        const Value* rope = library_.input(context, 2);
        const std::vector<int64_t> shape = library_.shape(x);
        if (heads_ < 1 || shape.size() != 3 || shape[2] % heads_ != 0 ||
            library_.shape(weight) != std::vector{shape[2]}) {
            library_.refuse("sdrt::Heads: x, weight and heads do not fit together");
        }
        const int64_t size = shape[2] / heads_;
        if (rope != nullptr &&
            library_.shape(rope) != std::vector{shape[0], int64_t{2}, shape[1], size / 2}) {
            library_.refuse("sdrt::Heads: rope is not [B, 2, S, K/2]");
        }
        split_heads(*matrix_kernels().front(), {shape[0], shape[1], heads_, size, eps_, factor_},
                    library_.floats(x), library_.floats(weight),
                    rope == nullptr ? nullptr : library_.floats(rope),
                    library_.output(context, {shape[0], heads_, shape[1], size}),
                    library_.threads(context));
    }

  private:
    Library library_;
    int64_t heads_ = 1;
    float eps_ = 0, factor_ = 1;
};

// The description of an operator: `Kernel`, with so many inputs, which may be absent from
// `kFirstOptional` on.
template <typename Kernel, size_t kInputs, size_t kFirstOptional>
CustomOp described(const char* (*name)(const CustomOp*)) {
    struct Loaded {
        Library library;
        Kernel kernel;
    };
    CustomOp op = {};
    op.version = kVersion;
    op.name = name;
    op.provider = [](const CustomOp*) -> const char* { return nullptr; };
    op.input_type = [](const CustomOp*, size_t) { return kFloat; };
    op.input_count = [](const CustomOp*) { return kInputs; };
    op.output_type = [](const CustomOp*, size_t) { return kFloat; };
    op.output_count = [](const CustomOp*) { return size_t{1}; };
    op.destroy = [](void* kernel) { delete static_cast<Loaded*>(kernel); };
    op.input_characteristic = [](const CustomOp*, size_t index) {
        return index >= kFirstOptional ? kOptional : kRequired;
    };
    op.output_characteristic = [](const CustomOp*, size_t) { return kRequired; };
    op.input_memory = [](const CustomOp*, size_t) { return 0; };
    op.create_v2 = [](const CustomOp*, Api* api, const Info* info, void** made) -> Status* {
        const Library library(api);
        try {
            *made = new Loaded{library, Kernel(library, info)};
        } catch (const Refused& refused) {
            return refused.status;
        }
        return nullptr;
    };
    op.compute_v2 = [](void* kernel, Context* context) -> Status* {
        try {
            static_cast<Loaded*>(kernel)->kernel.compute(context);
        } catch (const Refused& refused) {
            return refused.status;
        } catch (const std::bad_alloc&) {
            return static_cast<Loaded*>(kernel)->library.failure("sdrt: out of memory");
        }
        return nullptr;
    };
    op.start_version = [](const CustomOp*) { return 1; };
    op.end_version = [](const CustomOp*) { return 1; };
    return op;
}

}  // namespace
}  // namespace sdrt

extern "C" __attribute__((visibility("default"))) sdrt::ort::Status* RegisterCustomOps(
    sdrt::ort::Options* options, const sdrt::ort::ApiBase* base) {
    using namespace sdrt;
    static const CustomOp attention =
        described<AttentionKernel, 4, 3>([](const CustomOp*) { return "Attention"; });
    static const CustomOp linear =
        described<LinearKernel, 5, 3>([](const CustomOp*) { return "Linear"; });
    static const CustomOp modulation =
        described<ModulateKernel, 3, 3>([](const CustomOp*) { return "Modulate"; });
    static const CustomOp heads =
        described<HeadsKernel, 3, 2>([](const CustomOp*) { return "Heads"; });
    Api* api = base->get(kVersion);
    if (api == nullptr) return nullptr;  // it has said why, and will not know the operators
    const Library library(api);
    try {
        static Domain* const domain = [&] {  // one for all sessions, which point to it
            Domain* made = nullptr;
            library.call(kCreateCustomOpDomain, "sdrt", &made);
            for (const CustomOp* op : {&attention, &linear, &modulation, &heads}) {
                library.call(kCustomOpDomainAdd, made, op);
            }
            return made;
        }();
        library.call(kAddCustomOpDomain, options, domain);
    } catch (const Refused& refused) {
        return refused.status;
    }
    return nullptr;
}
