"""All stages in order, and the weights that they give."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch

from export.tiny import autoencoder, checkpoint, denoiser
from export.tiny.loop import Report, averaged
from export.tiny.recipe import Recipe

Stage = Literal["vae", "decoder", "dit", "all"]


def run(out: Path, stage: Stage, minutes: float, seed: int, threads: int, report: Report) -> bool:
    """Train for `minutes` at most, then write the weights to `out` if there are all of them.

    Returns whether the stages asked for are finished. The state of every stage lies in
    `out`-training, and a later call goes on from it.
    """
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(out.with_name(f"{out.name}-training"), seed=seed)
    deadline = time.monotonic() + 60 * minutes
    done = True
    if stage in ("vae", "all"):
        done = autoencoder.train_vae(recipe, deadline, report)[1]
    if stage in ("decoder", "all") and done:
        done = autoencoder.train_decoder(recipe, deadline, report)[1]
    if stage in ("dit", "all") and done:
        vae = autoencoder.trained_vae(recipe)
        done = denoiser.train_dit(recipe, vae, deadline, report)[1]
    export(recipe, out)
    return done


def export(recipe: Recipe, out: Path) -> None:
    """The averaged weights of all stages in the layout that `build-engines` reads."""
    if not (recipe.out / denoiser.STATE).is_file():
        return
    model = denoiser.Denoiser(recipe.model, recipe.seed)
    model.load_state_dict(averaged(recipe.out / denoiser.STATE))
    checkpoint.write(out, model, autoencoder.trained_vae(recipe))
