"""Sessions with an SLO on the real pipeline, in event loops, side by side, and through faults.

Times of engines are stretched where a test needs to know them; no number of milliseconds is
asserted.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_engine import SIZE
from numpy.typing import NDArray

import rt
from bench.faults import leftovers
from bench.stretched import known, stretched
from rt import manifest as manifests
from rt import workers

PROMPT = "a pencil sketch"


def scene(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    texture = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    return [np.roll(texture, i, 1) for i in range(count)]


def camera(count: int, fps: float) -> Iterator[rt.Frame]:
    """Frames at their times, stamped with them."""
    start = time.perf_counter_ns()
    for index, picture in enumerate(scene(count)):
        due = start + round(index / fps * 1e9)
        time.sleep(max(0.0, (due - time.perf_counter_ns()) * 1e-9))
        yield rt.Frame(picture, index, index / fps, due)


def whole(report: rt.Report) -> bool:
    """Law 7."""
    left = report.frames_on_time + report.frames_late + report.frames_dropped
    return report.frames_in == left + report.frames_in_flight


@pytest.fixture(scope="module")
def plain(tiny_engine: Path) -> list[NDArray[np.uint8]]:
    with rt.Pipeline.load(tiny_engine) as pipeline, pipeline.session(prompt=PROMPT) as session:
        return [frame.rgb for frame in session.stream(scene(21))]


def slow(tiny_engine: Path, chunk_ms: float) -> Any:
    """Engines that take this long for a chunk of two steps."""
    manifest = manifests.read(tiny_engine)
    visits = sum(1 if u.kind in ("encode", "decode") else 2 for u in manifest.chain)
    return stretched(manifest, known(manifest, [chunk_ms / visits] * len(manifest.chain)))


def test_overload_drops_what_is_old_and_counts_add_up(tiny_engine: Path) -> None:
    """80 fps for engines that do 4 chunks a second: latent indices stay consecutive, output stays
    in order, every frame is accounted for at any moment.
    """
    log: list[Any] = []
    with (
        slow(tiny_engine, 250),
        rt.Pipeline.load(tiny_engine, steps=2, log=log.append) as pipeline,
        pipeline.session(prompt=PROMPT, slo=rt.SLO(latency_ms=1000)) as session,
    ):
        seen = []
        for frame in session.stream(camera(160, 80)):
            seen.append(frame.index)
            assert whole(session.report())
        report, status = session.report(), session.status()
    assert seen == sorted(set(seen))
    assert report.frames_dropped > 0
    assert report.frames_in_flight == 0
    assert report.frames_emitted == len(seen)
    assert [c.index for c in report.chunks] == list(range(len(report.chunks)))
    assert {c.steps for c in report.chunks} == {1, 2}, "fewer steps before drops"
    assert status.state == "finished"
    decided = {x.what for x in log if isinstance(x, rt.Decision)}
    assert decided >= {"admit", "run", "drop", "degrade"}


def test_an_slo_that_holds_changes_no_picture(
    tiny_engine: Path, plain: list[NDArray[np.uint8]]
) -> None:
    with rt.Pipeline.load(tiny_engine) as pipeline:
        slo = rt.SLO(fps=10, latency_ms=60_000)
        with pipeline.session(prompt=PROMPT, slo=slo, min_steps=2) as session:
            frames = []
            for picture in scene(21):
                session.push(picture)
                while session.report().frames_in_flight > 4:
                    frame = session.pull(timeout_s=60)
                    assert frame is not None
                    frames.append(frame.rgb)
            session.finish()
            while (frame := session.pull(timeout_s=60)) is not None:
                frames.append(frame.rgb)
    assert all(np.array_equal(a, b) for a, b in zip(frames, plain, strict=True))


def test_a_fifth_session_is_refused_with_the_numbers_until_one_leaves(tiny_engine: Path) -> None:
    rates = ((8, 3000), (10, 2500), (6, 3000), (8, 2800))
    offers = [rt.SLO(fps=fps, latency_ms=ms) for fps, ms in rates]
    with slow(tiny_engine, 100), rt.Pipeline.load(tiny_engine, seats=5, steps=2) as pipeline:
        sessions = [pipeline.session(prompt=PROMPT, slo=slo) for slo in offers]
        words = "5 sessions need 100% of stage 0, at most 85%"
        with pytest.raises(rt.AdmissionRefused, match=words):
            pipeline.session(prompt=PROMPT, slo=offers[0])
        sessions[1].close()
        with pipeline.session(prompt=PROMPT, slo=offers[0]):
            assert pipeline.status().sessions == 4


def test_a_consumer_that_never_pulls_holds_nobody_up(tiny_engine: Path) -> None:
    with rt.Pipeline.load(tiny_engine, seats=2) as pipeline:
        idle = pipeline.session(prompt=PROMPT, slo=rt.SLO(latency_ms=1000))
        for frame in camera(60, 200):
            idle.push(frame)
        assert whole(idle.report())
        assert idle.report().frames_dropped > 0
        with pipeline.session(prompt=PROMPT) as busy:
            assert len(list(busy.stream(scene(9)))) == 9
        idle.close()
        assert idle.report().frames_in_flight == 0


def test_a_frame_that_waits_for_its_turn_leaves_nobody_waiting(tiny_engine: Path) -> None:
    """Closed meanwhile, the session has dropped it: nobody sees it, nobody waits for it."""
    pictures = scene(5)
    with rt.Pipeline.load(tiny_engine) as pipeline:
        session = pipeline.session(prompt="sketch", slo=rt.SLO(fps=1.0, latency_ms=60_000.0))
        for index, picture in enumerate(pictures):
            pts_s = 0.0 if index == 0 else 30.0 + index
            session.push(rt.Frame(picture, index, pts_s, time.perf_counter_ns()))
        assert session.pull() is not None
        pulled: list[rt.Frame | None] = []
        puller = threading.Thread(target=lambda: pulled.append(session.pull()))
        puller.start()
        time.sleep(0.5)
        assert puller.is_alive(), "it is held for its turn"
        session.close()
        puller.join(10)
        assert pulled == [None]
        report = session.report()
        assert (report.frames_emitted, report.frames_dropped, report.frames_in_flight) == (1, 4, 0)


def test_frames_that_wait_for_their_turn_are_no_sign_of_a_lost_consumer(tiny_engine: Path) -> None:
    """Somebody pulls, at the pace of the pts; six chunks that are early are all kept."""
    pictures = scene(25)
    with rt.Pipeline.load(tiny_engine) as pipeline:
        session = pipeline.session(prompt="sketch", slo=rt.SLO(fps=1.0, latency_ms=60_000.0))
        puller = threading.Thread(target=lambda: [session.pull() for _ in range(2)])
        puller.start()
        for index, picture in enumerate(pictures):
            session.push(rt.Frame(picture, index, 10.0 * index, time.perf_counter_ns()))
            done = 0 if index == 0 else 4 * (index // 4) - 1
            with session.changed:
                assert session.changed.wait_for(lambda n=done: len(session._ready) >= n, 60)
        assert session.report().frames_dropped == 0
        session.close()
        puller.join(10)


@pytest.mark.parametrize("seed", range(4))
def test_a_source_that_stalls_bursts_and_jumps(tiny_engine: Path, seed: int) -> None:
    """Whatever its times are, counts add up and the next session is well."""
    rng = np.random.default_rng(seed)

    def wild() -> Iterator[rt.Frame]:
        pts = 0.0
        for index, picture in enumerate(scene(60)):
            pts += float(rng.choice([0.01, 0.1, 2.0, -1.0]))
            stamp = time.perf_counter_ns() - int(rng.choice([0, 0, 10**8, 10**12]))
            time.sleep(float(rng.choice([0, 0, 0, 0.02])))
            yield rt.Frame(picture, index, pts, stamp)

    with rt.Pipeline.load(tiny_engine) as pipeline:
        with pipeline.session(prompt=PROMPT, slo=rt.SLO(latency_ms=500)) as session:
            indices = [frame.index for frame in session.stream(wild())]
            report = session.report()
        assert indices == sorted(indices)
        assert whole(report)
        assert report.frames_in == 60
        with pipeline.session(prompt=PROMPT) as session:
            assert len(list(session.stream(scene(5)))) == 5


# Event loops


def test_async_gives_the_same_pictures(tiny_engine: Path, plain: list[NDArray[np.uint8]]) -> None:
    async def pictures() -> AsyncIterator[NDArray[np.uint8]]:
        for picture in scene(21):
            yield picture
            await asyncio.sleep(0)

    async def restyle(pipeline: rt.Pipeline, source: Any) -> list[NDArray[np.uint8]]:
        async with rt.AsyncSession(pipeline.session(prompt=PROMPT)) as session:
            return [frame.rgb async for frame in session.stream(source)]

    async def by_hand(pipeline: rt.Pipeline) -> list[NDArray[np.uint8]]:
        async with rt.AsyncSession(pipeline.session(prompt=PROMPT)) as session:
            out = []

            async def feed() -> None:
                for picture in scene(21):
                    await session.push(picture)
                session.session.finish_quietly()

            feeder = asyncio.create_task(feed())
            while (frame := await session.pull()) is not None:
                out.append(frame.rgb)
            await feeder
            return out

    async def together() -> list[list[NDArray[np.uint8]]]:
        with rt.Pipeline.load(tiny_engine, seats=3) as pipeline:
            runs = (restyle(pipeline, pictures()), restyle(pipeline, scene(21)), by_hand(pipeline))
            return await asyncio.gather(*runs)

    for result in asyncio.run(together()):
        assert all(np.array_equal(a, b) for a, b in zip(result, plain, strict=True))


def test_async_left_early_or_broken(tiny_engine: Path) -> None:
    async def broken() -> AsyncIterator[NDArray[np.uint8]]:
        for picture in scene(6):
            yield picture
        raise rt.SourceError("the cable was pulled")

    async def run(pipeline: rt.Pipeline) -> None:
        async with rt.AsyncSession(pipeline.session(prompt=PROMPT)) as session:
            stream = session.stream(broken())
            for _ in range(6):
                await anext(stream)
            with pytest.raises(rt.SourceError, match="cable"):
                await anext(stream)
        async with rt.AsyncSession(pipeline.session(prompt=PROMPT)) as session:
            async for _ in session.stream(scene(100)):
                break
        async with rt.AsyncSession(pipeline.session(prompt=PROMPT)) as session:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.pull(), 0.05)
        assert not pipeline.changed.listeners

    with rt.Pipeline.load(tiny_engine) as pipeline:
        asyncio.run(run(pipeline))
        with pipeline.session(prompt=PROMPT) as session:
            assert len(list(session.stream(scene(5)))) == 5


# Faults


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["raise", "exit", "hang"])
def test_stages_fail_at_random_passes(
    tiny_engine: Path, how: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random passes on two stages raise, end their thread or hang: every session ends with its
    frames or with StageFailed, counts add up, and the pipeline opens further ones. Nothing stays
    behind: no thread, chunk, place or session.
    """
    monkeypatch.setattr(workers, "CHECK_S", 0.02)
    rng = np.random.default_rng(seed)
    before = threading.active_count()
    countdown, release, gone = [10**9], threading.Event(), []
    with rt.Pipeline.load(tiny_engine, "cpu:0,cpu:1", seats=2, steps=2) as pipeline:
        for stage in pipeline.stages:

            def run(task: Any, works: Any, run: Any = stage.run) -> Any:
                countdown[0] -= 1
                if countdown[0] == 0:
                    if how == "hang":
                        pipeline._workers._hang_s = 0.0  # The watchdog need not wait for long.
                        release.wait(60)
                    raise RuntimeError("injected") if how == "raise" else SystemExit
                return run(task, works)

            monkeypatch.setattr(stage, "run", run)
        failures = 0
        for _ in range(4):
            countdown[0] = int(rng.integers(1, 25))
            release.clear()
            sessions = [pipeline.session(prompt=PROMPT) for _ in range(2)]
            for session in sessions:
                with session:
                    try:
                        assert len(list(session.stream(scene(9)))) == 9
                    except rt.StageFailed:
                        failures += 1
                assert session.report().frames_in_flight == 0
                assert whole(session.report())
                gone.append(weakref.ref(session))
            countdown[0] = 10**9
            if how == "hang" and any(s.hung for s in pipeline.status().placement):
                with pytest.raises(rt.StageFailed, match="has been running"):
                    pipeline.session(prompt=PROMPT)
            pipeline._workers._hang_s = 60.0
            release.set()
            with pipeline.changed:
                assert pipeline.changed.wait_for(lambda: not leftovers(pipeline), 30)
            assert len(pipeline._workers.free_seats) == 2
        assert failures
        with pipeline.session(prompt=PROMPT) as session:
            assert len(list(session.stream(scene(9)))) == 9
        del session, sessions
        gc.collect()
        assert not any(session() for session in gone)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
