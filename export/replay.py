"""A stream through the units of a chain, one after another, by whatever runs a unit: along it a
build is compared, with activations as they are in a stream.

Plain and slow: no lanes, no workers. Sessions may be at different chunks and share every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rt import noise, ops, window
from rt.manifest import Manifest

Arrays = dict[str, NDArray[Any]]
Run = Callable[[str, str, Arrays], Arrays]
"""(unit, phase, values of inputs and states by binding) -> outputs and next states by binding."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Clip:
    """What one session is given: its prompt's embeddings [1, L, E], and pixels [1, 3, 1 | 4, H, W]
    of each chunk, the first of one frame. It begins `late` chunks after the first session.
    """

    embeddings: NDArray[np.float32]
    chunks: Sequence[NDArray[np.float32]]
    late: int = 0


@dataclass(frozen=True, slots=True)
class Shown:
    """A chunk that a session got: its clean latent [16, h, w] and its pixels [1, 3, T, H, W]."""

    session: int
    chunk: int
    clean: NDArray[np.float32]
    pixels: NDArray[np.float32]


@dataclass(slots=True)
class _Row:
    """Rings and sinks of all blocks, for one step of all sessions: [blocks, sessions, ...]."""

    k_ring: NDArray[np.float32]
    v_ring: NDArray[np.float32]
    sink_time: NDArray[np.float32]
    sink_index: NDArray[np.int64]


