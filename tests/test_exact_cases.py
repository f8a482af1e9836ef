"""Problems whose influences are known exactly, from a model to scores, through the public entry.

Losses are quadratic where nothing else is said, so that BAOAB has no discretisation bias; answers
must come out within five of the library's own standard errors, which must be small.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.calibrate import make_sampler
from bif.estimate import estimate_covariance
from bif.gradients import FullGradient
from bif.oracles import StackedOracle
from bif.rng import BlockNoise
from bif.types import Batch
from law_checks import STANDARD_ERRORS, Scaled, assert_mean

DRAWS, CHAINS = 60, 512
OFF = pytest.raises(AssertionError, match="standard errors")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Point(nn.Module):
    """Weights and nothing else."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())


def quadratic_loss(model: nn.Module, batch: Batch) -> Tensor:
    minimum, hessian = batch
    away = model.w - minimum
    return 0.5 * ((hessian @ away.unsqueeze(-1)).squeeze(-1) * away).sum(dim=-1)


@dataclass(frozen=True)
class Quadratics:
    """Items with losses `½ (w - minimum)ᵀ hessian (w - minimum)`."""

    minimum: Tensor
    hessian: Tensor

    @classmethod
    def random(cls, num_items: int, num_weights: int, *, seed: int) -> Quadratics:
        root = random(num_items, num_weights, num_weights, seed=seed)
        return cls(
            random(num_items, num_weights, seed=seed + 1),
            root @ root.mT / num_weights + torch.eye(num_weights, dtype=torch.float64),
        )

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.minimum, self.hessian

    def gradient(self, w: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.hessian, w - self.minimum)


