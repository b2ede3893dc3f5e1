"""A stage runs its consecutive units for the passes that the scheduler chose. It owns its device's
memory.

It refuses to decide anything: which pass, when, and for whom is told to it. One thread calls it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import noise, ops, window
from .devices import Device
from .frame import Array, Job, Kind, Phase
from .lane import Lane
from .lanes import Lanes
from .manifest import Binding, Manifest, Unit
from .motion import reference_of
from .scheduler import Task
from .seats import SeatMemory
from .work import PromptContext, Wires, Work


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
        self._sigmas = noise.sigma_table(manifest.noise.shift)
        self._lanes = Lanes(manifest, directory, device, self.units, self.memory, max_batch)

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
        self._wires = wires
        self._following = following
        self._lanes.bind(handed)

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
        for inbox in self._lanes.inboxes.values():
            inbox.drop(task.number)

    # Passes

    def _encode(self, task: Task, work: Work) -> None:
        job, phase = task.jobs[0], work.chunk.phase
        lane = self._lanes.vae["encode", phase, job.seat, self.memory.parity("encode", job.seat)]
        if (inbox := self._lanes.inboxes.get(("encode", phase))) is not None:
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
        pixels = self._lanes.pixels[work.chunk.phase][0]
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
        lane = self._lanes.dit[rows.start, len(jobs)]
        if (inbox := self._lanes.inboxes.get(("denoise", "step"))) is not None:
            inbox.take(task.number)
        else:
            for job, work in zip(jobs, works, strict=True):
                self._lanes.row_inputs["noisy"][job.row] = self._wires.waiting(job)
                self._lanes.row_inputs["timestep"][job.row] = self._timestep(job, work)
                self._lanes.row_inputs["rope_time"][job.row] = self._rope_time(job.chunk)
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
            if self._lanes.blocks:
                self._refresh_sinks(job, work)
            self._lanes.row_inputs["write_index"][job.row] = (
                window.slot(job.chunk, w.frames, w.sinks) * tokens
            )
            self._lanes.row_inputs["mask"][job.row] = window.row_mask(
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
        if self._lanes.prompts[row]:
            self._lanes.context[...] = prompt.context
        for launch in self._lanes.prompts[row]:
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
        lane = self._lanes.vae["decode", phase, job.seat, self.memory.parity("decode", job.seat)]
        if (inbox := self._lanes.inboxes.get(("decode", phase))) is not None:
            inbox.take(task.number)
        else:
            self._lanes.clean[0, :, 0] = self._wires.waiting(job)
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
        self._lanes.inboxes[task.kind, phase].put(task.number, values)
