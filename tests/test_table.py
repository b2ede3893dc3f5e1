"""What every benchmark shares: options that mean something, or one line that says what would."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.table import ROOT, Parser, above, count


@given(st.integers(-5, 10**9))
def test_a_count_is_one_or_more(number: int) -> None:
    if number >= 1:
        assert count(str(number)) == number
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=f"got {number}, expected"):
            count(str(number))


@given(st.floats(), st.floats(-10, 10))
def test_a_number_is_finite_and_above_its_bound(number: float, least: float) -> None:
    if least < number < float("inf"):
        assert above(least)(str(number)) == number
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number above"):
            above(least)(str(number))


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    p = Parser(prog="python -m bench.any")
    p.add_argument("--runs", type=count)
    with pytest.raises(SystemExit) as ended:
        p.parse_args(["--runs", "0"])
    assert ended.value.code == 2
    told = "error: argument --runs: got 0, expected a whole number above 0"
    assert capsys.readouterr().err == f"{told}; see python -m bench.any --help\n"


def test_a_program_is_named_as_it_is_called() -> None:
    command = [sys.executable, "-m", "bench.controller", "--sessions", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("; see python -m bench.controller --help\n")
    assert done.stderr.count("\n") == 1
