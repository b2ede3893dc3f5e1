"""Builds that keep nothing, and the count of a device's memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from micro_engine import MICRO, SIZE, micro_options, remembered_exports

from export import commands as cli
from export.options import Options
from export.trial import build_and_delete, memory_of
from rt.errors import ConfigError

WIDE = replace(MICRO, name="micro-64", dit=replace(MICRO.dit, width=128, heads=2, head_dim=64))


@pytest.fixture(scope="module", autouse=True)
def _remember() -> Iterator[None]:
    with remembered_exports():
        yield


@pytest.fixture
def options(tmp_path: Path) -> Options:
    facts = {"config": WIDE, "backend": "tensorrt-rtx", "precision": "bf16"}
    return micro_options(tmp_path, **facts, compute_capability=("8.9",))


def test_nothing_is_kept_and_blocks_share_what_was_built(options: Options) -> None:
    trial = build_and_delete(options, ("block_0", "block_1", "dit_out"), lambda *_: None)
    found = dict(trial.found)
    assert set(found) == {"block_0 step", "block_1 step", "dit_out step"}
    assert found["block_0 step"].seconds == found["block_1 step"].seconds
    d, f = WIDE.dit.width, WIDE.dit.ffn
    low = 6 * (d * d + d) + 2 * d * f + f + d  # six square projections, two of the feed-forward
    wide = 6 * d + 2 * d + 3 * d
    assert found["block_1 step"].weights == 2 * low + 4 * wide
    assert not [path for path in options.out.rglob("*") if path.is_file()]
    assert trial.peak_bytes >= max(entry.peak_bytes for entry in found.values())


def test_two_blocks_of_the_largest_model_take_the_memory_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first and the last block at their full size, and what a device needs for all."""
    command = ["build-engines", "--model", "wan-14b-taehv", "--seed", "0", "--height", "480"]
    command += ["--width", "832", "--backend", "tensorrt-rtx", "--precision", "bf16"]
    command += ["--compute-capability", "8.9", "--out", str(tmp_path)]
    assert cli.main([*command, "--keep", "none", "--units", "block_0,block_39"]) == 0
    told = capsys.readouterr().out
    assert int(re.search(r"peak RSS (\d+) MB", told)[1]) <= 12_000
    assert told.count("598.0") == 2  # each 299 million weights of two bytes
    assert cli.main([*command, "--dry-run", "--gpu-memory-gb", "80"]) == 0
    assert "fits into 80 GB" in capsys.readouterr().out


def test_a_unit_that_is_not_there(options: Options) -> None:
    with pytest.raises(ConfigError, match="units: got 'block_7', expected of text, prompt_in"):
        build_and_delete(options, ("block_7",), lambda *_: None)


def test_memory_is_counted(options: Options) -> None:
    one = memory_of(options, seats=1, steps=2)
    dit, tokens = WIDE.dit, (SIZE // 16) ** 2
    ring = 2 * dit.heads * 6 * tokens * dit.head_dim * 2  # keys and values, two bytes each
    assert one.rings == 2 * dit.blocks * ring
    assert one.prompts == 2 * dit.blocks * 2 * dit.heads * dit.text_length * dit.head_dim * 2
    three = memory_of(options, seats=3, steps=2)
    assert (three.rings, three.caches) == (3 * one.rings, 3 * one.caches)
    assert (three.weights, three.values, three.scratch) == (one.weights, one.values, one.scratch)
    time, sinks = 2 * dit.rope_pairs[0], 3
    assert one.sinks == 2 * dit.blocks * dit.heads * sinks * tokens * time * 2
    assert one.total == sum(getattr(one, part.name) for part in fields(one))
    fp8 = memory_of(replace(options, precision="fp8", calibration=Path("x")), seats=1, steps=2)
    d, f = dit.width, dit.ffn
    assert one.weights - fp8.weights == dit.blocks * (6 * d * d + 2 * d * f)
    assert one.text == fp8.text > 0
    small = memory_of(replace(options, max_batch=1), seats=1, steps=2)
    assert small.scratch < one.scratch


def test_a_dry_run_says_whether_it_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.models.presets import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", WIDE)
    command = ["build-engines", "--seed", "0", "--height", "64", "--width", "64", "--dry-run"]
    command += ["--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--out", str(tmp_path)]
    assert cli.main([*command, "--gpu-memory-gb", "8"]) == 0
    assert "fits into 8 GB" in capsys.readouterr().out
    assert cli.main([*command, "--gpu-memory-gb", "0.0001"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert cli.main(["build-engines", "--seed", "0", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "expected a TensorRT backend" in capsys.readouterr().err
