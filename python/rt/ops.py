"""The operators that touch every pixel or element, run where their arrays live.

Owns the only import of `rt._C`.

Arrays may come from NumPy, CuPy, torch or anything else with the buffer protocol,
`__cuda_array_interface__` or DLPack; they are never copied. bfloat16 travels as uint16. On the host
an operator uses `threads` threads (0: as many as cores) and its result does not depend on how many.
On a device it is launched on `cuda_stream` (the handle, 0: the default stream) and not waited for;
`out` must then be given, on the same device. An argument that does not fit is a `ValueError` with
its name, what was got and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

try:
    import rt._C as _C
except ImportError as error:
    raise ImportError(
        f"rt._C is not built or does not load ({error}); "
        "run: pip install -e . (needs a C++20 compiler)"
    ) from None
if not hasattr(_C, "rows"):
    raise ImportError(
        "rt._C is older than this source; run: pip install -e . (or setup.py build_ext)"
    )

Array: TypeAlias = NDArray[Any]
"""A NumPy array, or a device array that describes itself as above."""


def extension() -> Path:
    """The file of the extension, which is also a library of operators for ONNX Runtime."""
    return Path(_C.__file__)


def cuda_archs() -> str:
    """Compute capabilities that the device code was compiled for, such as "80;90"; or ""."""
    archs: str = _C.cuda_archs
    return archs


def frames_to_pixels(
    frames: Sequence[Array],
    height: int,
    width: int,
    out: Array | None = None,
    *,
    matrix: Literal["bt601", "bt709"] = "bt709",
    threads: int = 0,
    cuda_stream: int = 0,
) -> Array:
    """Frames to the model's pixels: resized, planar, in [-1, 1].

    frames: T uint8 [H', W', 3], each in any strides and of its own size. A frame of two dimensions
    is NV12, uint8 [3 H' / 2, W'] with even H' and W': H' rows of luma above H' / 2 rows of pairs
    (u, v), in video levels (16 to 235) of `matrix`, the two planes one stride apart. Each pair
    counts for its 2 x 2 pixels, and colours are clamped to 0..255 and not rounded before the
    resize. out: float32, float16 or
    bfloat16 [3, T, height, width]; made as float32 when absent. An axis of equal size is taken
    exactly as `v / 127.5 - 1`, a longer one averaged over areas, a shorter one interpolated
    linearly between half-pixel centres.
    """
    frames = list(frames)
    if out is None:
        if height < 1 or width < 1:
            raise ValueError(f"height, width: got {height}, {width}, expected at least 1")
        out = np.empty((3, len(frames), height, width), np.float32)
    elif tuple(out.shape) != (3, len(frames), height, width):
        expected = [3, len(frames), height, width]
        raise ValueError(f"out: got shape {list(out.shape)}, expected {expected}")
    _C.frames_to_pixels(frames, matrix, out, threads=threads, cuda_stream=cuda_stream)
    return out


def pixels_to_frames(
    pixels: Array, out: Array | None = None, *, threads: int = 0, cuda_stream: int = 0
) -> Array:
    """The model's pixels to frames: `(clamp(v, -1, 1) + 1) * 127.5`, rounded; NaN gives 0.

    Rounding is to nearest, ties to even.

    pixels: float32, float16 or bfloat16 [3, T, H, W] in any strides. out: uint8 [T, H, W, 3].
    """
    if out is None:
        shape = tuple(pixels.shape)
        if len(shape) != 4:
            raise ValueError(f"pixels: got shape {list(shape)}, expected [3, T, H, W]")
        out = np.empty((shape[1], shape[2], shape[3], 3), np.uint8)
    _C.pixels_to_frames(pixels, out, threads=threads, cuda_stream=cuda_stream)
    return out


def flow_scratch(
    height: int, width: int, pictures: int, quality: Literal["accurate", "fast"] = "fast"
) -> int:
    """Bytes of scratch memory that the flow needs on a device, for one call with so many pictures.

    `optical_flow` has two pictures, `optical_flow_magnitude` its frames and `last`.
    """
    size: int = _C.flow_scratch(height, width, pictures, quality)
    return size


def optical_flow(
    prev: Array,
    next: Array,
    quality: Literal["accurate", "fast"] = "accurate",
    out: Array | None = None,
    *,
    scratch: Array | None = None,
    threads: int = 0,
    cuda_stream: int = 0,
) -> Array:
    """Dense motion: what is at (x, y) in `prev` is at (x + u, y + v) in `next`.

    prev, next: uint8 [H, W, 3]. out: float32 [H, W, 2] = (u, v), pixels of this resolution, right
    and down. Patch-wise inverse search coarse to fine (Kroeger et al., ECCV 2016), where a change
    of light is no motion: docs/motion.md. Equal pictures give exactly 0. "fast" works at the
    resolution of `optical_flow_magnitude`. scratch: uint8 of `flow_scratch` bytes on a device,
    where it is needed; what it holds before and after means nothing.
    """
    if out is None:
        shape = tuple(prev.shape)
        if len(shape) != 3:
            raise ValueError(f"prev: got shape {list(shape)}, expected [H, W, 3]")
        out = np.empty((shape[0], shape[1], 2), np.float32)
    _C.optical_flow(
        prev,
        next,
        quality=quality,
        out=out,
        scratch=scratch,
        threads=threads,
        cuda_stream=cuda_stream,
    )
    return out


def optical_flow_magnitude(
    frames: Sequence[Array],
    last: Array | None,
    out: Array | None = None,
    *,
    scratch: Array | None = None,
    threads: int = 0,
    cuda_stream: int = 0,
) -> Array:
    """How far things move from each frame's predecessor to it, for the noise scale.

    frames: T uint8 [H, W, 3] of one size; `last` comes before the first, None: the first row is 0.
    out: float32 [T, 5]: mean, median, 90th percentile (nearest rank) and maximum of the
    displacement in pixels of the frames' resolution, and the share of pixels that move by more than
    half a pixel. scratch: as in `optical_flow`, for T + 1 pictures; a device takes at most 1024.
    """
    frames = list(frames)
    if out is None:
        out = np.empty((len(frames), 5), np.float32)
    _C.optical_flow_magnitude(
        frames, last, out=out, scratch=scratch, threads=threads, cuda_stream=cuda_stream
    )
    return out


def frame_difference(
    frames: Sequence[Array],
    last: Array | None,
    out: Array | None = None,
    *,
    sums: Array | None = None,
    threads: int = 0,
    cuda_stream: int = 0,
) -> Array:
    """RMS difference of each frame to its predecessor: the reference's measure of motion.

    Pictures are scaled to [-1, 1].

    frames: T uint8 [H, W, 3] of one size; `last` comes before the first, None: the first is 0.
    out: float32 [T]. sums: int64 [T] on a device, where it is needed to add up in; what it holds
    before and after means nothing.
    """
    frames = list(frames)
    if out is None:
        out = np.empty(len(frames), np.float32)
    _C.frame_difference(frames, last, out=out, sums=sums, threads=threads, cuda_stream=cuda_stream)
    return out


def noise_control(
    scores: Array,
    previous: Array,
    has_previous: bool,
    *,
    reference: float,
    s_max: float,
    s_min: float,
    smoothing: float,
    timestep_offset: int,
    sigmas: Array,
    out: Array | None = None,
    cuda_stream: int = 0,
) -> Array:
    """From the motion of a chunk to its noise: (score, noise_scale, timestep, sigma), float32 [4].

    scores: float32 [T] in any stride, the chunk's motion per frame; score is their maximum.
    previous: the record of the chunk before, read when `has_previous`. sigmas: float32 [1000], the
    model's schedule; its timesteps are 1000 sigma. All of them on the host or all on one device.

        d = clip(score / reference, 0, 1)
        s = smoothing (s_max - (s_max - s_min) d) + (1 - smoothing) s_previous
        timestep = max(int(1000 s) + timestep_offset, 1), its sigma the nearest of the table

    Without a previous chunk s is s_max. 1000 s is cut with a tolerance of 1e-3, because s travels
    as float32. (StreamDiffusionV2, arXiv 2511.07399: motion-aware noise controller.)
    """
    if out is None:
        out = np.empty(4, np.float32)
    _C.noise_control(
        scores,
        previous,
        has_previous,
        reference=reference,
        s_max=s_max,
        s_min=s_min,
        smoothing=smoothing,
        timestep_offset=timestep_offset,
        sigmas=sigmas,
        out=out,
        cuda_stream=cuda_stream,
    )
    return out


def mix_noise(
    latent: Array,
    control: Array,
    *,
    seed: int,
    session: int,
    chunk: int,
    out: Array | None = None,
    threads: int = 0,
    cuda_stream: int = 0,
) -> Array:
    """`s eps + (1 - s) latent`, s = control[1]; eps is step 0's noise of (seed, session, chunk).

    latent, out: float32, float16 or bfloat16 of one shape (C-contiguous on a device); out may be
    latent. control: float32 [4] of `noise_control`, where the latent is.
    """
    if out is None:
        out = np.empty(latent.shape, latent.dtype)
    _C.mix_noise(
        latent,
        control,
        seed=seed,
        session=session,
        chunk=chunk,
        out=out,
        threads=threads,
        cuda_stream=cuda_stream,
    )
    return out


def renoise(
    noisy: Array,
    velocity: Array,
    sigma: Array,
    sigma_next: Array,
    *,
    seed: int,
    session: int,
    chunk: int,
    step: int,
    out: Array | None = None,
    threads: int = 0,
    cuda_stream: int = 0,
) -> Array:
    """The clean latent `x0 = noisy - sigma velocity`, noised again for the next step.

    The result is `(1 - sigma_next) x0 + sigma_next eps`.

    noisy, velocity, out: float32, float16 or bfloat16 of one shape (C-contiguous on a device); out
    may be either input. sigma, sigma_next: float32 [1], where the latent is. `step` >= 1 is the
    step being prepared; sigma_next 0 gives x0 exactly.
    """
    if out is None:
        out = np.empty(noisy.shape, noisy.dtype)
    _C.renoise(
        noisy,
        velocity,
        sigma,
        sigma_next,
        seed=seed,
        session=session,
        chunk=chunk,
        step=step,
        out=out,
        threads=threads,
        cuda_stream=cuda_stream,
    )
    return out


def philox_normal(
    shape: Sequence[int],
    *,
    seed: int,
    session: int,
    chunk: int,
    step: int,
    out: Array | None = None,
    threads: int = 0,
) -> Array:
    """The noise itself: standard normal.

    A number is a function of (seed, session, chunk, step) and the index of its element alone.

    Philox4x32-10 with key `seed` and counter (element // 4, chunk, step, session), then Box-Muller.
    out: float32, float16 or bfloat16 of `shape` in any strides; made as float32 when absent.
    """
    if out is None:
        out = np.empty(tuple(shape), np.float32)
    elif tuple(out.shape) != tuple(shape):
        raise ValueError(f"out: got shape {list(out.shape)}, expected {list(shape)}")
    _C.philox_normal(seed=seed, session=session, chunk=chunk, step=step, out=out, threads=threads)
    return out


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """The raw generator: four words for a counter of four and a key of two 32-bit words."""
    words: tuple[int, int, int, int] = _C.philox4x32(list(counter), list(key))
    return words


def refresh_sinks(
    k_ring: Array,
    v_ring: Array,
    sink_time: Array,
    sink_index: Array,
    last: Array,
    query: Array,
    *,
    window: int,
    sinks: int,
    tokens_per_frame: int,
    theta: float,
    threshold: float | None,
    positions: Literal["window", "absolute"],
    threads: int = 0,
    cuda_stream: int = 0,
) -> None:
    """Captures, replaces and moves the pinned frames of every block and row, before a pass.

    k_ring, v_ring: float32, float16 or bfloat16 [blocks, B, heads, window * S, head_dim], S =
    tokens_per_frame; sink_time: float32 [blocks, B, heads, sinks * S, 2 * time pairs], also beside
    a ring of 16 bits; sink_index: int64 [blocks, B, sinks], -1 is none. Outer strides are free; all
    four are written in place. A device takes at most 64 sinks and heads of 1024 elements.
    last, query: int64 [B], the latent frame that each row wrote last (-1: none) and the one that it
    is about to run. The law is in docs/interfaces.md, "Ring and sinks".
    """
    _C.refresh_sinks(
        k_ring,
        v_ring,
        sink_time,
        sink_index,
        last,
        query,
        window=window,
        sinks=sinks,
        tokens_per_frame=tokens_per_frame,
        theta=theta,
        threshold=threshold,
        positions=positions,
        threads=threads,
        cuda_stream=cuda_stream,
    )
