"""Call the command line in this process, on a file as a user would write it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bif import cli

PROBLEM = """
    import sys
    sys.path.insert(0, {tests!r})
    import bif
    from small_problems import classification, labelled

    def problem():
        return classification()

    def other():
        return classification(train=labelled(20, seed=9))

    def more():
        return labelled(3, seed=3)

    def named():
        return {{"easy": bif.Items(labelled(2, seed=4)), "hard": bif.Items(labelled(2, seed=5))}}

    def easy():
        return labelled(2, seed=4)

    def nothing():
        return 3

    def broken():
        return classification(train_weights=[1.0])

    constant = 5
"""
TINY_FLAGS = [
    "--chains", "4", "--draws", "6", "--burn-in", "4", "--thin", "2",
    "--step-size", "0.02", "--friction", "2.0", "--gamma", "5.0",
]  # fmt: skip

Answer = tuple[int, str, str]


def write_problem(folder: Path) -> Path:
    path = folder / "mine.py"
    path.write_text(dedent(PROBLEM).format(tests=str(Path(__file__).parent)))
    return path


def caller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """A function that runs `bif ARGUMENTS` and returns exit code, stdout and stderr."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["bif", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def failed(answer: Answer, status: int = 2) -> str:
    """The message of a refusal: nothing but one message on stderr."""
    code, out, err = answer
    assert code == status and out == "" and "Traceback" not in err
    assert err.startswith("bif: ")
    return err
