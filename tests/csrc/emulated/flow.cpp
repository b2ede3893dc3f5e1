// The flow's device code as C functions; optical_flow_emulated.cpp is optical_flow.cu with its
// launches rewritten.
#include <vector>

#include "optical_flow_emulated.cpp"

namespace {

sdrt::Array picture(const uint8_t* data, const int64_t* shape, const int64_t* strides) {
    sdrt::Array a;
    a.data = const_cast<uint8_t*>(data);
    a.ndim = 3;
    for (int d = 0; d < 3; ++d) {
        a.shape[d] = shape[d];
        a.strides[d] = strides[d];
    }
    return a;
}

const sdrt::FlowSettings& settings(int accurate) {
    return accurate != 0 ? sdrt::kAccurateFlow : sdrt::kFastFlow;
}

}  // namespace

// shape and strides: of all pictures, [count, H, W, 3] and in bytes.
extern "C" void magnitude(const uint8_t* data, const int64_t* shape, const int64_t* strides,
                          int64_t skip, float* out, void* scratch) {
    std::vector<sdrt::Array> pictures;
    for (int64_t i = 0; i < shape[0]; ++i) {
        pictures.push_back(picture(data + i * strides[0], shape + 1, strides + 1));
    }
    const sdrt::FlowPlan plan(shape[1], shape[2], sdrt::kFastFlow);
    sdrt::optical_flow_magnitude_cuda(plan, pictures, skip, out, scratch, nullptr);
}

// Of two pictures; out: float32 [H, W, 2].
extern "C" void flow(const uint8_t* data, const int64_t* shape, const int64_t* strides,
                     int accurate, float* out, void* scratch) {
    const sdrt::FlowPlan plan(shape[1], shape[2], settings(accurate));
    sdrt::Array field;
    field.data = out;
    field.dtype = sdrt::Dtype::f32;
    field.ndim = 3;
    field.shape = {shape[1], shape[2], 2};
    field.strides = {shape[2] * 8, 8, 4};
    sdrt::optical_flow_cuda(plan, picture(data, shape + 1, strides + 1),
                            picture(data + strides[0], shape + 1, strides + 1), field, scratch,
                            nullptr);
}
