"""Precision of computations: how coarsely numbers come out."""

from __future__ import annotations

import pytest
import torch

from bif.sampling.oracles.precision import rounding


@pytest.mark.parametrize(
    "precisions, expected",
    [
        (("float32", "float32"), torch.finfo(torch.float32).eps),
        (("tf32", "float32"), 2.0**-10),  # 10 bits behind the point
        (("tf32", "bfloat16"), torch.finfo(torch.bfloat16).eps),
    ],
)
def test_the_coarsest_precision_counts(precisions, expected):
    assert rounding(torch.float32, *precisions) == expected


def test_double_precision_is_computed_as_it_is():
    assert rounding(torch.float64, "bfloat16") == torch.finfo(torch.float64).eps
