"""Cost files are read strictly, lines are least squares, and corrections rest where they should."""

from __future__ import annotations

import json
import random
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rt import cost, costfile
from rt.cost import ChainKind, Costs, Handover, Line, PassCost, Timing, UnitCost
from rt.devices import Device
from rt.errors import EngineMismatch


def unit(name: str, kind: ChainKind, ms: float, *, grows: float = 0.0, handed: int = 0) -> UnitCost:
    batches = (1, 2, 4) if grows else (1,)
    timings = tuple(Timing(b, ms + grows * (b - 1), 1.5 * (ms + grows * (b - 1))) for b in batches)
    return UnitCost(name, kind, timings, 1000, 10, handed)


def chain(*, gb_per_s: float = 1.0, latency_ms: float = 0.5) -> Costs:
    units = (
        unit("encode_0", "encode", 5.0, handed=1_000_000),
        unit("dit_in", "dit_in", 1.0, handed=2_000_000),
        unit("block_0", "block", 4.0, grows=3.0, handed=2_000_000),
        unit("block_1", "block", 4.0, grows=3.0, handed=2_000_000),
        unit("dit_out", "dit_out", 1.0, handed=1_000_000),
        unit("decode_0", "decode", 9.0),
    )
    handover = Handover(latency_ms, gb_per_s)
    about = (cost.SCHEMA, "measured", "a test", "cpu", "k" * 64, "micro", 4, 4, None)
    return Costs(*about, handover, (0.9, 1.0, 1.2), units)


def test_a_file_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "costs" / "here.json"
    costfile.write(chain(), path)
    assert costfile.read(path) == chain()
    assert [p.name for p in path.parent.iterdir()] == ["here.json"]


@pytest.mark.parametrize(
    "where, value, told",
    [
        (("schema",), 2, "got 2, expected 1"),
        (("origin",), "guessed", "expected one of"),
        (("units", 0, "timings", 0, "p50_ms"), -1.0, "times above 0"),
        (("units", 0, "timings", 0, "p50_ms"), float("nan"), "times above 0"),
        (("units", 0, "timings", 0, "p99_ms"), 0.1, "at least p50_ms"),
        (("units", 2, "timings", 0, "batch"), 2, "got batches"),
        (("units", 0, "kind"), "decode", "units: got"),
        (("units", 3, "weights_bytes"), -1, "below 0"),
        (("handover", "gb_per_s"), 0.0, "rate above 0"),
        (("spread",), [], "spread"),
        (("spread",), [1.0, 0.5], "spread"),
        (("max_batch",), "4", "expected int"),
        (("frames_per_chunk",), 0, "at least 1"),
        (("surplus",), 1, "expected fields"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    tmp_path: Path, where: tuple[str | int, ...], value: object, told: str
) -> None:
    path = tmp_path / "c.json"
    costfile.write(chain(), path)
    data = json.loads(path.read_text())
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(EngineMismatch, match=told) as caught:
        costfile.read(path)
    assert "\n" not in str(caught.value)
    assert "rt.calibrate" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "null", "\0"])
def test_what_is_no_cost_file_at_all_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(EngineMismatch, match="is not a cost file"):
        costfile.read(path)


def test_costs_are_found_beside_the_manifest_then_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, cached = costfile.places(tmp_path, "k" * 64, "here")
    assert costfile.find(tmp_path, "k" * 64, "here") is None
    costfile.write(chain(latency_ms=2.0), cached)
    found = costfile.find(tmp_path, "k" * 64, "here")
    assert found is not None
    assert found.handover.latency_ms == 2.0
    costfile.write(chain(), beside)
    assert costfile.find(tmp_path, "k" * 64, "here") == chain()
    with pytest.raises(EngineMismatch, match=r"not ooo.*rt\.calibrate"):
        costfile.find(tmp_path, "o" * 64, "here")


def test_machines_have_names(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: Some(R) CPU @ 2.0GHz\n")
    gpu = tmp_path / "driver/nvidia/gpus/0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t\t NVIDIA X100 80GB\nIRQ: 1\n")
    assert costfile.machine_key(Device("cpu", 0, 2), tmp_path) == "some-r-cpu-2-0ghz-2-threads"
    assert costfile.machine_key(Device("cuda", 0, 2), tmp_path) == "nvidia-x100-80gb"


