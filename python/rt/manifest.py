"""The contract between exporter and runtime: the records of `manifest.json`, read, checked and
written here.

A directory that does not match its manifest never loads; what differs is named. The manifest is
immutable once written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import EngineMismatch, EngineMissing

SCHEMA = 3
FILE_NAME = "manifest.json"
DIGEST_NAME = "manifest.sha256"
_SOURCES = Path(__file__).resolve().parents[2]
"""Where these sources lie. A repository of them keeps engines/tiny."""

Dimension = int | Literal["B"]
UnitKind = Literal[
    "text", "prompt_in", "prompt_kv", "encode", "dit_in", "block", "dit_out", "decode"
]
DIT_KINDS: tuple[UnitKind, ...] = ("dit_in", "block", "dit_out")
"""The units of a denoising step, which run on rows; the others run on a session."""
StateMode = Literal["alias", "ping-pong"]


@dataclass(frozen=True, slots=True)
class Binding:
    """One input or output of a plan. `name` is the engine's binding, `tensor` the value of the
    chain that it carries.

    A dimension "B" is the number of rows in the batch. `tensor` of an output is what later units
    read.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class StateBinding:
    """What a seat keeps between chunks: an input and an output binding of equal dtype and shape.

    mode "alias": one buffer bound to both, updated in place (rings; shape starts with "B", one
    entry per row). mode "ping-pong": two buffers that swap after each run (feature caches of the
    VAE). Both start as zeros.
    """

    input: str
    output: str
    mode: StateMode
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """One executable of a unit: a file, its hash, what flows through it, and its work per row."""

    file: str
    sha256: str
    graph_sha256: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    state: tuple[StateBinding, ...]
    flop: int
    bytes: int
    tolerance: float


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of the model that is its own engine. `plans` has "step", and "first" too
    for VAE units.

    `index` is the block number for kinds "block" and "prompt_kv", else the position among units of
    its kind.
    """

    name: str
    kind: UnitKind
    index: int
    plans: Mapping[str, Plan]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes in pixels, latent cells and tokens. `height` and `width` are multiples of 16."""

    height: int
    width: int
    latent_channels: int
    latent_height: int
    latent_width: int
    frames_per_chunk: int
    tokens_per_frame: int


@dataclass(frozen=True, slots=True)
class Latents:
    """Statistics per channel between the VAE's own z and the latents of the DiT, as they are inside
    the plans: latent = (z - mean) / std where `encode`, z = clean * std + mean where `decode`.
    Empty for a VAE that has none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    encode: bool
    decode: bool


@dataclass(frozen=True, slots=True)
class Attention:
    """Shape of the rings and the rotary embedding. `rope_time_pairs` leading complex pairs of a
    head rotate with time.
    """

    blocks: int
    heads: int
    head_dim: int
    rope_time_pairs: int
    rope_theta: float


@dataclass(frozen=True, slots=True)
class Window:
    """Latent frames that attention sees, of which the first `sinks` are pinned; a sink is replaced
    below `sink_threshold`.
    """

    frames: int
    sinks: int
    sink_threshold: float


@dataclass(frozen=True, slots=True)
class Noise:
    """Schedule and range of the noise, which belong to the trained weights (REFERENCE: constants of
    the Wan presets).
    """

    timesteps: tuple[int, ...]
    default_steps: int
    shift: float
    s_max: float
    s_min: float
    smoothing: float
    timestep_offset: int


@dataclass(frozen=True, slots=True)
class Text:
    """Prompt side: padded length in tokens, width of an embedding, tokenizer file (None: embeddings
    only), and the names of the only styles that the model was trained on (none: any text will do).
    """

    length: int
    width: int
    tokenizer: str | None
    tokenizer_sha256: str | None
    styles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """The file that the plans point into; every tensor is in it once."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Identity card of `engines/<name>/`. `key` hashes everything that decides whether the plans
    are valid.
    """

    schema: int
    name: str
    model: str
    exporter: str
    backend: str
    library: str
    gpu_architecture: str | None
    precision: str
    weights_sha256: str
    key: str
    max_batch: int
    geometry: Geometry
    latents: Latents
    attention: Attention
    window: Window
    noise: Noise
    text: Text
    weights: tuple[Weights, ...]
    prompt: tuple[Unit, ...]
    chain: tuple[Unit, ...]

    def rebuild_command(self, directory: Path, compute_capability: str = "") -> str:
        """The command that makes `directory` again, for the GPUs that it was made for or, like
        "8.9", another.
        """
        g, w = self.geometry, self.window
        target = ""
        if self.backend.startswith("tensorrt") and self.gpu_architecture is not None:
            gpus = self.gpu_architecture.replace("sm_", "").split(",")
            own = ",".join(f"{g[:-1]}.{g[-1]}" for g in gpus)
            target = f" --compute-capability {compute_capability or own}"
        place, out = directory.absolute(), ""
        if place.parent != Path("engines").absolute():
            out = f" --out {quote(str(directory.parent if directory.name else place.parent))}"
        return (
            f"python -m export build-engines --model {self.model} --name {quote(place.name)}{out} "
            f"--backend {self.backend} --precision {self.precision} "
            f"--height {g.height} --width {g.width} --max-batch {self.max_batch} "
            f"--window {w.frames} --sinks {w.sinks}{target}"
        )


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(directory: Path) -> Manifest:
    """Parse and type-check `directory/manifest.json`; the plans themselves are checked by
    `check_files`.

    Raises EngineMissing without one, EngineMismatch for one that cannot be read or has another
    schema.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        told = (
            "expected a folder such as engines/tiny of the repository, or one that python -m "
            "export build-engines made: name it"
        )
        raise EngineMissing(
            f"no engine at {directory} (no {FILE_NAME}); {restoring(directory, told)}"
        )
    try:
        data = json.loads(path.read_text())
        schema = data["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineMismatch(
            f"{path} is not a manifest ({error}); {restoring(directory)}"
        ) from None
    if schema != SCHEMA:
        raise EngineMismatch(
            f"{path} has schema {schema}, this version reads {SCHEMA}; {restoring(directory)}"
        )
    try:
        manifest: Manifest = decode(Manifest, data, "manifest")
    except (KeyError, TypeError, ValueError) as error:
        raise EngineMismatch(f"{path}: {error}; {restoring(directory)}") from None
    return manifest


