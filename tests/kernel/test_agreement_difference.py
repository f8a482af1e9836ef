"""Whether one kernel agrees better with a tree than another one."""

from __future__ import annotations

from typing import Any

import pytest

from bif.kernel import agreement, agreement_difference, tree_of
from class_trees import binary, kernel_of_binary, random_kernel

LEAVES = ["aaa", "aab", "aba", "abb", "baa", "bab", "bba", "bbb"]


def test_a_kernel_less_itself_is_zero_with_a_certain_interval():
    kernel = random_kernel(LEAVES * 2)
    for figure in agreement_difference(
        kernel, kernel, tree_of(binary(3)), num_bootstrap=20
    ).values():
        assert figure.value == figure.low == figure.high == 0


def test_a_kernel_that_is_the_tree_agrees_better_than_noise():
    tree, exact = tree_of(binary(3)), kernel_of_binary(3)
    others = [random_kernel(LEAVES, seed=seed) for seed in range(3)]
    found = agreement_difference([exact] * 3, others, tree, num_bootstrap=200)
    alone = agreement(others, tree, num_bootstrap=1, num_permutations=1).figures
    for name, figure in found.items():
        assert figure.value == pytest.approx(1 - alone[name].value), name
    assert found["rank_correlation"].low > 0


def test_one_other_kernel_stands_beside_all():
    tree, other = tree_of(binary(3)), random_kernel(LEAVES, seed=9)
    kernels = [random_kernel(LEAVES, seed=seed) for seed in range(2)]
    given: Any = {"num_bootstrap": 10}
    once = agreement_difference(kernels, other, tree, **given)
    assert once == agreement_difference(kernels, [other, other], tree, **given)


def test_lists_of_other_lengths_are_refused():
    tree, kernel = tree_of(binary(3)), random_kernel(LEAVES)
    with pytest.raises(ValueError, match="2 kernels beside 3 others: expected as many"):
        agreement_difference([kernel] * 2, [kernel] * 3, tree)
    with pytest.raises(ValueError, match="0 kernels, and .* expected one or more"):
        agreement_difference([], kernel, tree)
    with pytest.raises(ValueError, match="different classes"):
        agreement_difference(kernel, random_kernel(LEAVES[1:]), tree)
