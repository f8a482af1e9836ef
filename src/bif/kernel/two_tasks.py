"""Two tasks in one network: what the loss kernel says of what they share.

The same inputs are classified twice, by their first half and by their second.  With parameters of
its own for each task, no loss of one moves with a loss of the other, so their correlation is zero.
With one trunk and head, and a flag that names the task, items of both tasks move alike at first,
and come apart as the network learns to tell them apart (after Adam et al. 2025, arXiv 2509.26537).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bif.estimate.item_kernel import ItemKernel
from bif.estimate.loss_kernel import LossKernel
from bif.kernel.similarities import gradient_kernel
from bif.kernel.squared import squared_kernel
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.problem.series import CheckpointSeries, stage_problem
from bif.runs.attribute import attribute
from bif.runs.loss_kernel import loss_kernel
from bif.sampling.settings import Settings
from bif.stages.common_settings import common_settings
from bif.types import Batch

ITEMS, CLASSES, INPUTS, SPREAD = 40, 4, 8, 0.4
"""Items of each task, their classes, inputs, and how far an input lies from its class."""
WIDTH, START, RATE, DECAY = 24, 0.5, 0.3, 1e-3
"""Of the network; its start in units of the usual one; of gradient descent."""
STEPS = (0, 60, 150, 400, 1200)
"""Checkpoints of the training with one trunk."""
LEARNT = 0.95
"""Share of each task's items that both networks classify in the end, at least."""
_CHAINS, _DRAWS, _DRAWS_APART = 32, 150, 700
"""Of a run; and where the correlation is to be shown to be zero."""

Figures = dict[str, tuple[float, float]]
"""Values and their standard errors."""


class Apart(nn.Module):
    """A network for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(_layers(INPUTS) for _ in range(2))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        both = torch.stack([part(x) for part in self.tasks], dim=1)
        return both.gather(1, task[:, None, None].expand(-1, 1, CLASSES)).squeeze(1)


class Together(nn.Module):
    """One network that is told the task."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _layers(INPUTS + 2)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        return self.layers(torch.cat([x, nn.functional.one_hot(task, 2).to(x)], dim=1))


def _layers(inputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of each item `[B]` on its own task."""
    x, task, label = batch
    return nn.functional.cross_entropy(model(x, task), label, reduction="none")


def items(seed: int) -> Items:
    """Return inputs, tasks and labels: the same inputs for both tasks, the first one's first."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(ITEMS) % CLASSES, torch.arange(ITEMS) // CLASSES % CLASSES
    means = [torch.randn(CLASSES, INPUTS // 2, generator=source) for _ in labels]
    x = torch.cat([mean[label] for mean, label in zip(means, labels, strict=True)], dim=1)
    x = x + SPREAD * torch.randn(x.shape, generator=source)
    task = torch.arange(2).repeat_interleave(ITEMS)
    names = [f"task {t}, item {i}" for t in range(2) for i in range(ITEMS)]
    told = [str(int(t)) for t in task]
    return Items((torch.cat([x, x]), task, torch.cat(labels)), ids=names, labels=told)


def train(make: Callable[[], nn.Module], data: Items, seed: int) -> CheckpointSeries:
    """Train by gradient descent and return the weights at `STEPS`.

    Raises:
        RuntimeError: A task is not learnt.
    """
    torch.manual_seed(seed)
    model, (x, task, label) = make(), data.data
    for parameter in model.parameters():
        parameter.data.mul_(START)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=DECAY)
    path = {}
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            path[step] = {name: leaf.clone() for name, leaf in model.state_dict().items()}
        optimizer.zero_grad()
        cross_entropy(model, (x, task, label)).mean().backward()
        optimizer.step()
    right = (model(x, task).argmax(dim=1) == label).double()
    for t in range(2):
        share = float(right[task == t].mean())
        if share < LEARNT:
            raise RuntimeError(f"task {t} is not learnt: {share:.2f} of its items are right.")
    return CheckpointSeries.from_weights(path)


def pose(make: Callable[[], nn.Module], data: Items) -> Problem:
    """Return the problem of a network; its first items are its queries, which are not used."""
    return Problem(make(), cross_entropy, train=data, queries=data.first(2))


def blocks(kernel: ItemKernel) -> np.ndarray:
    """Return mean correlations within and across tasks, their mean squares, and the contrast.

    The contrast is the mean square within less that across, as a part of that within.
    """
    tasks = range(ITEMS), range(ITEMS, 2 * ITEMS)
    found = []
    for mean in (kernel.mean_block, squared_kernel(kernel).mean_block):
        found += [(mean(tasks[0], tasks[0]) + mean(tasks[1], tasks[1])) / 2, mean(*tasks)]
    return np.array([*found, 1 - found[3] / found[2]])


NAMES: tuple[str, ...] = (
    "within",
    "across",
    "mean_square_within",
    "mean_square_across",
    "contrast",
)


def figures(kernel: LossKernel) -> Figures:
    """Return `blocks` by their names, with errors by the spread of the chains."""
    values, errors = kernel.jackknife(blocks)
    return {
        name: (float(value), float(error))
        for name, value, error in zip(NAMES, values, errors, strict=True)
    }


def study(seed: int, *, tell: Callable[[list[str]], None] | None = None) -> dict[str, Any]:
    """Carry the example out, with one nbeta and gamma for all, and return its figures.

    Args:
        seed: Of data, starts and chains.
        tell: Gets a line for each run.

    Raises:
        RuntimeError: A task is not learnt.
    """
    data = items(seed)
    shared, problem = train(Together, data, seed), pose(Together, data)
    settings = Settings(
        estimator="covariance", chains=_CHAINS, draws=_DRAWS, weight_decay=DECAY, seed=seed
    )
    chosen, _ = common_settings(problem, shared.stages, settings)
    rows = []
    for stage in shared:
        there = stage_problem(problem, stage)
        run, ball = attribute(there, chosen), attribute(there, replace(chosen, nbeta=0.0))
        found = blocks(gradient_kernel(there))
        rows.append({
            "step": stage.step, "trusted": bool(run.summary.trusted),
            "loss_kernel": figures(loss_kernel(run)),
            "nbeta_0": figures(loss_kernel(ball)),
            "gradient_kernel": dict(zip(NAMES, found.tolist(), strict=True)),
        })  # fmt: skip
        if tell is not None:
            value, error = rows[-1]["loss_kernel"]["contrast"]
            tell([f"one network, step {stage.step}: contrast {value:.3f} ± {error:.2g}"])
    last = train(Apart, data, seed).stages[-1]
    run = attribute(
        stage_problem(pose(Apart, data), last), replace(chosen, draws=_DRAWS_APART)
    )  # fmt: skip
    return {**summary(figures(loss_kernel(run)), rows), "trusted": bool(run.summary.trusted)}


def summary(apart: Figures, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of the example, as `summary.json` has them.

    Args:
        apart: Of the networks of their own.
        rows: Of the one network at each checkpoint.
    """
    named = {"within_block": "within", "cross_block": "across",
             "cross_block_mean_square": "mean_square_across"}  # fmt: skip
    found: dict[str, Any] = {}
    for name, of in named.items():
        found[name], found[f"{name}_error"] = apart[of]
    first, last = (row["loss_kernel"]["contrast"] for row in (rows[0], rows[-1]))
    rise, error = last[0] - first[0], float(np.hypot(last[1], first[1]))
    return {
        **found,
        "shared": list(rows),
        "contrast_rise": rise,
        "contrast_rise_error": error,
        "rises": rise > 1.96 * error,
    }