def write(manifest: Manifest, directory: Path) -> None:
    """Write `manifest.json` and its hash. `directory` is the staging place of an atomic build."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=False)
    (directory / FILE_NAME).write_text(text + "\n")
    sign(directory)


def sign(directory: Path) -> None:
    """Write the hash of `manifest.json` beside it, as `sha256sum --check` reads it."""
    digest = sha256_of(directory / FILE_NAME)
    (directory / DIGEST_NAME).write_text(f"{digest}  {FILE_NAME}\n")


def restoring(directory: Path, otherwise: str = "build the engine again") -> str:
    """What to do about an engine that is not whole, for the end of a message: the one that the
    repository keeps is checked out again, for any other do `otherwise`.
    """
    if directory.resolve() != _SOURCES / "engines" / "tiny" or not (_SOURCES / ".git").exists():
        return otherwise
    place = "" if Path.cwd() == _SOURCES else f" -C {quote(str(_SOURCES))}"
    return f"mend it with: git{place} checkout engines/tiny"


def mending(directory: Path, compute_capability: str = "") -> str:
    """What to do about an engine that is whole but does not fit, for the end of a message: it is
    built again from its own weights.
    """
    if not (directory / FILE_NAME).is_file():
        return "build the engine again"
    return f"mend it with: {read(directory).rebuild_command(directory, compute_capability)}"


def check_files(manifest: Manifest, directory: Path) -> None:
    """Compare every file with its recorded sha256, the manifest itself included. Raises
    EngineMismatch naming the first that differs.
    """
    # What is not whole gives no weights to build it again from.
    rebuild = f"{manifest.rebuild_command(directory)} --checkpoint FOLDER"
    mend = restoring(directory, f"mend it with: {rebuild} (of the weights that it was made of)")
    signature = directory / DIGEST_NAME
    signed = signature.read_bytes() if signature.is_file() else b""
    if signed != f"{sha256_of(directory / FILE_NAME)}  {FILE_NAME}\n".encode():
        raise EngineMismatch(
            f"{directory / FILE_NAME} is not the one that {DIGEST_NAME} was written for; {mend}"
        )
    expected = [(w.file, w.sha256) for w in manifest.weights]
    expected += [
        (p.file, p.sha256) for u in (*manifest.prompt, *manifest.chain) for p in u.plans.values()
    ]
    if manifest.text.tokenizer is not None and manifest.text.tokenizer_sha256 is not None:
        expected.append((manifest.text.tokenizer, manifest.text.tokenizer_sha256))
    for name, digest in dict(expected).items():
        path = directory / name
        if not path.is_file():
            raise EngineMismatch(f"{path} is missing; {mend}")
        got = sha256_of(path)
        if got != digest:
            raise EngineMismatch(
                f"{path} has sha256 {got[:12]}, the manifest says {digest[:12]}; {mend}"
            )


def crossing(before: Sequence[Unit], after: Sequence[Unit], phase: str) -> tuple[Binding, ...]:
    """What `before` gives and `after` still needs: the values that cross a cut of the chain between
    them.
    """
    given = {b.tensor: b for unit in before for b in unit.plans[phase].outputs}
    crossed: dict[str, Binding] = {}
    made: set[str] = set()
    for unit in after:
        for binding in unit.plans[phase].inputs:
            if binding.tensor in given and binding.tensor not in made:
                crossed.setdefault(binding.tensor, binding)
        made |= {b.tensor for b in unit.plans[phase].outputs}
    return tuple(crossed.values())


def decode(kind: Any, value: Any, where: str) -> Any:
    """JSON value -> the annotated type, strictly: no missing, no unknown field, no other type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where}: got {got}, expected fields {sorted(hints)}")
        return kind(
            **{name: decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()}
        )
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: got {type(value).__name__}, expected a list")
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: got {value!r}, expected one of {arguments}")
        return value
    if origin in (Union, UnionType):
        return _decode_union(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: got {type(value).__name__}, expected an object")
        return {k: decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where}: got {value!r}, expected {kind.__name__}")
    return value


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        if kind is type(None):
            if value is None:
                return None
            continue
        try:
            return decode(kind, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where}: got {value!r}, expected one of {kinds}")
