"""Prompts -> embeddings -> the context that every chunk carries. Runs the units `text` and
`prompt_in` of an engine; without `text`, prompts are files that `encode-prompt` wrote.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .config import Prompt
from .devices import Device
from .errors import ConfigError
from .frame import Array
from .manifest import Manifest, Unit
from .work import PromptContext

Embeddings = NDArray[np.float32]
"""[1, L, E], rows of padding are 0."""

EMBEDDINGS = "embeddings"
"""The tensor of a file of embeddings: float32 [tokens, E]. Its header says prompt, encoder,
tokenizer_sha256, and sha256 of the tensor's bytes.
"""
FOLDER = "prompts"
"""Beside a manifest: files of embeddings that stand for their texts."""


def unknown_style(text: str, styles: Sequence[str]) -> tuple[str, ...]:
    """A remark if a model knows certain styles only, and `text` names none of them in full."""
    words = " ".join(["", *re.findall(r"[^\W_]+", text.lower()), ""])
    if not styles or any(f" {style} " in words for style in styles):
        return ()
    known = ", ".join(styles)
    return (f"{text!r} names no style of this small model and may change little; known: {known}",)


class PromptEncoder:
    """Encodes on one device, once per prompt. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, directory: Path, device: Device) -> None:
        backend = device.backend(manifest.backend)
        self._device, zeros = device, device.zeros
        units: dict[str, Unit] = {
            u.kind: u for u in manifest.prompt if u.kind in ("text", "prompt_in")
        }
        self._text = manifest.text
        self._known = _known(directory / FOLDER)
        self._text_lock = threading.Lock()
        self._context_lock = threading.Lock()
        self._versions = itertools.count()
        shape = (1, self._text.length, self._text.width)
        self._embeddings = zeros(shape, np.float32)
        out = units["prompt_in"].plans["step"].outputs[0]
        self._context = zeros([int(d) for d in out.shape], out.dtype)
        prompt_in = backend.load(directory, units["prompt_in"].plans["step"])
        self._prompt_in = prompt_in.bind({"embeddings": self._embeddings, "context": self._context})
        self._tokenizer = None
        if self._text.tokenizer is not None and "text" in units:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(directory / self._text.tokenizer))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._ids = zeros((1, self._text.length), np.int64)
            self._mask = zeros((1, self._text.length), np.float32)
            self._encoded = zeros(shape, np.float32)
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
            self._device.copy(self._embeddings, embeddings)
            self._device.do(self._prompt_in)
            return PromptContext(next(self._versions), self._fetched(self._context))

    def example(self) -> Prompt:
        """Any prompt that this engine can encode. Raises ConfigError for one that has none."""
        if self._tokenizer is not None:
            return "warm-up"
        if not self._known:
            raise ConfigError(_UNKNOWN)
        return next(iter(self._known.values()))

    def _embed_text(self, text: str) -> tuple[Embeddings, tuple[str, ...]]:
        if self._tokenizer is None:
            if text in self._known:
                return self._read(self._known[text]), ()
            known = f" (there are: {', '.join(map(repr, self._known))})" if self._known else ""
            raise ConfigError(_UNKNOWN + known)
        ids: Sequence[int] = self._tokenizer.encode(text).ids
        length = self._text.length
        remarks = unknown_style(text, self._text.styles)
        if len(ids) > length:
            remarks += (
                f"the prompt has {len(ids)} tokens, this model reads {length}: the rest was cut",
            )
        with self._text_lock:
            kept = ids[:length]
            padded = np.zeros((1, length), np.int64)
            padded[0, : len(kept)] = kept
            self._device.copy(self._ids, padded)
            self._device.copy(self._mask, np.arange(length)[None] < len(kept))
            self._device.do(self._encode)
            return self._fetched(self._encoded), remarks

    def _fetched(self, array: Array) -> Array:
        """A new host array with what is in `array` once all is done."""
        host = np.empty(array.shape, array.dtype)
        self._device.copy(host, array)
        self._device.wait()
        return host

    def _read(self, path: Path) -> Embeddings:
        """Prompt embeddings from a file."""
        length, width = self._text.length, self._text.width
        expected = (
            f"a file of encode-prompt with {EMBEDDINGS} float32 [tokens <= {length}, {width}]"
        )
        try:
            with safe_open(path, framework="np") as file:
                about = file.metadata() or {}
                array = file.get_tensor(EMBEDDINGS)
        except (OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"prompt: {path} is unreadable ({reason}), expected {expected}"
            ) from None
        if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != width:
            got = f"{array.dtype} {list(array.shape)}"
            raise ConfigError(f"prompt: {path} holds {got}, expected {expected}")
        if not 0 < array.shape[0] <= length:
            raise ConfigError(f"prompt: {path} holds {array.shape[0]} tokens, expected {expected}")
        if not np.isfinite(array).all():
            raise ConfigError(f"prompt: {path} holds NaN or infinity, expected {expected}")
        if about.get("sha256") != hashlib.sha256(array.tobytes()).hexdigest():
            raise ConfigError(f"prompt: {path} is damaged, its hash differs; encode it again")
        ours, theirs = self._text.tokenizer_sha256, about.get("tokenizer_sha256")
        if ours is not None and theirs != ours:
            raise ConfigError(
                f"prompt: {path} was made by another text encoder (tokenizer {str(theirs)[:12]}, "
                f"this engine has {ours[:12]}); encode it with this engine's own"
            )
        embeddings = np.zeros((1, length, width), np.float32)
        embeddings[0, : len(array)] = array
        return embeddings


_UNKNOWN = (
    "prompt: got a text, but this engine has no text unit; "
    "write its embeddings first: python -m export encode-prompt"
)


def _known(folder: Path) -> dict[str, Path]:
    """The files of a folder by the text that each stands for."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                found[(file.metadata() or {}).get("prompt", path.stem)] = path
        except SafetensorError as error:
            raise ConfigError(
                f"prompt: {path} is damaged ({error}); delete it, or encode it again"
            ) from None
    return found


Way = Sequence[tuple[Embeddings, PromptContext]]
"""What the next chunks look like, one after the other."""


class PromptCourse:
    """The prompt of one session from chunk to chunk: it stays, or moves to another."""

    def __init__(self, encoder: PromptEncoder, prompt: Prompt) -> None:
        self._encoder = encoder
        self._embeddings, self.remarks = encoder.embed(prompt)
        self._context = encoder.context(self._embeddings)
        self._ahead: deque[tuple[Embeddings, PromptContext]] = deque()

    def embed(self, prompt: Prompt) -> tuple[Embeddings, tuple[str, ...]]:
        """As `PromptEncoder.embed`."""
        return self._encoder.embed(prompt)

    def stay(self) -> Embeddings:
        """Move no further. Returns what the newest chunk has."""
        self._ahead.clear()
        return self._embeddings

    def way(self, start: Embeddings, target: Embeddings, chunks: int) -> Way:
        """Linearly from `start` to `target` over `chunks` chunks; 0 is at once."""
        count = max(1, chunks)
        shares = [np.float32((i + 1) / count) for i in range(count)]
        mixes = [(1 - share) * start + share * target for share in shares]
        return [(mix, self._encoder.context(mix)) for mix in mixes]

    def go(self, way: Way) -> None:
        """From the next chunk on."""
        self._ahead = deque(way)

    def next(self) -> PromptContext:
        """What one more chunk carries."""
        if self._ahead:
            self._embeddings, self._context = self._ahead.popleft()
        return self._context
