"""Banks on a GPU: the CPU's networks, and nothing waits for the device inside the step loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bank_cases import RECIPE, TUNING, bank, distance
from bif.bank import Plan
from bif.evaluate import training
from bif.evaluate.training import Network, StackTrainer
from bif.types import Batch
from small_problems import classification, labelled, network

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def test_a_bank_made_on_the_gpu_holds_the_networks_of_the_cpu():
    # 6 steps of float64 on weights of order 1: rounding of 1e-16, amplified a few thousand times
    assert distance(bank(device="cuda"), bank(device="cpu")) < 1e-12


def test_the_users_function_gets_items_and_start_on_the_gpu_and_its_randomness_is_put_back():
    drawn: list[float] = []

    def train(start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
        assert start is not None and items[0].is_cuda and next(start.parameters()).is_cuda
        drawn.append(torch.rand(1, device="cuda").item())
        return start

    before = torch.cuda.get_rng_state()
    for _ in range(2):
        bank(how=train, plan=Plan(num_subsets=2), tuning_queries=None, target="checkpoint",
             device="cuda")  # fmt: skip
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert drawn[:2] == drawn[2:] and drawn[0] != drawn[1]


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch):
    problem, true = classification(), training._match_layout
    trainer = StackTrainer(
        problem.model, problem.loss, problem.train.data, RECIPE, "scratch", "cuda"
    )

    def from_here_on(*arguments: Any) -> Any:
        leaves = true(*arguments)
        torch.cuda.set_sync_debug_mode("error")
        return leaves

    monkeypatch.setattr(training, "_match_layout", from_here_on)
    masks = Plan(num_subsets=3).masks(20)
    try:
        leaves = trainer.fit([Network(mask, 0) for mask in masks])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(leaf.cpu().numpy()).all() for leaf in leaves.values())


def test_weights_of_a_model_on_the_gpu_stay_there():
    problem = classification(model=network().cuda(), train=_on_gpu(20, 1), queries=_on_gpu(5, 2))
    found = bank(problem=problem, tuning_queries=tuple(t.cuda() for t in TUNING))
    assert distance(found, bank()) < 1e-12
    assert next(problem.model.parameters()).is_cuda


def _on_gpu(num: int, seed: int) -> tuple[torch.Tensor, ...]:
    return tuple(t.cuda() for t in labelled(num, seed=seed))
