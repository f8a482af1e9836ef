"""Arithmetic of responses: batch means, the choice of h, the ratio of estimators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import Tensor

import bif
from bif.estimate import estimate_covariance
from bif.estimate.response import (
    BatchMeans,
    Perturbation,
    choose_perturbation,
    fluctuation_over_response,
    student_factor,
)
from bif.estimate.traces import LossTraces
from bif.linear_response.perturbation import pilot_queries
from bif.response import respond
from law_checks import STANDARD_ERRORS, sgld_variance
from response_problems import Straight
from small_problems import normal

# --- Batch means ----------------------------------------------------------------------------------


def batch_means(values: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Of `[D, K, R, N]` in batches of some length."""
    means = BatchMeans()
    for d, moment in enumerate(values):
        means.add(moment)
        if (d + 1) % length == 0:
            means.close()
    return means.finish()


def test_batch_means_are_those_of_every_replicate_and_stretch():
    values = normal(12, 2, 3, 4, seed=0) + 1e6
    mean, error = batch_means(values, 4)
    batches = values.view(3, 4, 2, 3, 4).mean(dim=1).transpose(1, 2).flatten(0, 1)  # [9, K, N]
    torch.testing.assert_close(mean, batches.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(error, batches.std(dim=0) / 3, rtol=1e-8, atol=0)


def test_values_that_do_not_fluctuate_have_no_error():
    mean, error = batch_means(torch.full((6, 1, 1, 2), 1 / 3).double(), 2)
    assert (error == 0).all()
    torch.testing.assert_close(mean, torch.full((1, 2), 1 / 3).double())


def test_batches_are_wanted_before_a_result():
    with pytest.raises(ValueError, match="no batch was closed"):
        BatchMeans().finish()
    with pytest.raises(ValueError, match="open batch is empty"):
        BatchMeans().close()
    assert batch_means(normal(4, 1, 1, 2, seed=1), 4)[1].isnan().all()
    with pytest.raises(ValueError, match="at least 2 batches, got 1"):
        student_factor(1)


def test_two_widened_errors_hold_what_two_of_a_normal_law_hold():
    assert student_factor(10) == pytest.approx(t.ppf(0.975, 9) / 1.959964, rel=1e-6)
    assert student_factor(10_000) == pytest.approx(1, abs=1e-3)


# --- The choice of h ------------------------------------------------------------------------------

SIZES = [1.0, 4.0, 16.0, 64.0]


def choose(
    bias: float, noise: list[float], *, tolerance: float = 0.0, change_noise: float = 0.0
) -> Perturbation:
    """Scores of 1 whose bias is `bias·h²`, with errors as told."""
    shape = (2, 3)
    response = torch.stack([torch.full(shape, 1 - bias * h**2, dtype=torch.float64) for h in SIZES])
    error = torch.stack([torch.full(shape, e, dtype=torch.float64) for e in noise])
    return choose_perturbation(
        SIZES,
        response,
        error_HQN=error,
        change_error_HQN=torch.full((3, *shape), change_noise).double(),
        noise_factor=0.5,
        tolerance=tolerance,
    )


def test_the_bias_is_found_to_leading_order_exactly():
    found = choose(1e-3, [0.0] * 4, tolerance=1.0)
    for rung in found.ladder:
        assert rung.bias == pytest.approx(1e-3 * rung.size**2, rel=1e-9)
    assert [r.noise for r in found.ladder] == [0.0] * 4


def test_where_noise_falls_the_largest_h_whose_bias_is_below_its_noise_is_taken():
    # Noise falls as 1/h; the final run halves it. bias: .001, .016, .256; noise: .1, .025, .00625.
    found = choose(1e-3, [0.2, 0.05, 0.0125, 0.003])
    assert (found.size, found.accepted) == (4.0, True)
    assert choose(1e-3, [0.2, 0.02, 0.0125, 0.003]).size == 1.0
    assert "the best of the pilot" in str(found)


def test_a_share_of_the_scores_is_always_fine():
    assert choose(1e-3, [0.0] * 4, tolerance=0.02).size == 4.0
    assert choose(1e-3, [0.0] * 4, tolerance=0.5).size == 16.0


def test_without_a_fine_h_the_least_sum_of_bias_and_noise_is_taken_and_told():
    found = choose(1.0, [0.01] * 4)
    assert (found.size, found.accepted) == (1.0, False)
    assert "above both" in str(found)


def test_noise_that_grows_with_h_excuses_no_bias():
    assert choose(1e-3, [0.2, 0.2, 0.2, 100.0]).size == 4.0


def test_where_noise_does_not_fall_with_h_a_larger_h_with_more_bias_is_not_taken():
    # Noise .02 throughout; biases .001, .016, .256: the second would pass, at 1.3 times the error.
    assert choose(1e-3, [0.04] * 4).size == 1.0


def test_noise_of_the_changes_is_not_taken_for_bias():
    assert choose(1e-4, [0.01] * 4, change_noise=0.0).ladder[1].bias > 0
    quiet = choose(1e-4, [0.01] * 4, change_noise=1.0)
    assert [r.bias for r in quiet.ladder] == [0.0] * 4


def test_rounding_at_small_h_is_not_taken_for_bias():
    # Bias 1e-4·h²; rounding that nobody told of moves the smallest h by .01.
    response = torch.stack(
        [torch.full((1, 4), 1 - 1e-4 * h**2, dtype=torch.float64) for h in SIZES]
    )
    response[0] += 0.01
    zeros = torch.zeros(4, 1, 4).double()
    found = choose_perturbation(
        SIZES, response, error_HQN=zeros, change_error_HQN=zeros[1:], noise_factor=1.0,
        tolerance=2e-3,
    )  # fmt: skip
    assert found.size == 4.0
    assert found.ladder[1].bias == pytest.approx(1e-4 * 4**2, rel=0.01)
    assert found.ladder[0].bias == pytest.approx(1e-4, rel=0.01)


def test_sizes_where_chains_diverged_are_left_out():
    response = torch.ones(3, 1, 2).double()
    response[2] = float("nan")
    zeros = torch.zeros(3, 1, 2).double()
    found = choose_perturbation(
        [1, 2, 4], response, error_HQN=zeros, change_error_HQN=zeros[1:], noise_factor=1,
        tolerance=0.1,
    )  # fmt: skip
    assert [r.size for r in found.ladder] == [1, 2]
    with pytest.raises(ValueError, match="diverged at every h"):
        choose_perturbation(
            [1, 2, 4], response * float("nan"), error_HQN=zeros, change_error_HQN=zeros[1:],
            noise_factor=1, tolerance=0.1,
        )  # fmt: skip
    with pytest.raises(ValueError, match="two ascending sizes"):
        choose_perturbation(
            [2, 1], zeros[1:], error_HQN=zeros[1:], change_error_HQN=zeros[2:], noise_factor=1,
            tolerance=0.1,
        )  # fmt: skip


def test_the_pilot_takes_the_ends_and_what_is_between():
    groups = [bif.Items(torch.arange(2)), bif.Items(torch.arange(10))]
    values = torch.tensor([50.0, 51.0, *[5.0, 3.0, 8.0, 1.0, 9.0, 2.0, 7.0, 0.0, 6.0, 4.0]])
    items, chosen, rows = pilot_queries(groups, values)
    assert items is groups[1]
    assert values[2:][chosen].tolist() == values[rows].tolist() == [0.0, 3.0, 6.0, 9.0]


# --- Fluctuation over response --------------------------------------------------------------------


def test_the_ratio_is_the_slope_and_its_error_covers():
    truth = normal(4, 6, seed=2)
    ratios = []
    for seed in range(200):
        f = 1.3 * truth + 0.4 * normal(16, 4, 6, seed=1000 + seed)
        r = truth + 0.2 * normal(4, 4, 6, seed=5000 + seed)
        ratios.append(fluctuation_over_response(f, r))
    values, errors = np.asarray(ratios).T
    assert abs(values.mean() - 1.3) < STANDARD_ERRORS * values.std() / 200**0.5
    assert 0.8 < values.std() / np.sqrt((errors**2).mean()) < 1.25
    for f, r in ((truth[None], truth.expand(2, -1, -1)), (truth.expand(2, -1, -1), truth)):
        with pytest.raises(ValueError, match="G and R at least 2"):
            fluctuation_over_response(f, r)


@pytest.mark.parametrize("step_size, thin, expected", [(0.4, 2, 2.0), (0.08, 14, 1 / 0.9)])
def test_a_step_of_sgld_that_is_too_large_shows_in_the_ratio(
    step_size: float, thin: int, expected: float
):
    # U has curvature 5 in every direction: the variance is (1/5) / (1 - step·5/4).
    straight = replace(Straight.of(1.0, 1.0, 1.0), nbeta=4.0, gamma=1.0)
    assert expected == pytest.approx(5 * sgld_variance(step_size, 5.0))
    # The mean relaxes by 1 - step·5/2 a step: draws forget one another to 4 %, and centring within
    # chains takes (τ - 1)/D = 0.5 % off the covariance, less than a standard error.
    settings = bif.Settings(
        sampler="sgld", nbeta=4.0, gamma=1.0, step_size=step_size, burn_in=50, thin=thin,
        chains=1024, block_size=1024, draws=16,
    )  # fmt: skip
    run = bif.attribute(straight.problem, settings)
    groups = [
        estimate_covariance(LossTraces((run.traces.blocks[0].only(range(i, i + 64)),))).value
        for i in range(0, 1024, 64)
    ]
    responses = [
        respond(straight.problem, replace(settings, seed=seed), h=0.5, steps=10).scores
        for seed in (1, 2)
    ]
    fluctuation = -torch.stack(groups)[..., 6:]
    response = torch.as_tensor(np.stack(responses))[..., 6:]
    ratio = fluctuation_over_response(fluctuation, response)
    assert ratio.standard_error < 0.02 * expected
    assert abs(ratio.value - expected) < STANDARD_ERRORS * ratio.standard_error
    assert abs(ratio.value - 1) > STANDARD_ERRORS * ratio.standard_error
