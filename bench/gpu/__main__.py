"""Everything that is measured on a GPU, section by section; what is known already is not repeated.

python -m bench.gpu [--quick] [--dry-run] [--only SECTION ...] [--within SECONDS] [--any-code]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bench.gpu import compare, machine
from bench.gpu.plan import QUICK_S, Section, missing
from bench.gpu.record import Row, Rows, failed
from bench.gpu.sections import BROKE, everything, results_of, take
from bench.table import count

RESULTS = machine.ROOT / "bench" / "results"
LEAST_S = 20
"""With less time than this no process is worth its start."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all is answered, 1 no GPU or something is left, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    began = time.monotonic()
    names = machine.gpu_names()
    if not names and not options.dry_run:
        print("bench.gpu: this machine has no NVIDIA GPU that nvidia-smi can list")
        return 1
    rows = Rows(results_of(options.results, names[0] if names else "no GPU"))
    facts = machine.facts()
    key = machine.key_of(facts)
    sections = everything(rows)
    if options.worker:
        (section,) = (s for s in sections if s.name == options.only[0])
        return 0 if take(section, options.worker, rows, key, facts) else BROKE
    wanted = ["quick"] if options.quick else options.only or [s.name for s in sections]
    if strange := set(wanted) - {s.name for s in sections}:
        print(f"bench.gpu: no section {sorted(strange)}; there are {[s.name for s in sections]}")
        return 2
    counts = key.partition("-")[0] if options.any_code else key
    asked = [m.name for s in sections if s.name in wanted for m in s.measures]
    answered = {m.name for s in sections for m in s.measures if rows.answered(m.name, counts)}
    todo = missing(sections, answered, wanted)
    if options.dry_run:
        _print_plan(sections, todo, rows.path)
        return 0
    for name, value in facts.items():
        print(f"{name:<18} {value or '-'}")
    for section in todo:
        left = options.within - (time.monotonic() - began) if options.within else section.limit_s
        if left < LEAST_S:
            break
        _run(section, options.results, rows.path, key, facts, min(section.limit_s, left))
    done = Rows(rows.path)
    compare.print_all(done.newest(), Console(width=160))
    late = [name for name in asked if not done.answered(name, counts)]
    print(f"written to {rows.path}")
    if late:
        print(f"{len(late)} measures are left or broke ({', '.join(late)}); run this again")
    return 1 if late else 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Prepare, check and measure on the first GPU of this machine.",
    )
    p.add_argument("--quick", action="store_true", help=f"only the first section, {QUICK_S} s")
    p.add_argument("--dry-run", action="store_true", help="print what would run, run nothing")
    p.add_argument("--only", nargs="+", metavar="SECTION", help="these sections, and their needs")
    p.add_argument("--within", type=count, metavar="SECONDS", help="then stop and print")
    p.add_argument("--any-code", action="store_true", help="rows of other sources count as well")
    p.add_argument("--results", type=_folder, default=RESULTS, help="folder of the rows")
    p.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return p


def _folder(text: str) -> Path:
    return Path(text).resolve()


def _run(
    section: Section, results: Path, path: Path, key: str, facts: Mapping[str, str], limit_s: float
) -> None:
    """A section in a process of its own, and in another after each measure that broke: what it left
    on the GPU, or made of it, ends with its process.
    """
    print(
        f"{section.name}: {len(section.measures)} measures, about {section.seconds} s", flush=True
    )
    end = time.monotonic() + limit_s
    left = [m.name for m in section.measures]
    while left and (seconds := end - time.monotonic()) >= LEAST_S:
        before = len(list(Rows(path)))
        words = ("--only", section.name, "--results", str(results), "--worker", *left)
        why = _worker(words, seconds)
        rows = Rows(path)
        ended = {row.measure for row in list(rows)[before:] if row.last}
        left = [name for name in left if name not in ended]
        if left and (why or not ended):
            reading = failed(left[0], why or "the process ended without it")
            rows.append([Row(section.name, left.pop(0), key, reading, facts)])


def _worker(words: Collection[str], seconds: float) -> str:
    """Why it ended before its time, or ""; what it started ends with it."""
    command = [sys.executable, "-m", "bench.gpu", *words]
    with subprocess.Popen(command, cwd=machine.ROOT, process_group=0) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return "" if code in (0, BROKE) else f"the process ended with {code}"


def _print_plan(sections: Sequence[Section], todo: Sequence[Section], path: Path) -> None:
    left = {m.name for section in todo for m in section.measures}
    for section in sections:
        print(f"{section.name} ({section.seconds} s)")
        for measure in section.measures:
            state = "to do" if measure.name in left else "done"
            print(f"  [{state}] {measure.name}: {measure.what} ({measure.seconds} s)")
    print(f"rows: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
