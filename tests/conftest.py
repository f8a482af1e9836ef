"""Settings of the whole suite, and fixtures that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from command_line import Answer, caller, write_problem
from same_bits import without_page
from small_problems import nothing_measured

# The tensors of the tests are small, and the workers of `pytest -n` already fill the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _plain_plots() -> Iterator[None]:
    """Pages have empty plots, whose drawing takes half of a small run; not in tests of the report.

    `tests/report/conftest.py` draws them again.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bif.report.plots._svg", lambda draw, name: "<svg></svg>")
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without a look at their sampler."""
    monkeypatch.setattr("bif.runs.block_run.check", nothing_measured)


@pytest.fixture
def no_page() -> Iterator[None]:
    """Runs end without their page for people, whose drawing takes longer than they do."""
    with without_page():
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Problems in a file as a user would write it."""
    return write_problem(tmp_path)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """A function that runs `bif ARGUMENTS` and returns exit code, stdout and stderr."""
    return caller(monkeypatch, capsys)
