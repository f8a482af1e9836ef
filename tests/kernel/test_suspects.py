"""Outliers, wrong labels and duplicates against dense matrices, and found where they were put."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bif.estimate.loss_kernel import LossKernel
from bif.evaluate import auroc
from bif.kernel import find_neighbours, suspects
from small_problems import TINY, classification, labelled, normal

ITEMS, CLASSES, FLIPPED = 240, 4, 12


def kernel_of(losses: torch.Tensor, **labels: tuple[str, ...]) -> LossKernel:
    chains = torch.arange(losses.shape[1]) * 8 // losses.shape[1]
    return LossKernel(losses, chains, tuple(map(str, range(len(losses)))), labels)


def test_scores_are_those_of_the_dense_matrix():
    losses = 3 + normal(3, 80, seed=0).repeat_interleave(5, 0) + normal(15, 80, seed=1)
    classes = np.arange(15) % 4
    labels = tuple(f"c{k}" for k in classes)
    kernel = kernel_of(losses, kind=labels)
    found = suspects(kernel, label="kind", count=6)
    R = np.corrcoef(losses)
    np.testing.assert_allclose(found["loss_variance"], np.var(losses.numpy(), axis=1, ddof=1))
    np.testing.assert_allclose(found["mean_loss"], losses.mean(dim=1))
    for i in range(15):
        others = [[j for j in range(15) if classes[j] == c and j != i] for c in range(4)]
        means = np.array([R[i, js].mean() for js in others])
        rest = [c for c in range(4) if c != classes[i]]
        best, worst = (max(rest, key=lambda c, s=s: s * means[c]) for s in (1, -1))
        assert float(found["class_margin"][i]) == pytest.approx(means[classes[i]] - means[best])
        assert float(found["opposition"][i]) == pytest.approx(-means[worst])
        assert found["moves_with"].values[i] == f"c{best}"
        assert found["moves_against"].values[i] == f"c{worst}"
        near = [j for j in np.argsort(-R[i]) if j != i][:6]
        weights = np.maximum(R[i, near], 0)
        other = weights @ (classes[near] != classes[i]) / weights.sum()
        assert float(found["label_disagreement"][i]) == pytest.approx(other)


def test_errors_are_the_spread_of_runs_sampled_anew():
    def run(seed: int) -> LossKernel:
        own = normal(2, 400, seed=seed).repeat_interleave(4, 0) + normal(8, 400, seed=seed + 1000)
        return kernel_of(own, label=("a",) * 4 + ("b",) * 4)

    found = [suspects(run(seed)) for seed in range(60)]
    for name in ("loss_variance", "mean_loss", "class_margin"):
        values = np.array([f[name] for f in found])
        errors = np.array([f[f"{name}_standard_error"] for f in found])
        # both are root mean squares of 480 numbers; of 8 groups each square has 7 degrees
        assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(axis=0).mean(), rel=0.2)


def test_a_duplicated_item_is_found_and_nothing_else_is():
    x, y = labelled(20, seed=1)
    x[7], y[7] = x[3], y[3]
    kernel = bif.loss_kernel(bif.attribute(classification(train=(x, y)), TINY))
    found = suspects(kernel)
    assert np.flatnonzero(found["is_duplicate"]).tolist() == [3, 7]
    assert found["twin"].values[[3, 7]].tolist() == [7, 3]
    assert float(found["loss_gap"][3]) < 1e-10  # float64, in batches of other places
    assert "class_margin" in found  # a classifier's targets are its classes


def test_losses_that_move_alike_but_are_not_equal_are_no_duplicates():
    losses = normal(6, 80, seed=0)
    losses[1], losses[3] = 2 * losses[0], losses[2] + 0.5
    losses[5] = losses[4] + 0.004 * normal(80, seed=9)
    found = suspects(kernel_of(losses))
    assert np.flatnonzero(found["is_duplicate"]).tolist() == [4, 5]
    assert not suspects(kernel_of(losses), tolerance=0.001)["is_duplicate"].any()


def test_an_item_that_never_moves_is_no_duplicate_and_belongs_to_no_class():
    losses = normal(6, 80, seed=0)
    losses[2] = losses[3] = 1.5
    found = suspects(kernel_of(losses, label=tuple("aaabbb")))
    assert not found["is_duplicate"].any() and np.isnan(found["loss_gap"][2])
    assert np.isnan(found["label_disagreement"][2]) and float(found["class_margin"][2]) == 0


def test_the_only_item_of_a_class_has_no_margin():
    found = suspects(kernel_of(normal(6, 80, seed=0), label=tuple("aaabbc")))
    assert np.flatnonzero(np.isnan(found["class_margin"])).tolist() == [5]
    assert np.isfinite(found["opposition"]).all()


@functools.cache
def mislabelled() -> tuple[LossKernel, np.ndarray, np.ndarray]:
    """A trained logistic regression with 5 % of labels flipped: kernel, which, and true labels."""
    source = torch.Generator().manual_seed(0)
    true = torch.arange(ITEMS) % CLASSES
    places = 2.5 * torch.eye(CLASSES, 6, dtype=torch.float64)
    x = places[true] + normal(ITEMS, 6, seed=1)
    flipped = torch.zeros(ITEMS, dtype=torch.bool)
    flipped[torch.randperm(ITEMS, generator=source)[:FLIPPED]] = True
    given = torch.where(flipped, (true + 1 + torch.arange(ITEMS) % (CLASSES - 1)) % CLASSES, true)
    model = nn.Linear(6, CLASSES).double()
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.zero_()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        decay = 0.005 * sum(p.square().sum() for p in model.parameters())
        value = nn.functional.cross_entropy(model(x), given) + decay
        value.backward()
        return value

    optimizer.step(loss)
    items = bif.Items((x, given), labels=[str(int(k)) for k in given])
    problem = bif.Problem(model, bif.losses.cross_entropy, train=items, queries=(x[:2], given[:2]))
    chosen = bif.Settings(
        chains=16, draws=40, burn_in=40, thin=4, nbeta=ITEMS, gamma=0.01 * ITEMS,
        step_size=0.1, friction=2.0,
    )  # fmt: skip
    kernel = bif.loss_kernel(bif.attribute(problem, chosen))
    return kernel, flipped.numpy(), true.numpy()


@pytest.mark.parametrize(
    "sign, name", [(1, "loss_variance"), (1, "mean_loss"), (-1, "class_margin")]
)
def test_flipped_labels_rank_above_others(sign: int, name: str):
    kernel, flipped, _ = mislabelled()
    value = auroc(sign * suspects(kernel)[name].values, flipped)
    print(f"AUROC of {name}: {value:.3f}")
    # by chance .5 with the error of the Mann-Whitney statistic
    error = ((ITEMS + 1) / (12 * FLIPPED * (ITEMS - FLIPPED))) ** 0.5
    assert value > 0.5 + 5 * error


def test_a_flipped_item_moves_against_its_true_class_and_with_its_given_label():
    kernel, flipped, true = mislabelled()
    found = suspects(kernel)
    against = found["moves_against"].values[flipped].astype(int) == true[flipped]
    assert against.mean() > 1 / 3 + 5 * (2 / 9 / FLIPPED) ** 0.5 or against.all()
    near = find_neighbours(kernel, 15).places[flipped]
    labels = np.array(kernel.labels["label"]).astype(int)
    given = labels[near] == labels[flipped][:, None]
    assert given.mean() > (labels[near] == true[flipped][:, None]).mean()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: suspects(k, label="kind"), KeyError, "the items have no label 'kind'"),
        (lambda k: suspects(k, tolerance=-1), ValueError, "tolerance -1, expected two items and 0"),
        (lambda k: suspects(k.of_items([0])), ValueError, "1 items and tolerance"),
        (lambda k: suspects(k.of_chains([0])), ValueError, "needs two chains, got one"),
        (
            lambda k: suspects(k, neighbours=find_neighbours(k.of_items([0, 1]), 1)),
            ValueError, "neighbours of 2 items, expected of 5",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(kernel_of(normal(5, 80, seed=0), label=tuple("aabbb")))
