"""Linear layers that multiply e4m3 by e4m3, for backend `inductor`: scales are found as it runs.
Those of TensorRT, whose scales are constants of a calibration, are in quantize.py.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from export.models.dit import Block
from rt.backends.inductor import NARROW, narrowed


def narrow(module: nn.Module, precision: str) -> set[str]:
    """Weights of a unit that are e4m3 at this precision: at fp8 those of a block's linear layers,
    which are most of a step.
    """
    if precision != "fp8" or not isinstance(module, Block):
        return set()
    return {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}


class NarrowLinear(nn.Module):
    """A linear layer that multiplies e4m3 by e4m3: each row of its input, and of its weight, is
    narrowed at a scale of its own, so that no calibration is needed and no row depends on another.
    [..., in] -> bfloat16 [..., out].
    """

    weight: Tensor
    scale: Tensor
    one: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = torch.empty_like(linear.weight, device="meta", dtype=NARROW)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", torch.empty(len(weight), 1, device="meta"))
        # For a product that wants scales: a constant of a package, so no kernel writes it. Of two
        # dimensions, because inductor takes one of less for a number, and writes it all the same.
        self.register_buffer("one", torch.ones(1, 1), persistent=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = narrowed(x.flatten(0, -2))
        # Scales of rows are put on afterwards, where the bias is added anyway: a product that takes
        # them is other code on each GPU, one without is the same everywhere.
        product = torch._scaled_mm(
            rows, self.weight.t(), self.one, self.one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        result = product * scale * self.scale.t() + self.bias
        return torch.unflatten(result.to(torch.bfloat16), 0, x.shape[:-1])


def narrowed_module(module: nn.Module, weights: set[str]) -> nn.Module:
    """`module` with other layers for the linear ones of these weights; all else is shared."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    changed = copy.deepcopy(module, shared)
    for name, layer in module.named_modules():
        if f"{name}.weight" in weights:
            assert isinstance(layer, nn.Linear)
            changed.set_submodule(name, NarrowLinear(layer))
    return changed
