"""Small runs on disk, made without any sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from bif.store import Commit, RunFolder, open_run
from bif.store.seals import seal

SETTINGS = {"draws": 5, "movable": ("*",), "gamma": None}


def wanted(*, keep: str = "traces", settings: Any = None, **identity: Any) -> dict[str, Any]:
    """The manifest of the run that is asked for."""
    return {
        "identity": {
            "settings": {**SETTINGS, **(settings or {})},
            "model": "abc",
            "queries": {"query": "q"},
            "candidates": {},
            **identity,
        },
        "keep": keep,
    }


def finish(run: RunFolder, *, complete: bool = True) -> None:
    run.finish(
        manifest={"complete": complete},
        influence=xr.Dataset({"influence": ("train", np.arange(3.0))}),
        diagnostics=xr.Dataset({"ess": ("item", [1.0])}),
        summary={"draws": 5},
        report="<html></html>",
    )


def commit(run: RunFolder, *, draws: int = 3) -> None:
    run.update({"blocks": [[0, 2]], "arrays": ["train_loss-0"]})
    run.block(0).commit(
        Commit(serial=1, step=7, draws=draws),
        traces={"train_loss-0": np.ones((2, draws, 4))},
        weights={},
        state={"w": torch.ones(3)},
    )


def begun(folder: Path) -> Path:
    """A run that was cut short after a commit."""
    with open_run(folder, wanted()) as run:
        commit(run)
    return folder


def ended(folder: Path, **changed: Any) -> Path:
    """A complete run."""
    with open_run(folder, wanted(**changed)) as run:
        commit(run)
        finish(run)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def resealed(path: Path, *without: str, **changed: Any) -> None:
    """A manifest with other entries, or without some, and the digest of those."""
    found = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps(seal({n: v for n, v in found.items() if n not in without})))
