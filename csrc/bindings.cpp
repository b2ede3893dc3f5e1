// The only file that knows Python: finds the memory behind an object, releases the lock, calls the
// operator. Arrays are never copied.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "device.h"
#include "dlpack.h"
#include "ops.h"

namespace py = pybind11;

namespace sdrt {
namespace {

[[noreturn]] void bad_array(const char* name, const std::string& got) {
    throw ArgumentError(name, got, "an array of uint8, float16, float32, int64 or bfloat16");
}

// One argument: the view, and what keeps its memory alive during the call.
class Argument {
  public:
    Argument(const char* name, const py::object& object, std::uintptr_t stream) {
        if (PyObject_CheckBuffer(object.ptr())) {
            from_buffer(name, object);
        } else if (py::hasattr(object, "__cuda_array_interface__")) {
            from_cuda_interface(name, object.attr("__cuda_array_interface__"));
        } else if (py::hasattr(object, "__dlpack__")) {
            from_dlpack(name, object, stream);
        } else {
            bad_array(name, std::string(py::str(py::type::of(object))));
        }
    }

    ~Argument() {
        if (held_) PyBuffer_Release(&buffer_);
    }

    Argument(const Argument&) = delete;
    Argument& operator=(const Argument&) = delete;

    const Array& array() const { return array_; }

  private:
    void from_buffer(const char* name, const py::object& object) {
        if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_RECORDS_RO) != 0) {
            py::error_already_set error;
            bad_array(name, error.what());
        }
        held_ = true;
        array_.dtype = dtype_of_format(name, buffer_.format, buffer_.itemsize);
        set_shape(name, buffer_.ndim, buffer_.shape, buffer_.strides);
        array_.data = buffer_.buf;
        array_.readonly = buffer_.readonly != 0;
    }

    void from_cuda_interface(const char* name, const py::dict& fields) {
        const std::string type = py::cast<std::string>(fields["typestr"]);
        if (type.size() != 3 || type[0] == '>') bad_array(name, "type " + type);
        array_.dtype = dtype_of_kind(name, type[1], type[2] - '0');
        const auto shape = integers(fields["shape"]);
        std::vector<Py_ssize_t> strides;
        if (fields.contains("strides") && !fields["strides"].is_none()) {
            strides = integers(fields["strides"]);
        }
        set_shape(name, static_cast<int>(shape.size()), shape.data(),
                  strides.empty() ? nullptr : strides.data());
        const auto data = py::cast<py::tuple>(fields["data"]);
        array_.data = reinterpret_cast<void*>(py::cast<std::uintptr_t>(data[0]));
        array_.readonly = py::cast<bool>(data[1]);
        array_.device = array_.size() > 0 ? device_of(array_.data) : 0;
    }

    void from_dlpack(const char* name, const py::object& object, std::uintptr_t stream) {
        const auto place = py::cast<py::tuple>(object.attr("__dlpack_device__")());
        const int kind = py::cast<int>(place[0]);
        if (kind == dlpack::kCuda || kind == dlpack::kCudaManaged) {
            array_.device = py::cast<int>(place[1]);
            // In this protocol 0 means nothing and 1 the default stream.
            const std::uintptr_t number = stream == 0 ? 1 : stream;
            owner_ = object.attr("__dlpack__")(py::arg("stream") = number);
        } else if (kind == dlpack::kCpu || kind == dlpack::kCudaHost) {
            owner_ = object.attr("__dlpack__")();
        } else {
            bad_array(name, "an array on DLPack device " + std::to_string(kind));
        }
        const auto* tensor = static_cast<const dlpack::ManagedTensor*>(
            PyCapsule_GetPointer(owner_.ptr(), "dltensor"));
        if (tensor == nullptr) throw py::error_already_set();
        const dlpack::Tensor& t = tensor->tensor;
        array_.dtype = dtype_of_dlpack(name, t);
        std::vector<Py_ssize_t> shape(t.shape, t.shape + t.ndim), strides;
        if (t.strides != nullptr) strides.assign(t.strides, t.strides + t.ndim);
        for (auto& s : strides) s *= size_of(array_.dtype);
        set_shape(name, t.ndim, shape.data(), strides.empty() ? nullptr : strides.data());
        array_.data = static_cast<char*>(t.data) + t.byte_offset;
    }

