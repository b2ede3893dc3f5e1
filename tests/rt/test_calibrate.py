"""What `python -m rt.calibrate` writes is a cost file of these engines, and sleeping engines show
that it times what it says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rt import backends, calibrate, costfile
from rt import manifest as manifests
from rt.calibrate import main
from rt.cost import PASS_OF
from rt.devices import resolve
from rt.frame import Array
from rt.manifest import Plan

TINY = Path(__file__).parents[2] / "engines" / "tiny"
SLEEP_MS = {"block_1.onnx": 3.0, "decode_0.step.onnx": 8.0}


class Sleeper:
    """A backend whose plans take as long as SLEEP_MS says, per row."""

    name = "sleeper"

    def load(self, directory: Path, plan: Plan) -> Sleeper:
        assert (directory / plan.file).is_file()
        sleeper = Sleeper()
        sleeper.ms, sleeper.plan = SLEEP_MS.get(plan.file, 0.0), plan
        return sleeper

    def bind(self, arrays: Mapping[str, Array]) -> object:
        given = {b.name for b in (*self.plan.inputs, *self.plan.outputs)}
        given |= {s.input for s in self.plan.state} | {s.output for s in self.plan.state}
        assert set(arrays) == given
        for state in self.plan.state:
            same = arrays[state.input] is arrays[state.output]
            assert same == (state.mode == "alias")
        rows = arrays["x"].shape[0] if "x" in arrays else 1
        return lambda: time.sleep(self.ms * rows * 1e-3)


def test_times_are_those_of_each_unit_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "create", lambda *_: Sleeper())
    m = manifests.read(TINY)
    costs = calibrate.measure(m, TINY, resolve("cpu")[0], 3)
    assert costs.origin == "measured"
    assert costs.engines == m.key
    units = {u.name: u for u in costs.units}
    assert list(units) == [u.name for u in m.chain]
    for unit in costs.units:
        batches = range(1, m.max_batch + 1) if PASS_OF[unit.kind] == "denoise" else [1]
        assert [t.batch for t in unit.timings] == list(batches)
    # A sleep never ends early, and how much later it ends is the machine's business.
    for timing in units["block_1"].timings:
        assert timing.p50_ms >= 3.0 * timing.batch
    assert units["decode_0"].timings[0].p50_ms >= 8.0


def test_writes_beside_the_manifest_and_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backends, "create", lambda *_: Sleeper())
    engines = tmp_path / "tiny"
    engines.mkdir()
    for file in TINY.iterdir():
        (engines / file.name).symlink_to(file)
    assert main(["--engines", str(engines), "--rounds", "2"]) == 0
    device, m = resolve("cpu")[0], manifests.read(engines)
    key = costfile.machine_key(device)
    path = costfile.places(engines, m.key, key)[0]
    said = capsys.readouterr()
    assert str(path) in said.out
    lines = ("warms up, then 2 rounds", "1 of 2 rounds", "2 of 2 rounds")
    assert said.err.splitlines() == [f"{key}: {line}" for line in lines], "off a terminal"
    assert costfile.of(m, engines, device).origin == "measured"
    other = tmp_path / "elsewhere.json"
    assert main(["--engines", str(engines), "--rounds", "2", "--output", str(other)]) == 0
    assert costfile.read(other).engines == m.key


def test_goes_to_the_cache_where_engines_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # Root may write anywhere.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = calibrate.place_for(TINY, "k" * 64, "here")
    assert path.is_relative_to(tmp_path / "cache")
    assert path.name == "here.json"


@pytest.mark.parametrize(
    "place, told",
    [
        ("", "a directory"),
        ("file/costs.json", "nothing can be written into {0}/file;"),
        ("locked/new/costs.json", "nothing can be written into {0}/locked;"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(
    place: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    # Root may write anywhere.
    monkeypatch.setattr("os.access", lambda path, _: Path(path).name != "locked")
    monkeypatch.setattr(calibrate, "measure", lambda *_: pytest.fail("measured"))
    assert main(["--engines", str(TINY), "--output", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: output: got {tmp_path / place}, ")
    assert told.format(tmp_path) in error
    assert error.count("\n") == 1


def test_a_line_is_told_after_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with calibrate._progress("here", 200) as advance:
        for _ in range(200):
            advance()
    _, *lines = capsys.readouterr().err.splitlines()
    assert lines == [f"here: {20 * n} of 200 rounds" for n in range(1, 11)]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--rounds", "1"], "rounds: got 1"),
        (["--devices", "tpu"], "devices: got 'tpu'"),
        (["--frobnicate"], "see python -m rt.calibrate --help"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--engines", str(TINY), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_missing_engine_is_a_failure(tmp_path: Path) -> None:
    assert main(["--engines", str(tmp_path)]) == 1
