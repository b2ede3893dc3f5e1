"""Prompts encoded ahead: as transformers gives them, as an engine gives them, and as `rt` reads
them, without a text encoder and without transformers.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_engine import MICRO, SIZE, build_micro
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import UMT5Config, UMT5EncoderModel

import rt
from export import checkpoints, prompts
from export import commands as cli
from export.layout import find
from rt import manifest as records
from rt import media
from rt.errors import CheckpointError, ConfigError, EngineMismatch

PROMPTS = ("pencil sketch", "a neon city at night, rain, " + "detailed painting " * 60)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of diffusers' layout whose text encoder transformers wrote."""
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=1024, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder", max_shard_size="60KB")
    checkpoints.make_tokenizer(folder / "tokenizer/tokenizer.json")
    (folder / "transformer").mkdir()
    return folder


def test_it_gives_what_transformers_gives(release: Path) -> None:
    """The second prompt has over a hundred tokens: every bucket of distances is in use."""
    oracle = UMT5EncoderModel.from_pretrained(release / "text_encoder").eval()
    tokenizer = Tokenizer.from_file(str(release / "tokenizer/tokenizer.json"))
    made = prompts.encode_with_weights(PROMPTS, find(release))
    assert len(made[1].embeddings) > 128
    for encoded, prompt in zip(made, PROMPTS, strict=True):
        ids = torch.tensor(tokenizer.encode(prompt).ids)[None]
        with torch.inference_mode():
            expected = oracle(input_ids=ids).last_hidden_state[0].numpy()
        assert encoded.embeddings.shape == expected.shape
        assert np.abs(encoded.embeddings - expected).max() <= 1e-4
        assert expected.std() > 0.1


