"""Trained weights -> a folder in the layout of the original Wan release.

Values are exact in float16, so that an engine stores them in half the size without a loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.formats import CONFIG_FILE, STYLES_FILE, TAEHV_FILE, TOKENIZER_FILE
from export.models.taehv import Taehv
from export.random_weights import DIT_STEM, make_tokenizer, wan_config
from export.tiny.denoiser import Denoiser
from export.tiny.styles import STYLES

TEXT_FILE = "models_t5_umt5-tiny.pth"


def write(directory: Path, denoiser: Denoiser, vae: Taehv) -> None:
    """Everything that `build-engines --checkpoint` reads."""
    config = denoiser.config
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(wan_config(config.dit), indent=1) + "\n")
    (directory / STYLES_FILE).write_text(json.dumps(list(STYLES)) + "\n")
    save_file(_exact(denoiser.dit.checkpoint()), directory / f"{DIT_STEM}.safetensors")
    torch.save(_exact(vae.state_dict()), directory / TAEHV_FILE)
    torch.save(_exact(denoiser.text.state_dict()), directory / TEXT_FILE)
    make_tokenizer(directory / TOKENIZER_FILE, config.text.vocabulary)


def _exact(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The nearest float32 that are float16 as well."""
    return {name: tensor.detach().half().float().contiguous() for name, tensor in state.items()}
