"""What a response does not depend on, what it looks like, and mistakes that are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.response import respond
from bif.types import Batch
from exact_problems import Point
from law_checks import STANDARD_ERRORS
from response_problems import QUICK, STRAIGHT, polynomial
from small_problems import (
    NotStackable,
    assert_same_state,
    classification,
    filled,
    global_randomness_untouched,
    labelled,
    state_of,
)

# --- What does not matter -------------------------------------------------------------------------

TINY = bif.Settings(nbeta=20.0, gamma=5.0, step_size=0.1, friction=4.0, burn_in=10, thin=2)


def test_a_query_scores_the_same_in_any_company():
    problem = classification()
    whole = respond(problem, TINY, h=0.1, steps=40)
    blocks = respond(problem, replace(TINY, block_size=2), h=0.1, steps=40)
    np.testing.assert_allclose(blocks.scores, whole.scores, rtol=1e-6)
    alone = classification(queries=tuple(x[3:4] for x in labelled(5, seed=2)))
    np.testing.assert_allclose(
        respond(alone, TINY, h=0.1, steps=40).scores[0], whole.scores[3], rtol=1e-6
    )


def test_masks_hold_the_weights_that_may_not_move():
    problem = classification()
    settings = replace(TINY, movable=("2.*",))
    held = respond(problem, settings, h=0.1, steps=10)
    all_move = respond(problem, TINY, h=0.1, steps=10)
    assert np.abs(held.scores - all_move.scores).max() > 0.01 * np.abs(all_move.scores).max()


def test_chains_one_after_another_score_the_same():
    problem = classification()
    stacked = respond(problem, TINY, h=0.1, steps=20, replicates=2)
    sequential = respond(problem, replace(TINY, oracle="sequential"), h=0.1, steps=20, replicates=2)
    np.testing.assert_allclose(sequential.scores, stacked.scores, rtol=1e-6)


def test_a_model_that_vmap_refuses_is_taken_one_chain_after_another():
    problem = classification(model=NotStackable())
    found = respond(problem, TINY, h=0.1, steps=4)
    assert found.settings.oracle == "sequential"
    expected = respond(classification(), TINY, h=0.1, steps=4)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


def test_an_observable_whose_gradient_vmap_refuses_is_taken_one_chain_after_another():
    def branching(model: nn.Module, batch: Batch) -> Tensor:
        value = bif.losses.cross_entropy(model, batch)
        return value if not torch.is_grad_enabled() or value.sum().item() < 1e9 else 2 * value

    observables = [bif.Observable("branching", branching)]
    found = respond(classification(observables=observables), TINY, h=0.1, steps=4)
    assert found.settings.oracle == "sequential"
    with pytest.raises(ValueError, match=r"observable cannot be stacked .* oracle='sequential'"):
        respond(
            classification(observables=observables), replace(TINY, oracle="stacked"), h=0.1, steps=4
        )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_model_and_global_randomness_stay_as_they_were(temperature: float):
    problem = classification()
    problem.model.train()
    before = state_of(problem.model)
    with global_randomness_untouched():
        respond(problem, replace(TINY, burn_in=None), steps=4, temperature=temperature)
    assert_same_state(problem.model, before)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    problem = classification()
    once, again = (respond(problem, TINY, h=0.1, steps=10).scores for _ in range(2))
    assert once.tobytes() == again.tobytes()
    assert respond(problem, replace(TINY, seed=1), h=0.1, steps=10).scores[0, 0] != again[0, 0]


# --- The result -----------------------------------------------------------------------------------


def test_the_result_has_the_layout_of_a_run(tmp_path):
    queries = {"a": labelled(2, seed=2), "b": labelled(3, seed=4)}
    problem = classification(queries=queries, candidates=labelled(4, seed=6))
    found = respond(problem, TINY, observable="margin", h=0.1, steps=40)
    run = bif.attribute(problem, replace(TINY, draws=4, chains=4))
    ours, theirs = found.influence.dataset, run.influence.dataset.sel(observable=["margin"])
    assert set(theirs.coords) == set(ours.coords)
    for name in ("influence", "derivative", "correlation", "standard_error", "self_influence",
                 "query_mean", "train_mean_loss", "train_center_loss", "query_center"):  # fmt: skip
        assert ours[name].dims == theirs[name].dims, name
        assert ours[name].shape == theirs[name].shape, name
    np.testing.assert_allclose(ours["query_center"], theirs["query_center"])
    for name in ("query_id", "query_group", "train_id", "better"):
        assert ours[name].values.tolist() == theirs[name].values.tolist()
    np.testing.assert_allclose(ours["derivative"], ours["influence"], rtol=1e-6)  # nbeta = n
    assert np.abs(ours["correlation"].values).max() <= 1.5
    ranking = found.influence.top("b/1", k=3)
    assert (ranking.better, ranking.observable, len(ranking.positive)) == ("higher", "margin", 3)
    found.influence.save(tmp_path / "scores.zarr")
    again = bif.Influence.load(tmp_path / "scores.zarr")
    np.testing.assert_array_equal(again.dataset["influence"], ours["influence"])


def test_scores_agree_with_the_fluctuations():
    problem, settings = classification(), replace(TINY, burn_in=40)
    found = respond(problem, settings, h=0.1, steps=30, replicates=40)
    # Draws that forget one another, or centring within chains would take τ/D off the covariance.
    run = bif.attribute(problem, replace(settings, chains=256, draws=10, thin=15, block_size=256))
    dataset = run.influence.dataset
    fluctuation, error = (dataset[n].values[0] for n in ("influence", "standard_error"))
    error = np.hypot(found.standard_error, error)
    assert np.sqrt((error**2).mean()) < 0.3 * np.sqrt((found.scores**2).mean())
    # 100 scores, not independent: five errors for each, and 1.3 for their root mean square.
    assert (np.abs(found.scores - fluctuation) <= STANDARD_ERRORS * error).all()
    assert np.sqrt((((found.scores - fluctuation) / error) ** 2).mean()) < 1.3


@pytest.mark.cuda
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_gpu_scores_as_the_cpu_does(temperature: float):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    problem = classification()
    cpu, gpu, compiled = (
        respond(
            problem, replace(TINY, device=device, compiled=use_compile), h=0.1, steps=60,
            temperature=temperature, replicates=1 if temperature == 0 else 8,
        )
        for device, use_compile in (("cpu", False), ("cuda", False), ("cuda", True))
    )  # fmt: skip
    np.testing.assert_allclose(compiled.scores, gpu.scores, rtol=1e-6, atol=1e-9)
    # Devices differ in their numbers, not in their law.
    error = np.hypot(cpu.standard_error, gpu.standard_error)
    assert (np.abs(cpu.scores - gpu.scores) <= STANDARD_ERRORS * error + 1e-6).all()


@pytest.mark.cuda
def test_on_a_gpu_a_descent_is_float32_unless_asked_otherwise():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    on_gpu = replace(TINY, device="cuda")
    asked = replace(on_gpu, gradient_precision="tf32")
    cold, warm, other = (
        respond(classification(), s, h=0.1, steps=4, temperature=t).settings
        for s, t in ((on_gpu, 0.0), (on_gpu, 1.0), (asked, 0.0))
    )
    assert cold.precisions == ("float32", "float32") and warm.precisions == ("tf32", "tf32")
    assert other.precisions == ("tf32", "float32")


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "temperature is 0.5": {"temperature": 0.5},
    "curvature is 'gauss'": {"curvature": "gauss"},
    "h is -1.0": {"h": -1.0},
    "h is nan": {"h": float("nan")},
    "steps is 0": {"steps": 0},
    "replicates is 0": {"replicates": 0},
    "belongs to temperature 0": {"curvature": "gauss_newton"},
    "replicates=1, got": {"temperature": 0.0, "replicates": 2},
    "oracle='live'": {"settings": bif.Settings(oracle="live")},
    "sampler is 'sgnht'": {"settings": bif.Settings(sampler="sgnht")},
    "needs an underdamped sampler": {"settings": bif.Settings(sampler="sgld"), "temperature": 0.0},
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_named(words: str):
    with pytest.raises(ValueError, match=words):
        respond(classification(), **MISTAKES[words])


def test_an_unknown_observable_is_named():
    with pytest.raises(KeyError, match="no observable 'mrgin'; there are"):
        respond(classification(), observable="mrgin")


def test_chains_that_diverge_leave_nan_or_an_error():
    steep = replace(QUICK, step_size=20.0)
    with pytest.raises(RuntimeError, match="all 4 queries diverged.*: set step_size=10, "):
        respond(STRAIGHT.problem, steep, h=0.5, steps=10)
    # Only the last query bends U down; h times its curvature leaves no well.
    slope, curvature = torch.zeros(2, 3).double(), torch.zeros(2, 3, 3).double()
    curvature[1] = -1000 * torch.eye(3)
    slope[0] = 1
    problem = bif.Problem(
        Point(torch.ones(3).double()), polynomial, train=STRAIGHT.problem.train.data,
        queries=(slope, curvature),
    )  # fmt: skip
    found = respond(problem, QUICK, h=2.0, steps=200)
    assert np.isfinite(found.scores[0]).all() and np.isnan(found.scores[1]).all()
    assert "1 queries, such as 1 diverged" in found.warnings[0]


def test_float32_models_are_taken():
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))).float()
    x, y = labelled(20, seed=1)
    q, t = labelled(3, seed=2)
    problem = bif.Problem(
        model, bif.losses.cross_entropy, train=(x.float(), y), queries=(q.float(), t)
    ).without_proxies()
    found = respond(problem, TINY, h=0.2, steps=10)
    assert np.isfinite(found.scores).all() and found.scores.dtype == np.float32
    found = respond(problem, TINY, h=0.02, steps=150, temperature=0.0)
    exact = respond(classification(queries=(q, t)), TINY, h=0.02, steps=150, temperature=0.0)
    # The error that the descent reports is that of rounding.
    assert (np.abs(found.scores - exact.scores) <= 5 * found.standard_error).all()
    assert found.standard_error.max() < 1e-3 * np.abs(exact.scores).max()
    chosen = respond(problem, TINY, temperature=0.0)
    # Rounding is of the order of 1e-4; an h whose bias it hid would be off by more.
    gap = np.square(chosen.scores - exact.scores).mean() / np.square(exact.scores).mean()
    assert chosen.perturbation.accepted and gap**0.5 < 0.01
