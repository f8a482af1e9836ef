"""`benchmarks.superposition`: its training, its figures, and a study of a few checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.superposition import toy
from benchmarks.superposition.__main__ import study
from benchmarks.superposition.figures import summary
from benchmarks.superposition.scores import OBSERVABLES, derivatives, help_by_ways, trajectory
from benchmarks.superposition.timing import rise_and_peak, step_of_part
from bif.linear_response.solver import RESIDUAL

SEED, STEPS = 0, 400


def test_a_step_of_gradient_descent_is_that_of_the_model_and_its_loss():
    path, model = toy.train(SEED, 2, "cpu"), toy.Autoencoder()
    model.load_state_dict(path.weights(1))
    toy.half_squared_error(model, (toy.train_items(),)).mean().backward()
    for name, leaf in model.named_parameters():
        assert leaf.grad is not None
        moved = leaf.detach() - toy.LEARNING_RATE * leaf.grad
        torch.testing.assert_close(path.weights(2)[name], moved, rtol=0, atol=1e-12)


def test_trainings_side_by_side_with_weights_of_one_are_the_training_alone():
    kept = torch.ones(3, STEPS, len(toy.ITEMS), dtype=torch.float64)
    kept[1, 50:90, 4] = 0.5
    alone, beside = toy.train(SEED, STEPS, "cpu"), toy.train(SEED, STEPS, "cpu", kept)
    torch.testing.assert_close(beside.W[:, 2], alone.W[:, 0], rtol=0, atol=1e-9)
    assert (beside.W[51:, 1] - alone.W[51:, 0]).abs().amax() > 0.01


def test_parts_of_the_way_and_peaks_of_a_parabola_are_found_between_checkpoints():
    steps = [0, 10, 20, 40, 60]
    falling = np.array([4.0, 4.0, 3.0, 0.0, 0.0])
    assert step_of_part(steps, falling, 0.5) == pytest.approx(20 + 20 / 3)
    parabola = -((np.array(steps) - 33.0) ** 2)
    risen, at = rise_and_peak(steps, parabola)
    assert at == pytest.approx(33) and 0 < risen < 10


def test_influence_by_the_library_is_that_of_the_exact_gauss_newton_matrix():
    path = toy.train(SEED, STEPS, "cpu")
    found = trajectory(path, [100, 150], "cpu")
    scores = help_by_ways(path, found)["influence"]
    nbeta, gamma = (float(found.dataset.attrs[name]) for name in ("nbeta", "gamma"))
    for k, step in enumerate((100, 150)):
        at = derivatives(path.weights(step))
        eye = torch.eye(len(at["gauss_newton"]), dtype=torch.float64)
        solved = torch.linalg.solve(at["gauss_newton"] + gamma / nbeta * eye, at["items"].mT)
        for asked, sign in OBSERVABLES.items():
            exact = -sign * at[asked] @ solved / nbeta
            # What the residual at which a system counts as solved leaves, by Cauchy and Schwarz.
            room = RESIDUAL * at[asked].norm(dim=1)[:, None] * solved.norm(dim=0) / nbeta
            assert (np.abs(scores[asked][k] - exact.numpy()) <= room.numpy()).all()


def test_a_feature_with_half_weight_on_its_items_comes_later_as_influence_says():
    one = study(SEED, STEPS, 6, "cpu")
    assert len(one["stages"]) >= 2
    figures = {row["figure"]: row["mean"] for row in summary([one])}
    assert figures["top, share of stages, sign as told"] == 1
    assert figures["top, delay beyond"] > 0
