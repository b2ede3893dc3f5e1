"""Training of the DiT and the text encoder: noisy latent of the source -> latent of the styled
clip.

The frames of a window run side by side under a causal mask. That is what the ring computes: at
each step of a row, keys and values depend on what came into that row alone. Positions are drawn
from a full window, whose distances are all that a stream of any length ever shows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.optim import Optimizer

from export import checkpoints
from export.models.dit import (
    PATCH,
    Block,
    Dit,
    DitIn,
    DitOut,
    PromptKV,
    join_heads,
    modulate,
    rope_axis,
    rotate,
)
from export.models.presets import ModelConfig
from export.models.taehv import Taehv
from export.models.text import TextBlock, TextEncoder
from export.random_weights import make_tokenizer, random_dit, random_text
from export.tiny.autoencoder import decode, encode, frames_of, styled, to_tensor
from export.tiny.data import clip
from export.tiny.loop import Report, train
from export.tiny.recipe import Recipe
from export.tiny.styles import STRUCTURAL, STYLES, prompt

STATE, CACHE, TOKENIZER = "dit.pt", "latents.pt", "tokenizer.json"
CLIPS_FROM = 1_000_000
"""Index of the first clip, far from those that the VAE has seen."""


class Denoiser(nn.Module):
    """A DiT and its text encoder, for grids of any size and for windows side by side."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.dit = Dit(config.dit, PATCH, PATCH)
        self.text = TextEncoder(config.text, config.dit.text_length)
        self._ends: dict[tuple[int, int], tuple[DitIn, DitOut]] = {}
        checkpoints.fill_dit(self.dit, random_dit(config.dit, seed))
        checkpoints.fill(self.text, random_text(config.text, seed))
        with torch.no_grad():
            self._calm()

    def forward(
        self, noisy: Tensor, timestep: Tensor, positions: Tensor, ids: Tensor, mask: Tensor
    ) -> Tensor:
        """noisy [N, T, C, h, w], timestep [N], positions [T] in latent frames, ids and mask [N, L]
        -> velocity [N, T, C, h, w].
        """
        windows, frames = noisy.shape[:2]
        enter, leave = self._ends_for(noisy.shape[-2], noisy.shape[-1])
        sizes = self.config.dit
        time = rope_axis(positions, sizes.rope_pairs[0], sizes.rope_theta).transpose(0, 1)
        x, modulation, head_modulation, rope = enter(
            noisy.flatten(0, 1), timestep.repeat_interleave(frames), time.repeat(windows, 1, 1)
        )
        visible = _not_later(frames, x.shape[1]) if frames > 1 else None
        context = self.dit.prompt_in(self.text(ids, mask))
        for unit, keys in zip(self.dit.block, self.dit.prompt_kv, strict=True):
            prompt_k, prompt_v = cast(PromptKV, keys)(context)
            x = _through(cast(Block, unit), x, modulation, rope, visible, prompt_k, prompt_v)
        velocity: Tensor = leave(x, head_modulation)
        return velocity.float().reshape(noisy.shape)

    def _ends_for(self, height: int, width: int) -> tuple[DitIn, DitOut]:
        """Entry and exit for one size of latent, with the parameters of the DiT."""
        if (height, width) not in self._ends:
            enter = DitIn(self.config.dit, height, width)
            enter.patch_embedding = self.dit.dit_in.patch_embedding
            enter.time_embedding = self.dit.dit_in.time_embedding
            enter.time_projection = self.dit.dit_in.time_projection
            leave = DitOut(self.config.dit, height, width)
            leave.head = self.dit.dit_out.head
            self._ends[height, width] = enter, leave
        return self._ends[height, width]

    def _calm(self) -> None:
        """Starts close to velocity 0, where the result is the noisy source itself."""
        dit = self.dit
        projection = dit.dit_in.time_projection[1]
        assert isinstance(projection, nn.Linear)
        projection.weight.mul_(0.1)
        projection.bias.zero_()
        for unit in dit.block:
            block = cast(Block, unit)
            block.modulation.zero_()
            block.modulation[:, 2::3] = 0.3  # both gates
            block.cross_attn.o.weight.mul_(0.3)
        dit.dit_out.head.head.weight.zero_()
        dit.dit_out.head.head.bias.zero_()
        dit.dit_out.head.modulation.zero_()
        for layer in self.text.blocks:
            text = cast(TextBlock, layer)
            text.attn.o.weight.mul_(0.1)
            text.ffn.fc2.weight.mul_(0.1)


