"""The logic of `make gpu`, on rows that were made up here: no number in this file was measured."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench import ops, table
from bench.gpu import __main__ as command
from bench.gpu import (
    candidates,
    compare,
    machine,
    operators,
    packages,
    sections,
    streams,
    timing,
    units,
)
from bench.gpu.cases import Case, chain_of
from bench.gpu.plan import QUICK_S, SECTION_S, Measure, Section, missing, pack
from bench.gpu.record import Reading, Row, Rows, failed, refused
from bench.gpu.targets import ALL, Target
from export import inductor
from export.units import PhaseSpec
from rt import ops_matrix
from rt.backends.inductor import Card
from rt.errors import AdmissionRefused, ConfigError, StageFailed

MADE_UP = {"name": "made-up H200 of a test", "commit": "0000000", "driver_version": "0"}


def row(reading: Reading, measure: str = "m", key: str = "k", last: bool = True) -> Row:
    return Row("s", measure, key, reading, MADE_UP, last)


# What runs


def test_without_a_gpu_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpu_names", list)
    assert command.main([]) == command.main(["--quick"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert all("no NVIDIA GPU" in line for line in out)


def alone(folder: Path) -> dict[str, str]:
    """Variables for a make with the commands of `folder`, without those of one that runs us."""
    of_make = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    kept = {name: value for name, value in os.environ.items() if name not in of_make}
    return {**kept, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "words", [["gpu"], ["gpu-quick"], ["-j4", "gpu"], ["-k", "gpu", "RESULTS=x", "PORT=1"]]
)
def test_make_without_a_gpu_is_one_line_and_exit_code_1(words: list[str], tmp_path: Path) -> None:
    """GNU make itself would end with 2."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    variables = alone(tmp_path)
    done = subprocess.run(
        ["make", *words], cwd=machine.ROOT, env=variables, capture_output=True, text=True
    )
    (line,) = (done.stdout + done.stderr).splitlines()
    target = next(word for word in words if word.startswith("gpu"))
    assert line == f"make {target}: this machine has no NVIDIA GPU that nvidia-smi can list"
    assert done.returncode == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_with_a_gpu_runs_the_python_that_is_there(tmp_path: Path) -> None:
    """All in a folder of its own: nothing here may be installed."""
    shutil.copy(machine.ROOT / "Makefile", tmp_path)
    (tmp_path / "csrc").mkdir()
    for name, says in (("nvidia-smi", "GPU 0: made up"), ("made-up-python", '"$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {says}\n")
        (tmp_path / name).chmod(0o755)
    variables = alone(tmp_path)
    words = ["make", "-s", "gpu-quick", "PYTHON=made-up-python", "WITHIN=90"]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.stdout.rstrip() == "-m bench.gpu --results bench/results --within 90 --quick"
    assert done.returncode == 0


ABSENT = (
    "av", "diffusers", "polygraphy", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "aiortc",
    "fastapi", "uvicorn", "websockets", "playwright", "schemathesis", "huggingface_hub",
    "transformers", "cv2", "skimage", "sklearn", "psutil", "msgpack",
)  # fmt: skip
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r} or name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: a test has taken it away")

sys.meta_path.insert(0, Without())
"""
"""A machine with a GPU has torch, CuPy, NumPy, onnx, ONNX Runtime, onnxscript, rich, pytest and
hypothesis; not these. Some of them may be there: nothing that is run there needs them.
"""


def without(absent: Collection[str], then: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=tuple(absent)) + then], cwd=machine.ROOT,
        env={**os.environ, "PYTHONPATH": "python:."}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_plan_is_made_before_the_extension_is_built(tmp_path: Path) -> None:
    """On a fresh machine `import rt` fails until a measure has built `rt._C`."""
    then = f"""
from bench.gpu.__main__ import main
raise SystemExit(main(["--dry-run", "--results", {str(tmp_path)!r}]))
"""
    done = without(("rt", "torch", *ABSENT), then)
    assert done.returncode == 0, done.stderr
    assert "[to do] extension" in done.stdout


def test_the_measure_of_the_extension_leaves_the_facts_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`import rt` asks for its version, and on a machine with a GPU nobody has installed it. In a
    folder of its own, by a Python that does not see what is installed here.
    """
    asked: list[tuple[str, ...]] = []

    def run(_name: str, *words: str, **_: str) -> Reading:
        asked.append(words)
        return failed("extension", "not built in a test")

    monkeypatch.setattr(sections, "_run", run)
    list(sections._extension(tmp_path / "stamp")())
    ((_python, _setup, *commands),) = asked
    assert commands == ["-q", "egg_info", "build_ext", "--inplace"]
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(machine.ROOT / name, tmp_path)
    for folder in ("python", "export"):
        (tmp_path / folder).symlink_to(machine.ROOT / folder)
    words = [sys.executable, "setup.py", "-q", "egg_info"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    ask = "import importlib.metadata as m; print(m.version('streamdiffusion-rt'))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", ask], cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip(), done.stderr


def test_what_runs_on_a_gpu_needs_no_library_that_such_a_machine_lacks() -> None:
    then = """
import bench.gpu.candidates, bench.gpu.operators, bench.gpu.packages, bench.gpu.probe
import bench.gpu.streams, bench.gpu.timing, bench.gpu.units
import export.build, export.random_weights
import bench.performance, bench.plots
"""
    done = without(ABSENT, then)
    assert done.returncode == 0, done.stderr


def test_the_tests_that_run_on_a_gpu_are_found_without_those_libraries() -> None:
    then = f"""
import pytest
raise SystemExit(pytest.main(["-p", "no:cacheprovider", "-m", "gpu", "--collect-only", "-q",
                              *{[str(path) for path in sections.gpu_tests()]!r}]))
"""
    done = without(ABSENT, then)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_ops_device.py" in done.stdout


def test_a_dry_run_names_every_measure_and_takes_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main(["--dry-run", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    everything = sections.everything(Rows(tmp_path / "none"))
    for section in everything:
        assert f"{section.name} ({section.seconds} s)" in out
        assert all(f"[to do] {m.name}: " in out for m in section.measures)
    assert list(tmp_path.iterdir()) == []
    assert command.main(["--only", "nothing", "--dry-run"]) == 2


def test_sections_end_in_time_and_every_measure_has_its_own_name(tmp_path: Path) -> None:
    everything = sections.everything(Rows(tmp_path / "none"))
    assert everything[0].name == "quick"
    assert everything[0].seconds <= QUICK_S
    assert all(section.seconds < section.limit_s <= SECTION_S for section in everything)
    assert all(m.seconds < m.limit_s < SECTION_S for s in everything for m in s.measures)
    names = [m.name for section in everything for m in section.measures]
    assert len(names) == len(set(names))
    assert len({section.name for section in everything}) == len(everything)


def test_what_tells_most_comes_first(tmp_path: Path) -> None:
    """Ten minutes hold the ceilings, a step, the VAE, and FPS of one step at both sizes."""
    measures = [m for s in sections.everything(Rows(tmp_path / "none")) for m in s.measures]
    names = [m.name for m in measures]
    telling = (
        "ceilings", "attention", "units wan-1.3b 480x832 wan",
        "stream wan-1.3b 480x832 wan, 1 steps", "stream wan-1.3b 512x512 wan, 1 steps",
    )  # fmt: skip
    last = max(names.index(name) for name in telling)
    before = set(names[: last + 1])
    assert before == {*telling} | {need for m in measures[: last + 1] for need in m.needs} | {
        name for name in before if name.startswith("present")
    }
    for place, m in enumerate(measures):
        assert {*m.needs} <= set(names[:place]), m.name
        assert all(measures[names.index(need)].product for need in m.needs)


def test_a_fresh_machine_makes_again_what_the_rest_needs_and_nothing_else(tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.touch()
    made = Measure("made", "", 1, list, (), gone)
    kept, unused = Measure("kept", "", 1, list, (), there), Measure("unused", "", 1, list, (), gone)
    late, done = Measure("late", "", 1, list, ("made", "kept")), Measure("done", "", 1, list)
    plan = (Section("a", (made, kept, unused)), Section("b", (late, done)))
    answered = {"made", "kept", "unused", "done"}
    assert missing(plan, answered) == (Section("a", (made,)), Section("b", (late,)))
    assert missing(plan, answered | {"late"}) == ()
    assert missing(plan, (), ["b"]) == (Section("a", (made,)), Section("b", (late, done)))


@given(st.lists(st.integers(1, 384), max_size=30))
def test_packing_keeps_order_loses_nothing_and_keeps_the_limit(seconds: list[int]) -> None:
    measures = [Measure(str(i), "", s, list) for i, s in enumerate(seconds)]
    packed = pack("p", measures)
    assert [m for section in packed for m in section.measures] == measures
    assert all(section.seconds <= 0.8 * SECTION_S for section in packed)
    assert missing(packed, {m.name for m in measures}) == ()
    assert missing(packed, ()) == packed


def test_a_measure_that_fits_no_section_is_refused() -> None:
    with pytest.raises(ValueError, match="385 s, expected at most 384 s"):
        pack("p", [Measure("long", "", 385, list)])


# What is resumed


class Taken:
    """A measure that counts how often it is taken, and breaks after some readings."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.count = 0
        self.breaks_after = breaks_after

    def __call__(self) -> Iterator[Reading]:
        self.count += 1
        for i in range(3):
            if i == self.breaks_after:
                raise RuntimeError("out of memory\nsecond line")
            yield Reading(f"r{i}", float(i), "ms")


def taken(section: Section, path: Path, key: str = "k") -> bool:
    return sections.take(section, [m.name for m in section.measures], Rows(path), key, MADE_UP)


def test_what_broke_is_not_answered_until_it_is_taken_to_its_end(tmp_path: Path) -> None:
    bad = Taken(breaks_after=1)
    section = Section("s", (Measure("bad", "", 1, bad),))
    path = tmp_path / "rows.jsonl"
    assert not taken(section, path)
    newest = Rows(path).newest()
    assert newest["bad"].reading.reason == "RuntimeError: out of memory"
    assert newest["r0"].reading.value == 0
    bad.breaks_after = None
    assert taken(section, path)
    assert "bad" not in Rows(path).newest()
    assert Rows(path).newest()["taking: bad"].reading.unit == "s"
    rows = Rows(path)
    assert rows.answered("bad", "k")
    assert not rows.answered("bad", "another machine")


def test_a_worker_takes_what_it_is_told_and_ends_where_one_breaks(tmp_path: Path) -> None:
    """What is left on the GPU by then is not for the next one."""
    each = {name: Taken(0 if name == "b" else None) for name in "abc"}
    section = Section("s", tuple(Measure(name, "", 1, take) for name, take in each.items()))
    rows = Rows(tmp_path / "rows.jsonl")
    assert sections.take(section, ["a"], rows, "k", MADE_UP)
    assert not sections.take(section, ["b", "c"], rows, "k", MADE_UP)
    assert [taken.count for taken in each.values()] == [1, 1, 0]


def test_a_program_that_gives_up_says_why(tmp_path: Path) -> None:
    def gives_up() -> list[Reading]:
        raise SystemExit("no GPU that CuPy can use")

    assert not taken(Section("s", (Measure("m", "", 1, gives_up),)), tmp_path / "rows.jsonl")
    newest = Rows(tmp_path / "rows.jsonl").newest()
    assert newest["m"].reading.reason == "SystemExit: no GPU that CuPy can use"


def test_a_reading_is_on_disk_before_the_next_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def killed() -> Iterator[Reading]:
        yield Reading("r0", 1.0, "ms")
        assert [r.reading.name for r in Rows(path)] == ["r0"]
        yield Reading("r1", 1.0, "ms")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taken(Section("s", (Measure("m", "", 1, killed),)), path)
    assert [r.reading.name for r in Rows(path)] == ["r0", "r1"]
    assert not Rows(path).answered("m", "k")
    assert taken(Section("s", (Measure("m", "", 1, Taken()),)), path)
    assert Rows(path).answered("m", "k")


def test_a_measure_that_takes_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> Iterator[Reading]:
        yield Reading("r0", 1.0, "ms")
        time.sleep(60)

    monkeypatch.setattr(Measure, "limit_s", 0.2)
    before = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert not taken(Section("s", (Measure("m", "", 1, slow),)), tmp_path / "rows.jsonl")
    after = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert after == before
    newest = Rows(tmp_path / "rows.jsonl").newest()
    assert newest["m"].reading.reason == "TimeoutError: stopped after 0.2 s"
    assert newest["r0"].reading.value == 1


def test_rows_go_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Rows(path).append([row(Reading("r0", 1.0, "ms"))])
    path.write_text(path.read_text() + path.read_text()[:40])
    rows = Rows(path)
    rows.append([row(Reading("r1", 1.0, "ms"))])
    assert [r.reading.name for r in Rows(path)] == ["r0", "r1"]


def test_rows_of_other_sources_count_where_that_is_said(tmp_path: Path) -> None:
    facts = {"name": "x", "code": "1", "driver_version": "580.159.03"}
    rows = Rows(tmp_path / "rows.jsonl")
    rows.append([row(Reading("r", 1.0, "ms"), key=machine.key_of(facts))])
    for changed, same, counts in (
        ({"driver_version": "580.159.04"}, True, True),
        ({"code": "2"}, False, True),
        ({"driver_version": "590.1"}, False, False),
        ({"name": "y"}, False, False),
    ):
        key = machine.key_of(facts | changed)
        assert rows.answered("m", key) == same
        assert rows.answered("m", key.partition("-")[0]) == counts


def test_a_refusal_is_an_answer(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    rows.append([row(refused("r", "not installed"))])
    assert rows.answered("m", "k")
    rows.append([row(failed("r", "broke"))])
    assert not rows.answered("m", "k")


READINGS = st.builds(
    Reading,
    st.text(min_size=1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.integers(1, 100),
    st.none() | st.floats(0.1, 1e6),
    st.text(),
    st.just("measured"),
    st.lists(st.floats(0, 1e6)).map(tuple),
)


@settings(max_examples=30)
@given(st.lists(READINGS, max_size=8), st.integers(0, 200))
def test_rows_come_back_from_disk_and_a_cut_last_line_is_left_out(
    tmp_path_factory: pytest.TempPathFactory, readings: list[Reading], cut: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    written = [row(reading) for reading in readings]
    Rows(path).append(written)
    assert list(Rows(path)) == written
    data = path.read_bytes()
    end = data.rfind(b"\n", 0, -1) + 1
    path.write_bytes(data[: max(end, len(data) - 1 - cut)])
    assert list(Rows(path)) in (written[:-1], written)


def test_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Rows(path).append([row(Reading("r", 1.0, "ms"))])
    path.write_text('{"value": 1}\n' + path.read_text())
    with pytest.raises(ValueError, match=r"rows.jsonl:1: .*expected a row"):
        Rows(path)


@pytest.mark.parametrize(
    "fields", [{"value": None}, {"value": float("nan")}, {"value": 1.0, "outcome": "failed"}]
)
def test_a_reading_is_a_number_or_a_reason(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="r: got"):
        Reading(**{"name": "r", "unit": "ms", **fields})


def test_the_command_runs_what_is_missing_compares_and_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker runs in this process instead of its own."""
    good, bad, other = Taken(), Taken(breaks_after=0), Taken()
    made = (
        Section("quick", (Measure("good", "", 1, good),)),
        Section("more", tuple(Measure(n, "", 1, t) for n, t in (("bad", bad), ("other", other)))),
        Section("slow", tuple(Measure(name, "", 1, Taken()) for name in ("late", "later"))),
        Section("dies", (Measure("dead", "", 1, Taken()),)),
    )
    monkeypatch.setattr(machine, "gpu_names", lambda: ["Made Up 100"])
    monkeypatch.setattr(command, "everything", lambda _rows: made)

    def worker(words: list[str], seconds: float) -> str:
        assert 0 < seconds <= SECTION_S
        if "slow" in words:
            return "stopped after 480 s" if "late" in words else ""
        if "dies" in words:
            return "the process ended with -11"
        assert command.main(words) in (0, sections.BROKE)
        return ""

    monkeypatch.setattr(command, "_worker", worker)
    for module in (machine, table):
        monkeypatch.setattr(module, "command", lambda *_: "")
    results = ["--results", str(tmp_path)]
    assert command.main(["--quick", *results]) == 0
    assert command.main(results) == 1
    assert (good.count, bad.count, other.count) == (1, 1, 1)
    out = capsys.readouterr().out
    assert "4 measures are left or broke (bad, late, later, dead); run this again" in out
    assert "not measured" in out
    newest = Rows(tmp_path / "gpu-made-up-100.jsonl").newest()
    assert newest["late"].reading.reason == "stopped after 480 s"
    assert newest["later"].reading.reason == "the process ended without it"
    assert "other" not in newest
    assert newest["dead"].reading.reason == "the process ended with -11"
    assert command.main(["--within", "1", *results]) == 1
    assert bad.count == 1, "there was no time left to begin it"


def test_a_worker_that_hangs_or_dies_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import subprocess, sys, time; {}; print(p.pid, file=open({!r}, 'w')); {}"
    start = "p = subprocess.Popen(['sleep', '60'])"
    fake, real = tmp_path / "python", sys.executable
    monkeypatch.setattr(command.sys, "executable", str(fake))
    for end, why in (
        ("p.wait()", "stopped after 3 s"),
        ("sys.stdout.flush(); __import__('os').abort()", "the process ended with -6"),
        (f"sys.exit({sections.BROKE})", ""),
    ):
        said = tmp_path / "pid"
        code = child.format(start, str(said), end)
        fake.write_text(f'#!/bin/sh\nexec {real} -c "{code}"\n')
        fake.chmod(0o755)
        assert command._worker([], 3) == why
        state = Path(f"/proc/{said.read_text().strip()}/stat")
        ended = time.monotonic() + 5
        while state.exists() and state.read_text().split()[2] != "Z":
            assert time.monotonic() < ended, "what it started still runs"
            time.sleep(0.01)


# What is measured


def test_every_target_is_the_name_of_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators have their own names, and run here on NumPy in CuPy's place without being timed."""
    monkeypatch.setattr(operators, "device", lambda: (np, "none"))
    monkeypatch.setattr(ops, "device_seconds", lambda *_: 1e-3)
    monkeypatch.setattr(ops.ops, "flow_scratch", lambda *_: 1)
    cases = [Case(*m) for m in (*sections.MODELS, sections.LARGE, sections.LARGE_NARROW)]
    made = {name for case in cases for n in (1, 2, 4) for name in streams.names(case, n)}
    made |= {f"{case.size}: step, batch 1" for case in cases}
    made |= {f"{case.name}: {kind}" for case in cases for kind in ("encode", "decode")}
    made |= {reading.name for reading in operators.readings(1)}
    assert {target.name for target in ALL} <= made


# REFERENCE section 6: TFLOP of a chunk, and of a step with a window of 6.
WORK = {
    sections.WIDE: {"encode": 8.05, "decode": 13.55, "step": 6.74},
    sections.SQUARE: {"encode": 5.27, "decode": 8.88, "step": 3.82},
    sections.SMALL[0]: {"encode": 0.24, "decode": 0.54, "step": 6.74},
    sections.LARGE: {"step": 49.9},
}


@pytest.mark.parametrize("model", WORK, ids=lambda model: Case(*model).name)
def test_the_work_that_shares_are_taken_of_is_the_published_one(model: Any) -> None:
    """Counted from the graphs that are timed, against numbers reckoned from the dimensions."""
    done = dict.fromkeys(("encode", "decode", "step"), 0)
    for unit in chain_of(Case(*model)).chain:
        done[unit.kind if unit.kind in done else "step"] += unit.phases["step"].flop
    for kind, tera in WORK[model].items():
        assert done[kind] / 1e12 == pytest.approx(tera, rel=0.03), kind


class Threads(ThreadPoolExecutor):
    """In the place of processes."""

    def __init__(self, workers: int, mp_context: Any) -> None:
        assert mp_context.get_start_method() == "spawn"
        super().__init__(workers)


class Compiler:
    """A compiler that makes an empty package and says that it reads every weight."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, spec: PhaseSpec, *, precision: str, may_ignore: Any) -> inductor.Package:
        del may_ignore
        self.count += 1
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("unit/graph", str(self.count))
        weights = tuple(spec.module.state_dict())
        card = Card("sha", torch.__version__, "none", precision, (), {}, {}, (), ())
        return inductor.Package(data.getvalue(), card, weights)


@pytest.mark.parametrize(
    "precision, folder", [("bf16", "tiny-64x64-own"), ("fp8", "tiny-64x64-own-fp8")]
)
def test_an_engine_is_made_of_the_packages_that_units_are_timed_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str, folder: str
) -> None:
    """Nothing is compiled twice: neither for a second unit of a graph, nor for the engine."""
    compiler = Compiler()
    monkeypatch.setattr(inductor, "compile_package", compiler)
    streams.build.cache_clear()
    case = Case("tiny", 64, 64, "own", precision)
    graphs = packages.graphs(case)
    kinds = {name.rstrip("0123456789") for name, _ in graphs}
    assert kinds == {"prompt_in", "prompt_kv_", "dit_in", "block_", "dit_out", "encode_", "decode_"}
    for unit, phase in graphs:
        packages._compiled(case, tmp_path, unit, phase)
    assert compiler.count == len(graphs)
    engine = streams.build(case, tmp_path)
    assert compiler.count == len(graphs)
    assert (engine / "manifest.json").is_file()
    assert engine == tmp_path / "engines" / folder
    bare = packages.graphs(Case("tiny", 64, 64, "", "bf16"))
    assert {name.rstrip("0123456789") for name, _ in bare} == {"dit_in", "block_", "dit_out"}


def test_what_does_not_compile_is_a_reading_and_the_others_are_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compiled(_case: Case, _root: Path, unit: str, _phase: str) -> float:
        if unit == "block_0":
            raise RuntimeError("no kernel")
        return 2.0

    monkeypatch.setattr(packages, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(packages, "_compiled", compiled)
    monkeypatch.setattr(packages, "_checkpoint", lambda *_: 3.0)
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    case = Case("tiny", 64, 64, "own", "bf16")
    found = {r.name: r for r in packages.compile_all([case], tmp_path)}
    assert found["tiny 64x64 own: block_0 step compiled"].reason == "RuntimeError: no kernel"
    assert found["tiny 64x64 own: decode_0 first compiled"].value == 2
    assert found["tiny 64x64 own: checkpoint written"].value == 3
    assert len(found) == len(packages.graphs(case)) + 1
    monkeypatch.setattr(packages, "compile_all", lambda *_: iter(found.values()))
    stamp = tmp_path / "stamp"
    assert len(list(sections._packages([], stamp)())) == len(found)
    assert not stamp.exists()
    del found["tiny 64x64 own: block_0 step compiled"]
    assert len(list(sections._packages([], stamp)())) == len(found)
    assert stamp.exists()


def test_the_rate_of_several_sessions_is_that_of_the_time_when_all_ran() -> None:
    ms = 1_000_000
    slow, fast = [i * 20 * ms for i in range(6)], [10 * ms + i * 10 * ms for i in range(6)]
    assert streams.rate([slow, fast]) == pytest.approx((3 + 5) / 0.05)
    assert streams.rate([fast]) == pytest.approx(100)
    with pytest.raises(RuntimeError, match="beside each other"):
        streams.rate([[0, 1], [2, 3]])


def test_a_profiler_that_saw_nothing_counts_no_wait() -> None:
    calls = {"cudaGraphLaunch": 40, "cudaStreamSynchronize": 30, "cudaMemcpy": 10}
    reading = streams.waits("w", calls, 20)
    assert reading.value == 2
    assert reading.reason == "cudaMemcpy 10, cudaStreamSynchronize 30"
    assert streams.waits("w", {"cudaGraphLaunch": 40}, 20).value == 0
    assert streams.waits("w", {}, 20).outcome == "failed"


def test_a_stream_that_is_refused_or_breaks_does_not_take_the_next_reading_with_it() -> None:
    def breaks(error: Exception) -> Any:
        def take() -> Iterator[Reading]:
            yield Reading("r", 1.0, "ms")
            raise error

        return take

    refusal, broken = AdmissionRefused("too slow"), StageFailed("cuda:0", 0, 1, "broke")
    assert [r.outcome for r in streams.kept("k", breaks(refusal))] == ["measured", "refused"]
    for error in (broken, RuntimeError("CUDA out of memory")):
        assert [r.outcome for r in streams.kept("k", breaks(error))] == ["measured", "failed"]
    with pytest.raises(TypeError):
        list(streams.kept("k", breaks(TypeError("a slip of ours"))))


def test_where_the_runtime_takes_no_gpu_every_stream_is_refused_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no(_names: str) -> None:
        raise ConfigError("devices: none here")

    monkeypatch.setattr(streams.devices, "resolve", no)
    case = Case(*sections.MODELS[0])
    found = [*streams.readings(case, 2, tmp_path), *streams.logical(case, tmp_path)]
    assert {r.outcome for r in found} == {"refused"}
    assert {r.reason for r in found} == {"ConfigError: devices: none here"}
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_built_or_refused_and_anything_else_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = Case(*sections.MODELS[0])

    def build(error: Exception | None) -> Any:
        def run(*_: object) -> Path:
            if error is not None:
                raise error
            (tmp_path / "plan").write_bytes(bytes(3_000_000))
            return tmp_path

        return run

    monkeypatch.setattr(streams, "build", build(None))
    found = [*streams.built(case, tmp_path)]
    assert found[1].value == pytest.approx(0.003)
    monkeypatch.setattr(streams, "build", build(ConfigError("precision: got bf16")))
    assert [r.outcome for r in streams.built(case, tmp_path)] == ["refused"]
    monkeypatch.setattr(streams, "build", build(MemoryError("full")))
    with pytest.raises(MemoryError):
        list(streams.built(case, tmp_path))

    monkeypatch.setattr(streams, "ProcessPoolExecutor", Threads)
    (broken,) = streams.build_all([case], tmp_path)
    assert (broken.name, broken.outcome) == (f"{case.name}: engine built", "failed")
    monkeypatch.setattr(streams, "build", build(None))
    assert [r.outcome for r in streams.build_all([case], tmp_path)] == ["measured"] * 2


class Fake:
    """An engine that counts its launches, in the place of a package on a GPU."""

    launches = 0

    def bind(self, _arrays: object) -> Any:
        return self.plain(_arrays)

    def plain(self, arrays: Any) -> Any:
        assert all(isinstance(a, torch.Tensor) for a in arrays.values())

        def launch() -> None:
            Fake.launches += 1

        return launch


def test_the_readings_of_a_model_with_engines_that_do_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Names, shares and how much is launched, all but the time."""

    def engine(self: units.Compiled, unit: Any, phase: str = "step") -> Any:
        del self
        return Fake(), unit.phases[phase]

    def counted(launch: Any) -> float:
        before = Fake.launches
        launch()
        return float(Fake.launches - before)

    def captured(launches: Any) -> Any:
        return lambda: [launch() for launch in launches]

    on_cpu = units._random
    monkeypatch.setattr(units.Compiled, "engine", engine)
    monkeypatch.setattr(units, "median_ms", counted)
    monkeypatch.setattr(units, "capture", captured)
    monkeypatch.setattr(units, "_random", lambda n, s, d: on_cpu(n, s, d, "cpu"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5e9)
    case = Case("tiny", 64, 64, "own", "bf16")
    found = {r.name: r for r in units.readings(case, {timing.PRODUCT: 2.0}, tmp_path)}
    blocks = 6
    step = found["tiny 64x64: step, batch 2"]
    assert step.value == blocks + 2
    assert step.limit is not None
    single = sum(
        (found[f"tiny 64x64 own: unit {u}, batch 2"].limit or 0) * n
        for u, n in (("dit_in", 1), ("block", blocks), ("dit_out", 1))
    )
    assert step.limit == pytest.approx(single)
    halves = sum(found[f"tiny 64x64 own: {kind}"].value or 0 for kind in ("encode", "decode"))
    whole = found["tiny 64x64 own: FPS of the units alone, 4 steps"].value
    assert whole == pytest.approx(4e3 / (halves + blocks + 2))
    assert found["tiny 64x64 own: memory"].value == 5.0


def test_a_backend_is_probed_as_far_as_it_gets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Absent; present without a builder; a builder that fails; a fault that is ours."""
    from bench.gpu import probe
    from export import build
    from rt.backends import base

    (absent,) = probe.backend("tensorrt", tmp_path)
    assert absent.reason == "present: no (ImportError: no module tensorrt)"
    monkeypatch.setitem(base.LIBRARIES, "strange", ("nowhere", "json"))
    (unknown,) = probe.backend("strange", tmp_path)
    assert "builds: no (the exporter has no builder for it)" in unknown.reason

    def broken(error: Exception) -> Any:
        def run(_options: object) -> None:
            raise error

        return run

    monkeypatch.setattr(build, "build_engines", broken(RuntimeError("no kernel")))
    (stopped,) = probe.backend("onnxruntime", tmp_path)
    assert stopped.reason.endswith("builds: no (RuntimeError: no kernel)")
    monkeypatch.setattr(build, "build_engines", broken(TypeError("a slip of ours")))
    with pytest.raises(TypeError, match="slip"):
        list(probe.backend("onnxruntime", tmp_path))


@pytest.mark.parametrize(
    "capability, asked",
    [
        ((8, 9), {"backend tensorrt-rtx": (("8.9",), "SM89", "9.0")}),
        (
            (9, 0),
            {
                "backend tensorrt-rtx, as CURRENT on 9.0": (("9.0",), "CURRENT", "9.0"),
                "backend tensorrt-rtx, a plan for 8.9 on 9.0": (("8.9",), "SM89", "8.9"),
            },
        ),
    ],
)
def test_tensorrt_for_rtx_is_asked_about_a_gpu_that_it_does_not_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: tuple[int, int], asked: Any
) -> None:
    """Options that the exporter takes, a build for what the library calls this GPU, and a runtime
    that does not refuse a plan for another one before the library has seen it.
    """
    from bench.gpu import probe
    from export import build, tensorrt
    from rt.backends import tensorrt as runtime

    names = list(asked)
    found: dict[str, Any] = {}

    def built(options: Any) -> Any:
        build.check(options)
        (here,) = options.compute_capability
        enum = tensorrt._capabilities(runtime.library(options.backend))[here]
        found[names[len(found)]] = options.compute_capability, enum.name, runtime._dotted("90")
        return SimpleNamespace(directory=tmp_path)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(build, "build_engines", built)
    monkeypatch.setattr(probe, "_streams", lambda name, *_: Reading(name, 1.0, "of 1"))
    assert [r.name for r in probe.backend("tensorrt-rtx", tmp_path)] == names
    assert found == asked
    assert probe.builds_for("tensorrt-rtx")[1] == (len(names) == 1)


def test_probe_and_runtime_import_a_library_by_the_same_name() -> None:
    """What is installed here is present; the other flavour says which name it was looked for by."""
    for name in ("onnxruntime", "inductor", "tensorrt-rtx"):
        (reading,) = sections._present(name)()
        assert (reading.outcome, reading.value) == ("measured", 1), reading.reason
    (reading,) = sections._present("tensorrt")()
    assert reading.reason.endswith("no module tensorrt")


def test_facts_of_a_machine_with_and_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ", ".join(f"value {i}" for i in range(len(machine.QUERY)))
    real = machine.command
    for said in ("", asked):
        answer = {"nvidia-smi": said}
        monkeypatch.setattr(machine, "command", lambda *w, a=answer: a.get(w[0]) or real(*w))
        found = machine.facts()
        assert found["driver_version"] == ("value 1" if said else "")
        assert found["processor"]
        assert found["code"]


def test_times_are_taken_warm_and_with_cold_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for torch's clock that tells one ms for each launch between two events."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = log.count("launch")
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, stop: Event) -> float:
            return float(stop.at - self.at)

    fake = SimpleNamespace(
        empty=lambda *_, **__: SimpleNamespace(zero_=lambda: log.append("overwrite")),
        uint8=None,
        cuda=SimpleNamespace(Event=Event, synchronize=lambda: log.append("wait")),
    )
    monkeypatch.setattr(timing, "torch", fake)
    found = timing.times_ms(lambda: log.append("launch"), 2, 3)
    assert found == [1.0, 1.0]
    once = ["overwrite", "event", *["launch"] * 3, "event", "wait"]
    assert log[-2 * len(once) :] == [*once, *once]
    warm = log[: -2 * len(once)]
    assert warm[:6] == ["launch", "wait"] * 3
    assert set(warm) == {"launch", "wait"}


def test_a_limit_is_the_work_over_the_peaks() -> None:
    """At fp8 products by weights have a peak of their own: of a block of wan-1.3b, six layers of
    1536 by 1536 and two of 1536 by 8960, for 1560 tokens.
    """
    chain = chain_of(Case(*sections.NARROW))
    (block, *_) = (u.phases["step"] for u in chain.chain if u.kind == "block")
    (dit_in,) = (u.phases["step"] for u in chain.chain if u.kind == "dit_in")
    layers = 2 * 1560 * (6 * 1536 * 1536 + 2 * 1536 * 8960)
    rest = block.flop - layers
    wide, low = {timing.PRODUCT: 500.0}, {timing.NARROW_PRODUCT: 1000.0}
    assert units._limit([block], 2, "bf16", wide) == pytest.approx(2 * block.flop / 500e9)
    assert units._limit([block], 2, "fp8", wide | low) == pytest.approx(
        2 * (layers / 1000e9 + rest / 500e9)
    )
    assert units._limit([dit_in], 1, "fp8", wide) == pytest.approx(dit_in.flop / 500e9)
    assert units._limit([block], 1, "fp8", wide) is None
    assert units._limit([block], 1, "bf16", low) is None


def test_a_gpu_without_e4m3_is_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To units, streams, the ceiling and what is compiled: none is tried again."""

    def old(precision: str) -> None:
        if precision == "fp8":
            raise ConfigError("precision: got fp8")

    monkeypatch.setattr(inductor, "check_precision", old)
    (reading,) = units.readings(Case(*sections.NARROW), {}, tmp_path)
    assert (reading.name, reading.outcome) == ("wan-1.3b 480x832 fp8: step, batch 1", "refused")
    assert "got fp8" in reading.reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert timing._narrow_product().outcome == "refused"
    monkeypatch.setattr(streams.devices, "resolve", lambda _: ())
    found = [*streams.readings(Case(*sections.NARROW), 1, tmp_path)]
    assert [(r.outcome, r.reason) for r in found] == [("refused", reading.reason)] * 2
    monkeypatch.setattr(packages, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(packages, "_checkpoint", lambda *_: 1.0)
    monkeypatch.setattr(packages, "_compiled", lambda *_: old("fp8"))
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setattr(sections, "WORK", tmp_path)
    made = [*sections._packages([("tiny", 64, 64, "own", "fp8")], tmp_path / "stamp")()]
    assert {r.outcome for r in made} == {"measured", "refused"}
    assert (tmp_path / "stamp").is_file()


@pytest.mark.parametrize(
    "operation",
    [
        candidates.attention(2, 2, 16, 96, 64, device="cpu"),
        candidates.product(32, 64, 48, device="cpu"),
        candidates.convolution(16, 4, 12, 20, device="cpu"),
    ],
    ids=lambda operation: operation.name,
)
def test_all_ways_do_the_same(operation: candidates.Operation) -> None:
    """Those that this processor has."""
    done = {}
    for name, way in operation.ways.items():
        with contextlib.suppress(RuntimeError):
            done[name] = way().float()
    assert len(done) >= 2
    first, *others = done
    for name in others:
        most = 0.1 if name in operation.narrow else 0.02
        assert done[name].shape == done[first].shape
        assert (done[name] - done[first]).abs().max() <= most * done[first].abs().max(), name


def test_candidates_are_most_of_a_block_and_of_the_vae() -> None:
    chain = chain_of(Case(*sections.WIDE))
    specs = [(unit.kind, unit.phases["step"]) for unit in chain.chain]
    block = next(spec for kind, spec in specs if kind == "block")
    vae = sum(spec.flop for kind, spec in specs if kind in ("encode", "decode"))
    with torch.device("meta"):
        kinds = ("attention", "product", "convolution")
        made = {op.name: op.flop for op in candidates.operations(kinds, "meta")}
    assert made.pop("attention of 1560 to 9360") == 4 * 12 * 128 * 1560 * 9360
    square, *outer = (n for name, n in made.items() if name.startswith("product"))
    prompt = 4 * 12 * 128 * 1560 * 512
    assert 4 * 12 * 128 * 1560 * 9360 + prompt + 6 * square + sum(outer) == block.flop
    each = [n for name, n in made.items() if name.startswith("convolution")]
    # How often each is in the encoder and the decoder together.
    assert sum(n * count for n, count in zip(each, (10, 9, 8), strict=True)) / vae > 0.8


def test_a_way_without_a_kernel_is_refused_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> torch.Tensor:
        raise RuntimeError("No viable backend\nsecond line")

    ways = {"a": none, "b": lambda: torch.ones(1), "low": lambda: torch.ones(1)}
    operation = candidates.Operation("o", 4_000_000_000, ways, frozenset({"low"}))
    monkeypatch.setattr(candidates, "operations", lambda kinds: [operation] * len(kinds))
    monkeypatch.setattr(candidates, "median_ms", lambda run: float(run()))
    found = {r.name: r for r in candidates.readings(["o"], {timing.PRODUCT: 2.0})}
    assert found["o: a"].reason == "RuntimeError: No viable backend"
    assert (found["o: b"].value, found["o: b"].limit) == (1.0, 2.0)
    assert found["o: low"].limit is None
    full = candidates.Operation("o", 1, {"a": memory})
    monkeypatch.setattr(candidates, "operations", lambda _: [full])
    with pytest.raises(torch.OutOfMemoryError):
        list(candidates.readings(["o"], {}))


def memory() -> torch.Tensor:
    raise torch.OutOfMemoryError("full")


def test_what_two_cases_share_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A DiT for every VAE, a VAE for every precision; not another size, nor a narrow block."""
    wide, small, low = (Case(*m) for m in (sections.WIDE, sections.SMALL[0], sections.NARROW))

    def paths(case: Case) -> dict[tuple[str, str], Path]:
        made = packages.Packages(case, tmp_path)
        return {
            (name, phase): made.path(packages._unit(case, name), phase, ".pickle")
            for name, phase in packages.graphs(case)
        }

    one, other, narrow = paths(wide), paths(small), paths(low)
    common = {"prompt_in", "prompt_kv_0", "dit_in", "block_0", "dit_out"}
    assert {name for (name, _), path in one.items() if path in other.values()} == common
    assert {place for place in one if one[place] != narrow[place]} == {("block_0", "step")}
    assert not set(one.values()) & set(paths(Case(*sections.SQUARE)).values())
    asked: list[tuple[str, str, str]] = []

    def compiled(case: Case, _root: Path, unit: str, phase: str) -> float:
        asked.append((case.name, unit, phase))
        return 1.0

    monkeypatch.setattr(packages, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(packages, "_compiled", compiled)
    monkeypatch.setattr(packages, "_checkpoint", lambda *_: 1.0)
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    list(packages.compile_all([wide, low], tmp_path))
    assert len(asked) == len(one) + 1
    for path in one.values():  # as a round before this one, or one that was stopped, has left it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    asked.clear()
    list(packages.compile_all([wide, low], tmp_path))
    assert asked == [(low.name, "block_0", "step")]


# What is compared


def compared_row(value: float) -> Row:
    return row(Reading("t", value, "ms"))


@pytest.mark.parametrize(
    "value, larger, verdict",
    [
        (20, False, "missed"), (16, False, "commit"), (12, False, "commit"),
        (11, False, "moonshot"), (5, True, "missed"), (16, True, "moonshot"), (11, True, "commit"),
    ],
)  # fmt: skip
def test_the_verdict_is_the_best_mark_that_was_reached(
    value: float, larger: bool, verdict: str
) -> None:
    commit, moonshot = (11, 16) if larger else (16, 11)
    target = Target("t", "ms", larger, 32.0, commit, moonshot, 8.0)
    (compared,) = compare.compare({"t": compared_row(value)}, [target])
    assert compared.verdict == verdict
    gain = value / 32 if larger else 32 / value
    assert compared.gain == pytest.approx(gain)
    (bold,) = compare.compare({"t": compared_row(value)}, [replace(target, commit=None)])
    assert bold.verdict == ("moonshot" if verdict == "moonshot" else "missed")
    unmarked = replace(target, commit=None, moonshot=None)
    assert compare.compare({"t": compared_row(value)}, [unmarked])[0].verdict == "no mark"


def test_what_was_not_measured_has_no_verdict_and_another_unit_is_refused() -> None:
    rows = {ALL[0].name: row(refused(ALL[0].name, "no room"))}
    compared = compare.compare(rows)
    assert {c.verdict for c in compared} == {"not measured"}
    assert compared[0].reason == "no room"
    with pytest.raises(ValueError, match="got s, expected ms"):
        compare.compare({ALL[0].name: row(Reading(ALL[0].name, 1.0, "s"))})


def test_marks_are_for_one_gpu() -> None:
    """Another is measured and compared with what is published, but judged by no mark of ours."""
    reading = Reading(ALL[0].name, 1.0, "ms")
    for name, verdict in (("NVIDIA H200", "moonshot"), ("made-up B1", "no mark for made-up B1")):
        measured = Row("s", "m", "k", reading, {"name": name})
        assert compare.compare({reading.name: measured})[0].verdict == verdict
    unmarked = next(t for t in ALL if t.commit is None)
    (compared,) = compare.compare({"t": row(Reading("t", 99.0, unmarked.unit))}, [
        Target("t", unmarked.unit, True, 24.0, None, None, None)
    ])  # fmt: skip
    assert (compared.verdict, compared.gain) == ("no mark", 99 / 24)


def test_targets_rise_from_published_to_limit() -> None:
    for t in ALL:
        marks = [m for m in (t.commit, t.moonshot, t.limit) if m is not None]
        assert marks == sorted(marks, reverse=not t.larger_is_better), t.name
        if t.published is not None and t.commit is not None:
            assert (t.commit > t.published) == t.larger_is_better, t.name


def test_the_tables_show_every_reading_and_every_target(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    rows.append(row(reading, reading.name) for reading in made_up())
    with (tmp_path / "out").open("w+") as file:
        compare.print_all(rows.newest(), Console(width=200, file=file))
        file.seek(0)
        text = file.read()
    assert all(reading.name in text for reading in made_up())
    assert all(target.name in text for target in ALL)


def made_up() -> list[Reading]:
    """A reading of every kind that a plot or a table takes."""
    case = Case(*sections.MODELS[0])
    values = [Reading(t.name, t.commit or 20.0, t.unit) for t in ALL if ": FPS" in t.name]
    spread = tuple(float(v) for v in range(100, 201))
    return [
        *values,
        Reading(f"{case.name}: unit block, batch 1", 0.5, "ms", limit=0.25),
        Reading(f"{case.name}: latency p50, 2 steps, 30 fps", 150, "ms", distribution=spread),
        *(
            Reading(f"{case.name}: FPS of 1 sessions on {n} logical devices", 10.0 + n, "frames/s")
            for n in (1, 2, 4)
        ),
        refused("backend tensorrt", "present: no (ModuleNotFoundError)"),
    ]


# What is written


def test_the_page_says_so_where_no_gpu_row_exists_and_only_then(tmp_path: Path) -> None:
    from bench import performance

    page = performance.page([], {}, [])
    assert "**No GPU row has been measured.**" in page
    assert page.count("| not measured |") == len(ALL)
    rows = Rows(tmp_path / "gpu-x.jsonl")
    rows.append([row(refused("backend tensorrt", "not installed"))])
    assert "**No GPU row has been measured.**" in performance.page([rows], {}, [])
    rows.append(row(reading, reading.name) for reading in made_up())
    page = performance.page([rows], {}, [])
    assert "No GPU row" not in page
    assert MADE_UP["name"] in page
    reached = [c for c in compare.compare(rows.newest()) if c.verdict == "commit"]
    assert page.count("| commit |\n") == len(reached) >= 7


def test_pages_and_plots_repeat_from_the_same_rows(tmp_path: Path) -> None:
    from bench import performance

    results = tmp_path / "results"
    Rows(results / "gpu-x.jsonl").append(row(r, r.name) for r in made_up())
    (results / "cpu").mkdir()
    cpu = {
        "benchmark": "stream: made up", "name": "block_0", "value": 2.0, "unit": "ms/chunk",
        "runs": 1, "limit": None, "note": "", "machine": {"processor": "none"},
    }  # fmt: skip
    (results / "cpu" / "stream.jsonl").write_text(json.dumps(cpu) + "\n")
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        performance.write(results, folder / "performance.md")
        texts.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert texts[0] == texts[1]
    assert set(texts[0]) == {
        "performance.md",
        *(f"performance-{n}.svg" for n in ("units", "fps", "latency", "scaling", "processor")),
    }
    assert all(f"({name})".encode() in texts[0]["performance.md"] for name in set(texts[0])
               if name.endswith("svg"))  # fmt: skip


def test_rows_of_two_gpus_stand_beside_each_other(tmp_path: Path) -> None:
    """Rows, comparison, page and plots: of an H200 whose section failed, and of another GPU."""
    from bench import performance

    results = tmp_path / "results"
    first = Rows(results / "gpu-a.jsonl")
    first.append(row(r, r.name) for r in made_up())
    first.append([row(failed("units", "the section | was stopped"), "units")])
    fps = next(t for t in ALL if t.published is not None)
    other = {**MADE_UP, "name": "made-up B1"}
    second = Rows(results / "gpu-b.jsonl")
    second.append([Row("s", "m", "k", Reading(fps.name, 2 * (fps.commit or 1), fps.unit), other)])
    performance.write(results, tmp_path / "performance.md")
    page = (tmp_path / "performance.md").read_text()
    assert page.count("| no mark for made-up B1 |") == 1
    assert page.count("| not measured |") == 2 * len(ALL) - len(compare_measured(first, second))
    assert "| units | – |  | – | the section / was stopped |" in page
    drawn = (tmp_path / "performance-fps.svg").read_text()
    assert f"made-up B1, {fps.name.partition(':')[0]}" in drawn
    assert f"{MADE_UP['name']}, {fps.name.partition(':')[0]}" in drawn


def compare_measured(*gpus: Rows) -> list[compare.Compared]:
    return [c for rows in gpus for c in compare.compare(rows.newest()) if c.value is not None]


def test_rows_of_two_kinds_of_processor_stand_beside_each_other(tmp_path: Path) -> None:
    from bench import performance

    source, results = tmp_path / "build", tmp_path / "results"
    source.mkdir()
    for kernel, value in (("amx", 20.25), ("avx2", 44.5), ("amx", 19.75), (None, 60.5)):
        about = {"processor": "made-up", **({} if kernel is None else {"kernel": kernel})}
        line = {
            "benchmark": "stream: made up", "name": "block_0", "value": value, "unit": "ms/chunk",
            "runs": 1, "limit": None, "note": "", "machine": about,
        }  # fmt: skip
        (source / "stream.jsonl").write_text(json.dumps(line) + "\n")
        performance.collect(source, results)
    tables = performance.cpu_rows(results)
    assert {title: [r["value"] for r in rows] for title, rows in tables.items()} == {
        "stream: made up": [60.5], "stream: made up (amx)": [19.75],
        "stream: made up (avx2)": [44.5],
    }  # fmt: skip
    performance.write(results, tmp_path / "performance.md")
    page = (tmp_path / "performance.md").read_text()
    assert "processor made-up; kernel avx2\n" in page
    drawn = (tmp_path / "performance-processor.svg").read_text()
    assert all(title in drawn for title in tables)


def test_rows_of_the_processor_say_which_kernel_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table.machine()["kernel"] == ops_matrix.matrix_kernels()[0]
    monkeypatch.setitem(sys.modules, "rt.ops_matrix", None)
    assert table.machine()["kernel"] == ""


def test_where_there_is_no_repository_a_variable_names_the_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert table.machine()["commit"]
    monkeypatch.setattr(table, "command", lambda *_: "")
    monkeypatch.setenv("COMMIT", "0000000")
    assert table.machine()["commit"] == "0000000"


def test_the_page_in_the_repository_is_what_its_rows_give() -> None:
    from bench import performance

    gpus = performance.gpu_rows(performance.RESULTS)
    cpus = performance.cpu_rows(performance.RESULTS)
    drawn = sorted(path.name for path in performance.PAGE.parent.glob("performance-*.svg"))
    text = performance.PAGE.read_text()
    plots = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line[:2] == "!["]
    operators = performance.device_rows(performance.RESULTS)
    simulated = performance.simulated_rows(performance.RESULTS)
    assert text == performance.page(gpus, cpus, plots, operators, simulated)
    assert sorted(plots) == drawn


def test_no_row_of_a_test_is_in_the_repository() -> None:
    for path in machine.ROOT.glob("bench/results/**/*.jsonl"):
        assert MADE_UP["name"] not in path.read_text()


def test_peers_are_measured_where_they_are_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rows that are equal count, also where another comparison was not."""
    monkeypatch.setattr(sections, "PEERS", machine.ROOT / "build" / "nowhere")
    (reading,) = sections._peers()
    assert (reading.name, reading.outcome) == ("peers", "refused")
    assert reading.reason.startswith("models not installed, nor in build/nowhere")
    monkeypatch.setattr(sections, "PEERS", tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(sections, "WORK", tmp_path)
    about = {"runs": 15, "limit": None, "note": "n"}
    made = {"name": "DiT step, 1 row: package / ours", "value": 2.5, "unit": "x", **about}

    def run(name: str, *words: str, **variables: str) -> Reading:
        assert variables["PYTHONPATH"].endswith(str(tmp_path))
        options = dict(itertools.pairwise(words))
        assert options["--device"] == "cuda:0"
        assert options["-m"] == "bench.peers"
        Path(options["--json"]).write_text(json.dumps(made) + "\n")
        return failed(name, "outputs differ")

    monkeypatch.setattr(sections, "_run", run)
    first, second = sections._peers()
    assert first.outcome == "failed"
    assert (second.name, second.value, second.unit) == ("peers: " + made["name"], 2.5, "x")


@pytest.mark.parametrize(
    "installed, listed", [(None, True), ("tensorrt_rtx", True), ("tensorrt_rtx", False)]
)
def test_absent_tensorrt_is_a_reading(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, listed: bool
) -> None:
    ran: dict[str, tuple[str, ...]] = {}

    def run(name: str, *words: str, **variables: str) -> Reading:
        assert variables == {"RT_REQUIRE_GPU": "1"}
        ran[name] = tuple(Path(word).name for word in words if word.endswith(".py"))
        return Reading(name, 1, "passed")

    monkeypatch.setattr(sections, "_run", run)
    monkeypatch.setattr("rt.backends.base.library_name", lambda _: installed)
    monkeypatch.setattr("bench.gpu.probe.builds_for", lambda _: ("9.0", listed))
    tests, theirs = sections._tests()
    assert tests.value == 1
    assert "test_late_device.py" in ran["tests"]
    assert not any("tensorrt" in name for name in ran["tests"])
    tested = installed is not None and listed
    assert ("tests of TensorRT" in ran) == tested
    assert (theirs.value is None) != tested
    assert tested or "nothing was tested" in theirs.reason
