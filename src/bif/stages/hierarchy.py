"""The hierarchical toy: a linear network that learns animals and plants down to species.

Eight items, each known by its features: that it lives, what kingdom, class and species it is of.
A network of two linear layers and a small start learns one level after another, and an item that
helped while two items were still told apart from a third harms when they part (Saxe et al. 2019;
Lee et al. 2025, arXiv 2510.12071).  Influence by draws, the exact one, the gradient product and
retraining are set side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.problem.series import CheckpointSeries
from bif.sampling.settings import Settings
from bif.stages.result import Trajectory
from bif.stages.run import trajectory
from bif.types import Batch

ITEMS = ("dog", "cat", "sparrow", "robin", "rose", "daisy", "oak", "pine")
SPLITS = {
    "animals from plants": (1, 1, 1, 1, -1, -1, -1, -1),
    "mammals from birds": (1, 1, -1, -1, 0, 0, 0, 0),
    "dogs from cats": (1, -1, 0, 0, 0, 0, 0, 0),
}
"""Queries that ask how two branches differ, as combinations of the items."""
HIDDEN, START, LEARNING_RATE, STEPS, EVERY = 16, 1e-5, 0.1, 1200, 30
_NBETA = 1e7
"""Draws stay within a few ten-thousandths of the checkpoint, where the loss is quadratic."""
_DAMPING = 2.0
"""gamma/nbeta in units of the most negative curvature of all checkpoints."""
_CHAINS, _DRAWS = 128, 150
_SEEDS = 20
"""Trainings in which the item is left out within a window."""
_WINDOW = 40
"""Steps of a window."""


def features() -> Tensor:
    """Return what is known of each item, `[8, 15]`: life, 2 kingdoms, 4 classes, 8 species."""
    found = torch.zeros(8, 15, dtype=torch.float64)
    for i in range(8):
        found[i, [0, 1 + i // 4, 3 + i // 2, 7 + i]] = 1
    return found


def half_squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared distance from the features of each item, `[B]`."""
    inputs, targets = batch
    return 0.5 * (model(inputs) - targets).square().sum(dim=1)


def network() -> nn.Module:
    """Return the network, with weights that are written over."""
    layers = nn.Linear(8, HIDDEN, bias=False), nn.Linear(HIDDEN, 15, bias=False)
    return nn.Sequential(*layers).double()


def pose() -> Problem:
    """Return the problem: the items, and as queries the items again and the splits."""
    known, ones = features(), torch.eye(8, dtype=torch.float64)
    splits = torch.tensor(list(SPLITS.values()), dtype=torch.float64)
    splits = splits / splits.norm(dim=1, keepdim=True)
    items = Items((ones, known), ids=ITEMS)
    asked = Items((splits, splits @ known), ids=tuple(SPLITS))
    queries = {"item": items, "split": asked}
    return Problem(network(), half_squared_error, train=items, queries=queries)


