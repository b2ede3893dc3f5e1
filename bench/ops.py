"""The host ops against memcpy, OpenCV's DIS flow and NumPy expressions, in one run: GB/s of bytes
read + written. On a device, the device ops against its copy and CuPy.

python -m bench.ops [--device]
"""

from __future__ import annotations

import argparse
import importlib
import re
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.table import Parser, Row, count, publish
from rt import noise, ops


def seconds(run: Callable[[], object], runs: int) -> float:
    """Median time of one call, after one that is not counted; short calls are repeated within a
    run.
    """
    run()
    start = time.perf_counter()
    run()
    repeats = max(1, int(0.01 / (time.perf_counter() - start + 1e-9)))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times)


def cases(height: int, width: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Name -> (one call for a chunk of four frames, bytes that it reads and writes)."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (height + 8, width + 8, 3), dtype=np.uint8)
    frames = [np.ascontiguousarray(picture[i : i + height, i : i + width]) for i in range(5)]
    chunk, last = frames[1:], frames[0]
    large = [np.repeat(np.repeat(frame, 2, 0), 2, 1) for frame in chunk]
    nv12 = [rng.integers(0, 255, (3 * height // 2, width), dtype=np.uint8) for _ in range(4)]
    pixels = np.empty((3, 4, height, width), np.float32)
    out = np.empty((4, height, width, 3), np.uint8)
    latent = rng.standard_normal((16, height // 8, width // 8)).astype(np.float32)
    noisy, sigma = np.empty_like(latent), np.float32([0.7])
    control = np.float32([0, 0.8, 700, 0.7])
    picture_bytes, pixel_bytes, latent_bytes = out.nbytes, pixels.nbytes, latent.nbytes
    key = {"seed": 0, "session": 0, "chunk": 0}
    sigmas = noise.sigma_table(8.0)
    assert sigmas.shape == (1000,)
    return {
        "frames_to_pixels, equal size": (
            lambda: ops.frames_to_pixels(chunk, height, width, out=pixels),
            picture_bytes + pixel_bytes,
        ),
        "frames_to_pixels, NV12": (
            lambda: ops.frames_to_pixels(nv12, height, width, out=pixels),
            picture_bytes // 2 + pixel_bytes,
        ),
        "frames_to_pixels, from twice the size": (
            lambda: ops.frames_to_pixels(large, height, width, out=pixels),
            4 * picture_bytes + pixel_bytes,
        ),
        "pixels_to_frames": (
            lambda: ops.pixels_to_frames(pixels, out=out),
            picture_bytes + pixel_bytes,
        ),
        "optical_flow_magnitude": (
            lambda: ops.optical_flow_magnitude(chunk, last),
            picture_bytes + last.nbytes,
        ),
        "frame_difference": (
            lambda: ops.frame_difference(chunk, last),
            picture_bytes + last.nbytes,
        ),
        "mix_noise": (lambda: ops.mix_noise(latent, control, out=noisy, **key), 2 * latent_bytes),
        "renoise": (
            lambda: ops.renoise(latent, latent, sigma, sigma, step=1, out=noisy, **key),
            3 * latent_bytes,
        ),
    }


def sink_cases(xp: Any, blocks: int, heads: int) -> dict[str, tuple[Callable[[], object], int]]:
    """refresh_sinks in float32: two rows, 256 tokens a frame, window 6, 2 sinks; NumPy or CuPy."""
    rows, window, sinks, tokens, width, pairs = 2, 6, 2, 256, 64, 12
    rng = np.random.default_rng(0)
    ring = (blocks, rows, heads, window * tokens, width)
    k, v = (xp.asarray(rng.standard_normal(ring, np.float32)) for _ in range(2))
    time_shape = (blocks, rows, heads, sinks * tokens, 2 * pairs)
    sink_time = xp.asarray(rng.standard_normal(time_shape, np.float32))
    index = xp.asarray(np.tile(np.arange(sinks), (blocks, rows, 1)))
    last, query = (xp.asarray(np.full(rows, window + i)) for i in (3, 4))
    rules: Any = {
        "window": window, "sinks": sinks, "tokens_per_frame": tokens, "theta": 1e4,
        "positions": "window",
    }  # fmt: skip

    def run(threshold: float | None) -> Callable[[], object]:
        return lambda: ops.refresh_sinks(
            k, v, sink_time, index, last, query, threshold=threshold, **rules
        )

    moved = 2 * sink_time.nbytes
    # The new frame's keys and values against those of every sink, none of which is like enough.
    compared = 2 * k.nbytes * (1 + sinks) // window
    return {
        "refresh_sinks, sinks moved": (run(None), moved),
        "refresh_sinks, sinks compared and moved": (run(-1.0), moved + compared),
    }


def others(height: int, width: int) -> dict[str, tuple[Callable[[], object], int]]:
    """The same work by other means: NumPy expressions, and DIS on the threads that OpenCV takes."""
    import cv2

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (height + 8, width + 8, 3), dtype=np.uint8)
    frames = np.stack([picture[i : i + height, i : i + width] for i in range(5)])
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    pixels = rng.standard_normal((3, 4, height, width)).astype(np.float32)
    both = frames[1:].nbytes + pixels.nbytes
    found: dict[str, tuple[Callable[[], object], int]] = {
        "NumPy: frames -> pixels": (lambda: to_pixels(np, frames[1:]), both),
        "NumPy: pixels -> frames": (lambda: to_frames(np, pixels), both),
    }
    for name in ("ULTRAFAST", "FAST", "MEDIUM"):
        flow = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{name}"))
        found[f"OpenCV DIS {name.lower()}, mean magnitude"] = (
            lambda f=flow: [
                float(np.hypot(*np.moveaxis(f.calc(a, b, None), 2, 0)).mean())
                for a, b in pairwise(grey)
            ],
            frames.nbytes,
        )
    return found


def to_pixels(xp: Any, frames: Any) -> Any:
    """The expression in NumPy or CuPy."""
    return xp.ascontiguousarray(
        (frames.astype(xp.float32) / xp.float32(127.5) - xp.float32(1)).transpose(3, 0, 1, 2)
    )


def to_frames(xp: Any, pixels: Any) -> Any:
    levels = xp.rint((xp.clip(pixels, -1, 1) + xp.float32(1)) * xp.float32(127.5))
    return xp.ascontiguousarray(levels.astype(xp.uint8).transpose(1, 2, 3, 0))


def device_seconds(cp: Any, run: Callable[[], object], runs: int) -> float:
    """Median time of one call by events on the default stream, ten calls between two events: of a
    short one that is the time of its launches.
    """
    for _ in range(3):
        run()
    times = []
    for _ in range(runs):
        start, stop = cp.cuda.Event(), cp.cuda.Event()
        start.record()
        for _ in range(10):
            run()
        stop.record()
        stop.synchronize()
        times.append(cp.cuda.get_elapsed_time(start, stop) / 1e4)
    return statistics.median(times)


def device_cases(cp: Any) -> dict[str, tuple[Callable[[], object], int]]:
    """About 256 MB of elements, so that no cache holds them, and the small ops at their sizes."""
    count, shape = 64 << 20, (8, 1080, 1920, 3)
    rng = np.random.default_rng(0)
    # Not zeros, on which a device may be faster: it then has less to switch.
    some = cp.asarray(rng.standard_normal(1 << 20, np.float32))
    x, v, out = (cp.tile(some, count >> 20) for _ in range(3))
    control, sigma = cp.full(4, 0.5, np.float32), cp.full(1, 0.5, np.float32)
    frames = cp.asarray(rng.integers(0, 255, shape, np.uint8))
    pixels = cp.tile(some, frames.size // some.size + 1)[: frames.size].clip(-1, 1)
    pixels = cp.ascontiguousarray(pixels.reshape(3, *shape[:3]))
    sums, scores = cp.zeros(8, np.int64), cp.zeros(8, np.float32)
    table, both = cp.asarray(noise.sigma_table(8.0)), frames.nbytes + pixels.nbytes
    names: Any = {
        "reference": 8.0, "s_max": 0.8, "s_min": 0.5, "smoothing": 0.9, "timestep_offset": 0
    }  # fmt: skip
    key = {"seed": 0, "session": 0, "chunk": 0}
    listed = list(frames)
    nv12 = [cp.asarray(rng.integers(0, 255, (1620, 1920), np.uint8)) for _ in range(8)]
    pair = [cp.asarray(frame) for frame in rng.integers(0, 255, (5, 480, 832, 3), np.uint8)]
    both_nv12 = frames.nbytes // 2 + pixels.nbytes
    scratch, rows = cp.empty(ops.flow_scratch(480, 832, 5), np.uint8), cp.empty((4, 5), np.float32)
    return {
        "mix_noise": (lambda: ops.mix_noise(x, control, out=out, **key), 2 * x.nbytes),
        "renoise": (
            lambda: ops.renoise(x, v, sigma, sigma, step=1, out=out, **key), 3 * x.nbytes
        ),
        "frames_to_pixels": (lambda: ops.frames_to_pixels(listed, 1080, 1920, pixels), both),
        "frames_to_pixels, NV12": (
            lambda: ops.frames_to_pixels(nv12, 1080, 1920, pixels), both_nv12
        ),
        "pixels_to_frames": (lambda: ops.pixels_to_frames(pixels, frames), both),
        "optical_flow_magnitude, one pair of 832x480": (
            lambda: ops.optical_flow_magnitude(pair[1:2], pair[0], rows[:1], scratch=scratch),
            2 * pair[0].nbytes,
        ),
        "optical_flow_magnitude, four pairs of 832x480": (
            lambda: ops.optical_flow_magnitude(pair[1:], pair[0], rows, scratch=scratch),
            5 * pair[0].nbytes,
        ),
        "frame_difference": (
            lambda: ops.frame_difference(listed, listed[0], scores, sums=sums), 2 * frames.nbytes
        ),
        "noise_control": (
            lambda: ops.noise_control(scores, control, True, **names, sigmas=table, out=out[:4]),
            table.nbytes,
        ),
        **sink_cases(cp, 30, 12),
        "CuPy: frames -> pixels": (lambda: to_pixels(cp, frames), both),
        "CuPy: pixels -> frames": (lambda: to_frames(cp, pixels), both),
    }  # fmt: skip


def device() -> tuple[Any, str]:
    """CuPy, and the GPU's name for a file."""
    try:
        cp: Any = importlib.import_module("cupy")
        name = cp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    except Exception as error:  # noqa: BLE001 - CuPy's own errors, whose types it does not promise
        raise SystemExit(f"bench.ops --device: no GPU that CuPy can use ({error})") from None
    return cp, re.sub(r"\W+", "-", name).strip("-").lower()


def on_device(cp: Any, runs: int) -> Iterator[Row]:
    """The copy, then every operator, each as soon as it is known."""
    a = cp.tile(cp.asarray(np.random.default_rng(0).standard_normal(1 << 20, np.float32)), 64)
    b = cp.empty_like(a)
    copied = 2 * a.nbytes / device_seconds(cp, lambda: cp.copyto(b, a), runs) / 1e9
    yield Row("device copy, 256 MB", copied, "GB/s", runs)
    for case, (run, size) in device_cases(cp).items():
        took = device_seconds(cp, run, runs)
        yield Row(case, size / took / 1e9, "GB/s", runs, copied, f"{took * 1e3:.4f} ms")


def main() -> None:
    p = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--runs", type=count, default=15)
    p.add_argument("--json", type=Path, default=Path("build/bench/ops.jsonl"))
    p.add_argument("--device", action="store_true", help="the GPU instead of the host")
    options = p.parse_args()
    if options.device:
        cp, name = device()
        path = Path("bench/results") / f"{name}.jsonl"
        measured = list(on_device(cp, options.runs))
        return publish(f"device ops against device copy, {name}", measured, path)
    rows: list[Row] = []
    for height, width in ((256, 256), (480, 832)):
        source = np.ones((4, height, width, 3), np.float32)
        target = np.empty_like(source)
        copied = (
            2 * source.nbytes / seconds(lambda s=source, t=target: np.copyto(t, s), options.runs)
        )
        rows.append(
            Row(f"{width}x{height}: memcpy of the pixels", copied / 1e9, "GB/s", options.runs)
        )
        for name, (run, size) in (cases(height, width) | others(height, width)).items():
            took = seconds(run, options.runs)
            note = f"{took * 1e3:.3f} ms per chunk of 4 frames"
            rows.append(
                Row(
                    f"{width}x{height}: {name}",
                    size / took / 1e9,
                    "GB/s",
                    options.runs,
                    copied / 1e9,
                    note,
                )
            )
    for name, (run, size) in sink_cases(np, 8, 4).items():
        took = seconds(run, options.runs)
        rows.append(
            Row(name, size / took / 1e9, "GB/s", options.runs, None, f"{took * 1e3:.3f} ms")
        )
    publish("host ops against memcpy", rows, options.json)


if __name__ == "__main__":
    main()
