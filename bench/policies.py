"""Continuous step batching against gated stream batching, simulated at the published costs: writes
the tables of docs/scaling.md and the picture beside them.

    python -m bench.policies
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench.published_costs import files
from rt.cost import Costs
from rt.gated import Gated
from rt.placement import place
from rt.plot import Panel, write_panels
from rt.scheduler import Terms
from rt.simulate import Machine, Stream, compute_ms, quantile, saturated_fps, simulate

DOCS = Path(__file__).parents[1] / "docs"
WARM = 20
"""Chunks at the beginning of a session that are not counted."""

PUBLISHED = {
    "h100-wan-1.3b-480p-published": {1: (20.5, 18.0, 15.7, 14.0), 4: (44.4, 43.4, 43.1, 42.3)},
    "h100-wan-1.3b-512-published": {1: (26.2, 24.0, 21.5, 19.4), 4: (64.5, 64.0, 62.4, 61.6)},
    "h100-wan-14b-480p-published": {1: (12.7, 8.6, 6.5, 5.3), 4: (39.2, 33.4, 25.0, 20.1)},
    "rtx4090-wan-1.3b-480p-published": {1: (8.6, 7.4, 6.3, 5.6), 4: (16.6, 16.4, 16.0, 15.7)},
}
"""FPS at 1, 2, 3, 4 steps by number of GPUs: arXiv 2511.07399, figures 9 and 11."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy on one machine. Latencies of a chunk in ms from its last frame: (p50, p99) by
    fps, None where the input is faster than what can be done.
    """

    fps: float
    latency: dict[int, tuple[float, float] | None]


def outcome(machine: Machine, steps: int, *, gated: bool) -> Outcome:
    """Saturated frame rate, and latency at 16 and 30 fps."""

    def policy() -> Gated | None:
        return Gated(machine.routes, steps, machine.stages) if gated else None

    full = simulate(machine, [Stream(1e6, 4001, Terms(steps))], policy=policy())
    fps = saturated_fps(full, machine.frames_per_chunk)
    latency: dict[int, tuple[float, float] | None] = {}
    for rate in (16, 30):
        run = simulate(machine, [Stream(rate, 2401, Terms(steps))], policy=policy())
        ms = compute_ms(run, WARM)
        latency[rate] = (quantile(ms, 0.5), quantile(ms, 0.99)) if rate < 0.99 * fps else None
    return Outcome(fps, latency)


def machine_of(costs: Costs, gpus: int, steps: int) -> Machine:
    """The best placement; memory does not count, because the question is the policy's."""
    return Machine.of([costs] * gpus, place([costs] * gpus, steps), steps)


def policies(costs: Costs) -> dict[tuple[int, int], tuple[Outcome, Outcome]]:
    """(steps, GPUs) -> (gated, continuous)."""
    found = {}
    for steps in (1, 2, 4):
        for gpus in (1, 2, 3, 4):
            m = machine_of(costs, gpus, steps)
            found[steps, gpus] = outcome(m, steps, gated=True), outcome(m, steps, gated=False)
    return found


def latency_table(found: dict[tuple[int, int], tuple[Outcome, Outcome]]) -> Iterator[str]:
    """p50 / p99 of both policies, in Markdown."""
    rates = (f"{name}, {rate} fps" for rate in (16, 30) for name in ("gated", "continuous"))
    yield "| steps | GPUs | " + " | ".join(rates) + " |"
    yield "|---|---|---|---|---|---|"
    for (steps, gpus), both in found.items():
        cells = [_cell(o.latency[rate]) for rate in (16, 30) for o in both]
        yield f"| {steps} | {gpus} | {' | '.join(cells)} |"


def rate_table(found: dict[tuple[int, int], tuple[Outcome, Outcome]]) -> Iterator[str]:
    """Saturated frames per second: gated / continuous."""
    yield "| steps | 1 GPU | 2 GPUs | 3 GPUs | 4 GPUs |"
    yield "|---|---|---|---|---|"
    for steps in (1, 2, 4):
        cells = [found[steps, gpus] for gpus in (1, 2, 3, 4)]
        words = " | ".join(f"{gated.fps:.1f} / {ours.fps:.1f}" for gated, ours in cells)
        yield f"| {steps} | {words} |"


def check_table() -> Iterator[str]:
    """What the fits and the gated policy give against what was published."""
    yield "| costs | GPUs | published, 1/2/3/4 steps | simulated | mean error |"
    yield "|---|---|---|---|---|"
    for name, by_gpus in PUBLISHED.items():
        for gpus, published in by_gpus.items():
            costs = files()[name]
            rates = [outcome(machine_of(costs, gpus, n), n, gated=True).fps for n in (1, 2, 3, 4)]
            error = fmean(abs(a / b - 1) for a, b in zip(rates, published, strict=True))
            told = " / ".join(f"{x:.1f}" for x in published)
            ours = " / ".join(f"{x:.1f}" for x in rates)
            yield f"| {name} | {gpus} | {told} | {ours} | {error:.1%} |"


def _cell(latency: tuple[float, float] | None) -> str:
    return "overloaded" if latency is None else f"{latency[0]:.0f} / {latency[1]:.0f}"


def replace_section(path: Path, name: str, lines: Iterator[str]) -> None:
    """Put lines between the two marks of a section of a document."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
    body = "\n".join(lines)
    text, count = re.subn(
        pattern, lambda m: f"{m[1]}{body}\n{m[2]}", path.read_text(), flags=re.DOTALL
    )
    assert count == 1, name
    path.write_text(text)


def panels(found: dict[tuple[int, int], tuple[Outcome, Outcome]]) -> list[Panel]:
    """Latency at 16 and 30 fps and saturated rate, over GPUs."""

    def points(steps: int, which: int, rate: int) -> list[tuple[float, float]]:
        pairs = ((gpus, found[steps, gpus][which].latency[rate]) for gpus in (1, 2, 3, 4))
        return [(float(gpus), latency[0]) for gpus, latency in pairs if latency is not None]

    names = ("gated", "continuous")
    made = [
        Panel(
            f"Latency at {rate} fps (simulated)",
            "H100",
            "ms, p50, from the chunk's last frame",
            {
                f"{name}, {steps} steps": points(steps, which, rate)
                for steps in (2, 4)
                for which, name in enumerate(names)
            },
            logarithmic=True,
            whole=True,
        )
        for rate in (16, 30)
    ]
    rates = {
        f"{name}, {steps} steps": [(float(g), found[steps, g][which].fps) for g in (1, 2, 3, 4)]
        for steps in (1, 4)
        for which, name in enumerate(names)
    }
    return [*made, Panel("Saturated (simulated)", "H100", "frames/s", rates, whole=True)]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--docs", type=Path, default=DOCS)
    folder = p.parse_args().docs
    found = policies(files()["h100-wan-1.3b-480p-published"])
    for name, lines in (
        ("latency", latency_table(found)),
        ("rates", rate_table(found)),
        ("check", check_table()),
    ):
        replace_section(folder / "scaling.md", name, lines)
    write_panels(folder / "scaling.png", panels(found), columns=3)


if __name__ == "__main__":
    main()
