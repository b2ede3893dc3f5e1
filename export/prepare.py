"""Commands for what comes before a build: fetch weights, look at files, encode prompts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.fetch import RELEASES
from rt import manifest as records
from rt.command import Parser
from rt.errors import ConfigError
from rt.prompt import FOLDER

Command = Callable[..., Parser]
"""(commands, name, function, help) -> the parser of a new command."""


def add_to(commands: Any, command: Command) -> None:
    """Add the commands to the parser of the exporter."""
    inspect = command(commands, "inspect", _inspect, "what an engine or a weights file is")
    inspect.add_argument("path", type=Path, metavar="PATH", help="folder or file")

    fetch = command(commands, "fetch", _fetch, "download a release of weights, every byte checked")
    fetch.set_defaults(interrupted="the same command goes on at the last byte")
    fetch.add_argument("name", choices=sorted(RELEASES), metavar="NAME", help=", ".join(RELEASES))
    fetch.add_argument("--out", type=Path, help="folder (default: checkpoints/NAME)")
    fetch.add_argument(
        "--revision", help="commit, branch or tag (default: the commit of the first call)"
    )
    fetch.add_argument("--endpoint", metavar="URL", help="of another hub")

    encode = command(commands, "encode-prompt", _encode, "prompts -> files of embeddings")
    encode.set_defaults(interrupted="no file was written but those named")
    encode.add_argument("prompts", nargs="+", metavar="TEXT", help="what videos should look like")
    source = encode.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="folder with a text encoder")
    source.add_argument("--engines", type=Path, metavar="DIR", help="an engine with a unit text")
    encode.add_argument("--base", type=Path, help="folder of what is not beside the checkpoint")
    encode.add_argument(
        "--out",
        type=Path,
        default=Path(FOLDER),
        metavar="PATH",
        help="folder, engine whose prompts these become, or FILE.safetensors",
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from export import inspect

    path: Path = arguments.path
    if not path.exists():
        raise ConfigError(f"PATH: got {path}, expected an engine folder or a weights file")
    folder = path if path.is_dir() else path.parent
    manifest = records.read(folder) if (folder / records.FILE_NAME).is_file() else None
    if manifest is not None and path == folder:
        records.check_files(manifest, folder)
        lines = inspect.engine(manifest, folder)
    elif manifest is not None and path.name in {file.file for file in manifest.weights}:
        records.check_files(manifest, folder)
        lines = inspect.engine_weights(manifest, path)
    else:
        lines = inspect.weights(path)
    for line in lines:
        print(line)
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from export.fetch import fetch

    folder = arguments.out or Path("checkpoints") / arguments.name
    commit = fetch(
        RELEASES[arguments.name],
        folder,
        revision=arguments.revision,
        endpoint=arguments.endpoint,
        said=print,
    )
    print(f"{folder}: {RELEASES[arguments.name].repo} at {commit}")
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    from export import layout, prompts

    texts, out = list(dict.fromkeys(arguments.prompts)), arguments.out
    if empty := [text for text in texts if not text.strip()]:
        raise ConfigError(f"prompt: got {empty[0]!r}, expected words")
    single = out.suffix == ".safetensors"
    if single and len(texts) > 1:
        raise ConfigError(f"out: got the file {out} for {len(texts)} prompts, expected a folder")
    if arguments.engines is not None:
        made = prompts.encode_with_engine(texts, arguments.engines)
    else:
        made = prompts.encode_with_weights(texts, layout.find(arguments.checkpoint, arguments.base))
    folder = out / FOLDER if (out / records.FILE_NAME).is_file() else out
    for encoded in made:
        path = out if single else folder / prompts.file_name(encoded.prompt)
        prompts.write(encoded, path)
        rows, width = encoded.embeddings.shape
        print(f"{path}: {rows} tokens of {width}, by {encoded.encoder}")
    return 0
