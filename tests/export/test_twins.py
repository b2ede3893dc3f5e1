"""The ONNX Runtime twins along a stream: 60 chunks equal PyTorch's, through a window that fills, is
full and replaces its sinks, with two sessions at different positions in every batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from micro_engine import MICRO, MICRO_WAN, SIZE, remembered_exports
from numpy.typing import NDArray

from export import verify
from export.models.presets import PRESETS
from export.options import Options
from export.replay import Arrays, Clip, Replay, Run, Shown
from export.twins import verify_graphs
from export.units import Chain
from rt import manifest as records
from rt.errors import ConfigError
from rt.manifest import Manifest

CHUNKS = 60
LATE = 7
"""Chunks after which the second session begins: the first one's window is full by then."""
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def manifest(tiny_engine: Path) -> Manifest:
    return records.read(tiny_engine)


@pytest.fixture(scope="module")
def chain(manifest: Manifest, tiny_engine: Path) -> Chain:
    return verify.twin(manifest, tiny_engine, MICRO, True)


def pytorch(chain: Chain) -> Run:
    specs = {unit.name: unit for unit in chain.units}
    return lambda name, phase, feeds: verify.run_module(specs[name].phases[phase], feeds)


def twins(manifest: Manifest, directory: Path) -> Run:
    sessions = {
        (unit.name, phase): verify.session(directory / plan.file, threads=1)
        for unit in (*manifest.prompt, *manifest.chain)
        for phase, plan in unit.plans.items()
    }
    return lambda name, phase, feeds: verify.run(sessions[name, phase], feeds)


def clip(manifest: Manifest, seed: int, late: int = 0, chunks: int = CHUNKS) -> Clip:
    """A picture that jumps: other scenes are what sinks are replaced for."""
    rng = np.random.default_rng(seed)
    text = manifest.text
    embeddings = rng.standard_normal((1, text.length, text.width)).astype(np.float32)
    frames: list[NDArray[np.float32]] = []
    for chunk in range(chunks):
        still = rng.uniform(-1, 1, (1, 3, 1, SIZE, SIZE)) * (1 if chunk // 15 % 2 else 0.2)
        drift = rng.uniform(-0.1, 0.1, (1, 3, 4 if chunk else 1, SIZE, SIZE))
        frames.append((still + drift).astype(np.float32))
    return Clip(embeddings, frames, late)


def pairs(one: Replay, other: Replay) -> Iterator[tuple[Shown, Shown]]:
    for a, b in zip(one, other, strict=True):
        assert (a.session, a.chunk) == (b.session, b.chunk)
        yield a, b


def test_sixty_chunks_through_the_twins_equal_pytorch(
    manifest: Manifest, chain: Chain, tiny_engine: Path
) -> None:
    clips = [clip(manifest, 0), clip(manifest, 1, LATE)]
    # random weights hardly tell frames apart: a threshold that replaces sinks all the same
    expected = Replay(manifest, pytorch(chain), clips, 2, threshold=0.999)
    got = Replay(manifest, twins(manifest, tiny_engine), clips, 2, threshold=0.999)
    shown = 0
    for a, b in pairs(got, expected):
        assert verify.difference(a.clean, b.clean) <= TOLERANCE, (a.session, a.chunk)
        assert verify.difference(a.pixels, b.pixels) <= TOLERANCE, (a.session, a.chunk)
        assert np.ptp(b.pixels) > 0.1
        shown += 1
    assert shown == 2 * CHUNKS
    for mine, theirs in zip(got.rows, expected.rows, strict=True):
        assert np.array_equal(mine.sink_index, theirs.sink_index)
        assert (mine.sink_index >= manifest.window.frames).any(), "no sink was replaced"
        assert verify.difference(mine.k_ring, theirs.k_ring) <= TOLERANCE


def test_two_sessions_in_a_batch_equal_each_alone(
    manifest: Manifest, chain: Chain, tiny_engine: Path
) -> None:
    """Bit for bit on ONNX Runtime in float32 (law 4)."""
    run = twins(manifest, tiny_engine)
    clips = [clip(manifest, 0, chunks=14), clip(manifest, 1, LATE, chunks=14)]
    together = {(s.session, s.chunk): s.pixels for s in Replay(manifest, run, clips, 1, 0.999)}
    del chain
    second = Clip(clips[1].embeddings, clips[1].chunks)
    noise_of_second = [Clip(clips[0].embeddings, []), second]
    for number, alone in enumerate((clips[:1], noise_of_second)):
        for shown in Replay(manifest, run, alone, 1, 0.999):
            assert shown.session == number
            assert np.array_equal(shown.pixels, together[number, shown.chunk])


def test_real_activations_are_compared_and_a_fault_in_them_is_seen(
    manifest: Manifest, chain: Chain, tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verify.verify_stream(manifest, tiny_engine, chain.units, chunks=8)
    every = {(u.name, p) for u in (*manifest.prompt, *manifest.chain) for p in u.plans}
    assert {(d.unit, d.phase) for d in found} == every
    assert all(d.passed and d.inputs == "stream" for d in found), found
    honest = verify.run

    def late(engine: object, feeds: Arrays) -> Arrays:
        out = honest(engine, feeds)  # type: ignore[arg-type]
        full = "write_index" in feeds and not np.isneginf(feeds["mask"]).any()
        return {name: array + 0.01 * full for name, array in out.items()}

    monkeypatch.setattr(verify, "run", late)
    wrong = [d for d in verify.verify_stream(manifest, tiny_engine, chain.units, 8) if not d.passed]
    assert {d.unit for d in wrong} == {"block_0", "block_1"}, "seen only in a full window"


def test_graphs_are_compared_without_an_engine(tmp_path: Path) -> None:
    """One block of the 1.3B model at its full width, on small pictures; and some of a small model
    with Wan's VAE. Nothing is kept.
    """
    config = PRESETS["wan-1.3b"]
    dit = dataclasses.replace(config.dit, blocks=1)
    wide = Options(dataclasses.replace(MICRO, dit=dit), 32, 32, tmp_path, "wide", seed=1)
    found = list(verify_graphs(wide, ("block_0",), lambda *_: None))
    small = Options(MICRO_WAN, SIZE, SIZE, tmp_path, "small", seed=1)
    with remembered_exports():
        found += verify_graphs(small, ("encode_0", "decode_1", "prompt_kv_1"), lambda *_: None)
    assert all(d.passed for d in found), found
    assert [d.inputs for d in found[:2]] == ["random", "garbage in hidden slots"]
    units = [d.unit for d in found]
    assert units == ["block_0"] * 2 + ["prompt_kv_1"] + ["encode_0"] * 2 + ["decode_1"] * 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="units: got 'block_30'"):
        list(verify_graphs(wide, ("block_30",), lambda *_: None))


def test_garbage_in_hidden_slots_is_looked_for(
    manifest: Manifest, tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 8 on the twins; and a twin that looks there is found."""
    found = verify.hidden_slots(manifest, tiny_engine)
    assert [d.unit for d in found] == ["block_0", "block_1"]
    assert all(d.maximum == 0 and d.passed for d in found)
    honest = verify.run

    def peeking(engine: object, feeds: Arrays) -> Arrays:
        out = honest(engine, feeds)  # type: ignore[arg-type]
        return out | {"x_next": out["x_next"] + feeds["k_ring"].sum()}

    monkeypatch.setattr(verify, "run", peeking)
    assert not any(d.passed for d in verify.hidden_slots(manifest, tiny_engine))
