"""How large the studies are, and with which settings the chains run."""

from __future__ import annotations

from dataclasses import dataclass

import bif

NBETA, DAMPING = 1.0, 1.0
"""nbeta in train items, and gamma in nbeta.  At a damping of .1, which was chosen first, chains did
not mix (R-hat 1.06 to 1.8): 1 was chosen for that, by no result."""
SENSITIVITY = ((0.1, 1.0), (10.0, 1.0), (1.0, 0.1), (1.0, 10.0))
"""Factors of nbeta and of gamma around these."""
NEIGHBOURS = 15


@dataclass(frozen=True)
class Plan:
    """Sizes of a study on one data set.

    Attributes:
        train: Train items, which enter U.
        items: Further images, whose kernel is asked for; 0 for that of the train items.
        seeds: Repetitions.
        chains: Of a run.
        draws: Of each chain.
        thin: Steps from draw to draw.
        burn_in: Steps before the first draw.
        epochs: Of training.
        batch: Items of a mini-batch with control variate; None takes all items a step.
        step_size: Of the chains; found by a pilot if None.
        damping: gamma in units of nbeta.
        sensitivity: Whether the kernel is asked for at other nbeta and gamma, too.
        pairs: Pairs, and triplets, of items that are kept for the agreement with a tree.
    """

    train: int
    items: int = 0
    seeds: int = 3
    chains: int = 4
    draws: int = 100
    thin: int = 4
    burn_in: int = 100
    epochs: int = 10
    batch: int | None = None
    step_size: float | None = None
    pairs: int = 2000
    damping: float = DAMPING
    sensitivity: bool = True


PLANS = {
    "fashion": Plan(6000, 10_000, draws=128, thin=8),
    "cifar": Plan(4000, seeds=5, epochs=20, pairs=1500),
    "checkpoints": Plan(3000, 2000, draws=40, thin=8),
    "backdoor-fashion": Plan(6000, 1000, thin=8),
    "backdoor-cifar": Plan(3600, 400, epochs=20),
    "mislabel-fashion": Plan(4000, thin=8),
    "mislabel-cifar": Plan(3000, epochs=20),
}
TINY = {
    "fashion": Plan(150, 100, 2, 4, 6, 2, 4, 4, step_size=1e-3, pairs=200),
    "cifar": Plan(60, 0, 1, 3, 3, 1, 1, 1, step_size=1e-3, pairs=200),
    "checkpoints": Plan(100, 100, 2, 4, 5, 2, 4, 4, step_size=1e-3, pairs=200),
    "backdoor-fashion": Plan(400, 50, 2, 4, 5, 2, 4, 4, step_size=1e-3),
    "backdoor-cifar": Plan(400, 20, 1, 2, 2, 1, 1, 1, step_size=1e-3),
    "mislabel-fashion": Plan(150, 0, 2, 4, 6, 2, 4, 4, step_size=1e-3),
    "mislabel-cifar": Plan(60, 0, 1, 2, 3, 1, 1, 1, step_size=1e-3),
}
"""The same, to see that everything runs."""


def settings(plan: Plan, *, seed: int, weight_decay: float) -> bif.Settings:
    """Return settings of chains around the trained network.

    Chains step one after another: stacked convolutions with weights of their own are slower.  A
    mass would take longer to measure than the chains take.
    """
    nbeta = NBETA * plan.train
    return bif.Settings(
        estimator="covariance", nbeta=nbeta, gamma=plan.damping * nbeta, weight_decay=weight_decay,
        chains=plan.chains, draws=plan.draws, thin=plan.thin, burn_in=plan.burn_in,
        mass="identity", oracle="sequential", chunk_size=plan.train,
        gradient="full" if plan.batch is None else "control_variate", batch_size=plan.batch,
        step_size=plan.step_size, friction=plan.step_size and 1.0, seed=seed,
        gradient_precision="tf32",
    )  # fmt: skip
