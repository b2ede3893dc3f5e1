"""Two videos through one pipeline: the engines are loaded once, each session has its own seat."""

from concurrent.futures import ThreadPoolExecutor

import rt
from rt import media


def restyle(pipeline: rt.Pipeline, prompt: str) -> str:
    with pipeline.session(prompt=prompt, seed=1) as session:
        count = sum(1 for _ in session.stream(media.moving_scene(seconds=1)))
    return f"{prompt}: {count} frames"


def main() -> None:
    with (
        rt.Pipeline.load("engines/tiny", seats=2) as pipeline,
        ThreadPoolExecutor(2) as threads,
    ):
        for line in threads.map(lambda p: restyle(pipeline, p), ["comic", "sepia film"]):
            print(line)


if __name__ == "__main__":
    main()
