"""Susceptibilities of components against exact quadratics, and their directions against nulls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

import bif
import token_problems
from bif.estimate import estimate_covariance
from bif.susceptibility import (
    component_runs,
    principal_directions,
    susceptibility_matrix,
)
from exact_problems import (
    GaussianPosterior,
    Quadratics,
    quadratic_problem,
    settings_for,
)
from law_checks import OFF_LAW, STANDARD_ERRORS
from made_matrices import made
from small_problems import TINY, classification, normal

GIVEN = replace(TINY, nbeta=20.0)
LAYERS = {"first": ["0.*"], "last": ["2.*"]}


@pytest.fixture(scope="module")
def runs() -> dict[str, bif.Run]:
    return component_runs(classification(), LAYERS, GIVEN)


def test_each_run_moves_its_component_alone_with_its_own_seed(runs: dict[str, bif.Run]):
    assert [run.manifest.num_moving_weights for run in runs.values()] == [25, 18]
    assert [run.manifest.settings["seed"] for run in runs.values()] == [0, 1]


def minus_covariance(phi: torch.Tensor, losses: torch.Tensor, mean: torch.Tensor) -> np.ndarray:
    """`-Cov(phi, l_x - L)` of each chain, averaged over chains; `[C, D]`, `[C, D, X]`, `[C, D]`."""
    found = [
        -np.cov(np.column_stack([phi[c], losses[c] - mean[c][:, None]]).T)[0, 1:]
        for c in range(len(phi))
    ]
    return np.mean(found, axis=0)


def test_the_matrix_is_minus_the_covariance_with_the_loss_less_the_mean_loss(runs):
    found = susceptibility_matrix(runs)
    for row, run in zip(found.value, runs.values(), strict=True):
        losses = run.traces.blocks[0].train.double()
        mean = losses.mean(dim=2)
        np.testing.assert_allclose(row, minus_covariance(mean, losses, mean), rtol=1e-9)
        with pytest.raises(AssertionError):  # mutant: L is not taken off
            np.testing.assert_allclose(row, minus_covariance(mean, losses, 0 * mean), rtol=1e-2)
    assert found.components == ("first", "last") and found.contexts[:2] == ("0", "1")
    assert (found.nbeta, found.gamma) == (20.0, 5.0)
    assert set(found.failed_gates) <= {"first", "last"}


def test_observables_and_contexts_are_chosen(runs):
    found = susceptibility_matrix(
        runs, contexts="query", observable="margin", context_observable="loss"
    )
    block = runs["last"].traces.blocks[0]
    query, mean = block.query.double(), block.train.double().mean(dim=2)
    expected = minus_covariance(query[..., 5:].mean(dim=2), query[..., :5], mean)
    np.testing.assert_allclose(found.value[1], expected, rtol=1e-9)
    assert found.observable == "margin" and len(found.contexts) == 5


def test_halves_are_every_other_chain_and_the_rest_and_errors_their_spread(runs):
    found = susceptibility_matrix(runs)
    assert found.noise.shape == (4, 2, 20) and found.error_quantile == pytest.approx(3.18, abs=0.01)
    chains = np.stack([half[0] for half in found.halves])
    np.testing.assert_allclose(found.value[0], chains.mean(axis=0), rtol=1e-12)
    block = runs["first"].traces.blocks[0]
    for half, start in zip(found.halves, (0, 1), strict=True):
        covariances = []
        for losses in block.train[start::2].double():
            mean = losses.mean(dim=1)
            joint = np.cov(np.column_stack([mean, losses - mean[:, None]]).T)
            covariances.append(joint[0, 1:])
        np.testing.assert_allclose(half[0], -np.mean(covariances, axis=0), rtol=1e-9)


def test_errors_are_the_spread_over_chains(runs):
    found = susceptibility_matrix(runs)
    x = runs["first"].traces.blocks[0].train.double()
    away = x - x.mean(dim=2, keepdim=True)
    traces = bif.LossTraces.from_arrays(away, x.mean(dim=2, keepdim=True))
    expected = estimate_covariance(traces)
    np.testing.assert_allclose(found.value[0], -expected.value[0], rtol=1e-9)
    np.testing.assert_allclose(found.standard_error[0], expected.standard_error[0], rtol=1e-9)


def test_tokens_of_queries_are_contexts():
    problem = token_problems.problem("query")
    given = replace(token_problems.TINY, nbeta=20.0)
    found = susceptibility_matrix(
        component_runs(problem, {"embed": ["embed.*"], "head": ["head.*"]}, given),
        contexts="query",
    )
    assert found.value.shape == (2, len(found.contexts)) and len(found.contexts) > 3
    assert np.isfinite(found.standard_error).all()


def test_the_matrix_of_quadratics_is_exact():
    """`-Cov_c(L, l_x - L)` of the component's Gaussian, within five standard errors."""
    train, nbeta, gamma = Quadratics.random(5, 3, seed=0), 6.0, 1.0
    center = torch.zeros(3).double()
    parts = {"one": slice(0, 1), "two": slice(1, 3)}
    expected, mutant = [], []
    whole = GaussianPosterior.of(train, center, nbeta=nbeta, gamma=gamma)
    for part in parts.values():
        # The rest stays at 0, where it moves the minimum and the level of what is left.
        pull = torch.einsum("bij,bj->bi", train.hessian, train.minimum)[:, part]
        hessian = train.hessian[:, part, part]
        minimum = torch.linalg.solve(hessian, pull)
        local = Quadratics(minimum, hessian)
        posterior = GaussianPosterior.of(local, center[part], nbeta=nbeta, gamma=gamma)
        of_items = posterior.influence(local, local)
        expected.append(of_items.mean(dim=0) - of_items.mean())
        everything = whole.influence(train, train)
        mutant.append(everything.mean(dim=0) - everything.mean())
    settings = settings_for(torch.linalg.inv(whole.covariance), nbeta=nbeta, gamma=gamma)
    names = {name: [f"w[{part.start}:{part.stop}]"] for name, part in parts.items()}
    runs = component_runs(quadratic_problem(center, train, train), names, settings)
    found = susceptibility_matrix(runs, num_groups=64)

    def check(answer: list[torch.Tensor]) -> None:
        truth = torch.stack(answer).numpy()
        assert found.standard_error.max() < 0.15 * np.sqrt((truth**2).mean()), "errors too large"
        off = np.abs(found.value - truth) / found.standard_error
        assert off.max() < STANDARD_ERRORS, f"off by {off.max():.1f} standard errors"

    check(expected)
    with OFF_LAW:  # mutant: everything moves
        check(mutant)


