"""Steering: the intended change of a class's test loss, beside what retraining makes of it.

Weights are made for the mean loss of a class over queries A; achieved is the change over A and over
queries B, which the weights have not seen, of networks retrained from scratch with five seeds.
Beside it, changes of the weights of the same length that know nothing of influence.

    python -m benchmarks.steering digits --out benchmarks/results
    python -m benchmarks.steering fashion --data DIR --out benchmarks/results
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

import bif
from benchmarks.common import parser, print_table, trust_figures, write
from bif.benchmark.tasks import digits, fashion
from bif.evaluate import Recipe, retrain_weighted, train
from bif.problem.items import Items
from bif.susceptibility import Steering, steer
from bif.types import Batch

SIZES = (-0.5, -0.25, -0.1, 0.1, 0.25, 0.5, 1.0)
"""Intended changes, as shares of the target's loss."""
TARGETS = (2, 5, 8)
"""Classes whose loss is steered, taken before anything was run."""
IN_GROUP = 50
"""Queries of a class in A, and in B."""
SEEDS = range(5)
WAYS: dict[str, dict[str, Any]] = {
    "clipped": {"weights": "clipped"},
    "free": {"weights": "free"},
    "clipped, others held": {"weights": "clipped", "hold": True},
    "free, others held": {"weights": "free", "hold": True},
    "clipped, second order": {"weights": "clipped", "order": "second"},
}
SOLVED_WAYS = {name: WAYS[name] for name in ("clipped", "clipped, others held")}


@dataclass(frozen=True)
class Setting:
    """A trained network, its data, and how it is retrained and sampled.

    Attributes:
        train: Train items.
        queries: Of A and B, `[2, 10, IN_GROUP, …]`, and their classes.
        network: Before training.
        recipe: Of training and retraining.
        settings: Of the covariance.
    """

    train: Items
    queries: tuple[Tensor, Tensor]
    network: nn.Module
    recipe: Recipe
    settings: bif.Settings
    about: str


def digits_setting(_: Path, device: str, seed: int) -> Setting:
    """scikit-learn's digits: 500 to train on."""
    parts = digits.split(500, seed=seed, device=device)
    used = {str(i) for i in parts["train"].ids}
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rest = np.asarray([i for i in range(len(pixels)) if f"digit-{i}" not in used])
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    recipe = Recipe(600, 0.1, momentum=0.9, weight_decay=5e-3, schedule="cosine")
    return Setting(
        parts["train"], grouped(x[rest].to(device), y[rest].to(device)),
        nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).to(device), recipe,
        sampled(500, recipe.weight_decay, seed, gamma=5.0, draws=400, thin=2),
        "scikit-learn's digits, 500 train items, MLP 64-64-10 tanh, 4,810 weights",
    )  # fmt: skip


def fashion_setting(data: Path, device: str, seed: int) -> Setting:
    """Fashion-MNIST at half its resolution: 1,000 images to train on."""
    parts = [fashion.images(data, part, slice(0, count), device)
             for part, count in (("train", 1000), ("t10k", 2000))]  # fmt: skip
    (x, y), (qx, qy) = (
        (nn.functional.avg_pool2d(p.data[0].view(-1, 1, 28, 28), 2).flatten(1), p.data[1])
        for p in parts
    )
    recipe = Recipe(600, 0.1, momentum=0.9, weight_decay=1e-2, batch_size=250, schedule="cosine")
    return Setting(
        Items((x, y), ids=list(parts[0].ids), labels=y.tolist()), grouped(qx, qy),
        nn.Sequential(nn.Linear(196, 24), nn.Tanh(), nn.Linear(24, 10)).to(device), recipe,
        sampled(1000, recipe.weight_decay, seed, gamma=50.0, draws=320, thin=4),
        "Fashion-MNIST at 14 by 14, 1,000 train images, MLP 196-24-10 tanh, 4,978 weights",
    )  # fmt: skip


SETTINGS: dict[str, Callable[[Path, str, int], Setting]] = {
    "digits": digits_setting, "fashion": fashion_setting,
}  # fmt: skip


