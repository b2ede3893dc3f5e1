"""The list of everything that is measured, the most telling first. Libraries are imported when
something runs, and `rt` only then: its extension is built by a measure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from bench.gpu import machine, targets
from bench.gpu.plan import Measure, Section, pack
from bench.gpu.record import Reading, Row, Rows, failed, one_line, refused

WORK = machine.ROOT / "build" / "gpu"
"""Packages, checkpoints and engines of the measurements; may be deleted."""
BACKENDS = ("inductor", "tensorrt", "tensorrt-rtx", "onnxruntime")
PEERS = machine.ROOT / "build" / "peers"
"""The released package, and beside it what it needs where that is not installed."""
Model = tuple[str, int, int, str, str]
WIDE: Model = ("wan-1.3b", 480, 832, "wan", "bf16")
SQUARE: Model = ("wan-1.3b", 512, 512, "wan", "bf16")
SMALL: tuple[Model, ...] = (
    ("wan-1.3b", 480, 832, "taehv", "bf16"),
    ("wan-1.3b", 512, 512, "taehv", "bf16"),
)
NARROW: Model = ("wan-1.3b", 480, 832, "wan", "fp8")
MODELS = (WIDE, SQUARE, *SMALL, NARROW)
LARGE: Model = ("wan-14b", 480, 832, "", "bf16")
LARGE_NARROW: Model = ("wan-14b", 480, 832, "", "fp8")
"""Both without a VAE: the time of a step."""
BROKE = 3
"""Exit code of a worker whose measure broke and is written down."""


def everything(rows: Rows) -> tuple[Section, ...]:
    """All sections. `rows` are where a measure finds the ceilings that were taken before it.

    Seconds are reckoned for 16 cores and an H200; none of them has been measured.
    """
    built = WORK / f"extension-{machine.code_digest()}"
    ours = ("extension",)
    rounds = {1: (WIDE, SQUARE), 2: (NARROW, LARGE, LARGE_NARROW), 3: SMALL}
    number = {model: n for n, models in rounds.items() for model in models}

    def packages(n: int) -> Measure:
        what = f"compiled beside each other: {', '.join(map(_words, rounds[n]))}"
        stamp = WORK / f"packages-{n}-{built.name}"
        return Measure(f"packages {n}", what, 180, _packages(rounds[n], stamp), ours, stamp)

    def engines(n: int) -> Measure:
        models = [model for model in rounds[n] if model in MODELS]
        what = f"random weights, built beside each other: {', '.join(map(_words, models))}"
        stamp, needs = WORK / f"engines-{n}-{built.name}", (*ours, f"packages {n}")
        return Measure(f"engines {n}", what, 120, _engines(models, stamp), needs, stamp)

    def units(m: Model, seconds: int = 60) -> Measure:
        what = "each unit, steps, VAE, memory"
        return Measure(f"units {_words(m)}", what, seconds, _units(m, rows), needs(m, "packages"))

    def needs(m: Model, product: str) -> tuple[str, ...]:
        return (*ours, f"{product} {number[m]}")

    def stream(m: Model, steps: int) -> Measure:
        name, seconds = f"stream {_words(m)}, {steps} steps", 140 if steps == 2 else 60
        return Measure(name, "end to end", seconds, _streams(m, steps), needs(m, "engines"))

    quick = (
        Measure("ceilings", "copy, products, convolution", 25, _ceilings),
        Measure("attention", "over the ring, by each kernel", 10, _candidates(rows, "attention")),
        Measure("extension", "csrc built for this GPU", 60, _extension(built), (), built),
        *(Measure(f"present {b}", f"is {b} installed?", 6, _present(b), ours) for b in BACKENDS),
    )
    checks = (
        Measure("operators", "device operators against copy and CuPy", 40, _operators, ours),
        Measure("tests", "pytest -m gpu, a skip is a failure", 240, _tests, ours),
    )
    probes = [
        Measure(f"backend {b}", f"does {b} build, load, run, stream?", seconds, _probe(b), ours)
        for b, seconds in zip(BACKENDS, (200, 60, 60, 120), strict=True)
    ]
    sanitized = [
        Measure(f"sanitizer {tool}", "operator tests under it", 200, _check(tool), ours)
        for tool in ("memcheck", "racecheck")
    ]
    ways = "products and convolutions in several ways"
    candidates = Measure("candidates", ways, 60, _candidates(rows, "product", "convolution"))
    beside = "the released package and diffusers in the same run"
    peers = Measure("peers", beside, 200, _peers, needs(WIDE, "engines"))
    logical = "stages and sessions on one GPU"
    shared = Measure("logical devices", logical, 200, _logical, needs(WIDE, "engines"))
    return (
        Section("quick", quick),
        Section("packages", (packages(1),)),
        Section("wide", (units(WIDE),)),
        Section("engines", (engines(1),)),
        Section("square-stream", (stream(SQUARE, 1),)),
        Section("wide-stream", (stream(WIDE, 1),)),
        Section("live", (stream(WIDE, 2),)),
        Section("candidates", (candidates,)),
        Section("peers", (peers,)),
        *pack("checks", checks),
        Section("square", (units(SQUARE),)),
        Section("fp8-packages", (packages(2),)),
        Section("fp8", (units(NARROW),)),
        Section("large", (units(LARGE, 90),)),
        Section("large-fp8", (units(LARGE_NARROW, 90),)),
        Section("fp8-engines", (engines(2),)),
        *pack("fp8-streams", [stream(NARROW, n) for n in (1, 2)]),
        Section("small-packages", (packages(3),)),
        *(Section(f"small-{i}", (units(m),)) for i, m in enumerate(SMALL, 1)),
        Section("small-engines", (engines(3),)),
        *pack("streams", [stream(WIDE, 4), stream(SQUARE, 2), stream(SQUARE, 4)]),
        *pack("small-streams", [stream(SMALL[0], n) for n in (1, 2, 4)]),
        Section("logical", (shared,)),
        *pack("backends", probes),
        *pack("small-square-streams", [stream(SMALL[1], n) for n in (1, 2, 4)]),
        *pack("sanitizers", sanitized),
    )


def take(
    section: Section, names: Collection[str], rows: Rows, key: str, facts: Mapping[str, str]
) -> bool:
    """Take the measures of a section that are named, and write each reading down at once. Ends with
    the first that breaks; whether none did.
    """
    named = (measure for measure in section.measures if measure.name in names)
    return all(_taken(section, measure, rows, key, facts) for measure in named)


def _taken(
    section: Section, measure: Measure, rows: Rows, key: str, facts: Mapping[str, str]
) -> bool:
    def write(reading: Reading, last: bool) -> None:
        rows.append([Row(section.name, measure.name, key, reading, facts, last)])

    start, count = time.monotonic(), 0
    try:
        with _limited(measure.limit_s):
            for count, reading in enumerate(measure.take(), 1):  # noqa: B007 - looked at below
                write(reading, False)
        assert count, f"{measure.name}: nothing was measured"
        write(Reading(f"taking: {measure.name}", time.monotonic() - start, "s"), True)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the top of a worker: others still run
        traceback.print_exc()
        write(failed(measure.name, error), True)
    return rows.answered(measure.name, key)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in here after so long. What does not come back to Python by then is killed
    with its section.
    """

    def late(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds} s")

    handler = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


