"""Scenes in which the two measures of motion part, and what noise they lead to.

python -m bench.motion docs/motion.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from rt import noise, ops
from rt.config import Motion
from rt.motion import reference_of

Frame = NDArray[np.uint8]
HEIGHT, WIDTH, CHUNK = 240, 416, 4
RANGE: Any = {"s_max": 0.8, "s_min": 0.7, "smoothing": 0.9, "timestep_offset": -100}


def clip(values: NDArray[Any]) -> Frame:
    return np.asarray(np.clip(np.round(values), 0, 255), np.uint8)


def _photo(name: str) -> Frame:
    return np.asarray(getattr(data, name)(), np.uint8)


def pan_over_shading(frames: int = 81) -> list[Frame]:
    """A camera that pans by half of the full motion, over shading that is faint at first."""
    rng = np.random.default_rng(5)
    speed = reference_of("flow", HEIGHT, WIDTH) / 2
    long = int(speed * frames) + WIDTH + 8
    ground = np.zeros((HEIGHT, long), np.float32)
    for cell in (12, 40):
        grid = rng.normal(0, 1, (HEIGHT // cell + 2, long // cell + 2)).astype(np.float32)
        ground += cv2.resize(grid, (long, HEIGHT), interpolation=cv2.INTER_CUBIC)
    x = np.arange(long, dtype=np.float32)
    ground *= 3.0 + 27.0 * np.clip((x - 350) / 150, 0, 1)  # grey levels, of 255
    made = []
    for i in range(frames):
        shift = np.array([[1.0, 0.0, -i * speed], [0.0, 1.0, 0.0]])
        view = cv2.warpAffine(ground, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
        grain = rng.normal(0, 1.0, (HEIGHT, WIDTH, 3))
        made.append(clip(128 + view[..., None] + grain))
    return made


def flickering_lamp(frames: int = 81) -> list[Frame]:
    """A still room with grain; a lamp in it flickers, and lights most what is near."""
    rng = np.random.default_rng(6)
    room = cv2.resize(_photo("coffee"), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) * 0.7
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    near = np.exp(-((x - 0.4 * WIDTH) ** 2 + (y - 0.4 * HEIGHT) ** 2) / (2 * 160.0**2))
    made = []
    for i in range(frames):
        gain = 1.0 + 0.3 * np.sin(2.4 * i) * near
        made.append(clip(room * gain[..., None] + rng.normal(0, 1.0, room.shape)))
    return made


def still_then_pan(frames: int = 81) -> list[Frame]:
    """A picture with grain that stands, then goes faster and faster up to full motion."""
    rng = np.random.default_rng(8)
    full = reference_of("flow", HEIGHT, WIDTH)
    made, at = [], 0.0
    picture = cv2.resize(_photo("astronaut"), (1024, 640), interpolation=cv2.INTER_AREA)
    for i in range(frames):
        at += full * min(1.0, max(0.0, (i - 20) / 40))
        shift = np.array([[1.0, 0.0, -20.0 - at], [0.0, 1.0, -80.0]])
        view = cv2.warpAffine(picture, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        made.append(clip(view + rng.normal(0, 3.0, view.shape)))
    return made


def scores(frames: Sequence[Frame], motion: Motion) -> NDArray[np.float32]:
    """The score of every frame against the one before, as the runtime takes it."""
    if motion == "difference":
        return np.asarray(ops.frame_difference(frames[1:], frames[0]))
    return np.ascontiguousarray(ops.optical_flow_magnitude(frames[1:], frames[0])[:, 2])


def noise_scales(found: NDArray[np.float32], motion: Motion) -> NDArray[np.float64]:
    """Noise scale of every chunk of four frames, from the operator."""
    return np.array(list(_controls(found, reference_of(motion, HEIGHT, WIDTH))))


def _controls(found: NDArray[np.float32], reference: float) -> Iterator[float]:
    sigmas = noise.sigma_table(8.0)
    control = np.array([0, RANGE["s_max"], 0, 0], np.float32)
    for begin in range(0, len(found) - CHUNK + 1, CHUNK):
        chunk = np.ascontiguousarray(found[begin : begin + CHUNK])
        control = ops.noise_control(
            chunk, control, True, reference=reference, sigmas=sigmas, **RANGE
        )
        yield float(control[1])


PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "moon", "coins", "gravel")


def reference_data() -> Iterator[str]:
    """What FLOW_REFERENCE was chosen on, at 480x832: for each photo the pan at which `difference`
    says full motion, and what a still camera reports with noise of sigma 8 in every picture.
    """
    full = reference_of("difference", 480, 832)
    rng = np.random.default_rng(9)
    for name in PHOTOS:
        photo = np.asarray(cv2.resize(_photo(name), (896, 480), interpolation=cv2.INTER_AREA))
        photo = photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, 2)
        view = np.ascontiguousarray(photo[:, :832])
        reached = next(
            (
                dx
                for dx in range(1, 65)
                if scores([view, photo[:, dx : 832 + dx]], "difference") >= full
            ),
            None,
        )
        pair = [clip(view + rng.normal(0, 8.0, view.shape)) for _ in range(2)]
        said = "at no pan up to 64 px" if reached is None else f"at {reached} px"
        yield f"{name}: difference full {said}; still, noise 8: {scores(pair, 'flow')[0]:.2f} px"


SCENES = {
    "still, then ever faster": still_then_pan,
    "steady pan over shading": pan_over_shading,
    "still, a lamp flickers": flickering_lamp,
}


def main() -> None:
    from matplotlib.figure import Figure

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("picture", type=Path, help="where to write the plot (.png)")
    options = p.parse_args()
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots(2, len(SCENES), sharex=True, sharey="row")
    measures: tuple[Motion, ...] = ("flow", "difference")
    for column, (name, scene) in enumerate(SCENES.items()):
        frames = scene()
        top, below = axes[0][column], axes[1][column]
        top.set_title(name)
        for motion in measures:
            found = scores(frames, motion)
            scales = noise_scales(found, motion)
            share = np.minimum(found / reference_of(motion, HEIGHT, WIDTH), 2.0)
            top.plot(np.arange(1, len(frames)), share, label=motion, linewidth=1)
            at = 1 + CHUNK * np.arange(len(scales))
            below.step(at, scales, where="post", label=motion)
            print(
                f"{name}: {motion}: score {found.min():.3f} .. {found.max():.3f}, "
                f"noise scale {scales[1:].min():.4f} .. {scales[1:].max():.4f}"
            )
        below.set_xlabel("frame")
    axes[0][0].set_ylabel("score / full motion")
    axes[1][0].set_ylabel("noise scale s")
    axes[1][0].legend()
    figure.savefig(options.picture, dpi=80)
    print("\n".join(reference_data()))


if __name__ == "__main__":
    main()
