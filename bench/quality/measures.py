"""PSNR, flicker, and what the VAE alone makes of a clip."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.quality.clips import Clip
from export.tiny.styles import STYLES
from rt import ops
from rt.backends import create
from rt.backends.base import Engine
from rt.frame import Phase
from rt.manifest import Manifest

CHUNK = 4
TRUSTED = 1.0
"""Pixels by which flow there and back may disagree before a place counts as hidden."""


def psnr(a: Clip, b: Clip) -> float:
    """Of the mean squared error of a whole clip, in dB."""
    errors = [np.mean((x.astype(np.float32) - y) ** 2) for x, y in zip(a, b, strict=True)]
    error = float(np.mean(errors))
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


def filtered(source: Clip, style: str) -> Clip:
    """What the model should make of a clip: each frame through the filter of the style."""
    return np.stack([STYLES[style](picture) for picture in source])


class Flicker:
    """Mean |frame_t - warp(frame_{t-1})| in grey levels where the flow of the source can be
    trusted. The flow is computed once, for all clips that were made of the source.
    """

    def __init__(self, source: Clip) -> None:
        rows, columns = np.mgrid[0 : source.shape[1], 0 : source.shape[2]].astype(np.float32)
        self._maps: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]] = []
        for before, now in itertools.pairwise(source):
            back = ops.optical_flow(np.ascontiguousarray(now), np.ascontiguousarray(before))
            there = ops.optical_flow(np.ascontiguousarray(before), np.ascontiguousarray(now))
            x, y = columns + back[..., 0], rows + back[..., 1]
            returned = np.asarray(cv2.remap(there, x, y, cv2.INTER_LINEAR), np.float32)
            inside = (x >= 0) & (y >= 0) & (x <= columns.max()) & (y <= rows.max())
            apart = np.hypot(back[..., 0] + returned[..., 0], back[..., 1] + returned[..., 1])
            self._maps.append((x, y, inside & (apart < TRUSTED)))

    def __call__(self, pictures: Clip) -> float:
        found = []
        pairs = itertools.pairwise(pictures)
        for (before, now), (x, y, seen) in zip(pairs, self._maps, strict=True):
            warped = cv2.remap(before.astype(np.float32), x, y, cv2.INTER_LINEAR)
            if seen.any():
                found.append(np.abs(now.astype(np.float32) - warped)[seen].mean())
        return float(np.mean(found))


def reconstruct(directory: Path, manifest: Manifest, pictures: Clip) -> Clip:
    """A clip of 1 + 4 k frames through encoder and decoder alone, unit by unit."""
    backend = create(manifest.backend, 0)
    engines: dict[str, Engine] = {}
    state: dict[str, NDArray[np.float32]] = {}
    out = []
    chunks = [pictures[:1], *(pictures[i : i + CHUNK] for i in range(1, len(pictures), CHUNK))]
    units = [u for kind in ("encode", "decode") for u in manifest.chain if u.kind == kind]
    for number, chunk in enumerate(chunks):
        phase: Phase = "first" if number == 0 else "step"
        value = (chunk.astype(np.float32) / 127.5 - 1).transpose(3, 0, 1, 2)[None]
        for unit in units:
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