def _through(
    block: Block,
    x: Tensor,
    modulation: Tensor,
    rope: Tensor,
    visible: Tensor | None,
    prompt_k: Tensor,
    prompt_v: Tensor,
) -> Tensor:
    """A block over windows side by side: x [N * T, S, D], prompt [N, heads, L, K]."""
    windows = len(prompt_k)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = block.modulations(modulation)
    q, k, v = block.queries_keys_values(modulate(x, shift, scale, block.eps))
    q, k, v = (_joined(part, windows) for part in (rotate(q, rope), rotate(k, rope), v))
    q, k = q.to(v.dtype), k.to(v.dtype)
    attended = F.scaled_dot_product_attention(q, k, v, visible, scale=block.scale)
    x = x + block.self_attn.o(join_heads(attended).reshape(x.shape)) * gate
    flat = x.reshape(windows, -1, x.shape[-1])
    x = (flat + block.read_prompt(block.norm3(flat), prompt_k, prompt_v)).reshape(x.shape)
    result: Tensor = x + block.ffn(modulate(x, ffn_shift, ffn_scale, block.eps)) * ffn_gate
    return result


def _joined(x: Tensor, windows: int) -> Tensor:
    """[N * T, heads, S, K] -> [N, heads, T * S, K]."""
    return x.reshape(windows, -1, *x.shape[1:]).transpose(1, 2).flatten(2, 3)


def _not_later(frames: int, tokens: int) -> Tensor:
    """Which token sees which: bool [T * S, T * S]."""
    frame = torch.arange(frames).repeat_interleave(tokens)
    return frame[:, None] >= frame[None, :]


@dataclass(frozen=True, slots=True)
class Latents:
    """Pairs of clips as latents, float16 [clips, T, C, h, w], and the style of each target."""

    source: Tensor
    target: Tensor
    style: Tensor


def latents_of(recipe: Recipe, vae: Taehv, report: Report) -> Latents:
    """The training pairs, made once and kept in the folder of the run."""
    path = recipe.out / CACHE
    if path.is_file():
        return Latents(**torch.load(path, weights_only=True))
    r, names = recipe.dit, list(STYLES)
    sources, targets, styles = [], [], []
    for index in range(r.clips):
        pictures = clip(recipe.seed, CLIPS_FROM + index, frames_of(r.chunks), r.size)
        rng = np.random.default_rng([recipe.seed, 2, index])
        drawn = rng.choice(np.arange(1, len(names)), r.styles_per_clip, replace=False)
        made = [pictures, *(styled(pictures, names[style]) for style in drawn)]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = encode(vae, torch.stack([to_tensor(each) for each in made])).half()
        identity = [0] if index % 3 == 0 else []
        for place, style in enumerate([*identity, *drawn], start=1 - len(identity)):
            sources.append(found[0])
            targets.append(found[place])
            styles.append(int(style))
        report("latents", index + 1, r.clips)
    kept = {
        "source": torch.stack(sources),
        "target": torch.stack(targets),
        "style": torch.tensor(styles),
    }
    torch.save(kept, path)
    return Latents(**kept)


