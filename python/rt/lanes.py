"""All lanes of one stage: its engines bound, once, over every place that they will ever run on, and
the arrays that they read. It runs none of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .backends.base import Engine, Launch
from .devices import Device
from .frame import Array, Kind, Phase
from .lane import Inbox, Lane, Scratch, build
from .manifest import DIT_KINDS, Binding, Manifest, Unit
from .seats import SeatMemory


class Lanes:
    """`vae` by (kind, phase, seat, parity of its caches), `dit` by (first row, batch), `prompts` by
    row: the launches that make the prompt's keys and values of all blocks here.
    """

    vae: Mapping[tuple[Kind, Phase, int, int], Lane]
    dit: Mapping[tuple[int, int], Lane]
    prompts: Sequence[Sequence[Launch]]
    context: Array
    """Input of `prompts`: [1, L, D]"""

    def __init__(
        self,
        manifest: Manifest,
        directory: Path,
        device: Device,
        units: Sequence[Unit],
        memory: SeatMemory,
        max_batch: int,
    ) -> None:
        self._manifest = manifest
        self._device = device
        self._units = units
        self._memory = memory
        self._rows = len(memory.last)
        self._seats = self._rows // memory.rows_per_seat
        self._max_batch = min(max_batch, self._rows)
        backend = self._device.backend(self._manifest.backend)
        self._engines = [
            {phase: backend.load(directory, plan) for phase, plan in unit.plans.items()}
            for unit in self._units
        ]
        self.blocks = {
            u.index: i for i, u in enumerate(u for u in self._units if u.kind == "block")
        }
        prompt_units = [
            u for u in self._manifest.prompt if u.kind == "prompt_kv" and u.index in self.blocks
        ]
        self._prompt_engines = [
            (self.blocks[u.index], backend.load(directory, u.plans["step"])) for u in prompt_units
        ]

    def bind(self, handed: Mapping[tuple[Kind, Phase], Sequence[Binding]]) -> None:
        """Bind every launch that can ever be needed. `handed`: the values that cross the cut before
        this stage.
        """
        zeros = self._device.zeros
        m, g = self._manifest, self._manifest.geometry
        self.inboxes = {
            key: Inbox(self._device, {b.tensor: zeros(self._shape(b), b.dtype) for b in bindings})
            for key, bindings in handed.items()
        }
        self.pixels = {
            phase: zeros((1, 3, frames, g.height, g.width), np.float32)
            for phase, frames in (("first", 1), ("step", g.frames_per_chunk))
        }
        latent = (g.latent_channels, g.latent_height, g.latent_width)
        self.clean = zeros((1, latent[0], 1, *latent[1:]), np.float32)
        self.row_inputs = {
            "noisy": zeros((self._rows, *latent), np.float32),
            "timestep": zeros((self._rows,), np.float32),
            "rope_time": zeros((self._rows, 2, m.attention.rope_time_pairs), np.float32),
            "write_index": zeros((self._rows,), np.int64),
            "mask": zeros((self._rows, 1, 1, m.window.frames * g.tokens_per_frame), np.float32),
        }
        scratch = Scratch(self._device, self._max_batch)
        self.vae = self._bind_vae(scratch)
        self.dit = self._bind_dit(scratch)
        self.prompts = self._bind_prompts()

    def _shape(self, binding: Binding) -> tuple[int, ...]:
        return tuple(self._max_batch if d == "B" else d for d in binding.shape)

    def _numbered(self, kinds: Sequence[str], phase: Phase) -> list[tuple[int, Unit, Engine]]:
        return [
            (n, u, self._engines[n][phase]) for n, u in enumerate(self._units) if u.kind in kinds
        ]

    def _handed(self, kind: Kind, phase: Phase) -> Mapping[str, Array]:
        inbox = self.inboxes.get((kind, phase))
        return {} if inbox is None else inbox.arrays

    def _bind_vae(self, scratch: Scratch) -> dict[tuple[Kind, Phase, int, int], Lane]:
        lanes: dict[tuple[Kind, Phase, int, int], Lane] = {}
        kinds: tuple[Kind, ...] = ("encode", "decode")
        phases: tuple[Phase, ...] = ("first", "step")
        for kind, phase, seat, parity in itertools.product(
            kinds, phases, range(self._seats), (0, 1)
        ):
            units = self._numbered([kind], phase)
            if units:
                given = {"pixels": self.pixels[phase], "clean": self.clean}
                given.update(self._handed(kind, phase))
                own = self._caches_of(phase, seat, parity)
                lanes[kind, phase, seat, parity] = build(units, phase, given, own, scratch)
        return lanes

    def _caches_of(
        self, phase: Phase, seat: int, parity: int
    ) -> Callable[[Unit], Mapping[str, Array]]:
        def own(unit: Unit) -> Mapping[str, Array]:
            sets = self._memory.caches[unit.name, seat]
            state = unit.plans[phase].state
            return {s.input: sets[parity][s.input] for s in state} | {
                s.output: sets[1 - parity][s.input] for s in state
            }

        return own

    def _bind_dit(self, scratch: Scratch) -> dict[tuple[int, int], Lane]:
        units = self._numbered(DIT_KINDS, "step")
        handed = self._handed("denoise", "step")
        lanes: dict[tuple[int, int], Lane] = {}
        for batch in range(1, self._max_batch + 1) if units else ():
            for first in range(self._rows - batch + 1):
                rows = slice(first, first + batch)
                given = {name: array[rows] for name, array in self.row_inputs.items()}
                given.update({name: array[:batch] for name, array in handed.items()})
                lanes[first, batch] = build(
                    units, "step", given, self._rings_of(rows), scratch, batch
                )
        return lanes

    def _rings_of(self, rows: slice) -> Callable[[Unit], Mapping[str, Array]]:
        memory = self._memory

        def own(unit: Unit) -> Mapping[str, Array]:
            if unit.kind != "block":
                return {}
            block = self.blocks[unit.index]
            arrays = {
                "prompt_k": memory.prompt_k[block, rows],
                "prompt_v": memory.prompt_v[block, rows],
            }
            rings = {"k_ring": memory.k_ring, "v_ring": memory.v_ring}
            for pair in unit.plans["step"].state:
                arrays[pair.input] = arrays[pair.output] = rings[pair.input][block, rows]
            return arrays

        return own

    def _bind_prompts(self) -> list[list[Callable[[], None]]]:
        """One list of launches per row: the prompt's keys and values of all blocks here."""
        if not self._prompt_engines:
            return [[] for _ in range(self._rows)]
        unit = next(u for u in self._manifest.prompt if u.kind == "prompt_kv")
        given = unit.plans["step"].inputs[0]
        self.context = self._device.zeros(self._shape(given), given.dtype)
        k, v = self._memory.prompt_k, self._memory.prompt_v
        return [
            [
                engine.bind(
                    {
                        "context": self.context,
                        "prompt_k": k[b, row : row + 1],
                        "prompt_v": v[b, row : row + 1],
                    }
                )
                for b, engine in self._prompt_engines
            ]
            for row in range(self._rows)
        ]
