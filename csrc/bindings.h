// The memory behind a Python object: buffer protocol, __cuda_array_interface__ or DLPack. For
// bindings.cpp alone; with it the only code that knows Python.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device.h"
#include "dlpack.h"
#include "ops.h"

namespace sdrt {

namespace py = pybind11;

[[noreturn]] inline void bad_array(const char* name, const std::string& got) {
    throw ArgumentError(name, got, "an array of uint8, float16, float32, int64 or bfloat16");
}

// One argument: the view, and what keeps its memory alive during the call.
class Argument {
  public:
    Argument(const char* name, const py::object& object, std::uintptr_t stream) {
        try {
            read(name, object, stream);
            const auto address = reinterpret_cast<std::uintptr_t>(array_.data);
            if (array_.size() > 0 && address % size_of(array_.dtype) != 0) {
                bad_array(name, "elements that do not begin at a multiple of their size");
            }
        } catch (...) {
            release();
            throw;
        }
    }

    ~Argument() { release(); }

    Argument(const Argument&) = delete;
    Argument& operator=(const Argument&) = delete;

    const Array& array() const { return array_; }

  private:
    void release() {
        if (held_) PyBuffer_Release(&buffer_);
        held_ = false;
    }

    void read(const char* name, const py::object& object, std::uintptr_t stream) {
        // What an object says of itself is not to be trusted: a wrong word is an error of this
        // argument.
        try {
            // Before the buffer protocol: CuPy's arrays have that as well, and refuse.
            if (py::hasattr(object, "__cuda_array_interface__")) {
                from_cuda_interface(name, object.attr("__cuda_array_interface__"));
                return;
            }
            if (PyObject_CheckBuffer(object.ptr())) {
                from_buffer(name, object);
                return;
            }
            if (py::hasattr(object, "__dlpack__")) {
                from_dlpack(name, object, stream);
                return;
            }
        } catch (const py::cast_error&) {
            bad_array(name, "an array that describes itself wrongly");
        } catch (const py::error_already_set& error) {
            bad_array(name, std::string("an array that describes itself wrongly: ") + error.what());
        }
        bad_array(name, std::string(py::str(py::type::of(object))));
    }

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
        if (!strides.empty() && strides.size() != shape.size()) {
            bad_array(name, "not one stride for each dimension");
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
        if (ndim < 0 || ndim > kMaxDims) bad_array(name, std::to_string(ndim) + " dimensions");
        array_.ndim = ndim;
        int64_t packed = size_of(array_.dtype);
        for (int d = ndim - 1; d >= 0; --d) {
            constexpr int64_t kMost = int64_t{1} << 46;  // more than any address space has bytes
            const int64_t step = strides != nullptr ? strides[d] : 0;
            if (shape[d] < 0 || shape[d] > kMost || step < -kMost || step > kMost ||
                packed > kMost / std::max<int64_t>(shape[d], 1)) {
                bad_array(name, "a shape or strides larger than memory");
            }
            array_.shape[d] = shape[d];
            array_.strides[d] = strides != nullptr ? strides[d] : packed;
            packed *= std::max<int64_t>(shape[d], 1);
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

    // bfloat16 has no letter; it travels as uint16, or without a kind (torch, JAX).
    static Dtype dtype_of_kind(const char* name, char kind, int64_t size) {
        if (kind == 'u' && size == 1) return Dtype::u8;
        if ((kind == 'u' || kind == 'V') && size == 2) return Dtype::bf16;
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

}  // namespace sdrt
