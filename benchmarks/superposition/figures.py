"""The figures of the benchmark: of a stage's record, and their means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import mean_interval
from benchmarks.superposition.reweighting import PREDICTORS
from benchmarks.superposition.scores import OBSERVABLES

Figure = tuple[str, str, str]
"""What is measured, by which way, and of which observable."""
_OF_REWEIGHTING = ("top, ", "rival, ")
_SHARE = "share of stages"


def figures(stage: dict[str, Any]) -> dict[Figure, float]:
    """Return the figures of one stage: leads are parts of the step at which it is past."""
    found: dict[Figure, float] = {}
    end, seen = stage["loss_half"], stage["timings"][0]["risen"]
    for curve in stage["timings"]:
        of = curve["way"], curve["asked"]
        found["risen before the loss is half-way", *of] = 1 - curve["risen"] / end
        found["risen before the loss has", *of] = (seen - curve["risen"]) / end
        found[f"risen before the loss has, {_SHARE}", *of] = float(curve["risen"] < seen)
        if "peak" in curve:
            for asked in OBSERVABLES:
                figure = f"peak before the {asked} is half-way"
                found[figure, *of] = 1 - curve["peak"] / stage[f"{asked}_half"]
    for name, value in stage.items():
        if name.startswith(_OF_REWEIGHTING):
            found[name, "", ""] = value
    told = {(row["way"], row["asked"]): row for row in stage["delays told"]}
    for (way, asked), row in told.items():
        for over in ("all", "others"):
            beside = told[PREDICTORS[-1], asked][over]
            found[f"delays told, {over}", way, asked] = row[over]
            if way != PREDICTORS[-1]:
                figure = f"delays told, {over}, beyond the {PREDICTORS[-1]}"
                found[figure, way, asked] = row[over] - beside
    return found


def summary(studies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over the stages of a seed, of these the means over seeds, and intervals."""
    by_seed = [[figures(stage) for stage in one["stages"]] for one in studies]
    rows = []
    for of in by_seed[0][0]:
        means = [float(np.mean([stage[of] for stage in stages])) for stages in by_seed]
        named = dict(zip(("figure", "way", "asked"), of, strict=True))
        mean = mean_interval(means)
        rows.append({**named, **({"mean": mean["mean"]} if _SHARE in of[0] else mean)})
    return sorted(rows, key=lambda row: row["figure"])
