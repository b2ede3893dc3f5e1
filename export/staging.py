"""Where a build is put together: all of it appears at once, or what is finished waits for a rerun.

Files go into `.<name>.partial` beside the target, each under another name first, so that a file
that is there is whole; the folder is renamed at the end. One build at a time may hold it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rt.errors import Error

PARTIAL = ".part"
"""Suffix of a file that is being written."""
KEY = "key"
"""File in a staging folder that says what it is for."""


@contextmanager
def staged(out: Path, name: str, key: str) -> Iterator[Path]:
    """The locked staging folder of this key; one of another key is emptied. Mends a cut rename."""
    staging, target, old = (out / part for part in (f".{name}.partial", name, f".{name}.old"))
    staging.mkdir(exist_ok=True)
    handle = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(f"another build of {target} is running; wait for it to end") from None
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(old, ignore_errors=True)
        (target / KEY).unlink(missing_ok=True)
        stamp = staging / KEY
        fresh = not stamp.is_file() or stamp.read_text() != key
        for path in list(staging.iterdir()):
            if fresh or path.suffix == PARTIAL:
                path.unlink()
        if fresh:
            write_whole(stamp, [key.encode()])
        yield staging
        if staging.exists():
            shutil.rmtree(staging)
    finally:
        os.close(handle)


def replace(staging: Path, target: Path) -> None:
    """Put the finished folder in the place of the target; a cut between is mended by `staged`."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        os.rename(target, old)
    os.rename(staging, target)
    (target / KEY).unlink()
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """A file that is either whole or absent, whenever the process or the machine stops."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.rename(partial, path)
