"""The TensorRT backend over a stand-in for the library: what it loads, binds, shares and refuses.

The stand-in keeps what it is told; no engine runs here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rt import manifest
from rt.backends import tensorrt
from rt.backends.tensorrt import Arena, Card, TensorRtBackend
from rt.errors import ConfigError, EngineMismatch
from rt.manifest import Plan

SHAPES = {
    "x": (-1, 4, 8),
    "ring": (-1, 16),
    "unit.w": (8, 8),
    "x_next": (-1, 4, 8),
    "next": (-1, 16),
}
LIBRARY = "tensorrt-rtx 1.7.1"


class Memory:
    """An array that says where it lies."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {"data": (address, False)}
        self.data = self
        self.ptr = address


class Logger:
    ERROR = 1

    def __init__(self, level: int) -> None:
        assert level == self.ERROR


class Context:
    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.ran = 0

    def __getattr__(self, name: str) -> Any:
        def keep(*arguments: Any) -> bool:
            if name == "execute_async_v3":
                self.ran += 1
            self.said[f"{name} {arguments[0]}" if "tensor" in name else name] = arguments
            return True

        return keep


class FakeEngine:
    num_io_tensors, num_optimization_profiles = len(SHAPES), 4

    def __init__(self) -> None:
        self.contexts: list[Context] = []

    def get_tensor_name(self, index: int) -> str:
        return list(SHAPES)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return "ring" if name == "next" else None

    def get_tensor_mode(self, name: str) -> str:
        return "out" if "next" in name else "in"

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 * (profile + 1)

    def create_execution_context(self, _strategy: object) -> Context:
        self.contexts.append(Context())
        return self.contexts[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A library, a GPU and an engine folder, all pretended."""
    engines: list[FakeEngine] = []
    uploads: list[bytes] = []

    def deserialize(data: bytes) -> FakeEngine | None:
        if data != b"engine":
            return None
        engines.append(FakeEngine())
        return engines[-1]

    def upload(data: np.ndarray) -> Memory:
        uploads.append(data.tobytes())
        return Memory(9000 + len(uploads), data.shape)

    trt = SimpleNamespace(
        __version__="1.7.1",
        Logger=Logger,
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=deserialize),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1),
        TensorIOMode=SimpleNamespace(INPUT="in"),
    )
    cuda = SimpleNamespace(
        Device=lambda _: SimpleNamespace(compute_capability="89"),
        alloc=lambda size: SimpleNamespace(ptr=size * 10),
        get_current_stream=lambda: SimpleNamespace(ptr=77),
    )
    cupy = SimpleNamespace(cuda=cuda, asarray=upload)
    monkeypatch.setattr(tensorrt, "library", lambda _: trt)
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(tensorrt.importlib, "import_module", lambda _: cupy)
    (tmp_path / "block.engine").write_bytes(b"engine")
    (tmp_path / "weights").write_bytes(bytes(range(64)))
    return SimpleNamespace(engines=engines, uploads=uploads, folder=tmp_path, cupy=cupy)


def plan(folder: Path, name: str = "block_0", offset: int = 0, **changes: Any) -> Plan:
    weights = {"unit.w": ("weights", offset, 32, "bfloat16", (4, 4))}
    card = {"engine": "block.engine", "graph": "g", "library": LIBRARY,
            "compute_capability": ("8.9",), "ignores": (), "weights": weights,
            **changes}  # fmt: skip
    (folder / f"{name}.trt").write_bytes(Card(**card).encoded())
    return Plan(f"{name}.trt", "", "g", (), (), (), 0, 0, 0.1)


def arrays(rows: int, start: int = 100) -> dict[str, Any]:
    ring = Memory(start + 3, (rows, 16))
    return {"x": Memory(start + 1, (rows, 4, 8)), "x_next": Memory(start + 2, (rows, 4, 8)),
            "ring": ring, "next": ring}  # fmt: skip


def test_blocks_share_an_engine_its_contexts_and_nothing_else(world: SimpleNamespace) -> None:
    backend = TensorRtBackend("tensorrt-rtx")
    blocks = [backend.load(world.folder, plan(world.folder, f"block_{i}", 32 * i)) for i in (0, 1)]
    again = backend.load(world.folder, plan(world.folder, "block_0", 0))
    assert len(world.engines) == 1
    assert world.uploads == [bytes(range(32)), bytes(range(32, 64))]
    first, second = (b.bind(arrays(2, s)) for b, s in zip(blocks, (100, 200), strict=True))
    again.bind(arrays(3))
    (two, three) = world.engines[0].contexts
    for launch, start, weight in ((first, 100, 9001), (second, 200, 9002), (first, 100, 9001)):
        launch()
        said = two.said
        assert said["set_tensor_address x"] == ("x", start + 1)
        assert said["set_tensor_address ring"][1] == said["set_tensor_address next"][1]
        assert said["set_tensor_address unit.w"] == ("unit.w", weight)
        # as large as the largest profile bound, and in the same place for all
        assert said["set_device_memory"] == (30000, 3000)
        assert said["execute_async_v3"] == (77,)
    assert (two.ran, three.ran) == (3, 0)
    assert two.said["set_optimization_profile_async"] == (1, 77)
    assert three.said["set_input_shape"] == ("ring", (3, 16))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"library": "tensorrt-rtx 1.6"}, "is for tensorrt-rtx 1.6, here is tensorrt-rtx 1.7.1"),
        ({"compute_capability": ("12.0",)}, "is for GPUs 12.0, here is 8.9"),
        ({"engine": "weights"}, "refuses it; mend"),
        ({"weights": {"unit.w": ("weights", 48, 32, "bfloat16", (4, 4))}}, "ends before 80 bytes"),
    ],
)
def test_what_does_not_fit_is_one_line(
    world: SimpleNamespace, changes: dict[str, Any], said: str
) -> None:
    backend = TensorRtBackend("tensorrt-rtx")
    tiny = manifest.read(Path("engines/tiny"))
    manifest.write(
        replace(tiny, backend="tensorrt-rtx", precision="bf16", gpu_architecture="sm_120"),
        world.folder,
    )
    with pytest.raises(EngineMismatch, match=said) as caught:
        backend.load(world.folder, plan(world.folder, **changes))
    assert "\n" not in str(caught.value)
    if "ends before" not in said:
        command = str(caught.value).split("mend it with: ")[1]
        gpu = "8.9" if "GPUs" in said else "12.0"
        assert command.startswith("python -m export build-engines --model tiny ")
        assert command.endswith(f"--window 6 --sinks 3 --compute-capability {gpu}")


def test_without_a_manifest_it_is_to_be_built_again(world: SimpleNamespace) -> None:
    backend = TensorRtBackend("tensorrt-rtx")
    with pytest.raises(EngineMismatch, match=r"here is 8\.9; build the engine again"):
        backend.load(world.folder, plan(world.folder, compute_capability=("12.0",)))


def test_bindings_that_differ_are_named(world: SimpleNamespace) -> None:
    engine = TensorRtBackend("tensorrt-rtx").load(world.folder, plan(world.folder))
    given = arrays(1)
    with pytest.raises(EngineMismatch, match=r"bindings \['x'\] differ"):
        engine.bind({name: array for name, array in given.items() if name != "x"})
    with pytest.raises(EngineMismatch, match=r"x is \[-1, 4, 8\], the manifest needs \[1, 4, 9\]"):
        engine.bind(given | {"x": Memory(1, (1, 4, 9))})
    with pytest.raises(EngineMismatch, match="5 rows, the engine has profiles up to 4"):
        engine.bind(arrays(5))
    with pytest.raises(AssertionError, match="next"):
        engine.bind(given | {"next": Memory(5, (1, 16))})


def test_a_graph_runs_the_launches_once_then_captures_them(world: SimpleNamespace) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, non_blocking: bool) -> None:
            assert non_blocking

        def __enter__(self) -> None:
            events.append("in")

        def __exit__(self, *_: object) -> None:
            events.append("out")

        def synchronize(self) -> None:
            events.append("wait")

        def begin_capture(self) -> None:
            events.append("begin")

        def end_capture(self) -> Any:
            events.append("end")
            return SimpleNamespace(launch=lambda _: events.append("replay"))

    world.cupy.cuda.Stream = Stream
    launches = [lambda: events.append("a"), lambda: events.append("b")]
    replay = tensorrt.capture(launches, world.cupy)
    replay()
    assert events == ["in", "a", "b", "wait", "begin", "a", "b", "end", "out", "replay"]


def test_an_arena_is_as_large_as_the_largest_need() -> None:
    made: list[int] = []
    arena = Arena(lambda size: made.append(size) or SimpleNamespace(ptr=size))
    assert arena.address == 0
    for size in (5, 3, 9, 9):
        arena.reserve(size)
    assert (made, arena.size, arena.address) == ([5, 9], 9, 9)


def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "library", lambda _: SimpleNamespace(__version__="1.7.1"))
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"CuPy is not installed; install it: pip install"):
        TensorRtBackend("tensorrt-rtx")


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = plan(tmp_path)
    card = tensorrt.read_card(tmp_path / made.file)
    assert card.weights == {"unit.w": ("weights", 0, 32, "bfloat16", (4, 4))}
    assert json.loads(card.encoded()) == json.loads((tmp_path / made.file).read_text())
