"""What torch's compiler needs of CUDA where it does not look by itself: headers, and a name to link
the driver by.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home() -> Path | None:
    """Where CUDA's toolkit is, as `nvcc` says itself: the command may be a script elsewhere."""
    if (nvcc := shutil.which("nvcc")) is None:
        return None
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    match = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return Path(match[1]).resolve() if match else None


def driver(maps: Path = Path("/proc/self/maps")) -> Path | None:
    """The library of the driver that this process has loaded."""
    match = re.search(r"^.* (/.+/libcuda\.so[.\d]*)$", maps.read_text(), re.MULTILINE)
    return Path(match[1]) if match else None


@contextmanager
def found_by_torch(folder: Path) -> Iterator[None]:
    """Within it torch's compiler finds both.

    It takes the folder above the command `nvcc` for the toolkit, and links `-lcuda`: a name that
    only a toolkit with stubs or a full driver has. Here it stands in `folder`.
    """
    from torch.utils import cpp_extension

    changed, before = {}, cpp_extension.CUDA_HOME
    if "CUDA_HOME" not in os.environ and (toolkit := home()) is not None:
        changed["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(toolkit)
    if (library := driver()) is not None:
        (folder / "libcuda.so").symlink_to(library)
        paths = [str(folder), os.environ.get("LIBRARY_PATH", "")]
        changed["LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    kept = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = before
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
