"""Both VAEs as units: ONNX Runtime gives what PyTorch gives, in both phases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.models import taehv, vae
from export.models.pieces import Phase, Piece, PieceRun
from export.models.presets import PRESETS, VaeConfig

SIZE = 16


def pieces_of(model: str, half: str) -> list[Piece]:
    torch.manual_seed(0)
    if model == "taehv":
        small = taehv.Taehv(PRESETS["tiny"].vae)
        taehv.initialise(small, 0)
        return taehv.encoder_pieces(small) if half == "encode" else taehv.decoder_pieces(small)
    config = VaeConfig(width=4, multipliers=(1, 2, 2, 2), residual_blocks=1)
    wan = vae.WanVae(config, fold_time=model == "wan folded")
    return vae.encoder_pieces(wan) if half == "encode" else vae.decoder_pieces(wan)


# torch's own exporter uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("half", ["encode", "decode"])
@pytest.mark.parametrize(
    "model, phase",
    [
        ("taehv", "first"),
        ("taehv", "step"),
        ("wan", "first"),
        ("wan", "step"),
        ("wan folded", "step"),
    ],
)
def test_onnx_runtime_equals_torch(tmp_path: Path, model: str, half: str, phase: Phase) -> None:
    run = PieceRun(pieces_of(model, half), phase).eval().requires_grad_(False)
    specs = run.state_specs(SIZE, SIZE)
    inputs = {"x": torch.randn(run.input_shape(SIZE, SIZE))}
    inputs |= {name: torch.randn(shape) for name, shape in specs}
    expected = run(*inputs.values())
    program = torch.onnx.export(
        run,
        tuple(inputs.values()),
        dynamo=True,
        opset_version=23,
        input_names=list(inputs),
        output_names=[f"{name}_next" for name in inputs],
        verbose=False,
    )
    assert program is not None
    path = tmp_path / "unit.onnx"
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(inputs)
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    for got, wanted in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4, rtol=0)
    assert "Resize" not in {node.op_type for node in program.model.graph}
