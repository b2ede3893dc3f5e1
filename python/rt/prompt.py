"""Prompts -> embeddings -> the context that every chunk carries. Runs the units `text` and
`prompt_in` of an engine.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import backends
from .config import Prompt
from .errors import ConfigError
from .frame import Array
from .manifest import Manifest, Unit
from .work import PromptContext

Embeddings = NDArray[np.float32]
"""[1, L, E], rows of padding are 0."""


def unknown_style(text: str, styles: Sequence[str]) -> tuple[str, ...]:
    """A remark if a model knows certain styles only, and `text` names none of them in full."""
    words = " ".join(["", *re.findall(r"[^\W_]+", text.lower()), ""])
    if not styles or any(f" {style} " in words for style in styles):
        return ()
    known = ", ".join(styles)
    return (f"{text!r} names no style of this small model and may change little; known: {known}",)


class PromptEncoder:
    """Encodes on the host, once per prompt. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, directory: Path, threads: int) -> None:
        backend = backends.create(manifest.backend, threads)
        units: dict[str, Unit] = {
            u.kind: u for u in manifest.prompt if u.kind in ("text", "prompt_in")
        }
        self._text = manifest.text
        self._text_lock = threading.Lock()
        self._context_lock = threading.Lock()
        self._versions = itertools.count()
        shape = (1, self._text.length, self._text.width)
        self._embeddings: Embeddings = np.zeros(shape, np.float32)
        out = units["prompt_in"].plans["step"].outputs[0].shape
        self._context = np.zeros([int(d) for d in out], np.float32)
        prompt_in = backend.load(directory, units["prompt_in"].plans["step"])
        self._prompt_in = prompt_in.bind({"embeddings": self._embeddings, "context": self._context})
        self._tokenizer = None
        if self._text.tokenizer is not None and "text" in units:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(directory / self._text.tokenizer))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._ids: Array = np.zeros((1, self._text.length), np.int64)
            self._mask: Array = np.zeros((1, self._text.length), np.float32)
            self._encoded: Embeddings = np.zeros(shape, np.float32)
            text = backend.load(directory, units["text"].plans["step"])
            arrays: dict[str, Array] = {
                "token_ids": self._ids,
                "token_mask": self._mask,
                "embeddings": self._encoded,
            }
            self._encode = text.bind(arrays)

    def embed(self, prompt: Prompt) -> tuple[Embeddings, tuple[str, ...]]:
        """A text, a file of embeddings, or a weighted mix of texts -> embeddings, and remarks for
        the user.

        Weights of a mix are normalised to sum 1. Raises ConfigError for a prompt that this engine
        cannot encode.
        """
        if isinstance(prompt, str):
            return self._embed_text(prompt)
        if isinstance(prompt, Path):
            return self._read(prompt), ()
        total = sum(weight for _, weight in prompt)
        parts = [(*self._embed_text(text), weight / total) for text, weight in prompt]
        mixed = np.sum([embeddings * np.float32(weight) for embeddings, _, weight in parts], axis=0)
        return mixed.astype(np.float32), tuple(
            remark for _, remarks, _ in parts for remark in remarks
        )

    def context(self, embeddings: Embeddings) -> PromptContext:
        """Embeddings -> what a chunk carries, under a version of its own."""
        with self._context_lock:
            self._embeddings[...] = embeddings
            self._prompt_in()
            return PromptContext(next(self._versions), self._context.copy())

    def _embed_text(self, text: str) -> tuple[Embeddings, tuple[str, ...]]:
        if self._tokenizer is None:
            raise ConfigError(
                "prompt: got a text, but this engine has no text unit; "
                f"pass a .npy file of embeddings, float32 [tokens, {self._text.width}]"
            )
        ids: Sequence[int] = self._tokenizer.encode(text).ids
        length = self._text.length
        remarks = unknown_style(text, self._text.styles)
        if len(ids) > length:
            remarks += (
                f"the prompt has {len(ids)} tokens, this model reads {length}: the rest was cut",
            )
        with self._text_lock:
            kept = ids[:length]
            self._ids[0] = 0
            self._mask[0] = 0
            self._ids[0, : len(kept)] = kept
            self._mask[0, : len(kept)] = 1
            self._encode()
            return self._encoded.copy(), remarks

    def _read(self, path: Path) -> Embeddings:
        """Prompt embeddings from a .npy file: float32 [tokens, E]."""
        length, width = self._text.length, self._text.width
        expected = f"a .npy file with floats [tokens <= {length}, {width}]"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"prompt: {path} is unreadable ({reason}), expected {expected}"
            ) from None
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise ConfigError(f"prompt: {path} holds no array of floats, expected {expected}")
        if array.ndim != 2 or array.shape[1] != width or array.shape[0] > length:
            raise ConfigError(f"prompt: {path} holds {list(array.shape)}, expected {expected}")
        if not np.isfinite(array).all():
            raise ConfigError(f"prompt: {path} holds NaN or infinity, expected {expected}")
        embeddings = np.zeros((1, length, width), np.float32)
        embeddings[0, : len(array)] = array
        return embeddings
