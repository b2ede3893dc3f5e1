"""Model -> the chain of units, each with named inputs, outputs, state and shapes.

A new model is a new function here that returns its `Chain`. Owns where the VAE is cut, how work is
counted and the names of docs/interfaces.md; reads no file, computes nothing: the modules may be on
the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from export.models import taehv, vae
from export.models.dit import PATCH, Dit
from export.models.pieces import Phase, Piece, PieceRun, cut_by_flop
from export.models.presets import ModelConfig, VaeConfig
from export.models.taehv import Taehv
from export.models.text import TextEncoder
from export.models.vae import WanVae
from rt.manifest import Binding, Dimension, Geometry, StateBinding, UnitKind

VAE_SHARE = 0.12
"""Most of the chain's work, at two steps, that one unit of the VAE may do (DESIGN section 3)."""
VAE_STRIDE = 8
FRAMES_PER_CHUNK = 4
EXAMPLE_ROWS = 2
"""Batch of an example: a dimension of 1 would be taken for a constant."""

Shape = tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """One graph of a unit: `module(*inputs, *state inputs) -> (*outputs, *state outputs)`.

    `flop` counts matrix products and convolutions (2 per multiply-add), `bytes` what is read and
    written (weights, values along the chain, state), both for one row.
    """

    module: nn.Module
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    state: tuple[StateBinding, ...]
    flop: int
    bytes: int

    @property
    def batched(self) -> bool:
        """Whether the leading dimension is B."""
        return self.inputs[0].shape[0] == "B"

    @property
    def input_names(self) -> tuple[str, ...]:
        return (*(b.name for b in self.inputs), *(s.input for s in self.state))

    @property
    def output_names(self) -> tuple[str, ...]:
        return (*(b.name for b in self.outputs), *(s.output for s in self.state))

    def arguments(self, rows: int = EXAMPLE_ROWS, device: str = "cpu") -> tuple[Tensor, ...]:
        """Zeros of the right shapes and types for `rows` rows, inputs then state."""
        values: tuple[Binding | StateBinding, ...] = (*self.inputs, *self.state)
        return tuple(
            torch.zeros(concrete(v.shape, rows), dtype=getattr(torch, v.dtype), device=device)
            for v in values
        )


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """A unit before it is compiled. Units of one `graph` differ in their weights only."""

    name: str
    kind: UnitKind
    index: int
    graph: str
    phases: Mapping[str, PhaseSpec]


