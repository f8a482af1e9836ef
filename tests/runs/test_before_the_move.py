"""Folders written before modules moved into rooms are read, and are what the same call asks for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bif
from bif.bank import load, retrained
from bif.estimate import estimate_covariance
from bif.sampling.engine import Engine
from bif.store import FolderInUse
from stored_problem import PLAN, RECIPE, SETTINGS, stored_problem, tuning_queries

STORED = Path(__file__).parents[1] / "fixtures" / "before_the_move.tar.xz"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The stored folders, unpacked."""
    shutil.unpack_archive(STORED, tmp_path, filter="data")
    return tmp_path


def never(*_: Any, **__: Any) -> None:
    """In the place of work that is not to be done again."""
    pytest.fail("the work was done again")


def test_a_complete_run_has_the_scores_of_its_traces(folder: Path):
    run = bif.load(folder / "run")
    scores = run.influence.dataset["influence"].values
    assert scores.shape == (2, 3, 8)
    again = -estimate_covariance(run.traces).value.numpy()
    assert np.allclose(scores.reshape(6, 8), again, rtol=1e-6)


def test_a_complete_run_is_what_the_same_call_returns(folder: Path, monkeypatch):
    before, stored = contents(folder / "run"), bif.load(folder / "run")
    monkeypatch.setattr(Engine, "__init__", never)
    run = bif.attribute(stored_problem(), SETTINGS, out=folder / "run")
    blocks = zip(run.traces.blocks, stored.traces.blocks, strict=True)
    assert all(torch.equal(a.query, b.query) for a, b in blocks)
    assert contents(folder / "run") == before


def test_another_loss_of_the_library_is_another_run(folder: Path):
    with pytest.raises(FolderInUse, match="loss"):
        bif.attribute(stored_problem(bif.losses.margin), SETTINGS, out=folder / "run")


def test_a_complete_bank_is_what_the_same_call_returns(folder: Path, monkeypatch):
    stored = load(folder / "bank")
    monkeypatch.setattr("bif.evaluate.retraining.trainers.RecipeTrainer.outcomes", never)
    again = retrained(
        stored_problem(), tuning_queries(), RECIPE, PLAN, target="scratch", out=folder / "bank"
    )
    assert [part.purpose for part in again.parts] == ["reported", "tuning"]
    for part, other in zip(stored.parts, again.parts, strict=True):
        assert np.array_equal(part.masks, other.masks)
        for name, values in part.outcomes.items():
            assert np.array_equal(values, other.outcomes[name])
