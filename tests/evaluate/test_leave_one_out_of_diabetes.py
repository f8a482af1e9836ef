"""Nothing given but the weight decay, solved scores predict leave-one-out on real data."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif

WEIGHT_DECAY, NUM_TRAIN, LEFT_OUT = 0.1, 200, range(0, 200, 10)
NOTHING_GIVEN = bif.Settings(estimator="response", weight_decay=WEIGHT_DECAY)


def huber(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.huber_loss(model(batch[0]), batch[1], reduction="none").sum(dim=1)


def minimised(model: nn.Module, train: tuple[Tensor, Tensor], weights: Tensor) -> nn.Module:
    model = deepcopy(model)
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe", history_size=50,
    )  # fmt: skip

    def objective() -> Tensor:
        optimiser.zero_grad()
        decay = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        value = (weights * huber(model, train)).mean() + 0.5 * WEIGHT_DECAY * decay
        value.backward()
        return value

    optimiser.step(objective)
    return model


@pytest.fixture(scope="module")
def trained() -> tuple[bif.Problem, np.ndarray]:
    """A network at its minimum, and how the queries' losses move as items are left out."""
    from sklearn.datasets import load_diabetes

    data, target = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(data))
    x, y = torch.tensor(data[order]), torch.tensor(target[order])[:, None]
    x, y = (x - x.mean(dim=0)) / x.std(dim=0), (y - y.mean()) / y.std()
    train, queries = (
        (x[:NUM_TRAIN], y[:NUM_TRAIN]),
        (x[NUM_TRAIN : NUM_TRAIN + 30], y[NUM_TRAIN : NUM_TRAIN + 30]),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    ones = torch.ones(NUM_TRAIN).double()
    model = minimised(fresh, train, ones)
    assert sum(p.numel() for p in model.parameters()) == 193
    changes = []
    for item in LEFT_OUT:
        left = ones.clone()
        left[item] = 0
        changes.append(huber(minimised(model, train, left), queries) - huber(model, queries))
    actual = torch.stack(changes, dim=1).detach().numpy()
    return bif.Problem(model, huber, train=train, queries=queries), actual


def compare(
    problem: bif.Problem, actual: np.ndarray, settings: bif.Settings
) -> tuple[float, float]:
    """Return the slope through zero of the actual change on minus the derivative, and r."""
    run = bif.attribute(problem, settings)
    predicted = -run.influence.dataset["derivative"].values[0][:, list(LEFT_OUT)]
    slope = float((predicted * actual).sum() / (predicted**2).sum())
    return slope, float(np.corrcoef(predicted.ravel(), actual.ravel())[0, 1])


def test_the_default_damping_leaves_the_scale_of_leave_one_out(trained):
    slope, r = compare(*trained, settings=NOTHING_GIVEN)
    assert 0.8 <= slope <= 1.25 and r >= 0.95


def test_a_strong_damping_is_noticed(trained):
    slope, _ = compare(*trained, settings=replace(NOTHING_GIVEN, nbeta=200.0, gamma=200.0))
    assert slope > 1.25