points = st.lists(
    st.tuples(st.integers(1, 8), st.floats(0.01, 100)),
    min_size=2,
    max_size=8,
    unique_by=lambda p: p[0],
)


@given(points)
def test_fit_is_least_squares_with_no_negative_part(measured: list[tuple[int, float]]) -> None:
    line = cost.fit(measured)
    b, t = np.array(measured).T
    slope, offset = np.polyfit(b, t, 1)
    assert line.c_ms >= 0
    assert line.m_ms >= 0
    if slope > 1e-9 and offset > 1e-9:
        np.testing.assert_allclose([line.c_ms, line.m_ms], [offset, slope], rtol=1e-6, atol=1e-9)
    else:  # On the border of what is allowed: no other line there is nearer.
        error = np.sum((line.c_ms + line.m_ms * b - t) ** 2)
        for c, m in ((t.mean(), 0.0), (0.0, (b @ t) / (b @ b))):
            assert error <= np.sum((c + m * b - t) ** 2) + 1e-6


def test_a_stage_costs_the_sum_of_its_units_and_the_copy_to_the_next_one() -> None:
    costs = chain()
    table = cost.timetable([(costs, range(0, 3)), (costs, range(3, 6))])
    assert set(table) == {(0, "encode"), (0, "denoise"), (1, "denoise"), (1, "decode")}
    assert table[0, "encode"].line == Line(0.0, 5.0), "its next unit is on the same stage"
    # 2 MB at 1 GB/s are 2 ms per job, and half a millisecond once.
    assert table[0, "denoise"].line.at(2) == pytest.approx((1.0 * 2 + 7.0) + 0.5 + 2 * 2.0)
    # The noisy latent goes back to the first stage.
    assert table[1, "denoise"].line.at(1) == pytest.approx(4.0 + 1.0 + 0.5 + 1.0)
    assert table[1, "decode"].pass_ns(1) == (9.0e6, 13.5e6)
    alone = cost.timetable([(costs, range(6))])
    assert alone[0, "denoise"].line.at(4) == pytest.approx(2 * (4.0 + 9.0) + 4 * 2.0)


def test_memory_counts_weights_once_and_state_per_row_or_seat() -> None:
    units = chain().units
    assert cost.memory_bytes(units, seats=3, rows_per_seat=2) == 6000 + 10 * 3 * (2 + 4 * 2)


@given(st.floats(0.2, 5.0), st.integers(1, 4))
def test_a_machine_that_is_slower_as_a_whole_is_followed(factor: float, batch: int) -> None:
    seen = PassCost(Line(1.0, 2.0), upper=1.2)
    for _ in range(100):
        seen = seen.seen(batch, factor * (1.0 + 2.0 * batch) * 1e6)
    mean_ns, upper_ns = seen.pass_ns(3)
    assert mean_ns == pytest.approx(factor * 7.0e6, rel=1e-3)
    assert mean_ns <= upper_ns <= 1.6 * mean_ns
    for _ in range(2000):
        seen = seen.seen(batch, factor * (1.0 + 2.0 * batch) * 1e6)
    assert seen.upper < 1.25


def test_the_upper_quantile_is_exceeded_by_its_share() -> None:
    rng = random.Random(5)
    passes = [rng.lognormvariate(0, 0.1) * 5e6 for _ in range(30_000)]
    seen, above = PassCost(Line(5.0, 0.0)), 0
    for number, took_ns in enumerate(passes):
        above += number >= 2000 and took_ns > seen.pass_ns(1)[1]
        seen = seen.seen(1, took_ns)
    share = above / (len(passes) - 2000)
    assert 0.005 < share < 0.02
    true = np.quantile(passes, cost.UPPER)
    assert seen.pass_ns(1)[1] == pytest.approx(true, rel=0.15)


def test_a_pass_that_was_held_up_says_little_and_a_slower_machine_is_followed() -> None:
    cost = PassCost(Line(0.0, 10.0))
    assert cost.seen(1, 5e9).mean <= 1.1, "one pass of 5 s"
    for _ in range(40):
        cost = cost.seen(1, 40e6)
    assert cost.mean == pytest.approx(4, rel=0.05)