Taking = Callable[[], Iterable[Reading]]


def _words(model: Model) -> str:
    name, height, width, vae, precision = model
    return targets.model(name, f"{height}x{width}", vae, precision)


def _ceilings() -> Iterable[Reading]:
    from bench.gpu.timing import ceilings

    return ceilings()


def _present(name: str) -> Taking:
    """Whether the library of a backend can be imported, asked in a process that it cannot break."""
    ask = f"""
from bench.gpu import probe
try:
    print(probe.present({name!r}).__version__)
except probe.STOPS as error:
    print(probe.one_line(error))
    raise SystemExit({BROKE})
"""

    def take() -> Sequence[Reading]:
        done = _done(sys.executable, "-c", ask)
        last = _last(done)
        if done.returncode == BROKE:
            return [refused(f"present {name}", last)]
        if done.returncode:
            return [failed(f"present {name}", last)]
        return [Reading(f"present {name}", 1, "yes", reason=last)]

    return take


def _probe(name: str) -> Taking:
    def take() -> Sequence[Reading]:
        from bench.gpu.probe import backend

        return backend(name, WORK / "probe")

    return take


def _done(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=machine.ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return one_line((done.stdout.strip().splitlines() or ["nothing printed"])[-1])


def _run(name: str, *words: str, **environment: str) -> Reading:
    """A command as a measure: 1 where it ends with 0, failed with its last line otherwise, and what
    it said before that on the screen.
    """
    done = _done(*words, **environment)
    if done.returncode:
        print(f"{name}: {' '.join(words)}\n{done.stdout[-4000:]}", flush=True)
        return failed(name, f"exit code {done.returncode}: {_last(done)}")
    return Reading(name, 1, "passed", reason=_last(done))


def _extension(stamp: Path) -> Taking:
    """And the facts of the package beside it: without them `import rt` finds no version."""

    def take() -> Sequence[Reading]:
        words = (sys.executable, "setup.py", "-q", "egg_info", "build_ext", "--inplace")
        capability = machine.facts()["compute_cap"].replace(".", "")
        reading = _run("extension", *words, SDRT_CUDA_ARCHS=capability)
        if reading.value is not None:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
        return [reading]

    return take


def _operators() -> Iterable[Reading]:
    """Each operator in ms, and those that move memory as a share of the measured copy."""
    from bench.gpu.operators import readings

    return readings()


def gpu_tests() -> list[Path]:
    """The files that have a test for a GPU."""
    tests = sorted((machine.ROOT / "tests").rglob("test_*.py"))
    return [path for path in tests if "pytest.mark.gpu" in path.read_text()]


def _tests() -> Iterable[Reading]:
    """Only files that need a GPU: others need libraries that such a machine may lack. Those of
    TensorRT are a reading of their own, which says so where none is installed.
    """
    from bench.gpu.probe import builds_for
    from rt.backends.base import library_name
    from rt.backends.tensorrt import FLAVOURS

    files = gpu_tests()
    words = (sys.executable, "-m", "pytest", "-m", "gpu")
    ours = [str(path) for path in files if "tensorrt" not in path.name]
    theirs = [str(path) for path in files if "tensorrt" in path.name]
    yield _run("tests", *words, *ours, RT_REQUIRE_GPU="1")
    installed = [flavour for flavour in FLAVOURS if library_name(flavour)]
    if not installed:
        absent = "neither TensorRT nor TensorRT for RTX is installed: nothing was tested"
        yield refused("tests of TensorRT", absent)
        return
    here, listed = builds_for(installed[0])
    if listed:
        yield _run("tests of TensorRT", *words, *theirs, RT_REQUIRE_GPU="1")
    else:
        why = f"{installed[0]} does not build for GPUs of {here}: nothing was tested"
        yield refused("tests of TensorRT", why)


def _packages(models: Sequence[Model], stamp: Path) -> Taking:
    def take() -> Iterable[Reading]:
        from bench.gpu.cases import Case
        from bench.gpu.packages import compile_all

        return _stamped(compile_all([Case(*model) for model in models], WORK), stamp)

    return take


def _engines(models: Sequence[Model], stamp: Path) -> Taking:
    def take() -> Iterable[Reading]:
        from bench.gpu.cases import Case
        from bench.gpu.streams import build_all

        return _stamped(build_all([Case(*model) for model in models], WORK), stamp)

    return take


def _stamped(readings: Iterable[Reading], stamp: Path) -> Iterator[Reading]:
    """The readings; and `stamp` is left where none of them failed."""
    broken = 0
    for reading in readings:
        broken += reading.outcome == "failed"
        yield reading
    if not broken:
        stamp.touch()


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


def _peaks(rows: Rows) -> dict[str, float]:
    """The measured products, in TFLOP/s."""
    from bench.gpu.timing import NARROW_PRODUCT, PRODUCT

    taken = (rows.newest().get(name) for name in (PRODUCT, NARROW_PRODUCT))
    found = (row.reading for row in taken if row is not None)
    return {reading.name: reading.value for reading in found if reading.value is not None}


def _candidates(rows: Rows, *kinds: str) -> Taking:
    def take() -> Iterable[Reading]:
        from bench.gpu.candidates import readings

        return readings(kinds, _peaks(rows))

    return take


def _units(model: Model, rows: Rows) -> Taking:
    def take() -> Iterable[Reading]:
        from bench.gpu.cases import Case
        from bench.gpu.units import readings

        return readings(Case(*model), _peaks(rows), WORK)

    return take


def _streams(model: Model, steps: int) -> Taking:
    def take() -> Iterable[Reading]:
        from bench.gpu.cases import Case
        from bench.gpu.streams import readings

        return readings(Case(*model), steps, WORK)

    return take


def _peers() -> Iterator[Reading]:
    """What `python -m bench.peers` measures, where all that it needs is there."""
    installed = [name for name in ("diffusers", "av") if find_spec(name) is not None]
    needed = {"models", "diffusers", "av"}.difference(installed)
    absent = sorted(name for name in needed if not (PEERS / name).is_dir())
    if absent:
        folder = PEERS.relative_to(machine.ROOT)
        yield refused("peers", f"{', '.join(absent)} not installed, nor in {folder} (make peers)")
        return
    rows = WORK / "peers.jsonl"
    rows.unlink(missing_ok=True)
    found = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(PEERS)])
    words = (sys.executable, "-m", "bench.peers", "--device", "cuda:0")
    words = (*words, "--package", str(PEERS), "--json", str(rows))
    yield _run("peers", *words, PYTHONPATH=found)
    for line in rows.read_text().splitlines() if rows.is_file() else ():
        row = json.loads(line)
        name = f"peers: {row['name']}"
        yield Reading(name, row["value"], row["unit"], row["runs"], row["limit"], row["note"])


def _logical() -> Iterable[Reading]:
    from bench.gpu.cases import Case
    from bench.gpu.streams import logical

    return logical(Case(*WIDE), WORK)


def results_of(folder: Path, name: str) -> Path:
    """The file of a GPU's rows."""
    words = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    return folder / f"gpu-{words}.jsonl"
