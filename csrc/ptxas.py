"""What the compiler says of every kernel on every architecture: registers, and spills to memory.

python csrc/ptxas.py

Compiles all .cu files for the architectures below and prints a table. Exits with 1 when a kernel
spills that runs on every frame or on every pass, and that is all of them but those in ALLOWED.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).parent.resolve()
ARCHS = ("80", "86", "89", "90", "100", "120")
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v"]
ALLOWED: frozenset[str] = frozenset()  # kernels that may spill, with the reason beside them

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
TYPES = {"f": "f32", "6__half": "f16", "N4sdrt4Bf16E": "bf16", "NS_4Bf16E": "bf16"}


def short(symbol: str) -> str:
    """A mangled kernel name -> its own name and template arguments, for people."""
    # A name follows its length; the digits before may stick to it, so the length decides.
    for match in re.finditer(r"(?=(\d+)([a-z]\w*?_kernel))", symbol):
        if int(match[1]) == len(match[2]):
            break
    else:
        return symbol
    name, rest = match[2], symbol[match.end(2) :]
    kinds = re.match(r"I(f|6__half|NS_4Bf16E|N4sdrt4Bf16E)", rest)
    wide = re.match(r"I\w+?Li(\d+)E", rest)
    view = "Nv12View" in rest
    parts = [TYPES[kinds[1]]] if kinds else []
    parts += [wide[1]] if wide else []
    parts += ["nv12"] if view else []
    return name.removesuffix("_kernel") + (f"<{', '.join(parts)}>" if parts else "")


def report(source: Path, arch: str, folder: Path) -> str:
    target = folder / f"{source.stem}-{arch}.cubin"
    done = subprocess.run(
        ["nvcc", *FLAGS, f"-arch=sm_{arch}", "-cubin", "-I", CSRC, source, "-o", target],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{source.name} for {arch}: {done.stderr}")
    return done.stdout + done.stderr


def parse(text: str) -> dict[str, tuple[int, int]]:
    """Kernel -> (registers, bytes of spill stores and loads, also of functions that it calls)."""
    found: dict[str, tuple[int, int]] = {}
    kernel, spilled = "", 0
    for line in text.splitlines():
        if match := ENTRY.search(line):
            kernel, spilled = short(match[1]), 0
        elif match := SPILLS.search(line):
            spilled += int(match[2]) + int(match[3])
        elif (match := REGISTERS.search(line)) and kernel:
            found[kernel] = (int(match[1]), spilled)
    return found


def main() -> None:
    if shutil.which("nvcc") is None:
        sys.exit("ptxas: nvcc is not installed here, nothing was compiled")
    sources = sorted(CSRC.rglob("*.cu"))
    table: defaultdict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    jobs = [(source, arch) for source in sources for arch in ARCHS]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        for (_, arch), text in zip(jobs, pool.map(lambda j: report(*j, folder), jobs), strict=True):
            for kernel, used in parse(text).items():
                table[kernel][arch] = used
    widest = max(len(kernel) for kernel in table)
    print("registers per thread (+ bytes spilled) by compute capability")
    print(" " * widest + "".join(f"{arch:>9}" for arch in ARCHS))
    bad = []
    for kernel, row in sorted(table.items()):
        cells = [(f"{r} +{s}" if s else f"{r}") for r, s in (row[arch] for arch in ARCHS)]
        print(kernel.ljust(widest) + "".join(f"{cell:>9}" for cell in cells))
        if any(s for _, s in row.values()) and kernel not in ALLOWED:
            bad.append(kernel)
    if bad:
        sys.exit(f"spills in {', '.join(bad)}")
    print(f"{len(table)} kernels, {len(ARCHS)} architectures, no spills")


if __name__ == "__main__":
    main()