def train(starts: Sequence[int], kept: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Train networks by gradient descent from several starts at once.

    Args:
        starts: Seeds of the starts.
        kept: Weights of the items at each step, `[B, STEPS, 8]`; 1 by default.

    Returns:
        State dicts `[B, *shape]` before each step and at the end.
    """
    drawn = [_start(seed) for seed in starts]
    w1, w2 = (torch.stack(leaves) for leaves in zip(*drawn, strict=True))
    known, path = features().T, []
    for step in range(STEPS + 1):
        path.append({"0.weight": w1, "1.weight": w2})
        if step == STEPS:
            break
        off = known - w2 @ w1
        off = off if kept is None else off * kept[:, step, None]
        w1, w2 = w1 + LEARNING_RATE / 8 * w2.mT @ off, w2 + LEARNING_RATE / 8 * off @ w1.mT
    return path


def _start(seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*shape, generator=source, dtype=torch.float64)
            for shape in ((HIDDEN, 8), (15, HIDDEN))]  # fmt: skip
    return START * draw[0], START * draw[1]


@dataclass(frozen=True, eq=False)
class Exact:
    """What is computed without draws at every checkpoint.

    Attributes:
        steps: `[K]`.
        influence: `-g_q (H + damping)⁻¹ g_i`, `[K, Q, N]`.
        gradient_product: `-g_q · g_i`, `[K, Q, N]`.
        retraining: Loss of a query less that of a training without the item, `[K, Q, N]`.
        damping: gamma/nbeta.
        at_other_dampings: The influence of the dog on the sparrow, `[K]`, with half and with four
            times of what the damping exceeds the most negative curvature by.
        branching: For each split the step at which it is learned by half.
    """

    steps: tuple[int, ...]
    influence: np.ndarray
    gradient_product: np.ndarray
    retraining: np.ndarray
    damping: float
    at_other_dampings: Mapping[str, np.ndarray]
    branching: Mapping[str, int]


def exact(seed: int) -> Exact:
    """Return influence from the exact Hessian, and the truth from retraining."""
    problem, path = pose(), train([seed])
    kept = 1 - torch.eye(8, dtype=torch.float64).unsqueeze(1).expand(8, STEPS, 8)
    without = train([seed] * 8, kept)
    steps = tuple(range(0, STEPS + 1, EVERY))
    everything = [items.data for items in (problem.train, *problem.query_groups.values())]
    inputs, targets = (torch.cat([data[k] for data in everything]) for k in (0, 1))
    model = problem.model

    def losses(flat: Tensor) -> Tensor:
        first, second = flat.split([HIDDEN * 8, 15 * HIDDEN])
        weights = {"0.weight": first.view(HIDDEN, 8), "1.weight": second.view(15, HIDDEN)}
        return 0.5 * (functional_call(model, weights, inputs) - targets).square().sum(dim=1)

    def flat(weights: Mapping[str, Tensor], row: int) -> Tensor:
        return torch.cat([leaf[row].flatten() for leaf in weights.values()])

    at = [flat(path[step], 0) for step in steps]
    curvatures = [hessian(lambda w: losses(w)[:8].mean())(w) for w in at]
    lowest = min(float(torch.linalg.eigvalsh(matrix)[0]) for matrix in curvatures)
    damping = -_DAMPING * lowest
    eye = torch.eye(len(at[0]), dtype=torch.float64)
    gradients = [jacrev(losses)(w) for w in at]

    def influence(damping: float) -> np.ndarray:
        solved = [
            -g[8:] @ torch.linalg.solve(matrix + damping * eye, g[:8].T)
            for g, matrix in zip(gradients, curvatures, strict=True)
        ]
        return torch.stack(solved).numpy()

    others = {f"{x:g}": -lowest * (1 + x * (_DAMPING - 1)) for x in (0.5, 4.0)}
    on_sparrow = {x: influence(there)[:, ITEMS.index("sparrow"), 0] for x, there in others.items()}
    retraining = [
        (losses(w)[8:, None] - torch.stack([losses(flat(without[s], i))[8:] for i in range(8)], 1))
        for w, s in zip(at, steps, strict=True)
    ]
    return Exact(
        steps, influence(damping),
        torch.stack([-g[8:] @ g[:8].T for g in gradients]).numpy(),
        torch.stack(retraining).numpy(), damping, on_sparrow, _branching(path, problem),
    )  # fmt: skip


def _branching(path: Sequence[Mapping[str, Tensor]], problem: Problem) -> dict[str, int]:
    """Return the first step at which the answer to each split has half of its final size."""
    inputs, targets = problem.query_groups["split"].data
    found = {}
    for name, x, y in zip(SPLITS, inputs, targets, strict=True):
        learned = [float((w["1.weight"][0] @ w["0.weight"][0] @ x).norm()) for w in path]
        found[name] = next(s for s, size in enumerate(learned) if size > float(y.norm()) / 2)
    return found


def sampled(seed: int, known: Exact, *, out: Path | None, show_progress: bool) -> list[Trajectory]:
    """Return two trajectories of the same checkpoints by chains of their own."""
    path = train([seed])
    series = CheckpointSeries.from_weights(
        {step: {name: leaf[0] for name, leaf in path[step].items()} for step in known.steps}
    )
    found = []
    for half in range(2):
        settings = Settings(
            estimator="covariance", nbeta=_NBETA, gamma=_NBETA * known.damping, chains=_CHAINS // 2,
            draws=_DRAWS, seed=1000 * seed + half,
        )  # fmt: skip
        place = None if out is None else out / f"half-{half}"
        found.append(trajectory(pose(), series, settings, out=place, show_progress=show_progress))
    return found


def window_effects(item: str, split: str, peak: int) -> dict[str, Any]:
    """Return how much more it harms to leave an item out at a peak than at other times.

    The harm is the loss on the split at the end of a window without the item, less that with it.
    Over starts of their own; the other windows' mean is taken.
    """
    query = list(SPLITS).index(split)
    inputs, targets = (x[query] for x in pose().query_groups["split"].data)
    first = max(0, peak - _WINDOW // 2)
    begins = [first, *(b for b in range(first % _WINDOW, STEPS - _WINDOW, _WINDOW) if b != first)]
    kept = torch.ones(1 + len(begins), STEPS, 8, dtype=torch.float64)
    for row, begin in enumerate(begins):
        kept[1 + row, begin : begin + _WINDOW, ITEMS.index(item)] = 0
    differences = []
    for seed in range(100, 100 + _SEEDS):
        path = train([seed] * len(kept), kept)

        def loss(step: int, row: int, path: list[dict[str, Tensor]] = path) -> float:
            answer = path[step]["1.weight"][row] @ path[step]["0.weight"][row] @ inputs
            return float(0.5 * (answer - targets).square().sum())

        harm = [loss(b + _WINDOW, 1 + k) - loss(b + _WINDOW, 0) for k, b in enumerate(begins)]
        differences.append(harm[0] - float(np.mean(harm[1:])))
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / _SEEDS**0.5
    return {
        "item": item, "split": split, "window": [first, first + _WINDOW], "seeds": _SEEDS,
        "more_harm_than_elsewhere": mean, "interval": [mean - 2.093 * error, mean + 2.093 * error],
    }  # fmt: skip


def combined(halves: Sequence[Trajectory], train: str, query: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the influence by all chains and its standard errors, `[K]`, times nbeta."""
    pairs = [half.of_pair(train, query) for half in halves]
    values = np.mean([value for value, _ in pairs], axis=0)
    errors = np.sqrt(np.sum([error**2 for _, error in pairs], axis=0)) / len(pairs)
    return _NBETA * values, _NBETA * errors


def peak_step(steps: Sequence[int], scores: np.ndarray) -> int:
    """Return where the parabola through the most negative of scores `[K]` and its neighbours is."""
    k = min(max(int(np.argmin(scores)), 1), len(scores) - 2)
    before, at, after = scores[k - 1 : k + 2]
    bend = before - 2 * at + after
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return round(steps[k] + float(np.clip(shift, -0.5, 0.5)) * (steps[k + 1] - steps[k]))


def correlations(known: Exact, halves: Sequence[Trajectory]) -> dict[str, list[float]]:
    """Return the correlation with retraining over pairs of items, at all checkpoints but the first.

    Of influence by draws, from the exact Hessian, and of the gradient product.
    """
    sampled = np.mean([half.dataset["influence"].values[:, 0] for half in halves], axis=0)
    rivals = {
        "bif": sampled,
        "analytic": known.influence,
        "gradient_product": known.gradient_product,
    }
    return {
        name: [
            _correlation(a, b)
            for a, b in zip(scores[1:, :8], known.retraining[1:, :8], strict=True)
        ]
        for name, scores in rivals.items()
    }


def summary(known: Exact, halves: Sequence[Trajectory]) -> dict[str, Any]:
    """Return the figures of the example.

    The checkpoint of an extreme is chosen on one half of the chains; its value and standard error
    are the other half's.  Scores are in units of the exact influence, times nbeta.
    """
    choose, tell = halves

    def extreme(train: str, query: str, sign: int) -> list[float]:
        values, _ = choose.of_pair(train, query)
        k = int(np.argmax(sign * values))
        value, error = (x[k] * _NBETA for x in tell.of_pair(train, query))
        return [float(value), float(error), int(tell.steps[k])]

    splits = {}
    for name, branching in known.branching.items():
        peak = peak_step(known.steps, combined(halves, "dog", f"split/{name}")[0])
        splits[name] = {"branching_step": branching, "peak_step": peak, "ratio": peak / branching}
    return {
        "dog_sparrow_most_helpful": extreme("dog", "item/sparrow", -1),
        "dog_sparrow_most_harmful": extreme("dog", "item/sparrow", 1),
        "never_flips": extreme("dog", "item/dog", 1),
        "never_flips_pair": ["dog", "dog"],
        "splits": splits,
        "steps": list(known.steps[1:]),
        "correlation_with_retraining": correlations(known, halves),
        "trusted_checkpoints": [int(half.dataset["trusted"].sum()) for half in halves],
        "damping": known.damping,
        "dog_on_splits_most_harmful_exactly": {
            name: float(known.influence[:, len(ITEMS) + k, 0].max())
            for k, name in enumerate(SPLITS)
        },
        "dog_sparrow_at_other_dampings": {
            x: [float(values.min()), float(values.max())]
            for x, values in known.at_other_dampings.items()
        },
        "nbeta": _NBETA,
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
