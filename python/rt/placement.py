"""Cuts the chain of units into consecutive stages, one per device, so that the slowest stage is as
fast as it can be.

Pure: costs in, ranges out. Exact by dynamic programming; devices may differ in speed.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ConfigError


def cut(costs: Sequence[float], speeds: Sequence[float]) -> tuple[range, ...]:
    """Consecutive ranges of units, one per device, minimising max over devices of (sum of costs) /
    speed.

    `costs[u]` is the work of unit u for one chunk (a DiT unit counts once per step); `speeds[d]` is
    relative. Every device gets at least one unit. Raises ConfigError for more devices than units.
    """
    units, devices = len(costs), len(speeds)
    if devices > units:
        raise ConfigError(
            f"devices: got {devices}, but this model has {units} units; use at most {units}"
        )
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    # best[u] = (slowest stage, start of the last stage) for u units on the devices so far.
    best: list[float] = [prefix[u] / speeds[0] if u else float("inf") for u in range(units + 1)]
    starts: list[list[int]] = [[0] * (units + 1)]
    for device in range(1, devices):
        slowest, start = [float("inf")] * (units + 1), [0] * (units + 1)
        for u in range(device + 1, units + 1):
            for s in range(device, u):
                candidate = max(best[s], (prefix[u] - prefix[s]) / speeds[device])
                if candidate < slowest[u]:
                    slowest[u], start[u] = candidate, s
        best = slowest
        starts.append(start)
    ranges: list[range] = []
    stop = units
    for start in reversed(starts):
        ranges.append(range(start[stop], stop))
        stop = start[stop]
    return tuple(reversed(ranges))
