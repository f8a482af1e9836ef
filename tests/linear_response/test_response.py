"""Responses at temperature 1: exact cases, errors, pairs, and what is left untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor
from torch.func import hessian

import bif
from bif.estimate.response import BatchMeans, student_factor
from bif.linear_response.estimates import NUM_BATCHES, Clock
from bif.linear_response.pairs import Pairs, SharedNoise
from bif.response import Response, respond
from bif.types import Batch, Params
from exact_problems import (
    CENTER,
    PLACES,
    QUERIES,
    TRAIN,
    GaussianPosterior,
    Point,
    case_9_problem,
    quadratic_problem,
)
from law_checks import STANDARD_ERRORS
from response_problems import QUICK, STRAIGHT, Dense, polynomial, polynomials
from small_problems import normal

# Of results stored in float32: half a unit in the last place, relative.
FLOAT32 = 2.0**-24


def candidates_of(response: Response) -> Tensor:
    """The scores of `Straight`'s candidates."""
    return torch.as_tensor(response.scores[:, 6:]).double()


# --- Linear losses in a quadratic potential: nothing is left of the noise -------------------------

RULES = {
    "BAOAB": {},
    "BAOAB near its limit": {"step_size": 0.37},
    "SGLD": {"sampler": "sgld", "step_size": 0.05, "friction": None},
    # At step·k = 2.55 the variance of the draws is 2.76 times 1/k.
    "SGLD far off its law": {"sampler": "sgld", "step_size": 0.1, "friction": None},
    "mini-batches": {"gradient": "minibatch", "batch_size": 2},
    "control variate": {"gradient": "control_variate", "batch_size": 2},
    "one chain after another": {"oracle": "sequential"},
}


@pytest.mark.parametrize("changed", RULES.values(), ids=RULES)
def test_neither_discretisation_nor_gradient_noise_touches_the_linear_response(changed):
    settings = replace(QUICK, **changed)
    found = respond(STRAIGHT.problem, settings, h=0.5, steps=20)
    # What is left of the start: the slowest rule is SGLD at 0.05, |1 - 0.05·7.5/2|^120 = 2e-11.
    np.testing.assert_allclose(candidates_of(found), STRAIGHT.answer, rtol=4 * FLOAT32, atol=1e-9)
    assert found.standard_error[:, 6:].max() < 1e-9
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(candidates_of(found), -STRAIGHT.answer, rtol=0.5)


def test_an_h_that_is_out_by_a_factor_is_noticed(monkeypatch: pytest.MonkeyPatch):
    true = Pairs._tilt

    def halved(self, *arguments):
        batch, weights = true(self, *arguments)
        return batch, weights / 2

    monkeypatch.setattr(Pairs, "_tilt", halved)
    found = respond(STRAIGHT.problem, QUICK, h=0.5, steps=20)
    np.testing.assert_allclose(candidates_of(found), STRAIGHT.answer / 2, rtol=1e-6, atol=1e-9)


def test_pairs_must_share_their_noise(monkeypatch: pytest.MonkeyPatch):
    assert candidate_error() < 1e-9

    def own(self: SharedNoise, like: Params) -> Params:
        return self._source.normal(like)

    monkeypatch.setattr(SharedNoise, "normal", own)
    # The variance is then that of four independent chains, `4·aᵀSa / (4h)²`, over at most as many
    # independent draws as there are steps.
    slopes = polynomials(5, None, seed=1)[0]
    precision = STRAIGHT.nbeta * STRAIGHT.curvature + STRAIGHT.gamma * torch.eye(3).double()
    variance = (slopes * torch.linalg.solve(precision, slopes.T).T).sum(dim=1) / (4 * 0.5**2)
    assert candidate_error() > float((variance.max() / 200).sqrt()) / 3


def candidate_error() -> float:
    found = respond(STRAIGHT.problem, QUICK, h=0.5, steps=200)
    return float(found.standard_error[:, 6:].max())