@pytest.fixture(scope="module")
def textless(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model without its text encoder, from the same weights; it has the tokenizer."""
    folder = tmp_path_factory.mktemp("textless")
    weights = next((tiny_engine.parents[1] / "checkpoints").glob("micro-random-0-*"))
    copy = shutil.copytree(weights, folder / "weights")
    next(copy.glob("models_t5*")).unlink()
    return build_micro(folder, checkpoint=copy)


def scene() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(5)]


def restyled(engine: Path, prompt: str | Path) -> np.ndarray:
    with rt.Pipeline.load(engine) as pipeline, pipeline.session(prompt=prompt) as session:
        return np.stack([frame.rgb for frame in session.stream(scene())])


def test_an_engine_without_text_gives_the_same_pictures(
    tiny_engine: Path, textless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights, the engine's own unit, a file, and a text that stands for a file: all one."""
    expected = restyled(tiny_engine, "pencil sketch")
    weights = next((tiny_engine.parents[1] / "checkpoints").glob("micro-random-0-*"))
    for source in (("--engines", tiny_engine), ("--checkpoint", weights)):
        path = tmp_path / f"{source[0]}.safetensors"
        arguments = ["encode-prompt", "pencil sketch", *map(str, source), "--out", str(path)]
        assert cli.main(arguments) == 0
        assert np.abs(np.int16(restyled(textless, path)) - np.int16(expected)).max() <= 1
    with pytest.raises(ConfigError, match="no text unit; write its embeddings first"):
        restyled(textless, "pencil sketch")
    with rt.Pipeline.load(textless) as pipeline, pytest.raises(ConfigError, match="encode-prompt"):
        pipeline.example_prompt()

    engine = shutil.copytree(textless, tmp_path / "engine")
    arguments = ["encode-prompt", "pencil sketch", "neon", "--engines", str(tiny_engine)]
    assert cli.main([*arguments, "--out", str(engine)]) == 0
    assert "tokens of 16" in capsys.readouterr().out
    assert np.abs(np.int16(restyled(engine, "pencil sketch")) - np.int16(expected)).max() <= 1
    with pytest.raises(ConfigError, match=r"there are: 'neon', 'pencil sketch'"):
        restyled(engine, "oil painting")
    with rt.Pipeline.load(engine) as pipeline, pipeline.session(prompt="neon") as session:
        assert pipeline.example_prompt() in (engine / "prompts").iterdir()
        session.update(prompt=[("neon", 1.0), ("pencil sketch", 1.0)], transition_chunks=1)
        assert len(list(session.stream(scene()))) == 5
    records.check_files(records.read(engine), engine)


STREAM = """
import sys
from rt.stream import main
code = main(sys.argv[1:])
assert not {"torch", "transformers", "export"} & set(sys.modules), "loaded"
sys.exit(code)
"""


def test_the_command_streams_from_a_file(tiny_engine: Path, textless: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    arguments = ["encode-prompt", "neon", "--engines", str(tiny_engine), "--out", str(path)]
    assert cli.main(arguments) == 0
    source = media.moving_scene(SIZE, SIZE, 16.0, 0.5)
    sink = media.open_sink(tmp_path / "in.mp4", source, SIZE, SIZE)
    for frame in source:
        sink.write(frame)
    sink.close()
    command = ["--input", str(tmp_path / "in.mp4"), "--engines", str(textless)]
    command += ["--prompt-embedding", str(path), "--output", str(tmp_path / "out.mp4")]
    done = subprocess.run([sys.executable, "-c", STREAM, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_the_file_says_what_it_is(tiny_engine: Path, tmp_path: Path) -> None:
    made = prompts.encode_with_engine(["neon"], tiny_engine)[0]
    path = tmp_path / "a.safetensors"
    prompts.write(made, path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"]["prompt"] == "neon"
    assert header["__metadata__"]["encoder"] == "micro, unit text"
    assert header["embeddings"]["dtype"] == "F32"
    assert np.array_equal(load_file(path)["embeddings"], made.embeddings)


def test_bad_files_are_refused_in_one_line(tiny_engine: Path, tmp_path: Path) -> None:
    made = prompts.encode_with_engine(["neon"], tiny_engine)[0]
    good = tmp_path / "good.safetensors"
    prompts.write(made, good)

    def other(name: str, **changes: object) -> Path:
        prompts.write(dataclasses.replace(made, **changes), tmp_path / name)  # type: ignore[arg-type]
        return tmp_path / name

    raw = bytearray(good.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(raw)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    (tmp_path / "text.safetensors").write_text("neon")
    save_file({"other": made.embeddings}, tmp_path / "name.safetensors")
    bad = {
        tmp_path / "flipped.safetensors": "damaged",
        tmp_path / "cut.safetensors": "unreadable",
        tmp_path / "text.safetensors": "unreadable",
        tmp_path / "name.safetensors": "unreadable",
        tmp_path / "absent.safetensors": "unreadable",
        other("wide.safetensors", embeddings=np.ones((2, 17), np.float32)): r"\[2, 17\]",
        other("long.safetensors", embeddings=np.ones((9, 16), np.float32)): "9 tokens",
        other("half.safetensors", embeddings=np.ones((2, 16), np.float16)): "float16",
        other("nan.safetensors", embeddings=np.full((2, 16), np.nan, np.float32)): "NaN",
        other("other.safetensors", tokenizer_sha256="0" * 64): "another text encoder",
    }
    with rt.Pipeline.load(tiny_engine) as pipeline:
        for path, said in bad.items():
            with pytest.raises(ConfigError, match=f"prompt: .*{said}") as caught:
                pipeline.session(prompt=path)
            assert "\n" not in str(caught.value)
        with pipeline.session(prompt=good) as session:
            assert len(list(session.stream(scene()[:1]))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("a", "b", "--out", "x.safetensors"), 2, "for 2 prompts"),
        ((" ",), 2, "expected words"),
        (("word " * 600,), 2, "tokens, expected at most 512"),
    ],
)
def test_mistakes_are_one_line(
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["encode-prompt", *arguments, "--checkpoint", str(release)]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_release_without_its_parts(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "copy")
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(CheckpointError, match="no text encoder or no tokenizer"):
        prompts.encode_with_weights(PROMPTS, find(copy))
    assert prompts.encode_with_weights(["a"], find(copy, release))[0].embeddings.shape[1] == 24
    assert MICRO.text.vocabulary == 1024
    with pytest.raises((EngineMismatch, rt.EngineMissing)):
        prompts.encode_with_engine(["a"], tmp_path)
