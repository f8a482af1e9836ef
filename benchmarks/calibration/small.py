"""Small sets, given only the weight decay: the BIF beside what is simpler, by retraining.

Twelve sets (`SETS`), each with an MLP of one hidden layer, standardised inputs (and targets, if
numbers), trained by 800 steps of gradient descent on all items (momentum .9, cosine, seed
`--seed`).  The first five decided about the default temperature, the first eight about the default
damping; nothing was chosen on the last four.

A bank a set: 100 half-subsets × 3 seeds from scratch, and from the checkpoint (where whole batches
leave nothing to a seed); rivals are tuned on 24 other subsets and on the tuning queries, by the
mean of both targets (of the checkpoint alone in rows with `told`).  Rows with `told` are of runs
that were told `retrained_from="checkpoint"`; all others know nothing but the weight decay.
`exact_ggn@bif` is influence by the exact Gauss-Newton matrix at the damping of the BIF's own run,
gamma/nbeta and the weight decay.

    python -m benchmarks.calibration.small --banks BANKS --out benchmarks/results
    python -m benchmarks.calibration.small --banks BANKS --nbeta .1 .25 1 4 10 100 --out DIR
    python -m benchmarks.calibration.small --banks BANKS --dampings largest leftover --out DIR

With `--nbeta` only the BIF is run, at so many times n and the default damping, with `--dampings` at
the default temperature and one of the two yardsticks whose geometric mean the default damping is
(`bif.calibration.damping`), for the tables of both; their files are others.  Several runs at a time
(`--jobs`) look for banks that are there already.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn

import bif
from benchmarks.common import (
    add_banks,
    bank_folder,
    parser,
    print_table,
    side_by_side,
    write,
)
from bif.bank import Bank, Plan
from bif.benchmark import Task
from bif.benchmark.harness import retrain_banks
from bif.benchmark.judge import rows as rows_by_retraining
from bif.benchmark.methods import Judge, Scored, all_methods
from bif.evaluate import Recipe, train
from bif.losses import cross_entropy, squared_error
from bif.types import ItemLoss

METHODS = ("gradient_product", "ekfac", "exact_ggn", "solver_default", "bif", "exact_ggn@bif")
STEPS, SPLIT_SEED = 800, 2
PLAN = Plan(num_subsets=100, seeds=3, num_tuning_subsets=24, tuning_seeds=1)
Arrays = Any
"""Inputs and targets; the types of scikit-learn's loaders depend on their arguments."""


@dataclass(frozen=True)
class SmallSet:
    """A set of items, its split and its network, an MLP of one hidden layer.

    Half as many tuning queries as queries, 30 at least, come from the set too.
    """

    data: Callable[[], Arrays]
    num_train: int
    num_queries: int
    hidden: int
    activation: type[nn.Module]
    loss: ItemLoss
    rate: float
    weight_decay: float


def first_digits() -> Arrays:
    x, y = datasets.load_digits(return_X_y=True)
    return x[:900], y[:900]


def flipped_moons() -> Arrays:
    x, y = datasets.make_moons(500, noise=0.2, random_state=0)
    flipped = np.random.default_rng(0).random(len(y)) < 0.1
    return x, np.where(flipped, 1 - np.asarray(y), y)


def heavy_tails() -> Arrays:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(500, 8))
    smooth = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2] + np.abs(x[:, 3])
    return x, smooth + 0.3 * generator.standard_t(2.5, len(x))


