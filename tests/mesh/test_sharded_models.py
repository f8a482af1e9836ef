"""A model split among ranks samples as a whole one does, and survives the loss of a rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.fsdp  # once, before ranks are forked
from torch import Tensor, nn

import bif
from bif import Settings
from bif.calibration.calibrate import calibrate
from bif.mesh import Ranks
from bif.sampling.engine import Engine
from bif.sampling.oracles import LiveOracle
from bif.sampling.posterior_identities import IdentitySums
from bif.sampling.rng import BlockNoise, generator
from bif.sampling.sampler_checks import check
from bif.sampling.settings import RunSettings
from bif.sampling.whole_model import WHOLE
from bif.types import Batch, Params, Shards
from forked_ranks import on_ranks
from small_problems import TINY, classification, filled, normal

pytestmark = pytest.mark.usefixtures("no_page")

NORMAL = BlockNoise.normal
SETTINGS = replace(
    TINY, oracle="live", nbeta=20.0, chunk_size=7, chains=2, draws=2, burn_in=1, thin=2
)


class Blocks(nn.Module):
    """4 inputs, three blocks of 5 tanh units, 3 classes; rows that no two shards have as many of.

    `scale` is used outside of any module's forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.last(x)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return bif.losses.cross_entropy(model, batch) * model.get_parameter("scale")


def problem(**changed: Any) -> bif.Problem:
    """20 items, 5 queries."""
    with torch.random.fork_rng(devices=[]):
        return classification(model=filled(Blocks()), loss=loss, **changed)


def complete(settings: Settings, posed: bif.Problem | None = None) -> RunSettings:
    return calibrate(posed or problem(), settings).settings


@contextmanager
def noise_of_whole_leaves(shards: Shards, shapes: dict[str, torch.Size]) -> Iterator[None]:
    """Let every shard take its rows of the numbers that one process draws."""
    calls = 0

    def normal_of_whole(self: BlockNoise, like: Params) -> Params:
        nonlocal calls
        calls += 1
        found = {}
        for place, name in enumerate(shapes):
            if name in like:
                whole = shards.local(normal(*shapes[name], seed=100 * calls + place))
                found[name] = whole.unsqueeze(0) * self.masks.get(name, 1)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockNoise, "normal", normal_of_whole)
        yield


CASES: dict[str, dict[str, Any]] = {
    "baoab": {},
    "a part of the weights": {"movable": ("blocks.*", "last.weight[0:1]", "last.bias[2:3]")},
    "a control variate": {
        "sampler": "sgld", "friction": None, "gradient": "control_variate", "batch_size": 5,
    },
    "mini-batches in passes": {
        "sampler": "rmsprop_sgld_frozen", "friction": None, "step_size": 0.001,
        "gradient": "minibatch", "batch_size": 7, "micro_batch": 3, "weight_decay": 0.1,
    },
}  # fmt: skip
"""Batches of 5, 7 and 20 items are uneven on two shards or three, and so are passes of 3 and 7."""
ON_THREE = "mini-batches in passes"


def figures(shards: Shards, case: str) -> dict[str, np.ndarray]:
    """Return whatever is a sum over items or weights along a chain, by name."""
    posed = problem(train_weights=normal(20, seed=5).abs())
    settings = complete(replace(SETTINGS, shards=shards.count, **CASES[case]), posed)
    engine = Engine(posed, settings, shards=shards)
    shapes = {n: p.shape for n, p in posed.model.named_parameters()}
    sums = IdentitySums(1, center_loss=0.0)
    found: dict[str, Any] = {
        "losses at w*": engine.observer.train_center, "queries at w*": engine.observer.query_center,
        "moving": torch.tensor(engine.posterior.num_moving),
    }  # fmt: skip
    with noise_of_whole_leaves(shards, shapes):
        for position in engine.positions(0, 1, engine.start(0, 1)):
            params, gradient = position.state.params, position.gradient
            assert gradient is not None
            copied = {n: leaf.clone() for n, leaf in gradient.items()}
            force = engine.posterior.potential_gradient_(copied, params)
            train, queries = engine.observed(position)
            mean = engine.mean_train_loss(train)
            assert mean is not None
            sums.add(
                0, engine.posterior, state=position.state, gradient=gradient, force=force,
                mean_loss=mean,
            )  # fmt: skip
            found |= {
                f"losses {position.step}": train, f"queries {position.step}": queries,
                f"distance {position.step}": engine.distance_squared(params),
                f"potential {position.step}": engine.posterior.potential(mean, params),
                f"force {position.step}": engine.posterior.inner(force, force),
            }  # fmt: skip
        found["identities"] = sums.state(range(1))
        if settings.gradient == "control_variate":
            found["checks"] = torch.tensor(list(asdict(check(engine, position.state)).values()))
    by_rows = shards.gather({n: leaf[0].numpy() for n, leaf in params.items()})
    for name in shapes if settings.movable == ("*",) else ():  # others lack rows that stay
        rows = [leaves[name] for leaves in by_rows if name in leaves]
        if rows:
            found[f"weights {name}"] = torch.from_numpy(np.concatenate(rows))
    assert isinstance(engine.oracle, LiveOracle)
    own = sum(leaf.numel() for leaf in engine.oracle.live_params().values())
    found |= {"own": torch.tensor(own)}
    return {name: value.numpy() for name, value in found.items()}


