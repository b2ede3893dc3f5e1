"""Time on a GPU: events around launches, medians, and the ceilings that shares are taken of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from bench.gpu.record import Reading, refused
from bench.table import command

Launch = Callable[[], object]


WARM_S = 0.05
"""Launches of so long are not counted: a GPU that waited has slow clocks."""
CACHE_BYTES = 1 << 28
"""More than any cache holds."""


def median_ms(launch: Launch, runs: int = 20, repeat: int = 1) -> float:
    """Median time of one launch by events, with nothing of it in the caches."""
    return statistics.median(times_ms(launch, runs, repeat))


def times_ms(launch: Launch, runs: int, repeat: int = 1) -> list[float]:
    """Times of single launches; `repeat` of them between two events."""
    other = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    begin, warmed = time.perf_counter(), 0
    while warmed < 3 or time.perf_counter() - begin < WARM_S:
        launch()
        torch.cuda.synchronize()
        warmed += 1
    found = []
    for _ in range(runs):
        other.zero_()  # in a chain, too, a unit finds its weights and state in memory
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeat):
            launch()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop) / repeat)
    return found


COPY = "ceiling: copy of 1 GiB"
PRODUCT = "ceiling: bf16 product of 8192"
NARROW_PRODUCT = "ceiling: fp8 product of 8192"
CLOCK = "ceiling: clock of the multiprocessors under products"
CONVOLUTION = "ceiling: bf16 convolution, 96 channels, 480x832"


def ceilings() -> Iterator[Reading]:
    """What this GPU reaches at best: random data, sizes that no cache holds; and its clock then,
    which nothing here sets.
    """
    yield _copy()
    yield _product()
    yield _narrow_product()
    yield from _clock()
    yield _convolution()


def _clock() -> Iterator[Reading]:
    """The clock between the products of a second or so, as it is told."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    for _ in range(500):
        torch.mm(a, a, out=out)
    told = command("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits")
    torch.cuda.synchronize()
    if told.splitlines()[:1] and told.splitlines()[0].strip().isdecimal():
        yield Reading(CLOCK, float(told.splitlines()[0]), "MHz")
    else:
        yield refused(CLOCK, f"nvidia-smi says {told or 'nothing'}")


def _copy() -> Reading:
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    took = median_ms(lambda: target.copy_(source), repeat=5)
    return Reading(COPY, 2 * source.nbytes / took / 1e6, "GB/s", 20)


def _product() -> Reading:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    took = median_ms(lambda: torch.mm(a, b, out=c), repeat=5)
    return Reading(PRODUCT, 2 * 8192**3 / took / 1e9, "TFLOP/s", 20)


def _narrow_product() -> Reading:
    """Of e4m3 by e4m3 to bfloat16, as linear layers at fp8 have it."""
    if (capability := torch.cuda.get_device_capability()) < (8, 9):
        return refused(NARROW_PRODUCT, f"compute capability {capability}, e4m3 from 8.9 on")
    a, b = (torch.randn(8192, 8192, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one, out = torch.ones((), device="cuda"), torch.empty_like(a, dtype=torch.bfloat16)
    kind = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    took = median_ms(lambda: torch._scaled_mm(a, b.t(), one, one, **kind, out=out), repeat=5)
    return Reading(NARROW_PRODUCT, 2 * 8192**3 / took / 1e9, "TFLOP/s", 20)


def _convolution() -> Reading:
    x = torch.randn(4, 96, 480, 832, device="cuda", dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(96, 96, 3, 3, device="cuda", dtype=torch.bfloat16)
    weight = weight.to(memory_format=torch.channels_last)
    took = median_ms(lambda: F.conv2d(x, weight, padding=1), repeat=5)
    return Reading(CONVOLUTION, 2 * 4 * 480 * 832 * 96 * 96 * 9 / took / 1e9, "TFLOP/s", 20)
