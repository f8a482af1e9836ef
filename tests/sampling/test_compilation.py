"""Compiled functions and blocks: the eager numbers, a compilation a shape, no silent way back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif.sampling.engine import Engine
from bif.sampling.oracles.compilation import compile_blocks_, compiled, repeated_blocks
from small_problems import TINY, classification, filled, normal

LIVE = replace(
    TINY, oracle="live", chunk_size=20, sampler="sgld", friction=None, step_size=1e-3,
    gradient="minibatch", batch_size=5,
)  # fmt: skip


class Block(nn.Module):
    """Two maps side by side, whose biases have one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return x + scale * (self.left(torch.tanh(x)) + self.right(torch.sin(x)))


class Blocks(nn.Module):
    """Three of them and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


def blocks() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return filled(Blocks())


@pytest.fixture
def compilations(monkeypatch) -> list[Any]:
    """Every graph that is compiled; no compiler for C++ is needed."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    # Gradients come through autograd as ever: the graph is of torch's own operations.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return graphs


@pytest.mark.parametrize("memory", ["plain", "fused"])
def test_a_live_run_of_compiled_blocks_has_the_eager_numbers(compilations, memory):
    settings = replace(LIVE, memory=memory)
    eager = bif.attribute(classification(model=blocks()), settings)
    assert not compilations
    run = bif.attribute(classification(model=blocks()), replace(settings, compiled=True))
    assert compilations
    for a, b in zip(run.traces.blocks, eager.traces.blocks, strict=True):
        torch.testing.assert_close(a.train, b.train, rtol=0, atol=1e-9)
        torch.testing.assert_close(a.query, b.query, rtol=0, atol=1e-9)


def test_a_compiled_runs_distances_are_the_eager_ones(compilations, monkeypatch):
    monkeypatch.setattr("bif.sampling.engine._LARGE_LEAF", 10)
    problem = classification()
    complete = bif.calibrate(problem, TINY).settings
    eager, fast = (Engine(problem, replace(complete, compiled=c)) for c in (False, True))
    compilations.clear()
    moved = {n: 1.1 * c.expand(3, *c.shape) for n, c in eager.posterior.center.items()}
    torch.testing.assert_close(
        fast.distance_squared(moved), eager.distance_squared(moved), rtol=1e-12, atol=0
    )
    large = {c.shape for c in eager.posterior.center.values() if c.numel() >= 10}
    assert len(compilations) == len(large) > 1


def test_blocks_share_what_is_compiled(compilations):
    model, x = blocks(), normal(6, 4, seed=1).requires_grad_()
    expected = model(x)
    assert compile_blocks_(model)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    assert len(compilations) == 1
    model(x[:4])
    assert len(compilations) == 2


def test_more_shapes_than_torch_compiles_of_one_function_are_compiled(compilations):
    doubled = compiled(lambda batch: 2 * batch["x"])
    for size in range(1, 13):
        x = torch.ones(size)
        assert torch.equal(doubled({"x": x}), 2 * x)
        doubled({"x": x})
    assert len(compilations) == 12


def test_only_lists_of_one_class_are_blocks():
    assert [type(block) for block in repeated_blocks(blocks())] == [Block] * 3
    assert not repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    mixed = nn.ModuleList([nn.Linear(2, 2), nn.Tanh()])
    assert not repeated_blocks(mixed) and not compile_blocks_(mixed)
    assert not repeated_blocks(nn.ModuleList([nn.Linear(2, 2)]))
