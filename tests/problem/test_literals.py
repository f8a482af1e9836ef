"""Names that stand for a choice: a odd one is refused, and the nearest right one is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bif


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"sampler": "sghmc"}, "sgnht"),
        ({"sampler": "SGLD"}, "sgld"),
        ({"gradient": "minibach"}, "minibatch"),
        ({"oracle": "stackd"}, "stacked"),
        ({"mass": "kroneker"}, "kronecker"),
        ({"memory": "lien"}, "lean"),
        ({"gradient_precision": "bf16"}, "bfloat16"),
        ({"loss_precision": "flaot32"}, "float32"),
        ({"retrained_from": "chekpoint"}, "checkpoint"),
    ],
)
def test_every_name_of_the_settings_is_checked_and_the_nearest_is_told(given, nearest):
    with pytest.raises(
        ValueError, match=rf"{next(iter(given))} is .*: expected .*'{nearest}' is the nearest"
    ):
        bif.Settings(**given)


@pytest.mark.parametrize("given", [{"chains": 2.5}, {"draws": "100"}, {"thin": True}])
def test_numbers_of_things_are_whole(given):
    with pytest.raises(ValueError, match=rf"{next(iter(given))} must be a whole number"):
        bif.Settings(**given)


def problem_with(**changed):
    data = torch.ones(3, 2), torch.zeros(3, dtype=torch.long)
    return bif.Problem(
        nn.Linear(2, 2),
        bif.losses.cross_entropy,
        **{"train": data, "queries": data, **changed},
    )


odd: Any = str
"""Hides from a type checker what it would find too."""


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: problem_with(tied_weights="shared"),
            "tied_weights is 'shared'.*'share' is the nearest",
        ),
        (lambda: problem_with(tokens="queries"), "tokens is 'queries'.*'query' is the nearest"),
        (
            lambda: bif.Observable("x", bif.losses.margin, odd("hihger")),
            "better is 'hihger'.*'higher'",
        ),
        (
            lambda: bif.attribute(problem_with(), keep=odd("trace")),
            "keep is 'trace'.*'traces' is",
        ),
        (
            lambda: bif.attribute(problem_with(), on_existing=odd("resum")),
            "on_existing is 'resum'.*'resume'",
        ),
        (
            lambda: bif.respond(problem_with(), curvature=odd("hesian")),
            "curvature is 'hesian'.*'hessian'",
        ),
    ],
)
def test_every_name_of_the_public_functions_is_checked(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
