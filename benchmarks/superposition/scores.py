"""How much each feature's items help each feature: by the library, and by what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, hessian, jacrev

import bif
from benchmarks.superposition.toy import (
    FEATURES,
    ITEMS,
    Autoencoder,
    Path,
    groups,
    pose,
    series,
    train_items,
)

OBSERVABLES = {"loss": -1.0, "size": 1.0}
"""What is asked of a feature, with the sign of a score that helps it."""
FACTORS = (0.1, 10.0)
"""Of the trajectory's damping, at which the same influence is also computed."""
_HESSIAN_DAMPING = 2.0
"""Damping of the Hessian, in units of the most negative curvature of all checkpoints: what chains
need to stay at a saddle."""
Help = dict[str, dict[str, np.ndarray]]
"""For each way and observable `[K, Q, G]`: queries by groups of items, positive where they help.
The unit is each way's own: only times and ranks are compared."""


def trajectory(path: Path, steps: Sequence[int], device: str) -> bif.Trajectory:
    """Return the influence of features' items over the checkpoints of the first training."""
    return bif.trajectory(pose(device), series(path, steps), groups=groups())


def help_by_ways(path: Path, found: bif.Trajectory) -> Help:
    """Return how much each feature's items help each feature, by influence and beside it."""
    dataset = found.dataset
    order = [[str(name) for name in dataset[axis].values] for axis in ("query_id", "train_id")]
    assert order == [list(FEATURES), list(FEATURES)], order
    scores = dataset["influence"].transpose("observable", "checkpoint", "query", "train")
    influence = {name: sign * scores.sel(observable=name).values
                 for name, sign in OBSERVABLES.items()}  # fmt: skip
    damping = float(dataset.attrs["gamma"]) / float(dataset.attrs["nbeta"])
    by_way = _without_the_library(path, [int(step) for step in found.steps], damping)
    return {"influence": influence, **by_way}


def _without_the_library(path: Path, steps: Sequence[int], damping: float) -> Help:
    """Return the gradient product, and influence by the exact matrices at several dampings."""
    at = [derivatives(path.weights(step)) for step in steps]
    lowest = min(float(torch.linalg.eigvalsh(place["hessian"])[0]) for place in at)
    eye = torch.eye(len(at[0]["hessian"]), dtype=torch.float64)

    def scores(matrix: str, damping: float) -> dict[str, np.ndarray]:
        found: dict[str, list[Tensor]] = {name: [] for name in OBSERVABLES}
        for place in at:
            solved = torch.linalg.solve(place[matrix] + damping * eye, place["items"].mT)
            for name, sign in OBSERVABLES.items():
                found[name].append(-sign * place[name] @ solved)
        return {name: torch.stack(each).numpy() for name, each in found.items()}

    return {
        "gradient product": scores("nothing", 1.0),
        **{f"influence, damping x{x:g}": scores("gauss_newton", x * damping) for x in FACTORS},
        "influence, Hessian": scores("hessian", -_HESSIAN_DAMPING * lowest),
    }


def derivatives(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients of queries and groups of items `[5, P]`, and matrices `[P, P]`, on a CPU."""
    model, items = Autoencoder(), train_items()
    ones = torch.eye(len(ITEMS), dtype=torch.float64)
    at = torch.cat([leaf.cpu().flatten() for leaf in weights.values()])

    def named(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([leaf.numel() for leaf in weights.values()])
        return {
            name: part.view_as(leaf)
            for part, (name, leaf) in zip(parts, weights.items(), strict=True)
        }

    def losses(flat: Tensor, x: Tensor = items) -> Tensor:
        return 0.5 * (functional_call(model, named(flat), (x,)) - x).square().sum(dim=-1)

    def answers(flat: Tensor) -> Tensor:
        return functional_call(model, named(flat), (items,))

    def sizes(flat: Tensor) -> Tensor:
        return named(flat)["W"].square().sum(dim=0)

    by_item, slopes = jacrev(losses)(at), jacrev(answers)(at).flatten(0, 1)
    return {
        "items": torch.stack([rows.sum(dim=0) for rows in by_item.split(list(ITEMS))]),
        "loss": jacrev(lambda flat: losses(flat, ones))(at), "size": jacrev(sizes)(at),
        "nothing": torch.zeros(len(at), len(at), dtype=torch.float64),
        "gauss_newton": slopes.mT @ slopes / len(items),
        "hessian": hessian(lambda flat: losses(flat).mean())(at),
    }  # fmt: skip