@dataclass(frozen=True)
class GaussianPosterior:
    """The local posterior of quadratic train items: mean and covariance S."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(
        cls, train: Quadratics, center: Tensor, *, nbeta: float, gamma: float
    ) -> GaussianPosterior:
        pull = torch.einsum("bij,bj->bi", train.hessian, train.minimum).mean(dim=0)
        precision = nbeta * train.hessian.mean(dim=0) + gamma * torch.eye(len(center)).double()
        covariance = torch.linalg.inv(precision)
        return cls(covariance @ (nbeta * pull + gamma * center), covariance)

    def influence(self, queries: Quadratics, train: Quadratics) -> Tensor:
        """`-(g_qᵀ S g_i + ½ tr(H_q S H_i S))`, `[Q, N]`, gradients at the posterior mean."""
        S = self.covariance
        first = queries.gradient(self.mean) @ S @ train.gradient(self.mean).T
        second = torch.einsum("qab,bc,icd,da->qi", queries.hessian, S, train.hessian, S)
        return -(first + 0.5 * second)

    def expectation(self, queries: Quadratics) -> Tensor:
        """`E[loss]` of every query, `[Q]`."""
        trace = torch.einsum("qab,ba->q", queries.hessian, self.covariance)
        away = self.mean - queries.minimum
        return 0.5 * (torch.einsum("qa,qa->q", away, queries.gradient(self.mean)) + trace)


def settings_for(precision: Tensor, *, nbeta: float, gamma: float, seed: int = 0) -> bif.Settings:
    """BAOAB at `h² k_max = 1` with critical friction, thinned until draws are independent."""
    eigenvalues = torch.linalg.eigvalsh(precision)
    k_min, k_max = float(eigenvalues[0]), float(eigenvalues[-1])
    relaxation = sqrt(k_max / k_min)
    return bif.Settings(
        sampler="baoab",
        nbeta=nbeta,
        gamma=gamma,
        step_size=1 / sqrt(k_max),
        friction=2 * sqrt(k_min),
        # The critically damped autocorrelation is about (1 + t) exp(-t) after t relaxations.
        burn_in=ceil(20 * relaxation),
        thin=ceil(5 * relaxation),
        chains=CHAINS,
        block_size=CHAINS,
        draws=DRAWS,
        seed=seed,
    )


def assert_influence(run: bif.Run, expected: Tensor, *, precision: float, bias: float = 0) -> None:
    """Assert the scores `[A, Q, N]` within five of the library's standard errors.

    64 groups of chains, so that five standard errors mean what they do for a normal law.  Gate:
    no standard error above `precision` times the root mean square of the expected scores.

    Args:
        bias: What the expected answer leaves out, relative to each score.
    """
    covariance = estimate_covariance(run.traces, num_groups=64)
    shape = expected.shape
    got, error = -covariance.value.view(shape), covariance.standard_error.view(shape)
    np.testing.assert_allclose(run.influence.dataset["influence"], got, rtol=1e-5, atol=1e-12)
    effect = float(expected.square().mean().sqrt())
    assert float(error.max()) < precision * effect, "the errors are too large to tell"
    gap = (got - expected).abs()
    assert (gap <= STANDARD_ERRORS * error + bias * expected.abs()).all(), (
        f"off by up to {float((gap / error).max()):.1f} standard errors"
    )


def mutate_sampler(
    monkeypatch: pytest.MonkeyPatch, *, noise: float = 1.0, gradient: float = 1.0
) -> None:
    def mutated(settings: bif.Settings) -> Any:
        return Scaled(make_sampler(settings), noise=noise, gradient=gradient)

    monkeypatch.setattr(importlib.import_module("bif.attribute"), "make_sampler", mutated)


SAMPLER_MUTANTS = pytest.mark.parametrize(
    "mutation",
    [{"noise": sqrt(0.5)}, {"gradient": 0.5}],
    ids=["halved noise", "half kick"],
)


# --- Cases 3 and 5: quadratic losses at any temperature, nbeta = 0 included -----------------------

NUM_WEIGHTS = 3
TRAIN = Quadratics.random(5, NUM_WEIGHTS, seed=0)
QUERIES = Quadratics.random(4, NUM_WEIGHTS, seed=10)
CENTER = random(NUM_WEIGHTS, seed=20)


def quadratic_run(
    train: Quadratics = TRAIN,
    queries: Quadratics = QUERIES,
    *,
    nbeta: float,
    gamma: float,
    sampled_gamma: float | None = None,
    sampled_nbeta: float | None = None,
) -> bif.Run:
    """A run whose sampler settings suit (nbeta, gamma), sampling perhaps other values."""
    center = CENTER if train.minimum.shape[1] == NUM_WEIGHTS else torch.zeros(4).double()
    problem = bif.Problem(Point(center), quadratic_loss, train=train.batch, queries=queries.batch)
    posterior = GaussianPosterior.of(train, center, nbeta=nbeta, gamma=gamma)
    settings = settings_for(torch.linalg.inv(posterior.covariance), nbeta=nbeta, gamma=gamma)
    settings = replace(
        settings,
        gamma=gamma if sampled_gamma is None else sampled_gamma,
        nbeta=nbeta if sampled_nbeta is None else sampled_nbeta,
    )
    return bif.attribute(problem, settings)


def quadratic_answer(*, nbeta: float, gamma: float) -> Tensor:
    posterior = GaussianPosterior.of(TRAIN, CENTER, nbeta=nbeta, gamma=gamma)
    return posterior.influence(QUERIES, TRAIN).unsqueeze(0)


@pytest.fixture(scope="module")
def hot_run() -> bif.Run:
    return quadratic_run(nbeta=1.0, gamma=2.0)


@pytest.mark.parametrize(("nbeta", "gamma"), [(50.0, 2.0), (5.0, 2.0)], ids=["cold", "cool"])
def test_case_3_quadratic_losses_have_the_exact_covariance_at_any_temperature(
    nbeta: float, gamma: float
):
    run = quadratic_run(nbeta=nbeta, gamma=gamma)
    expected = quadratic_answer(nbeta=nbeta, gamma=gamma)
    assert_influence(run, expected, precision=0.08)
    np.testing.assert_allclose(
        run.influence.dataset["derivative"],
        nbeta / 5 * run.influence.dataset["influence"],
        rtol=1e-5,
    )
    with OFF:
        assert_influence(run, -expected, precision=0.08)
    with OFF:
        assert_influence(run, quadratic_answer(nbeta=nbeta, gamma=1.5 * gamma), precision=0.1)


def test_case_3_needs_the_curvature_term_and_gradients_at_the_posterior_mean(
    hot_run: bif.Run,
):
    nbeta, gamma, run = 1.0, 2.0, hot_run
    posterior = GaussianPosterior.of(TRAIN, CENTER, nbeta=nbeta, gamma=gamma)
    first = -QUERIES.gradient(posterior.mean) @ posterior.covariance
    assert_influence(run, posterior.influence(QUERIES, TRAIN)[None], precision=0.08)
    with OFF:
        assert_influence(run, (first @ TRAIN.gradient(posterior.mean).T)[None], precision=0.08)
    at_center = replace(posterior, mean=CENTER)
    with OFF:
        assert_influence(run, at_center.influence(QUERIES, TRAIN)[None], precision=0.08)


@SAMPLER_MUTANTS
def test_case_3_rejects_a_mutated_sampler(
    mutation: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    mutate_sampler(monkeypatch, **mutation)
    run = quadratic_run(nbeta=1.0, gamma=2.0)
    with OFF:
        assert_influence(run, quadratic_answer(nbeta=1.0, gamma=2.0), precision=0.1)


def test_case_5_without_data_what_remains_is_the_gradient_kernel_at_the_center():
    gamma = 2.0
    gradients = QUERIES.gradient(CENTER), TRAIN.gradient(CENTER)
    curvature = torch.einsum("qab,iba->qi", QUERIES.hessian, TRAIN.hessian)
    expected = -(gradients[0] @ gradients[1].T / gamma + 0.5 * curvature / gamma**2)[None]
    torch.testing.assert_close(
        quadratic_answer(nbeta=0.0, gamma=gamma), expected, rtol=0, atol=1e-10
    )
    assert_influence(quadratic_run(nbeta=0.0, gamma=gamma), expected, precision=0.08)
    with OFF:
        mutant = quadratic_run(nbeta=0.0, gamma=gamma, sampled_nbeta=0.5)
        assert_influence(mutant, expected, precision=0.1)


# --- Cases 1 and 4: low temperature and large gamma, losses that are not quadratic ----------------


def logistic_loss(model: nn.Module, batch: Batch) -> Tensor:
    x, sign = batch
    return nn.functional.softplus(-sign * model(x).squeeze(-1))


def labelled(num_items: int, *, seed: int) -> tuple[Tensor, Tensor]:
    x = random(num_items, 3, seed=seed)
    # Labels with as much noise as signal cannot be separated, so the minimum is finite.
    return x, (x[:, 0] + random(num_items, seed=seed + 1)).sign()


def derivatives(model: nn.Module, loss: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gradients `[B, p]` and the mean Hessian `[p, p]`, weights flattened in their order."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def losses(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        leaves = {n: w.view_as(p) for (n, p), w in zip(named.items(), parts, strict=True)}

        class Call(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.func.functional_call(model, leaves, (x,))

        return loss(Call(), batch)

    flat = torch.cat([p.flatten() for p in named.values()])
    hessian = torch.func.hessian(lambda w: losses(w).mean())(flat)
    return torch.func.jacrev(losses)(flat), hessian  # type: ignore[return-value]


def test_case_1_low_temperature_gives_the_classical_influence_with_damping_gamma_over_nbeta():
    train, queries = labelled(20, seed=0), labelled(4, seed=50)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    for _ in range(30):  # Newton to the minimum, where the leading order is taken
        gradients, hessian = derivatives(model, logistic_loss, train)
        model.weight.data -= torch.linalg.solve(hessian, gradients.mean(dim=0))
    gradients, hessian = derivatives(model, logistic_loss, train)
    assert gradients.mean(dim=0).abs().max() < 1e-12
    query_gradients, _ = derivatives(model, logistic_loss, queries)
    nbeta, gamma = 1e7, 1e6

    def classical(damping: float) -> Tensor:
        inverse = torch.linalg.inv(hessian + damping * torch.eye(3).double())
        return -(query_gradients @ inverse @ gradients.T / nbeta)[None]

    precision = nbeta * hessian + gamma * torch.eye(3).double()
    problem = bif.Problem(model, logistic_loss, train=train, queries=queries)
    run = bif.attribute(problem, settings_for(precision, nbeta=nbeta, gamma=gamma))
    # The next order is smaller by 1 / (nbeta * curvature), about 1e-6, far below an error of 1 %.
    assert_influence(run, classical(gamma / nbeta), precision=0.08)
    for wrong in (0.0, 2 * gamma / nbeta, gamma):
        with OFF:
            assert_influence(run, classical(wrong), precision=float("inf"))


def test_case_4_large_gamma_gives_the_gradient_product():
    # Not trained at all: at large gamma it does not matter that w* is no minimum.
    kept = torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    torch.set_rng_state(kept)
    x, sign = labelled(6, seed=0)
    qx, qsign = labelled(3, seed=50)
    train, queries = (x, (sign > 0).long()), (qx, (qsign > 0).long())
    nbeta, gamma = 6.0, 1e8
    gradients, _ = derivatives(model, bif.losses.cross_entropy, train)
    query_gradients, _ = derivatives(model, bif.losses.cross_entropy, queries)
    product = -(query_gradients @ gradients.T / gamma)[None]
    problem = bif.Problem(model, bif.losses.cross_entropy, train=train, queries=queries)
    run = bif.attribute(
        problem, settings_for(gamma * torch.eye(1).double(), nbeta=nbeta, gamma=gamma)
    )
    # Corrections are of relative order (nbeta * curvature) / gamma, about 1e-6.
    assert_influence(run, product, precision=0.08)
    with OFF:
        assert_influence(run, -product, precision=0.08)
    with OFF:
        assert_influence(run, product / 1.1, precision=0.08)
    # Cosines in place of products.
    norms = query_gradients.norm(dim=1)[:, None] * gradients.norm(dim=1)
    with OFF:
        assert_influence(run, product / norms * norms.mean(), precision=0.08)


# --- Case 7: disjoint parameters ------------------------------------------------------------------


def in_blocks(num_items: int, *, seed: int) -> Quadratics:
    """Items that touch weights 0 and 1, and as many that touch weights 2 and 3."""
    first, second = (Quadratics.random(num_items, 2, seed=seed + shift) for shift in (0, 5))
    hessian = torch.zeros(2 * num_items, 4, 4, dtype=torch.float64)
    hessian[:num_items, :2, :2] = first.hessian
    hessian[num_items:, 2:, 2:] = second.hessian
    minimum = torch.zeros(2 * num_items, 4, dtype=torch.float64)
    minimum[:num_items, :2], minimum[num_items:, 2:] = first.minimum, second.minimum
    return Quadratics(minimum, hessian)


def test_case_7_items_of_disjoint_weights_have_no_covariance():
    train, queries = in_blocks(3, seed=0), in_blocks(2, seed=30)
    center, nbeta, gamma = torch.zeros(4).double(), 6.0, 1.0
    answer = GaussianPosterior.of(train, center, nbeta=nbeta, gamma=gamma)
    expected = answer.influence(queries, train)[None]
    assert (expected[0, :2, 3:] == 0).all()
    assert (expected[0, 2:, :3] == 0).all()
    run = quadratic_run(train, queries, nbeta=nbeta, gamma=gamma)
    assert_influence(run, expected, precision=0.08)

    # Mutant: one item whose loss couples the blocks by a tenth of its curvature.
    hessian = train.hessian.clone()
    hessian[0, 2:, 2:] = 0.1 * torch.eye(2)
    hessian[0, 0, 2] = hessian[0, 2, 0] = 0.3
    coupled = quadratic_run(replace(train, hessian=hessian), queries, nbeta=nbeta, gamma=gamma)
    with OFF:
        assert_influence(coupled, expected, precision=0.1)

    # Mutant: chains at different levels, centred over all chains instead of within each.
    block = run.traces.blocks[0]
    levels = random(CHAINS, 1, 1, seed=3)
    train_levels, query_levels = block.train + levels, block.query + levels
    within = estimate_covariance(bif.LossTraces.from_arrays(train_levels, query_levels))
    across = estimate_covariance(
        bif.LossTraces.from_arrays(
            train_levels.flatten(0, 1).unsqueeze(0), query_levels.flatten(0, 1).unsqueeze(0)
        )
    )
    errors = estimate_covariance(run.traces, num_groups=64).standard_error
    assert ((within.value + expected[0]).abs() <= STANDARD_ERRORS * errors).all()
    assert ((across.value + expected[0]).abs() > STANDARD_ERRORS * errors).all()


# --- Case 8: linear regression, and leaving one item out ------------------------------------------


class Regression:
    """Ten items, three weights; the answer for any weights of the items."""

    num_items, nbeta, gamma = 10, 10.0, 4.0

    def __init__(self) -> None:
        self.x = random(self.num_items, 3, seed=0)
        slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        self.y = self.x @ slope + random(self.num_items, seed=1)
        # Near the least squares solution, but not at it.
        self.center = torch.linalg.lstsq(self.x, self.y[:, None]).solution[:, 0] + 0.2

    def posterior(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance."""
        scaled = self.nbeta / self.num_items * weights[:, None] * self.x
        precision = scaled.T @ self.x + self.gamma * torch.eye(3).double()
        covariance = torch.linalg.inv(precision)
        return covariance @ (scaled.T @ self.y + self.gamma * self.center), covariance

    def run(self, weights: Tensor | None = None) -> bif.Run:
        model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        model.weight.data.copy_(self.center[None])
        problem = bif.Problem(
            model,
            bif.losses.squared_error,
            train=(self.x, self.y),
            # The prediction at a unit vector is a weight.
            queries=(torch.eye(3).double(), torch.zeros(3).double()),
            observables=[bif.Observable("weight", lambda model, batch: model(batch[0])[:, 0])],
            train_weights=weights,
        )
        precision = torch.linalg.inv(self.posterior(torch.ones(self.num_items).double())[1])
        settings = settings_for(precision, nbeta=self.nbeta, gamma=self.gamma)
        return bif.attribute(problem, settings)


