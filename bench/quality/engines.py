"""An engine with other constants in its manifest, for questions that no option asks."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality.clips import Clip
from rt import Pipeline
from rt import manifest as records
from rt.config import Prompt


@contextmanager
def varied(
    directory: Path, noise: dict[str, Any] | None = None, window: dict[str, Any] | None = None
) -> Iterator[Path]:
    """A copy whose manifest has other values in `noise` and `window`, signed again."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(directory, Path(folder) / directory.name))
        manifest = records.read(copy)
        changed = dataclasses.replace(
            manifest,
            noise=dataclasses.replace(manifest.noise, **(noise or {})),
            window=dataclasses.replace(manifest.window, **(window or {})),
        )
        records.write(changed, copy)
        yield copy


def restyle(pipeline: Pipeline, pictures: Clip, prompt: Prompt, **options: Any) -> Clip:
    """A clip through the whole pipeline. Options are those of a session."""
    with pipeline.session(prompt=prompt, **options) as session:
        return np.stack([frame.rgb for frame in session.stream(list(pictures))])
