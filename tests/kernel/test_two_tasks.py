"""The example of two tasks, a part at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bif
from bif.kernel import gradient_kernel, two_tasks
from bif.problem.series import stage_problem

N = two_tasks.ITEMS


def test_inputs_are_shared_and_labels_are_those_of_each_half():
    data = two_tasks.items(0)
    x, task, label = data.data
    assert torch.equal(x[:N], x[N:]) and task.bincount().tolist() == [N, N]
    table = torch.zeros(4, 4)
    table.index_put_((label[:N], label[N:]), torch.tensor(1.0), accumulate=True)
    assert (table > 0).all()  # neither label tells the other


@pytest.mark.parametrize("make", [two_tasks.Apart, two_tasks.Together])
def test_both_networks_learn_both_tasks_and_only_one_shares_weights(make):
    data = two_tasks.items(0)
    series, problem = two_tasks.train(make, data, 0), two_tasks.pose(make, data)
    assert [stage.step for stage in series] == list(two_tasks.STEPS)
    kernel = gradient_kernel(stage_problem(problem, series.stages[-1]))
    cosines = dict(zip(two_tasks.NAMES, two_tasks.blocks(kernel), strict=True))
    shares = cosines["mean_square_across"] > 1e-12
    assert shares == (make is two_tasks.Together) and cosines["mean_square_within"] > 0.01


def test_blocks_are_means_of_the_dense_kernel():
    source = torch.Generator().manual_seed(0)
    losses = torch.randn(2 * N, 64, generator=source, dtype=torch.float64)
    kernel = bif.LossKernel(
        losses, torch.arange(64) // 8, tuple(map(str, range(2 * N))), {}
    )  # fmt: skip
    dense, off = kernel.block().numpy(), ~np.eye(N, dtype=bool)
    within, across, *_, contrast = two_tasks.blocks(kernel)
    expected = (dense[:N, :N][off].mean() + dense[N:, N:][off].mean()) / 2
    assert within == pytest.approx(expected) and across == pytest.approx(dense[:N, N:].mean())
    found = two_tasks.figures(kernel)
    assert found["contrast"][0] == contrast and found["within"][1] > 0


@pytest.mark.usefixtures("unchecked")
def test_networks_of_their_own_have_no_correlation_across():
    data = two_tasks.items(0)
    last = two_tasks.train(two_tasks.Apart, data, 0).stages[-1]
    settings = bif.Settings(
        estimator="covariance", nbeta=800.0, gamma=250.0, chains=16, draws=40, mass="identity"
    )
    run = bif.attribute(stage_problem(two_tasks.pose(two_tasks.Apart, data), last), settings)
    found = two_tasks.figures(bif.loss_kernel(run))
    value, error = found["across"]
    assert abs(value) < 3 * error and found["within"][0] > 8 * error
    value, error = found["mean_square_across"]
    assert abs(value) < 3 * error and found["mean_square_within"][0] > 8 * error


def test_the_summary_names_what_is_asked_for():
    apart = dict.fromkeys(two_tasks.NAMES, (0.1, 0.01))
    rows = [{"step": k, "loss_kernel": {"contrast": (0.2 * k, 0.01)}} for k in range(3)]
    found = two_tasks.summary(apart, rows)
    assert found["within_block"] == 0.1 and found["cross_block_mean_square_error"] == 0.01
    assert found["contrast_rise"] == pytest.approx(0.4) and found["rises"]
    assert not two_tasks.summary(apart, [rows[0], rows[0]])["rises"]
