"""Downloads against a hub of our own over HTTP: what it says, cuts, damages and takes away."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

from export import commands as cli
from export.fetch import INCOMPLETE, RECORD, RELEASES, Release, fetch
from rt.errors import ConfigError, SourceError

REPO = "people/weights"
RELEASE = Release(REPO, ("model/*.pt", "config.json"))
BIG = bytes(range(256)) * 4000
FIRST, SECOND = "a" * 40, "b" * 40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Hub:
    """What the hub holds, how it misbehaves, and what it was asked: (file, range)."""

    url: str = ""
    main: str = FIRST
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def about(self, revision: str) -> dict[str, object] | None:
        """As the hub answers for a repository with the metadata of its files."""
        commit = self.main if revision == "main" else revision
        if commit not in self.files:
            return None
        siblings = []
        for name, content in self.files[commit].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith(".pt"):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": REPO, "sha": commit, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path.startswith(f"/api/models/{REPO}/revision/"):
            about = self.hub.about(path.rpartition("/")[2])
            if about is None:
                return self.answer(404, b'{"error": "not found"}')
            return self.answer(200, json.dumps(about).encode())
        commit, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
        content = self.hub.files.get(commit, {}).get(name)
        if content is None:
            return self.answer(404, b"{}")
        content = self.hub.served.get(name, content)
        wanted = self.headers.get("Range")
        self.hub.asked.append((name, wanted))
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        part = content[start:]
        if self.hub.cut_after is not None and name.endswith(".pt"):
            self.wfile.write(part[: self.hub.cut_after])
            self.hub.cut_after = None
            self.close_connection = True
            return None
        self.wfile.write(part)
        return None

    def answer(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    hub.files = {
        FIRST: {"model/a.pt": BIG, "config.json": b"{}", "other.bin": b"not asked for"},
        SECOND: {"model/a.pt": BIG[::-1], "config.json": b"[]"},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_arrive_whole_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    assert fetch(RELEASE, tmp_path, endpoint=hub.url, said=said.append) == FIRST
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"model/a.pt", "config.json", RECORD}
    assert (tmp_path / "model/a.pt").read_bytes() == BIG
    assert FIRST in said[0]
    asked = len(hub.asked)
    fetch(RELEASE, tmp_path, endpoint=hub.url)
    assert len(hub.asked) == asked, "what is there is not fetched again"


def test_the_first_commit_stays_until_another_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    fetch(RELEASE, tmp_path, endpoint=hub.url)
    hub.main = SECOND
    assert fetch(RELEASE, tmp_path, endpoint=hub.url) == FIRST
    assert (tmp_path / "config.json").read_bytes() == b"{}"
    assert fetch(RELEASE, tmp_path, endpoint=hub.url, revision=SECOND) == SECOND
    assert (tmp_path / "config.json").read_bytes() == b"[]"
    assert (tmp_path / "model/a.pt").read_bytes() == BIG[::-1]
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["commit"] == SECOND
    assert record["files"]["model/a.pt"]["digest"] == sha256(BIG[::-1])


def test_a_later_call_goes_on_where_the_first_was_cut(hub: Hub, tmp_path: Path) -> None:
    """As after the process was killed: what it had written is there, nothing is in memory."""
    partial = tmp_path / f"model/a.pt.{sha256(BIG)[:8]}{INCOMPLETE}"
    partial.parent.mkdir()
    partial.write_bytes(BIG[:300_000])
    fetch(RELEASE, tmp_path, endpoint=hub.url)
    assert ("model/a.pt", "bytes=300000-") in hub.asked
    assert (tmp_path / "model/a.pt").read_bytes() == BIG
    assert not partial.exists()


def test_a_connection_that_breaks_is_taken_up_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.cut_after = 500_000
    fetch(RELEASE, tmp_path, endpoint=hub.url)
    assert (tmp_path / "model/a.pt").read_bytes() == BIG
    ranges = [wanted for name, wanted in hub.asked if name == "model/a.pt"]
    assert ranges == [None, "bytes=500000-"]


@pytest.mark.parametrize("name", ["model/a.pt", "config.json"])
def test_a_damaged_file_is_deleted_and_named(hub: Hub, tmp_path: Path, name: str) -> None:
    true = hub.files[FIRST][name]
    hub.served[name] = bytes([true[0] ^ 1]) + true[1:]
    with pytest.raises(SourceError, match=rf"{name} arrived with hash \w+, the hub says") as caught:
        fetch(RELEASE, tmp_path, endpoint=hub.url)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.rglob(f"*{INCOMPLETE}"))
    hub.served.clear()
    fetch(RELEASE, tmp_path, endpoint=hub.url)
    (tmp_path / name).write_bytes(b"changed on the disk")
    fetch(RELEASE, tmp_path, endpoint=hub.url)
    assert (tmp_path / name).read_bytes() == true


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no lora\.pt"):
        fetch(Release(REPO, ("lora.pt",)), tmp_path, endpoint=hub.url)
    for release, revision in ((RELEASE, "c" * 40), (Release("people/none", ("a",)), None)):
        with pytest.raises(SourceError) as caught:
            fetch(release, tmp_path, endpoint=hub.url, revision=revision)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="the same command goes on"):
        fetch(RELEASE, tmp_path, endpoint="http://127.0.0.1:9")
    fetch(RELEASE, tmp_path, endpoint=hub.url)
    with pytest.raises(ConfigError, match=f"holds {REPO}"):
        fetch(Release("people/others", ("a",)), tmp_path, endpoint=hub.url)


def test_the_command(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RELEASES, "taehv", RELEASE)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fetch", "taehv", "--endpoint", hub.url]) == 0
    out = capsys.readouterr().out
    assert "model/a.pt: 1.0 MB" in out
    assert f"checkpoints/taehv: {REPO} at {FIRST}" in out
    assert (tmp_path / "checkpoints/taehv/model/a.pt").read_bytes() == BIG