class Quadratic(nn.Module):
    """Two rows of weights with w* = 0, so that two shards have one each."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.w**2).sum() * x[:, 0]


WIDTH, STEP, DRAWS, THIN = 600, 0.5, 40, 3
CURVATURE = 2.0  # nbeta 1 times a mean loss of curvature 1, and gamma 1
VARIANCE = 1 / (CURVATURE * (1 - STEP * CURVATURE / 4))


def of_items(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch)


def overlap(model: nn.Module, batch: Batch) -> Tensor:
    first, second = model.get_parameter("w")
    return (first @ second) * batch[:, 0]


def law(shards: Shards) -> np.ndarray:
    """Return `|w|²` and the product of both rows at every draw, `[D, 2]`."""
    posed = bif.Problem(
        Quadratic(), of_items, train=torch.ones(4, 1, dtype=torch.float64),
        queries=torch.ones(1, 1, dtype=torch.float64),
        observables=[bif.Observable("overlap", overlap, "higher")],
    )  # fmt: skip
    asked = Settings(
        shards=shards.count, sampler="sgld", oracle="live", nbeta=1.0, gamma=1.0, chains=2,
        draws=DRAWS, burn_in=6, thin=THIN, step_size=STEP, chunk_size=4,
    )  # fmt: skip
    engine = Engine(posed, complete(asked, posed), shards=shards)
    return torch.stack([
        torch.cat([engine.distance_squared(draw.params), queries[0]])
        for draw, _, queries in engine.observed_draws(0, 1)
    ]).numpy()  # fmt: skip


def follows_the_law(found: np.ndarray) -> bool:
    """Return whether mean squares and products of rows are within five standard errors.

    A step keeps `1 - STEP·CURVATURE/2` of a weight, so draws remember its square of their squares
    and products.
    """
    kept = (1 - STEP * CURVATURE / 2) ** (2 * THIN)
    error = sqrt((1 + kept) / (1 - kept) / len(found))
    square, product = found.mean(axis=0)
    of_square, of_product = sqrt(2 * 2 * WIDTH) * VARIANCE, sqrt(WIDTH) * VARIANCE
    return (
        abs(square - 2 * WIDTH * VARIANCE) < 5 * error * of_square
        and abs(product) < 5 * error * of_product
    )


def of_first(*key: Any, shard: int, **named: Any) -> torch.Generator:
    return generator(*key, **named)


def halved(noise: BlockNoise, like: Params) -> Params:
    return {n: leaf / 2 for n, leaf in NORMAL(noise, like).items()}


def few_checks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bif.sampling.sampler_checks._NOISE_BATCHES", 8)
    patch.setattr("bif.sampling.sampler_checks._CURVATURE_ITERATIONS", 3)


def everything(ranks: Ranks) -> dict[str, Any]:
    """Do on each of two or three ranks what the tests below look at: they start but once."""
    ranks.split_(ranks.size)
    shards = ranks.shards
    assert shards is not None
    cases = CASES if ranks.size == 2 else [ON_THREE]
    with pytest.MonkeyPatch.context() as patch:
        few_checks(patch)
        found: dict[str, Any] = {case: figures(shards, case) for case in cases}
    if ranks.size == 2:
        found["law"] = law(shards)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BlockNoise, "normal", halved)
            found["half the noise"] = law(shards)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bif.sampling.engine.generator", of_first)
            found["one seed"] = law(shards)
        with pytest.MonkeyPatch.context() as patch:
            room = 0 if shards.index else 2**60
            patch.setattr("bif.sampling.sampler_checks.free_bytes", lambda device: room)
            engine = Engine(problem(), complete(replace(SETTINGS, shards=2)), shards=shards)
            found["crowded"] = asdict(check(engine, engine.start(0, 1).state))
    return found


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, Any]]:
    return on_ranks(2, everything)


def assert_whole(on_shards: list[dict[str, Any]], case: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        few_checks(patch)
        whole = figures(WHOLE, case)
    for shard in on_shards:
        for name, value in whole.items():
            if name != "own":
                np.testing.assert_allclose(
                    shard[case][name], value, rtol=1e-9, atol=1e-11, err_msg=name
                )
    parts = [int(shard[case]["own"]) for shard in on_shards]
    assert max(parts) < 0.7 * int(whole["own"]) and sum(parts) <= int(whole["own"])


@pytest.mark.parametrize("case", CASES)
def test_sums_over_items_and_weights_are_those_of_a_whole_model(on_two, case):
    assert_whole(on_two, case)


def test_so_are_those_of_shards_of_which_one_lacks_rows():
    assert_whole(on_ranks(3, everything), ON_THREE)


def test_all_shards_leave_checks_open_for_which_one_has_no_room(on_two):
    for found in on_two:
        measured = {name for name, value in found["crowded"].items() if np.isfinite(value)}
        assert measured == {"randomness"}


def test_noise_of_two_shards_gives_the_law_and_that_of_one_seed_does_not(on_two):
    first, second = on_two
    assert np.array_equal(first["law"], second["law"])
    assert follows_the_law(first["law"])
    assert not follows_the_law(first["half the noise"])
    assert not follows_the_law(first["one seed"])
