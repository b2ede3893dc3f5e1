"""Inside asyncio: frames are awaited, and the prompt changes while they flow."""

import asyncio

import rt
from rt import media


async def main() -> None:
    with rt.Pipeline.load("engines/tiny") as pipeline:
        async with rt.AsyncSession(pipeline.session(prompt="comic")) as session:
            shown = 0
            async for frame in session.stream(media.moving_scene(seconds=1.5)):
                shown += 1
                if frame.index == 8:
                    session.session.update(prompt="thermal", transition_chunks=2)
            print(f"{shown} frames")


if __name__ == "__main__":
    asyncio.run(main())