def test_directions_of_a_signal_are_found_and_no_others():
    rng = np.random.default_rng(2)
    factors = rng.normal(size=(6, 2)) * [2.0, 1.0]
    signal = factors @ rng.normal(size=(2, 300))
    found = principal_directions(made(signal, lambda: 0.3 * rng.normal(size=signal.shape)))
    assert found.num_kept == 2
    assert found.share.sum() == pytest.approx(1) and (np.diff(found.share) <= 0).all()
    np.testing.assert_allclose(found.loadings @ found.loadings.T, np.eye(6), atol=1e-12)
    assert (found.loadings.sum(axis=1) >= 0).all()
    assert np.isfinite(found.null_share[:3]).all() and np.isnan(found.null_share[3:]).all()
    named = found.dataset()
    assert named["scores"].sizes == {"direction": 6, "context": 300}
    assert named.attrs["num_kept"] == 2
    # A factor on a component changes nothing.
    factor = np.array([[9.0], [1], [1], [1], [1], [1e-3]])
    scaled, plain = (made(x, lambda: np.zeros(1)) for x in (signal * factor, signal))
    np.testing.assert_allclose(
        principal_directions(scaled).share, principal_directions(plain).share, atol=1e-12
    )


def test_components_that_have_nothing_in_common_have_no_directions():
    """Signals without noise, each of its own: kept as often as the level says, one in twenty."""
    kept = []
    for seed in range(100):
        signal = np.random.default_rng(seed).normal(size=(6, 80))
        found = principal_directions(made(signal, lambda: np.zeros(1)), num_shuffles=60, seed=seed)
        kept.append(found.num_kept > 0)
    assert np.mean(kept) < 0.05 + STANDARD_ERRORS * (0.05 * 0.95 / 100) ** 0.5


