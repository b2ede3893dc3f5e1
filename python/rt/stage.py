"""A stage runs its consecutive units for the passes that the scheduler chose. It owns its device's
memory.

It refuses to decide anything: which pass, when, and for whom is told to it. One thread calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
        try:
            if task.kind == "decode":
                return self._decode(task, works[0])
            if task.kind == "encode":
                self._encode(task, works[0])
            else:
                self._denoise(task, works)
            return None
        finally:  # What comes next, here or on another device, finds the pass done.
            self.device.wait()
            self.forget(task)

    def forget(self, task: Task) -> None:
        """Give back the places that a task holds here."""
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
        lane.run(self.device, self.busy_ns)
        self.memory.swap("encode", job.seat)
        if (following := self._following.get("encode")) is not None:
            following.receive(task, phase, lane.values, self.device)
            return
        start, latent = time.perf_counter_ns(), lane.values["latent"][0, :, 0]
        control = self.device.place("control", (4,), np.float32)
        if inbox is not None:
            control = self.device.put("control", work.control)
        noisy = self.device.place("noisy", latent.shape, np.float32)
        mixed = partial(
            ops.mix_noise,
            latent,
            control,
            seed=work.config.seed,
            session=0,
            chunk=job.chunk,
            out=noisy,
        )
        self._operate(mixed)
        self.device.copy(self._wires.landing(job), noisy)
        self.ops_ns += time.perf_counter_ns() - start

    def _preprocess(self, work: Work) -> None:
        """Pixels for the encoder, and the chunk's motion -> its noise."""
        start = time.perf_counter_ns()
        m, g, d = self._manifest, self._manifest.geometry, self.device
        pictures = tuple(d.put(("picture", i), p) for i, p in enumerate(work.pictures))
        pixels = self._lanes.pixels[work.chunk.phase][0]
        missing = pixels.shape[1] - len(pictures)
        padded = (*pictures, *(pictures[-1:] * missing))
        self._operate(partial(ops.frames_to_pixels, padded, g.height, g.width, out=pixels))
        scores = self._scores(pictures, work)
        previous = np.zeros(4, np.float32)
        if work.previous_control is not None:
            previous = work.previous_control
        control = d.place("control", (4,), np.float32)
        continues = work.last_picture is not None and work.previous_control is not None
        s_min, s_max = work.config.noise_range or (m.noise.s_min, m.noise.s_max)
        told = partial(
            ops.noise_control,
            scores,
            d.put("previous", previous),
            continues,
            reference=reference_of(work.config.motion, *work.pictures[0].shape[:2]),
            s_max=s_max,
            s_min=s_min,
            smoothing=m.noise.smoothing,
            timestep_offset=m.noise.timestep_offset,
            sigmas=d.put("sigmas", self._sigmas),
            out=control,
            cuda_stream=d.cuda_stream,
        )
        d.do(told)
        d.copy(work.control, control)
        self.ops_ns += time.perf_counter_ns() - start

    def _scores(self, pictures: Sequence[Array], work: Work) -> Array:
        """float32 [T]: motion of each picture by the session's measure; 0 without a predecessor."""
        d, count = self.device, len(pictures)
        if work.last_picture is None or work.config.motion not in ("flow", "difference"):
            return d.put("still", np.zeros(1, np.float32))
        last = d.put("last picture", work.last_picture)
        if work.config.motion == "difference":
            out = d.place("difference", (count,), np.float32)
            sums = d.place("sums", (count,), np.int64)
            self._operate(partial(ops.frame_difference, pictures, last, out, sums=sums))
            return out
        out = d.place("flow", (count, 5), np.float32)
        # The host needs no scratch of ours.
        size = ops.flow_scratch(last.shape[0], last.shape[1], count + 1) if d.cuda_stream else 0
        scratch = d.place("scratch", (size,), np.uint8) if size else None
        self._operate(partial(ops.optical_flow_magnitude, pictures, last, out, scratch=scratch))
        return out[:, 2]

    def _operate(self, op: Callable[..., object]) -> None:
        """Launch an operator of the extension on this stage's device."""
        self.device.do(
            partial(op, threads=self.device.threads, cuda_stream=self.device.cuda_stream)
        )

    def _denoise(self, task: Task, works: Sequence[Work]) -> None:
        jobs = task.jobs
        rows = slice(jobs[0].row, jobs[0].row + len(jobs))
        self._prepare_rows(jobs, works)
        lane = self._lanes.dit[rows.start, len(jobs)]
        if (inbox := self._lanes.inboxes.get(("denoise", "step"))) is not None:
            inbox.take(task.number)
        else:
            for job, work in zip(jobs, works, strict=True):
                self.device.copy(self._lanes.row_inputs["noisy"][job.row], self._wires.waiting(job))
                self._tell(job.row, "timestep", self._timestep(job, work))
                self._tell(job.row, "rope_time", self._rope_time(job.chunk))
        lane.run(self.device, self.busy_ns)
        w = self._manifest.window
        for job in jobs:
            self.memory.record(job.row, job.chunk, w.frames, w.sinks)
        if (following := self._following.get("denoise")) is not None:
            following.receive(task, "step", lane.values, self.device)
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
            slot = window.slot(job.chunk, w.frames, w.sinks)
            self._tell(job.row, "write_index", slot * tokens)
            past = memory.slot_frames[job.row]
            mask = window.row_mask(past, job.chunk, w.frames, w.sinks, tokens)
            self._tell(job.row, "mask", mask)

    def _tell(self, row: int, name: str, value: Any) -> None:
        """Set what one row of the DiT reads."""
        rows = self._lanes.row_inputs[name][row : row + 1]
        host = np.broadcast_to(np.asarray(value, rows.dtype), rows.shape)
        self.device.copy(rows, self.device.put((name, row), host))

    def _refresh_sinks(self, job: Job, work: Work) -> None:
        """All blocks of one row: what its last frame does to the sinks, and their positions now."""
        start = time.perf_counter_ns()
        m, memory, row = self._manifest, self.memory, slice(job.row, job.row + 1)
        put = self.device.put
        refreshed = partial(
            ops.refresh_sinks,
            memory.k_ring[:, row],
            memory.v_ring[:, row],
            memory.sink_time[:, row],
            memory.sink_index[:, row],
            put(("last", job.row), memory.last[row]),
            put(("query", job.row), np.array([job.chunk], np.int64)),
            window=m.window.frames,
            sinks=m.window.sinks,
            tokens_per_frame=m.geometry.tokens_per_frame,
            theta=m.attention.rope_theta,
            threshold=m.window.sink_threshold if work.config.sinks == "adaptive" else None,
            positions=work.config.positions,
        )
        self._operate(refreshed)
        self.ops_ns += time.perf_counter_ns() - start

    def _load_prompt(self, row: int, prompt: PromptContext) -> None:
        start = time.perf_counter_ns()
        if self._lanes.prompts[row]:
            self.device.copy(self._lanes.context, prompt.context)
        for launch in self._lanes.prompts[row]:
            self.device.do(launch)
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
        noisy, put = lane.values["noisy"][position], self.device.put
        landed = self.device.place(("landed", position), noisy.shape, np.float32)
        renoised = partial(
            ops.renoise,
            noisy,
            lane.values["velocity"][position],
            put(("sigma", position), self._sigma(job.step, job.steps, work)),
            put(("next sigma", position), self._sigma(job.step + 1, job.steps, work)),
            seed=work.config.seed,
            session=0,
            chunk=job.chunk,
            step=job.step + 1,
            out=landed,
        )
        self._operate(renoised)
        self.device.copy(self._wires.landing(job), landed)

    def _decode(self, task: Task, work: Work) -> NDArray[np.uint8] | None:
        job, phase = task.jobs[0], work.chunk.phase
        lane = self._lanes.vae["decode", phase, job.seat, self.memory.parity("decode", job.seat)]
        if (inbox := self._lanes.inboxes.get(("decode", phase))) is not None:
            inbox.take(task.number)
        else:
            self.device.copy(self._lanes.clean[0, :, 0], self._wires.waiting(job))
        lane.run(self.device, self.busy_ns)
        self.memory.swap("decode", job.seat)
        if (following := self._following.get("decode")) is not None:
            following.receive(task, phase, lane.values, self.device)
            return None
        start = time.perf_counter_ns()
        restyled = lane.values["restyled"][0, :, : len(work.pictures)]
        shape = (restyled.shape[1], *restyled.shape[2:], 3)
        made, frames = self.device.place("frames", shape, np.uint8), np.empty(shape, np.uint8)
        self._operate(partial(ops.pixels_to_frames, restyled, made))
        self.device.copy(frames, made)
        self.ops_ns += time.perf_counter_ns() - start
        return frames

    def receive(
        self, task: Task, phase: Phase, values: Mapping[str, Array], source: Device
    ) -> None:
        """Take over what the stage before made of a task; called on that stage's thread."""
        self._lanes.inboxes[task.kind, phase].put(task.number, values, source)
