// The operators by name: finds the memory behind each object, releases the lock, calls the
// operator. Arrays are never copied.
#include "bindings.h"

#include <pybind11/stl.h>

#include <deque>

#include "ops.h"

namespace py = pybind11;

namespace sdrt {
namespace {

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
        [](const py::sequence& frames, const std::string& matrix, Handle out, int threads,
           std::uintptr_t cuda_stream) {
            const Arguments in("frames", frames, cuda_stream);
            const Argument to("out", out, cuda_stream);
            const Released released;
            frames_to_pixels(in.arrays(), matrix, to.array(), where_of(threads, cuda_stream));
        },
        py::arg("frames"), py::arg("matrix"), py::arg("out"), py::arg("threads"),
        py::arg("cuda_stream"));

    m.def(
        "pixels_to_frames",
        [](Handle pixels, Handle out, int threads, std::uintptr_t cuda_stream) {
            const Argument in("pixels", pixels, cuda_stream), to("out", out, cuda_stream);
            const Released released;
            pixels_to_frames(in.array(), to.array(), where_of(threads, cuda_stream));
        },
        py::arg("pixels"), py::arg("out"), py::arg("threads"), py::arg("cuda_stream"));

    m.def("flow_scratch", &flow_scratch, py::arg("height"), py::arg("width"), py::arg("pictures"),
          py::arg("quality"));

    m.def(
        "optical_flow",
        [](Handle prev, Handle next, const std::string& quality, Handle out, Handle scratch,
           int threads, std::uintptr_t cuda_stream) {
            const Argument a("prev", prev, cuda_stream), b("next", next, cuda_stream);
            const Argument to("out", out, cuda_stream);
            const Optional space("scratch", scratch, cuda_stream);
            const Released released;
            optical_flow(a.array(), b.array(), quality, to.array(), space.array(),
                         where_of(threads, cuda_stream));
        },
        py::arg("prev"), py::arg("next"), py::arg("quality"), py::arg("out"), py::arg("scratch"),
        py::arg("threads"), py::arg("cuda_stream"));

    m.def(
        "optical_flow_magnitude",
        [](const py::sequence& frames, Handle last, Handle out, Handle scratch, int threads,
           std::uintptr_t cuda_stream) {
            const Arguments in("frames", frames, cuda_stream);
            const Optional before("last", last, cuda_stream),
                space("scratch", scratch, cuda_stream);
            const Argument to("out", out, cuda_stream);
            const Released released;
            optical_flow_magnitude(in.arrays(), before.array(), to.array(), space.array(),
                                   where_of(threads, cuda_stream));
        },
        py::arg("frames"), py::arg("last"), py::arg("out"), py::arg("scratch"), py::arg("threads"),
        py::arg("cuda_stream"));

    m.def(
        "frame_difference",
        [](const py::sequence& frames, Handle last, Handle out, Handle sums, int threads,
           std::uintptr_t cuda_stream) {
            const Arguments in("frames", frames, cuda_stream);
            const Optional before("last", last, cuda_stream), space("sums", sums, cuda_stream);
            const Argument to("out", out, cuda_stream);
            const Released released;
            frame_difference(in.arrays(), before.array(), to.array(), space.array(),
                             where_of(threads, cuda_stream));
        },
        py::arg("frames"), py::arg("last"), py::arg("out"), py::arg("sums"), py::arg("threads"),
        py::arg("cuda_stream"));
}

void bind_noise(py::module_& m) {
    m.def(
        "noise_control",
        [](Handle scores, Handle previous, bool has_previous, double reference, double s_max,
           double s_min, double smoothing, int timestep_offset, Handle sigmas, Handle out,
           std::uintptr_t cuda_stream) {
            const Argument in("scores", scores, cuda_stream);
            const Argument before("previous", previous, cuda_stream);
            const Argument table("sigmas", sigmas, cuda_stream), to("out", out, cuda_stream);
            const Released released;
            noise_control(in.array(), before.array(), has_previous,
                          {reference, s_max, s_min, smoothing, timestep_offset}, table.array(),
                          to.array(), where_of(0, cuda_stream));
        },
        py::arg("scores"), py::arg("previous"), py::arg("has_previous"), py::arg("reference"),
        py::arg("s_max"), py::arg("s_min"), py::arg("smoothing"), py::arg("timestep_offset"),
        py::arg("sigmas"), py::arg("out"), py::arg("cuda_stream"));

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
           const std::optional<double>& threshold, const std::string& positions, int threads,
           std::uintptr_t stream) {
            const Argument k("k_ring", k_ring, stream), v("v_ring", v_ring, stream);
            const Argument time("sink_time", sink_time, stream);
            const Argument index("sink_index", sink_index, stream);
            const Argument wrote("last", last, stream), runs("query", query, stream);
            const Released released;
            refresh_sinks(k.array(), v.array(), time.array(), index.array(), wrote.array(),
                          runs.array(),
                          {window, sinks, tokens_per_frame, theta, threshold, positions},
                          where_of(threads, stream));
        },
        py::arg("k_ring"), py::arg("v_ring"), py::arg("sink_time"), py::arg("sink_index"),
        py::arg("last"), py::arg("query"), py::arg("window"), py::arg("sinks"),
        py::arg("tokens_per_frame"), py::arg("theta"), py::arg("threshold"), py::arg("positions"),
        py::arg("threads"), py::arg("cuda_stream"));
}

void bind_matrix(py::module_& m) {
    m.def("matrix_kernels", &matrix_kernel_names);

    m.def(
        "rows",
        [](const std::string& steps, const std::vector<py::object>& inputs,
           const std::vector<int>& results, const std::vector<py::object>& outputs,
           const std::string& kernel, int threads) {
            std::deque<Argument> given, made;
            for (const py::object& input : inputs) given.emplace_back("inputs", input, 0);
            for (const py::object& output : outputs) made.emplace_back("outputs", output, 0);
            std::vector<Array> from, to;
            for (const Argument& a : given) from.push_back(a.array());
            for (const Argument& a : made) to.push_back(a.array());
            const Released released;
            rows(steps, from, results, to, kernel, where_of(threads, 0));
        },
        py::arg("steps"), py::arg("inputs"), py::arg("results"), py::arg("outputs"),
        py::arg("kernel"), py::arg("threads"));
}

}  // namespace
}  // namespace sdrt

PYBIND11_MODULE(_C, m) {
    m.doc() = "Kernels of streamdiffusion-rt; use rt.ops.";
    m.attr("cuda_archs") = sdrt::cuda_archs();
    sdrt::bind_pictures(m);
    sdrt::bind_noise(m);
    sdrt::bind_rings(m);
    sdrt::bind_matrix(m);
}