    void set_shape(const char* name, int ndim, const Py_ssize_t* shape, const Py_ssize_t* strides) {
        if (ndim > kMaxDims) bad_array(name, std::to_string(ndim) + " dimensions");
        array_.ndim = ndim;
        int64_t packed = size_of(array_.dtype);
        for (int d = ndim - 1; d >= 0; --d) {
            array_.shape[d] = shape[d];
            array_.strides[d] = strides != nullptr ? strides[d] : packed;
            packed *= shape[d];
        }
        for (int d = 0; strides != nullptr && d < ndim; ++d) {
            if (array_.size() > 1 && array_.strides[d] % size_of(array_.dtype) != 0) {
                bad_array(name, "strides that are no multiple of the element");
            }
        }
    }

    static std::vector<Py_ssize_t> integers(const py::handle& items) {
        std::vector<Py_ssize_t> out;
        for (const auto& item : items) out.push_back(py::cast<Py_ssize_t>(item));
        return out;
    }

    // bfloat16 has no letter; it travels as uint16.
    static Dtype dtype_of_kind(const char* name, char kind, int64_t size) {
        if (kind == 'u' && size == 1) return Dtype::u8;
        if (kind == 'u' && size == 2) return Dtype::bf16;
        if (kind == 'f' && size == 2) return Dtype::f16;
        if (kind == 'f' && size == 4) return Dtype::f32;
        if (kind == 'i' && size == 8) return Dtype::i64;
        bad_array(name, std::string("element type ") + kind + std::to_string(size));
    }

    static Dtype dtype_of_format(const char* name, const char* format, Py_ssize_t size) {
        const std::string text = format == nullptr ? "B" : format;
        const char letter = text.back();
        const bool plain =
            text.size() == 1 || (text.size() == 2 && text[0] != '>' && text[0] != '!');
        if (plain && letter == 'B') return Dtype::u8;
        if (plain && letter == 'H') return Dtype::bf16;
        if (plain && letter == 'e') return Dtype::f16;
        if (plain && letter == 'f') return Dtype::f32;
        if (plain && (letter == 'q' || letter == 'l') && size == 8) return Dtype::i64;
        bad_array(name, "element format \"" + text + "\"");
    }

    static Dtype dtype_of_dlpack(const char* name, const dlpack::Tensor& t) {
        if (t.lanes == 1 && t.code == dlpack::kBfloat && t.bits == 16) return Dtype::bf16;
        const char kinds[] = {'i', 'u', 'f'};
        if (t.lanes != 1 || t.code > 2) bad_array(name, "an element type of DLPack");
        return dtype_of_kind(name, kinds[t.code], t.bits / 8);
    }

    Array array_;
    Py_buffer buffer_{};
    bool held_ = false;
    py::object owner_;  // a DLPack capsule: never consumed, so it frees its tensor itself
};

// Several arguments under one name.
class Arguments {
  public:
    Arguments(const char* name, const py::sequence& items, std::uintptr_t stream) {
        for (const auto& item : items) {
            owned_.push_back(
                std::make_unique<Argument>(name, py::reinterpret_borrow<py::object>(item), stream));
            arrays_.push_back(owned_.back()->array());
        }
    }

    std::span<const Array> arrays() const { return arrays_; }

  private:
    std::vector<std::unique_ptr<Argument>> owned_;
    std::vector<Array> arrays_;
};

class Optional {
  public:
    Optional(const char* name, const py::object& object, std::uintptr_t stream) {
        if (!object.is_none()) argument_ = std::make_unique<Argument>(name, object, stream);
    }

    const Array* array() const { return argument_ ? &argument_->array() : nullptr; }

  private:
    std::unique_ptr<Argument> argument_;
};

Where where_of(int threads, std::uintptr_t stream) {
    return {threads, reinterpret_cast<CudaStream>(stream)};
}

