"""The loss kernel against dense matrices, and what it says of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bif.estimate.loss_kernel import LossKernel
from bif.kernel import squared_kernel

CHAINS, DRAWS = 8, 50


def kernel_of(losses: torch.Tensor) -> LossKernel:
    chains = torch.arange(losses.shape[1]) * CHAINS // losses.shape[1]
    return LossKernel(losses, chains, tuple(f"i{k}" for k in range(len(losses))), {})


def noise(items: int, draws: int = CHAINS * DRAWS, *, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(items, draws, generator=source, dtype=torch.float64)


def two_blocks(items: int, *, seed: int = 0) -> torch.Tensor:
    """Losses whose correlation is a half within the first half and the second, else 0."""
    common = noise(2, seed=1000 + seed).repeat_interleave(items // 2, dim=0)
    return 0.5**0.5 * (common + noise(items, seed=seed))


def test_blocks_are_covariances_and_correlations():
    losses = 3 + two_blocks(10) * torch.arange(1.0, 11)[:, None]
    kernel = kernel_of(losses)
    np.testing.assert_allclose(kernel.block(kind="covariance"), np.cov(losses), rtol=1e-10)
    np.testing.assert_allclose(kernel.block(), np.corrcoef(losses), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(kernel.variance, np.var(losses.numpy(), axis=1, ddof=1))
    part = kernel.block([1, 4], slice(3, 5))
    np.testing.assert_allclose(part, np.corrcoef(losses)[[1, 4], 3:5], rtol=1e-10, atol=1e-12)


def test_a_large_offset_costs_no_digits():
    losses = noise(4).float()
    shifted = kernel_of((losses.double() + 1e6).double())
    np.testing.assert_allclose(shifted.block(), kernel_of(losses).block(), atol=1e-5)


def test_an_item_whose_loss_never_moves_has_correlation_zero():
    losses = noise(3)
    losses[1] = 2.5
    found = kernel_of(losses).block()
    assert found[1].tolist() == [0.0] * 3 and found[0, 0].item() == pytest.approx(1)


def test_the_rounding_of_a_mean_is_no_variance():
    losses = noise(40)
    for item in range(30):
        losses[item] = (item + 1) / 7
    rounded = losses[:30].mean(dim=1) - losses[:30, 0]
    assert bool((rounded != 0).any())  # else nothing is tested
    kernel = kernel_of(losses)
    assert not bool(kernel.variance[:30].any()) and not bool(kernel.block()[:30].any())


def test_losses_near_the_smallest_float_have_correlations():
    losses = noise(4).float() * 1e-38
    found = kernel_of(losses).block().numpy()
    np.testing.assert_allclose(found, np.corrcoef(losses.double().numpy() * 1e38), atol=1e-5)


def test_means_of_blocks_pair_no_item_with_itself():
    kernel = kernel_of(two_blocks(12))
    dense, labels = kernel.block().numpy(), ["a"] * 6 + ["b"] * 5 + ["c"]
    off = dense[:6, :6][~np.eye(6, dtype=bool)].mean()
    assert kernel.mean_block(range(6), range(6)) == pytest.approx(off)
    assert kernel.mean_block(range(6), range(6, 11)) == pytest.approx(dense[:6, 6:11].mean())
    assert np.isnan([k.mean_block([3], [3]) for k in (kernel, squared_kernel(kernel))]).all()
    assert np.isnan(kernel.mean_block([], [1]))
    names, blocks = kernel.class_blocks(labels)
    assert names == ["a", "b", "c"] and np.isnan(blocks[2, 2])
    assert blocks[0, 0] == pytest.approx(off)
    assert blocks[0, 2] == blocks[2, 0] == pytest.approx(dense[:6, 11].mean())


def test_mean_squares_are_those_of_the_kernel_and_not_of_its_noise():
    half, rest = range(10), range(10, 20)
    kernels = [kernel_of(two_blocks(20, seed=seed)) for seed in range(40)]
    found = np.array([squared_kernel(kernel).mean_block(half, rest) for kernel in kernels])
    naive = np.array([float(k.block()[:10, 10:].square().mean()) for k in kernels])
    assert abs(found.mean()) < 3 * found.std() / 40**0.5 < naive.mean()
    within = np.mean([squared_kernel(kernel).mean_block(half, half) for kernel in kernels])
    assert within == pytest.approx(0.25, abs=0.01)


def test_errors_are_the_spread_over_chains_sampled_anew():
    def mean(kernel: LossKernel) -> float:
        return kernel.mean_block(range(4), range(4, 8))

    trials = [kernel_of(noise(8, seed=s)).jackknife(mean) for s in range(60)]
    values, errors = (np.array(x) for x in zip(*trials, strict=True))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.3)


def test_nearest_items_are_those_of_the_dense_matrix():
    kernel = kernel_of(two_blocks(30))
    dense = kernel.block().numpy()
    np.fill_diagonal(dense, -np.inf)
    places, values = kernel.nearest(4)
    np.testing.assert_array_equal(places, np.argsort(-dense, axis=1)[:, :4])
    np.testing.assert_allclose(values, -np.sort(-dense, axis=1)[:, :4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: k.nearest(3), "3 neighbours of 3 items"),
        (lambda k: k.block(kind="corr"), "kind is 'corr': expected one of correlation, covariance"),
        (lambda k: k.class_blocks(["a"]), "1 labels, expected one for each of 3"),
        (lambda k: k.of_chains([0]).halves(), "need two chains"),
        (lambda k: k.of_chains([0]).jackknife(len), "needs two chains"),
        (lambda k: squared_kernel(k.of_chains([0])), "needs two chains"),
        (
            lambda k: k.of_chains([0, 1]).jackknife(
                lambda k: squared_kernel(k).mean_block([0], [1])
            ),
            "leaves some out, and 1 of 2 are too few: a square without noise needs two chains",
        ),
        (lambda k: LossKernel(k.losses, k.chains[1:], k.ids, {}), "3 items at 400 draws"),
        (
            lambda k: LossKernel(k.losses, k.chains, k.ids, {"kind": ("a", "b")}),
            "2 labels 'kind' of 3 items",
        ),
        (lambda k: kernel_of(k.losses[:, :1]), "needs 2 draws, got 1"),
        (lambda k: kernel_of(k.losses / 0), "NaN or infinite for 3 items, such as i0"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(kernel_of(noise(3)))
