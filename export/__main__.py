"""`python -m export`: Ctrl-C while the libraries load is told in one line, as it is later."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from export.commands import main

        code = main()
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        code = 130
    sys.exit(code)
