"""What the documentation quotes is there: every command line parses, every link leads somewhere,
every public name has its place.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest

import rt
from export.commands import _parser as export_parser
from rt import calibrate, media, options, plan
from rt.media.places import Kind
from rt.serve import options as serve_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PARSERS: Mapping[str, Callable[[], argparse.ArgumentParser]] = {
    "rt.stream": options.parser,
    "rt.serve": serve_options.parser,
    "rt.plan": plan.parser,
    "rt.calibrate": calibrate.parser,
    "export": export_parser,
}


def quoted() -> Iterator[tuple[str, str]]:
    """Page and text of everything set as code: blocks and spans, joined where a line ends in \\."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"^    (\S.*)$", text, re.M)
        fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)
        lines += [line for block in fenced for line in block.splitlines()]
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
        for code in (*lines, *spans):
            yield page.name, code


def commands() -> list[tuple[str, str, list[str]]]:
    found = []
    for page, code in quoted():
        for part in re.split(r"\s[|&]+\s", code.partition("   # ")[0].partition("  # ")[0]):
            match = re.match(r"(?:.*/)?python3? -m (rt\.\w+|export)\b(.*)", part.strip())
            if match is not None and "..." not in part:
                found.append((page, match[1], shlex.split(match[2])))
    return found


@pytest.mark.parametrize("page, module, given", commands())
def test_command_lines_parse(page: str, module: str, given: list[str]) -> None:
    parser = PARSERS[module]()
    if not given or "--help" in given:
        return  # Named, not called.
    rest: list[str] = []
    if module == "rt.stream":  # What a page may leave out because it is about something else.
        for names, value in (
            (["--prompt", "--prompt-embedding"], "x"),
            (["--output"], "o"),
            (["--input", "--scene"], "i"),
        ):
            rest += [] if set(names) & set(given) else [names[0], value]
    try:
        parser.parse_args([*given, *rest])
    except (rt.ConfigError, SystemExit) as error:
        pytest.fail(f"{page}: python -m {module} {shlex.join(given)}: {error}")


def test_there_are_command_lines() -> None:
    assert len(commands()) > 20
    assert {module for _, module, _ in commands()} == set(PARSERS)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    known = {name for line in re.findall(r"^([\w -]+):", makefile, re.M) for name in line.split()}
    for page, code in quoted():
        for target in re.findall(r"^make ([a-z-]+)", code):
            assert target in known, f"{page}: make {target}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


API = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize(
    "name",
    [f"rt.{name}" for name in rt.__all__] + [f"media.{name}" for name in media.__all__],
)
def test_public_names_are_on_the_api_page(name: str) -> None:
    assert re.search(rf"`{re.escape(name)}\b", API), name


@pytest.mark.parametrize(
    "record",
    [rt.Frame, rt.SLO, rt.SessionConfig, rt.Report, rt.SessionStatus, rt.Status, rt.Decision],
)
def test_fields_of_records_are_on_the_api_page(record: type) -> None:
    (row,) = re.findall(rf"^\| `rt\.{record.__name__}` \|.*$", API, re.M)
    for field in dataclasses.fields(record):
        assert f"`{field.name}`" in row, field.name


def rows(page: str, title: str) -> list[str]:
    """What stands first in the table under a title."""
    text = (ROOT / "docs" / page).read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.M)
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def test_the_places_of_the_tables_are_the_places_of_the_code() -> None:
    given = [shlex.split(code)[0] for code in rows("run.md", "Sources") if code[:2] != "--"]
    assert {media.inlet(text).kind for text in given} >= set(get_args(Kind)) - {"hls", "mjpeg"}
    given = [code for code in rows("run.md", "Sinks") if code[:2] != "--"]
    endings = {"out" + text if text[0] == "." else text for text in given}
    assert {media.outlet(text).kind for text in endings} == set(get_args(Kind)) - {"http"}


def test_the_report_is_explained() -> None:
    page = (ROOT / "docs" / "latency.md").read_text()
    for field in dataclasses.fields(rt.Report):
        assert f"`{field.name}`" in page or field.name == "fps_warmup_frames", field.name