SETS = {
    "cancer": SmallSet(
        partial(datasets.load_breast_cancer, return_X_y=True),
        300, 150, 16, nn.Tanh, cross_entropy, 0.1, 1e-3,
    ),
    "wine": SmallSet(
        partial(datasets.load_wine, return_X_y=True), 90, 50, 16, nn.Tanh, cross_entropy, 0.1, 1e-3
    ),
    "digits": SmallSet(first_digits, 400, 150, 32, nn.ReLU, cross_entropy, 0.1, 1e-3),
    "diabetes": SmallSet(
        partial(datasets.load_diabetes, return_X_y=True),
        250, 100, 16, nn.Tanh, squared_error, 0.03, 1e-2,
    ),
    "noisy": SmallSet(
        partial(datasets.make_classification, 700, 20, n_informative=8, n_classes=3, flip_y=0.15,
                random_state=0),
        350, 120, 24, nn.ReLU, cross_entropy, 0.1, 3e-3,
    ),
    "friedman": SmallSet(
        partial(datasets.make_friedman1, 450, 10, noise=1.0, random_state=0),
        250, 120, 24, nn.Tanh, squared_error, 0.03, 1e-3,
    ),
    "moons": SmallSet(flipped_moons, 250, 120, 16, nn.Tanh, cross_entropy, 0.1, 1e-3),
    "heavy": SmallSet(heavy_tails, 300, 130, 24, nn.Tanh, squared_error, 0.03, 1e-3),
    "swiss": SmallSet(
        partial(datasets.make_swiss_roll, 500, noise=0.5, random_state=0),
        300, 120, 24, nn.Tanh, squared_error, 0.03, 1e-3,
    ),
    "blobs": SmallSet(
        partial(datasets.make_blobs, 500, 4, centers=5, cluster_std=5.0, random_state=0),
        300, 120, 16, nn.Tanh, cross_entropy, 0.1, 1e-3,
    ),
    "multi": SmallSet(
        partial(datasets.make_classification, 600, 15, n_informative=6, n_classes=5,
                n_clusters_per_class=1, flip_y=0.02, random_state=0),
        350, 120, 32, nn.ReLU, cross_entropy, 0.1, 3e-4,
    ),
    "linear": SmallSet(
        partial(datasets.make_regression, 400, 10, noise=50.0, random_state=0),
        200, 120, 16, nn.ReLU, squared_error, 0.03, 3e-3,
    ),
}  # fmt: skip


def small_task(name: str, *, device: str, seed: int) -> Task:
    """Return the task of a set: its trained network and what judges it."""
    chosen = SETS[name]
    parts = split(chosen, seed, device)
    x, y = parts[0]
    outputs = int(y.max()) + 1 if chosen.loss is cross_entropy else 1
    network = nn.Sequential(
        nn.Linear(x.shape[1], chosen.hidden), chosen.activation(), nn.Linear(chosen.hidden, outputs)
    ).to(device)
    recipe = Recipe(
        STEPS, chosen.rate, momentum=0.9, weight_decay=chosen.weight_decay, schedule="cosine"
    )
    model = train_single_threaded(network, chosen.loss, parts[0], recipe, seed=seed, device=device)
    return Task(
        name,
        bif.Problem(model, chosen.loss, train=parts[0], queries=parts[1]),
        parts[2],
        recipe,
        replace(PLAN, mask_seed=seed),
        targets=("scratch", "checkpoint"),
        settings=(bif.Settings(weight_decay=chosen.weight_decay, seed=seed),),
        networks_per_stack=75,
    )


