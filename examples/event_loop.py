"""Inside asyncio: what blocks runs on threads, and the prompt changes while frames flow."""

import asyncio

import rt
from rt import media


async def feed(session: rt.Session, frames: media.VideoSource) -> None:
    for frame in frames:
        await asyncio.to_thread(session.push, frame)
    await asyncio.to_thread(session.finish)


async def main() -> None:
    with (
        rt.Pipeline.load("engines/tiny") as pipeline,
        pipeline.session(prompt="comic") as session,
    ):
        feeding = asyncio.create_task(feed(session, media.moving_scene(seconds=1.5)))
        shown = 0
        while (frame := await asyncio.to_thread(session.pull)) is not None:
            shown += 1
            if frame.index == 8:
                await asyncio.to_thread(session.update, prompt="thermal", transition_chunks=2)
        await feeding
        print(f"{shown} frames")


if __name__ == "__main__":
    asyncio.run(main())
