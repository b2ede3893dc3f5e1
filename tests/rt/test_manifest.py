"""The manifest: what is written is read back, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rt import manifest as records
from rt.errors import EngineMismatch, EngineMissing


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


def edit(engine: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = engine / records.FILE_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_roundtrip(tiny_engine: Path, tmp_path: Path) -> None:
    manifest = records.read(tiny_engine)
    records.write(manifest, tmp_path)
    assert records.read(tmp_path) == manifest
    written, original = (d / records.FILE_NAME for d in (tmp_path, tiny_engine))
    assert written.read_bytes() == original.read_bytes()


def test_a_built_engine_passes_every_check(tiny_engine: Path) -> None:
    records.check_files(records.read(tiny_engine), tiny_engine)


def test_no_directory_and_no_manifest(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(EngineMissing, match="build-engines"):
            records.read(directory)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("precision"),
        lambda data: data["geometry"].pop("height"),
        lambda data: data["chain"][0]["plans"]["step"].pop("flop"),
        lambda data: data.update(colour="blue"),
        lambda data: data["chain"][0].update(colour="blue"),
        lambda data: data.update(max_batch="4"),
        lambda data: data.update(max_batch=True),
        lambda data: data.update(max_batch=4.0),
        lambda data: data.update(name=None),
        lambda data: data["noise"].update(timesteps=700),
        lambda data: data["noise"].update(timesteps=[700.5]),
        lambda data: data["noise"].update(s_max="0.8"),
        lambda data: data.update(chain={}),
        lambda data: data["chain"][0].update(kind="guess"),
        lambda data: data["chain"][0].update(plans=[]),
        lambda data: data["chain"][-1]["plans"]["step"]["inputs"][0].update(shape=["C", 3]),
        lambda data: data.update(text=[]),
    ],
)
def test_a_field_that_is_missing_extra_or_of_another_type(
    engine: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit(engine, change)
    with pytest.raises(EngineMismatch, match="build the engine again"):
        records.read(engine)


def test_another_schema_says_which(engine: Path) -> None:
    edit(engine, lambda data: data.update(schema=99))
    with pytest.raises(EngineMismatch, match=f"schema 99, this version reads {records.SCHEMA}"):
        records.read(engine)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"a"', "{}", "\x00", "\xff"])
def test_what_is_no_manifest_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / records.FILE_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(EngineMismatch, match="build the engine again"):
        records.read(tmp_path)


def test_a_flipped_byte_in_any_file_is_named_with_the_command_that_mends_it(engine: Path) -> None:
    manifest = records.read(engine)
    names = [path.name for path in engine.iterdir()]
    assert {"weights.safetensors", "tokenizer.json", "block_0.onnx"} <= set(names)
    for name in names:
        path = engine / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(EngineMismatch, match="build-engines") as caught:
            records.check_files(manifest, engine)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    records.check_files(manifest, engine)


@pytest.mark.parametrize("name", [records.FILE_NAME, records.DIGEST_NAME])
def test_a_manifest_that_was_edited_is_refused(engine: Path, name: str) -> None:
    """Also where what it says is still possible."""
    edit(engine, lambda data: data["noise"].update(s_max=data["noise"]["s_max"] / 2))
    manifest = records.read(engine)
    if name == records.DIGEST_NAME:
        records.sign(engine)
        records.check_files(manifest, engine)
        (engine / name).unlink()
    with pytest.raises(EngineMismatch, match=r"manifest\.json is not the one.*build-engines"):
        records.check_files(manifest, engine)


def test_a_missing_file_is_named(engine: Path) -> None:
    manifest = records.read(engine)
    (engine / "dit_in.onnx").unlink()
    with pytest.raises(EngineMismatch, match=r"dit_in\.onnx is missing.*build-engines"):
        records.check_files(manifest, engine)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("here", [True, False], ids=["in the repository", "elsewhere"])
def test_one_command_mends_the_engine_that_the_repository_keeps(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    root = tmp_path / "a clone"
    kept = Path(shutil.copytree(tiny_engine, root / "engines" / "tiny"))
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=root, check=True)
    monkeypatch.setattr(records, "_SOURCES", root)
    monkeypatch.chdir(root if here else tmp_path)
    for damage in (
        lambda: (kept / "block_0.onnx").write_bytes(b"x"),
        lambda: (kept / records.DIGEST_NAME).unlink(),
        lambda: (kept / records.FILE_NAME).write_text("{"),
        lambda: (kept / records.FILE_NAME).unlink(),
        lambda: shutil.rmtree(kept),
    ):
        damage()
        with pytest.raises((EngineMismatch, EngineMissing)) as caught:
            records.check_files(records.read(kept), kept)
        _, _, command = str(caught.value).partition("; mend it with: ")
        subprocess.run(shlex.split(command), check=True, capture_output=True)
        records.check_files(records.read(kept), kept)


def test_the_rebuild_command_names_all_that_was_chosen(tiny_engine: Path) -> None:
    command = records.read(tiny_engine).rebuild_command(tiny_engine)
    for part in ("--height 64 --width 64", "--precision fp32", "--window 6 --sinks 3"):
        assert part in command
    assert "--name micro" in command
    assert "--max-batch 4" in command


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("engines/small", "--name small --backend"),
        ("my engines/small", "--name small --out 'my engines' --backend"),
        ("/opt/engines/tiny", "--name tiny --out /opt/engines --backend"),
    ],
)
def test_the_rebuild_command_mends_the_directory_that_was_named(
    tiny_engine: Path, place: str, expected: str
) -> None:
    assert expected in records.read(tiny_engine).rebuild_command(Path(place))


def test_records_cannot_be_changed(tiny_engine: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        records.read(tiny_engine).name = "other"  # type: ignore[misc]
