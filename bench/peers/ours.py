"""Units of an engine over fixed arrays, as a stage runs them: one DiT step, one VAE chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rt import devices, window
from rt.backends import create
from rt.backends.base import Engine
from rt.frame import Array, Phase
from rt.lane import Lane, Scratch, build
from rt.manifest import DIT_KINDS, Manifest, Unit


class Units:
    """The loaded units of an engine, and the state of one seat of `rows` rows."""

    def __init__(self, directory: Path, manifest: Manifest, threads: int) -> None:
        backend = create(manifest.backend, threads)
        self.manifest = manifest
        self.device = devices.Device("cpu", 0, threads)
        self._engines: dict[str, Engine] = {}
        for unit in (*manifest.prompt, *manifest.chain):
            for plan in unit.plans.values():
                self._engines[plan.file] = backend.load(directory, plan)

    def engine(self, unit: Unit, phase: str) -> Engine:
        return self._engines[unit.plans[phase].file]

    def lane(
        self, kinds: tuple[str, ...], phase: Phase, given: Mapping[str, Array],
        own: Mapping[str, Mapping[str, Array]], batch: int,
    ) -> Lane:  # fmt: skip
        """The units of `kinds` bound in order over `given` values and each unit's `own` arrays."""
        units = [u for u in self.manifest.chain if u.kind in kinds]
        bound = [(n, unit, self.engine(unit, phase)) for n, unit in enumerate(units)]
        scratch = Scratch(self.device, batch)
        return build(bound, phase, given, lambda unit: own[unit.name], scratch, batch)


class OurDit:
    """The DiT of an engine with rings of `rows` rows; absolute positions, fixed sinks."""

    def __init__(self, units: Units, embeddings: Array, rows: int) -> None:
        m = units.manifest
        g, a, w = m.geometry, m.attention, m.window
        self._m, self._rows = m, rows
        tokens = w.frames * g.tokens_per_frame
        zeros = units.device.zeros
        self._noisy = zeros((rows, g.latent_channels, g.latent_height, g.latent_width), np.float32)
        self._timestep = zeros((rows,), np.float32)
        self._rope = zeros((rows, 2, a.rope_time_pairs), np.float32)
        self._write = zeros((rows,), np.int64)
        self._mask = zeros((rows, 1, 1, tokens), np.float32)
        shared = {"write_index": self._write, "mask": self._mask}
        own: dict[str, dict[str, Array]] = {"dit_in": {}, "dit_out": {}}
        for index, (k, v) in enumerate(_prompt(units, embeddings)):
            ring = (rows, a.heads, tokens, a.head_dim)
            keys, values = zeros(ring, np.float32), zeros(ring, np.float32)
            own[f"block_{index}"] = {
                "k_ring": keys, "k_ring_next": keys, "v_ring": values, "v_ring_next": values,
                "prompt_k": np.repeat(k, rows, 0), "prompt_v": np.repeat(v, rows, 0), **shared,
            }  # fmt: skip
        given = {"noisy": self._noisy, "timestep": self._timestep, "rope_time": self._rope}
        self._lane = units.lane(DIT_KINDS, "step", given, own, rows)
        self._busy = np.zeros(len(self._lane.launches), np.int64)
        self._device = units.device
        self._held = np.full(w.frames, -1, np.int64)

    def __call__(self, noisy: Array, timestep: Array, index: int) -> Array:
        """Velocity of latent frame `index`: noisy [rows, C, h, w], timestep [rows] -> the same."""
        m, w = self._m, self._m.window
        a, tokens = m.attention, m.geometry.tokens_per_frame
        slot = window.slot(index, w.frames, w.sinks)
        self._noisy[...], self._timestep[...] = noisy, timestep
        self._rope[...] = window.rope_time(index, a.rope_time_pairs, a.rope_theta)
        self._write[...] = slot * tokens
        self._mask[...] = window.row_mask(self._held, index, w.frames, w.sinks, tokens)
        self._held[slot] = index
        self._lane.run(self._device, self._busy)
        return self._lane.values["velocity"]


def _prompt(units: Units, embeddings: Array) -> list[tuple[Array, Array]]:
    """Cross-attention keys and values of every block."""
    by_kind = {unit.kind: unit for unit in units.manifest.prompt if unit.kind != "prompt_kv"}
    enter = by_kind["prompt_in"]

    def run(unit: Unit, given: Array) -> list[Array]:
        plan = unit.plans["step"]
        out = {b.name: np.zeros([int(d) for d in b.shape], np.float32) for b in plan.outputs}
        units.engine(unit, "step").bind({plan.inputs[0].name: given, **out})()
        return list(out.values())

    context = run(enter, embeddings)[0]
    blocks = [unit for unit in units.manifest.prompt if unit.kind == "prompt_kv"]
    return [(k, v) for k, v in (run(unit, context) for unit in blocks)]


class OurVae:
    """Encoder or decoder of an engine, chunk by chunk; the caches swap after each."""

    def __init__(self, units: Units, kind: str) -> None:
        chain = [u for u in units.manifest.chain if u.kind == kind]
        first = chain[0].plans["step"].inputs[0]
        self._result = chain[-1].plans["step"].outputs[0].tensor
        buffers = {
            (unit.name, s.input): [units.device.zeros([int(d) for d in s.shape], s.dtype)
                                   for _ in range(2)]
            for unit in chain for s in unit.plans["step"].state
        }  # fmt: skip
        self._given: dict[Phase, Array] = {}
        self._lanes: dict[tuple[Phase, int], Lane] = {}
        phases: tuple[Phase, ...] = ("first", "step")
        for phase in phases:
            shape = [int(d) for d in chain[0].plans[phase].inputs[0].shape]
            self._given[phase] = units.device.zeros(shape, np.float32)
            for turn in range(2):
                own = {
                    unit.name: {
                        name: buffers[unit.name, s.input][side]
                        for s in unit.plans[phase].state
                        for name, side in ((s.input, turn), (s.output, 1 - turn))
                    }
                    for unit in chain
                }
                given = {first.tensor: self._given[phase]}
                self._lanes[phase, turn] = units.lane((kind,), phase, given, own, 1)
        self._turn = 0
        self._busy = np.zeros(len(chain), np.int64)
        self._device = units.device

    def __call__(self, value: Array, phase: Phase = "step") -> Array:
        """One chunk: pixels [1, 3, 1 | 4, H, W] -> latent [1, C, 1, h, w], or the other way."""
        self._given[phase][...] = value
        lane = self._lanes[phase, self._turn]
        lane.run(self._device, self._busy)
        self._turn = 1 - self._turn
        return lane.values[self._result]