@pytest.fixture(scope="module")
def regression_run() -> bif.Run:
    return Regression().run()


def test_case_8_regression_weights_respond_as_the_closed_form_says(regression_run: bif.Run):
    case, run = Regression(), regression_run
    mean, S = case.posterior(torch.ones(case.num_items).double())
    residual = case.y - case.x @ mean
    expected = (S @ (case.x * residual[:, None]).T)[None]
    assert_influence(run, expected, precision=0.08)
    # The same by the classical formula with damping gamma/nbeta.
    hessian = case.x.T @ case.x / case.num_items
    damped = hessian + case.gamma / case.nbeta * torch.eye(3).double()
    again = torch.linalg.solve(damped, (case.x * residual[:, None]).T) / case.nbeta
    torch.testing.assert_close(expected[0], again, rtol=0, atol=1e-10)
    with OFF:
        assert_influence(run, -expected, precision=0.08)
    with OFF:  # residuals at w* instead of the posterior mean
        at_center = case.y - case.x @ case.center
        assert_influence(run, (S @ (case.x * at_center[:, None]).T)[None], precision=0.08)


def test_case_8_leave_one_out_follows_from_the_derivative_and_the_leverage_exactly(
    regression_run: bif.Run,
):
    case, full = Regression(), regression_run
    everyone = torch.ones(case.num_items).double()
    mean, S = case.posterior(everyone)
    residual = case.y - case.x @ mean
    leverage = case.nbeta / case.num_items * torch.einsum("ja,ab,jb->j", case.x, S, case.x)
    without_j = [
        everyone.clone().index_fill(0, torch.tensor([j]), 0) for j in range(case.num_items)
    ]
    shift = torch.stack([case.posterior(rho)[0] - mean for rho in without_j], dim=1)
    formula = -case.nbeta / case.num_items * (S @ (case.x * residual[:, None]).T) / (1 - leverage)
    torch.testing.assert_close(formula, shift, rtol=0, atol=1e-10)

    dataset = full.influence.dataset
    scale = case.nbeta / case.num_items / (1 - leverage)
    predicted = -torch.as_tensor(dataset["derivative"].values[0]).double() / (1 - leverage)
    # 16 groups of chains stand behind the errors of the dataset.
    error = torch.as_tensor(dataset["standard_error"].values[0]).double() * scale
    assert error.max() < 0.05 * shift.square().mean().sqrt()
    assert ((predicted - shift).abs() <= STANDARD_ERRORS * error).all()
    with pytest.raises(AssertionError):  # the plain derivative, without the leverage
        plain = predicted * (1 - leverage)
        assert ((plain - shift).abs() <= STANDARD_ERRORS * error).all()

    # Sampling without the item with the largest residual, by the same random numbers.
    worst = int(residual.abs().argmax())
    dropped = case.run(without_j[worst])
    moved = dropped.traces.blocks[0].query - full.traces.blocks[0].query
    assert_mean(moved, shift[:, worst], min_ess=1000)
    with OFF:
        assert_mean(moved, -shift[:, worst], min_ess=1000)


