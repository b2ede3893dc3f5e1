"""What an engine or a file of weights is, in lines for people: family, sizes, what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from export import checkpoints, formats, layout, lora, prompts
from export.formats import Checkpoint, State
from export.models.presets import PRESETS, DitConfig, TaehvConfig, VaeConfig
from export.models.taehv import Taehv
from rt import manifest as records
from rt.errors import CheckpointError
from rt.manifest import Manifest


def weights(path: Path) -> Iterator[str]:
    """Lines about a file, a folder of shards, or a folder of a whole release.

    Raises CheckpointError for what is no weights.
    """
    if not path.is_dir() or any(list(path.glob(name)) for name in formats.SHARDS):
        yield from _part(path)
        if not path.is_dir():
            return
    files = layout.find(path)
    latents = "as its encoder gives them" if files.raw_encode else "normalised"
    yield f"{path}: latents {latents}"
    for name, part in (("DiT", files.dit), ("VAE", files.vae), ("TAEHV", files.taehv)):
        if part is not None and part != path:
            yield from _part(part)
        elif part is None:
            yield f"{path}: no {name}"
    yield from _part(files.text) if files.text else [f"{path}: no text encoder"]
    yield f"{path}: {'tokenizer ' + str(files.tokenizer) if files.tokenizer else 'no tokenizer'}"


def _part(path: Path) -> Iterator[str]:
    """What one file, or one folder of shards, is and lacks."""
    state = formats.tensors_of(path)
    if lora.is_lora(state):
        ranks = {t.shape[0] for n, t in state.items() if "lora_A" in n or "down" in n}
        yield f"{path}: LoRA, {_size(state)}, rank {', '.join(map(str, sorted(ranks)))}"
        return
    found = formats.read(path)
    try:
        about, lacks = _about(found), "complete"
    except CheckpointError as error:
        about, lacks = "", str(error).removeprefix(f"{path}: ")
    yield f"{path}: {found.family.name}, {_size(found.state)}{about}"
    yield f"  {lacks}"


def _size(state: State) -> str:
    tensors = state.values()
    parameters = sum(tensor.numel() for tensor in tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    types = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
    return f"{len(state)} tensors, {parameters:,} parameters, {size / 1e6:.1f} MB, {types}"


def _about(found: Checkpoint) -> str:
    """Dimensions and the name of the model. Raises CheckpointError for what is not whole."""
    path, state = found.path, found.state
    if found.family.part == "dit":
        dit = checkpoints.load_dit(path)[1]
        return (
            f", width {dit.width}, {dit.blocks} blocks, {dit.heads} heads, feed-forward {dit.ffn}"
            f"{_preset(dit)}"
        )
    if found.family.part == "vae":
        width = state["encoder.conv1.weight"].shape[0]
        checkpoints.load_vae(path, VaeConfig(width=width))
        return f", width {width}"
    if found.family.part == "text":
        text = prompts.dimensions(path, state)
        checkpoints.load_text(path, text)
        return f", width {text.width}, {text.blocks} blocks, vocabulary {text.vocabulary}"
    checkpoints.load_taehv(path, _taehv(state))
    return ""


def _preset(dit: DitConfig) -> str:
    names = [name for name, config in PRESETS.items() if config.dit == dit]
    return f" ({', '.join(names)})" if names else ""


def _taehv(state: State) -> TaehvConfig:
    """The TAEHV of a preset whose first layer this is, or else the released one."""
    known = [config.vae for config in PRESETS.values() if isinstance(config.vae, TaehvConfig)]
    first = state["encoder.0.weight"].shape
    fitting = (c for c in known if Taehv(c).encoder[0].state_dict()["weight"].shape == first)
    return next(fitting, TaehvConfig())


def engine(manifest: Manifest, directory: Path) -> Iterator[str]:
    """Lines about an engine: what it is for, its files, and each graph with its bindings once."""
    geometry, window = manifest.geometry, manifest.window
    yield f"{directory}: {manifest.model}, {manifest.backend} ({manifest.library})"
    yield (
        f"  {geometry.width}x{geometry.height} pixels, {geometry.tokens_per_frame} tokens a frame, "
        f"window {window.frames}, sinks {window.sinks}, {manifest.precision}, "
        f"up to {manifest.max_batch} rows"
    )
    yield f"  exporter {manifest.exporter}, key {manifest.key[:12]}"
    for file in manifest.weights:
        yield f"  {file.file}: {file.bytes / 1e6:.1f} MB, sha256 {file.sha256[:12]}"
    shown: dict[tuple[str, str], str] = {}
    for unit in (*manifest.prompt, *manifest.chain):
        for phase, plan in unit.plans.items():
            line = f"{unit.name:<12} {phase:<5} {plan.flop / 1e6:10.1f} MFLOP"
            line += f" {plan.bytes / 1e6:9.2f} MB  graph {plan.graph_sha256[:8]}"
            first = shown.setdefault((unit.kind, plan.graph_sha256), f"{unit.name} {phase}")
            if first != f"{unit.name} {phase}":
                yield f"{line}  as {first}"
                continue
            yield line
            yield f"    in    {_shapes((b.name, b.shape) for b in plan.inputs)}"
            yield f"    out   {_shapes((b.name, b.shape) for b in plan.outputs)}"
            for state in plan.state:
                yield f"    state {_shapes([(state.input, state.shape)])} {state.mode}"


def engine_weights(manifest: Manifest, path: Path) -> Iterator[str]:
    """Lines about a file of weights of an engine: all of it, and what each unit has there. What
    several units share is with the first of them.
    """
    state = formats.tensors_of(path)
    yield f"{path}: weights of {manifest.model} for {manifest.backend}, {_size(state)}"
    for unit in (*manifest.prompt, *manifest.chain):
        own = {name: t for name, t in state.items() if name.startswith(f"{unit.name}.")}
        if own:
            yield f"  {unit.name:<12} {_size(own)}"


def _shapes(values: Iterable[tuple[str, tuple[records.Dimension, ...]]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in values)
