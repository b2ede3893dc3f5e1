"""`python -m rt.plan`: what a number of devices would reach, by simulation: placement, frame rate,
latency, misses, and how many sessions fit, for every device that is added.

It touches no engine and no device. Every number is said to be simulated, and what its costs are:
measured, fitted or modelled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import costfile, devices
from . import manifest as manifests
from .command import command, ended, whole
from .cost import Costs
from .errors import ConfigError
from .placement import Placement, place
from .plot import ENDINGS, Panel, check_plot, write_panels
from .scheduler import Terms
from .simulate import Machine, Run, Stream, quantile, saturated_fps, simulate

UTILISATION = 0.85
"""Of the bottleneck, at most, for a session to be admitted (DESIGN section 6)."""

Lines = Mapping[str, Sequence[tuple[float, float]]]

MISSED = 0.01
"""Share of frames that may miss their SLO where sessions are said to fit."""

SHIPPED = Path(__file__).parent / "costs"


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the devices."""

    fps: float
    slo_ms: float
    sessions: int
    steps: int
    seconds: float
    seed: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What `gpus` devices reach. `units` and `busy_ms` per chunk are of each stage, in order.

    `capacity_fps`: saturated, all sessions together. Latency in ms from capture to the end of the
    chain, before frames are paced. `miss_share`: frames late or never emitted, of those that came.
    `fit`: sessions like these that miss at most MISSED at a utilisation of at most UTILISATION.
    """

    gpus: int
    units: tuple[str, ...]
    busy_ms: tuple[float, ...]
    memory_bytes: tuple[int, ...]
    capacity_fps: float
    p50_ms: float
    p99_ms: float
    miss_share: float
    utilisation: float
    fit: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    return ended(lambda: run(parser().parse_args(arguments)), "nothing was written")


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = command("python -m rt.plan", "Simulate what a number of devices would reach.")
    shown = "(default: %(default)s)"
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--engines", type=Path, metavar="DIR", help="costs of this machine, as rt.calibrate wrote"
    )
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.json")))
    source.add_argument("--costs", metavar="FILE", help=f"a cost file, or one of: {names}")
    for name, kind, default, text in (
        ("--gpus", int, 4, "devices at most; all numbers from 1 are shown"),
        ("--fps", float, 16.0, "frames per second of each session"),
        ("--slo-ms", float, 500.0, "latency budget of a frame"),
        ("--sessions", int, 1, "sessions at once"),
        ("--steps", int, 2, "denoising steps"),
        ("--seconds", float, 60.0, "simulated time"),
        ("--seed", int, 0, "of service times and phases"),
    ):
        p.add_argument(name, type=kind, default=default, metavar="N", help=f"{text} {shown}")
    p.add_argument("--plot", type=Path, metavar="FILE", help=f"picture: {', '.join(ENDINGS)}")
    p.add_argument("--report", type=Path, metavar="FILE", help="the numbers as JSON")
    return p


def run(options: argparse.Namespace) -> int:
    """Check, simulate, print, plot."""
    for name in ("gpus", "fps", "slo_ms", "sessions", "steps", "seconds"):
        value = getattr(options, name)
        if not 0 < value < 1e6:
            flag = name.replace("_", "-")
            raise ConfigError(f"{flag}: got {value}, expected above 0 and below a million")
    if options.plot is not None:
        check_plot(options.plot)
    costs = _costs(options)
    load = Load(
        options.fps,
        options.slo_ms,
        options.sessions,
        options.steps,
        options.seconds,
        options.seed,
    )
    place([costs] * options.gpus, load.steps, load.sessions)  # Refused before anything takes time.
    outlooks = [
        outlook(costs, g, load) for g in range(1, options.gpus + 1) if _room(costs, g, load)
    ]
    _show(costs, load, outlooks)
    if options.report is not None:
        rows = [dataclasses.asdict(o) for o in outlooks]
        about = {"device": costs.device, "model": costs.model, "costs": costs.origin}
        text = json.dumps({**about, "load": dataclasses.asdict(load), "outlooks": rows}, indent=1)
        with whole(options.report, "the report") as part:
            part.write_text(text + "\n")
    if options.plot is not None:
        write_panels(options.plot, panels(load, outlooks))
    return 0


def _costs(options: argparse.Namespace) -> Costs:
    if options.engines is not None:
        manifest = manifests.read(options.engines)
        return costfile.of(manifest, options.engines, devices.resolve("auto")[0])
    shipped = SHIPPED / f"{options.costs}.json"
    return costfile.read(shipped if shipped.is_file() else Path(options.costs))


def _room(costs: Costs, gpus: int, load: Load) -> bool:
    """Whether so many devices hold the weights and the state of all sessions."""
    try:
        place([costs] * gpus, load.steps, load.sessions)
    except ConfigError:
        return False
    return True


def outlook(costs: Costs, gpus: int, load: Load) -> Outlook:
    """What this many devices of one kind reach under a load."""
    placement = place([costs] * gpus, load.steps, load.sessions)
    machine = Machine.of([costs] * gpus, placement, load.steps)
    live = simulate(machine, streams(load, load.sessions, costs), seed=load.seed)
    latencies = frame_ms(live)
    return Outlook(
        gpus,
        tuple(_names(costs, r) for r in placement.ranges),
        placement.busy_ms,
        placement.memory_bytes,
        capacity_fps(machine, load),
        quantile(latencies, 0.5),
        quantile(latencies, 0.99),
        miss_share(live, load.slo_ms),
        max(live.utilisation(stage) for stage in range(gpus)),
        fit(costs, gpus, load, placement),
    )


def streams(load: Load, sessions: int, costs: Costs) -> list[Stream]:
    """Sessions that begin at random within the time of a chunk."""
    rng = random.Random(load.seed)
    terms = Terms(load.steps, load.steps, fps=load.fps, latency_ns=round(load.slo_ms * 1e6))
    frames = max(2, round(load.seconds * load.fps))
    period_s = costs.frames_per_chunk / load.fps
    return [Stream(load.fps, frames, terms, rng.uniform(0, period_s)) for _ in range(sessions)]


def frame_ms(run: Run) -> list[float]:
    """Latency of every frame that left, from its own capture."""
    return [(c.done_ns - t) * 1e-6 for c in run.done() if c.done_ns for t in c.captured_ns]


def miss_share(run: Run, slo_ms: float) -> float:
    """Frames that came late or never, of all that came."""
    offered = sum(len(c.captured_ns) for session in run.chunks for c in session)
    return 1 - sum(ms <= slo_ms for ms in frame_ms(run)) / offered


def capacity_fps(machine: Machine, load: Load) -> float:
    """Frames per second of all sessions together when their sources never pause."""
    chunks = max(200, 2000 // load.sessions)
    full = Stream(1e6, 1 + machine.frames_per_chunk * chunks, Terms(load.steps, load.steps))
    run = simulate(machine, [full] * load.sessions, seed=load.seed)
    return saturated_fps(run, machine.frames_per_chunk)


def fit(costs: Costs, gpus: int, load: Load, placement: Placement) -> int:
    """Most sessions like these that hold their SLO, utilisation and memory within bounds.

    The bound by utilisation is where the search begins; misses only grow with sessions.
    """
    per_session = placement.slowest_ms * load.fps / costs.frames_per_chunk * 1e-3
    for sessions in range(int(UTILISATION / per_session), 0, -1):
        if not _room(costs, gpus, dataclasses.replace(load, sessions=sessions)):
            continue
        placed = place([costs] * gpus, load.steps, sessions)
        machine = Machine.of([costs] * gpus, placed, load.steps)
        run = simulate(machine, streams(load, sessions, costs), seed=load.seed)
        if miss_share(run, load.slo_ms) <= MISSED:
            return sessions
    return 0


def _names(costs: Costs, units: range) -> str:
    """Units of a stage in few words: `encode_0 dit_in block_0-12`."""
    words: list[str] = []
    for kind in dict.fromkeys(costs.units[u].kind for u in units):
        names = [costs.units[u].name for u in units if costs.units[u].kind == kind]
        last = names[-1].rsplit("_", 1)[-1]
        words.append(names[0] if len(names) == 1 else f"{names[0]}-{last}")
    return " ".join(words)


def _show(costs: Costs, load: Load, outlooks: Sequence[Outlook]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(
        f"Simulated, with {costs.origin} costs ({costs.source}).\n{costs.model} on "
        f"{costs.device}: {load.sessions} x {load.fps:g} fps, {load.steps} steps, SLO "
        f"{load.slo_ms:g} ms."
    )
    table = Table()
    for heading in ("devices", "capacity, fps", "p50 / p99, ms", "misses", "busiest", "fit"):
        table.add_column(heading, justify="right")
    for o in outlooks:
        table.add_row(
            str(o.gpus),
            f"{o.capacity_fps:.1f}",
            f"{o.p50_ms:.0f} / {o.p99_ms:.0f}",
            f"{o.miss_share:.1%}",
            f"{o.utilisation:.0%}",
            str(o.fit),
        )
    console.print(table)
    if outlooks[0].gpus > 1:
        console.print(f"On fewer than {outlooks[0].gpus} devices there is no room in memory.")
    last = outlooks[-1]
    stages = Table(title=f"placement on {last.gpus}")
    for heading in ("stage", "units", "ms per chunk", "memory, GB"):
        stages.add_column(heading)
    for stage, names in enumerate(last.units):
        busy, memory = last.busy_ms[stage], last.memory_bytes[stage]
        stages.add_row(str(stage), names, f"{busy:.1f}", f"{memory / 1e9:.2f}")
    console.print(stages)


def panels(load: Load, outlooks: Sequence[Outlook]) -> list[Panel]:
    """Frame rate, latency, sessions that fit and the stages' loads, over the number of devices."""
    by = {
        name: [(o.gpus, float(getattr(o, name))) for o in outlooks]
        for name in ("capacity_fps", "p50_ms", "p99_ms", "fit")
    }
    alone = outlooks[0].capacity_fps / outlooks[0].gpus
    ideal = [(o.gpus, alone * o.gpus) for o in outlooks]
    stages = {
        f"stage {stage}": [(o.gpus, o.busy_ms[stage]) for o in outlooks if stage < o.gpus]
        for stage in range(outlooks[-1].gpus)
    }
    asked = {"asked": load.fps * load.sessions}
    rates = {"capacity": by["capacity_fps"], "in proportion": ideal}
    latency = {"p50": by["p50_ms"], "p99": by["p99_ms"]}
    limit = {"SLO": load.slo_ms}

    def panel(
        title: str, upwards: str, lines: Lines, limits: Mapping[str, float], **how: bool
    ) -> Panel:
        return Panel(title, "devices", upwards, lines, limits, whole=True, **how)

    return [
        panel("Frame rate (simulated)", "frames/s", rates, asked),
        panel("Latency (simulated)", "ms from capture", latency, limit, logarithmic=True),
        panel("Sessions that fit (simulated)", "sessions", {"fit": by["fit"]}, {}),
        panel("Work of a chunk", "ms per stage", stages, {}, stacked=True),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
