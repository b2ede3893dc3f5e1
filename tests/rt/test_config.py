"""Options that mean something are taken as they are; all others are refused in one line."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rt.config import SLO, SessionConfig
from rt.errors import ConfigError


def test_defaults_are_the_documented_ones() -> None:
    config = SessionConfig("pencil sketch")
    assert (config.slo, config.seed, config.steps) == (None, 0, None)
    assert (config.motion, config.start, config.positions) == ("flow", "fast", "window")
    assert (config.sinks, config.fit) == ("adaptive", "crop")
    assert SLO(fps=16, latency_ms=500).percentile == 0.99


@pytest.mark.parametrize(
    "prompt",
    ["oil", Path("oil.npz"), [("oil", 1.0)], (("oil", 0), ("ink", 2)), [("oil", np.float32(0.5))]],
)
def test_a_prompt_is_a_text_a_file_or_a_mix(prompt: Any) -> None:
    SessionConfig(prompt)


def test_a_mix_cannot_change_behind_the_configuration() -> None:
    mix = [("oil", 1.0)]
    config = SessionConfig(mix)
    mix.append(("", -1.0))
    assert config.prompt == (("oil", 1.0),)


@pytest.mark.parametrize(
    "field, value",
    [
        ("prompt", ""),
        ("prompt", " \t\n"),
        ("prompt", []),
        ("prompt", [("oil", 0.0)]),
        ("prompt", [("oil", 2.0), ("ink", -1.0)]),
        ("prompt", [("oil", math.nan)]),
        ("prompt", [("oil", math.inf)]),
        ("prompt", [("oil", 1.0), ("  ", 1.0)]),
        ("prompt", ["oil"]),
        ("prompt", [("oil", "much")]),
        ("prompt", None),
        ("prompt", b"oil"),
        ("seed", -1),
        ("seed", 1 << 64),
        ("seed", 1.5),
        ("seed", True),
        ("seed", "7"),
        ("slo", 16),
        ("slo", {"fps": 16}),
        ("steps", 0),
        ("steps", -2),
        ("steps", 2.0),
        ("motion", "fast"),
        ("start", "slow"),
        ("positions", ""),
        ("sinks", "none"),
        ("fit", "pad"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: got .*expected") as caught:
        SessionConfig(**({"prompt": "oil"} | {field: value}))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "field, value",
    [
        ("fps", 0.0),
        ("fps", -16.0),
        ("fps", math.nan),
        ("fps", math.inf),
        ("fps", "16"),
        ("latency_ms", None),
        ("latency_ms", "100"),
        ("percentile", math.nan),
        ("percentile", "0.99"),
        ("latency_ms", 0.0),
        ("latency_ms", -1.0),
        ("latency_ms", math.inf),
        ("percentile", 0.0),
        ("percentile", 1.01),
    ],
)
def test_an_slo_is_positive(field: str, value: Any) -> None:
    values: Any = {"latency_ms": 100.0} | {field: value}
    with pytest.raises(ConfigError, match=rf"^slo\.{field}: got .*expected") as caught:
        SLO(**values)
    assert "\n" not in str(caught.value)


def test_configurations_are_frozen() -> None:
    config: Any = SessionConfig("oil", SLO())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.slo.fps = 1.0