def test_mirrored_noise_cancels_from_quadratic_losses_too(monkeypatch: pytest.MonkeyPatch):
    train = STRAIGHT.problem.train.data
    dense = Dense(
        lambda w: polynomial(Held(w), train),
        lambda w: polynomial(Held(w), polynomials(4, None, seed=2)),
        normal(3, seed=3),
        STRAIGHT.nbeta,
        STRAIGHT.gamma,
    )
    w = dense.minimum()
    exact = dense.influence(w, hessian(dense.potential)(w))
    found = respond(STRAIGHT.problem, QUICK, h=0.5, steps=20)
    np.testing.assert_allclose(found.scores[:, :6], exact, rtol=4 * FLOAT32, atol=1e-9)
    assert found.standard_error[:, :6].max() < 1e-9

    def unmirrored(self: SharedNoise, like: Params) -> Params:
        few = self._source.normal({n: x[:2] for n, x in like.items()})
        return {n: x.repeat(len(like[n]) // 2, 1) for n, x in few.items()}

    monkeypatch.setattr(SharedNoise, "normal", unmirrored)
    found = respond(STRAIGHT.problem, QUICK, h=0.5, steps=20)
    assert found.standard_error[:, :6].min() > 1e-4


class Held:
    """Weights in the place of a model."""

    def __init__(self, w: Tensor) -> None:
        self.w = w


# --- One dimension by hand ------------------------------------------------------------------------


COVARIANCE = np.array([0.03125, -0.21875, 0.28125])
CASE_9 = bif.Settings(nbeta=2.0, gamma=2.0, step_size=0.5, friction=4.0, burn_in=30, thin=5)


def moved(h: float) -> np.ndarray:
    """`E[(w - a)²/2]` under `U + h (w - 1)²/2`, normal with precision 4 + h."""
    mean, variance = h / (4 + h), 1 / (4 + h)
    return 0.5 * (variance + (mean - PLACES.numpy()) ** 2)


def test_case_9_has_the_numbers_found_by_hand():
    h = 0.05
    found = respond(case_9_problem(), CASE_9, h=h, steps=50, replicates=2000)
    exact = (moved(h) - moved(-h)) / (2 * h)
    # mean and variance are rational in h/4 with small coefficients: off by (h/4)² = 1.6e-4.
    np.testing.assert_allclose(exact, -COVARIANCE, rtol=0, atol=(h / 4) ** 2)
    error = found.standard_error[0]
    assert error.max() < 0.02 * 0.28
    assert (np.abs(found.scores[0] - exact) <= STANDARD_ERRORS * error).all()
    assert (np.abs(found.scores[0] + exact) > STANDARD_ERRORS * error).any()


# --- The error of finite h ------------------------------------------------------------------------


def quartic(model: Any, batch: Batch) -> Tensor:
    """`w⁴/4 + a·w`, a of the item; with slopes that add to 0 the mean loss is `w⁴/4`."""
    w = model.w.squeeze(-1)
    return 0.25 * w**4 + batch * w


def position(model: Any, batch: Batch) -> Tensor:
    return batch * model.w.squeeze(-1)


GRID = np.linspace(-8, 8, 40_001)


def law(tilt: float) -> np.ndarray:
    """Probabilities on the grid of `exp(-(w⁴/4 + w²/2 + tilt·w))`: nbeta = gamma = 1."""
    density = np.exp(-(0.25 * GRID**4 + 0.5 * GRID**2 + tilt * GRID))
    return density / density.sum()


def fourth_cumulant() -> float:
    p = law(0.0)
    return float(p @ GRID**4 - 3 * (p @ GRID**2) ** 2)


def quadrature(h: float) -> float:
    """The response of `w` to itself at a finite h."""
    return float((law(h) - law(-h)) @ GRID / (2 * h))


def quartic_response(h: float) -> tuple[float, float]:
    """That of slopes 1 and -1, whose difference is twice the position, and its error."""
    problem = bif.Problem(
        Point(torch.zeros(1, dtype=torch.float64)),
        quartic,
        train=torch.tensor([1.0, -1.0], dtype=torch.float64),
        queries=torch.ones(1, dtype=torch.float64),
        observables=[bif.Observable("position", position)],
    )
    # A short step: the law is not quadratic, and its mean force is off by O(step²).
    settings = bif.Settings(nbeta=1.0, gamma=1.0, step_size=0.1, friction=2.0, burn_in=200, thin=10)
    found = respond(problem, settings, h=h, steps=300, replicates=500)
    row = found.scores[0].astype(np.float64)
    # The two items' responses are half ± position; errors of the difference at most add.
    return float(row[0] - row[1]) / 2, float(found.standard_error[0].sum()) / 2


def test_the_error_of_finite_h_is_the_fourth_cumulant_over_six():
    h, expected = 0.5, quadrature(0.001)
    # -κ₄/6·h², with a next term of order h⁴: a quarter of it at half the h.
    small = (quadrature(h) - expected) / h**2
    smaller = (quadrature(h / 2) - expected) / (h / 2) ** 2
    assert abs(smaller + fourth_cumulant() / 6) < abs(small + fourth_cumulant() / 6) / 3.5
    errors = []
    for size in (0.5, 2.0):
        got, error = quartic_response(size)
        assert abs(got - quadrature(size)) <= STANDARD_ERRORS * error + 0.01 * abs(expected)
        errors.append(error)
    # The bias at 2 is far more than both: a response without it would not pass.
    assert abs(quadrature(2.0) - expected) > STANDARD_ERRORS * errors[1] + 0.02 * abs(expected)


# --- Errors ---------------------------------------------------------------------------------------

NUM_RUNS, GAUSSIAN_STEPS = 64, 160
GAUSSIAN = bif.Settings(
    nbeta=5.0, gamma=2.0, step_size=0.3, friction=2.0, burn_in=35, thin=3, block_size=4096
)


@pytest.fixture(scope="module")
def repeated() -> tuple[np.ndarray, np.ndarray]:
    """Deviations from the exact answer and errors of runs of one replicate, `[runs, Q, N]`.

    The runs are the replicates of one, so that they step together.
    """
    problem = quadratic_problem()
    answer = GaussianPosterior.of(TRAIN, CENTER, nbeta=5.0, gamma=2.0).influence(QUERIES, TRAIN)
    pairs = Pairs(
        problem, bif.calibrate(problem, GAUSSIAN).settings, curvature="hessian",
        num_replicates=NUM_RUNS, num_mirrors=2,
    )  # fmt: skip
    clock = Clock.of(pairs, burn_in=35, steps=GAUSSIAN_STEPS)
    alone = replace(clock, times=NUM_BATCHES, batch=GAUSSIAN_STEPS // NUM_BATCHES)
    means = [BatchMeans() for _ in range(NUM_RUNS)]
    h_K = torch.full((4,), 0.02, dtype=torch.float64)
    for moment in pairs.walk(
        pairs.engine.sampler, pairs.noise(), start=pairs.start(4),
        queries=pairs.queries[0], indices_K=torch.arange(4), h_K=h_K,
        num_steps=alone.num_steps,
    ):  # fmt: skip
        record = alone.record_at(moment.step)
        if record is not None:
            response_KRN, _ = pairs.responses(moment, h_K)
            for run, mean in enumerate(means):
                mean.add(response_KRN[:, run : run + 1])
                if (record + 1) % alone.batch == 0:
                    mean.close()
    found = [mean.finish() for mean in means]
    deviations = torch.stack([mean for mean, _ in found]) - answer
    errors = student_factor(NUM_BATCHES) * torch.stack([error for _, error in found])
    return deviations.numpy(), errors.numpy()


def test_a_run_has_the_error_of_its_batch_means():
    found = respond(quadratic_problem(), GAUSSIAN, h=0.02, steps=40)
    means, clock = BatchMeans(), Clock(35, 1, 4, NUM_BATCHES)
    problem = quadratic_problem()
    pairs = Pairs(problem, found.settings, curvature="hessian", num_replicates=1, num_mirrors=2)
    h_K = torch.full((4,), 0.02, dtype=torch.float64)
    for moment in pairs.walk(
        pairs.engine.sampler, pairs.noise(), start=pairs.start(4),
        queries=pairs.queries[0], indices_K=torch.arange(4), h_K=h_K,
        num_steps=clock.num_steps,
    ):  # fmt: skip
        record = clock.record_at(moment.step)
        if record is not None:
            means.add(pairs.responses(moment, h_K)[0])
            if (record + 1) % 4 == 0:
                means.close()
    mean, error = means.finish()
    np.testing.assert_allclose(found.scores, mean, rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, student_factor(10) * error, rtol=1e-6)


def covered(deviations: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Whether entries lie within two standard errors, `[seeds, Q, N]`."""
    return np.abs(deviations) <= 2 * errors


def assert_covered(deviations: np.ndarray, errors: np.ndarray) -> None:
    hits = covered(deviations, errors)
    assert hits.mean() >= 0.90
    # An entry that is covered 90 times in 100 falls below this once in ten thousand.
    assert (hits.sum(axis=0) >= binom.ppf(1e-4, len(hits), 0.90)).all()


def test_errors_cover_the_exact_answer(repeated):
    deviations, errors = repeated
    assert_covered(deviations, errors)
    # Not because they are too large: root mean squares agree to a third.
    ratio = np.sqrt((deviations**2).mean() / (errors**2).mean())
    assert 2 / 3 < ratio < 4 / 3
    with pytest.raises(AssertionError):
        assert_covered(deviations, errors / 2)
    with pytest.raises(AssertionError):
        assert_covered(deviations + 2 * errors, errors)


def test_the_h_that_is_chosen_keeps_its_bias_below_its_noise():
    nbeta, gamma = GAUSSIAN.nbeta, GAUSSIAN.gamma
    assert nbeta is not None and gamma is not None
    answer = GaussianPosterior.of(TRAIN, CENTER, nbeta=nbeta, gamma=gamma).influence(QUERIES, TRAIN)
    found = respond(quadratic_problem(), GAUSSIAN, steps=200, replicates=8)
    assert found.perturbation.accepted
    assert found.h.shape == (4,) and len(np.unique(found.h)) == 4
    size = np.sqrt(np.square(answer.numpy()).mean(axis=1, keepdims=True))
    gap = np.abs(found.scores - answer.numpy())
    assert found.bias < 0.05
    # Bias and noise are of one order; the bias is a root mean square over entries.
    assert (gap <= STANDARD_ERRORS * found.standard_error + 3 * found.bias * size).all()
    assert (found.standard_error / size).max() < 0.1