@pytest.mark.parametrize("num_kinds", [3, 60])
def test_noise_that_is_alike_for_like_contexts_has_no_directions(num_kinds: int):
    """Shuffling undoes it, and so would call it a direction."""
    kept, by_shuffles = [], []
    like = np.repeat(np.eye(num_kinds), 180 // num_kinds, axis=1)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        matrix = made(np.zeros((6, 180)), lambda rng=rng: rng.normal(size=(6, num_kinds)) @ like)
        kept.append(principal_directions(matrix, num_shuffles=40).num_kept > 0)
        mutant = replace(matrix, noise=0 * matrix.noise)
        by_shuffles.append(principal_directions(mutant, num_shuffles=40).num_kept > 0)
    assert np.mean(kept) < 0.05 + STANDARD_ERRORS * (0.05 * 0.95 / 60) ** 0.5
    assert np.mean(by_shuffles) > 0.5


def test_reliability_is_that_of_all_chains():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(3, 4000))
    matrix = made(signal, lambda: rng.normal(size=signal.shape))
    # Signal 1, noise 2 in each half: r = 1/3; of all, noise 1: ½, which is 2r/(1 + r).
    np.testing.assert_allclose(matrix.reliability(), 0.5, atol=5 * 1.2 / 4000**0.5)


def test_runs_in_folders_go_on(tmp_path, no_page):
    problem = classification()
    first = component_runs(problem, LAYERS, GIVEN, out=tmp_path)
    again = component_runs(problem, LAYERS, GIVEN, out=tmp_path)
    np.testing.assert_array_equal(
        susceptibility_matrix(first).value, susceptibility_matrix(again).value
    )
    assert (tmp_path / "first" / "run.json").exists()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: component_runs(classification(), {}, GIVEN), ValueError, "no component was"),
        (lambda r: component_runs(classification(), LAYERS, TINY), ValueError, "one nbeta and one"),
        (
            lambda r: component_runs(classification(), LAYERS, replace(GIVEN, movable=("*",))),
            ValueError, "settings.movable is what components are for",
        ),
        (
            lambda r: component_runs(classification(), {"a/b": ["*"]}, GIVEN, out="x"),
            ValueError, "'a/b' is no name of a folder",
        ),
        (lambda r: susceptibility_matrix({}), ValueError, "no run was given"),
        (lambda r: susceptibility_matrix(r, num_groups=1), ValueError, "at least 2 groups"),
        (lambda r: susceptibility_matrix(r, observable="x"), KeyError, "no observable 'x'"),
        (
            lambda r: susceptibility_matrix(r, contexts=cast(Any, "both")), ValueError,
            "contexts is 'both'",
        ),
        (
            lambda r: susceptibility_matrix(
                {**r, "warm": bif.attribute(classification(), replace(GIVEN, nbeta=5.0))}
            ), ValueError, "'first' and 'warm' have nbeta 20 and 5",
        ),
        (
            lambda r: susceptibility_matrix(
                {**r, "other": bif.attribute(classification(train=(
                    normal(19, 4, seed=1), torch.zeros(19, dtype=torch.long))), GIVEN)}
            ), ValueError, "'first' and 'other' differ in train_id",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(runs, call, error, message):
    with pytest.raises(error, match=message):
        call(runs)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_shuffles": 3}, "at least 20 shuffles"),
        ({"level": 1.0}, "a quantile between 0 and 1"),
    ],
)
def test_a_null_that_says_nothing_is_refused(runs, changed, message):
    with pytest.raises(ValueError, match=message):
        principal_directions(susceptibility_matrix(runs), **changed)


def test_matrices_without_directions_are_refused(runs):
    one = susceptibility_matrix({"first": runs["first"]})
    with pytest.raises(ValueError, match="at least 2 components and 3 contexts, got 1 and 20"):
        principal_directions(one)
    still = replace(susceptibility_matrix(runs), value=np.ones((2, 20)))
    with pytest.raises(ValueError, match="'first' are the same for all contexts"):
        principal_directions(still)
