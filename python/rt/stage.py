"""A stage runs its consecutive units for the passes that the scheduler chose. It owns its device's
memory.

It refuses to decide anything: which pass, when, and for whom is told to it. One thread calls it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import backends, noise, ops, window
from .backends.base import Engine
from .config import SessionConfig
from .devices import Device
from .frame import Array, Chunk, Job, Kind, Phase
from .lane import Inbox, Lane, Scratch, build
from .manifest import Binding, Manifest, Unit
from .motion import reference_of
from .scheduler import Task
from .seats import SeatMemory

DIT_KINDS = ("dit_in", "block", "dit_out")


@dataclass(frozen=True, slots=True, eq=False)
class PromptContext:
    """What a chunk is told to look like: `prompt_in`'s output [1, L, D]. Equal versions are equal
    contexts.
    """

    version: int
    context: Array


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """All that the stages need to know of one chunk. `control` is written once, where its encoding
    begins.
    """

    chunk: Chunk
    config: SessionConfig
    prompt: PromptContext
    pictures: tuple[NDArray[np.uint8], ...]
    """The chunk's frames as the model sees them (cropped views), uint8 [H', W', 3]."""
    last_picture: NDArray[np.uint8] | None
    """The frame before the chunk; None when it continues nothing."""
    control: NDArray[np.float32]
    """(motion score, noise scale, timestep, sigma)"""
    previous_control: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Wires:
    """Latents between passes: `noisy` [rows, places, 16, h, w] waits for the DiT, `clean` [seats,
    places, 16, h, w] for decoding. Chunk c is in place c modulo their number.
    """

    noisy: Array
    clean: Array

    def waiting(self, job: Job) -> Array:
        """Where the latent is that a pass of the DiT or the decoder starts from: [16, h, w]."""
        place = job.chunk % self.noisy.shape[1]
        if job.step == job.steps:
            return self.clean[job.seat, place, ...]
        return self.noisy[job.row, place, ...]

    def landing(self, job: Job) -> Array:
        """Where the latent goes that a pass of the encoder or the DiT ends with: [16, h, w]."""
        place = job.chunk % self.noisy.shape[1]
        if job.step + 1 == job.steps:
            return self.clean[job.seat, place, ...]
        return self.noisy[job.row + 1, place, ...]