@dataclass(slots=True)
class Replay:
    """Streams of several sessions at once. `threshold` as the manifest's, None: sinks stay."""

    manifest: Manifest
    run: Run
    clips: Sequence[Clip]
    steps: int
    threshold: float | None
    caches: dict[tuple[int, str, str], NDArray[Any]] = field(default_factory=dict)
    rows: list[_Row] = field(default_factory=list)
    prompts: list[list[Arrays]] = field(default_factory=list)

    def __post_init__(self) -> None:
        a, w, g = self.manifest.attention, self.manifest.window, self.manifest.geometry
        lead, count = (a.blocks, len(self.clips)), a.heads
        ring = (*lead, count, w.frames * g.tokens_per_frame, a.head_dim)
        side = (*lead, count, w.sinks * g.tokens_per_frame, 2 * a.rope_time_pairs)
        for _ in range(self.steps):
            rings = (np.zeros(ring, np.float32), np.zeros(ring, np.float32))
            index = np.full((*lead, w.sinks), -1, np.int64)
            self.rows.append(_Row(*rings, np.zeros(side, np.float32), index))
        for clip in self.clips:
            context = self.run("prompt_in", "step", {"embeddings": clip.embeddings})
            self.prompts.append(
                [self.run(f"prompt_kv_{b}", "step", dict(context)) for b in range(a.blocks)]
            )

    def __iter__(self) -> Iterator[Shown]:
        """Chunk by chunk, all sessions that have one in one batch."""
        for tick in range(max(len(clip.chunks) + clip.late for clip in self.clips)):
            at = {
                session: tick - clip.late
                for session, clip in enumerate(self.clips)
                if 0 <= tick - clip.late < len(clip.chunks)
            }
            latents = [self._vae("encode", s, c, self.clips[s].chunks[c])[0, :, 0]
                       for s, c in at.items()]  # fmt: skip
            for (session, chunk), clean in zip(
                at.items(), self._denoised(at, latents), strict=True
            ):
                pixels = self._vae("decode", session, chunk, clean[None, :, None])
                yield Shown(session, chunk, clean, pixels)

    def _vae(
        self, kind: str, session: int, chunk: int, value: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        phase = "step" if chunk else "first"
        for unit in (u for u in self.manifest.chain if u.kind == kind):
            plan = unit.plans[phase]
            feeds = {plan.inputs[0].name: np.ascontiguousarray(value)}
            for s in plan.state:
                fresh = np.zeros([int(d) for d in s.shape], s.dtype)
                feeds[s.input] = self.caches.get((session, unit.name, s.input), fresh)
            out = self.run(unit.name, phase, feeds)
            for s in plan.state:
                self.caches[session, unit.name, s.input] = out[s.output]
            value = out[plan.outputs[0].name]
        return value

    def _denoised(
        self, at: Mapping[int, int], latents: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """All steps of one chunk of each session: clean latents [B, 16, h, w]."""
        said = self.manifest.noise
        first = int(1000 * said.s_max + 1e-3) + said.timestep_offset
        timesteps = [first, *said.timesteps[1 : self.steps]]
        table = noise.sigma_table(said.shift)
        levels = [noise.sigma_at(table, t) for t in timesteps] + [0.0]

        def drawn(step: int) -> NDArray[np.float32]:
            shape = latents[0].shape
            eps = [ops.philox_normal(shape, seed=SEED, session=s, chunk=c, step=step)
                   for s, c in at.items()]  # fmt: skip
            return np.stack(eps)

        noisy = noise.mix(np.stack(latents), said.s_max, drawn(0))
        for step, timestep in enumerate(timesteps):
            velocity = self._velocity(self.rows[step], at, noisy, timestep)
            eps = drawn(step + 1) if levels[step + 1] else np.zeros_like(noisy)
            noisy = noise.renoise(noisy, velocity, levels[step], levels[step + 1], eps)
        return noisy

    def _velocity(
        self, row: _Row, at: Mapping[int, int], noisy: NDArray[np.float32], timestep: float
    ) -> NDArray[np.float32]:
        """One pass of the DiT over the sessions of `at`, which lie beside each other."""
        a, w, g = self.manifest.attention, self.manifest.window, self.manifest.geometry
        here = slice(min(at), max(at) + 1)
        chunks = list(at.values())
        query = np.array(chunks, np.int64)
        held = [_held(c, w.frames, w.sinks) for c in chunks]
        ops.refresh_sinks(
            row.k_ring[:, here], row.v_ring[:, here], row.sink_time[:, here],
            row.sink_index[:, here], query - 1, query,
            window=w.frames, sinks=w.sinks, tokens_per_frame=g.tokens_per_frame,
            theta=a.rope_theta, threshold=self.threshold, positions="window",
        )  # fmt: skip
        rope = [window.rope_time(c, a.rope_time_pairs, a.rope_theta) for c in chunks]
        times = np.full(len(chunks), timestep, np.float32)
        entry = {"noisy": noisy, "timestep": times, "rope_time": np.stack(rope)}
        flow = self.run("dit_in", "step", entry)
        masks = [
            window.row_mask(h, c, w.frames, w.sinks, g.tokens_per_frame)
            for h, c in zip(held, chunks, strict=True)
        ]
        slots = np.array([window.slot(c, w.frames, w.sinks) for c in chunks], np.int64)
        shared: Arrays = {
            "modulation": flow["modulation"],
            "rope": flow["rope"],
            "write_index": slots * g.tokens_per_frame,
            "mask": np.stack(masks)[:, None, None],
        }
        x = flow["x"]
        for block in range(a.blocks):
            prompt = {
                name: np.concatenate([self.prompts[s][block][name] for s in at])
                for name in ("prompt_k", "prompt_v")
            }
            rings = {"k_ring": row.k_ring[block, here], "v_ring": row.v_ring[block, here]}
            out = self.run(f"block_{block}", "step", {"x": x, **shared, **prompt, **rings})
            x = out["x_next"]
            for name, ring in rings.items():
                ring[...] = out[f"{name}_next"]
        out = self.run("dit_out", "step", {"x": x, "head_modulation": flow["head_modulation"]})
        return out["velocity"]


def _held(chunk: int, frames: int, sinks: int) -> NDArray[np.int64]:
    """The frame that each slot holds before `chunk` is written, of a row that sat out none."""
    held = np.full(frames, -1, np.int64)
    for earlier in range(chunk):
        held[window.slot(earlier, frames, sinks)] = earlier
    return held
