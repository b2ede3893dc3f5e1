"""What every command line of `rt` has in common: how it parses, how it ends, how it writes.

A mistake or a failure is one line on standard error and an exit code: 0 done, 1 failed, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from .config import VERSION
from .errors import ConfigError, Error, SinkError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""

CODES = "Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for a mistake, so that it is told in one line as any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def command(name: str, description: str, codes: str = CODES) -> Parser:
    """A parser that takes no shortened options and knows `--version`."""
    p = Parser(prog=name, description=description, epilog=codes, allow_abbrev=False)
    p.add_argument("--version", action="version", version=f"streamdiffusion-rt {VERSION}")
    return p


def ended(run: Callable[[], int], interrupted: str) -> int:
    """The exit code of `run`; whatever goes wrong is told in one line on standard error."""
    try:
        return run()
    except Error as error:
        return _told(str(error), error.exit_code)
    except BrokenPipeError:  # Whoever read the table has seen enough; what was written is whole.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _told(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        print("interrupted:", interrupted, file=sys.stderr)
        return INTERRUPTED


def _told(words: str, code: int) -> int:
    print("error:", " ".join(words.splitlines()), file=sys.stderr)
    return code


@contextlib.contextmanager
def whole(path: Path, what: str) -> Iterator[Path]:
    """A place beside `path` to write to, renamed to it at the end: whole or not at all.

    Raises SinkError, with `what` for a name, where that fails.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise SinkError(
            f"{path}: {what} cannot be written ({error.strerror}); expected a place with room "
            "and the right to write: free space or choose another"
        ) from error
