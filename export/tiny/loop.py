"""The training loop of both stages: resumable, bounded in time, with an average of the weights.

A step depends on the state and its own number alone, so a run that was cut ends where an
uninterrupted one does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = TypeVar("Batch")
Report = Callable[[str, int, int], None]
"""Called with a line about the state, the number of steps done and of all steps."""

SAVE_EVERY_S = 120.0
WARMUP, COOLDOWN = 50, 0.35
"""Steps of warming up; share of all steps over which the rate falls to 0."""


def train(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    loss_of: Callable[[int], dict[str, Tensor]],
    *,
    steps: int,
    state: Path,
    deadline: float,
    report: Report,
    averaging: float = 0.995,
) -> bool:
    """Take steps until `steps` are done or the clock passes `deadline` (time.monotonic).

    `loss_of(step)` gives terms whose sum is minimised. Leaves the averaged weights in `model` and
    returns whether all steps are done. `state` is the file that a later call goes on from.
    """
    rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    average = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    step = 0
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        step = kept["step"]
        model.load_state_dict(kept["model"])
        average = kept["average"]
        for optimizer, found in zip(optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(found)
    saved = time.monotonic()
    seen: dict[str, float] = {}
    try:
        while step < steps and time.monotonic() < deadline:
            factor = min(1.0, (step + 1) / WARMUP, (steps - step) / (COOLDOWN * steps))
            for optimizer, base in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = rate * factor
            terms = loss_of(step)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            kept_share = min(averaging, step / (step + 10))
            with torch.no_grad():
                for name, tensor in model.named_parameters():
                    average[name].lerp_(tensor, 1 - kept_share)
            for name, term in terms.items():
                value = float(term.detach())
                seen[name] = 0.95 * seen.get(name, value) + 0.05 * value
            report(" ".join(f"{name} {value:.4f}" for name, value in seen.items()), step, steps)
            if time.monotonic() - saved > SAVE_EVERY_S:
                _save(state, step, model, average, optimizers)
                saved = time.monotonic()
    finally:  # also when interrupted
        _save(state, step, model, average, optimizers)
    model.load_state_dict(model.state_dict() | average)
    return step >= steps


class Ahead(Generic[Batch]):
    """Makes the batch of the next step on another thread while this step is computed."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1)
        self._coming: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        this = self._coming.pop(step, None) or self._pool.submit(self._make, step)
        self._coming[step + 1] = self._pool.submit(self._make, step + 1)
        return this.result()

    def close(self) -> None:
        """Waits for the batch that is being made."""
        self._pool.shutdown(cancel_futures=True)


class ConvolutionMuon(torch.optim.Muon):
    """Muon for convolutions, each seen as a matrix [outputs, inputs * height * width].

    A gradient is handed over to its matrix as soon as it is there, and is not clipped: Muon keeps
    its direction alone.
    """

    def __init__(self, weights: Sequence[nn.Parameter], rate: float) -> None:
        matrices = [nn.Parameter(weight.detach().flatten(1)) for weight in weights]
        super().__init__(matrices, rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        for weight, matrix in zip(weights, matrices, strict=True):
            assert matrix.data_ptr() == weight.data_ptr()
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                _handing_over(matrix)
            )


def _handing_over(matrix: nn.Parameter) -> Callable[[Tensor], None]:
    def hand_over(weight: Tensor) -> None:
        assert weight.grad is not None
        matrix.grad, weight.grad = weight.grad.flatten(1), None

    return hand_over


def averaged(state: Path) -> dict[str, Tensor]:
    """The averaged weights that a run has kept so far."""
    kept: dict[str, Tensor] = torch.load(state, weights_only=True)["average"]
    return kept


def _save(
    state: Path,
    step: int,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizers: Sequence[Optimizer],
) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    partial = state.with_suffix(".partial")
    kept = {
        "step": step,
        "model": model.state_dict(),
        "average": average,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(kept, partial)
    os.replace(partial, state)
