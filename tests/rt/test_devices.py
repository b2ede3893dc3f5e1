"""Device names, and what is said when a device is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt import ConfigError, devices


def line_of(error: pytest.ExceptionInfo[ConfigError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


@given(st.lists(st.integers(0, 99), min_size=1, max_size=6), st.booleans())
def test_names_become_devices_in_their_order(indices: list[int], as_text: bool) -> None:
    names: str | list[str] = [f"cpu:{i}" for i in indices]
    found = devices.resolve(", ".join(names) if as_text else names)
    assert [d.name for d in found] == names
    assert [(d.kind, d.index) for d in found] == [("cpu", i) for i in indices]


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_devices_share_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, count: int) -> None:
    monkeypatch.setattr(devices, "cores", lambda: cores)
    shares = [d.threads for d in devices.resolve([f"cpu:{i}" for i in range(count)])]
    assert len(set(shares)) == 1
    assert shares[0] == max(1, math.floor(cores / count))


@pytest.mark.parametrize("name", ["auto", "cpu", " cpu ", "cpu:0", ("cpu",)])
def test_one_processor(name: str | Sequence[str]) -> None:
    (device,) = devices.resolve(name)
    assert device == devices.Device("cpu", 0, devices.cores())
    array = device.zeros([2, 3], np.float32)
    assert array.dtype == np.float32
    assert array.shape == (2, 3)
    assert array.flags.c_contiguous
    assert not array.any()


@pytest.mark.parametrize(
    "name, bad",
    [
        ("", ""),
        ("gpu", "gpu"),
        ("cpu:", "cpu:"),
        ("cpu:-1", "cpu:-1"),
        ("cpu:1.5", "cpu:1.5"),
        ("CPU", "CPU"),
        ("cpu 0", "cpu 0"),
        ("cpu,", ""),
        ("cpu:0,tpu:1", "tpu:1"),
        ("cpu;cpu", "cpu;cpu"),
        ("cpu:0cpu:1", "cpu:0cpu:1"),
        (["cpu:0", "auto"], "auto"),
    ],
)
def test_a_bad_name_is_named(name: str | Sequence[str], bad: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devices.resolve(name)
    assert line_of(caught) == (
        f"devices: got {bad!r}, expected cpu, cpu:N or cuda:N, separated by commas"
    )


def test_no_devices_at_all() -> None:
    with pytest.raises(ConfigError) as caught:
        devices.resolve([])
    assert line_of(caught) == "devices: got none, expected names like cpu:0 (or auto)"


@pytest.fixture(params=[False, True], ids=["no driver", "driver"])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine of two cores with and without an NVIDIA driver -> what is said of its GPUs."""
    driver: bool = request.param
    monkeypatch.setattr(devices, "cores", lambda: 2)
    monkeypatch.setattr("os.path.exists", lambda _: driver)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    return (
        "CuPy is not installed (pip install cupy-cuda13x)"
        if driver
        else "this machine has no NVIDIA driver (0 GPUs; 2 processor cores)"
    )


def test_a_gpu_that_is_not_there(there: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devices.resolve("cuda:1")
    assert line_of(caught) == (
        f"devices: got 'cuda:1', but {there}; use --devices cpu (or cpu:0,cpu:1)"
    )


def test_a_driver_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        pass

    def count() -> int:
        raise Refused("the driver is insufficient")

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=Refused)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr("os.path.exists", lambda _: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr("rt.ops.cuda_archs", lambda: "90")
    monkeypatch.setattr(devices, "_cupy", lambda: cupy)
    assert devices.gpu_report() == "CUDA does not start (the driver is insufficient)"


@pytest.mark.parametrize("count, instead", [(1, "cpu:0"), (2, "cpu:0,cpu:1"), (4, "cpu:0,cpu:1")])
def test_gpus_that_are_not_there(there: str, count: int, instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devices.gpus(count)
    assert line_of(caught) == f"gpus: got {count}, but {there}; use --devices {instead} instead"
    assert [d.name for d in devices.resolve(instead)] == instead.split(",")  # it works


@pytest.mark.parametrize("count", [0, -3])
def test_no_gpus_asked_for(count: int) -> None:
    with pytest.raises(ConfigError) as caught:
        devices.gpus(count)
    assert line_of(caught) == (
        f"gpus: got {count}, expected at least 1; leave it out to use the processor"
    )


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_for_a_gpu_on_the_processor(name: str) -> None:
    (device,) = devices.resolve("auto")
    with pytest.raises(ConfigError) as caught:
        device.backend(name)
    assert f"backend {name} runs on a GPU; got cpu:0, use --devices cuda:0" in line_of(caught)
