"""The list of everything that is measured, in order. Libraries are imported when something runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.gpu import machine
from bench.gpu.plan import Measure, Section, pack
from bench.gpu.record import Reading, Row, Rows, failed, one_line, refused
from rt.backends.base import library_name

WORK = machine.ROOT / "build" / "gpu"
"""Packages, checkpoints and engines of the measurements; may be deleted."""
PRECISION = "bf16"
BACKENDS = ("inductor", "tensorrt", "tensorrt-rtx", "onnxruntime")
MODELS = (
    ("wan-1.3b", 480, 832, "wan"),
    ("wan-1.3b", 512, 512, "wan"),
    ("wan-1.3b", 480, 832, "taehv"),
    ("wan-1.3b", 512, 512, "taehv"),
)
LARGE = ("wan-14b", 480, 832, "")
"""Without its VAE: the time of a step."""


def everything(rows: Rows) -> tuple[Section, ...]:
    """All sections. `rows` are where a measure finds the ceilings that were taken before it."""
    quick = (
        Measure("ceilings", "copy, bf16 product, convolution", 30, _ceilings),
        *(Measure(f"present {b}", f"is {b} installed?", 5, _present(b)) for b in BACKENDS),
    )
    checks = (
        Measure("extension", "csrc built for this GPU", 180, _extension),
        Measure("operators", "device operators against copy and CuPy", 60, _operators),
        Measure("tests", "pytest -m gpu, a skip is a failure", 240, _tests),
        *(
            Measure(
                f"sanitizer {tool}", "operator tests under compute-sanitizer", 240, _check(tool)
            )
            for tool in ("memcheck", "racecheck")
        ),
    )
    probes = [
        Measure(f"backend {b}", f"does {b} build, load, run, stream?", seconds, _probe(b))
        for b, seconds in zip(BACKENDS, (380, 120, 120, 120), strict=True)
    ]
    units = [
        Measure(f"units {_words(m)}", "each unit, steps, VAE, memory", 380, _units(m, rows))
        for m in (*MODELS, LARGE)
    ]
    engines = [
        Measure(f"engine {_words(m)}", "seeded random weights, built", 380, _engine(m))
        for m in MODELS
    ]
    streams = [
        Measure(f"stream {_words(m)}, {n} steps", "end to end by the runtime", 180, _streams(m, n))
        for m in MODELS
        for n in (1, 2, 4)
    ]
    shared = Measure("logical devices", "stages and sessions on one GPU", 300, _logical)
    return (
        Section("quick", quick),
        *pack("checks", checks),
        *pack("backends", probes),
        *pack("units", units),
        *pack("engines", engines),
        *pack("streams", streams),
        *pack("logical", [shared]),
    )


def take(section: Section, rows: Rows, key: str, facts: dict[str, str]) -> int:
    """Take what a section lacks, and write each down. Returns how many broke."""
    return sum(
        not _taken(section, measure, rows, key, facts)
        for measure in section.measures
        if not rows.answered(measure.name, key)
    )


def _taken(section: Section, measure: Measure, rows: Rows, key: str, facts: dict[str, str]) -> bool:
    """Take one measure, write each reading as it comes; whether nothing broke."""
    held: Reading | None = None

    def write(reading: Reading, last: bool) -> None:
        rows.append([Row(section.name, measure.name, key, reading, facts, last)])

    try:
        for reading in measure.take():
            if held is not None:
                write(held, False)
            held = reading
        assert held is not None, f"{measure.name}: nothing was measured"
        write(held, True)
    except Exception as error:  # noqa: BLE001 - the top of a worker: the others still run
        traceback.print_exc()
        write(failed(measure.name, error), True)
    return rows.answered(measure.name, key)


Model = tuple[str, int, int, str]
Taking = Callable[[], Iterable[Reading]]


def _words(model: Model) -> str:
    name, height, width, vae = model
    return f"{name} {height}x{width} {vae}".strip()


def _ceilings() -> Sequence[Reading]:
    from bench.gpu.timing import ceilings

    return ceilings()


def _present(name: str) -> Taking:
    def take() -> Sequence[Reading]:
        ask = f"from bench.gpu.probe import present; print(present({name!r}).__version__)"
        found = subprocess.run(
            [sys.executable, "-c", ask], cwd=machine.ROOT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if found.returncode:
            last = (found.stderr.strip().splitlines() or ["no message"])[-1]
            return [refused(f"present {name}", last)]
        return [Reading(f"present {name}", 1, "yes", reason=found.stdout.strip())]

    return take


def _probe(name: str) -> Taking:
    def take() -> Sequence[Reading]:
        from bench.gpu.probe import backend

        return backend(name, WORK / "probe")

    return take


def _run(name: str, *words: str, **environment: str) -> Reading:
    """A command as a measure: 1 where it ends with 0, failed with its last line otherwise."""
    done = subprocess.run(
        words, cwd=machine.ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing printed"]
    if done.returncode:
        return failed(name, f"exit code {done.returncode}: {lines[-1]}")
    return Reading(name, 1, "passed", reason=one_line(lines[-1]))


def _extension() -> Sequence[Reading]:
    words = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    capability = machine.facts()["compute_cap"].replace(".", "")
    return [_run("extension", *words, SDRT_CUDA_ARCHS=capability)]


def _operators() -> Sequence[Reading]:
    return [_run("operators", sys.executable, "-m", "bench.ops", "--device")]


def _tests() -> Sequence[Reading]:
    """Only files that need a GPU: others need libraries that such a machine may lack. Those of
    TensorRT are a reading of their own, which says so where none is installed.
    """
    tests = sorted((machine.ROOT / "tests").rglob("test_*.py"))
    files = [path for path in tests if "pytest.mark.gpu" in path.read_text()]
    words = (sys.executable, "-m", "pytest", "-m", "gpu")
    ours = [str(path) for path in files if "tensorrt" not in path.name]
    theirs = [str(path) for path in files if "tensorrt" in path.name]
    found = [_run("tests", *words, *ours, RT_REQUIRE_GPU="1")]
    if library_name("tensorrt") or library_name("tensorrt-rtx"):
        return [*found, _run("tests of TensorRT", *words, *theirs, RT_REQUIRE_GPU="1")]
    absent = "neither TensorRT nor TensorRT for RTX is installed: nothing was tested"
    return [*found, refused("tests of TensorRT", absent)]


def _check(tool: str) -> Taking:
    """Without the largest pictures, which take minutes there, and without kernels of torch."""
    words = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1")
    chosen = ("-m", "gpu", "-k", "not 3840 and not torch")
    tests = ("-m", "pytest", *chosen, "-p", "no:cacheprovider", "tests/csrc")

    def take() -> Sequence[Reading]:
        name = f"sanitizer {tool}"
        if shutil.which(words[0]) is None:
            return [refused(name, "compute-sanitizer is not on the PATH")]
        return [_run(name, *words, sys.executable, *tests, RT_REQUIRE_GPU="1")]

    return take


def _units(model: Model, rows: Rows) -> Taking:
    def take() -> Iterable[Reading]:
        from bench.gpu.timing import PRODUCT
        from bench.gpu.units import Case, readings

        peak = rows.newest().get(PRODUCT)
        value = peak.reading.value if peak else None
        return readings(Case(*model), PRECISION, value, WORK / "packages")

    return take


def _engine(model: Model) -> Taking:
    def take() -> Sequence[Reading]:
        from bench.gpu.streams import built
        from bench.gpu.units import Case

        return built(Case(*model), WORK, PRECISION)

    return take


def _streams(model: Model, steps: int) -> Taking:
    def take() -> Sequence[Reading]:
        from bench.gpu.streams import readings
        from bench.gpu.units import Case

        return readings(Case(*model), steps, WORK, PRECISION)

    return take


def _logical() -> Sequence[Reading]:
    from bench.gpu.streams import logical
    from bench.gpu.units import Case

    return logical(Case(*MODELS[0]), WORK, PRECISION)


def results_of(folder: Path, name: str) -> Path:
    """The file of a GPU's rows."""
    words = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    return folder / f"gpu-{words}.jsonl"
