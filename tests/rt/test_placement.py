"""The cut into stages is optimal: compared with brute force over all cuts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt.errors import ConfigError
from rt.placement import cut

costs = st.lists(st.integers(0, 50).map(float), min_size=1, max_size=8)


def slowest(costs: list[float], speeds: list[float], ranges: list[range]) -> float:
    return max(sum(costs[u] for u in r) / s for r, s in zip(ranges, speeds, strict=True))


@given(costs, st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=4))
def test_equals_brute_force(costs: list[float], speeds: list[float]) -> None:
    if len(speeds) > len(costs):
        with pytest.raises(ConfigError, match="use at most"):
            cut(costs, speeds)
        return
    ranges = list(cut(costs, speeds))
    assert [u for r in ranges for u in r] == list(range(len(costs)))
    assert all(ranges)
    best = min(
        slowest(
            costs, speeds, [range(a, b) for a, b in itertools.pairwise((0, *middle, len(costs)))]
        )
        for middle in itertools.combinations(range(1, len(costs)), len(speeds) - 1)
    )
    assert slowest(costs, speeds, ranges) == best
