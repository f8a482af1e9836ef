"""Alignment of kernels: exact algebra, and the bias of its plain estimate."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from bif.estimate.item_kernel import FeatureKernel
from bif.kernel import linear_cka
from small_problems import normal


def kernel_of(rows: torch.Tensor) -> FeatureKernel:
    return FeatureKernel(rows, tuple(map(str, range(len(rows)))), {})


def test_the_plain_estimate_is_that_of_dense_centred_matrices():
    x, y = normal(12, 3, seed=0), normal(12, 40, seed=1)
    centre = np.eye(12) - 1 / 12
    k, m = (centre @ (rows @ rows.T).numpy() @ centre for rows in (x, y))
    expected = (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())
    given: Any = {"kind": "covariance", "estimator": "plain"}
    assert linear_cka(kernel_of(x), kernel_of(y), **given) == pytest.approx(expected, abs=1e-12)


def test_the_debiased_estimate_is_the_mean_over_quadruples():
    # HSIC is the mean over i, j, q, r that differ of K_ij (L_ij + L_qr - 2 L_iq).
    x, y = normal(6, 2, seed=2), normal(6, 3, seed=3) + 5

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        k, m = (a @ a.T).numpy(), (b @ b.T).numpy()
        terms = [
            k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            for i, j, q, r in itertools.permutations(range(6), 4)
        ]
        return float(np.mean(terms))

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    found = linear_cka(kernel_of(x), kernel_of(y), kind="covariance")
    assert found == pytest.approx(expected, abs=1e-10)


def test_a_rotation_and_a_scale_change_nothing():
    x = normal(20, 5, seed=4)
    turned = 3 * x @ torch.linalg.qr(normal(5, 5, seed=5))[0]
    for estimator in ("plain", "debiased"):
        given: Any = {"kind": "covariance", "estimator": estimator}
        assert linear_cka(kernel_of(x), kernel_of(turned), **given) == pytest.approx(1)


def test_unrelated_features_have_no_debiased_alignment_and_a_plain_one():
    trials = [(normal(30, 60, seed=s), normal(30, 60, seed=100 + s)) for s in range(40)]
    found = {
        estimator: np.array([
            linear_cka(kernel_of(x), kernel_of(y), kind="covariance", estimator=estimator)
            for x, y in trials
        ])
        for estimator in ("debiased", "plain")
    }  # fmt: skip
    values = found["debiased"]
    assert abs(values.mean()) < 5 * values.std() / len(values) ** 0.5
    assert found["plain"].mean() > 0.5


def test_kernels_of_other_items_and_of_too_few_are_refused():
    x = kernel_of(normal(5, 2, seed=0))
    with pytest.raises(ValueError, match="kernels of 5 and 4 items .* Take the items of both by"):
        linear_cka(x, x.of_items(range(4)))
    with pytest.raises(ValueError, match="3 items: an alignment needs four"):
        linear_cka(x.of_items(range(3)), x.of_items(range(3)))
    with pytest.raises(ValueError, match="estimator"):
        linear_cka(x, x, estimator="none")  # type: ignore[arg-type]
    assert math.isnan(linear_cka(x, kernel_of(torch.ones(5, 2, dtype=torch.float64))))
