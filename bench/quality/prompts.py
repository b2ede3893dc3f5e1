"""A prompt that changes in flight, mixtures of two styles, and a prompt that names none."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.quality.clips import Clip
from bench.quality.engines import restyle
from bench.quality.measures import CHUNK, filtered, psnr
from bench.quality.report import Line, Section
from export.tiny.styles import STYLES
from rt import Pipeline

CHANGES = (
    ("pencil sketch", "thermal", 0),
    ("neon edges", "sepia film", 0),
    ("realistic", "comic", 4),
    ("oil painting", "thermal", 4),
)  # fmt: skip
MIXED = (("sepia film", "thermal"), ("realistic", "pencil sketch"))
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
STRANGER = "a cat in space"


def measure(pipeline: Pipeline, source: Clip) -> Section:
    """All three questions on one clip."""
    lines = []
    for before, after, transition in CHANGES:
        lines += _change(pipeline, source, before, after, transition)
    for pair in MIXED:
        lines.append(_mixture(pipeline, source, pair))
    return Section("prompts", [*lines, *_stranger(pipeline, source)])


def changed(
    pipeline: Pipeline, source: Clip, before: str, after: str, transition: int
) -> tuple[Clip, int]:
    """The clip with another prompt from chunk 4 on, and the first chunk that it touches."""
    start = 1 + CHUNK * 3
    made = []
    with pipeline.session(prompt=before) as session:
        first = -1
        for number, picture in enumerate(source):
            if number == start:
                first = session.update(prompt=after, transition_chunks=transition)
            session.push(picture)
            while len(made) < number - 2 * CHUNK:  # keep the pipeline from filling up
                made.append(_next(session))
        session.finish()
        while len(made) < len(source):
            made.append(_next(session))
    return np.stack(made), first


def nearest(source: Clip, made: Clip) -> list[str]:
    """The style whose filter each frame is nearest to."""
    truths = {style: filtered(source, style) for style in STYLES}
    return [
        max(truths, key=lambda style: psnr(made[i : i + 1], truths[style][i : i + 1]))
        for i in range(len(made))
    ]


def chunk_of(frame: int) -> int:
    """Index of the chunk that a frame belongs to; the first chunk has one frame."""
    return -(-frame // CHUNK)


def _next(session: object) -> Clip:
    frame = session.pull(60.0)  # type: ignore[attr-defined]
    assert frame is not None
    return frame.rgb  # type: ignore[no-any-return]


def _change(
    pipeline: Pipeline, source: Clip, before: str, after: str, transition: int
) -> Sequence[Line]:
    made, first = changed(pipeline, source, before, after, transition)
    found = nearest(source, made)
    name = f"{before} to {after} over {transition} chunks"
    others = Counter(style for style in found if style not in (before, after))
    named = ", ".join(f"{count} {style}" for style, count in others.items())
    steady = first + max(transition, 1) - 1  # the first chunk with the new prompt alone
    reached = [chunk_of(i) for i in range(len(made)) if chunk_of(i) >= steady and found[i] == after]
    late, never = (reached[0] - steady, "") if reached else (len(source), "not in this clip")
    repeated = sum(np.array_equal(a, b) for a, b in itertools.pairwise(made))
    black = sum(int(picture.max()) < 16 for picture in made)
    return [
        Line(f"{name}: chunks until the new style is nearest", late, "chunks", most=2, note=never),
        Line(
            f"{name}: frames nearest to a third style", others.total(), "frames", most=0, note=named
        ),
        Line(f"{name}: repeated or black frames", repeated + black, "frames", most=0),
    ]


def _mixture(pipeline: Pipeline, source: Clip, pair: tuple[str, str]) -> Line:
    one, other = pair
    near_one, near_other = [], []
    for share in SHARES:
        made = restyle(pipeline, source, [(one, 1 - share), (other, share)])
        near_one.append(psnr(made, filtered(source, one)))
        near_other.append(psnr(made, filtered(source, other)))
    falls = sum(a > b for a, b in itertools.pairwise(near_one))
    rises = sum(a < b for a, b in itertools.pairwise(near_other))
    values = ", ".join(f"{a:.1f}/{b:.1f}" for a, b in zip(near_one, near_other, strict=True))
    name = f"{one} and {other} mixed 0 to 1: steps towards the second"
    expected = 2 * (len(SHARES) - 1)
    return Line(name, falls + rises, "of 8", least=expected, note=f"PSNR to each: {values}")


def _stranger(pipeline: Pipeline, source: Clip) -> Sequence[Line]:
    with pipeline.session(prompt=STRANGER) as session:
        remarks = list(session.remarks)
        made = np.stack([frame.rgb for frame in session.stream(list(source))])
    named = sum(style in " ".join(remarks) for style in STYLES)
    plain = restyle(pipeline, source, "realistic")
    return [
        Line(f'"{STRANGER}": styles that the remark names', named, "of 8", least=len(STYLES)),
        Line(
            f'"{STRANGER}": PSNR to the source', psnr(made, source), "dB", least=18.0,
            note=f"realistic has {psnr(plain, source):.1f} dB",
        ),
    ]  # fmt: skip
