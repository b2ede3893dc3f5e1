"""Units of an engine over fixed arrays, as a stage runs them: one DiT step, one VAE chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rt import window
from rt.backends.base import Engine
from rt.devices import Device
from rt.frame import Array, Phase
from rt.lane import Lane, Scratch, build
from rt.manifest import DIT_KINDS, Manifest, Unit


class Units:
    """The loaded units of an engine on one device."""

    def __init__(self, directory: Path, manifest: Manifest, device: Device) -> None:
        backend = device.backend(manifest.backend)
        self.manifest = manifest
        self.device = device
        self._engines: dict[str, Engine] = {}
        for unit in (*manifest.prompt, *manifest.chain):
            for plan in unit.plans.values():
                self._engines[plan.file] = backend.load(directory, plan)

    def engine(self, unit: Unit, phase: str) -> Engine:
        return self._engines[unit.plans[phase].file]

    def fetched(self, array: Array) -> Array:
        """A copy on the host, of what is there when all that was asked for is done."""
        host = np.empty(array.shape, array.dtype)
        self.device.copy(host, array)
        self.device.wait()
        return host

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
        self._m, self._units = m, units
        tokens = w.frames * g.tokens_per_frame
        zeros = units.device.zeros
        self._noisy = zeros((rows, g.latent_channels, g.latent_height, g.latent_width), np.float32)
        self._timestep = zeros((rows,), np.float32)
        self._rope = zeros((rows, 2, a.rope_time_pairs), np.float32)
        self._write = zeros((rows,), np.int64)
        self._mask = zeros((rows, 1, 1, tokens), np.float32)
        shared = {"write_index": self._write, "mask": self._mask}
        own: dict[str, dict[str, Array]] = {"dit_in": {}, "dit_out": {}}
        ring = (rows, a.heads, tokens, a.head_dim)
        for unit, prompt in zip(_blocks(m), _prompt(units, embeddings, rows), strict=True):
            keys, values = (zeros(ring, s.dtype) for s in unit.plans["step"].state)
            own[unit.name] = {
                "k_ring": keys, "k_ring_next": keys, "v_ring": values, "v_ring_next": values,
                **prompt, **shared,
            }  # fmt: skip
        given = {"noisy": self._noisy, "timestep": self._timestep, "rope_time": self._rope}
        self._lane = units.lane(DIT_KINDS, "step", given, own, rows)
        self._busy = np.zeros(len(self._lane.launches), np.int64)
        self._held = np.full(w.frames, -1, np.int64)

    def __call__(self, noisy: Array, timestep: Array, index: int) -> Array:
        """Velocity of latent frame `index`: noisy [rows, C, h, w], timestep [rows] -> the same."""
        m, w = self._m, self._m.window
        a, tokens = m.attention, m.geometry.tokens_per_frame
        slot = window.slot(index, w.frames, w.sinks)
        copy = self._units.device.copy
        copy(self._noisy, noisy)
        copy(self._timestep, timestep)
        copy(self._rope, window.rope_time(index, a.rope_time_pairs, a.rope_theta))
        copy(self._write, slot * tokens)
        copy(self._mask, window.row_mask(self._held, index, w.frames, w.sinks, tokens))
        self._held[slot] = index
        self._lane.run(self._units.device, self._busy)
        return self._units.fetched(self._lane.values["velocity"])


def _blocks(manifest: Manifest) -> list[Unit]:
    return [unit for unit in manifest.chain if unit.kind == "block"]


def _prompt(units: Units, embeddings: Array, rows: int) -> list[dict[str, Array]]:
    """Cross-attention keys and values of every block, the same for each row, by binding."""
    device, by_kind = units.device, {unit.kind: unit for unit in units.manifest.prompt}

    def run(unit: Unit, given: Array) -> dict[str, Array]:
        plan = unit.plans["step"]
        out = {b.name: device.zeros([int(d) for d in b.shape], b.dtype) for b in plan.outputs}
        device.do(units.engine(unit, "step").bind({plan.inputs[0].name: given, **out}))
        return out

    entering = device.zeros(embeddings.shape, np.float32)
    device.copy(entering, embeddings)
    (context,) = run(by_kind["prompt_in"], entering).values()
    found = []
    for unit in (unit for unit in units.manifest.prompt if unit.kind == "prompt_kv"):
        repeated = {}
        for name, array in run(unit, context).items():
            repeated[name] = device.zeros((rows, *array.shape[1:]), array.dtype)
            for row in range(rows):
                device.copy(repeated[name][row : row + 1], array)
        found.append(repeated)
    return found


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
        self._units = units

    def __call__(self, value: Array, phase: Phase = "step") -> Array:
        """One chunk: pixels [1, 3, 1 | 4, H, W] -> latent [1, C, 1, h, w], or the other way."""
        self._units.device.copy(self._given[phase], value)
        lane = self._lanes[phase, self._turn]
        lane.run(self._units.device, self._busy)
        self._turn = 1 - self._turn
        return self._units.fetched(lane.values[self._result])
