"""`python -m rt.serve`: Ctrl-C while its libraries load is told in one line, as it is later."""

from __future__ import annotations

import sys

from ..command import ended


def start() -> int:
    """The server, whose libraries take longest to load, is imported only now."""
    from .server import main

    return main()


if __name__ == "__main__":
    sys.exit(ended(start, "the server has ended"))
