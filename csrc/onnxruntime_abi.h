// The part of ONNX Runtime's C interface that its custom operators need, stated here because its
// Python package brings no headers. That interface is a table of functions which only ever grows at
// its end, and a structure whose first members stay what they are; `kVersion` is asked for by
// number (functions up to KernelContext_ParallelFor came with 17), and a library that lacks it says
// so.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sdrt::ort {

constexpr uint32_t kVersion = 17;
constexpr int kFloat = 1;     // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
constexpr int kVariadic = 2;  // INPUT_OUTPUT_VARIADIC
constexpr int kFail = 1;      // ORT_FAIL

struct Status;
struct Value;
struct Info;     // OrtKernelInfo
struct Context;  // OrtKernelContext
struct Domain;   // OrtCustomOpDomain
struct Options;  // OrtSessionOptions
struct Shape;    // OrtTensorTypeAndShapeInfo

// Places in the table.
enum Function : int {
    kCreateStatus = 0,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kGetTensorMutableData = 51,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kKernelInfoGetAttributeInt = 86,
    kKernelInfoGetAttributeString = 87,
    kKernelContextGetInput = 90,
    kKernelContextGetOutput = 91,
    kReleaseTensorTypeAndShapeInfo = 99,
    kKernelInfoGetConstantInput = 249,
    kKernelContextParallelFor = 274,
};

using Api = void* const;  // the table's first entry

struct ApiBase {
    Api* (*get)(uint32_t version);
    const char* (*version)();
};

struct CustomOp {
    uint32_t version;
    void* (*create)(const CustomOp*, Api*, const Info*);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    int (*input_type)(const CustomOp*, size_t);
    size_t (*input_count)(const CustomOp*);
    int (*output_type)(const CustomOp*, size_t);
    size_t (*output_count)(const CustomOp*);
    void (*compute)(void*, Context*);
    void (*destroy)(void*);
    int (*input_characteristic)(const CustomOp*, size_t);
    int (*output_characteristic)(const CustomOp*, size_t);
    int (*input_memory)(const CustomOp*, size_t);
    int (*variadic_input_least)(const CustomOp*);
    int (*variadic_input_homogeneous)(const CustomOp*);
    int (*variadic_output_least)(const CustomOp*);
    int (*variadic_output_homogeneous)(const CustomOp*);
    Status* (*create_v2)(const CustomOp*, Api*, const Info*, void**);
    Status* (*compute_v2)(void*, Context*);
    Status* (*infer_shape)(const CustomOp*, void*);
    int (*start_version)(const CustomOp*);
    int (*end_version)(const CustomOp*);
};

}  // namespace sdrt::ort