@dataclass(frozen=True, slots=True)
class Chain:
    """All units of a model: what runs when the prompt changes, and what runs for each chunk."""

    prompt: tuple[UnitSpec, ...]
    chain: tuple[UnitSpec, ...]

    @property
    def units(self) -> tuple[UnitSpec, ...]:
        return self.prompt + self.chain


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a model. `text` is None where the checkpoint has no text encoder."""

    dit: Dit
    text: TextEncoder | None
    vae: WanVae | Taehv

    def pieces(self) -> tuple[list[Piece], list[Piece]]:
        """Encoder and decoder of the VAE."""
        if isinstance(self.vae, WanVae):
            return vae.encoder_pieces(self.vae), vae.decoder_pieces(self.vae)
        return taehv.encoder_pieces(self.vae), taehv.decoder_pieces(self.vae)


def parts_of(
    config: ModelConfig, height: int, width: int, *, text: bool = True, fold_time: bool = False
) -> Parts:
    """Modules for pictures of `height` x `width` pixels, their weights still to be filled in.

    `fold_time` turns the time taps of Wan's convolutions into channels of 2-D ones.
    """
    geometry = geometry_of(config, height, width)
    dit = Dit(config.dit, geometry.latent_height, geometry.latent_width)
    encoder = TextEncoder(config.text, config.dit.text_length) if text else None
    if isinstance(config.vae, VaeConfig):
        return Parts(dit, encoder, WanVae(config.vae, fold_time))
    return Parts(dit, encoder, Taehv(config.vae))


def geometry_of(config: ModelConfig, height: int, width: int) -> Geometry:
    """Sizes for pictures of `height` x `width` pixels, which are multiples of 16."""
    rows, columns = height // VAE_STRIDE, width // VAE_STRIDE
    return Geometry(
        height=height,
        width=width,
        latent_channels=config.dit.latent_channels,
        latent_height=rows,
        latent_width=columns,
        frames_per_chunk=FRAMES_PER_CHUNK,
        tokens_per_frame=rows * columns // PATCH**2,
    )


def wan_chain(config: ModelConfig, parts: Parts, height: int, width: int, window: int) -> Chain:
    """The chain of a causal Wan model with Wan's VAE or a TAEHV.

    `height` and `width` in pixels, `window` in latent frames; all are fixed in the graphs.
    """
    geometry = geometry_of(config, height, width)
    dit = _dit_units(config, parts.dit, geometry, window)
    step = sum(unit.phases["step"].flop for unit in dit)
    encoder, decoder = parts.pieces()
    both = sum(piece.flop(height, width) for piece in (*encoder, *decoder))
    budget = VAE_SHARE * (both + 2 * step)
    encode = _vae_units("encode", encoder, budget, height, width)
    decode = _vae_units("decode", decoder, budget, height, width)
    return Chain(_prompt_units(config, parts), (*encode, *dit, *decode))


def concrete(shape: Shape, rows: int) -> tuple[int, ...]:
    """`shape` with B = `rows`."""
    return tuple(rows if dimension == "B" else dimension for dimension in shape)


def _prompt_units(config: ModelConfig, parts: Parts) -> tuple[UnitSpec, ...]:
    dit = config.dit
    length, heads = dit.text_length, dit.heads
    embeddings = _value("embeddings", 1, length, dit.text_width)
    context = _value("context", 1, length, dit.width)
    keys = tuple(_value(name, 1, heads, length, dit.head_dim) for name in ("prompt_k", "prompt_v"))
    units = []
    if parts.text is not None:
        token_ids = Binding("token_ids", "token_ids", "int64", (1, length))
        tokens = (token_ids, _value("token_mask", 1, length))
        units.append(_unit("text", "text", 0, parts.text, tokens, (embeddings,)))
    enter = parts.dit.prompt_in
    units.append(_unit("prompt_in", "prompt_in", 0, enter, (embeddings,), (context,)))
    for index, module in enumerate(parts.dit.prompt_kv):
        units.append(_unit(f"prompt_kv_{index}", "prompt_kv", index, module, (context,), keys))
    return tuple(units)


def _dit_units(
    config: ModelConfig, dit: Dit, geometry: Geometry, window: int
) -> tuple[UnitSpec, ...]:
    sizes = config.dit
    tokens, width, heads = geometry.tokens_per_frame, sizes.width, sizes.heads
    ring: Shape = ("B", heads, window * tokens, sizes.head_dim)
    latent = (geometry.latent_channels, geometry.latent_height, geometry.latent_width)
    x = _value("x", "B", tokens, width)
    modulation = _value("modulation", "B", 6, width)
    head_modulation = _value("head_modulation", "B", width)
    rope = _value("rope", "B", 2, tokens, sizes.head_dim // 2)
    enter = (
        _value("noisy", "B", *latent),
        _value("timestep", "B"),
        _value("rope_time", "B", 2, sizes.rope_pairs[0]),
    )
    through = (
        x,
        modulation,
        rope,
        Binding("write_index", "write_index", "int64", ("B",)),
        _value("mask", "B", 1, 1, window * tokens),
        _value("prompt_k", "B", heads, sizes.text_length, sizes.head_dim),
        _value("prompt_v", "B", heads, sizes.text_length, sizes.head_dim),
    )
    rings = tuple(
        StateBinding(name, f"{name}_next", "alias", "float32", ring)
        for name in ("k_ring", "v_ring")
    )
    after = Binding("x_next", "x", "float32", x.shape)
    velocity = _value("velocity", "B", *latent)
    leave = (x, head_modulation)
    return (
        _unit("dit_in", "dit_in", 0, dit.dit_in, enter, (x, modulation, head_modulation, rope)),
        *(
            _unit(f"block_{index}", "block", index, module, through, (after,), rings)
            for index, module in enumerate(dit.block)
        ),
        _unit("dit_out", "dit_out", 0, dit.dit_out, leave, (velocity,)),
    )


def _vae_units(
    kind: UnitKind, pieces: Sequence[Piece], budget: float, height: int, width: int
) -> tuple[UnitSpec, ...]:
    """One unit per run of pieces, each with a graph per phase."""
    runs = cut_by_flop(pieces, budget, height, width)
    ends = {"encode": ("pixels", "latent"), "decode": ("clean", "restyled")}[kind]
    names = (ends[0], *(f"{kind}_x{index}" for index in range(1, len(runs))), ends[1])
    units = []
    for index, run in enumerate(runs):
        phases: dict[str, PhaseSpec] = {}
        for phase in _PHASES:
            module = PieceRun(run, phase)
            state = tuple(
                StateBinding(name, f"{name}_next", "ping-pong", "float32", shape)
                for name, shape in module.state_specs(height, width)
            )
            phases[phase] = _phase(
                module,
                (_value(names[index], *module.input_shape(height, width)),),
                (_value(names[index + 1], *module.output_shape(height, width)),),
                state,
            )
        name = f"{kind}_{index}"
        units.append(UnitSpec(name, kind, index, name, phases))
    return tuple(units)


_PHASES: tuple[Phase, ...] = ("first", "step")


def _value(name: str, *shape: Dimension) -> Binding:
    return Binding(name, name, "float32", shape)


def _unit(
    name: str,
    kind: UnitKind,
    index: int,
    module: nn.Module,
    inputs: tuple[Binding, ...],
    outputs: tuple[Binding, ...],
    state: tuple[StateBinding, ...] = (),
) -> UnitSpec:
    return UnitSpec(name, kind, index, kind, {"step": _phase(module, inputs, outputs, state)})


def _phase(
    module: nn.Module,
    inputs: tuple[Binding, ...],
    outputs: tuple[Binding, ...],
    state: tuple[StateBinding, ...],
) -> PhaseSpec:
    spec = PhaseSpec(module, inputs, outputs, state, 0, 0)
    traffic = sum(_bytes_of(b) for b in (*inputs, *outputs)) + 2 * sum(_bytes_of(s) for s in state)
    traffic += sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())
    return PhaseSpec(module, inputs, outputs, state, _flop(spec), traffic)


def _flop(spec: PhaseSpec) -> int:
    tensors = {**dict(spec.module.named_parameters()), **dict(spec.module.named_buffers())}
    weights = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(spec.module, weights, spec.arguments(1, "meta"))
    return int(counter.get_total_flops())


def _bytes_of(value: Binding | StateBinding) -> int:
    size = torch.empty((), dtype=getattr(torch, value.dtype)).element_size()
    return math.prod(concrete(value.shape, 1)) * size
