"""Where the parts of a model lie: the folders of a release, told by what is in them.

Knows the original layout of Wan, that of diffusers, and a file of DiT weights on its own, for which
a second folder has the rest. Opens no file of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export import formats
from export.formats import listed
from rt.errors import CheckpointError, ConfigError

TRANSFORMER, VAE, TEXT = "transformer", "vae", "text_encoder"
"""Folders of a diffusers release."""
TOKENIZERS = (formats.TOKENIZER_FILE, "tokenizer/tokenizer.json")
WEIGHTS = (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
RAW_ENCODE = "wan_causal_dmd_v2v"
"""Start of the names of the folders in which StreamDiffusionV2 releases its DiT. Its tensors do not
tell it from CausVid's, and it alone was trained on latents that were not normalised.
"""


@dataclass(frozen=True, slots=True)
class Files:
    """The parts of a model: a file each, or a folder of shards. What is None was not found."""

    dit: Path
    vae: Path | None
    taehv: Path | None
    text: Path | None
    tokenizer: Path | None
    styles: Path | None

    @property
    def raw_encode(self) -> bool:
        """Whether the DiT was trained on latents as the encoder gives them (REFERENCE 2)."""
        folder = self.dit if self.dit.is_dir() else self.dit.parent
        return folder.resolve().name.startswith(RAW_ENCODE)

    def used(self, small_vae: bool) -> dict[str, Path]:
        """The files that a build reads, by what they are."""
        vae = self.taehv if small_vae else self.vae
        parts = {"dit": self.dit, "vae": vae, "text": self.text}
        parts |= {"tokenizer": self.tokenizer, "styles": self.styles}
        return {name: path for name, path in parts.items() if path is not None}


def find(checkpoint: Path, base: Path | None = None) -> Files:
    """The parts of `checkpoint`, a folder or a file of DiT weights; what is not beside these is
    looked for in `base`.

    Raises ConfigError for what does not exist, CheckpointError for a folder without one set of
    weights.
    """
    for path in (checkpoint, base):
        if path is not None and not path.exists():
            raise ConfigError(f"checkpoint: got {path}, expected an existing file or folder")
    folders = [checkpoint if checkpoint.is_dir() else checkpoint.parent]
    folders += [base] if base is not None else []

    def first(*names: str) -> Path | None:
        found = (path for folder in folders for name in names for path in sorted(folder.glob(name)))
        return next(found, None)

    return Files(
        dit=_dit(checkpoint) if checkpoint.is_dir() else checkpoint,
        vae=first(formats.VAE_FILE, VAE),
        taehv=first(formats.TAEHV_FILE),
        text=first(formats.TEXT_FILES, TEXT),
        tokenizer=first(*TOKENIZERS),
        styles=first(formats.STYLES_FILE),
    )


def _dit(folder: Path) -> Path:
    if (folder / TRANSFORMER).is_dir():
        return folder / TRANSFORMER
    if any(list(folder.glob(name)) for name in formats.SHARDS):
        return folder
    others = (formats.VAE_FILE, formats.TAEHV_FILE)
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in WEIGHTS and path.name not in others and not path.match(formats.TEXT_FILES)
    ]
    if len(found) == 1:
        return found[0]
    got = f"several files of weights ({listed(p.name for p in found)})" if found else "no weights"
    raise CheckpointError(
        f"{folder}: {got}, expected {formats.DIT_FILES}, a folder {TRANSFORMER}, or one file; "
        "name the file"
    )
