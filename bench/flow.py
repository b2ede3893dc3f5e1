"""Accuracy and time of the optical flow on pairs with known motion, beside OpenCV, in one run.

python -m bench.flow [--clip VIDEO] [--markdown docs/motion.md]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from bench.table import Parser, Row, count, machine, publish
from rt import ops

Frame = NDArray[np.uint8]
Field = NDArray[np.float32]
HEIGHT, WIDTH = 480, 832
BEGIN, END = "<!-- begin: python -m bench.flow -->", "<!-- end -->"
cv: Any = cv2  # its types know neither lists of colours nor DIS


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures, the motion between them, and where the second one still shows the first."""

    prev: Frame
    next: Frame
    motion: Field
    seen: NDArray[np.bool_]


def picture(name: str) -> Frame:
    """A photo of scikit-image, or a made texture: cloudy noise, discs."""
    if name not in ("clouds", "discs"):
        found = np.asarray(getattr(data, name)(), np.uint8)
        colour = found if found.ndim == 3 else np.repeat(found[..., None], 3, 2)
        return np.asarray(cv.resize(colour, (WIDTH, HEIGHT), interpolation=cv.INTER_AREA))
    rng = np.random.default_rng(7)
    made = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
    if name == "clouds":
        for cell, height in ((4, 12), (16, 20), (64, 30)):
            size = (HEIGHT // cell + 2, WIDTH // cell + 2, 3)
            grid = rng.normal(0, height, size).astype(np.float32)
            made += cv.resize(grid, (WIDTH, HEIGHT), interpolation=cv.INTER_CUBIC)
    else:
        for _ in range(400):
            at = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
            paint = [int(c) for c in rng.integers(30, 225, 3)]
            cv.circle(made, at, int(rng.integers(4, 30)), paint, -1, cv.LINE_AA)
        made = cv.GaussianBlur(made, (0, 0), 0.8)
    return np.clip(made, 0, 255).astype(np.uint8)


PICTURES = ("astronaut", "coffee", "chelsea", "clouds", "discs")


def affine(frame: Frame, matrix: NDArray[np.float64]) -> Pair:
    """`frame` and what it looks like after each of its points went through `matrix` [2, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] - x
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] - y
    moved = cv.warpAffine(
        frame, matrix, (WIDTH, HEIGHT), flags=cv.INTER_CUBIC, borderMode=cv.BORDER_REFLECT
    )
    inside = (x + u >= 0) & (x + u < WIDTH) & (y + v >= 0) & (y + v < HEIGHT)
    return Pair(frame, np.asarray(moved, np.uint8), np.stack([u, v], 2).astype(np.float32), inside)


def translation(frame: Frame, dx: float, dy: float) -> Pair:
    return affine(frame, np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]]))


def turn(frame: Frame, degrees: float, zoom: float) -> Pair:
    return affine(frame, cv.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), degrees, zoom))


def two_layers(back: Frame, front: Frame, dx: float) -> Pair:
    """A disc with a texture of its own moves by (dx, dx / 2) before a background that goes left."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.hypot(x - WIDTH / 2, y - HEIGHT / 2) < 140
    behind = translation(back, -2.0, 0.0)
    disc = translation(front, dx, dx / 2)
    moved_mask = np.hypot(x - WIDTH / 2 - dx, y - HEIGHT / 2 - dx / 2) < 140
    covered = np.roll(moved_mask, 2, 1) & ~mask
    return Pair(
        np.where(mask[..., None], front, back),
        np.where(moved_mask[..., None], disc.next, behind.next),
        np.where(mask[..., None], disc.motion, behind.motion),
        behind.seen & ~covered,
    )


def lit(pair: Pair, gain: float) -> Pair:
    """The second picture brighter or darker; both darkened first, so that nothing clips."""
    prev = (pair.prev * 0.8).astype(np.uint8)
    next = np.round(pair.next * (0.8 * gain)).astype(np.uint8)
    return Pair(prev, next, pair.motion, pair.seen)


def noisy(pair: Pair, sigma: float) -> Pair:
    """Both pictures with Gaussian noise of their own."""
    rng = np.random.default_rng(3)

    def add(frame: Frame) -> Frame:
        return np.asarray(np.clip(frame + rng.normal(0, sigma, frame.shape), 0, 255), np.uint8)

    return Pair(add(pair.prev), add(pair.next), pair.motion, pair.seen)


def classes(names: Sequence[str] = PICTURES) -> dict[str, list[Pair]]:
    """Every class of motion: the same few motions over all pictures."""
    frames = [picture(name) for name in names]

    def moves(*steps: tuple[float, float]) -> list[Pair]:
        return [translation(f, dx, dy) for f in frames for dx, dy in steps]

    small = moves((2.0, 1.0), (-4.5, 3.25))
    still = moves((0.0, 0.0))
    return {
        "translation 0.25-1 px": moves((0.25, 0.0), (0.5, -0.5), (-0.7, 0.3)),
        "translation 2-6 px": small,
        "translation 8-16 px": moves((8.0, -4.0), (-12.5, 7.3), (16.0, 3.0)),
        "translation 24-48 px": moves((24.0, 8.0), (-36.5, 10.25), (48.0, 0.0)),
        "rotation 1-4 degrees": [turn(f, a, 1.0) for f in frames for a in (1.0, -2.0, 4.0)],
        "zoom 2-6 %": [turn(f, 0.0, z) for f in frames for z in (1.02, 0.97, 1.06)],
        "two layers, occlusion": [
            two_layers(f, frames[i - 1], dx) for i, f in enumerate(frames) for dx in (4.0, 10.0)
        ],
        "brightness +20 %, moving": [lit(pair, 1.2) for pair in small],
        "brightness -20 %, moving": [lit(pair, 0.8) for pair in small],
        "noise sigma 8, moving": [noisy(pair, 8.0) for pair in small],
        "brightness +20 %, still": [lit(pair, 1.2) for pair in still],
        "brightness -20 %, still": [lit(pair, 0.8) for pair in still],
        "identical": still,
    }


def grey(frame: Frame) -> Any:
    return cv.cvtColor(frame, cv.COLOR_RGB2GRAY)


def dis(preset: int) -> Callable[[Frame, Frame], Field]:
    flow = cv.DISOpticalFlow_create(preset)
    return lambda a, b: np.asarray(flow.calc(grey(a), grey(b), None), np.float32)


def farneback(a: Frame, b: Frame) -> Field:
    made = cv.calcOpticalFlowFarneback(grey(a), grey(b), None, 0.5, 5, 15, 3, 5, 1.2, 0)
    return np.asarray(made, np.float32)


METHODS: dict[str, Callable[[Frame, Frame], Field]] = {
    "ours fast": lambda a, b: np.asarray(ops.optical_flow(a, b, "fast")),
    "DIS ultrafast": dis(cv.DISOPTICAL_FLOW_PRESET_ULTRAFAST),
    "DIS fast": dis(cv.DISOPTICAL_FLOW_PRESET_FAST),
    "ours accurate": lambda a, b: np.asarray(ops.optical_flow(a, b)),
    "DIS medium": dis(cv.DISOPTICAL_FLOW_PRESET_MEDIUM),
    "Farneback": farneback,
}


def median_error(find: Callable[[Frame, Frame], Field], pairs: list[Pair]) -> float:
    """Median end-point error over all pixels of a class that the second picture shows."""
    errors = []
    for pair in pairs:
        off = np.linalg.norm(find(pair.prev, pair.next) - pair.motion, axis=2)
        errors.append(off[pair.seen])
    return float(np.median(np.concatenate(errors)))


def times_ms(runs: int) -> dict[str, float]:
    """Median time of one pair, the methods taking turns so that a busy machine is busy for all."""
    pair = translation(picture("astronaut"), 8.0, -4.0)
    calls: dict[str, Callable[[Frame, Frame], object]] = dict(METHODS)
    calls["ours magnitude"] = lambda a, b: ops.optical_flow_magnitude([b], a)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn_of in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(pair.prev, pair.next)
            if turn_of:
                taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) * 1e3 for name, values in taken.items()}


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Place of every value in order; equal ones share the middle of theirs."""
    v = np.array(values)
    return np.array([(v < x).sum() + 0.5 * ((v == x).sum() - 1) for x in v], np.float64)


def rank_correlation(groups: dict[str, list[Pair]]) -> float:
    """Spearman's, of the mean magnitude that the production path reports and the true one."""
    pairs = [pair for group in groups.values() for pair in group]
    said = [float(ops.optical_flow_magnitude([p.next], p.prev)[0, 0]) for p in pairs]
    true = [float(np.linalg.norm(p.motion, axis=2).mean()) for p in pairs]
    return float(np.corrcoef(ranks(said), ranks(true))[0, 1])


