"""A problem whose numbers are exact on any machine, for folders that the project keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bif
from bif.bank import Plan
from bif.evaluate import Recipe
from bif.types import ItemLoss

SETTINGS = bif.Settings(
    chains=4, draws=6, burn_in=4, thin=2, step_size=0.002, friction=2.0, gamma=5.0
)  # fmt: skip
RECIPE = Recipe(steps=4, learning_rate=0.1, momentum=0.5, batch_size=3)
PLAN = Plan(num_subsets=3, seeds=1, num_tuning_subsets=2, tuning_seeds=(7,))


def eighths(*shape: int, start: int) -> Tensor:
    """Multiples of 1/8 from -5/8 to 5/8."""
    count = torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64)
    return ((count * 7) % 11 - 5).reshape(shape) / 8


def classes(num: int, *, start: int) -> Tensor:
    """Classes 0, 1 and 2 in turn."""
    return torch.arange(start, start + num) % 3


def stored_problem(loss: ItemLoss = bif.losses.cross_entropy) -> bif.Problem:
    """8 items, 3 queries, cross-entropy and margin of a network of 3 tanh units."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.copy_(eighths(*weight.shape, start=3 * i))
    asked = bif.losses.cross_entropy
    through_margin = bif.Observable("loss", asked, "lower", through=bif.known_proxy(asked))
    return bif.Problem(
        model,
        loss,
        train=(eighths(8, 2, start=1), classes(8, start=0)),
        queries=(eighths(3, 2, start=5), classes(3, start=1)),
        observables=[through_margin, bif.MARGIN],
    )


def tuning_queries() -> tuple[Tensor, Tensor]:
    """2 queries of the tuning part."""
    return eighths(2, 2, start=4), classes(2, start=0)