def sampled(num_train: int, weight_decay: float, seed: int, **given: Any) -> bif.Settings:
    """Return settings of a posterior ten times as cold as untempered, told the weight decay.

    Retraining from scratch knows of no gamma, so it is small; on Fashion-MNIST it and the weight
    decay were raised once, until the run passed its gates.
    """
    return bif.Settings(
        nbeta=10.0 * num_train, weight_decay=weight_decay, chains=32, block_size=32, seed=seed,
        estimator="covariance", **given,
    )  # fmt: skip


def grouped(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first queries of every class, in two sets, `[20, IN_GROUP, …]`."""
    places = [(y == label).nonzero()[: 2 * IN_GROUP, 0] for label in range(10)]
    order = torch.stack(places).unflatten(1, (2, IN_GROUP)).transpose(0, 1).flatten(0, 1)
    return x[order], y[order]


def group_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of every group of queries, `[20]`."""
    x, y = cast(tuple[Tensor, Tensor], batch)
    each = bif.losses.cross_entropy(model, (x.flatten(0, 1), y.flatten()))
    return each.view(y.shape).mean(dim=1)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("setting", choices=SETTINGS)
    options.add_argument("--tiny", action="store_true", help="few seeds and steps, to try it")
    arguments = options.parse_args()
    setting = SETTINGS[arguments.setting](
        arguments.data or Path("."), arguments.device, arguments.seed
    )
    started = time.perf_counter()
    model = train(setting.network, bif.losses.cross_entropy, setting.train.data, setting.recipe,
                  seed=arguments.seed)  # fmt: skip
    runs = attributed(setting, model)
    print(*runs.values(), f"{time.perf_counter() - started:.0f} s", sep="\n", flush=True)
    made = made_weights(setting, model, runs, arguments)
    rows = judged(setting, model, made, seeds=SEEDS[:2] if arguments.tiny else SEEDS)
    print_table([{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows])
    write(
        f"steering-{arguments.setting}", arguments, rows, about=setting.about,
        sizes=SIZES, targets=TARGETS, recipe=setting.recipe.as_dict(),
        runs={name: {**trust_figures(run), "nbeta": run.manifest.settings["nbeta"],
                     "gamma": run.manifest.settings["gamma"], "draws": run.summary.draws}
              for name, run in runs.items()},
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def attributed(setting: Setting, model: nn.Module) -> dict[str, bif.Run]:
    """Return runs by sampling and by solving, of the same posterior."""
    problem = bif.Problem(
        model, bif.losses.cross_entropy, train=setting.train,
        queries=Items(setting.queries, ids=[f"{part}{c}" for part in "AB" for c in range(10)]),
        observables=[bif.Observable("loss", group_loss, "lower")],
    )  # fmt: skip
    s = setting.settings
    solved = bif.Settings(
        nbeta=s.nbeta, gamma=s.gamma, weight_decay=s.weight_decay, seed=s.seed,
        estimator="response",
    )  # fmt: skip
    return {"covariance": bif.attribute(problem, s), "response": bif.attribute(problem, solved)}


def made_weights(
    setting: Setting, model: nn.Module, runs: dict[str, bif.Run], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return all re-weightings, each with its intention and its weights."""
    with torch.no_grad():
        losses = bif.losses.cross_entropy(model, setting.train.data).double().cpu().numpy()
        now = group_loss(model, setting.queries).double().cpu().numpy()
    labels, made = setting.train.data[1].cpu().numpy(), []
    for target in TARGETS[:1] if arguments.tiny else TARGETS:
        others = [f"A{c}" for c in range(10) if c != target]
        for share in SIZES:
            size, common = share * now[target], {"class": target, "share": share}
            for by, run in runs.items():
                for way, given in (WAYS if by == "covariance" else SOLVED_WAYS).items():
                    held = others if "hold" in given else ()
                    found = steer(
                        run,
                        f"A{target}",
                        change=size,
                        hold=held,
                        weights=given["weights"],
                        order=given.get("order", "first"),
                    )
                    made.append({**common, "by": by, "how": way, **figures(found, target)})
            size_of = {
                (m["by"], m["how"]): m["size"] for m in made[-len(WAYS) - len(SOLVED_WAYS) :]
            }
            length = size_of["covariance", "clipped"]
            rng = np.random.default_rng([arguments.seed, target, SIZES.index(share)])
            own = (labels == target).astype(float)
            for name, direction in {
                "random": rng.standard_normal(len(labels)),
                "by loss": own * losses * -np.sign(share),
                "by class": own * -np.sign(share),
            }.items():
                weights = of_length(direction, length)
                made.append({**common, "by": "baseline", "how": name, "intended": size,
                             "size": float(np.linalg.norm(weights - 1)),
                             "weights": weights})  # fmt: skip
    return made


def figures(found: Steering, target: int) -> dict[str, Any]:
    """Return what a steering intends and predicts."""
    row = found.dataset.sel(observable="loss")
    return {
        "intended": found.intended, "reached": found.is_reached, "size": found.size,
        "weights": found.weights, "share_moved": found.share_moved,
        "least_weight": float(found.weights.min()),
        "reliability": found.reliability,
        **{f"{name}_{part}": float(row[name].sel(query=f"{part}{target}"))
           for part in "AB" for name in ("predicted", "predicted_error", "second")},
    }  # fmt: skip


def of_length(direction: np.ndarray, size: float) -> np.ndarray:
    """Return weights along a direction, at least 0 and of mean 1, that differ from 1 by a length.

    As far as the direction goes, where it does not go so far.
    """

    def weights(factor: float) -> np.ndarray:
        made = np.maximum(1 + factor * direction, 0)
        return made * (len(made) / made.sum())

    def away(factor: float) -> float:
        return float(np.linalg.norm(weights(factor) - 1)) - size

    far = 1.0
    while away(far) < 0 and far < 1e6:
        far *= 2
    return weights(brentq(away, 0, far) if away(far) > 0 else far)  # type: ignore[arg-type]


def judged(
    setting: Setting, model: nn.Module, made: Sequence[dict[str, Any]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the rows with what retraining achieves, less the network of equal weights."""
    ones = np.ones(len(setting.train))
    stacked = np.stack([ones, *(row["weights"] for row in made)])
    values = np.full((len(stacked), len(seeds), 20), np.nan)
    for start in range(0, len(stacked), 16):  # a stack that diverges costs no other
        part = slice(start, start + 16)
        values[part] = retrained(setting, model, stacked[part], seeds)
        print(f"{min(part.stop, len(stacked))} of {len(stacked)} retrained", flush=True)
    rows = []
    for row, moved in zip(made, values[1:] - values[:1], strict=True):
        own = [row["class"], 10 + row["class"]]
        others = np.delete(moved, own, axis=1).mean(axis=0)
        rows.append({
            **{name: value for name, value in row.items() if name != "weights"},
            "achieved_A": float(moved[:, own[0]].mean()),
            "achieved_B": float(moved[:, own[1]].mean()),
            "side_A": float(np.sqrt((others[:9] ** 2).mean())),
            "side_B": float(np.sqrt((others[9:] ** 2).mean())),
            "side_mean_B": float(others[9:].mean()),
            "seeds_A": moved[:, own[0]].tolist(), "seeds_B": moved[:, own[1]].tolist(),
        })  # fmt: skip
    return rows


def retrained(
    setting: Setting, model: nn.Module, weights: np.ndarray, seeds: Sequence[int]
) -> np.ndarray:
    """Return the losses of the groups, `[W, S, 20]`; NaN of weights with which a seed diverges."""
    try:
        return retrain_weighted(
            model, bif.losses.cross_entropy, setting.train.data, weights, setting.recipe,
            outcomes={"loss": (group_loss, setting.queries)}, seeds=list(seeds),
        )["loss"]  # fmt: skip
    except FloatingPointError:
        if len(weights) == 1:
            return np.full((1, len(seeds), 20), np.nan)
        return np.concatenate([retrained(setting, model, w[None], seeds) for w in weights])


if __name__ == "__main__":
    main()
