"""Everything that is measured on a GPU, section by section; what is known already is not repeated.

python -m bench.gpu [--quick] [--dry-run] [--only SECTION ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.gpu import compare, machine
from bench.gpu.plan import QUICK_S, SECTION_S, Section, missing
from bench.gpu.record import Row, Rows, failed
from bench.gpu.sections import everything, results_of, take

RESULTS = machine.ROOT / "bench" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all is answered, 1 no GPU or something broke, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    names = machine.gpu_names()
    if not names and not options.dry_run:
        print("bench.gpu: this machine has no NVIDIA GPU that nvidia-smi can list")
        return 1
    rows = Rows(results_of(options.results, names[0] if names else "no GPU"))
    facts = machine.facts()
    key = machine.key_of(facts)
    sections = everything(rows)
    wanted = ["quick"] if options.quick else options.only or [s.name for s in sections]
    if strange := set(wanted) - {s.name for s in sections}:
        print(f"bench.gpu: no section {sorted(strange)}; there are {[s.name for s in sections]}")
        return 2
    sections = tuple(s for s in sections if s.name in wanted)
    if options.worker:
        return min(1, sum(take(section, rows, key, facts) for section in sections))
    answered = {m.name for s in sections for m in s.measures if rows.answered(m.name, key)}
    if options.dry_run:
        _print_plan(sections, answered, rows.path)
        return 0
    for name, value in facts.items():
        print(f"{name:<18} {value or '-'}")
    for section in missing(sections, answered):
        _run(section, options.results, rows, key, facts)
    done = Rows(rows.path)
    compare.print_all(done.newest(), Console(width=160))
    left = [m.name for s in sections for m in s.measures if not done.answered(m.name, key)]
    print(f"written to {rows.path}")
    if left:
        print(f"{len(left)} measures are left or broke ({', '.join(left)}); run this again")
    return 1 if left else 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Prepare, check and measure on the first GPU of this machine.",
    )
    p.add_argument("--quick", action="store_true", help=f"only the first section, {QUICK_S} s")
    p.add_argument("--dry-run", action="store_true", help="print what would run, run nothing")
    p.add_argument("--only", nargs="+", metavar="SECTION", help="these sections")
    p.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return p


def _run(section: Section, results: Path, rows: Rows, key: str, facts: dict[str, str]) -> None:
    """A section in a process of its own, so that what it breaks or keeps ends with it."""
    print(
        f"{section.name}: {len(section.measures)} measures, about {section.seconds} s", flush=True
    )
    words = ("--worker", "--only", section.name, "--results", str(results))
    limit = QUICK_S if section.name == "quick" else SECTION_S
    try:
        subprocess.run([sys.executable, "-m", "bench.gpu", *words], timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        written = Rows(rows.path)
        late = next((m for m in section.measures if not written.answered(m.name, key)), None)
        if late is not None:
            reading = failed(late.name, f"the section was stopped after {limit} s")
            rows.append([Row(section.name, late.name, key, reading, facts)])


def _print_plan(sections: Sequence[Section], answered: set[str], path: Path) -> None:
    for section in sections:
        print(f"{section.name} ({section.seconds} s)")
        for measure in section.measures:
            state = "done" if measure.name in answered else "to do"
            print(f"  [{state}] {measure.name}: {measure.what} ({measure.seconds} s)")
    print(f"rows: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
