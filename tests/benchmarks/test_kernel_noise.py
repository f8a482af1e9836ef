"""`benchmarks.kernel.noise` and `.digits`: what they judge by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.kernel import noise
from bif.estimate.item_kernel import FeatureKernel
from bif.kernel import find_neighbours


def kernel() -> noise.LossKernel:
    g = noise.gradients(50, 1.0, 0)[:60]
    return noise.kernel_of(g @ noise.standard_normal(50, 80, seed=3).double())


def test_a_kernel_is_without_error_against_itself():
    found = noise.judge(kernel(), kernel())
    assert found == {"error": 0.0, "neighbours": 1.0}


def test_ledoit_wolf_shrinks_every_correlation_alike_and_keeps_the_neighbours():
    pytest.importorskip("sklearn")
    plain, shrunk = kernel(), noise.ledoit_wolf(kernel())
    off = ~np.eye(60, dtype=bool)
    ratio = shrunk.block().numpy()[off] / plain.block().numpy()[off]
    assert 0 < ratio.min() < 1
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_array_equal(
        find_neighbours(plain, 5).places, find_neighbours(shrunk, 5).places
    )


def test_principal_components_and_those_above_the_edge_are_of_the_largest_eigenvalues():
    one = kernel()
    size = torch.linalg.eigvalsh(one.block())
    for found in (noise.principal(one, 3), noise.marchenko_pastur(one)):
        assert isinstance(found, FeatureKernel)
        kept = torch.linalg.eigvalsh(found.block(kind="covariance"))
        count = found.features.shape[1]
        np.testing.assert_allclose(kept[-count:], size[-count:], rtol=1e-9)
    edge = (1 + (60 / 80) ** 0.5) ** 2
    assert noise.marchenko_pastur(one).features.shape[1] == int((size > edge).sum())