# --- Case 9: one dimension, by hand ---------------------------------------------------------------


def half_square(model: nn.Module, batch: Batch) -> Tensor:
    return 0.5 * (model.w - batch) ** 2


CANDIDATES = torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)
BY_HAND = -torch.tensor([[[0.03125, -0.21875, 0.28125]]], dtype=torch.float64)


def case_9(*, nbeta: float = 2.0, gamma: float = 2.0, item_2_weight: float = 1.0) -> bif.Run:
    # The mean loss of the three candidates is w²/2 but for a constant.
    problem = bif.Problem(
        Point(torch.zeros(1, dtype=torch.float64)),
        half_square,
        train=CANDIDATES,
        queries=torch.ones(1, dtype=torch.float64),
        train_weights=[1.0, 1.0, item_2_weight],
    )
    settings = settings_for(4 * torch.eye(1).double(), nbeta=2.0, gamma=2.0)
    return bif.attribute(problem, replace(settings, nbeta=nbeta, gamma=gamma))


@pytest.fixture(scope="module")
def case_9_run() -> bif.Run:
    return case_9()


def test_case_9_has_the_numbers_found_by_hand(case_9_run: bif.Run):
    run = case_9_run
    assert_influence(run, BY_HAND, precision=0.03)
    # A quarter is the variance of the weight: of the loss of candidate 0, ½ Var(w)² = 1/32.
    np.testing.assert_allclose(BY_HAND[0, 0, 0], -0.5 * 0.25**2)
    with OFF:
        assert_influence(run, -BY_HAND, precision=0.03)
    ranking = run.influence.top(0, k=1)
    assert (ranking.helpful[0].train_id, ranking.harmful[0].train_id) == ("2", "1")