def clip_agreement(path: Path) -> tuple[float, float]:
    """Of the mean magnitude per frame of a clip, ours and DIS medium: Pearson, ratio of means."""
    capture = cv.VideoCapture(str(path))
    frames: list[Frame] = []
    while (got := capture.read())[0]:
        frames.append(np.asarray(cv.cvtColor(got[1], cv.COLOR_BGR2RGB), np.uint8))
    if len(frames) < 3:
        raise SystemExit(f"{path}: got {len(frames)} frames, expected a video of at least 3")
    ours = ops.optical_flow_magnitude(frames[1:], frames[0])[:, 0]
    medium = METHODS["DIS medium"]
    pairs = itertools.pairwise(frames)
    theirs = np.array([np.linalg.norm(medium(a, b), axis=2).mean() for a, b in pairs])
    return float(np.corrcoef(ours, theirs)[0, 1]), float(ours.mean() / theirs.mean())


def lines(errors: dict[str, dict[str, float]], times: dict[str, float]) -> Iterator[str]:
    """The table as Markdown."""
    about = machine()
    yield "| median end-point error, px | " + " | ".join(METHODS) + " |"
    yield "|---" * (len(METHODS) + 1) + "|"
    for name, row in errors.items():
        yield f"| {name} | " + " | ".join(f"{row[m]:.3f}" for m in METHODS) + " |"
    yield "| **time of a pair, ms** | " + " | ".join(f"{times[m]:.1f}" for m in METHODS) + " |"
    yield ""
    yield (
        f"`optical_flow_magnitude`: {times['ours magnitude']:.1f} ms a pair. {WIDTH}x{HEIGHT}, "
        f"{about['cores']} cores of {about['processor']}; all methods take turns in one run. "
        f"{about['date']}, commit {about['commit']}."
    )


