"""Connects the stages of a pipeline: which of them a pass visits, where latents wait between passes
and what crosses from one stage to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .frame import Kind, Phase
from .manifest import DIT_KINDS, Binding, Manifest, crossing
from .scheduler import Routes
from .stage import Stage
from .work import Wires

UNITS_OF: dict[Kind, tuple[str, ...]] = {
    "encode": ("encode",),
    "denoise": DIT_KINDS,
    "decode": ("decode",),
}


def routes_of(stages: Sequence[Stage]) -> Routes:
    """The stages that hold units of each kind of pass."""

    def route(kind: Kind) -> tuple[int, ...]:
        return tuple(s.index for s in stages if any(u.kind in UNITS_OF[kind] for u in s.units))

    return Routes(route("encode"), route("denoise"), route("decode"))


def connect(
    stages: Sequence[Stage], routes: Routes, manifest: Manifest, seats: int, rows_per_seat: int
) -> None:
    """Give every stage the arrays and neighbours that its passes need."""
    g = manifest.geometry
    latent = (g.latent_channels, g.latent_height, g.latent_width)
    rows, places = rows_per_seat * seats, routes.places
    noisy = stages[routes.denoise[0]].device.zeros((rows, places, *latent), np.float32)
    clean = stages[routes.decode[0]].device.zeros((seats, places, *latent), np.float32)
    by_kind = {kind: routes.of(kind) for kind in UNITS_OF}
    for stage in stages:
        following = {
            kind: stages[route[route.index(stage.index) + 1]]
            for kind, route in by_kind.items()
            if stage.index in route[:-1]
        }
        handed = {
            (kind, phase): _crossing(manifest, kind, phase, stage)
            for kind, route in by_kind.items()
            for phase in _phases(kind)
            if stage.index in route[1:]
        }
        with stage.device.pinned():
            stage.connect(Wires(noisy, clean), handed, following)


def _crossing(manifest: Manifest, kind: Kind, phase: Phase, stage: Stage) -> tuple[Binding, ...]:
    units = [u for u in manifest.chain if u.kind in UNITS_OF[kind]]
    start = units.index(next(u for u in stage.units if u.kind in UNITS_OF[kind]))
    bindings = crossing(units[:start], units[start:], phase)
    if kind == "denoise":  # The sampler at the end of the route needs the noisy latent again.
        bindings += tuple(b for b in units[0].plans[phase].inputs if b.tensor == "noisy")
    return bindings


def _phases(kind: Kind) -> tuple[Phase, ...]:
    return ("step",) if kind == "denoise" else ("first", "step")
