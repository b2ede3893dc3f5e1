"""The command line: what it prints, how it ends, and that it never shows a traceback."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from micro_engine import MICRO, remembered_exports

from export import commands as cli
from export import prepare
from export.models.presets import PRESETS


@pytest.fixture
def _micro_is_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(MICRO, name="tiny"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        code = end.code if isinstance(end.code, int) else 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_help_shows_defaults_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "build-engines", "--help")
    assert code == 0
    for part in ("--max-batch", "(default: 4)", "(default: 256)", "(default: engines)"):
        assert part in out
    assert "None" not in out
    for command in ("build-engines", "verify", "list", "inspect"):
        assert command in run(capsys, "--help")[1]
    assert run(capsys, "--version")[:2] == (0, "streamdiffusion-rt 0.1.0\n")


@pytest.mark.usefixtures("_micro_is_a_preset")
def test_build_list_inspect_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out_folder = tmp_path / "engines"
    build = ("build-engines", "--out", out_folder, "--height", "64", "--width", "64")
    with remembered_exports():
        code, out, err = run(capsys, *build)
        assert (code, err) == (0, "")
        assert "24 plans built, 0 found finished" in out
        assert "note: the weights are random" in out
        code, out, _ = run(capsys, *build)
        assert (code, "up to date" in out, "random" in out) == (0, True, False)
    engine = out_folder / "tiny"
    code, out, _ = run(capsys, "list", "--out", out_folder)
    assert code == 0
    assert "64x64" in out
    code, out, _ = run(capsys, "inspect", engine)
    assert code == 0
    assert "block_1" in out
    assert "as block_0 step" in out
    assert "k_ring Bx2x96x16 alias" in out
    code, out, _ = run(capsys, "inspect", next((tmp_path / "checkpoints").glob("tiny-random-0-*")))
    assert (code, "Wan DiT" in out) == (0, True)
    code, out, err = run(capsys, "verify", "--engines", engine)
    assert (code, err) == (0, "")
    assert out.count("ok") >= 24
    assert "FAILED" not in out
    (engine / "block_0.onnx").unlink()
    code, _, err = run(capsys, *build)
    assert code == 1
    assert err.count("\n") == 1
    told = re.search(r"block_0\.onnx is missing; mend it with: python -m export (.*) \(of", err)
    assert told is not None
    checkpoint = next((tmp_path / "checkpoints").iterdir())
    with remembered_exports():
        mend = told[1].replace("FOLDER", str(checkpoint))
        assert run(capsys, *shlex.split(mend))[::2] == (0, "")
    assert run(capsys, "inspect", engine)[0] == 0


def test_inspect_takes_the_weights_of_an_engine(
    capsys: pytest.CaptureFixture[str], tiny_engine: Path
) -> None:
    path = tiny_engine / "weights.safetensors"
    code, out, err = run(capsys, "inspect", path)
    assert (code, err) == (0, "")
    whole, *units = out.splitlines()
    assert whole.startswith(f"{path}: weights of micro for onnxruntime, ")
    assert {"text", "dit_in", "block_0", "block_1"} <= {line.split()[0] for line in units}
    counts = [re.findall(r"(\d+) tensors, ([\d,]+) parameters", line) for line in (whole, *units)]
    numbers = [[int(n.replace(",", "")) for n in found] for ((*found,),) in counts]
    assert numbers[0] == [sum(column) for column in zip(*numbers[1:], strict=True)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("build-engines", "--height", "100"), 2, "height: got 100, expected a multiple of 16"),
        (("build-engines", "--window", "2"), 2, "window, sinks: got 2, 3"),
        (("build-engines", "--max-batch", "0"), 2, "max-batch: got 0"),
        (("build-engines", "--name", "a/b"), 2, "name: got 'a/b'"),
        (("build-engines", "--model", "wan-1.3b"), 2, "checkpoint: got none"),
        (("build-engines", "--checkpoint", "x", "--seed", "1"), 2, "got both"),
        (("build-engines", "--checkpoint", "nothing"), 2, "checkpoint: got nothing"),
        (("verify", "--engines", "nothing"), 1, "no engine at nothing"),
        (("list", "--out", "nothing"), 1, "no engine in nothing"),
        (("inspect", "nothing"), 2, "PATH: got nothing"),
        (("inspect", "/dev/null"), 1, "/dev/null"),
        (("build-engines", "--out", "/dev/null/x", "--seed", "1"), 1, "/dev/null"),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [(), ("frob",), ("build-engines", "--model", "huge")])
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "function", "arguments", "said"),
    [
        (cli, "_build", ("build-engines",), "what is finished is kept; the same command goes on"),
        (cli, "_verify", ("verify",), "no verdict; the same command begins again"),
        (cli, "_list", ("list",), "nothing was written"),
        (prepare, "_fetch", ("fetch", "wan-1.3b"), "the same command goes on at the last byte"),
    ],
)
def test_interruption_says_what_is_left(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    function: str,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, function, interrupted)
    assert run(capsys, *arguments) == (130, "", f"interrupted: {said}\n")


@pytest.mark.usefixtures("_micro_is_a_preset")
def test_verify_fails_where_a_plan_differs(
    capsys: pytest.CaptureFixture[str], tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import verify

    honest = verify.run

    def slightly_wrong(*arguments: object) -> verify.Arrays:
        return {name: array + 0.01 for name, array in honest(*arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "run", slightly_wrong)
    code, out, err = run(capsys, "verify", "--engines", tiny_engine)
    assert code == 1
    assert "FAILED" in out
    assert err.count("\n") == 1
