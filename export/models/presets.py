"""Dimensions of the supported models, and nothing else. The constants of sampling are in
`Sampling`.

Sources: the published Wan 2.1 configurations; StreamDiffusionV2's released code for the sampling
constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rt.manifest import Latents

WAN_LATENTS = Latents(
    mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
    encode=True,
    decode=True,
)  # fmt: skip
"""Per channel, as published with Wan 2.1 (configuration of its VAE)."""
NO_LATENTS = Latents(mean=(), std=(), encode=False, decode=False)
"""Of a VAE whose latents are those of the DiT."""


@dataclass(frozen=True, slots=True)
class DitConfig:
    """Causal Wan DiT. `width = heads * head_dim`; patch is (1, 2, 2)."""

    width: int
    ffn: int
    heads: int
    blocks: int
    text_length: int
    text_width: int
    head_dim: int = 128
    latent_channels: int = 16
    frequency_width: int = 256
    rope_theta: float = 10000.0
    eps: float = 1e-6

    @property
    def rope_pairs(self) -> tuple[int, int, int]:
        """Complex pairs per head that rotate with (time, height, width)."""
        spatial = self.head_dim // 6
        return self.head_dim // 2 - 2 * spatial, spatial, spatial


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """Wan 2.1 VAE: 8x in space, 4x in time, every convolution causal in time."""

    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residual_blocks: int = 2
    latent_channels: int = 16
    time_halved: tuple[bool, ...] = (False, True, True)
    latents: Latents = WAN_LATENTS


@dataclass(frozen=True, slots=True)
class TaehvConfig:
    """TAEHV: a small stand-in for the VAE, 8x in space and 4x in time. Per level: stride in space,
    pooling in time.
    """

    encoder_widths: tuple[int, int, int] = (64, 64, 64)
    encoder_blocks: tuple[int, int, int] = (3, 3, 3)
    encoder_time: tuple[int, int, int] = (2, 2, 1)
    encoder_stride: tuple[int, int, int] = (2, 2, 2)
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    decoder_blocks: tuple[int, int, int] = (3, 3, 3)
    decoder_time: tuple[int, int, int] = (1, 2, 2)
    decoder_scale: tuple[int, int, int] = (2, 2, 2)
    patch: int = 1
    latent_channels: int = 16


@dataclass(frozen=True, slots=True)
class TextConfig:
    """UMT5 encoder: gated-GELU feed-forward, relative positions per block."""

    width: int = 4096
    ffn: int = 10240
    heads: int = 64
    head_dim: int = 64
    blocks: int = 24
    vocabulary: int = 256384
    buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True, slots=True)
class Sampling:
    """What belongs to the trained weights: the schedule, the window and the range of the noise
    scale.
    """

    timesteps: tuple[int, ...] = (700, 500, 400, 200)
    default_steps: int = 2
    shift: float = 8.0
    s_max: float = 0.8
    s_min: float = 0.7
    timestep_offset: int = -100
    window: int = 6
    sinks: int = 3
    sink_threshold: float = 0.2


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole model: the DiT, one VAE (Wan's or a TAEHV), the text encoder, and its sampling
    constants.
    """

    name: str
    dit: DitConfig
    vae: VaeConfig | TaehvConfig
    text: TextConfig
    sampling: Sampling


_MODELS = {
    "tiny": ModelConfig(
        "tiny",
        DitConfig(
            width=256, ffn=1024, heads=4, blocks=6, text_length=32, text_width=64, head_dim=64
        ),
        TaehvConfig(
            encoder_widths=(48, 64, 64),
            encoder_blocks=(1, 1, 2),
            encoder_time=(2, 2, 1),
            encoder_stride=(1, 1, 2),
            decoder_widths=(96, 64, 64, 64),
            decoder_blocks=(2, 2, 1),
            decoder_time=(1, 2, 2),
            decoder_scale=(2, 1, 1),
            patch=4,
        ),
        TextConfig(width=64, ffn=128, heads=2, head_dim=32, blocks=1, vocabulary=1024),
        Sampling(timesteps=(120, 40, 30, 20), shift=1.0, s_max=0.12, s_min=0.06, timestep_offset=0),
    ),
    "wan-1.3b": ModelConfig(
        "wan-1.3b",
        DitConfig(width=1536, ffn=8960, heads=12, blocks=30, text_length=512, text_width=4096),
        VaeConfig(),
        TextConfig(),
        Sampling(),
    ),
    "wan-14b": ModelConfig(
        "wan-14b",
        DitConfig(width=5120, ffn=13824, heads=40, blocks=40, text_length=512, text_width=4096),
        VaeConfig(),
        TextConfig(),
        Sampling(),
    ),
}

PRESETS = _MODELS | {
    f"{name}-taehv": replace(_MODELS[name], name=f"{name}-taehv", vae=TaehvConfig())
    for name in ("wan-1.3b", "wan-14b")
}
"""Models by name; `-taehv` has the small VAE in the place of Wan's."""


def latents_of(config: ModelConfig) -> Latents:
    """Statistics between the VAE of a model and its DiT."""
    return config.vae.latents if isinstance(config.vae, VaeConfig) else NO_LATENTS


def with_latents(config: ModelConfig, latents: Latents) -> ModelConfig:
    """The model with other statistics; a TAEHV has none to change."""
    if not isinstance(config.vae, VaeConfig):
        return config
    return replace(config, vae=replace(config.vae, latents=latents))
