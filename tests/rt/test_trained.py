"""The trained model of the repository, `engines/tiny`, by what its pictures look like: a change of
prompt in flight, mixtures, and a prompt that names no style.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rt
from bench.quality.clips import Clip, looping
from bench.quality.engines import restyle
from bench.quality.measures import filtered, psnr
from bench.quality.prompts import changed, chunk_of, nearest
from export.tiny.styles import STYLES
from rt.prompt import unknown_style

ENGINE = Path(__file__).parents[2] / "engines" / "tiny"


@pytest.fixture(scope="module")
def pipeline() -> Iterator[rt.Pipeline]:
    with rt.Pipeline.load(ENGINE) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def source() -> Clip:
    """A portrait that no training has seen, 25 frames: 7 chunks."""
    return looping(25, 256)


def test_a_change_of_prompt_shows_one_of_both_styles_in_every_frame(
    pipeline: rt.Pipeline, source: Clip
) -> None:
    made, first = changed(pipeline, source, "pencil sketch", "thermal", 0)
    found = nearest(source, made)
    assert len(made) == len(source)
    before = sum(chunk_of(i) < first for i in range(len(source)))
    assert 0 < before < len(source) - 8
    assert set(found[:before]) == {"pencil sketch"}
    assert set(found) == {"pencil sketch", "thermal"}
    settled = [style for i, style in enumerate(found) if chunk_of(i) >= first + 2]
    assert set(settled) == {"thermal"}
    for one, other in pairwise(made):
        assert not np.array_equal(one, other)
    assert all(picture.max() > 64 for picture in made)


def test_a_mixture_lies_between_its_parts(pipeline: rt.Pipeline, source: Clip) -> None:
    few, pair = source[:9], ("sepia film", "thermal")
    truths = [filtered(few, style) for style in pair]
    made = [restyle(pipeline, few, [(pair[0], 1 - w), (pair[1], w)]) for w in (0.0, 0.5, 1.0)]
    away = [psnr(pictures, truths[0]) for pictures in made]
    towards = [psnr(pictures, truths[1]) for pictures in made]
    assert away[0] > away[1] > away[2]
    assert towards[0] < towards[1] < towards[2]


def test_a_strangers_prompt_is_answered_with_what_the_model_knows(
    pipeline: rt.Pipeline, source: Clip
) -> None:
    with pipeline.session(prompt="a cat in space") as session:
        made = np.stack([frame.rgb for frame in session.stream(list(source[:9]))])
        (remark,) = session.remarks
        session.update(prompt="a comic of a cat in space")
        assert session.remarks == [remark]
    assert "a cat in space" in remark
    assert all(style in remark for style in STYLES)
    assert "\n" not in remark
    assert psnr(made, source[:9]) > 18  # the scene, recognisably


def test_the_manifest_names_the_styles_of_the_training(pipeline: rt.Pipeline) -> None:
    assert pipeline.manifest.text.styles == tuple(STYLES)


@given(st.sampled_from(sorted(STYLES)), st.text(), st.text())
def test_a_prompt_with_a_style_gets_no_remark(style: str, before: str, after: str) -> None:
    assert unknown_style(f"{before} {style.upper()}, {after}", tuple(STYLES)) == ()
    assert unknown_style(f"{before}{style}{after}", ()) == ()


@pytest.mark.parametrize("text", ["pencil", "comics", "neon-lit edges", "sketch pencil", "!"])
def test_a_part_of_a_name_is_no_style(text: str) -> None:
    (remark,) = unknown_style(text, tuple(STYLES))
    assert text in remark
