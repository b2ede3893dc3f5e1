"""Writes the cost files in `python/rt/costs`: what published measurements and models of GPUs say of
one chunk, as units. None of it was measured by this project.

    python -m bench.published_costs

A chunk's time is enc + dec + c + m n for n steps in one batch. `fitted`: those four solved for from
the frame rates that the StreamDiffusionV2 paper publishes (figures 9 and 11). `modelled`: work over
peak rates at assumed shares (GEMM 58 %, attention 50 %, convolution 45 %, 85 % of bandwidth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from rt import costfile
from rt.cost import SCHEMA, ChainKind, Costs, Handover, Origin, Timing, UnitCost

FOLDER = Path(__file__).parents[1] / "python" / "rt" / "costs"
CV = 0.03
"""Spread of a pass that the tables of the simulation assume; nothing published says it."""

LEVELS = ((0.05, 1), (0.21, 2), (0.39, 4), (0.35, 4))
"""Share of the decoder's work at each level of resolution, and units it is cut into."""


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of the DiT at one picture size: blocks, bytes per block, per row, per hand-over."""

    name: str
    blocks: int
    weights: int
    ring: int
    handed: int
    height: int
    width: int


SMALL_480 = Model("wan-1.3b 480x832", 30, 94_600_000, 57_700_000, 4_990_000, 480, 832)
SMALL_512 = Model("wan-1.3b 512x512", 30, 94_600_000, 37_900_000, 3_280_000, 512, 512)
LARGE_480 = Model("wan-14b 480x832", 40, 714_400_000, 191_800_000, 16_000_000, 480, 832)


@dataclass(frozen=True, slots=True)
class Chip:
    """A GPU: memory, and the way to its neighbour."""

    name: str
    memory: int
    handover: Handover


H100 = Chip("NVIDIA H100 80GB", 80_000_000_000, Handover(0.02, 400.0))
H200 = Chip("NVIDIA H200", 141_000_000_000, Handover(0.02, 400.0))
RTX_4090 = Chip("NVIDIA RTX 4090", 24_000_000_000, Handover(0.05, 12.0))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, costs in files().items():
        costfile.write(costs, FOLDER / f"{name}.json")
        total = sum(u.timings[0].p50_ms for u in costs.units)
        print(f"{name}: {costs.origin}, {total:.1f} ms for a chunk of one step")


def files() -> dict[str, Costs]:
    """Name -> costs, of every file that is shipped."""
    paper, model = "fit of the rates published in arXiv 2511.07399", "shape-aware model, assumed"
    fitted: list[tuple[str, Chip, Model, tuple[float, float, float, float]]] = [
        ("h100-wan-1.3b-480p-published", H100, SMALL_480, (52.0, 88.0, 26.6, 30.7)),
        ("h100-wan-1.3b-512-published", H100, SMALL_512, (36.4, 60.0, 38.5, 17.8)),
        ("h100-wan-14b-480p-published", H100, LARGE_480, (52.0, 88.0, 28.0, 148.0)),
        ("rtx4090-wan-1.3b-480p-published", RTX_4090, SMALL_480, (140.0, 237.0, 5.0, 83.0)),
    ]
    modelled: list[tuple[str, Chip, Model, tuple[float, float, float, float]]] = [
        ("h100-wan-1.3b-480p-modelled", H100, SMALL_480, (18.2, 30.6, 0.4, 13.3)),
        ("h200-wan-1.3b-480p-modelled", H200, SMALL_480, (18.2, 30.6, 0.4, 13.3)),
        ("h200-wan-14b-480p-modelled", H200, LARGE_480, (18.2, 30.6, 0.0, 93.5)),
    ]
    return {
        **{name: _whole("fitted", paper, c, m, ms) for name, c, m, ms in fitted},
        **{name: _cut("modelled", model, c, m, ms) for name, c, m, ms in modelled},
    }


def _whole(
    origin: Origin, source: str, chip: Chip, model: Model, ms: tuple[float, float, float, float]
) -> Costs:
    """The VAE in one piece at either end, as in the published runs."""
    encode = [_vae("encode_0", "encode", ms[0], 3.0e9, _latent(model))]
    decode = [_vae("decode_0", "decode", ms[1], 3.0e9, 0)]
    return _costs(origin, source, chip, model, encode, _dit(model, *ms[2:]), decode)


def _cut(
    origin: Origin, source: str, chip: Chip, model: Model, ms: tuple[float, float, float, float]
) -> Costs:
    """The VAE cut at levels and residual blocks, the encoder as the decoder's mirror."""
    pieces = [(share / n, level) for level, (share, n) in enumerate(LEVELS) for _ in range(n)]
    handed = [_crossing(model, level) for _, level in pieces[1:]]
    decode = [
        _vae(f"decode_{i}", "decode", ms[1] * share, 3.0e9 * share, out)
        for i, ((share, _), out) in enumerate(zip(pieces, [*handed, 0], strict=True))
    ]
    encode = [
        _vae(f"encode_{i}", "encode", ms[0] * share, 3.0e9 * share, out)
        for i, ((share, _), out) in enumerate(
            zip(reversed(pieces), [*reversed(handed), _latent(model)], strict=True)
        )
    ]
    return _costs(origin, source, chip, model, encode, _dit(model, *ms[2:]), decode)


