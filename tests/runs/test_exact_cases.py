"""Influences known exactly by theory, from a model to scores through the public entry.

Losses are quadratic where nothing else is said, so that BAOAB has no discretisation bias; answers
must come out within five of the library's own standard errors, which must be small.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.estimate import estimate_covariance
from bif.types import Batch
from exact_problems import (
    CENTER,
    CHAINS,
    QUERIES,
    SAMPLER_MUTANTS,
    TRAIN,
    GaussianPosterior,
    Quadratics,
    assert_influence,
    mutate_baoab,
    quadratic_answer,
    quadratic_run,
    settings_for,
)
from law_checks import OFF_LAW, STANDARD_ERRORS
from small_problems import normal

# --- Cases 1 and 4: low temperature and large gamma, losses that are not quadratic ----------------


def logistic_loss(model: nn.Module, batch: Batch) -> Tensor:
    x, sign = batch
    return nn.functional.softplus(-sign * model(x).squeeze(-1))


def labelled(num_items: int, *, seed: int) -> tuple[Tensor, Tensor]:
    x = normal(num_items, 3, seed=seed)
    # Labels with as much noise as signal cannot be separated, so the minimum is finite.
    return x, (x[:, 0] + normal(num_items, seed=seed + 1)).sign()


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
    hessian = torch.func.jacrev(torch.func.jacrev(lambda w: losses(w).mean()))(flat)
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
    assert_influence(run, classical(gamma / nbeta), precision=0.1)
    for wrong in (0.0, 2 * gamma / nbeta, gamma):
        with OFF_LAW:
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
    assert_influence(run, product, precision=0.1)
    with OFF_LAW:
        assert_influence(run, -product, precision=0.1)
    with OFF_LAW:
        assert_influence(run, product / 1.1, precision=0.1)
    # Cosines in place of products.
    norms = query_gradients.norm(dim=1)[:, None] * gradients.norm(dim=1)
    with OFF_LAW:
        assert_influence(run, product / norms * norms.mean(), precision=0.1)


# --- Cases 3 and 5: quadratic losses at any temperature, nbeta = 0 included -----------------------


@pytest.fixture(scope="module")
def hot_run() -> bif.Run:
    return quadratic_run(nbeta=1.0, gamma=2.0)


@pytest.mark.parametrize(("nbeta", "gamma"), [(20.0, 10.0), (5.0, 2.0)], ids=["cold", "cool"])
def test_case_3_quadratic_losses_have_the_exact_covariance_at_any_temperature(
    nbeta: float, gamma: float
):
    run = quadratic_run(nbeta=nbeta, gamma=gamma)
    expected = quadratic_answer(nbeta=nbeta, gamma=gamma)
    assert_influence(run, expected, precision=0.1)
    np.testing.assert_allclose(
        run.influence.dataset["derivative"],
        nbeta / 5 * run.influence.dataset["influence"],
        rtol=1e-5,
    )
    with OFF_LAW:
        assert_influence(run, -expected, precision=0.1)
    with OFF_LAW:
        assert_influence(run, quadratic_answer(nbeta=nbeta, gamma=2 * gamma), precision=0.1)


def test_case_3_needs_the_curvature_term_and_gradients_at_the_posterior_mean(
    hot_run: bif.Run,
):
    nbeta, gamma, run = 1.0, 2.0, hot_run
    posterior = GaussianPosterior.of(TRAIN, CENTER, nbeta=nbeta, gamma=gamma)
    first = -QUERIES.gradient(posterior.mean) @ posterior.covariance
    assert_influence(run, posterior.influence(QUERIES, TRAIN)[None], precision=0.1)
    with OFF_LAW:
        assert_influence(run, (first @ TRAIN.gradient(posterior.mean).T)[None], precision=0.1)
    at_center = replace(posterior, mean=CENTER)
    with OFF_LAW:
        assert_influence(run, at_center.influence(QUERIES, TRAIN)[None], precision=0.1)


@SAMPLER_MUTANTS
def test_case_3_rejects_a_mutated_sampler(
    mutation: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    mutate_baoab(monkeypatch, **mutation)
    run = quadratic_run(nbeta=1.0, gamma=2.0)
    with OFF_LAW:
        assert_influence(run, quadratic_answer(nbeta=1.0, gamma=2.0), precision=0.1)


def test_case_5_without_data_what_remains_is_the_gradient_kernel_at_the_center():
    gamma = 2.0
    gradients = QUERIES.gradient(CENTER), TRAIN.gradient(CENTER)
    curvature = torch.einsum("qab,iba->qi", QUERIES.hessian, TRAIN.hessian)
    expected = -(gradients[0] @ gradients[1].T / gamma + 0.5 * curvature / gamma**2)[None]
    torch.testing.assert_close(
        quadratic_answer(nbeta=0.0, gamma=gamma), expected, rtol=0, atol=1e-10
    )
    assert_influence(quadratic_run(nbeta=0.0, gamma=gamma), expected, precision=0.1)
    with OFF_LAW:
        mutant = quadratic_run(nbeta=0.0, gamma=gamma, sampled_nbeta=0.5)
        assert_influence(mutant, expected, precision=0.1)


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
    assert_influence(run, expected, precision=0.1)

    # Mutant: one item whose loss couples the blocks by a tenth of its curvature.
    hessian = train.hessian.clone()
    hessian[0, 2:, 2:] = 0.1 * torch.eye(2)
    hessian[0, 0, 2] = hessian[0, 2, 0] = 0.3
    coupled = quadratic_run(replace(train, hessian=hessian), queries, nbeta=nbeta, gamma=gamma)
    with OFF_LAW:
        assert_influence(coupled, expected, precision=0.1)

    # Mutant: chains at different levels, centred over all chains instead of within groups of one.
    block = run.traces.blocks[0]
    levels = normal(CHAINS, 1, 1, seed=3)
    train_levels, query_levels = block.train + levels, block.query + levels
    within = estimate_covariance(
        bif.LossTraces.from_arrays(train_levels, query_levels), num_groups=CHAINS
    )
    across = estimate_covariance(
        bif.LossTraces.from_arrays(
            train_levels.flatten(0, 1).unsqueeze(0), query_levels.flatten(0, 1).unsqueeze(0)
        )
    )
    errors = estimate_covariance(run.traces, num_groups=64).standard_error
    assert ((within.value + expected[0]).abs() <= STANDARD_ERRORS * errors).all()
    assert ((across.value + expected[0]).abs() > STANDARD_ERRORS * errors).all()
