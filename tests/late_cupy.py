"""A stand-in for what `CudaDevice` uses of CuPy: nothing that is asked of a stream happens before
somebody waits for that stream. Arrays lie on the host, but are none of NumPy's: whoever mixes the
two fails.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np


class Stream:
    """Work in order, none of it done before `synchronize`."""

    by_handle: ClassVar[dict[int, Stream]] = {}

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking
        self.ptr = 1 + len(Stream.by_handle)
        Stream.by_handle[self.ptr] = self
        self._work: deque[Callable[[], object]] = deque()
        self._lock = threading.RLock()

    def later(self, work: Callable[[], object]) -> None:
        self._work.append(work)

    def synchronize(self) -> None:
        with self._lock:
            while self._work:
                self._work.popleft()()

    def __enter__(self) -> Stream:
        _local.stack = [*getattr(_local, "stack", []), self]
        return self

    def __exit__(self, *_: object) -> None:
        _local.stack.pop()


_local = threading.local()


def current() -> Stream:
    """The stream of this thread."""
    assert getattr(_local, "stack", []), "work outside of a device"
    stream: Stream = _local.stack[-1]
    return stream


class ndarray:
    """An array on a device; `there` is where it really lies."""

    def __init__(self, there: np.ndarray) -> None:
        self.there = there
        self.shape, self.dtype, self.nbytes = there.shape, there.dtype, there.nbytes
        self.flags = there.flags
        self.data = SimpleNamespace(
            there=there, copy_from_device_async=self._copy, memset_async=self._set_bytes
        )

    def __getitem__(self, place: Any) -> ndarray:
        return ndarray(self.there[place])

    def __len__(self) -> int:
        return len(self.there)

    def __iter__(self) -> Iterator[ndarray]:
        return map(ndarray, self.there)

    def set(self, values: np.ndarray, stream: Stream) -> None:
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        assert self.flags.c_contiguous
        stream.later(lambda: np.copyto(self.there, values))

    def get(self, stream: Stream, out: np.ndarray, blocking: bool) -> np.ndarray:
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        assert not blocking
        stream.later(lambda: np.copyto(out, self.there))
        return out

    def _set_bytes(self, value: int, size: int, stream: Stream) -> None:
        assert size == self.nbytes
        assert self.flags.c_contiguous
        assert 0 <= value < 256
        stream.later(lambda: self.there.view(np.uint8).fill(value))

    def _copy(self, source: Any, size: int, stream: Stream) -> None:
        assert size == self.nbytes
        stream.later(lambda: np.copyto(self.there, source.there))


def zeros(shape: tuple[int, ...], dtype: Any) -> ndarray:
    found = np.empty(shape, dtype)
    found.reshape(-1).view(np.uint8).fill(0xFF)  # NaN, until the zeros are there
    current().later(lambda: found.fill(0))
    return ndarray(found)


class Device:
    def __init__(self, index: int) -> None:
        self.index = index

    def use(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


cuda = SimpleNamespace(Device=Device, Stream=Stream)
pinned = SimpleNamespace(empty_pinned=np.empty)
"""What `cupyx` has of it."""


def plain(value: Any) -> Any:
    """The NumPy arrays behind arguments of an operator."""
    if isinstance(value, ndarray):
        return value.there
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def on_streams(op: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that happens on the stream it is given, when somebody waits."""

    def run(*arguments: Any, cuda_stream: int = 0, **rest: Any) -> None:
        arguments = tuple(map(plain, arguments))
        rest = {name: plain(value) for name, value in rest.items() if name != "scratch"}
        Stream.by_handle[cuda_stream].later(lambda: op(*arguments, **rest))

    return run


class LateBackend:
    """Engines of the host whose launches go to the stream of the thread that launches."""

    name = "late"

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def load(self, directory: Any, plan: Any) -> Any:
        engine = self._backend.load(directory, plan)

        def bind(arrays: dict[str, ndarray]) -> Callable[[], None]:
            launch = engine.bind({name: array.there for name, array in arrays.items()})
            return lambda: current().later(launch)

        return SimpleNamespace(bind=bind)
