"""The cleaned kernel against the true one, where losses are linear in Gaussian weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bif.estimate.loss_kernel import LossKernel
from bif.kernel import cleaned
from bif.kernel.cleaning import CleanedKernel
from small_problems import normal

ITEMS = 150


def gradients(num_weights: int) -> torch.Tensor:
    """Of items in ten groups; losses at draws `w ~ N(0, 1)` are their products with w."""
    groups = normal(10, num_weights, seed=0)[torch.arange(ITEMS) % 10]
    return (groups + normal(ITEMS, num_weights, seed=1)) * normal(ITEMS, 1, seed=2).exp()


def kernel_of(num_weights: int, draws: int, *, seed: int = 0) -> LossKernel:
    losses = gradients(num_weights) @ normal(num_weights, draws, seed=100 + seed)
    chains = torch.arange(draws) * 8 // draws
    return LossKernel(losses, chains, tuple(map(str, range(ITEMS))), {"label": ("a",) * ITEMS})


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


@pytest.mark.parametrize("num_weights, draws", [(200, 64), (40, 160), (200, 400)])
def test_correlations_come_nearer_to_the_true_ones(num_weights: int, draws: int):
    true = off_diagonal(cosines(num_weights))
    for seed in range(3):
        kernel = kernel_of(num_weights, draws, seed=seed)
        raw, clean = (off_diagonal(k.block().numpy()) for k in (kernel, cleaned(kernel)))
        assert ((clean - true) ** 2).mean() < ((raw - true) ** 2).mean()


def cosines(num_weights: int) -> np.ndarray:
    unit = torch.nn.functional.normalize(gradients(num_weights), dim=1)
    return (unit @ unit.T).numpy()


def test_a_kernel_of_few_directions_is_left_as_it_is_but_for_the_lengths_of_the_draws():
    kernel = kernel_of(3, 4000)
    clean = cleaned(kernel)
    # of 500 draws left out an eigenvalue has a relative error of (2 / 500)^½, and of 8 groups less
    np.testing.assert_allclose(clean.spectrum[1], clean.spectrum[0], rtol=5 * (2 / 4000) ** 0.5)
    np.testing.assert_allclose(clean.block(), kernel.block(), atol=5 * (2 / 4000) ** 0.5)


def test_it_has_the_items_and_variances_of_the_kernel():
    kernel = kernel_of(200, 64)
    clean = cleaned(kernel)
    assert clean.ids == kernel.ids and clean.labels == kernel.labels
    np.testing.assert_array_equal(clean.variance, kernel.variance)
    dense = clean.embedding("covariance")
    scale = kernel.variance.sqrt()
    np.testing.assert_allclose(
        clean.block(), dense @ dense.T / scale / scale[:, None], rtol=1e-9, atol=1e-12
    )
    some = clean.of_items([4, 2])
    np.testing.assert_allclose(some.block(), clean.block([4, 2], [4, 2]))
    assert (np.diff(clean.spectrum, axis=1) <= 1e-12).all()


def test_an_item_that_never_moves_stays_at_correlation_zero():
    kernel = kernel_of(40, 160)
    kernel.losses[3] = 2.0
    found = cleaned(LossKernel(kernel.losses, kernel.chains, kernel.ids, {})).block()
    assert found[3].tolist() == [0.0] * ITEMS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: cleaned(k.of_chains([0])), "1 chains in 8 groups: held-out chains need two"),
        (lambda k: cleaned(k, num_groups=1), "8 chains in 1 groups"),
        (
            lambda k: cleaned(LossKernel(k.losses * 0, k.chains, k.ids, {})),
            "no item's loss moves over the draws",
        ),
        (
            lambda k: CleanedKernel(k.losses, k.ids, {}, k.variance[1:], np.ones((2, 1))),
            "variances are .149,., expected one for each of 150",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(kernel_of(40, 160))


def test_what_one_group_of_chains_alone_shows_may_be_all_there_is():
    losses = torch.zeros(ITEMS, 160, dtype=torch.float64)
    losses[:, 150:155] = normal(ITEMS, 5, seed=0)
    losses[:, 155:] = -losses[:, 150:155]  # so that all others stay at the mean
    kernel = LossKernel(losses, torch.arange(160) // 20, tuple(map(str, range(ITEMS))), {})
    off = off_diagonal(cleaned(kernel).block().numpy())
    assert np.abs(off).max() < np.abs(off_diagonal(kernel.block().numpy())).max()


def test_held_out_chains_see_what_the_eigenvectors_truly_hold():
    num_weights, draws, ratios = 200, 64, []
    true = torch.from_numpy(cosines(num_weights))
    for seed in range(10):
        kernel = kernel_of(num_weights, draws, seed=seed)
        x = kernel.embedding()
        size, vectors = torch.linalg.eigh(x @ x.T)
        held = float((vectors[:, -32:] * (true @ vectors[:, -32:])).sum())
        low = float((vectors[:, 1 - draws : -32] * (true @ vectors[:, 1 - draws : -32])).sum())
        seen = cleaned(kernel).spectrum[1] * float(size[-1])
        ratios.append([seen[:32].sum() / held, seen[32:].sum() / low])
    # of an eighth fewer draws they hold a little less; about the mean of all draws, the mutant, the
    # low ones would seem to hold twice as much
    assert np.abs(np.mean(ratios, axis=0) - 1).max() < 0.15
