"""LDS on scikit-learn's digits: BAOAB beside exact-Hessian influence and the gradient product.

500 train items, MLP 64-64-10 tanh, 200 queries; a bank of 60 half-subsets, retrained from scratch
with 4 seeds and from the checkpoint.  The damping of exact influence is tuned in the run on 24
further subsets and 100 further queries, which are never reported.  The BIF's settings were chosen
on these tuning subsets and queries too: nbeta = 10 n, gamma/nbeta = .004, the training's weight
decay in U (without it w* is no stationary point of U and the chains drift off along flat
directions), losses recorded every 5 steps; step size and friction from calibration.  One run has
nothing but nbeta, gamma and weight decay given, and a budget.

    python benchmarks/digits.py --out benchmarks/results
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from common import parser, print_table, trust, write
from sklearn.datasets import load_digits
from torch import nn

import bif
from bif.baselines import ExactInfluence, gradient_product
from bif.evaluate import PairedDifference, Recipe, compare, lds, random_subsets, retrain, train

NUM_TRAIN, NUM_QUERIES, NUM_TUNING_QUERIES = 500, 200, 100
CENTER = Recipe(3000, 0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine")
RETRAIN = Recipe(1500, 0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine")
DAMPINGS = (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2)
SETTINGS = bif.Settings(
    nbeta=10.0 * NUM_TRAIN, gamma=0.04 * NUM_TRAIN, weight_decay=1e-3, chains=64, draws=800, thin=5
)
BUDGET = 60.0


@dataclass(frozen=True)
class Data:
    train: tuple[torch.Tensor, torch.Tensor]
    queries: tuple[torch.Tensor, torch.Tensor]
    tuning_queries: tuple[torch.Tensor, torch.Tensor]


def load(seed: int, device: str) -> Data:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(pixels))
    x = torch.tensor(pixels[order] / 16, dtype=torch.float32, device=device)
    y = torch.tensor(labels[order], device=device)
    stops = np.cumsum([NUM_TRAIN, NUM_QUERIES, NUM_TUNING_QUERIES])
    parts = [(x[a:b], y[a:b]) for a, b in zip([0, *stops[:-1]], stops, strict=True)]
    return Data(*parts)


def bank(
    model: nn.Module, data: Data, queries: tuple[torch.Tensor, torch.Tensor], masks: np.ndarray,
    *, num_seeds: int, device: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Query losses of networks retrained on each subset, `[S, M, Q]` for each target."""
    outcomes = {"loss": (bif.losses.cross_entropy, queries)}
    made = {}
    seeds: dict[Literal["scratch", "checkpoint"], list[int]] = {
        "scratch": list(range(num_seeds)),
        "checkpoint": [0],  # full batches from one start: seeds would all be the same
    }
    for target in seeds:
        made[target] = retrain(
            model, bif.losses.cross_entropy, data.train, masks, RETRAIN,
            outcomes=outcomes, init=target, seeds=seeds[target], device=device,
        )["loss"]  # fmt: skip
    return made


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    device, seed = arguments.device, arguments.seed
    data = load(seed, device)
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).to(device)
    loss = bif.losses.cross_entropy
    model = train(network, loss, data.train, CENTER, seed=seed, device=device)
    problem = bif.Problem(model, loss, train=data.train, queries=data.queries)
    tuning = bif.Problem(model, loss, train=data.train, queries=data.tuning_queries)
    started = time.perf_counter()
    masks = random_subsets(NUM_TRAIN, 60, seed=seed)
    outcomes = bank(model, data, data.queries, masks, num_seeds=4, device=device)
    tuning_masks = random_subsets(NUM_TRAIN, 24, seed=seed + 1000)
    tuning_bank = bank(model, data, data.tuning_queries, tuning_masks, num_seeds=1, device=device)
    print(f"banks: {time.perf_counter() - started:.1f} s", flush=True)

    scores: dict[str, tuple[np.ndarray, float, dict[str, Any]]] = {}
    started = time.perf_counter()
    scores["gradient product"] = (
        gradient_product(problem).numpy(), time.perf_counter() - started, {}
    )  # fmt: skip
    started = time.perf_counter()
    tuned: dict[float, float] = {}
    for damping in DAMPINGS:
        try:
            matrix = ExactInfluence.fit(tuning).scores(tuning, damping=damping).numpy()
        except ValueError as error:  # the damped Hessian is indefinite
            print(f"damping {damping}: {error}", flush=True)
            continue
        tuned[damping] = float(
            np.mean([lds(matrix, tuning_masks, o).mean for o in tuning_bank.values()])
        )
    damping = max(tuned, key=lambda d: tuned[d])
    print("exact influence, tuning LDS by damping:", tuned, flush=True)
    exact = ExactInfluence.fit(problem).scores(problem, damping=damping).numpy()
    scores["exact Hessian"] = (exact, time.perf_counter() - started, {"damping": damping})
    within = replace(SETTINGS, chains=None, draws=None, thin=None, budget=BUDGET)
    for name, settings in (
        ("BIF, BAOAB, 100 draws a chain", replace(SETTINGS, draws=100)),
        ("BIF, BAOAB, 800 draws a chain", SETTINGS),
        ("same, weight decay not in U", replace(SETTINGS, weight_decay=0.0)),
        (f"BIF, within {BUDGET:g} s, calibration included", within),
    ):
        settings = replace(settings, seed=seed)
        started = time.perf_counter()
        run = bif.attribute(problem, settings)
        seconds = time.perf_counter() - started
        print(run.summary, flush=True)
        facts = {**{k: run.summary[k] for k in ("draws", "ess_median")}, **trust(run)}
        values = run.influence.dataset["influence"].values[0]
        scores[name] = (values, seconds, facts)

    rows = []
    for target, values in outcomes.items():
        matrices = {method: matrix for method, (matrix, _, _) in scores.items()}
        results, differences = compare(matrices, masks, values, against="exact Hessian")
        for method, (_, seconds, facts) in scores.items():
            result = results[method]
            against = differences.get(method, PairedDifference(0.0, 0.0, 0.0))
            rows.append(
                {
                    "method": method,
                    "target": target,
                    "lds": result.mean,
                    "ci_low": result.ci_low,
                    "ci_high": result.ci_high,
                    "ceiling": result.ceiling,
                    "share_of_exact": result.mean / results["exact Hessian"].mean,
                    "minus_exact": against.mean,
                    "minus_exact_low": against.ci_low,
                    "minus_exact_high": against.ci_high,
                    "seconds": seconds,
                    **facts,
                }
            )
    print_table(rows)
    path = write("digits", arguments, rows, settings=SETTINGS.as_dict(), tuning_lds=tuned)
    print(path)


if __name__ == "__main__":
    main()