uint32_t word(const char* name, int64_t value) {
    if (value < 0 || value > 0xffffffffll) {
        throw ArgumentError(name, std::to_string(value), "0 to 2^32 - 1");
    }
    return static_cast<uint32_t>(value);
}

uint64_t seed_of(const py::int_& seed) {
    const unsigned long long value = PyLong_AsUnsignedLongLong(seed.ptr());
    if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        throw ArgumentError("seed", std::string(py::str(seed)), "0 to 2^64 - 1");
    }
    return value;
}

NoiseKey key_of(const py::int_& seed, int64_t session, int64_t chunk, int64_t step) {
    return {seed_of(seed), word("session", session), word("chunk", chunk), word("step", step)};
}

using Released = py::gil_scoped_release;
using Handle = const py::object&;

void bind_pictures(py::module_& m) {
    m.def(
        "frames_to_pixels",
        [](const py::sequence& frames, Handle out, int threads, std::uintptr_t cuda_stream) {
            const Arguments in("frames", frames, cuda_stream);
            const Argument to("out", out, cuda_stream);
            const Released released;
            frames_to_pixels(in.arrays(), to.array(), where_of(threads, cuda_stream));
        },
        py::arg("frames"), py::arg("out"), py::arg("threads"), py::arg("cuda_stream"));

    m.def(
        "pixels_to_frames",
        [](Handle pixels, Handle out, int threads, std::uintptr_t cuda_stream) {
            const Argument in("pixels", pixels, cuda_stream), to("out", out, cuda_stream);
            const Released released;
            pixels_to_frames(in.array(), to.array(), where_of(threads, cuda_stream));
        },
        py::arg("pixels"), py::arg("out"), py::arg("threads"), py::arg("cuda_stream"));

    m.def(
        "optical_flow",
        [](Handle prev, Handle next, const std::string& quality, Handle out, int threads) {
            const Argument a("prev", prev, 0), b("next", next, 0), to("out", out, 0);
            const Released released;
            optical_flow(a.array(), b.array(), quality, to.array(), where_of(threads, 0));
        },
        py::arg("prev"), py::arg("next"), py::arg("quality"), py::arg("out"), py::arg("threads"));

    m.def(
        "optical_flow_magnitude",
        [](const py::sequence& frames, Handle last, Handle out, int threads) {
            const Arguments in("frames", frames, 0);
            const Optional before("last", last, 0);
            const Argument to("out", out, 0);
            const Released released;
            optical_flow_magnitude(in.arrays(), before.array(), to.array(), where_of(threads, 0));
        },
        py::arg("frames"), py::arg("last"), py::arg("out"), py::arg("threads"));

    m.def(
        "frame_difference",
        [](const py::sequence& frames, Handle last, Handle out, int threads) {
            const Arguments in("frames", frames, 0);
            const Optional before("last", last, 0);
            const Argument to("out", out, 0);
            const Released released;
            frame_difference(in.arrays(), before.array(), to.array(), where_of(threads, 0));
        },
        py::arg("frames"), py::arg("last"), py::arg("out"), py::arg("threads"));
}

