"""Chains and devices that hypothesis draws: the same units, each device of its own speed, memory
and hand-over.
"""

from __future__ import annotations

import hypothesis.strategies as st

from rt.cost import SCHEMA, ChainKind, Costs, Handover, Timing, UnitCost

KINDS: list[list[ChainKind]] = [
    ["encode"] * e + ["dit_in"] + ["block"] * b + ["dit_out"] + ["decode"] * d
    for e, b, d in [(1, 1, 1), (2, 3, 1), (1, 2, 3), (2, 2, 2)]
]


@st.composite
def chains(draw: st.DrawFn, limited: bool = True) -> list[Costs]:
    """The same chain on one to four devices; `limited` ones may have too little memory for it."""
    kinds = draw(st.sampled_from(KINDS))
    size = st.integers(0, 50)
    bytes_ = [(draw(size), draw(size), draw(size)) for _ in kinds]
    devices = []
    for _ in range(draw(st.integers(1, 4))):
        units = tuple(
            UnitCost(
                f"u{i}",
                kind,
                tuple(Timing(b, t := draw(st.integers(1, 60)) * b**0.5, t) for b in (1, 2)),
                *bytes_[i],
            )
            for i, kind in enumerate(kinds)
        )
        handover = Handover(draw(st.sampled_from([0.0, 0.5])), draw(st.sampled_from([1e-6, 1.0])))
        room = draw(st.none() | st.integers(50, 500)) if limited else None
        about = (SCHEMA, "modelled", "drawn", "a device", "", "none", 4, 4, room)
        devices.append(Costs(*about, handover, (1.0,), units))
    return devices
