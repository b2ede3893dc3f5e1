"""Builds the extension rt._C: C++ always, CUDA when nvcc is found. Nothing else is set up here.

SDRT_CUDA_ARCHS   compute capabilities, such as "90" or "80;90;120+PTX"; "none" builds C++ only.
SDRT_SANITIZE=1   host code under AddressSanitizer and UBSan, C++ only (csrc/sanitize.sh).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
DEFAULT_ARCHS = "80;86;89;90;100;120+PTX"
# Contraction to fused multiply-add is off on both sides: host and device, and every instruction set
# that the host picks at run time, then round alike.
CXX_FLAGS = [
    "-std=c++20", "-O3", "-g0", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
]  # fmt: skip
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1"]
NVCC_FLAGS = [
    "-std=c++20", "-O3", "-fmad=false", "-cudart", "static", "-Werror", "all-warnings",
    "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-ffp-contract=off",
]  # fmt: skip


def gencode(archs: str) -> list[str]:
    """nvcc's options for a list such as "80;90;120+PTX"."""
    options = []
    for arch in re.split(r"[;, ]+", archs.strip()):
        match = re.fullmatch(r"(\d+a?)(\+PTX)?", arch)
        if match is None:
            sys.exit(f'SDRT_CUDA_ARCHS: got "{arch}", expected such as "90" or "120+PTX"')
        name, ptx = match.groups()
        options.append(f"-gencode=arch=compute_{name},code=sm_{name}")
        if ptx:
            options.append(f"-gencode=arch=compute_{name},code=compute_{name}")
    return options


def cuda_home(nvcc: str) -> Path:
    """The toolkit that `nvcc` belongs to, as it says itself: the command may be a script."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    plan = subprocess.run(command, capture_output=True, text=True)
    match = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    if match is None:
        sys.exit(f"rt._C: {nvcc} does not say where its toolkit is: {plan.stderr.strip()[:200]}")
    return Path(match.group(1)).resolve()


class BuildExtension(build_ext):
    """Compiles all sources in parallel, .cu by nvcc, and links them into one extension."""

    def build_extension(self, ext: Extension) -> None:
        sanitize = os.environ.get("SDRT_SANITIZE") == "1"
        archs = os.environ.get("SDRT_CUDA_ARCHS") or DEFAULT_ARCHS
        nvcc = None if sanitize or archs == "none" else shutil.which("nvcc")
        home = cuda_home(nvcc) if nvcc else None
        sources = [ROOT / s for s in ext.sources if nvcc or not s.endswith(".cu")]
        reason = "as asked" if shutil.which("nvcc") else "nvcc not found"
        print(f"rt._C: C++ and CUDA (archs {archs})" if nvcc else f"rt._C: C++ only, {reason}")
        defines: list[tuple[str, str | None]] = [("SDRT_SANITIZE", None)] if sanitize else []
        if nvcc:
            defines.append(("SDRT_CUDA_ARCHS", f'"{archs}"'))
        cxx = CXX_FLAGS + (SANITIZE_FLAGS if sanitize else [])
        cxx += ["-isystem", str(home / "include")] if home else []
        newest_header = max(p.stat().st_mtime for p in (ROOT / "csrc").rglob("*.h"))
        folder = Path(self.build_temp) / ("cuda-" + re.sub(r"\W+", "-", archs) if nvcc else "cxx")

        def compile_one(source: Path) -> str:
            target = folder / source.relative_to(ROOT).with_suffix(source.suffix + ".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            oldest = max(source.stat().st_mtime, newest_header, Path(__file__).stat().st_mtime)
            if target.exists() and target.stat().st_mtime > oldest and not self.force:
                return str(target)
            if source.suffix == ".cu":
                assert nvcc is not None
                command = [nvcc, *NVCC_FLAGS, *gencode(archs), "-c", str(source), "-o", str(target)]
                subprocess.run([*command, "-I", str(ROOT / "csrc")], check=True)
                return str(target)
            made = self.compiler.compile(
                [str(source.relative_to(ROOT))], output_dir=str(folder), macros=defines,
                include_dirs=[str(ROOT / "csrc"), pybind11.get_include()], extra_postargs=cxx,
            )  # fmt: skip
            Path(made[0]).replace(target)
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), target_lang="c++",
            libraries=["cudart_static", "rt", "dl", "pthread"] if home else ["pthread"],
            library_dirs=[str(home / "lib64"), str(home / "lib")] if home else [],
            extra_postargs=SANITIZE_FLAGS if sanitize else ["-s"],
        )  # fmt: skip


FOUND = [*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.cu")]
SOURCES = sorted(str(p.relative_to(ROOT)) for p in FOUND)
setup(ext_modules=[Extension("rt._C", SOURCES)], cmdclass={"build_ext": BuildExtension})
