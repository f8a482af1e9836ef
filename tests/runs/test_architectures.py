"""Any differentiable architecture: ten kinds against references that know nothing of bif."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bif
from architectures import ARCHITECTURES, items_of, made, problem_of
from law_checks import STANDARD_ERRORS

pytestmark = pytest.mark.usefixtures("unchecked", "no_page")

NBETA, GAMMA = 2000.0, 400.0


class Reference:
    """Losses, gradients and Hessian of a network by plain autograd, item by item."""

    def __init__(self, name: str) -> None:
        self.name, self.model = name, made(name)
        self.leaves = [p for p in self.model.parameters() if p.requires_grad]
        self.items = items_of(name, 8, seed=1)
        self.queries = items_of(name, 3, seed=11)

    def losses(self, items: Any) -> Tensor:
        if isinstance(items, dict):
            ids = items["input_ids"]
            logits = self.model(ids)[:, :-1]
            return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").sum(dim=1)
        return F.cross_entropy(self.model(items[0]), items[1], reduction="none")

    def gradient(self, value: Tensor, *, keep: bool = False) -> Tensor:
        parts = torch.autograd.grad(value, self.leaves, create_graph=keep, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def gradients(self, items: Any) -> Tensor:
        return torch.stack([self.gradient(loss) for loss in self.losses(items)])

    def hessian(self) -> Tensor:
        slope = self.gradient(self.losses(self.items).mean(), keep=True)
        return torch.stack([self.gradient(entry) for entry in slope])

    def linear(self) -> np.ndarray:
        """`-(1/nbeta) g_q (H + gamma/nbeta)⁻¹ g_i` at w*."""
        damped = self.hessian() + GAMMA / NBETA * torch.eye(self.num_weights).double()
        solved = torch.linalg.solve(damped, self.gradients(self.items).T)
        return (-self.gradients(self.queries) @ solved / NBETA).detach().numpy()

    @property
    def num_weights(self) -> int:
        return sum(leaf.numel() for leaf in self.leaves)

    def vector(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.leaves).detach().clone()

    def move(self, w: Tensor) -> None:
        nn.utils.vector_to_parameters(w, self.leaves)

    def sampled(self, *, draws: int, burn_in: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Covariances and their errors by Hamiltonian Monte Carlo with Metropolis steps."""
        center, source = self.vector(), torch.Generator().manual_seed(seed)

        def potential(w: Tensor) -> tuple[float, Tensor]:
            self.move(w)
            mean = self.losses(self.items).mean()
            away = w - center
            value = NBETA * float(mean.detach()) + GAMMA / 2 * float(away @ away)
            return value, NBETA * self.gradient(mean) + GAMMA * away

        top = float(torch.linalg.eigvalsh(self.hessian())[-1])
        step, w = 0.7 / math.sqrt(NBETA * max(top, 0.0) + GAMMA), center.clone()
        value, force = potential(w)
        kept = []
        for draw in range(burn_in + draws):
            velocity = torch.randn(len(w), generator=source, dtype=w.dtype)
            begun, ahead, slope = value + 0.5 * float(velocity @ velocity), w.clone(), force
            length = int(torch.randint(3, 9, (), generator=source))
            for _ in range(length):
                velocity = velocity - 0.5 * step * slope
                ahead = ahead + step * velocity
                there, slope = potential(ahead)
                velocity = velocity - 0.5 * step * slope
            energy = there + 0.5 * float(velocity @ velocity)
            if math.log(float(torch.rand((), generator=source))) < begun - energy:
                w, value, force = ahead, there, slope
            if draw >= burn_in:
                self.move(w)
                with torch.no_grad():
                    kept.append(torch.cat([self.losses(self.items), self.losses(self.queries)]))
        self.move(center)
        losses = torch.stack(kept).numpy()
        centred = losses - losses.mean(axis=0)
        products = -(centred[:, 8:, None] * centred[:, None, :8])
        batches = np.stack([part.mean(axis=0) for part in np.array_split(products, 20)])
        return batches.mean(axis=0), batches.std(axis=0, ddof=1) / math.sqrt(20)


@pytest.fixture(params=list(ARCHITECTURES))
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


def test_solved_scores_are_those_of_the_dense_hessian(reference):
    settings = bif.Settings(
        estimator="response", solver_curvature="hessian", nbeta=NBETA, gamma=GAMMA,
        solver_residual=1e-10,
    )  # fmt: skip
    lowest = float(torch.linalg.eigvalsh(reference.hessian())[0])
    assert lowest + GAMMA / NBETA > 0  # else there is nothing to solve
    problem = problem_of(reference.name, reference.model)
    found = bif.attribute(problem, settings).influence.dataset["influence"].values[0]
    expected = reference.linear()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["covariance", "anchored"])
def test_sampled_scores_are_those_of_another_sampler(reference, estimator):
    """Against Hamiltonian Monte Carlo in float64 with gradients by plain autograd."""
    top = float(torch.linalg.eigvalsh(reference.hessian())[-1])
    step = 0.5 / math.sqrt(NBETA * max(top, 0.0) + GAMMA)
    settings = bif.Settings(
        estimator=estimator, nbeta=NBETA, gamma=GAMMA, chains=16, draws=400, burn_in=200, thin=5,
        step_size=step, friction=0.5 * math.sqrt(GAMMA),
    )  # fmt: skip
    problem = problem_of(reference.name, reference.model)
    dataset = bif.attribute(problem, settings).influence.dataset
    expected, error = reference.sampled(draws=4000, burn_in=300, seed=3)
    both = np.sqrt(error**2 + dataset["standard_error"].values[0] ** 2)
    away = np.abs(dataset["influence"].values[0] - expected) / both
    # 24 scores, errors from 16 and from 20 groups: Student's t has tails.
    assert away.max() < STANDARD_ERRORS + 1
    signal = np.abs(expected) / both
    assert np.median(signal) > 5  # the comparison can fail