def _vae(name: str, kind: ChainKind, ms: float, state: float, handed: int) -> UnitCost:
    """Caches are 3 GB a session for both halves, twice because they ping-pong."""
    return UnitCost(name, kind, (_timing(1, ms),), 127_000_000, round(state), handed)


def _dit(model: Model, c: float, m: float) -> list[UnitCost]:
    """c + m b spread over the blocks; input and output together are a hundredth of one."""
    share = 1 / (model.blocks + 0.01)

    def unit(name: str, kind: ChainKind, part: float) -> UnitCost:
        block = kind == "block"
        times = tuple(_timing(b, (c + m * b) * part * share) for b in (1, 2, 3, 4))
        weights, ring = (model.weights, model.ring) if block else (10_000_000, 0)
        handed = _latent(model) if kind == "dit_out" else model.handed
        return UnitCost(name, kind, times, weights, ring, handed)

    blocks = [unit(f"block_{i}", "block", 1.0) for i in range(model.blocks)]
    return [unit("dit_in", "dit_in", 0.005), *blocks, unit("dit_out", "dit_out", 0.005)]


def _timing(batch: int, ms: float) -> Timing:
    p99 = ms * (1 + CV * NormalDist().inv_cdf(0.99))
    return Timing(batch, round(ms, 5), round(p99, 5))


def _latent(model: Model) -> int:
    return 2 * 16 * (model.height // 8) * (model.width // 8)


def _crossing(model: Model, level: int) -> int:
    """bf16 activations between units of a level: frames x height x width x channels."""
    frames, scale, channels = ((1, 8, 384), (2, 4, 384), (4, 2, 192), (4, 1, 96))[level]
    return 2 * frames * (model.height // scale) * (model.width // scale) * channels


def _costs(
    origin: Origin,
    source: str,
    chip: Chip,
    model: Model,
    encode: Sequence[UnitCost],
    dit: Sequence[UnitCost],
    decode: Sequence[UnitCost],
) -> Costs:
    spread = [1 + CV * NormalDist().inv_cdf((i + 0.5) / 100) for i in range(100)]
    return Costs(
        schema=SCHEMA,
        origin=origin,
        source=source,
        device=chip.name,
        engines="",
        model=model.name,
        frames_per_chunk=4,
        max_batch=4,
        memory_bytes=chip.memory,
        handover=chip.handover,
        spread=tuple(round(ratio, 4) for ratio in spread),
        units=(*encode, *dit, *decode),
    )


if __name__ == "__main__":
    main()