def split(chosen: SmallSet, seed: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Train items, queries and tuning queries, standardised by the whole set."""
    inputs, targets = chosen.data()
    x, y = torch.tensor(inputs), torch.tensor(targets)
    x = ((x - x.mean(0)) / (x.std(0) + 1e-9)).float().to(device)
    classes = chosen.loss is cross_entropy
    y = (y.long() if classes else ((y - y.mean()) / y.std()).float()).to(device)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED + seed))
    tuning = max(30, chosen.num_queries // 2)
    sizes = [chosen.num_train, chosen.num_queries, tuning]
    return [(x[places], y[places]) for places in order[: sum(sizes)].split(sizes)]


def train_single_threaded(
    network: nn.Module, loss: ItemLoss, items: tuple[Tensor, Tensor], recipe: Recipe, *,
    seed: int, device: str,
) -> nn.Module:  # fmt: skip
    """Train by one thread: to the last bit the same weights, so that a bank is found again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(network, loss, items, recipe, seed=seed, device=device)
    finally:
        torch.set_num_threads(threads)


def at_temperature(task: Task, times_n: float) -> Task:
    """Return the task with nbeta in units of its train items; gamma/nbeta stays calibration's."""
    settings = replace(task.settings[0], nbeta=times_n * task.problem.num_train)
    return replace(task, settings=(settings,))


def by_yardstick(task: Task, name: str) -> Task:
    """Return the task at the default temperature, with one of the two yardsticks as gamma/nbeta."""
    (settings,) = task.settings
    found = bif.calibrate(task.problem, settings)
    chosen, why = found.settings, " ".join(found.explanations)
    if any(words in why for words in ("so nearly orthogonal", "more, since", "raised:")):
        raise ValueError(f"{task.name}: gamma is more than the default damping: {why}")
    assert chosen.nbeta and chosen.gamma
    default, leftover = chosen.gamma / chosen.nbeta, leftover_curvature(task, settings.weight_decay)
    largest = max(default, default**2 / leftover)  # the default is sqrt(a min(a, r))
    damping = largest if name == "largest" else min(largest, leftover)
    at = replace(settings, nbeta=chosen.nbeta, gamma=chosen.nbeta * damping)
    return replace(task, settings=(at,))


def leftover_curvature(task: Task, weight_decay: float) -> float:
    """Return `|H g| / |g|` by double backward."""
    model = copy.deepcopy(task.problem.model).requires_grad_()
    weights = list(model.parameters())
    decay = 0.5 * weight_decay * torch.stack([w.square().sum() for w in weights]).sum()
    objective = task.problem.loss(model, task.problem.train.data).mean() + decay
    gradient = torch.autograd.grad(objective, weights, create_graph=True)
    fixed = [g.detach() for g in gradient]
    product = torch.autograd.grad(gradient, weights, fixed)
    squares = [sum(float(x.square().sum()) for x in found) for found in (product, fixed)]
    return (squares[0] / squares[1]) ** 0.5


def measure_rows(
    task: Task, banks: Sequence[Bank], methods: Sequence[str], **facts: Any
) -> list[dict[str, Any]]:
    """Return a row a method and target, with its paired difference from the BIF."""
    tuning = Judge([bank.tuning for bank in banks if bank.tuning is not None])
    found: list[Scored] = []
    for method in methods:
        found += all_methods()[method].run(task, tuning, found)
    n = task.problem.num_train
    with torch.no_grad():
        loss = float(task.problem.loss(task.problem.model, task.problem.train.data).mean())
    return [
        {"set": task.name, "num_train": n, "train_loss": loss, **facts, **row}
        for row in rows_by_retraining(found, banks, rival="bif")
    ]


def short_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a few figures of a row, for the terminal."""
    names = ("set", "times_n", "yardstick", "told", "target", "method", "lds", "minus_bif_low",
             "minus_bif_high", "seconds", "rhat_max", "trusted", "failed_gates")  # fmt: skip
    return {name: row[name] for name in names if name in row}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options.add_argument("--nbeta", nargs="+", type=float, help="temperatures, in units of n")
    options.add_argument("--dampings", nargs="+", choices=("largest", "leftover"))
    options.add_argument("--jobs", type=int, default=1, help="runs at a time")
    add_banks(options)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    kind = "small-temperatures" if arguments.nbeta else "small-solver"
    kind = "small-dampings" if arguments.dampings else kind
    ways = arguments.nbeta or arguments.dampings or [None]
    asked = [(name, way) for name in arguments.sets for way in ways]
    for found in side_by_side(partial(rows_of, arguments), asked, arguments.jobs):
        rows += found
        print_table([short_row(row) for row in found])
        write(kind, arguments, rows, plan=PLAN.as_dict(), threads=torch.get_num_threads())


def rows_of(
    arguments: argparse.Namespace, asked: tuple[str, float | str | None]
) -> list[dict[str, Any]]:
    """Return all rows of a set, or those of the BIF in another way."""
    name, way = asked
    task = small_task(name, device=arguments.device, seed=arguments.seed)
    with bank_folder(arguments.banks, name) as folder:
        banks, _ = retrain_banks(task, folder)
    if isinstance(way, float):
        return measure_rows(at_temperature(task, way), banks, ["bif"], times_n=way)
    if isinstance(way, str):
        return measure_rows(by_yardstick(task, way), banks, ["bif"], yardstick=way)
    told = replace(
        task, targets=("checkpoint",),
        settings=(replace(task.settings[0], retrained_from="checkpoint"),),
    )  # fmt: skip
    stay = [bank for bank in banks if bank.target == "checkpoint"]
    return measure_rows(task, banks, METHODS) + measure_rows(told, stay, METHODS, told="checkpoint")


if __name__ == "__main__":
    main()
