#include "checks.h"

#include "ops.h"

namespace sdrt {
namespace {

const char* name_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::u8:
            return "uint8";
        case Dtype::f16:
            return "float16";
        case Dtype::bf16:
            return "bfloat16 (as uint16)";
        case Dtype::f32:
            return "float32";
        case Dtype::i64:
            return "int64";
    }
    return "?";
}

std::string place_of(int device) {
    return device == kHost ? "the host" : "cuda:" + std::to_string(device);
}

std::string shape_of(const int64_t* shape, size_t ndim) {
    std::string text = "[";
    for (size_t d = 0; d < ndim; ++d) {
        text +=
            (d ? ", " : "") + (shape[d] == kAny ? std::string("any") : std::to_string(shape[d]));
    }
    return text + "]";
}

std::string shape_of(const Array& a) {
    return shape_of(a.shape.data(), a.ndim);
}

std::string number(double value) {
    std::string text = std::to_string(value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
}

}  // namespace

std::string describe(const Array& a) {
    std::string text = std::string(name_of(a.dtype)) + " " + shape_of(a);
    return a.device == kHost ? text : text + " on " + place_of(a.device);
}

void check_dtype(const char* name, const Array& a, std::initializer_list<Dtype> allowed) {
    std::string expected;
    for (const Dtype d : allowed) {
        if (a.dtype == d) return;
        expected += (expected.empty() ? "" : " or ") + std::string(name_of(d));
    }
    throw ArgumentError(name, describe(a), expected);
}

void check_shape(const char* name, const Array& a, std::initializer_list<int64_t> expected) {
    bool good = a.ndim == static_cast<int>(expected.size());
    for (int d = 0; good && d < a.ndim; ++d) {
        const int64_t want = expected.begin()[d];
        good = want == kAny ? a.shape[d] > 0 : a.shape[d] == want;
    }
    if (!good) {
        throw ArgumentError(name, describe(a),
                            "shape " + shape_of(expected.begin(), expected.size()));
    }
}

void check_same_shape(const char* name, const Array& a, const char* other, const Array& like) {
    bool good = a.ndim == like.ndim;
    for (int d = 0; good && d < a.ndim; ++d) good = a.shape[d] == like.shape[d];
    if (!good) {
        throw ArgumentError(name, describe(a), "shape " + shape_of(like) + " as " + other);
    }
}

void check_writable(const char* name, const Array& a) {
    if (a.readonly) throw ArgumentError(name, "a read-only array", "a writable one");
}

void check_device(const char* name, const Array& a, int device) {
    if (a.device != device) {
        throw ArgumentError(name, "an array on " + place_of(a.device),
                            "one on " + place_of(device) + ", where the input is");
    }
}

void check_host(const char* name, const Array& a) {
    if (a.device != kHost) {
        throw ArgumentError(name, "an array on " + place_of(a.device), "one on the host");
    }
}

void check_contiguous(const char* name, const Array& a) {
    if (!a.contiguous()) throw ArgumentError(name, "a strided array", "a C-contiguous one");
}

void check_range(const char* name, double value, double least, double most) {
    if (!(value >= least && value <= most)) {
        throw ArgumentError(name, number(value), number(least) + " to " + number(most));
    }
}

void check_threads(int threads) {
    check_range("threads", threads, 0, 1024);
}

void check_frame(const std::string& name, const Array& a) {
    if (a.dtype != Dtype::u8 || a.ndim != 3 || a.shape[2] != 3 || a.shape[0] < 1 ||
        a.shape[1] < 1 || a.shape[0] > kLargest || a.shape[1] > kLargest) {
        throw ArgumentError(name, describe(a), "uint8 [height, width, 3]");
    }
}

void check_nv12(const std::string& name, const Array& a) {
    if (a.dtype != Dtype::u8 || a.ndim != 2 || a.shape[0] < 3 || a.shape[0] % 3 != 0 ||
        a.shape[1] < 2 || a.shape[1] % 2 != 0 || a.shape[0] > kLargest || a.shape[1] > kLargest) {
        throw ArgumentError(name, describe(a),
                            "uint8 [height, width, 3], or NV12: uint8 [3 * height / 2, width], "
                            "height and width even");
    }
}

int check_frames(std::span<const Array> frames, bool equal) {
    if (frames.empty()) throw ArgumentError("frames", "none", "at least one");
    for (size_t i = 0; i < frames.size(); ++i) {
        const std::string name = "frames[" + std::to_string(i) + "]";
        check_frame(name, frames[i]);
        check_device(name.c_str(), frames[i], frames[0].device);
        if (equal) check_same_shape(name.c_str(), frames[i], "frames[0]", frames[0]);
    }
    return frames[0].device;
}

}  // namespace sdrt
