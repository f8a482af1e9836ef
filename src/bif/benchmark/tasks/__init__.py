"""The settings of `bif lds`: each a module with a function `task(data, device=…, seed=…)`."""

from __future__ import annotations

import importlib
from pathlib import Path

from bif.benchmark.task import Task

SETTINGS = ("logistic", "digits", "concrete", "fashion", "cifar", "resnet20", "stories")
WITHOUT_DATA = ("logistic", "digits")
"""Settings whose data come with scikit-learn."""


def named_task(
    name: str, data: str | Path | None, *, device: str, seed: int, size: int | None = None
) -> Task:
    """Return the task of a setting.

    Args:
        name: One of `SETTINGS`.
        data: Folder with the setting's files; not needed by those of `WITHOUT_DATA`.
        device: Where to train, retrain and sample.
        seed: Seed of split, training and sampling.
        size: Number of train items, where the setting lets one choose.

    Raises:
        ValueError: Unknown setting; no data folder.
        FileNotFoundError: A file is not in the folder.
    """
    if name not in SETTINGS:
        raise ValueError(
            f"no setting {name!r}; there are {', '.join(SETTINGS)}. Name one of these, or a task "
            "of your own by FILE.py:FUNCTION."
        )
    if data is None and name not in WITHOUT_DATA:
        raise ValueError(f"setting {name!r} reads its data from files: pass --data DIR.")
    module = importlib.import_module(f"bif.benchmark.tasks.{name}")
    return module.task(Path(data or "."), device=device, seed=seed, size=size)
