"""Linear regression: response of the weights, and leaving one item out, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bif
from exact_problems import (
    assert_influence,
    settings_for,
)
from law_checks import OFF_LAW, STANDARD_ERRORS, assert_mean
from small_problems import normal

# --- Case 8: linear regression, and leaving one item out ------------------------------------------


class Regression:
    """Ten items, three weights; the answer for any weights of the items."""

    num_items, nbeta, gamma = 10, 10.0, 4.0

    def __init__(self) -> None:
        self.x = normal(self.num_items, 3, seed=0)
        slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        self.y = self.x @ slope + normal(self.num_items, seed=1)
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
    assert_influence(run, expected, precision=0.1)
    # The same by the classical formula with damping gamma/nbeta.
    hessian = case.x.T @ case.x / case.num_items
    damped = hessian + case.gamma / case.nbeta * torch.eye(3).double()
    again = torch.linalg.solve(damped, (case.x * residual[:, None]).T) / case.nbeta
    torch.testing.assert_close(expected[0], again, rtol=0, atol=1e-10)
    with OFF_LAW:
        assert_influence(run, -expected, precision=0.1)
    with OFF_LAW:  # residuals at w* instead of the posterior mean
        at_center = case.y - case.x @ case.center
        assert_influence(run, (S @ (case.x * at_center[:, None]).T)[None], precision=0.1)


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
    with OFF_LAW:
        assert_mean(moved, -shift[:, worst], min_ess=1000)
