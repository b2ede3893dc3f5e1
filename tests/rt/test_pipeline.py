"""The runtime on a micro engine: laws 4, 5 and 7 of the design, and the whole chain against plain
PyTorch modules.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro_engine import MICRO
from moving import PROMPT, SIZE, Pictures, equal, restyle, scene, shaken
from numpy.typing import NDArray

import rt
from export.verify import twin
from rt import noise, ops, window


@pytest.fixture(scope="module")
def pipeline(tiny_engine: Path) -> Iterator[rt.Pipeline]:
    with rt.Pipeline.load(tiny_engine, steps=4) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected(pipeline: rt.Pipeline) -> Pictures:
    """What one stage and one session make of 41 frames."""
    return restyle(pipeline, scene(41))


def test_second_session_equals_a_fresh_one(pipeline: rt.Pipeline, expected: Pictures) -> None:
    restyle(pipeline, scene(23, seed=5), steps=4, seed=9, positions="absolute")
    assert equal(restyle(pipeline, scene(41)), expected)


def test_another_process_gives_the_same_bits(tiny_engine: Path, expected: Pictures) -> None:
    code = (
        "import sys, hashlib, rt; sys.path[:0] = sys.argv[2:];"
        "from moving import restyle, scene;"
        "p = rt.Pipeline.load(sys.argv[1], steps=4);"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in restyle(p, scene(41)))).hexdigest())"
    )
    arguments = [sys.executable, "-c", code, str(tiny_engine), str(Path(__file__).parents[1])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    digest = hashlib.sha256(b"".join(x.tobytes() for x in expected)).hexdigest()
    assert done.stdout.strip() == digest


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_any_placement_gives_the_same_bits(
    tiny_engine: Path, expected: Pictures, stages: int
) -> None:
    names = [f"cpu:{i}" for i in range(stages)]
    with rt.Pipeline.load(tiny_engine, names, steps=4) as several:
        assert len({s.device for s in several.status().placement}) == stages
        assert equal(restyle(several, scene(41)), expected)
        assert equal(restyle(several, scene(41)), expected)


@pytest.mark.parametrize(
    ("stages", "sessions", "max_batch"),
    [(1, 2, 1), (1, 2, 4), (1, 4, 4), (2, 2, 1), (2, 2, 4), (3, 4, 4)],
)
def test_sessions_together_equal_each_alone(
    tiny_engine: Path, expected: Pictures, stages: int, sessions: int, max_batch: int
) -> None:
    names = [f"cpu:{i}" for i in range(stages)]
    others = scene(30, seed=3)
    with rt.Pipeline.load(
        tiny_engine, names, seats=sessions, steps=2, max_batch=max_batch
    ) as shared:
        results: dict[int, Pictures] = {}

        def run(number: int) -> None:
            pictures, seed = (others, 5) if number % 2 else (scene(41), 0)
            results[number] = restyle(shared, pictures, seed=seed, steps=2)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone = restyle(shared, others, seed=5, steps=2)
        for number in range(sessions):
            assert equal(results[number], alone if number % 2 else expected)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(0, 14),
    start=st.sampled_from(["fast", "full"]),
    steps=st.integers(1, 4),
    motion=st.sampled_from(["flow", "difference", "off"]),
    positions=st.sampled_from(["window", "absolute"]),
    sinks=st.sampled_from(["adaptive", "fixed"]),
)
def test_as_many_frames_out_as_in(pipeline: rt.Pipeline, count: int, **options: Any) -> None:
    with pipeline.session(prompt=PROMPT, **options) as session:
        frames = list(session.stream(scene(count) if count else []))
        report = session.report()
    assert [frame.index for frame in frames] == list(range(count))
    assert all(frame.rgb.shape == (SIZE, SIZE, 3) for frame in frames)
    assert report.frames_in == report.frames_emitted == report.frames_on_time == count
    assert report.frames_late == report.frames_dropped == report.frames_in_flight == 0
    assert len(report.chunks) == -(-(count + 3) // 4) if count else not report.chunks


def test_options_change_the_picture(pipeline: rt.Pipeline, expected: Pictures) -> None:
    """Every option reaches the model. 41 frames are 11 latent frames: the window is full from the
    7th on.
    """
    for options in (
        {"seed": 1},
        {"steps": 1},
        {"steps": 3},
        {"motion": "off"},
        {"positions": "absolute"},
        {"sinks": "fixed"},
    ):
        assert not equal(restyle(pipeline, scene(41), **options), expected), options


def test_flicker_is_motion_for_the_difference_only(pipeline: rt.Pipeline) -> None:
    still = np.random.default_rng(0).integers(0, 120, (SIZE, SIZE, 3))
    flicker = [(still + 8 * (i % 4)).astype(np.uint8) for i in range(13)]
    off = restyle(pipeline, flicker, motion="off")
    assert equal(restyle(pipeline, flicker, motion="flow"), off)
    assert not equal(restyle(pipeline, flicker, motion="difference"), off)


def test_full_start_only_waits(pipeline: rt.Pipeline, expected: Pictures) -> None:
    """Both starts make the same chunks, so the pictures are the same; the delay differs."""
    assert equal(restyle(pipeline, scene(41), start="full"), expected)


# The whole chain, written down plainly


def torch_chain(
    directory: Path, pictures: Pictures, steps: int, positions: Any, sinks: str, motion: str
) -> Pictures:
    """The main job without runtime, engines, ops or seats: PyTorch units in a loop, NumPy between
    them.
    """
    from rt import manifest as manifests

    m = manifests.read(directory)
    chain = twin(m, directory, MICRO, fold_time=False)
    units = {u.name: u for u in chain.units}
    w, g, a = m.window, m.geometry, m.attention
    sigmas = noise.sigma_table(m.noise.shift)

    def call(name: str, phase: str, **values: Any) -> dict[str, Any]:
        spec = units[name].phases[phase]
        with torch.inference_mode():
            out = spec.module(*(torch.as_tensor(values[n]) for n in spec.input_names))
        out = out if isinstance(out, tuple) else (out,)
        return dict(zip(spec.output_names, (o.numpy() for o in out), strict=True))

    embeddings = embed(directory, m, call)
    context = call("prompt_in", "step", embeddings=embeddings)["context"]
    prompts = [call(f"prompt_kv_{b}", "step", context=context) for b in range(a.blocks)]
    shape = (a.heads, w.frames * g.tokens_per_frame, a.head_dim)
    rows = [
        [
            {
                "k_ring": np.zeros((1, *shape), np.float32),
                "v_ring": np.zeros((1, *shape), np.float32),
                "sink_time": np.zeros(
                    (a.heads, w.sinks * g.tokens_per_frame, 2 * a.rope_time_pairs)
                ),
                "sink_index": np.full(w.sinks, -1, np.int64),
            }
            for _ in range(a.blocks)
        ]
        for _ in range(steps)
    ]
    caches: dict[str, Any] = {}

    def vae(kind: str, phase: str, value: Any) -> Any:
        for unit in chain.chain:
            if unit.kind == kind:
                spec = unit.phases[phase]
                state = {
                    s.input: caches.get((unit.name, s.input), np.zeros(s.shape, np.float32))
                    for s in spec.state
                }
                out = call(unit.name, phase, **{spec.inputs[0].name: value}, **state)
                for s in spec.state:
                    caches[unit.name, s.input] = out[s.output]
                value = out[spec.outputs[0].name]
        return value

    restyled: Pictures = []
    starts = [0, *range(1, len(pictures), 4)]
    previous: float | None = None
    for index, start in enumerate(starts):
        chunk = pictures[start : 1 if index == 0 else start + 4]
        phase = "first" if index == 0 else "step"
        padded = chunk + [chunk[-1]] * ((1 if index == 0 else 4) - len(chunk))
        pixels = np.stack(padded, 0).transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1
        latent = vae("encode", phase, pixels)[0, :, 0]
        scores = [0.0]
        if motion == "difference" and index:
            frames = [np.float64(picture) / 127.5 for picture in pictures[start - 1 : start + 4]]
            scores = [float(np.sqrt(((b - a) ** 2).mean())) for a, b in pairwise(frames)]
        share = min(max(scores) / 0.2, 1.0)
        wanted = m.noise.s_max - (m.noise.s_max - m.noise.s_min) * share
        scale = m.noise.s_max
        if previous is not None:
            scale = m.noise.smoothing * wanted + (1 - m.noise.smoothing) * previous
        previous = scale
        first_timestep = int(1000 * scale + 1e-3) + m.noise.timestep_offset
        timesteps = [first_timestep, *m.noise.timesteps[1:steps]]
        levels = [noise.sigma_at(sigmas, t) for t in timesteps] + [0.0]
        eps = [noise_of(latent.shape, index, step) for step in range(steps)]
        noisy = noise.mix(latent, scale, eps[0])
        for step in range(steps):
            values = call(
                "dit_in",
                "step",
                noisy=noisy[None],
                timestep=np.float32([timesteps[step]]),
                rope_time=window.rope_time(index, a.rope_time_pairs, a.rope_theta)[None],
            )
            held = np.array(
                [
                    max(
                        (j for j in range(index) if window.slot(j, w.frames, w.sinks) == s),
                        default=-1,
                    )
                    for s in range(w.frames)
                ]
            )
            mask = window.row_mask(held, index, w.frames, w.sinks, g.tokens_per_frame)[
                None, None, None
            ]
            at = np.int64([window.slot(index, w.frames, w.sinks) * g.tokens_per_frame])
            for b, ring in enumerate(rows[step]):
                window.refresh_sinks(
                    ring["k_ring"][0],
                    ring["v_ring"][0],
                    ring["sink_time"],
                    ring["sink_index"],
                    index - 1,
                    index,
                    window=w.frames,
                    sinks=w.sinks,
                    tokens_per_frame=g.tokens_per_frame,
                    theta=a.rope_theta,
                    threshold=w.sink_threshold if sinks == "adaptive" else None,
                    positions=positions,
                )
                flow = {n: values[n] for n in ("x", "modulation", "rope")}
                out = call(
                    f"block_{b}",
                    "step",
                    **flow,
                    write_index=at,
                    mask=mask,
                    **prompts[b],
                    k_ring=ring["k_ring"],
                    v_ring=ring["v_ring"],
                )
                values["x"] = out["x_next"]
                ring["k_ring"], ring["v_ring"] = (
                    out["k_ring_next"].copy(),
                    out["v_ring_next"].copy(),
                )
            out = call("dit_out", "step", x=values["x"], head_modulation=values["head_modulation"])
            after = eps[step + 1] if step + 1 < steps else np.zeros_like(latent)
            noisy = noise.renoise(noisy, out["velocity"][0], levels[step], levels[step + 1], after)
        pixels = vae("decode", phase, noisy[None, :, None])[0]
        grey = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
        restyled += list(grey.transpose(1, 2, 3, 0)[: len(chunk)])
    return restyled


def embed(directory: Path, m: Any, call: Callable[..., dict[str, Any]]) -> Any:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(directory / m.text.tokenizer)).encode(PROMPT).ids
    ids = ids[: m.text.length]
    token_ids, mask = (
        np.zeros((1, m.text.length), np.int64),
        np.zeros((1, m.text.length), np.float32),
    )
    token_ids[0, : len(ids)], mask[0, : len(ids)] = ids, 1
    return call("text", "step", token_ids=token_ids, token_mask=mask)["embeddings"]


def noise_of(shape: tuple[int, ...], chunk: int, step: int) -> Any:
    return ops.philox_normal(shape, seed=0, session=0, chunk=chunk, step=step)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors this small take longer where threads have to meet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("steps", "positions", "sinks", "motion"),
    [
        (1, "window", "fixed", "off"),
        (2, "window", "adaptive", "difference"),
        (2, "absolute", "adaptive", "off"),
        (3, "absolute", "fixed", "difference"),
    ],
)
def test_runtime_equals_plain_torch(
    pipeline: rt.Pipeline, tiny_engine: Path, steps: int, positions: Any, sinks: Any, motion: Any
) -> None:
    pictures = scene(50) if motion == "off" else shaken(50)
    options = {"steps": steps, "positions": positions, "sinks": sinks, "motion": motion}
    ours = restyle(pipeline, pictures, **options)
    plain = torch_chain(tiny_engine, pictures, steps, positions, sinks, motion)
    assert len(ours) == len(plain)
    difference = np.abs(np.int16(ours) - np.int16(plain))
    assert difference.max() <= 1, [int(d.max()) for d in difference]
    assert np.int16(ours).std() > 5, "a picture, not a constant"


# Prompts


def test_prompt_changes_in_flight_from_the_chunk_on_that_it_says(
    pipeline: rt.Pipeline, expected: Pictures
) -> None:
    session = pipeline.session(prompt=PROMPT)
    out: Pictures = []
    with session:
        pictures = scene(41)
        effective = 0

        def feed() -> Iterator[Any]:
            nonlocal effective
            for i, picture in enumerate(pictures):
                if i == 17:
                    effective = session.update(prompt="neon edges", transition_chunks=2)
                yield picture

        out = [frame.rgb for frame in session.stream(feed())]
    first = 1 + 4 * (effective - 1)
    assert effective == 5
    assert equal(out[:first], expected[:first])
    assert all(not np.array_equal(a, b) for a, b in zip(out[first:], expected[first:], strict=True))


def test_a_mix_of_one_prompt_is_that_prompt(pipeline: rt.Pipeline, expected: Pictures) -> None:
    with pipeline.session(prompt=[(PROMPT, 0.5), (PROMPT, 1.5)]) as session:
        out = [frame.rgb for frame in session.stream(scene(41))]
    assert np.abs(np.int16(out) - np.int16(expected)).max() <= 1


def test_long_prompts_are_cut_and_said_so(pipeline: rt.Pipeline) -> None:
    with pipeline.session(prompt="word " * 600) as session:
        assert any("cut" in remark for remark in session.remarks)
        assert len(list(session.stream(scene(3)))) == 3


# Frames and refusals


def test_frames_of_other_libraries(pipeline: rt.Pipeline) -> None:
    from PIL import Image

    class OnlyDlpack:
        def __init__(self, array: NDArray[np.uint8]) -> None:
            self._array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self._array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self._array.__dlpack_device__()

    class OnGpu(OnlyDlpack):
        """As CuPy and torch: comes to the host when it is asked for there, and only then."""

        def __dlpack__(self, *, dl_device: tuple[int, int] | None = None, **options: Any) -> Any:
            assert dl_device == (1, 0)
            return super().__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    pictures = scene(5)
    plain = restyle(pipeline, pictures)
    for convert in (torch.from_numpy, Image.fromarray, OnlyDlpack, OnGpu, np.ascontiguousarray):
        assert equal(restyle(pipeline, [convert(p) for p in pictures]), plain)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        "text",
        [[1, 2], [3]],
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(pipeline: rt.Pipeline, bad: Any) -> None:
    with pipeline.session(prompt=PROMPT) as session:
        out = []
        with pytest.raises(rt.SourceError, match=r"expected uint8 \[H, W, 3\]"):
            out.extend(session.stream([*scene(2), bad]))
        assert session.report().frames_in == 2


def test_the_size_of_frames_may_not_change_within_a_session(pipeline: rt.Pipeline) -> None:
    with pipeline.session(prompt=PROMPT) as session:
        session.push(scene(1)[0])
        with pytest.raises(rt.SourceError, match="as before"):
            session.push(np.zeros((SIZE, SIZE + 1, 3), np.uint8))


def test_other_sizes_are_resized_and_said_so(pipeline: rt.Pipeline) -> None:
    for height, width in ((1, 1), (33, 71), (480, 320)):
        picture = np.full((height, width, 3), 80, np.uint8)
        with pipeline.session(prompt=PROMPT) as session:
            (frame,) = session.stream([picture])
            assert frame.rgb.shape == (SIZE, SIZE, 3)
            assert any(f"{width}x{height}" in remark for remark in session.remarks)


def test_seats_are_counted(tiny_engine: Path) -> None:
    with rt.Pipeline.load(tiny_engine, seats=1) as one:
        with one.session(prompt=PROMPT), pytest.raises(rt.AdmissionRefused, match="1 seats"):
            one.session(prompt=PROMPT)
        with one.session(prompt=PROMPT) as again:
            assert len(list(again.stream(scene(2)))) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"engines": 5},
        {"devices": 5},
        {"devices": [5]},
        {"seats": 0},
        {"seats": "2"},
        {"steps": 1.5},
        {"max_batch": 0},
        {"hang_s": -1.0},
    ],
)
def test_a_pipeline_that_means_nothing_is_refused(
    tiny_engine: Path, options: dict[str, Any]
) -> None:
    (name,) = options
    with pytest.raises(rt.ConfigError, match=rf"^{name}: got .*, expected"):
        rt.Pipeline.load(**({"engines": tiny_engine} | options))


@pytest.mark.parametrize("chunks", [-1, 1.5, 10**9])
def test_a_transition_that_means_nothing_is_refused(pipeline: rt.Pipeline, chunks: Any) -> None:
    with (
        pipeline.session(prompt=PROMPT) as session,
        pytest.raises(rt.ConfigError, match=r"transition_chunks: got .*, expected"),
    ):
        session.update(prompt=PROMPT, transition_chunks=chunks)


@pytest.mark.parametrize(
    "options", [{"steps": 5}, {"seed": -1}, {"motion": "none"}, {"prompt": " "}]
)
def test_wrong_options_are_refused(pipeline: rt.Pipeline, options: dict[str, Any]) -> None:
    with pytest.raises(rt.ConfigError, match="got"):
        pipeline.session(**({"prompt": PROMPT} | options))


@pytest.mark.parametrize("slo", [None, rt.SLO(fps=1, latency_ms=60_000)])
@pytest.mark.parametrize("steps", [None, 1])
def test_no_more_steps_are_kept_than_there_are(
    pipeline: rt.Pipeline, steps: int | None, slo: rt.SLO | None
) -> None:
    most = steps or pipeline.manifest.noise.default_steps
    assert most < 4, "the pipeline has room for more"
    told = f"^min_steps: got {most + 1}, expected a whole number from 1 to {most}$"
    with pytest.raises(rt.ConfigError, match=told):
        pipeline.session(prompt=PROMPT, slo=slo, steps=steps, min_steps=most + 1)
    with pipeline.session(prompt=PROMPT, slo=slo, steps=steps, min_steps=most) as session:
        assert session.steps == most


# Faults


@pytest.mark.parametrize("devices", ["cpu", "cpu:0,cpu:1"])
@pytest.mark.parametrize("kind", ["encode", "denoise", "decode"])
def test_a_failing_stage_ends_only_its_session(
    tiny_engine: Path, expected: Pictures, monkeypatch: pytest.MonkeyPatch, devices: str, kind: str
) -> None:
    with rt.Pipeline.load(tiny_engine, devices, seats=2, steps=2, max_batch=1) as shared:
        for stage in shared.stages:

            def run(task: Any, works: Any, run: Any = stage.run) -> Any:
                if task.kind == kind and task.jobs[0].session == 0 and task.jobs[0].chunk == 3:
                    raise RuntimeError("injected")
                return run(task, works)

            monkeypatch.setattr(stage, "run", run)
        results: list[Any] = []
        doomed = shared.session(prompt=PROMPT)
        healthy = threading.Thread(target=lambda: results.append(restyle(shared, scene(41))))
        healthy.start()
        with doomed, pytest.raises(rt.StageFailed, match="chunk 3: RuntimeError: injected"):
            list(doomed.stream(scene(41)))
        healthy.join()
        assert equal(results[0], expected)
        assert equal(restyle(shared, scene(41)), expected), "the pipeline stays usable"


def test_failures_leave_no_place_behind(
    tiny_engine: Path, expected: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage fails before it takes what was handed to it, more often than its inbox has places."""
    with rt.Pipeline.load(tiny_engine, "cpu:0,cpu:1", steps=2) as shared:
        with monkeypatch.context() as broken:
            broken.setattr(shared.stages[1], "run", lambda *_: 1 / 0)
            for _ in range(5):
                with shared.session(prompt=PROMPT) as doomed, pytest.raises(rt.StageFailed):
                    list(doomed.stream(scene(9)))
        assert equal(restyle(shared, scene(41)), expected)


