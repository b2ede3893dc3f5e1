"""`python -m rt.plan` says what the simulator says, and where sessions stop to fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.published_costs import files
from rt import costfile
from rt.placement import place
from rt.plan import UTILISATION, Load, main, outlook, streams
from rt.simulate import Machine, simulate

TINY = Path(__file__).parents[2] / "engines" / "tiny"
LOAD = Load(fps=16.0, slo_ms=500.0, sessions=2, steps=2, seconds=20.0, seed=0)
COSTS = files()["h200-wan-1.3b-480p-modelled"]


def test_prints_and_writes_what_was_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    plot, report = tmp_path / "plan.png", tmp_path / "plan.json"
    given = ["--costs", "h200-wan-1.3b-480p-modelled", "--gpus", "2", "--sessions", "2"]
    given += ["--seconds", "20", "--plot", str(plot), "--report", str(report)]
    assert main(given) == 0
    told = capsys.readouterr().out
    assert "Simulated, with modelled costs" in told
    assert plot.read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(report.read_text())["outlooks"]
    expected = [outlook(COSTS, gpus, LOAD) for gpus in (1, 2)]
    assert [r["gpus"] for r in rows] == [1, 2]
    assert [r["p99_ms"] for r in rows] == [o.p99_ms for o in expected]
    for o in expected:
        assert f"{o.capacity_fps:.1f}" in told


def test_frames_are_counted_from_their_own_capture() -> None:
    found = outlook(COSTS, 1, LOAD)
    machine = Machine.of([COSTS], place([COSTS], LOAD.steps, LOAD.sessions), LOAD.steps)
    run = simulate(machine, streams(LOAD, LOAD.sessions, COSTS), seed=LOAD.seed)
    ms = np.array(
        [(c.done_ns - t) / 1e6 for c in run.done() for t in c.captured_ns if c.done_ns is not None]
    )
    assert found.p50_ms == pytest.approx(np.quantile(ms, 0.5, method="inverted_cdf"))
    assert found.p99_ms == pytest.approx(np.quantile(ms, 0.99, method="inverted_cdf"))
    lost = sum(len(c.captured_ns) for s in run.chunks for c in s) - len(ms)
    assert found.miss_share == pytest.approx((np.sum(ms > LOAD.slo_ms) + lost) / (len(ms) + lost))


@pytest.mark.parametrize("slo_ms", [300.0, 500.0])
def test_one_session_more_than_fit_does_not_fit(slo_ms: float) -> None:
    load = replace(LOAD, slo_ms=slo_ms)
    most = outlook(COSTS, 1, load).fit
    assert most >= 1
    fits = []
    for sessions in (most, most + 1):
        placement = place([COSTS], load.steps, sessions)
        run = simulate(
            Machine.of([COSTS], placement, load.steps), streams(load, sessions, COSTS), seed=0
        )
        demand = sessions * placement.slowest_ms * load.fps / 4e3
        missed = [
            c.done_ns is None or (c.done_ns - t) * 1e-6 > slo_ms
            for session in run.chunks
            for c in session
            for t in c.captured_ns
        ]
        fits.append(demand <= UTILISATION and np.mean(missed) <= 0.01)
    assert fits == [True, False]


def test_seats_that_have_no_room_do_not_fit() -> None:
    roomy = replace(COSTS, memory_bytes=None)
    two_seats = place([roomy], 2, 2).memory_bytes[0]
    slow = replace(LOAD, fps=8.0, slo_ms=1000.0)
    free = outlook(roomy, 1, slow)
    tight = outlook(replace(COSTS, memory_bytes=two_seats), 1, slow)
    assert free.fit > 2
    assert tight.fit == 2


def test_too_few_devices_for_the_memory_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--costs", "h100-wan-14b-480p-published", "--gpus", "3", "--sessions", "3"]
    assert main([*given, "--seconds", "4", "--fps", "2"]) == 0
    assert "On fewer than 2 devices there is no room" in capsys.readouterr().out


def test_engines_that_nobody_calibrated_are_planned_by_their_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costfile, "find", lambda *_: None)
    assert main(["--engines", str(TINY), "--gpus", "1", "--seconds", "5"]) == 0
    assert "modelled costs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        ([], 2, "--engines --costs is required"),
        (["--costs", "nowhere.json"], 1, "nowhere.json is not a cost file"),
        (["--costs", "h100-wan-1.3b-480p-published", "--gpus", "0"], 2, "gpus: got 0"),
        (["--costs", "h100-wan-1.3b-480p-published", "--fps", "-1"], 2, "fps: got -1"),
        (["--costs", "h100-wan-1.3b-480p-published", "--plot", "p.txt"], 2, "plot: got p.txt"),
        (["--costs", "h100-wan-1.3b-480p-published", "--gpus", "99"], 2, "use at most 34"),
        (["--costs", "rtx4090-wan-1.3b-480p-published", "--sessions", "99"], 2, "use fewer seats"),
        (["--engines", "nowhere"], 1, "no engine at nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--seconds", "1"]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
