"""`bif stages --example hierarchy`: the toy from end to end, its figures and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bif import store
from bif.report.trajectories import Curve, draw_curves
from bif.stages import hierarchy
from bif.stages.result import Trajectory

_PAIRS = (("dog", "item/cat"), ("dog", "item/sparrow"), ("dog", "item/rose"))


def run_hierarchy(out: str, *, seed: int = 0) -> dict[str, Any]:
    """Carry the example out, write `summary.json` and `trajectories.svg`, and return the summary.

    A run that was cut short goes on.
    """
    known = hierarchy.exact(seed)
    halves = hierarchy.sampled(seed, known, out=Path(out), show_progress=True)
    found = hierarchy.summary(known, halves)
    split = "mammals from birds"
    found["window"] = hierarchy.window_effects("dog", split, found["splits"][split]["peak_step"])
    curves = draw_curves(known.steps, _panels(known, halves), marked=known.branching)
    store.write_summary(out, found, files={"trajectories.svg": curves})
    return found


def _panels(known: hierarchy.Exact, halves: list[Trajectory]) -> dict[str, list[Curve]]:
    both, truth = [], []
    for train, query in _PAIRS:
        name = f"{train} on {query.rpartition('/')[2]}"
        values, errors = hierarchy.combined(halves, train, query)
        both.append(Curve(name, values, 2 * errors))
        place = hierarchy.ITEMS.index(query.rpartition("/")[2]), hierarchy.ITEMS.index(train)
        truth.append(Curve(name, known.retraining[:, place[0], place[1]]))
    of_splits = []
    for name in hierarchy.SPLITS:
        values, errors = hierarchy.combined(halves, "dog", f"split/{name}")
        of_splits.append(Curve(f"dog on {name}", values, 2 * errors))
    agreement = [
        Curve(name, np.array([np.nan, *values]), dashed=name != "bif")
        for name, values in hierarchy.correlations(known, halves).items()
    ]
    return {
        "influence (± 2 s.e.)": both,
        "retraining": truth,
        "influence on a split": of_splits,
        "correlation with retraining": agreement,
    }
