"""The device memory of sessions on one stage, allocated once: rings and prompt keys/values per row,
VAE caches per seat.

A seat is cleared when it is leased, so that nothing of an earlier session can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import window
from .devices import Device
from .frame import Array
from .manifest import Manifest, Unit


class SeatMemory:
    """All state that one stage keeps for `seats` seats of `rows_per_seat` rows each.

    `k_ring`, `v_ring` are [blocks, rows, N, W*S, K]; block b here is the b-th block of this stage.
    """

    def __init__(
        self,
        manifest: Manifest,
        units: Sequence[Unit],
        device: Device,
        seats: int,
        rows_per_seat: int,
    ) -> None:
        a, g, w = manifest.attention, manifest.geometry, manifest.window
        blocks = sum(unit.kind == "block" for unit in units)
        rows = seats * rows_per_seat
        tokens = g.tokens_per_frame
        self.rows_per_seat = rows_per_seat
        self._device = device
        dtypes = _dtypes(units)
        ring = (blocks, rows, a.heads, w.frames * tokens, a.head_dim)
        self.k_ring = device.zeros(ring, dtypes["k_ring"])
        self.v_ring = device.zeros(ring, dtypes["v_ring"])
        self.sink_time = device.zeros(
            (blocks, rows, a.heads, w.sinks * tokens, 2 * a.rope_time_pairs), np.float32
        )
        self.sink_index = device.zeros((blocks, rows, w.sinks), np.int64)
        device.fill(self.sink_index, -1)
        prompt = (blocks, rows, a.heads, manifest.text.length, a.head_dim)
        self.prompt_k = device.zeros(prompt, dtypes["prompt_k"])
        self.prompt_v = device.zeros(prompt, dtypes["prompt_v"])
        self.prompt_version: NDArray[np.int64] = np.full(rows, -1, np.int64)
        """Which prompt each row's keys and values are of; -1 = none."""
        self.slot_frames: NDArray[np.int64] = np.full((rows, w.frames), -1, np.int64)
        """Index of the latent frame in each slot of each row's rings; -1 = none."""
        self.last: NDArray[np.int64] = np.full(rows, -1, np.int64)
        """Index of the latent frame that each row ran last; -1 = none."""
        self.caches: dict[tuple[str, int], tuple[dict[str, Array], dict[str, Array]]] = {}
        """(VAE unit, seat) -> two sets of caches that swap after each run, by the name of the input
        binding.
        """
        for unit in units:
            if unit.kind in ("encode", "decode"):
                state = unit.plans["step"].state
                for seat in range(seats):
                    self.caches[unit.name, seat] = (
                        {s.input: device.zeros(_static(s.shape), s.dtype) for s in state},
                        {s.input: device.zeros(_static(s.shape), s.dtype) for s in state},
                    )
        self._parity = {(kind, seat): 0 for kind in ("encode", "decode") for seat in range(seats)}

    def parity(self, kind: str, seat: int) -> int:
        """Which of the two sets of VAE caches holds the past."""
        return self._parity[kind, seat]

    def swap(self, kind: str, seat: int) -> None:
        """The set that was written becomes the past."""
        self._parity[kind, seat] ^= 1

    def record(self, row: int, frame: int, frames: int, sinks: int) -> None:
        """Row `row` has written latent frame `frame` to its slot."""
        self.slot_frames[row, window.slot(frame, frames, sinks)] = frame
        self.last[row] = frame

    def clear(self, seat: int) -> None:
        """As if no session had ever used this seat."""
        rows = slice(seat * self.rows_per_seat, (seat + 1) * self.rows_per_seat)
        for array in (self.k_ring, self.v_ring, self.sink_time, self.prompt_k, self.prompt_v):
            self._device.fill(array[:, rows], 0)
        self._device.fill(self.sink_index[:, rows], -1)
        self.prompt_version[rows] = -1
        self.slot_frames[rows] = -1
        self.last[rows] = -1
        for (_unit, owner), sets in self.caches.items():
            if owner == seat:
                for caches in sets:
                    for array in caches.values():
                        self._device.fill(array, 0)
        self._device.wait()
        for kind in ("encode", "decode"):
            self._parity[kind, seat] = 0


def _dtypes(units: Sequence[Unit]) -> dict[str, str]:
    """Types of rings and prompt keys and values: those of any block, as all have one graph."""
    names = ("k_ring", "v_ring", "prompt_k", "prompt_v")
    block = next((unit.plans["step"] for unit in units if unit.kind == "block"), None)
    if block is None:
        return dict.fromkeys(names, "float32")
    found = {s.input: s.dtype for s in block.state} | {b.name: b.dtype for b in block.inputs}
    return {name: found[name] for name in names}


def _static(shape: Sequence[int | str]) -> tuple[int, ...]:
    assert all(isinstance(d, int) for d in shape), shape
    return tuple(int(d) for d in shape)
