"""What a refused run says to do, followed to the letter by `benchmarks/converged/remedies.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bif
from benchmarks.converged import remedies
from bif.curvature.extreme_eigenvalues import largest_eigenvalue
from small_problems import normal

SLOW = pytest.mark.slow
pytestmark = pytest.mark.xdist_group("remedies")


def test_alternatives_are_read_out_of_a_message_and_what_was_given_is_not():
    message = (
        "diverged with step_size=0.1, and were left out. Set step_size=5e-05, mass='kronecker' and "
        "thin=4, or set batch_size=None, or train on"
    )
    assert remedies.parse_remedies(message) == [
        {"step_size": 5e-05, "mass": "kronecker", "thin": 4}, {"batch_size": None}
    ]  # fmt: skip
    assert remedies.parse_remedies("Give every run a seed of its own (seed=0)") == []


@pytest.mark.parametrize(
    ("gate", "planted"),
    [
        ("mixing", "three draws"),
        ("drift", "no burn-in"),
        pytest.param("outliers", "a long step, Kronecker mass", marks=SLOW),
        pytest.param("divergence", "a long step, Kronecker mass", marks=SLOW),
        ("chains survived", "a step made for weights of 1 where they are 10"),
        ("step", "a long step"),
        pytest.param("step", "a step made for weights of 1 where they are 10", marks=SLOW),
        pytest.param("virial", "no burn-in", marks=SLOW),  # planted as for the drift
        pytest.param("virial", "mini-batches of 20", marks=SLOW),
        pytest.param("dilation", "a long step", marks=SLOW),
        pytest.param("temperature", "a long step, Kronecker mass", marks=SLOW),
        pytest.param("gradient noise", "mini-batches of 20", marks=SLOW),
        pytest.param("sampler", "a sampler of another law", marks=SLOW),
        pytest.param("U curves downwards", "weights that were not trained", marks=SLOW),
    ],
)
def test_every_remedy_that_is_printed_works(gate, planted):
    (case,) = [c for c in remedies.CASES if (c.gate, c.planted) == (gate, planted)]
    rows = list(remedies.follow_remedies(case))
    assert rows
    for row in rows:
        assert row["fails"] and row.get("works") and row["times"] <= 2, row


def test_every_gate_has_a_case_or_is_said_to_have_no_setting_that_helps():
    named = {case.gate for case in remedies.CASES} | set(remedies.NOT_FOLLOWED)
    healthy = bif.attribute(remedies.line(), replace(remedies.FEW, chains=4, draws=10))
    assert {gate["name"] for gate in healthy.manifest["gates"]} <= named


def fitted_perfectly(num_items: int) -> bif.Problem:
    """Two classes, told apart by weights so large that the mean loss is 1e-6."""
    x, queries = normal(num_items, 3, seed=8).float(), normal(4, 3, seed=9).float()
    labels = (x[:, 0] > 0).long()
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))
        while F.cross_entropy(model(x), labels) > 1e-6:
            model.weight *= 1.3
    return bif.Problem(
        model, bif.losses.cross_entropy, train=(x, labels),
        queries=(queries, torch.tensor([0, 1, 0, 1])),
    )  # fmt: skip


@pytest.mark.parametrize("items", [3, 40])
def test_items_that_are_fitted_perfectly_get_a_ball_in_which_chains_mix(items):
    """At w* the loss has a curvature of 1e-6; three |w*| away, of a tenth."""
    run = bif.attribute(fitted_perfectly(items), bif.Settings(chains=16))
    (why,) = [line for line in run.manifest["explanations"] if line.startswith("gamma = ")]
    assert "the train items are fitted perfectly" in why
    assert run.summary["trusted"]


def test_where_chains_run_off_the_gamma_that_holds_them_is_taken_or_said():
    problem, few = fitted_perfectly(80), bif.Settings(chains=8, draws=20, mass="identity")
    found = bif.calibrate(problem, few)
    assert any("with less, chains that start at w* run off" in x for x in found.explanations)
    assert found.settings.gamma is not None
    small = replace(few, gamma=found.settings.gamma / 10)
    with pytest.raises(RuntimeError, match="only 0 of 8 chains survived") as error:
        bif.attribute(problem, small)
    (remedy,) = remedies.parse_remedies(str(error.value))  # and no smaller step, which would not do
    assert remedy == {"gamma": pytest.approx(found.settings.gamma, rel=1e-2)}
    assert not bif.attribute(problem, replace(small, **remedy)).summary["diverged_chains"]


def test_fewer_than_three_items_have_no_reliability_and_the_message_says_so():
    run = bif.attribute(fitted_perfectly(2), bif.Settings(chains=8, draws=100))
    (reason,) = [g["reason"] for g in run.manifest["gates"] if g["name"] == "reliability"]
    assert "it takes at least three train items" in reason and not remedies.parse_remedies(reason)


def test_a_curvature_below_what_float32_can_square_is_none():
    found = largest_eigenvalue(lambda u: {"w": 1e-25 * u["w"]}, {"w": torch.ones(2, 3)})
    assert (found < 1e-20).all()
