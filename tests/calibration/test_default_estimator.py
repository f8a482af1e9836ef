"""The estimator that a run has where nothing was said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bif
from bif.calibration.default_estimator import default_estimator
from bif.runs.attribute import _solves
from small_problems import classification, filled, integers, normal


class NumpyModel(nn.Module):
    """A network that leaves torch on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide_network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.inner(x)
        return values + torch.from_numpy(values.detach().cpu().numpy() * 0)


def wide_network() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(4, 8000), nn.Tanh(), nn.Linear(8000, 3)), scale=0.02)


def wide(model: nn.Module | None = None) -> bif.Problem:
    """64,003 weights, 8 items, 3 queries."""
    return bif.Problem(
        model or wide_network(), bif.losses.cross_entropy,
        train=(normal(8, 4, seed=1), integers(3, 8, seed=2)),
        queries=(normal(3, 4, seed=3), integers(3, 3, seed=4)),
    )  # fmt: skip


CHAINS = bif.Settings(draws=4)


def test_many_weights_are_solved_for_and_the_run_says_so(tmp_path: Path):
    run = bif.attribute(wide(), out=tmp_path / "run")
    assert run.manifest.settings["estimator"] == "response"
    assert "estimator = response: draws see few directions" in " ".join(run.manifest.explanations)
    assert run.manifest.identity["settings"].get("estimator") is None
    again = bif.attribute(wide(), out=tmp_path / "run")
    assert again.summary["estimator"] == "response"


@pytest.mark.parametrize(
    "settings",
    [
        CHAINS, bif.Settings(budget=60), bif.Settings(controls=True), bif.Settings(sampler="sgld"),
        bif.Settings(estimator="covariance"), bif.Settings(movable=("0.bias",)),
    ],
)  # fmt: skip
def test_what_speaks_of_chains_and_few_weights_are_sampled(settings: bif.Settings):
    assert default_estimator(wide(), settings) == ("covariance", "")
    assert default_estimator(wide(), bif.Settings(gamma=1.0, seed=3)) == ("response", "")


def test_a_setting_of_the_solver_or_a_path_asks_for_a_solve():
    assert bif.Settings(solver_residual=0.01).estimator == "response"
    assert bif.Settings(self_influence=True).estimator == "response"
    small = classification()
    run = bif.attribute(small.with_path([small.model]))
    assert run.summary["estimator"] == "response"
    with pytest.raises(ValueError, match="solver_items has no use with estimator=None"):
        bif.Settings(solver_items=20, draws=5)


def test_what_a_solve_cannot_take_is_sampled():
    name, why = default_estimator(wide(NumpyModel()), bif.Settings())
    assert name == "covariance"
    assert why.startswith("64,003 weights are sampled, since they cannot be solved for: ")
    _, noted = _solves(wide(NumpyModel()), bif.Settings(), "traces", None)
    assert noted.notes == (why,)


def test_a_run_goes_on_by_the_estimator_that_it_was_begun_with():
    for estimator, expected in ((None, False), ("covariance", False), ("response", True)):
        begun = {"estimator": estimator}  # settings of an earlier version, which chose otherwise
        assert _solves(wide(), bif.Settings(), "traces", None, begun=begun)[0] is expected
    assert not _solves(wide(), bif.Settings(), "sums", None)[0]
    assert not _solves(wide(), bif.Settings(), "traces", 5)[0]


def test_a_run_that_was_solved_by_default_is_extended_as_a_solved_one(tmp_path: Path):
    run = bif.attribute(wide(), out=tmp_path / "run")
    with pytest.raises(ValueError, match="was solved .* and cannot be cross-checked"):
        bif.cross_check(wide(), run)
    with pytest.raises(ValueError, match="was solved .* and cannot be extended by draws"):
        bif.extend(tmp_path / "run", wide(), draws=9)
    more = wide().extended(queries={"more": (normal(2, 4, seed=5), integers(3, 2, seed=6))})
    bif.extend(tmp_path / "run", more)
    found = bif.extend(tmp_path / "run", more, solver_steps=30)
    asked = bif.Settings(estimator="response", solver_steps=30)
    expected = bif.attribute(more, asked, out=tmp_path / "other")
    assert found.influence.dataset["influence"].equals(expected.influence.dataset["influence"])
    assert bif.attribute(more, asked, out=tmp_path / "run").summary["solver_steps"] == 30
