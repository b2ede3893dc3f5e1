"""What tests of models share: one thread (the models are tiny), and a stream run in units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from export.models.pieces import Piece, PieceRun

Stream = Callable[..., Tensor]
SIZE = 32


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def stream() -> Stream:
    """Runs chunks `[1, C, T, h, w]`, the first in phase `first`; results joined in time."""
    return in_units


def in_units(pieces: Sequence[Piece], chunks: Sequence[Tensor], cuts: Sequence[int] = ()) -> Tensor:
    bounds = [0, *sorted(set(cuts)), len(pieces)]
    parts = [pieces[start:stop] for start, stop in pairwise(bounds)]
    units = {phase: [PieceRun(part, phase) for part in parts] for phase in ("first", "step")}
    caches = [
        [torch.zeros(shape) for _, shape in unit.state_specs(SIZE, SIZE)] for unit in units["first"]
    ]
    results = []
    for number, x in enumerate(chunks):
        for index, unit in enumerate(units["step" if number else "first"]):
            assert x.shape == unit.input_shape(SIZE, SIZE)
            x, *new = unit(x, *caches[index])
            assert x.shape == unit.output_shape(SIZE, SIZE)
            assert [c.shape for c in new] == [c.shape for c in caches[index]]
            caches[index] = new
        results.append(x)
    return torch.cat(results, 2)
