"""The tables of docs/scaling.md that were measured on the runtime, from the rows that each program
leaves in build/bench. One that has not run here keeps its table.

    python -m bench.measured
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bench.policies import DOCS, replace_section
from bench.table import ROOT

NAMES = ("fidelity", "overload_live", "admission", "faults", "soak_live", "soak_real")


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each measurement beside its limit, and what it was measured on."""
    yield "| measurement | value | limit | of | |"
    yield "|---|---|---|---|---|"
    for row in rows:
        limit = "" if row["limit"] is None else f"{row['limit']:.4g}"
        value = f"{row['value']:.4g} {row['unit']}".strip()
        yield f"| {row['name']} | {value} | {limit} | {row['runs']} | {row['note']} |"
    about = rows[0]["machine"]
    yield ""
    kernel = f" ({about['kernel']})" if about.get("kernel") else ""
    where = f"{about['processor']}{kernel}, {about['cores']} cores"
    yield f"{where}; {about['date']}, commit {about['commit']}."


def main() -> None:
    for name in NAMES:
        path = ROOT / "build" / "bench" / f"{name}.jsonl"
        if path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            replace_section(DOCS / "scaling.md", name, lines(rows))


if __name__ == "__main__":
    main()
