"""What a build starts from: a checkpoint, an engine that was built before, or a seed; and the hash
of all that decides its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from export import checkpoints, formats, lora, random_weights
from export.layout import Files, find
from export.models.presets import TaehvConfig, latents_of, with_latents
from export.options import Options
from rt import manifest as records
from rt.errors import ConfigError
from rt.manifest import Latents, Manifest


@dataclass(frozen=True, slots=True)
class Given:
    """What a build starts from: the files of a checkpoint, an engine built before, or a seed; and
    the options with the latents that these ask for.
    """

    options: Options
    files: Files | None = None
    engine: Path | None = None
    source: Manifest | None = None

    def digest(self) -> str:
        """Hash of all that decides the weights."""
        facts = _digest_of_seed(self.options)
        if self.source is not None:
            facts = self.source.weights_sha256
        elif self.files is not None:
            small = isinstance(self.options.config.vae, TaehvConfig)
            facts = _digest_of_files(self.files.used(small))
        if not self.options.loras:
            return facts
        for path, weight in self.options.loras:
            digests = [records.sha256_of(file) for file in lora.files_of(path)]
            facts += f"\nlora {digests} {weight!r}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def tokenizer(self) -> Path | None:
        if self.source is not None and self.engine is not None:
            name = self.source.text.tokenizer
            return self.engine / name if name else None
        return None if self.files is None else self.files.tokenizer

    def styles(self) -> tuple[str, ...]:
        if self.source is not None:
            return self.source.text.styles
        return () if self.files is None else checkpoints.styles_of(self.files)


def given_of(options: Options, checkpoint: Path | None) -> Given:
    """Look at the checkpoint. Raises ConfigError, CheckpointError."""
    for path, _ in options.loras:
        if checkpoint is None or not path.is_file():
            raise ConfigError(f"lora: got {path}, expected a file, and a checkpoint to add it to")
    if checkpoint is None:
        return Given(options)
    if (source := _engine_at(checkpoint)) is not None:
        return Given(_with_latents(options, source.latents), engine=checkpoint, source=source)
    files = find(checkpoint, options.base)
    latents = latents_of(options.config)
    raw = {"auto": files.raw_encode, "raw": True, "normalised": False}[options.latents]
    return Given(_with_latents(options, replace(latents, encode=not raw)), files=files)


def _with_latents(options: Options, latents: Latents) -> Options:
    """Options for a VAE whose latents are `latents`; TAEHV has none to change."""
    return replace(options, config=with_latents(options.config, latents))


def _digest_of_files(parts: Mapping[str, Path]) -> str:
    """Hash of the names of the parts of a model and of the contents of their files."""
    whole = hashlib.sha256()
    for part, path in parts.items():
        folder = path if path.is_dir() else path.parent
        config = folder / formats.CONFIG_FILE
        beside = [config] if part == "dit" and config.is_file() else []
        for file in (*formats.files_of(path), *beside):
            whole.update(f"{part} {records.sha256_of(file)}\n".encode())
    return whole.hexdigest()


def _engine_at(path: Path) -> Manifest | None:
    """The manifest of an engine, or None if `path` is a checkpoint."""
    return records.read(path) if (path / records.FILE_NAME).is_file() else None


def has_random_text(options: Options) -> bool:
    """Whether random weights have a text encoder; that of Wan takes 11 GB and encodes nothing."""
    return options.config.text.vocabulary <= random_weights.VOCABULARY


def _digest_of_seed(options: Options) -> str:
    """Hash of the code that makes random weights, of the model and of the seed."""
    maker = Path(random_weights.__file__).read_bytes()
    return hashlib.sha256(maker + repr((options.config, options.seed)).encode()).hexdigest()