def main() -> None:
    p = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--runs", type=count, default=21, help="of the timing")
    p.add_argument("--json", type=Path, default=Path("build/bench/flow.jsonl"))
    p.add_argument("--clip", type=Path, help="a video to compare with DIS medium on")
    p.add_argument("--markdown", type=Path, help="a page whose table this replaces")
    options = p.parse_args()
    groups = classes()
    times = times_ms(options.runs)
    errors = {
        name: {m: median_error(find, pairs) for m, find in METHODS.items()}
        for name, pairs in groups.items()
    }
    rows = [
        Row(f"{name}: {m}", value, "px", len(groups[name]))
        for name, row in errors.items()
        for m, value in row.items()
    ]
    rows += [Row(f"time: {name}", value, "ms", options.runs) for name, value in times.items()]
    rank = rank_correlation(groups)
    rows.append(Row("rank correlation of mean magnitude", rank, "", 1, 0.98))
    text = "\n".join(lines(errors, times))
    text += f"\nRank correlation (Spearman) of its mean magnitude with the true one: {rank:.4f}."
    if options.clip is not None:
        pearson, ratio = clip_agreement(options.clip)
        rows.append(Row(f"{options.clip.name}: Pearson with DIS medium", pearson, "", 1, 0.99))
        rows.append(Row(f"{options.clip.name}: mean over that of DIS medium", ratio, "", 1))
        text += f" On {options.clip.name}, against DIS medium frame by frame: Pearson"
        text += f" {pearson:.4f}, ratio of the means {ratio:.3f}."
    publish("optical flow", rows, options.json)
    text += "\n"
    print(text)
    if options.markdown is not None:
        before, rest = options.markdown.read_text().split(BEGIN)
        after = rest.split(END)[1]
        options.markdown.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
