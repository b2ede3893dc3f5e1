"""Picture quality of the trained tiny model, through the real runtime: PSNR per style, and a sheet
of pictures.

python -m bench.quality --engines engines/tiny --clip CLIP.mp4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.table import Row, publish
from export.tiny.data import clip
from export.tiny.styles import STYLES
from rt import Pipeline
from rt.backends import create
from rt.backends.base import Engine
from rt.frame import Phase
from rt.manifest import Manifest
from rt.media import open_source

UNSEEN = 9_000_000
"""Index of the generated clips, from which no training draws."""
CHUNK = 4

Clip = NDArray[np.uint8]
"""uint8 [T, H, W, 3], RGB."""


def frames_of(path: Path, count: int, height: int, width: int) -> Clip:
    """The first `count` frames of a file, its centre cropped to the aspect of the engine."""
    made = []
    for frame, _ in zip(open_source(path), range(count), strict=False):
        rgb = frame.rgb
        scale = max(height / rgb.shape[0], width / rgb.shape[1])
        size = (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))
        shrunk = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        top, left = (size[1] - height) // 2, (size[0] - width) // 2
        made.append(shrunk[top : top + height, left : left + width])
    return np.stack(made)


def restyle(pipeline: Pipeline, pictures: Clip, prompt: str, steps: int) -> Clip:
    """A clip through the whole pipeline."""
    with pipeline.session(prompt=prompt, steps=steps) as session:
        return np.stack([frame.rgb for frame in session.stream(list(pictures))])


def reconstruct(directory: Path, manifest: Manifest, pictures: Clip) -> Clip:
    """A clip of 1 + 4 k frames through encoder and decoder alone, unit by unit."""
    backend = create(manifest.backend, 0)
    engines: dict[str, Engine] = {}
    state: dict[str, NDArray[np.float32]] = {}
    out = []
    chunks = [pictures[:1], *(pictures[i : i + CHUNK] for i in range(1, len(pictures), CHUNK))]
    for number, chunk in enumerate(chunks):
        phase: Phase = "first" if number == 0 else "step"
        value = (chunk.astype(np.float32) / 127.5 - 1).transpose(3, 0, 1, 2)[None]
        for unit in (u for kind in ("encode", "decode") for u in manifest.chain if u.kind == kind):
            plan = unit.plans[phase]
            result = np.zeros([int(d) for d in plan.outputs[0].shape], np.float32)
            arrays = {
                plan.inputs[0].name: np.ascontiguousarray(value),
                plan.outputs[0].name: result,
            }
            after = {}
            for pair in plan.state:
                key = f"{unit.name}.{pair.input}"
                shape = [int(d) for d in pair.shape]
                arrays[pair.input] = state.get(key, np.zeros(shape, np.float32))
                arrays[pair.output] = after[key] = np.zeros(shape, np.float32)
            if plan.file not in engines:
                engines[plan.file] = backend.load(directory, plan)
            engines[plan.file].bind(arrays)()
            state |= after
            value = result
        out.append(value[0].transpose(1, 2, 3, 0))
    levels = (np.clip(np.concatenate(out), -1, 1) + 1) * 127.5
    made: Clip = np.rint(levels).astype(np.uint8)
    return made


def psnr(a: Clip, b: Clip) -> float:
    """Of the mean squared error of a whole clip, in dB."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


def flicker(pictures: Clip) -> float:
    """Mean absolute difference of neighbouring frames, in levels of 255."""
    return float(np.abs(np.diff(pictures.astype(np.float64), axis=0)).mean())


def measure(
    pipeline: Pipeline, directory: Path, name: str, source: Clip, steps: int
) -> tuple[list[Row], Clip]:
    """Rows of one clip, and its sheet: per style the filter, the VAE's limit, and the model."""
    rows, sheet = [], []
    show = len(source) * 2 // 3
    for style, apply in STYLES.items():
        truth = np.stack([apply(picture) for picture in source])
        limit = reconstruct(directory, pipeline.manifest, truth)
        made = restyle(pipeline, source, style, steps)
        found = psnr(made, truth)
        note = (
            f"VAE {psnr(limit, truth):.1f}, source {psnr(source, truth):.1f}, "
            f"to the source {psnr(made, source):.1f}; flicker {flicker(made):.1f} "
            f"(filter {flicker(truth):.1f})"
        )
        rows.append(Row(f"{name}: {style}", found, "dB", 1, note=note))
        sheet.append(np.hstack([p[show] for p in (source, truth, limit, made)]))
    return rows, _two_columns(sheet)


def _two_columns(rows: Sequence[Clip]) -> Clip:
    """Sheets of four pictures, two beside each other."""
    return np.vstack([np.hstack(rows[i : i + 2]) for i in range(0, len(rows), 2)])


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--engines", type=Path, default=Path("engines/tiny"), help="engine directory")
    p.add_argument("--clip", type=Path, help="a video that was not trained on")
    p.add_argument("--frames", type=int, default=33, help="of each clip, 1 + 4 k")
    p.add_argument("--steps", type=int, default=2, help="denoising steps")
    p.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder of sheets and rows"
    )
    options = p.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with Pipeline.load(options.engines, steps=options.steps) as pipeline:
        g = pipeline.manifest.geometry
        clips = {"generated": clip(0, UNSEEN, options.frames, min(g.height, g.width))}
        if options.clip is not None:
            clips[options.clip.stem] = frames_of(options.clip, options.frames, g.height, g.width)
        for name, source in clips.items():
            found, sheet = measure(pipeline, options.engines, name, source, options.steps)
            rows += found
            path = options.out / f"quality-{name}.png"
            cv2.imwrite(str(path), np.ascontiguousarray(sheet[..., ::-1]))
            print(f"{path}: per style source, filter, VAE, model")
    publish(
        f"quality: {options.engines}, {options.steps} steps", rows, options.out / "quality.jsonl"
    )


if __name__ == "__main__":
    main()
