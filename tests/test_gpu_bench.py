"""The logic of `make gpu`, on rows that were made up here: no number in this file was measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench import table
from bench.gpu import __main__ as command
from bench.gpu import compare, machine, sections, streams, timing, units
from bench.gpu.plan import QUICK_S, SECTION_S, Measure, Section, missing, pack
from bench.gpu.record import Reading, Row, Rows, failed, refused
from bench.gpu.targets import ALL, Target
from rt.errors import ConfigError

MADE_UP = {"name": "made-up GPU of a test", "commit": "0000000", "driver_version": "0"}


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
    assert all(section.seconds <= SECTION_S for section in everything)
    names = [m.name for section in everything for m in section.measures]
    assert len(names) == len(set(names))


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


def test_what_is_answered_is_not_taken_again_and_what_broke_is(tmp_path: Path) -> None:
    good, bad = Taken(), Taken(breaks_after=1)
    section = Section("s", (Measure("good", "", 1, good), Measure("bad", "", 1, bad)))
    path = tmp_path / "rows.jsonl"
    assert sections.take(section, Rows(path), "k", MADE_UP) == 1
    assert sections.take(section, Rows(path), "k", MADE_UP) == 1
    assert (good.count, bad.count) == (1, 2)
    newest = Rows(path).newest()
    assert newest["bad"].reading.reason == "RuntimeError: out of memory"
    bad.breaks_after = None
    assert sections.take(section, Rows(path), "k", MADE_UP) == 0
    assert "bad" not in Rows(path).newest()
    assert sections.take(section, Rows(path), "another machine", MADE_UP) == 0
    assert (good.count, bad.count) == (2, 4)


def test_a_measure_that_was_killed_half_way_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def killed() -> Iterator[Reading]:
        yield Reading("r0", 1.0, "ms")
        yield Reading("r1", 1.0, "ms")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sections.take(Section("s", (Measure("m", "", 1, killed),)), Rows(path), "k", MADE_UP)
    assert [r.reading.name for r in Rows(path)] == ["r0"]
    assert not Rows(path).answered("m", "k")
    whole = Section("s", (Measure("m", "", 1, Taken()),))
    assert sections.take(whole, Rows(path), "k", MADE_UP) == 0
    assert Rows(path).answered("m", "k")


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
    good, bad = Taken(), Taken(breaks_after=0)
    made = (
        Section("quick", (Measure("good", "", 1, good),)),
        Section("more", (Measure("bad", "", 1, bad),)),
        Section("slow", (Measure("late", "", 1, Taken()),)),
    )
    monkeypatch.setattr(machine, "gpu_names", lambda: ["Made Up 100"])
    monkeypatch.setattr(command, "everything", lambda _rows: made)

    def worker(words: list[str], timeout: int, check: bool) -> None:
        assert not check
        assert timeout == (QUICK_S if "quick" in words else SECTION_S)
        if "slow" in words:
            raise subprocess.TimeoutExpired(words, timeout)
        command.main(words[3:])

    monkeypatch.setattr(command.subprocess, "run", worker)
    for module in (machine, table):
        monkeypatch.setattr(module, "command", lambda *_: "")
    results = ["--results", str(tmp_path)]
    assert command.main(["--quick", *results]) == 0
    assert command.main(results) == 1
    assert (good.count, bad.count) == (1, 1)
    out = capsys.readouterr().out
    assert "2 measures are left or broke (bad, late); run this again" in out
    assert "not measured" in out
    rows = Rows(tmp_path / "gpu-made-up-100.jsonl")
    assert rows.newest()["late"].reading.reason == "the section was stopped after 480 s"


# What is measured


def test_every_target_is_the_name_of_a_reading() -> None:
    cases = [units.Case(*m) for m in (*sections.MODELS, sections.LARGE)]
    made = {name for case in cases for n in (1, 2, 4) for name in streams.names(case, n)}
    made |= {f"{case.size}: step, batch 1" for case in cases}
    made |= {f"{case.name}: {kind}" for case in cases for kind in ("encode", "decode")}
    assert {target.name for target in ALL} <= made


def test_where_the_runtime_takes_no_gpu_every_stream_is_refused_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no(_names: str) -> None:
        raise ConfigError("devices: none here")

    monkeypatch.setattr(streams.devices, "resolve", no)
    case = units.Case(*sections.MODELS[0])
    found = [*streams.readings(case, 2, tmp_path, "bf16"), *streams.logical(case, tmp_path, "bf16")]
    assert {r.outcome for r in found} == {"refused"}
    assert {r.reason for r in found} == {"ConfigError: devices: none here"}
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_built_or_refused_and_anything_else_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = units.Case(*sections.MODELS[0])

    def build(error: Exception | None) -> Any:
        def run(*_: object) -> Path:
            if error is not None:
                raise error
            (tmp_path / "plan").write_bytes(bytes(3_000_000))
            return tmp_path

        return run

    monkeypatch.setattr(streams, "build", build(None))
    found = streams.built(case, tmp_path, "bf16")
    assert found[1].value == pytest.approx(0.003)
    monkeypatch.setattr(streams, "build", build(ConfigError("precision: got bf16")))
    assert [r.outcome for r in streams.built(case, tmp_path, "bf16")] == ["refused"]
    monkeypatch.setattr(streams, "build", build(MemoryError("full")))
    with pytest.raises(MemoryError):
        streams.built(case, tmp_path, "bf16")


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
    case = units.Case("tiny", 64, 64, "own")
    found = {r.name: r for r in units.readings(case, "bf16", 2.0, tmp_path)}
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
    assert stopped.reason.endswith("builds, loads, runs: no (RuntimeError: no kernel)")
    monkeypatch.setattr(build, "build_engines", broken(TypeError("a slip of ours")))
    with pytest.raises(TypeError, match="slip"):
        probe.backend("onnxruntime", tmp_path)


def test_probe_and_runtime_import_a_library_by_the_same_name() -> None:
    """What is installed here is present; the other flavour says which name it was looked for by."""
    for name in ("onnxruntime", "inductor", "tensorrt-rtx"):
        (reading,) = sections._present(name)()
        assert (reading.outcome, reading.value) == ("measured", 1), reading.reason
    (reading,) = sections._present("tensorrt")()
    assert reading.reason.endswith("no module tensorrt")


def test_a_measure_that_breaks_is_failed_and_the_next_one_is_taken(tmp_path: Path) -> None:
    def slip() -> list[Reading]:
        raise TypeError("a slip of ours")

    measures = (
        Measure("a", "", 1, slip),
        Measure("b", "", 1, lambda: [Reading("b", 1.0, "s")]),
    )
    rows = Rows(tmp_path / "rows.jsonl")
    assert sections.take(Section("s", measures), rows, "k", MADE_UP) == 1
    found = Rows(rows.path)
    assert not found.answered("a", "k")
    assert found.newest()["a"].reading.reason == "TypeError: a slip of ours"
    assert found.answered("b", "k")


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


def test_a_limit_is_the_work_over_the_peak() -> None:
    assert units._limit(6_740_000_000_000, 674.0) == pytest.approx(10.0)
    assert units._limit(1, None) is None
    assert timing.PRODUCT.startswith("ceiling")


# What is compared


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
    (compared,) = compare.compare({"t": row(Reading("t", value, "ms"))}, [target])
    assert compared.verdict == verdict
    gain = value / 32 if larger else 32 / value
    assert compared.gain == pytest.approx(gain)


def test_what_was_not_measured_has_no_verdict_and_another_unit_is_refused() -> None:
    rows = {ALL[0].name: row(refused(ALL[0].name, "no room"))}
    compared = compare.compare(rows)
    assert {c.verdict for c in compared} == {"not measured"}
    assert compared[0].reason == "no room"
    with pytest.raises(ValueError, match="got s, expected ms"):
        compare.compare({ALL[0].name: row(Reading(ALL[0].name, 1.0, "s"))})


def test_targets_rise_from_published_to_limit() -> None:
    for t in ALL:
        marks = [m for m in (t.commit, t.moonshot, t.limit) if m is not None]
        assert marks == sorted(marks, reverse=not t.larger_is_better), t.name
        if t.published is not None:
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
    case = units.Case(*sections.MODELS[0])
    values = [Reading(t.name, t.commit, t.unit) for t in ALL if ": FPS" in t.name]
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
    assert "made-up GPU of a test" in page
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


@pytest.mark.parametrize("installed", [None, "tensorrt_rtx"])
def test_absent_tensorrt_is_a_reading(
    monkeypatch: pytest.MonkeyPatch, installed: str | None
) -> None:
    ran: dict[str, tuple[str, ...]] = {}

    def run(name: str, *words: str, **variables: str) -> Reading:
        assert variables == {"RT_REQUIRE_GPU": "1"}
        ran[name] = tuple(Path(word).name for word in words if word.endswith(".py"))
        return Reading(name, 1, "passed")

    monkeypatch.setattr(sections, "_run", run)
    monkeypatch.setattr(sections, "library_name", lambda _: installed)
    tests, theirs = sections._tests()
    assert tests.value == 1
    assert "test_late_device.py" in ran["tests"]
    assert not any("tensorrt" in name for name in ran["tests"])
    assert ("tests of TensorRT" in ran) == (installed is not None)
    assert (theirs.value is None) == (installed is None)
    assert installed or "nothing was tested" in theirs.reason