def test_a_consumer_that_leaves_frees_its_seat(pipeline: rt.Pipeline, expected: Pictures) -> None:
    for wanted in (0, 1, 6):
        with pipeline.session(prompt=PROMPT) as session:
            stream = session.stream(scene(200))
            for _ in range(wanted):
                next(stream)
        report = session.report()
        assert report.frames_in == report.frames_emitted + report.frames_dropped
    assert equal(restyle(pipeline, scene(41)), expected)


def test_one_thread_may_push_finish_and_then_pull(pipeline: rt.Pipeline) -> None:
    with pipeline.session(prompt=PROMPT) as session:
        for picture in scene(10):
            session.push(picture, timeout_s=30)
        session.finish()
        out = []
        while (frame := session.pull(timeout_s=30)) is not None:
            out.append(frame.index)
    assert out == list(range(10))


def test_frames_that_nobody_pulled_are_dropped(pipeline: rt.Pipeline) -> None:
    session = pipeline.session(prompt=PROMPT)
    for picture in scene(5):
        session.push(picture, timeout_s=30)
    assert session.pull(timeout_s=30) is not None
    session.close()
    assert session.pull(timeout_s=1) is None
    report = session.report()
    assert (report.frames_in, report.frames_emitted, report.frames_dropped) == (5, 1, 4)
    assert report.frames_in_flight == 0


