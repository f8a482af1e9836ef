"""Test loss from training draws against closed forms and against leaving out by integration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import bif
import token_problems
from bif.susceptibility import generalisation
from law_checks import STANDARD_ERRORS
from one_weight_problems import GAMMA, ITEMS, NBETA, Line, polynomial_problem, run_of, values
from small_problems import TINY, classification, labelled, normal

N, ROWS = len(ITEMS), 24
ONES = torch.ones(N, dtype=torch.float64)


def figures(found, of: str, kind: str = "loss") -> np.ndarray:
    return found[kind].sel(of=of).values


# --- Linear regression: everything in closed form -------------------------------------------------


@dataclass(frozen=True)
class Regression:
    """`l_i = ½ (x_i·w - y_i)²` with the Gaussian prior `N(0, 1/gamma)`, noise of variance c."""

    nbeta: float
    gamma: float = 2.0
    scale: float = 1.0
    x: Tensor = normal(ROWS, 3, seed=11)
    y: Tensor = 0.5 * normal(ROWS, seed=12)

    @property
    def t(self) -> float:
        return self.nbeta / ROWS

    def posterior(self, rho: Tensor) -> tuple[Tensor, Tensor]:
        precision = self.t * self.x.T @ (rho[:, None] * self.x) + self.gamma * torch.eye(3)
        covariance = torch.linalg.inv(precision)
        return covariance @ (self.t * self.x.T @ (rho * self.y)), covariance

    def of_items(self, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each item's residual, `[N]`."""
        mean, covariance = self.posterior(rho)
        return self.x @ mean - self.y, ((self.x @ covariance) * self.x).sum(dim=1)

    def losses(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses, and losses of the averaged likelihood less its constant."""
        c = self.scale
        return 0.5 * (a**2 + v), c * 0.5 * torch.log1p(v / c) + 0.5 * a**2 / (1 + v / c)

    def expected(self) -> dict[str, list[float]]:
        ones = torch.ones(ROWS, dtype=torch.float64)
        a, v = self.of_items(ones)
        mean, averaged = self.losses(a, v)
        variance, third = a**2 * v + v**2 / 2, v**3 + 3 * a**2 * v**2
        without = [self.of_items(ones - torch.eye(ROWS)[i]) for i in range(ROWS)]
        left = [self.losses(a[i], v[i]) for i, (a, v) in enumerate(without)]
        first, second = self.t * variance, 0.5 * self.t**2 * third
        ratio = 1 - 1 / (self.t * self.scale)
        both = [torch.stack([pair[k] for pair in left]) for k in (0, 1)]
        lines = {
            "draws": [mean, mean + first, mean + first + second, both[0]],
            "predictive": [averaged, averaged + first, averaged + first + ratio * second, both[1]],
        }
        lines["center"] = [part - mean + 0.5 * self.y**2 for part in lines["draws"]]
        return {of: [float(part.mean()) for part in parts] for of, parts in lines.items()}

    def run(self, *, chains: int = 64, draws: int = 400, seed: int = 3) -> bif.Run:
        """A run of independent draws of the posterior itself."""
        mean, covariance = self.posterior(torch.ones(ROWS, dtype=torch.float64))
        w = mean + normal(chains, draws, 3, seed=seed) @ torch.linalg.cholesky(covariance).T
        losses = 0.5 * (w @ self.x.T - self.y) ** 2
        return run_with(losses, 0.5 * self.y**2, nbeta=self.nbeta, gamma=self.gamma)


@cache
def base(num_items: int) -> bif.Run:
    return bif.attribute(polynomial_problem(normal(num_items, 4, seed=1)), TINY)


def run_with(losses: Tensor, center: Tensor, **attributes: float) -> bif.Run:
    run = base(losses.shape[2])
    dataset = run.influence.dataset.assign_attrs(**attributes)
    dataset = dataset.assign(train_center_loss=("train", center.numpy()))
    traces = bif.LossTraces.from_arrays(losses, losses[..., :2])
    summary = replace(run.summary, ess_median=float(traces.total_draws))
    influence = bif.Influence(dataset, traces)
    return replace(run, traces=traces, influence=influence, summary=summary)


@pytest.mark.parametrize("nbeta", [ROWS / 4, ROWS, 10 * ROWS])
def test_linear_regression_is_as_in_closed_form(nbeta: float):
    """Five standard errors of the draws, 64 groups, each below 5 % of what leaving out adds."""
    problem = Regression(nbeta)
    found, expected = generalisation(problem.run(), likelihood_scale=1.0, num_groups=64), (
        problem.expected()
    )  # fmt: skip
    assert (found["pareto_k"] < found.attrs["largest_pareto_k"]).all()
    for of, line in expected.items():
        error = figures(found, of, "chain_error")
        gap = np.abs(figures(found, of) - line)
        assert (gap <= STANDARD_ERRORS * error + 1e-12).all(), (of, gap, error)
        assert (error[1:] < 0.05 * (line[3] - line[0])).all()
    # Mutants: the criterion without its temperature, and with half its variance.
    error = figures(found, "predictive", "chain_error")[1]
    train, waic = expected["predictive"][:2]
    for factor in {0.5, 1 / problem.t} - {1.0}:
        wrong = train + factor * (waic - train)
        assert abs(figures(found, "predictive")[1] - wrong) > STANDARD_ERRORS * error


def test_a_scale_is_the_variance_of_the_noise():
    problem = Regression(3.0 * ROWS, scale=0.25)
    found = generalisation(problem.run(), likelihood_scale=0.25, num_groups=64)
    gap = figures(found, "predictive") - problem.expected()["predictive"]
    assert (np.abs(gap) < STANDARD_ERRORS * figures(found, "predictive", "chain_error")).all()
    scaled = generalisation(problem.run(), likelihood_scale=1.0, num_groups=64)  # mutant
    gap = figures(scaled, "predictive") - problem.expected()["predictive"]
    assert (np.abs(gap) > STANDARD_ERRORS * figures(scaled, "predictive", "chain_error")).all()


def test_at_the_temperature_of_the_likelihood_the_second_order_changes_no_criterion():
    found = generalisation(Regression(float(ROWS)).run(), likelihood_scale=1.0)
    predictive = figures(found, "predictive")
    assert predictive[2] == predictive[1]


def test_errors_of_the_chains_are_the_spread_over_runs():
    """Of 60 runs the spread is known to 1 / sqrt(120) of itself, five of which are 46 %."""
    problem = Regression(float(ROWS))
    runs = [problem.run(chains=16, draws=60, seed=seed) for seed in range(60)]
    found = [generalisation(run, likelihood_scale=1.0) for run in runs]
    spread = np.std([one["loss"].values for one in found], axis=0, ddof=1)
    told = np.sqrt(np.mean([one["chain_error"].values ** 2 for one in found], axis=0))
    np.testing.assert_allclose(told, spread, rtol=STANDARD_ERRORS / 120**0.5, atol=1e-12)


# --- Cubic and quartic losses: leaving out by integration -----------------------------------------


def test_the_expansion_approaches_leaving_out_by_integration():
    run = run_of(Line(ONES).quantiles(40_000)[None])
    found = generalisation(run)
    assert found["of"].values.tolist() == ["draws", "center"]  # nothing predictive without a scale
    left = [Line(ONES - torch.eye(N).double()[i]).mean(ITEMS[i : i + 1]) for i in range(N)]
    truth = float(torch.cat(left).mean())
    train, first, second, importance = figures(found, "draws")
    # 40,000 quantiles leave out tails of 1e-5, where losses are some tens.
    assert importance == pytest.approx(truth, abs=1e-3)
    assert abs(second - truth) < abs(first - truth) < abs(train - truth)
    center = figures(found, "center")
    np.testing.assert_allclose(center - center[0], figures(found, "draws") - train, atol=1e-12)
    assert center[0] == 0  # L(w*)


def test_first_and_second_order_are_those_of_predicted_change():
    from bif.susceptibility import predicted_change, weight_shifts

    w = 0.3 * normal(1, 200, seed=3)
    run = run_of(w)
    traces = bif.LossTraces.from_arrays(run.traces.blocks[0].train, run.traces.blocks[0].train)
    queries = polynomial_problem(queries=ITEMS)
    other = bif.attribute(queries, replace(TINY, nbeta=NBETA, gamma=GAMMA))
    influence = bif.Influence(other.influence.dataset, traces)
    each = {str(i): {str(i): 1.0} for i in range(N)}
    itself = replace(other, traces=traces, influence=influence)
    shifts = weight_shifts(itself, each, total_weight="added")
    moved = predicted_change(itself, shifts, [-1.0], num_groups=1)
    found = generalisation(run, num_groups=1)
    train, first, second, _ = figures(found, "draws")
    own = [np.diag(moved[name].values[0, :, :, 0]).mean() for name in ("first", "second")]
    np.testing.assert_allclose([first - train, second - train], own, rtol=1e-9)
    assert found["chain_error"].isnull().all()  # of one group of chains


def test_weights_of_training_count_and_candidates_do_not():
    rho = torch.linspace(0.5, 1.5, 20).double()
    given = {"train_weights": rho, "candidates": {"new": labelled(5, seed=7)}}
    run = bif.attribute(classification(**given), replace(TINY, draws=20))
    found = generalisation(run, train_weights=rho)
    x = run.traces.blocks[0].train.double().flatten(0, 1)[:, :20]
    t = rho * run.manifest.settings["nbeta"] / 20
    expected = float((rho * (x.mean(dim=0) + t * x.var(dim=0))).mean())
    assert figures(found, "draws")[1] == pytest.approx(expected)
    assert np.isnan(found["pareto_k"].values[20:]).all() and found.sizes["train"] == 25
    item = (rho * (x.mean(dim=0))).std() / 20**0.5
    assert figures(found, "draws", "item_error")[0] == pytest.approx(float(item))


def test_many_items_are_worked_on_in_chunks(monkeypatch):
    run = run_of(0.3 * normal(4, 50, seed=3))
    whole = generalisation(run, likelihood_scale=1.0)
    module = importlib.import_module("bif.susceptibility.generalisation")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 400)
    parts = generalisation(run, likelihood_scale=1.0)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-12)


def test_an_item_whose_loss_never_moves_is_predicted_as_it_is():
    losses = 0.5 * normal(2, 30, N, seed=1).square()
    losses[..., 0] = 0.25
    found = generalisation(run_with(losses, torch.zeros(N), nbeta=float(N)), likelihood_scale=1.0)
    assert np.isnan(found["pareto_k"].values[0]) and found["loss"].notnull().all()


def test_few_draws_that_carry_an_item_are_told_by_the_shape_of_the_tail():
    """Without the item the posterior is far from flat in what was sampled: 4 of 5 draws' worth."""
    losses = normal(4, 200, N, seed=5).square()  # exp(t·l) has no variance at t = 1
    found = generalisation(run_with(losses, torch.zeros(N), nbeta=float(N)))
    assert found.attrs["share_above_it"] > 0.5 and found["pareto_k"].max() > 0.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generalisation(run_of(normal(2, 4, seed=3))), "8 draws: .* at least 25"),
        (
            lambda: generalisation(run_of(normal(2, 30, seed=3)), likelihood_scale=0.0),
            "likelihood_scale is 0.0: expected",
        ),
        (
            lambda: generalisation(bif.attribute(classification(), replace(TINY, nbeta=0.0))),
            "nbeta is 0",
        ),
        (
            lambda: generalisation(
                bif.attribute(token_problems.problem("train"), token_problems.TINY)
            ),
            "items are left out, and the run's train columns are tokens",
        ),
        (
            lambda: generalisation(
                bif.attribute(classification(), bif.Settings(estimator="response"))
            ),
            "the run was solved",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_values_of_the_expansion_need_no_center_at_zero():
    """Losses may have any offset: it adds to every estimate alike."""
    w = 0.3 * normal(4, 50, seed=3)
    losses = values(ITEMS, w.flatten()).T.reshape(4, 50, N)
    near, far = (
        generalisation(
            run_with(losses + offset, torch.full((N,), offset).double(), nbeta=NBETA),
            likelihood_scale=0.5,
        )
        for offset in (0.0, 1e3)
    )
    np.testing.assert_allclose(far["loss"] - 1e3, near["loss"], atol=1e-9)
    np.testing.assert_allclose(far["chain_error"], near["chain_error"], atol=1e-9)