class Prompts:
    """Random prompts as token ids and masks [N, L]."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        make_tokenizer(folder / TOKENIZER, config.text.vocabulary)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._length = config.dit.text_length

    def __call__(self, styles: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One prompt for each style, given as int64 [N]."""
        names = list(STYLES)
        return self.tokens([prompt(names[int(style)], rng) for style in styles])

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 and mask float32, both [N, L]."""
        ids = torch.zeros(len(texts), self._length, dtype=torch.int64)
        mask = torch.zeros(len(texts), self._length)
        for row, text in enumerate(texts):
            found = self._tokenizer.encode(text).ids[: self._length]
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = 1
        return ids, mask


def train_dit(recipe: Recipe, vae: Taehv, deadline: float, report: Report) -> tuple[Denoiser, bool]:
    """Train DiT and text encoder over a frozen VAE; returns them averaged, and whether done."""
    r, sampling = recipe.dit, recipe.model.sampling
    data = latents_of(recipe, vae, report)
    weights = channel_weights(vae, data.target)
    model = Denoiser(recipe.model, recipe.seed)
    prompts = Prompts(recipe.out, recipe.model)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([recipe.seed, 3, step])
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        source, target, style = _draw(recipe, data, step, rng)
        windows, frames = source.shape[:2]
        window = sampling.window
        positions = torch.from_numpy(np.sort(rng.permutation(window)[:frames]))
        ids, mask = prompts(style, rng)
        low, high = r.noise
        s = low + (high - low) * torch.rand(windows, generator=noise)
        noisy = _mix(source, s, noise)
        with torch.autocast("cpu", torch.bfloat16):
            if step % 3 == 2:
                with torch.no_grad():
                    velocity = model(noisy, 1000 * s, positions, ids, mask)
                    clean = noisy - _over(s, noisy) * velocity
                later = sampling.timesteps[int(rng.choice([1, 1, 1, 2, 3]))]
                s = torch.full((windows,), later / 1000)
                noisy = _mix(clean, s, noise)
            velocity = model(noisy, 1000 * s, positions, ids, mask)
        error = noisy - _over(s, noisy) * velocity - target
        kind = "again" if step % 3 == 2 else ("whole" if frames == 1 else "window")
        error = weights.sqrt() * error
        return {kind: error.square().mean() + 0.15 * error.abs().mean()}

    with warnings.catch_warnings():
        # autocast leaves the weights of norms in float32, where they belong
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        done = train(
            model, optimizers_of(model, r.rate), loss_of, steps=r.steps, state=recipe.out / STATE,
            deadline=deadline, report=report,
        )  # fmt: skip
    return model, done


@torch.no_grad()
def channel_weights(vae: Taehv, latents: Tensor) -> Tensor:
    """How much an error of each latent channel counts, [C, 1, 1], 1 on average.

    A quarter counts alike; the rest as the squared change of decoded pixels that it makes. Latents
    are close to whitened principal components, whose first ones are most of the picture.
    """
    generator = torch.Generator().manual_seed(0)
    clips = latents[:: max(1, len(latents) // 3)][:3, :2].float()
    plain, moved = decode(vae, clips), []
    for channel in range(clips.shape[2]):
        shift = torch.zeros_like(clips)
        shift[:, :, channel] = 0.1 * torch.randn(clips[:, :, 0].shape, generator=generator)
        moved.append((decode(vae, clips + shift) - plain).square().mean())
    seen = torch.stack(moved)
    return (0.25 + 0.75 * seen / seen.mean())[:, None, None]


def optimizers_of(model: Denoiser, rate: float) -> list[Optimizer]:
    """Muon for the matrices of the blocks, Adam for everything else, faster for the exit."""
    units = [*model.dit.block, *model.dit.prompt_kv]
    matrices = [p for unit in units for p in unit.parameters() if p.ndim == 2]
    own = {id(p) for p in matrices}
    head = list(model.dit.dit_out.parameters())
    own |= {id(p) for p in head}
    others = [p for p in model.parameters() if id(p) not in own]
    muon = torch.optim.Muon(matrices, 3 * rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": others, "lr": rate}, {"params": head, "lr": 4 * rate}]
    return [muon, torch.optim.Adam(groups, betas=(0.9, 0.98))]


def _draw(
    recipe: Recipe, data: Latents, step: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Source and target [N, T, C, h, w] of a step, and the style of each: whole single frames, or
    crops of windows.
    """
    r = recipe.dit
    count, frames, _, height, width = data.source.shape
    structural = torch.tensor([list(STYLES).index(name) for name in STRUCTURAL])
    often = 1.0 + torch.isin(data.style, structural).double().numpy()  # they take longer to learn
    chosen = rng.choice(count, r.whole_frames if step % 2 else r.crops, p=often / often.sum())
    if step % 2:
        at = rng.integers(frames, size=r.whole_frames)
        return (
            data.source[chosen, at].float()[:, None],
            data.target[chosen, at].float()[:, None],
            data.style[chosen],
        )
    side = min(r.crop, height, width)
    tops = rng.integers(0, height - side + 1, size=r.crops)
    lefts = rng.integers(0, width - side + 1, size=r.crops)
    spans = list(zip(chosen, tops, lefts, strict=True))

    def cut(clips: Tensor) -> Tensor:
        parts = [clips[c, :, :, y : y + side, x : x + side] for c, y, x in spans]
        return torch.stack(parts).float()

    return cut(data.source), cut(data.target), data.style[chosen]


def _over(s: Tensor, like: Tensor) -> Tensor:
    return s.view(-1, *[1] * (like.ndim - 1))


def _mix(clean: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """s eps + (1 - s) clean, s [N]."""
    share = _over(s, clean)
    return share * torch.randn(clean.shape, generator=generator) + (1 - share) * clean