@SAMPLER_MUTANTS
def test_case_9_rejects_a_mutated_sampler(
    mutation: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    mutate_sampler(monkeypatch, **mutation)
    run = case_9()
    with OFF:
        assert_influence(run, BY_HAND, precision=0.1)


@pytest.mark.parametrize("wrong", [{"gamma": 1.0}, {"nbeta": 3.0}], ids=["gamma", "nbeta"])
def test_case_9_rejects_a_wrong(wrong: dict[str, float]):
    run = case_9(**wrong)
    with OFF:
        assert_influence(run, BY_HAND, precision=0.1)


def test_case_9_perturbing_the_mean_loss_moves_the_query_at_the_rate_found_by_hand(
    case_9_run: bif.Run,
):
    delta = 0.1

    def expected_loss(shift: float) -> float:
        # U = 2 (w²/2 + shift (w - 1)²/2) + w²: precision 4 + 2 shift.
        precision = 4 + 2 * shift
        return 0.5 * (1 / precision + (2 * shift / precision - 1) ** 2)

    # Item 2 is (w - 1)²/2: weight 1 + 3 delta adds delta (w - 1)²/2 to the mean loss.
    runs = [case_9(item_2_weight=1 + 3 * shift) for shift in (delta, -delta)]
    difference = runs[0].traces.blocks[0].query - runs[1].traces.blocks[0].query
    exact = (expected_loss(delta) - expected_loss(-delta)) / (2 * delta)
    assert abs(exact + 0.5625) < 0.01
    assert_mean(difference / (2 * delta), [exact], min_ess=10_000)
    with OFF:
        assert_mean(difference / (2 * delta), [-exact], min_ess=10_000)
    # The library's derivative is per item weight, a third of the rate for the mean loss.
    dataset = case_9_run.influence.dataset
    rate = 3 * float(dataset["derivative"].values[0, 0, 2])
    error = 2 * float(dataset["standard_error"].values[0, 0, 2])
    assert error < 0.03 * 0.5625
    assert abs(rate + 0.5625) < STANDARD_ERRORS * error


# --- Identities that need no answer ---------------------------------------------------------------


def check_virial(sampler: Any) -> None:
    mask = torch.tensor([True, False, True])
    posterior = bif.LocalPosterior({"w": CENTER}, 5.0, 2.0, movable={"w": mask})
    oracle = StackedOracle(Point(CENTER), quadratic_loss)
    gradient = FullGradient(
        oracle,
        bif.Items(TRAIN.batch),
        chunk_size=5,
        train_weights=torch.ones(5, dtype=torch.float64),
    )
    values = []
    for draw in bif.run_chains(
        sampler,
        posterior,
        gradient=gradient,
        params={"w": CENTER.expand(256, 3).clone()},
        noise=BlockNoise(torch.Generator().manual_seed(0), posterior.masks),
        num_draws=200,
        burn_in=60,
        thin=5,
    ):
        force = posterior.potential_gradient_(gradient(draw.params, 0).gradient, draw.params)
        values.append((posterior.displacement(draw.params)["w"] * force["w"]).sum(dim=1))
    assert_mean(torch.stack(values, dim=1), posterior.num_moving, min_ess=20_000)


def test_the_virial_counts_the_moving_weights():
    # Curvatures of U are between gamma = 2 and about 2 + 5 * 6.
    sampler = bif.samplers.BAOAB(0.2, 4.0)
    check_virial(sampler)
    for mutant in (Scaled(sampler, noise=sqrt(0.5)), Scaled(sampler, gradient=0.5)):
        with OFF:
            check_virial(mutant)


def test_the_response_to_nbeta_is_minus_the_covariance_with_the_mean_loss(
    hot_run: bif.Run,
):
    nbeta, gamma, delta = 1.0, 2.0, 0.1
    posterior = [
        GaussianPosterior.of(TRAIN, CENTER, nbeta=b, gamma=gamma)
        for b in (nbeta + delta, nbeta - delta)
    ]
    exact = (posterior[0].expectation(QUERIES) - posterior[1].expectation(QUERIES)) / (2 * delta)
    runs = [
        quadratic_run(nbeta=nbeta, gamma=gamma, sampled_nbeta=b)
        for b in (nbeta + delta, nbeta - delta)
    ]
    # Both runs share their random numbers, so their difference is far less noisy than either.
    response = (runs[0].traces.blocks[0].query - runs[1].traces.blocks[0].query) / (2 * delta)
    assert_mean(response, exact, min_ess=5_000)

    total = hot_run.influence.sum_over({"all": range(5)}).dataset
    fluctuation = torch.as_tensor(total["influence"].values[0, :, 0]).double() / 5
    error = torch.as_tensor(total["standard_error"].values[0, :, 0]).double() / 5
    answer = quadratic_answer(nbeta=nbeta, gamma=gamma)[0].mean(dim=1)
    # The difference over a finite delta is off the derivative by a known amount.
    slack = (exact - answer).abs()
    assert (slack < 0.01 * answer.abs()).all()
    assert (error < 0.05 * answer.abs()).all()
    response_error = response.mean(dim=1).std(dim=0) / CHAINS**0.5
    tolerance = STANDARD_ERRORS * (error**2 + response_error**2).sqrt() + slack
    measured = response.mean(dim=(0, 1))
    assert ((fluctuation - measured).abs() <= tolerance).all()
    with pytest.raises(AssertionError):
        assert ((-fluctuation - measured).abs() <= tolerance).all()