def test_a_closed_pipeline_opens_no_session(tiny_engine: Path) -> None:
    closed = rt.Pipeline.load(tiny_engine)
    closed.close()
    closed.close()
    with pytest.raises(rt.ConfigError, match="closed"):
        closed.session(prompt=PROMPT)


def test_a_broken_worker_lets_nobody_wait(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rt.Pipeline.load(tiny_engine) as broken:
        monkeypatch.setattr(broken._scheduler, "finished", lambda *_: 1 / 0)
        with broken.session(prompt=PROMPT) as session, pytest.raises(rt.StageFailed):
            list(session.stream(scene(9)))


def test_pace_recovers_after_a_slip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames at 10 fps with a budget of 300 ms; the third is ready 500 ms late."""
    clock = [0]
    monkeypatch.setattr(rt.pace.time, "perf_counter_ns", lambda: clock[0])
    latencies = []
    pace = rt.pace.Pace(rt.SLO(latency_ms=300))
    for i in range(12):
        frame = rt.Frame(scene(1)[0], i, i / 10, i * 100_000_000)
        ready = frame.captured_ns + (500_000_000 if i == 2 else 20_000_000)
        clock[0] = max(clock[0], ready)
        clock[0] += round(pace.pause_s(frame) * 1e9)
        latencies.append((clock[0] - frame.captured_ns) // 1_000_000)
    assert latencies[:2] == [20, 20]
    assert latencies[2] == 500
    assert all(latency <= 300 for latency in latencies[5:])


@pytest.mark.parametrize("slip_ms", [0, 300, 1000])
def test_pace_is_as_early_again_as_before_a_slip(
    slip_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames at 20 fps in chunks of four, each ready 20 ms after its last frame, one of them late;
    a budget of 2 s that asks for nothing.
    """
    clock = [0]
    monkeypatch.setattr(rt.pace.time, "perf_counter_ns", lambda: clock[0])
    pace, picture = rt.pace.Pace(rt.SLO(latency_ms=2000)), scene(1)[0]
    latencies, left = [], []
    for i in range(1200):
        frame = rt.Frame(picture, i, i / 20, i * 50_000_000)
        ready = (i // 4 * 4 + 3) * 50_000_000 + 20_000_000 + slip_ms * 1_000_000 * (i // 4 == 10)
        clock[0] = max(clock[0], ready)
        clock[0] += round(pace.pause_s(frame) * 1e9)
        left.append(clock[0])
        latencies.append((clock[0] - frame.captured_ns) / 1e6)
    path_ms = 170
    assert max(latencies) == path_ms + slip_ms
    assert max(latencies[-100:]) <= path_ms + 50
    # It is never hurried by more than can be seen.
    assert min(b - a for a, b in pairwise(left)) >= 0.95 * 50e6


def test_push_and_pull(pipeline: rt.Pipeline, expected: Pictures) -> None:
    with pipeline.session(prompt=PROMPT) as session:
        out = []
        for picture in scene(41):
            session.push(picture, timeout_s=30)
            while session.report().frames_in - len(out) > 6:
                frame = session.pull(timeout_s=30)
                assert frame is not None
                out.append(frame.rgb)
        with pytest.raises(rt.ConfigError, match="prompt"):
            session.update(prompt="  ")
        session.finish()
        with pytest.raises(rt.ConfigError, match="finished"):
            session.push(scene(1)[0])
        while (frame := session.pull(timeout_s=30)) is not None:
            out.append(frame.rgb)
        assert equal(out, expected)
        with pytest.raises(TimeoutError, match="no frame"):
            pipeline_session_without_input(pipeline)


def test_a_push_that_times_out_took_nothing(pipeline: rt.Pipeline, expected: Pictures) -> None:
    with pipeline.session(prompt=PROMPT) as session:
        out, pictures = [], scene(41)
        while pictures:
            try:
                session.push(pictures[0], timeout_s=0.05)
                pictures.pop(0)
            except TimeoutError:
                while session.report().frames_in - len(out) > 8:
                    frame = session.pull(timeout_s=30)
                    assert frame is not None
                    out.append(frame.rgb)
        session.finish()
        while (frame := session.pull(timeout_s=30)) is not None:
            out.append(frame.rgb)
    assert equal(out, expected)


def pipeline_session_without_input(pipeline: rt.Pipeline) -> None:
    with rt.Pipeline.load(pipeline.directory) as other, other.session(prompt=PROMPT) as idle:
        idle.pull(timeout_s=0.01)
