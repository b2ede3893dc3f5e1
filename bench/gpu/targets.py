"""The numbers that ours are compared with, as data, each with its source.

Published: the StreamDiffusionV2 paper (arXiv 2511.07399), bf16 PyTorch, its figures for one H100.
Commit, moonshot and limit: this project's targets for one H200, bf16 unless said; the limit is the
work of docs/interfaces.md's units over the peak rates of the data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED = "arXiv 2511.07399, one H100"
TARGETS = "targets of this project, one H200"
GPU = "H200"
"""The GPU that commit, moonshot and limit are for."""
MOVING = ("mix_noise", "renoise", "frames_to_pixels", "pixels_to_frames")
"""Operators that only move memory: judged by the share of the copy's rate that they reach, at sizes
that no cache holds.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """What the reading `name` is compared with. None: nobody says."""

    name: str
    unit: str
    larger_is_better: bool
    published: float | None
    commit: float | None
    moonshot: float | None
    limit: float | None


def model(name: str, size: str, vae: str = "", precision: str = "bf16") -> str:
    """How a model is named in readings: wan-1.3b 480x832 wan, and its precision where that is not
    bf16.
    """
    return " ".join(part for part in (name, size, vae, precision) if part not in ("", "bf16"))


def operator(name: str) -> str:
    """The reading of a device operator in ms."""
    return f"operator {name}"


def share_of_copy(name: str) -> str:
    return f"operator {name}: share of the copy"


_SMALL, _SQUARE = model("wan-1.3b", "480x832"), model("wan-1.3b", "512x512")
_LARGE = model("wan-14b", "480x832")


_Marks = tuple[int, float | None, float | None, float | None, float | None]


def _fps(which: str, *rows: _Marks) -> tuple[Target, ...]:
    return tuple(
        Target(f"{which}: FPS, {steps} steps", "frames/s", True, published, commit, moonshot, limit)
        for steps, published, commit, moonshot, limit in rows
    )


ALL: tuple[Target, ...] = (
    Target(f"{_SMALL}: step, batch 1", "ms", False, None, 16, 11, 6.8),
    Target(f"{_LARGE}: step, batch 1", "ms", False, None, 95, 78, 50.5),
    Target(f"{_SMALL} fp8: step, batch 1", "ms", False, None, None, 8, None),
    Target(f"{_LARGE} fp8: step, batch 1", "ms", False, None, None, 50, None),
    Target(f"{_SMALL} wan: decode", "ms", False, None, 45, 30, 13.8),
    Target(f"{_SMALL} wan: encode", "ms", False, None, 27, 18, 8.2),
    Target(f"{_SMALL} taehv: decode", "ms", False, None, 3, 1.5, 0.65),
    Target(f"{_SMALL} taehv: encode", "ms", False, None, 1.5, 0.8, 0.35),
    *_fps(
        f"{_SMALL} wan", (1, 20.5, 45, 68, 139), (2, 18.0, 38, 57, 112), (4, 14.0, 29, 43, 81)
    ),
    *_fps(
        f"{_SQUARE} wan",
        (1, 26.2, 71, 106, 219),
        (2, 24.0, None, None, None),
        (4, 19.4, None, None, None),
    ),
    *_fps(
        f"{_SMALL} taehv",
        (1, None, 195, 300, 512),
        (2, None, 110, 165, 274),
        (4, None, 58, 86, 142),
    ),
    Target(f"{_SMALL} wan: TTFF, 2 steps, 16 fps", "s", False, 0.47, 0.35, 0.13, 0.08),
    Target(f"{_SMALL} wan: TTFF, 2 steps, 30 fps", "s", False, 0.36, 0.24, 0.10, 0.05),
    Target(f"{_SMALL} wan: latency p50, 2 steps, 30 fps", "ms", False, None, 205, 145, 123),
    Target(
        f"{_SMALL} wan: presentation jitter p99, 2 steps, 30 fps", "ms", False, None, 2, 1, None
    ),
    Target(
        f"{_SMALL} wan: service time p99 / p50, 2 steps, 30 fps", "x", False, None, 1.05, 1.02, None
    ),
    Target(
        f"{_SMALL} wan: host synchronisations per chunk", "calls", False, None, 1, 0, None
    ),
    Target(
        operator("optical_flow_magnitude, one pair of 832x480"), "ms", False, None, 0.25, 0.08, None
    ),
    *(Target(share_of_copy(name), "of 1", True, None, 0.75, 0.85, 1) for name in MOVING),
)  # fmt: skip
