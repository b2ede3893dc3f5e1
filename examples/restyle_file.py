"""A film in, a film out: `python examples/restyle_file.py in.mp4 out.mp4 "oil painting"`."""

import sys
from pathlib import Path

import rt
from rt import media


def main(source_path: str, target_path: str, prompt: str) -> None:
    with (
        media.open_source(Path(source_path)) as source,
        rt.Pipeline.load("engines/tiny") as pipeline,
        pipeline.session(prompt=prompt, seed=7) as session,
    ):
        g = pipeline.manifest.geometry
        sink = media.open_sink(Path(target_path), source, g.height, g.width)
        for frame in session.stream(source):
            sink.write(frame)
        sink.close()
        print(f"{session.report().frames_emitted} frames are in {target_path}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except rt.Error as error:  # one line that says what to do
        sys.exit(f"error: {error}")
