"""All measurements, or some of them; each prints a table, writes JSON rows, and its part of the
document.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.quality import ablations, curve, drift, fit, prompts, styles
from bench.quality.clips import Clip, generated, of_file
from bench.quality.report import Section, tell
from bench.table import Parser, count
from rt import Pipeline

PARTS = ("styles", "curve", "drift", "ablations", "prompts")


def main() -> None:
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.only or PARTS:
        tell(_section(part, options), options.out, options.document)


def _section(part: str, options: argparse.Namespace) -> Section:
    pictures = options.out if options.document is None else options.document.parent
    with Pipeline.load(options.engines) as pipeline:
        size = pipeline.manifest.geometry.height
        clips: dict[str, Clip] = {}
        if options.clip is not None:
            clips[options.clip.stem] = of_file(options.clip, options.frames, size, size)
        for number in range(options.generated):
            clips[f"generated-{number}"] = generated(number, options.frames, size)
        if part == "styles":
            return styles.measure(pipeline, clips, fit.fitted(size), pictures)
        if part == "drift":
            return drift.measure(pipeline, ("comic",), options.long)
        name, first = next(iter(clips.items()))
        if part == "prompts":
            return prompts.measure(pipeline, first)
    if part == "curve":
        return curve.measure(options.engines, first, name, pictures / "quality-curve.png")
    return ablations.measure(options.engines, first, options.ablated)


def _parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m bench.quality",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--engines", type=Path, default=Path("engines/tiny"), help="engine directory")
    p.add_argument("--clip", type=Path, help="a video that was not trained on")
    p.add_argument("--frames", type=count, default=33, help="of each clip, 1 + 4 k")
    p.add_argument("--generated", type=int, default=2, help="clips of unseen seeds")
    p.add_argument("--long", type=count, default=5000, help="frames for the drift")
    p.add_argument("--ablated", type=count, default=81, help="frames of a clip for the ablations")
    p.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    p.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of rows")
    p.add_argument("--document", type=Path, help="also write into this, pictures beside it")
    return p


if __name__ == "__main__":
    main()
