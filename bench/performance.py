"""docs/performance.md and its plots, from rows alone: no figure in them is typed by hand.

python -m bench.performance [--collect]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.gpu import machine
from bench.gpu.compare import Compared, compare, number
from bench.gpu.record import Row, Rows
from bench.gpu.targets import PUBLISHED, TARGETS

RESULTS = machine.ROOT / "bench" / "results"
COLLECTED = machine.ROOT / "build" / "bench"
PAGE = machine.ROOT / "docs" / "performance.md"
HEAD = """# Performance

Written by `make performance` from the rows in `bench/results/`, one JSON object a measurement.
Edit what makes the rows, not this page.
"""
NO_GPU = """**No GPU row has been measured.** There is no number of this project on a GPU, here or
elsewhere in this repository. `make gpu-quick` (2 minutes) and `make gpu` take them; this page then
shows them. Until then the column "ours" is empty.
"""

CpuRow = Mapping[str, Any]


def gpu_rows(folder: Path) -> list[Rows]:
    """Every GPU's rows."""
    return [Rows(path) for path in sorted(folder.glob("gpu-*.jsonl"))]


def cpu_rows(folder: Path) -> dict[str, list[CpuRow]]:
    """Title of a benchmark on the processor, and its kernel where it is known -> its rows."""
    paths = sorted((folder / "cpu").rglob("*.jsonl"), key=lambda path: (path.name, path.parent))
    return _tables(paths, kernels=True)


def device_rows(folder: Path) -> dict[str, list[CpuRow]]:
    """The same for the device operators (bench.ops --device)."""
    return _tables(p for p in sorted(folder.glob("*.jsonl")) if not p.name.startswith("gpu-"))


def simulated_rows(folder: Path) -> dict[str, list[CpuRow]]:
    """The same for what no device has run (bench.simulated)."""
    return _tables(sorted((folder / "simulated").glob("*.jsonl")))


def _tables(paths: Iterable[Path], kernels: bool = False) -> dict[str, list[CpuRow]]:
    found: dict[str, list[CpuRow]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            kernel = row["machine"].get("kernel", "") if kernels else ""
            title = f"{row['benchmark']} ({kernel})" if kernel else row["benchmark"]
            found.setdefault(title, []).append(row)
    return found


def page(
    gpus: Sequence[Rows],
    cpus: Mapping[str, Sequence[CpuRow]],
    plots: Sequence[str],
    operators: Mapping[str, Sequence[CpuRow]] = MappingProxyType({}),
    simulated: Mapping[str, Sequence[CpuRow]] = MappingProxyType({}),
) -> str:
    """The whole text. `plots` are the files that were drawn, `operators` the rows of a device,
    `simulated` those that none has run.
    """
    parts = [HEAD, "## On a GPU\n"]
    measured = [rows for rows in gpus if any(r.reading.value is not None for r in rows)]
    if not measured:
        parts += [*([] if operators else [NO_GPU]), *comparison(compare({}))]
    for rows in measured:
        newest = rows.newest()
        parts += [*facts(newest), *comparison(compare(newest)), *readings(newest)]
    for title, listed in operators.items():
        parts += processor(title, listed)
    parts.append("\n## On a processor\n")
    for title, listed in cpus.items():
        parts += processor(title, listed)
    if not cpus:
        parts.append("No row has been measured.\n")
    if simulated:
        parts.append("\n## Simulated: no device has run this\n")
    for title, listed in simulated.items():
        parts += processor(title, listed)
    if plots:
        parts += ["\n## Plots\n", *(f"![{name}]({name})\n" for name in plots)]
    return "\n".join(parts)


def facts(newest: Mapping[str, Row]) -> list[str]:
    """What the rows were measured with; rows of several commits are told apart."""
    row = list(newest.values())[-1]
    told = [f"{name} {value}" for name, value in row.machine.items() if value and name != "code"]
    commits = sorted({r.machine.get("commit", "") for r in newest.values()})
    return [f"{'; '.join(told)}. Commits of the rows: {', '.join(commits)}.\n"]


def comparison(found: Sequence[Compared]) -> list[str]:
    """A line for each target."""
    lines = [
        f"Published: {PUBLISHED}. Commit, moonshot and limit: {TARGETS}.\n",
        "| | unit | ours | published | commit | moonshot | limit | ours of the limit | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in found:
        t = c.target
        numbers = (c.value, t.published, t.commit, t.moonshot, t.limit, c.share)
        cells = " | ".join(number(value) for value in numbers)
        remark = (
            f" ({c.reason.replace('|', '/')})" if c.value is None and c.reason != "no row" else ""
        )
        lines.append(f"| {t.name} | {t.unit} | {cells} | {c.verdict}{remark} |")
    return [*lines, ""]


def readings(newest: Mapping[str, Row]) -> list[str]:
    """Everything that was measured, and why the rest was not."""
    lines = ["| reading | value | unit | limit | remark |", "|---|---|---|---|---|"]
    for name, row in newest.items():
        r = row.reading
        remark = r.reason.replace("|", "/")
        lines.append(f"| {name} | {number(r.value)} | {r.unit} | {number(r.limit)} | {remark} |")
    return [*lines, ""]


def processor(title: str, rows: Sequence[CpuRow]) -> list[str]:
    """One benchmark as a table, with the machine that it ran on."""
    told = ((name, value) for name, value in rows[0]["machine"].items() if value != "")
    about = "; ".join(f"{name} {value}" for name, value in told)
    lines = [
        f"### {title}\n",
        f"{about}\n",
        "| | value | unit | runs | of the limit | note |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = row["value"] / row["limit"] if row["limit"] else None
        cells = (row["name"], number(row["value"]), row["unit"], row["runs"], number(share))
        lines.append(f"| {' | '.join(map(str, cells))} | {row['note']} |")
    return [*lines, ""]


def collect(source: Path, folder: Path) -> None:
    """Take the processor's rows into the repository, those of each kernel into a folder of theirs:
    rows of another kind of processor stay beside them.
    """
    for path in sorted(source.glob("*.jsonl")):
        about = json.loads(path.read_text().splitlines()[0])["machine"]
        target = folder / "cpu" / about.get("kernel", "") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def write(folder: Path, target: Path) -> None:
    """The page and the plots beside it; plots that no row supports any more are removed."""
    from bench.plots import draw

    gpus, cpus, simulated = gpu_rows(folder), cpu_rows(folder), simulated_rows(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob("performance-*.svg"):
        old.unlink()
    plots = draw(gpus, cpus, simulated, target.parent)
    target.write_text(page(gpus, cpus, plots, device_rows(folder), simulated))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--collect", action="store_true", help=f"first copy the rows of {COLLECTED}")
    p.add_argument("--results", type=Path, default=RESULTS)
    p.add_argument("--output", type=Path, default=PAGE)
    options = p.parse_args()
    if options.collect:
        collect(COLLECTED, options.results)
    write(options.results, options.output)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
