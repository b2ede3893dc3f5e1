"""What a client may send that is no message: for hypothesis."""

from __future__ import annotations

import msgpack
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(max_size=64),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
NEAR = st.fixed_dictionaries(
    {
        "pts_s": st.floats() | VALUES,
        "format": st.sampled_from(["jpeg", "raw", "png"]) | VALUES,
        "data": st.binary(max_size=200) | VALUES,
    },
    optional={"height": st.integers(-5, 400) | VALUES, "width": st.integers(-5, 400) | VALUES},
)
HUGE = st.builds(
    # A header that promises more than comes: bytes, text, a list, a map of up to 2^32 - 1 items.
    lambda code, length, rest: bytes([code]) + length.to_bytes(4, "big") + rest,
    st.sampled_from([0xC6, 0xDB, 0xDD, 0xDF, 0xC9]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=40),
)
PACKED = (VALUES | NEAR | st.fixed_dictionaries({"ack": VALUES})).map(msgpack.packb)
ANY = (
    st.binary(max_size=300)
    | HUGE
    | PACKED
    | st.builds(lambda packed, at: packed[: at % (len(packed) + 1)], PACKED, st.integers(0, 999))
)
"""Binary messages: garbage, promises, wrong types, messages cut short."""
