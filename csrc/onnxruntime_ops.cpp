// The operator `Rows` of domain "sdrt" for ONNX Runtime, found in this extension by its
// `register_custom_ops_library`. Attributes: `given`, how many inputs it has; `steps` (rows.h);
// `results`, the numbers of the values that are its outputs, in order; `factors`, what those of
// products may be rounded to, "float32" or "int16". It runs on the threads of the session.
#include <functional>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/rows.h"
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

    // Runs `body`; what it throws becomes a Status, null if nothing.
    template <typename Body>
    Status* guarded(const Body& body) const {
        try {
            body();
        } catch (const Refused& refused) {
            return refused.status;
        } catch (const std::bad_alloc&) {
            return failure("sdrt::Rows: out of memory");
        } catch (const std::invalid_argument& error) {
            return failure(std::string("sdrt::Rows: ") + error.what());
        }
        return nullptr;
    }

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

    float* mutable_floats(const Value* value) const {
        void* data = nullptr;
        call(kGetTensorMutableData, const_cast<Value*>(value), &data);
        return static_cast<float*>(data);
    }

    const Value* input(const Context* context, size_t index) const {
        const Value* value = nullptr;
        call(kKernelContextGetInput, context, index, &value);
        return value;
    }

    float* output(Context* context, size_t index, const std::vector<int64_t>& shape) const {
        Value* value = nullptr;
        call(kKernelContextGetOutput, context, index, shape.data(), shape.size(), &value);
        return mutable_floats(value);
    }

    // Null for an input that is given to each run.
    const Value* constant(const Info* info, size_t index) const {
        const Value* value = nullptr;
        int found = 0;
        call(kKernelInfoGetConstantInput, info, index, &found, &value);
        return found != 0 ? value : nullptr;
    }

    std::string attribute(const Info* info, const char* name) const {
        size_t size = 0;  // with the zero at the end
        call(kKernelInfoGetAttributeString, info, name, static_cast<char*>(nullptr), &size);
        std::string text(size, '\0');
        call(kKernelInfoGetAttributeString, info, name, text.data(), &size);
        text.resize(size - 1);
        return text;
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

// The node `Rows`: steps of rows.h over its inputs.
class RowsKernel {
  public:
    RowsKernel(Library library, const Info* info) : library_(library) {
        std::istringstream results(library.attribute(info, "results"));
        for (int id = 0; results >> id;) results_.push_back(id);
        int64_t count = 0;
        library.call(kKernelInfoGetAttributeInt, info, "given", &count);
        std::vector<Tensor> constants(count);
        for (size_t i = 0; i < constants.size(); ++i) {
            if (const Value* value = library.constant(info, i)) {
                constants[i] = {library.mutable_floats(value), library.shape(value)};
            }
        }
        const std::string factors = library.attribute(info, "factors");
        if (factors != "float32" && factors != "int16") {
            throw std::invalid_argument("factors: got " + factors + ", expected float32 or int16");
        }
        rows_ = std::make_unique<Rows>(matrix_kernel(factors == "int16"),
                                       parse_steps(library.attribute(info, "steps")), constants);
    }

    void compute(Context* context) {
        std::vector<Tensor> inputs(rows_->inputs()), outputs;
        for (size_t i = 0; i < inputs.size(); ++i) {
            const Value* value = library_.input(context, i);
            inputs[i] = {library_.mutable_floats(value), library_.shape(value)};
        }
        for (const std::vector<int64_t>& shape : rows_->shapes(inputs, results_)) {
            outputs.push_back({library_.output(context, outputs.size(), shape), shape});
        }
        rows_->run(inputs, results_, outputs, library_.threads(context));
    }

  private:
    Library library_;
    std::vector<int> results_;
    std::unique_ptr<Rows> rows_;
};

struct Loaded {
    Library library;
    RowsKernel kernel;
};

// The description of `Rows`.
CustomOp described() {
    CustomOp op = {};
    op.version = kVersion;
    op.name = [](const CustomOp*) { return "Rows"; };
    op.provider = [](const CustomOp*) -> const char* { return nullptr; };
    op.input_type = [](const CustomOp*, size_t) { return kFloat; };
    op.input_count = [](const CustomOp*) { return size_t{1}; };
    op.output_type = [](const CustomOp*, size_t) { return kFloat; };
    op.output_count = [](const CustomOp*) { return size_t{1}; };
    op.destroy = [](void* kernel) { delete static_cast<Loaded*>(kernel); };
    op.input_characteristic = [](const CustomOp*, size_t) { return kVariadic; };
    op.output_characteristic = [](const CustomOp*, size_t) { return kVariadic; };
    op.input_memory = [](const CustomOp*, size_t) { return 0; };
    op.variadic_input_least = [](const CustomOp*) { return 1; };
    op.variadic_input_homogeneous = [](const CustomOp*) { return 1; };
    op.variadic_output_least = [](const CustomOp*) { return 1; };
    op.variadic_output_homogeneous = [](const CustomOp*) { return 1; };
    op.create_v2 = [](const CustomOp*, Api* api, const Info* info, void** made) -> Status* {
        const Library library(api);
        return library.guarded([&] { *made = new Loaded{library, RowsKernel(library, info)}; });
    };
    op.compute_v2 = [](void* kernel, Context* context) -> Status* {
        auto* loaded = static_cast<Loaded*>(kernel);
        return loaded->library.guarded([&] { loaded->kernel.compute(context); });
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
    static const CustomOp rows = described();
    Api* api = base->get(kVersion);
    if (api == nullptr) return nullptr;  // it has said why, and will not know the operator
    const Library library(api);
    return library.guarded([&] {
        static Domain* const domain = [&] {  // one for all sessions, which point to it
            Domain* made = nullptr;
            library.call(kCreateCustomOpDomain, "sdrt", &made);
            library.call(kCustomOpDomainAdd, made, &rows);
            return made;
        }();
        library.call(kAddCustomOpDomain, options, domain);
    });
}
