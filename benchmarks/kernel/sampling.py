"""The kernels of a study's items, by the library's own path."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

import bif
from benchmarks.common import trust_figures
from bif import LossKernel
from bif.benchmark.tasks.parts import LOSS
from bif.kernel import (
    ItemKernel,
    activation_kernel,
    ball_kernel,
    gradient_kernel,
    linear_cka,
)
from bif.losses import cross_entropy

_DIMENSION = 1024
"""Of projected gradients: a cosine then has an error of .03, that of a loss kernel of 1,024
independent draws."""
_ALIGNED = 2000
"""Items at most by which kernels are aligned."""
ANSWERED = 2
"""Queries of a run, which the kernel does not use."""


@dataclass(frozen=True)
class Sampled:
    """A run around a network, and the kernel of its items.

    Attributes:
        problem: What was sampled.
        run: The run.
        places: Positions of the items among those that are scored.
        kernel: Of these items.
        center: Their losses at w*, `[N]`.
        figures: Of trust, and seconds.
    """

    problem: bif.Problem
    run: bif.Run
    places: np.ndarray
    kernel: LossKernel
    center: np.ndarray
    figures: dict[str, Any]

    @property
    def mean_loss_gain(self) -> np.ndarray:
        """The mean loss over the draws less that at w*, `[N]`."""
        return self.kernel.losses.double().mean(dim=1).numpy() - self.center


def posed(model: nn.Module, train: bif.Items, others: bif.Items | None) -> bif.Problem:
    """Return a problem whose U is that of the train items, and which scores the others too."""
    return bif.Problem(
        model, cross_entropy, train=train, queries=train.first(ANSWERED), observables=[LOSS],
        candidates=None if others is None else {"others": others},
    )  # fmt: skip


def with_steps(
    problem: bif.Problem, settings: bif.Settings, known: bif.Settings | None
) -> bif.Settings:
    """Return settings whose steps are those that are known, of a like network, or are found."""
    if known is None:
        return bif.calibrate(problem, settings).settings
    return replace(known, seed=settings.seed)


def sample(problem: bif.Problem, settings: bif.Settings) -> Sampled:
    """Sample, and return the kernel of the further items if there are any, or of the train items.

    Chains that fail are no reason to stop: what was chosen and what failed is in the figures.
    """
    started = time.perf_counter()
    run = bif.attribute(problem, settings)
    seconds = time.perf_counter() - started
    kernel = bif.loss_kernel(run)
    groups = problem.scored_group_names
    places = np.flatnonzero(groups == groups[-1])
    chosen = {
        name: run.manifest["settings"][name] for name in ("nbeta", "gamma", "step_size", "friction")
    }
    figures = {
        **trust_figures(run), "ess_median": run.summary["ess_median"],
        "draws": len(kernel.chains), "chains": len(kernel.chains.unique()), **chosen,
        "sampling_seconds": seconds,
    }  # fmt: skip
    center = run.influence.dataset["train_center_loss"].values[places]
    return Sampled(problem, run, places, kernel.of_items(places), center, figures)


def controls(sampled: Sampled, seed: int) -> dict[str, ItemKernel]:
    """Return the kernels that stand beside: nbeta = 0, activations and gradients."""
    problem, places = sampled.problem, sampled.places
    count = sum(leaf.numel() for leaf in problem.model.parameters())
    return {
        "nbeta 0": ball_kernel(problem, sampled.run).of_items(places),
        "activations": activation_kernel(problem).of_items(places),
        "gradients": gradient_kernel(
            problem, dimension=min(count, _DIMENSION), seed=seed
        ).of_items(places),
    }  # fmt: skip


def alignments(kernel: LossKernel, others: dict[str, ItemKernel]) -> dict[str, float]:
    """Return the debiased alignment of a kernel with others, and of its own two halves."""
    items: Sequence[int] = range(min(len(kernel), _ALIGNED))
    part = kernel.of_items(items)
    found = {name: linear_cka(part, other.of_items(items)) for name, other in others.items()}
    return {**found, "two halves of the chains": linear_cka(*part.halves())}
