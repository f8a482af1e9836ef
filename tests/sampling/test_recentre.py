"""One engine moves from checkpoint to checkpoint, as if it had been built there."""

from copy import deepcopy
from typing import Literal

import pytest
import torch
from torch import nn

import bif
from bif.calibration.measured_mass import make_engine
from bif.sampling.engine import Engine
from bif.sampling.settings import Settings
from complete_settings import complete
from small_problems import labelled

ORACLES = ["stacked", "sequential", "live"]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(5)
    nn.init.normal_(norm.get_buffer("running_mean"))
    return nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double().eval()


def posed(model: nn.Module) -> bif.Problem:
    train, queries = labelled(8, seed=0), labelled(3, seed=1)
    return bif.Problem(model, bif.losses.cross_entropy, train=train, queries=queries)


def built(model: nn.Module, oracle: Literal["stacked", "sequential", "live"]) -> Engine:
    asked = Settings(
        oracle=oracle, chains=2, block_size=1, draws=3, friction=1.0, movable=("[01]*",)
    )
    return make_engine(posed(model), complete(asked))


@pytest.mark.parametrize("oracle", ORACLES)
def test_an_engine_that_moved_draws_what_one_built_there_draws(oracle):
    first, second = network(0), network(1)
    kept = deepcopy(first.state_dict())
    moved, there = built(first, oracle), built(second, oracle)
    list(moved.observed_draws(0, 1))
    moved.recentre(second.state_dict())
    assert torch.equal(moved.observer.train_center, there.observer.train_center)
    for ours, theirs in zip(moved.observed_draws(0, 1), there.observed_draws(0, 1), strict=True):
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(x, kept[name]) for name, x in first.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {n: x for n, x in w.items() if n != "3.bias"}, r"lacks 3\.bias"),
        (lambda w: {**w, "4.weight": torch.ones(1)}, r"has unknown 4\.weight"),
        (lambda w: {**w, "3.bias": torch.ones(2)}, r"3\.bias \[2\] instead of \[3\]"),
        (lambda w: {**w, "3.bias": w["3.bias"] * torch.nan}, "NaN or infinite at w"),
    ],
    ids=["missing", "unknown", "shape", "nan"],
)
def test_weights_of_another_model_are_refused(change, message):
    engine = built(network(0), "stacked")
    with pytest.raises(ValueError, match=message):
        engine.recentre(change(network(1).state_dict()))
