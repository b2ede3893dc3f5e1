"""Downloads the weights that people use, through huggingface-hub: one commit, every byte checked.

A file is written as `<name>.incomplete` first, and a later call goes on where it ends. The commit
is that of the first call, and stays (`fetched.json`); what the hub says of each file is compared
with what arrived.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from export.staging import write_whole
from rt.errors import ConfigError, SourceError

RECORD = "fetched.json"
INCOMPLETE = ".incomplete"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Release:
    """A repository of the hub and the files of it that a build reads."""

    repo: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remote:
    """What the hub says of a file. `digest` is its sha256, or the hash of git for a small one."""

    name: str
    size: int
    digest: str


_ORIGINAL = (
    "diffusion_pytorch_model*.safetensors",
    "config.json",
    "Wan2.1_VAE.pth",
    "models_t5_umt5-xxl-enc-bf16.pth",
    "google/umt5-xxl/*",
)
_DIFFUSERS = ("transformer/*", "vae/*", "text_encoder/*", "tokenizer/*")
RELEASES = {
    "wan-1.3b": Release("Wan-AI/Wan2.1-T2V-1.3B", _ORIGINAL),
    "wan-14b": Release("Wan-AI/Wan2.1-T2V-14B", _ORIGINAL),
    "wan-1.3b-diffusers": Release("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", _DIFFUSERS),
    "wan-14b-diffusers": Release("Wan-AI/Wan2.1-T2V-14B-Diffusers", _DIFFUSERS),
    "streamdiffusionv2-1.3b": Release("jerryfeng/StreamDiffusionV2", ("wan_causal_dmd_v2v/*",)),
    "streamdiffusionv2-14b": Release("jerryfeng/StreamDiffusionV2", ("wan_causal_dmd_v2v_14b/*",)),
    "causvid": Release("tianweiy/CausVid", ("autoregressive_checkpoint/model.pt",)),
    "self-forcing": Release("gdhe17/Self-Forcing", ("checkpoints/self_forcing_dmd.pt",)),
    "longlive": Release(
        "Efficient-Large-Model/LongLive-1.3B", ("models/longlive_base.pt", "models/lora.pt")
    ),
    "krea-14b": Release("krea/krea-realtime-video", ("krea-realtime-video-14b.safetensors",)),
    "taehv": Release("daydreamlive/Autoencoders", ("taew2_1.pth",)),
}
"""Repositories as their users name them (REFERENCE 2); none could be looked up when this was
written.
"""


def fetch(
    release: Release,
    folder: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> str:
    """Bring the files of `release` into `folder`, as they lie in the repository; the commit.

    `revision` is a commit, branch or tag; None: the commit of the last call, at first that of the
    main branch. Raises SourceError for what the hub does not give or gives wrongly.
    """
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    known = json.loads(record.read_text()) if record.is_file() else {}
    if known and known["repo"] != release.repo:
        raise ConfigError(f"out: got {folder}, which holds {known['repo']}; name another folder")
    revision = revision or known.get("commit", "main")
    try:
        commit, files = _listing(release, revision, endpoint)
        said(f"{release.repo} at {commit}: {sum(f.size for f in files) / 1e9:.2f} GB")
        for file in files:
            _bring(release, commit, file, folder, endpoint, said)
    except (HTTPError, HFValidationError, OSError) as error:
        line = str(error).strip().splitlines()[0]
        raise SourceError(f"{release.repo}: {line}; the same command goes on") from None
    entry: Mapping[str, object] = {
        "repo": release.repo,
        "commit": commit,
        "files": {f.name: {"bytes": f.size, "digest": f.digest} for f in files},
    }
    write_whole(record, [json.dumps(entry, indent=1).encode() + b"\n"])
    return commit


def _listing(release: Release, revision: str, endpoint: str | None) -> tuple[str, list[Remote]]:
    """The commit of a revision, and the files of the release in it."""
    from huggingface_hub import HfApi

    about = HfApi(endpoint=endpoint).model_info(
        release.repo, revision=revision, files_metadata=True
    )
    files = []
    for pattern in release.files:
        found = [s for s in about.siblings or () if fnmatch(s.rfilename, pattern)]
        if not found:
            raise SourceError(f"{release.repo} at {about.sha}: has no {pattern}")
        for sibling in found:
            digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            if sibling.size is None or digest is None or about.sha is None:
                raise SourceError(f"{release.repo}: the hub gives no size or hash of {pattern}")
            files.append(Remote(sibling.rfilename, sibling.size, digest))
    assert about.sha is not None
    return about.sha, files


def _bring(
    release: Release,
    commit: str,
    file: Remote,
    folder: Path,
    endpoint: str | None,
    said: Callable[[str], None],
) -> None:
    """One file, unless it is there. What does not have its hash is deleted."""
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    path = folder / file.name
    if path.is_file() and digest_of(path, len(file.digest)) == file.digest:
        said(f"{file.name}: there")
        return
    partial = path.with_name(f"{path.name}.{file.digest[:8]}{INCOMPLETE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(release.repo, file.name, revision=commit, endpoint=endpoint)
    if file.size > MAX_HTTP_DOWNLOAD_SIZE:  # the hub gives such files in pieces of its own
        hf_hub_download(
            release.repo, file.name, revision=commit, local_dir=folder, endpoint=endpoint
        )
        path.rename(partial)
    else:
        with partial.open("ab") as target:
            http_get(
                url,
                target,
                resume_size=target.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )
    if (got := digest_of(partial, len(file.digest))) != file.digest:
        partial.unlink()
        raise SourceError(
            f"{release.repo}: {file.name} arrived with hash {got[:12]}, the hub says "
            f"{file.digest[:12]}; it was deleted, run the command again"
        )
    partial.rename(path)
    said(f"{file.name}: {file.size / 1e6:.1f} MB, hash {got[:12]}")


def digest_of(path: Path, length: int) -> str:
    """sha256 of a file, or, for 40 digits, git's hash of it as a blob."""
    blob = length == 40
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if blob else hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