void bind_noise(py::module_& m) {
    m.def(
        "noise_control",
        [](Handle scores, Handle previous, bool has_previous, double reference, double s_max,
           double s_min, double smoothing, int timestep_offset, Handle sigmas, Handle out) {
            const Argument in("scores", scores, 0), before("previous", previous, 0);
            const Argument table("sigmas", sigmas, 0), to("out", out, 0);
            const Released released;
            noise_control(in.array(), before.array(), has_previous,
                          {reference, s_max, s_min, smoothing, timestep_offset}, table.array(),
                          to.array());
        },
        py::arg("scores"), py::arg("previous"), py::arg("has_previous"), py::arg("reference"),
        py::arg("s_max"), py::arg("s_min"), py::arg("smoothing"), py::arg("timestep_offset"),
        py::arg("sigmas"), py::arg("out"));

    m.def(
        "mix_noise",
        [](Handle latent, Handle control, const py::int_& seed, int64_t session, int64_t chunk,
           Handle out, int threads, std::uintptr_t cuda_stream) {
            const Argument in("latent", latent, cuda_stream),
                record("control", control, cuda_stream);
            const Argument to("out", out, cuda_stream);
            const NoiseKey key = key_of(seed, session, chunk, 0);
            const Released released;
            mix_noise(in.array(), record.array(), key, to.array(), where_of(threads, cuda_stream));
        },
        py::arg("latent"), py::arg("control"), py::arg("seed"), py::arg("session"),
        py::arg("chunk"), py::arg("out"), py::arg("threads"), py::arg("cuda_stream"));

    m.def(
        "renoise",
        [](Handle noisy, Handle velocity, Handle sigma, Handle sigma_next, const py::int_& seed,
           int64_t session, int64_t chunk, int64_t step, Handle out, int threads,
           std::uintptr_t cuda_stream) {
            const Argument x("noisy", noisy, cuda_stream), v("velocity", velocity, cuda_stream);
            const Argument now("sigma", sigma, cuda_stream),
                next("sigma_next", sigma_next, cuda_stream);
            const Argument to("out", out, cuda_stream);
            const NoiseKey key = key_of(seed, session, chunk, step);
            const Released released;
            renoise(x.array(), v.array(), now.array(), next.array(), key, to.array(),
                    where_of(threads, cuda_stream));
        },
        py::arg("noisy"), py::arg("velocity"), py::arg("sigma"), py::arg("sigma_next"),
        py::arg("seed"), py::arg("session"), py::arg("chunk"), py::arg("step"), py::arg("out"),
        py::arg("threads"), py::arg("cuda_stream"));

    m.def(
        "philox_normal",
        [](const py::int_& seed, int64_t session, int64_t chunk, int64_t step, Handle out,
           int threads) {
            const Argument to("out", out, 0);
            const NoiseKey key = key_of(seed, session, chunk, step);
            const Released released;
            philox_normal(key, to.array(), where_of(threads, 0));
        },
        py::arg("seed"), py::arg("session"), py::arg("chunk"), py::arg("step"), py::arg("out"),
        py::arg("threads"));

    m.def(
        "philox4x32",
        [](std::array<int64_t, 4> counter, std::array<int64_t, 2> key) {
            const Words c{word("counter", counter[0]), word("counter", counter[1]),
                          word("counter", counter[2]), word("counter", counter[3])};
            const Words w = philox4x32(c, word("key", key[0]), word("key", key[1]));
            return py::make_tuple(w.w0, w.w1, w.w2, w.w3);
        },
        py::arg("counter"), py::arg("key"));
}

void bind_rings(py::module_& m) {
    m.def(
        "refresh_sinks",
        [](Handle k_ring, Handle v_ring, Handle sink_time, Handle sink_index, Handle last,
           Handle query, int64_t window, int64_t sinks, int64_t tokens_per_frame, double theta,
           const py::object& threshold, const std::string& positions, int threads) {
            const Argument k("k_ring", k_ring, 0), v("v_ring", v_ring, 0);
            const Argument time("sink_time", sink_time, 0), index("sink_index", sink_index, 0);
            const Argument wrote("last", last, 0), runs("query", query, 0);
            std::optional<double> least;
            if (!threshold.is_none()) least = py::cast<double>(threshold);
            const Released released;
            refresh_sinks(k.array(), v.array(), time.array(), index.array(), wrote.array(),
                          runs.array(), {window, sinks, tokens_per_frame, theta, least, positions},
                          where_of(threads, 0));
        },
        py::arg("k_ring"), py::arg("v_ring"), py::arg("sink_time"), py::arg("sink_index"),
        py::arg("last"), py::arg("query"), py::arg("window"), py::arg("sinks"),
        py::arg("tokens_per_frame"), py::arg("theta"), py::arg("threshold"), py::arg("positions"),
        py::arg("threads"));
}

}  // namespace
}  // namespace sdrt

PYBIND11_MODULE(_C, m) {
    m.doc() = "Kernels of streamdiffusion-rt; use rt.ops.";
    m.attr("cuda_archs") = sdrt::cuda_archs();
    sdrt::bind_pictures(m);
    sdrt::bind_noise(m);
    sdrt::bind_rings(m);
}
