"""The host ops against the machine's own copy speed, in one run: GB/s of bytes read + written.

python -m bench.ops
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.table import Row, publish
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


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--runs", type=int, default=15)
    p.add_argument("--json", type=Path, default=Path("build/bench/ops.jsonl"))
    options = p.parse_args()
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
        for name, (run, size) in cases(height, width).items():
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
    publish("host ops against memcpy", rows, options.json)


if __name__ == "__main__":
    main()