class Stage:
    """One device's run of consecutive units, loaded, with memory for `seats` sessions."""

    def __init__(
        self,
        index: int,
        device: Device,
        manifest: Manifest,
        directory: Path,
        units: Sequence[Unit],
        seats: int,
        rows_per_seat: int,
        max_batch: int,
    ) -> None:
        self.index = index
        self.device = device
        self.units = tuple(units)
        self.memory = SeatMemory(manifest, self.units, device, seats, rows_per_seat)
        self.busy_ns: NDArray[np.int64] = np.zeros(len(self.units), np.int64)
        """Time spent in each unit since load."""
        self.prompt_ns = 0
        """Time spent in the units `prompt_kv`."""
        self.ops_ns = 0
        """Time spent in the ops of the extension."""
        self._manifest = manifest
        self._seats = seats
        self._rows = seats * rows_per_seat
        self._max_batch = min(max_batch, self._rows)
        self._sigmas = noise.sigma_table(manifest.noise.shift)
        self._load(directory)

    def _load(self, directory: Path) -> None:
        backend = backends.create(self._manifest.backend, self.device.threads)
        self._engines = [
            {phase: backend.load(directory, plan) for phase, plan in unit.plans.items()}
            for unit in self.units
        ]
        self._blocks = {
            u.index: i for i, u in enumerate(u for u in self.units if u.kind == "block")
        }
        prompt_units = [
            u for u in self._manifest.prompt if u.kind == "prompt_kv" and u.index in self._blocks
        ]
        self._prompt_engines = [
            (self._blocks[u.index], backend.load(directory, u.plans["step"])) for u in prompt_units
        ]

    def connect(
        self,
        wires: Wires,
        handed: Mapping[tuple[Kind, Phase], Sequence[Binding]],
        following: Mapping[Kind, Stage],
    ) -> None:
        """Bind every launch that can ever be needed.

        `handed`: the values that cross the cut before this stage. `following`: the next stage of
        each route, if any.
        """
        zeros = self.device.zeros
        m, g = self._manifest, self._manifest.geometry
        self._wires = wires
        self._following = following
        self._inboxes = {
            key: Inbox(self.device, {b.tensor: zeros(self._shape(b), b.dtype) for b in bindings})
            for key, bindings in handed.items()
        }
        self._pixels = {
            phase: zeros((1, 3, frames, g.height, g.width), np.float32)
            for phase, frames in (("first", 1), ("step", g.frames_per_chunk))
        }
        latent = (g.latent_channels, g.latent_height, g.latent_width)
        self._clean = zeros((1, latent[0], 1, *latent[1:]), np.float32)
        self._row_inputs = {
            "noisy": zeros((self._rows, *latent), np.float32),
            "timestep": zeros((self._rows,), np.float32),
            "rope_time": zeros((self._rows, 2, m.attention.rope_time_pairs), np.float32),
            "write_index": zeros((self._rows,), np.int64),
            "mask": zeros((self._rows, 1, 1, m.window.frames * g.tokens_per_frame), np.float32),
        }
        scratch = Scratch(self.device, self._max_batch)
        self._vae_lanes = self._bind_vae(scratch)
        self._dit_lanes = self._bind_dit(scratch)
        self._prompt_launches = self._bind_prompts()

    def run(self, task: Task, works: Sequence[Work]) -> NDArray[np.uint8] | None:
        """Run this stage's part of a pass. Returns the restyled frames where a decoding pass ends.

        uint8 [T, H, W, 3], T = number of real frames of the chunk.
        """
        if task.kind == "decode":
            return self._decode(task, works[0])
        if task.kind == "encode":
            self._encode(task, works[0])
        else:
            self._denoise(task, works)
        return None

    def forget(self, task: Task) -> None:
        """Give back the places that a failed task still holds here."""
        for inbox in self._inboxes.values():
            inbox.drop(task.number)

    # Binding

    def _shape(self, binding: Binding) -> tuple[int, ...]:
        return tuple(self._max_batch if d == "B" else d for d in binding.shape)

    def _numbered(self, kinds: Sequence[str], phase: Phase) -> list[tuple[int, Unit, Engine]]:
        return [
            (n, u, self._engines[n][phase]) for n, u in enumerate(self.units) if u.kind in kinds
        ]

    def _handed(self, kind: Kind, phase: Phase) -> Mapping[str, Array]:
        inbox = self._inboxes.get((kind, phase))
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
                given = {"pixels": self._pixels[phase], "clean": self._clean}
                given.update(self._handed(kind, phase))
                own = self._caches_of(phase, seat, parity)
                lanes[kind, phase, seat, parity] = build(units, phase, given, own, scratch)
        return lanes

    def _caches_of(
        self, phase: Phase, seat: int, parity: int
    ) -> Callable[[Unit], Mapping[str, Array]]:
        def own(unit: Unit) -> Mapping[str, Array]:
            sets = self.memory.caches[unit.name, seat]
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
                given = {name: array[rows] for name, array in self._row_inputs.items()}
                given.update({name: array[:batch] for name, array in handed.items()})
                lanes[first, batch] = build(
                    units, "step", given, self._rings_of(rows), scratch, batch
                )
        return lanes

    def _rings_of(self, rows: slice) -> Callable[[Unit], Mapping[str, Array]]:
        memory = self.memory

        def own(unit: Unit) -> Mapping[str, Array]:
            if unit.kind != "block":
                return {}
            block = self._blocks[unit.index]
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
        self._context = self.device.zeros(self._shape(unit.plans["step"].inputs[0]), np.float32)
        k, v = self.memory.prompt_k, self.memory.prompt_v
        return [
            [
                engine.bind(
                    {
                        "context": self._context,
                        "prompt_k": k[b, row : row + 1],
                        "prompt_v": v[b, row : row + 1],
                    }
                )
                for b, engine in self._prompt_engines
            ]
            for row in range(self._rows)
        ]

    # Passes

    def _encode(self, task: Task, work: Work) -> None:
        job, phase = task.jobs[0], work.chunk.phase
        lane = self._vae_lanes["encode", phase, job.seat, self.memory.parity("encode", job.seat)]
        if (inbox := self._inboxes.get(("encode", phase))) is not None:
            inbox.take(task.number)
        else:
            self._preprocess(work)
        lane.run(self.busy_ns)
        self.memory.swap("encode", job.seat)
        if (following := self._following.get("encode")) is not None:
            following.receive(task, phase, lane.values)
            return
        start = time.perf_counter_ns()
        ops.mix_noise(
            lane.values["latent"][0, :, 0],
            work.control,
            seed=work.config.seed,
            session=0,
            chunk=job.chunk,
            out=self._wires.landing(job),
            threads=self.device.threads,
        )
        self.ops_ns += time.perf_counter_ns() - start

    def _preprocess(self, work: Work) -> None:
        """Pixels for the encoder, and the chunk's motion -> its noise."""
        start = time.perf_counter_ns()
        m, g, threads = self._manifest, self._manifest.geometry, self.device.threads
        pixels = self._pixels[work.chunk.phase][0]
        missing = pixels.shape[1] - len(work.pictures)
        padded = (*work.pictures, *(work.pictures[-1:] * missing))
        ops.frames_to_pixels(padded, g.height, g.width, out=pixels, threads=threads)
        scores = np.zeros(1, np.float32)
        if work.last_picture is not None and work.config.motion == "flow":
            scores = ops.optical_flow_magnitude(work.pictures, work.last_picture, threads=threads)[
                :, 2
            ]
        elif work.last_picture is not None and work.config.motion == "difference":
            scores = ops.frame_difference(work.pictures, work.last_picture, threads=threads)
        continues = work.last_picture is not None and work.previous_control is not None
        s_min, s_max = work.config.noise_range or (m.noise.s_min, m.noise.s_max)
        ops.noise_control(
            np.ascontiguousarray(scores),
            work.previous_control if work.previous_control is not None else np.zeros(4, np.float32),
            continues,
            reference=reference_of(work.config.motion, *work.pictures[0].shape[:2]),
            s_max=s_max,
            s_min=s_min,
            smoothing=m.noise.smoothing,
            timestep_offset=m.noise.timestep_offset,
            sigmas=self._sigmas,
            out=work.control,
        )
        self.ops_ns += time.perf_counter_ns() - start

    def _denoise(self, task: Task, works: Sequence[Work]) -> None:
        jobs = task.jobs
        rows = slice(jobs[0].row, jobs[0].row + len(jobs))
        self._prepare_rows(jobs, works)
        lane = self._dit_lanes[rows.start, len(jobs)]
        if (inbox := self._inboxes.get(("denoise", "step"))) is not None:
            inbox.take(task.number)
        else:
            for job, work in zip(jobs, works, strict=True):
                self._row_inputs["noisy"][job.row] = self._wires.waiting(job)
                self._row_inputs["timestep"][job.row] = self._timestep(job, work)
                self._row_inputs["rope_time"][job.row] = self._rope_time(job.chunk)
        lane.run(self.busy_ns)
        w = self._manifest.window
        for job in jobs:
            self.memory.record(job.row, job.chunk, w.frames, w.sinks)
        if (following := self._following.get("denoise")) is not None:
            following.receive(task, "step", lane.values)
            return
        start = time.perf_counter_ns()
        for position, (job, work) in enumerate(zip(jobs, works, strict=True)):
            self._advance(job, work, lane, position)
        self.ops_ns += time.perf_counter_ns() - start

    def _prepare_rows(self, jobs: Sequence[Job], works: Sequence[Work]) -> None:
        """Prompt, sinks, write position and mask of every row of a pass, from the frame index."""
        memory, tokens = self.memory, self._manifest.geometry.tokens_per_frame
        w = self._manifest.window
        for job, work in zip(jobs, works, strict=True):
            if memory.prompt_version[job.row] != work.prompt.version:
                self._load_prompt(job.row, work.prompt)
            if self._blocks:
                self._refresh_sinks(job, work)
            self._row_inputs["write_index"][job.row] = (
                window.slot(job.chunk, w.frames, w.sinks) * tokens
            )
            self._row_inputs["mask"][job.row] = window.row_mask(
                memory.slot_frames[job.row], job.chunk, w.frames, w.sinks, tokens
            )

    def _refresh_sinks(self, job: Job, work: Work) -> None:
        """All blocks of one row: what its last frame does to the sinks, and their positions now."""
        start = time.perf_counter_ns()
        m, memory, row = self._manifest, self.memory, slice(job.row, job.row + 1)
        ops.refresh_sinks(
            memory.k_ring[:, row],
            memory.v_ring[:, row],
            memory.sink_time[:, row],
            memory.sink_index[:, row],
            memory.last[row],
            np.array([job.chunk], np.int64),
            window=m.window.frames,
            sinks=m.window.sinks,
            tokens_per_frame=m.geometry.tokens_per_frame,
            theta=m.attention.rope_theta,
            threshold=m.window.sink_threshold if work.config.sinks == "adaptive" else None,
            positions=work.config.positions,
            threads=self.device.threads,
        )
        self.ops_ns += time.perf_counter_ns() - start

    def _load_prompt(self, row: int, prompt: PromptContext) -> None:
        start = time.perf_counter_ns()
        if self._prompt_engines:
            self._context[...] = prompt.context
        for launch in self._prompt_launches[row]:
            launch()
        self.memory.prompt_version[row] = prompt.version
        self.prompt_ns += time.perf_counter_ns() - start

    def _timestep(self, job: Job, work: Work) -> float:
        return float(work.control[2]) if job.step == 0 else self._manifest.noise.timesteps[job.step]

    def _sigma(self, step: int, steps: int, work: Work) -> NDArray[np.float32]:
        """float32 [1]: sigma of a step of this chunk; 0 after the last one."""
        if step == 0:
            return work.control[3:4]
        if step == steps:
            return np.zeros(1, np.float32)
        timestep = self._manifest.noise.timesteps[step]
        return np.array([noise.sigma_at(self._sigmas, timestep)], np.float32)

    def _rope_time(self, frame: int) -> NDArray[np.float32]:
        a = self._manifest.attention
        return window.rope_time(frame, a.rope_time_pairs, a.rope_theta)

    def _advance(self, job: Job, work: Work, lane: Lane, position: int) -> None:
        """Predicted velocity -> the latent at the next step's noise, or the clean latent after the
        last step.
        """
        ops.renoise(
            lane.values["noisy"][position],
            lane.values["velocity"][position],
            self._sigma(job.step, job.steps, work),
            self._sigma(job.step + 1, job.steps, work),
            seed=work.config.seed,
            session=0,
            chunk=job.chunk,
            step=job.step + 1,
            out=self._wires.landing(job),
            threads=self.device.threads,
        )

    def _decode(self, task: Task, work: Work) -> NDArray[np.uint8] | None:
        job, phase = task.jobs[0], work.chunk.phase
        lane = self._vae_lanes["decode", phase, job.seat, self.memory.parity("decode", job.seat)]
        if (inbox := self._inboxes.get(("decode", phase))) is not None:
            inbox.take(task.number)
        else:
            self._clean[0, :, 0] = self._wires.waiting(job)
        lane.run(self.busy_ns)
        self.memory.swap("decode", job.seat)
        if (following := self._following.get("decode")) is not None:
            following.receive(task, phase, lane.values)
            return None
        start = time.perf_counter_ns()
        restyled = lane.values["restyled"][0, :, : len(work.pictures)]
        frames = ops.pixels_to_frames(restyled, threads=self.device.threads)
        self.ops_ns += time.perf_counter_ns() - start
        return frames

    def receive(self, task: Task, phase: Phase, values: Mapping[str, Array]) -> None:
        """Take over what the stage before made of a task; called on that stage's thread."""
        self._inboxes[task.kind, phase].put(task.number, values)
