"""The default damping against linear regressions, whose Hessian is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bif
from bif import losses
from bif.calibration.damping import (
    FLATTEST,
    SHARE,
    left_gradient,
    leftover_curvature,
    usual_damping,
)
from bif.calibration.pilot import pilot
from bif.problem.items import Items
from bif.sampling.choices import Choices
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import StackedOracle
from bif.sampling.posterior import LocalPosterior
from small_problems import normal

N, D = 30, 4
X = normal(N, D, seed=0) * torch.tensor([3.0, 1.0, 0.3, 0.1]).double()
Y = normal(N, seed=1)
HESSIAN = X.T @ X / N
BEST = torch.linalg.solve(HESSIAN, X.T @ Y / N)


def leftover(weight: Tensor, *, decay: float = 0.0, mask: Tensor | None = None) -> float:
    model = torch.nn.Linear(D, 1, bias=False).double()
    moving = torch.ones(D, dtype=torch.bool) if mask is None else mask.bool()
    posterior = LocalPosterior(
        {"weight": weight[None]}, nbeta=1.0, gamma=1.0, weight_decay=decay,
        movable={"weight": moving[None]},
    )  # fmt: skip
    gradient = FullGradient(
        StackedOracle(model, losses.squared_error),
        Items((X, Y)), chunk_size=N, train_weights=torch.ones(N).double(),
    )  # fmt: skip
    largest = float(torch.linalg.eigvalsh(HESSIAN)[-1])
    params = {"weight": weight[None, None]}
    left = left_gradient(gradient, posterior, params)
    return leftover_curvature(gradient, posterior, params, left=left, largest=largest)


def test_leftover_curvature_is_the_hessians_along_the_gradient():
    w, decay = normal(D, seed=2), 0.1
    H = HESSIAN + decay * torch.eye(D).double()
    g = HESSIAN @ (w - BEST) + decay * w
    assert leftover(w, decay=decay) == pytest.approx(float((H @ g).norm() / g.norm()), rel=1e-8)


def test_weights_that_may_not_move_have_no_part_in_it():
    w, moving = normal(D, seed=2), torch.tensor([1.0, 1.0, 0.0, 1.0]).double()
    g = moving * (HESSIAN @ (w - BEST))
    expected = (moving * (HESSIAN @ g)).norm() / g.norm()
    assert leftover(w, mask=moving) == pytest.approx(float(expected), rel=1e-8)


def test_training_that_goes_on_leaves_ever_flatter_directions():
    w, seen = torch.zeros(D).double(), []
    for step in range(1, 3001):
        w = w - 0.05 * HESSIAN @ (w - BEST)
        if step in (10, 100, 3000):
            seen.append(leftover(w))
    smallest = float(torch.linalg.eigvalsh(HESSIAN)[0])
    assert seen[0] > 10 * seen[1] > 20 * smallest
    assert seen[2] == pytest.approx(smallest, rel=0.05)


def test_a_gradient_that_is_rounding_says_nothing():
    assert math.isnan(leftover(BEST))


@pytest.mark.parametrize(
    ("leftover", "why"), [(math.nan, "not known"), (math.inf, "steeper"), (3.0, "steeper")]
)
def test_without_a_slower_trace_the_damping_is_a_part_of_the_largest_curvature(leftover, why):
    damping, words = usual_damping(100.0, leftover)
    assert damping == 100 / SHARE
    assert words.startswith("largest curvature at w*, 100, / 50 (") and why in words


def test_else_it_lies_half_way_between_the_two():
    damping, why = usual_damping(100.0, 0.02)
    assert damping == pytest.approx(0.2) and "0.02" in why


def test_it_is_never_flatter_than_chains_can_mix():
    damping, why = usual_damping(100.0, 1e-9)
    assert damping == FLATTEST * 100 and why.endswith("raised so that chains mix")


def regression(w: Tensor, *, repeats: int = 1, **given: Any) -> bif.Problem:
    model = torch.nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(w[None])
    train = X.repeat(repeats, 1), Y.repeat(repeats)
    return bif.Problem(model, losses.squared_error, train=train, queries=(X[:2], Y[:2]), **given)


def trained(steps: int) -> Tensor:
    w = torch.zeros(D).double()
    for _ in range(steps):
        w = w - 0.05 * HESSIAN @ (w - BEST)
    return w


def chosen(problem: bif.Problem, **settings: Any) -> float:
    found = bif.calibrate(problem, bif.Settings(nbeta=100.0, mass="identity", **settings)).settings
    assert found.gamma is not None
    return found.gamma


def test_calibration_takes_it_and_says_so():
    w = trained(300)
    found = bif.calibrate(regression(w), bif.Settings(nbeta=100.0, mass="identity"))
    g = HESSIAN @ (w - BEST)
    part = float(torch.linalg.eigvalsh(HESSIAN)[-1]) / SHARE
    rate = float((HESSIAN @ g).norm() / g.norm())
    assert rate < part
    assert found.settings.gamma == pytest.approx(100 * (part * rate) ** 0.5, rel=1e-3)
    assert any("curvature along the gradient" in line for line in found.explanations)


def test_it_is_the_same_in_any_chunks_weights_clock_and_budget(monkeypatch):
    problem = regression(trained(300))
    gamma = chosen(problem)
    assert chosen(problem, chunk_size=7) == pytest.approx(gamma, rel=1e-6)
    doubled = regression(trained(300), train_weights=torch.full((N,), 2.0))
    assert chosen(doubled) == pytest.approx(2 * gamma, rel=1e-6)
    for seconds in (1e-6, 1e-3):
        monkeypatch.setattr("bif.calibration.pilot.seconds_of_gradient", lambda *_, s=seconds: s)
        budgeted = bif.Settings(nbeta=100.0, budget=600.0, oracle="stacked", chunk_size=N)
        assert pilot(problem, budgeted, Choices()).gamma == pytest.approx(gamma, rel=1e-6)


def test_noise_of_mini_batches_leaves_the_part_of_the_largest_curvature():
    """The last batch's gradient is in w*, in directions as steep as any."""
    step = torch.linalg.eigh(HESSIAN).eigenvectors[:, -1]
    w = BEST + 0.1 * step
    part = float(torch.linalg.eigvalsh(HESSIAN)[-1]) / SHARE
    assert chosen(regression(w)) == pytest.approx(100 * part, rel=1e-3)


def test_of_too_many_items_no_whole_gradient_is_taken(monkeypatch):
    monkeypatch.setattr("bif.calibration.pilot._MOST_ITEMS", N - 1)
    part = float(torch.linalg.eigvalsh(HESSIAN)[-1]) / SHARE
    assert chosen(regression(trained(300))) == pytest.approx(100 * part, rel=1e-3)


def test_a_gamma_raised_for_the_ball_does_not_call_the_fit_perfect():
    flat = torch.linalg.eigh(HESSIAN).eigenvectors[:, 0]
    w = BEST + (3 - float(BEST @ BEST - (BEST @ flat) ** 2)) ** 0.5 * flat - (BEST @ flat) * flat
    assert float(w @ w) == pytest.approx(3)
    found = bif.calibrate(regression(w), bif.Settings(nbeta=1.0, draws=10))
    (why,) = [line for line in found.explanations if line.startswith("gamma = ")]
    assert "raised: with this gamma chains stay within 3 |w*|" in why and "perfectly" not in why
