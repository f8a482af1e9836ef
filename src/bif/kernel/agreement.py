"""Agreement of a kernel with a tree of classes: are classes near in it alike for the model?

Items of one class have distance 0 in the tree and any classifier finds them alike, so only pairs
of different classes count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bif.estimate.item_kernel import ItemKernel
from bif.kernel.class_similarity import Sample, similarity
from bif.kernel.class_tree import ClassTree
from bif.kernel.tree_figures import detectable_correlation
from bif.kernel.tree_scale import TreeScale, interval, refuse_none, resampled, scale_of

_ALL = 5040
"""Permutations up to which all are taken, those of 7 classes."""
_TIE = 1e-12
"""Difference of figures that rounding alone may make."""


@dataclass(frozen=True)
class AgreementFigure:
    """One figure of agreement.

    Attributes:
        value: Mean over the kernels.
        standard_error: Of the value, by the spread of the chains; NaN for kernels without chains.
        low: Lower end of a 95 % interval, by resampled classes and kernels; NaN where most
            resamples hold too few classes for the figure.
        high: Its upper end.
        p: Share of permutations of the classes over the leaves with as large a value.
        null_mean: Mean of the value over the permutations.
        null_low: Lower end of the middle 95 % of it.
        null_high: Upper end.
        of_kernels: Value of each kernel.
    """

    value: float
    standard_error: float
    low: float
    high: float
    p: float
    null_mean: float
    null_low: float
    null_high: float
    of_kernels: tuple[float, ...]


@dataclass(frozen=True)
class Agreement:
    """How well kernels agree with a tree of classes, and how well they could be seen to.

    With `S_ab` the mean correlation of items of classes a and b, and `D_ab` their distance in the
    tree, the figures are, over pairs of different classes:

    * `rank_correlation`: Spearman's correlation of `-S` and `D`.
    * `triplet_accuracy`: share of classes a, b, c with `D_ab < D_ac` that have `S_ab > S_ac`; ties
      are half.  Chance is .5.
    * `cophenetic_correlation`: Pearson's correlation of `D` and the height at which average linkage
      of `1 - S` joins two classes.
    * `item_rank_correlation`, `item_triplet_accuracy`: the same of items instead of classes.
    * `purity_of_G_groups`, `mutual_information_of_G_groups`: of the linkage cut at G clusters and
      the level of the tree that has G groups.

    Attributes:
        figures: By their names.
        num_classes: Classes of the items.
        num_permutations: Of the null, with the identity.
        exact: Whether these are all.
        least_p: The p value of the rank correlation of a kernel that is the tree.
        detectable_correlation: Least rank correlation that the test at 5 % finds in 80 % of cases;
            NaN if it finds none, or over 60 classes.
    """

    figures: dict[str, AgreementFigure]
    num_classes: int
    num_permutations: int
    exact: bool
    least_p: float
    detectable_correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Return all as dicts and numbers, as `summary.json` has them."""
        return asdict(self)


def agreement(
    kernels: ItemKernel | Sequence[ItemKernel],
    tree: ClassTree,
    *,
    label: str = "label",
    num_pairs: int = 20_000,
    num_permutations: int = 2000,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Return how well a kernel agrees with a tree of classes, against classes permuted.

    The null permutes the classes over the leaves.  Intervals resample classes, without pairs of a
    class and itself, and kernels; the linkage and its clusters stay.

    Args:
        kernels: A kernel, or one of each seed.  A loss kernel has to have at least two chains.
        tree: Whose leaves the classes are.
        label: Which of the items' labels classes are.
        num_pairs: Pairs and triplets of items at most, and triplets of classes; drawn at random
            where there are more.
        num_permutations: Where there are more than 5,040; below, all are taken.
        num_bootstrap: Resamples.
        seed: Of all that is random.

    Raises:
        KeyError: No such labels.
        ValueError: Labels missing from the tree; fewer than three classes, or all equally far
            apart; kernels of different classes, or none; a single chain.

    Source: permutations as in Mantel 1967, "The detection of disease clustering and a generalized
    regression approach"; cophenetic correlation of Sokal & Rohlf 1962.
    """
    several = [kernels] if isinstance(kernels, ItemKernel) else list(kernels)
    refuse_none(len(several), num_pairs, num_permutations, num_bootstrap)
    scale, samples = scale_of(several, tree, label=label, num_pairs=num_pairs, seed=seed)
    count = len(scale.order)
    permutations = _permutations(count, num_permutations, seed)
    fits = [np.array_equal(scale.permuted(order).order, scale.order) for order in permutations]
    return Agreement(
        _figures(scale, several, samples, permutations, num_bootstrap=num_bootstrap, seed=seed),
        count, len(permutations), math.factorial(count) <= _ALL, float(np.mean(fits)),
        detectable_correlation(scale.distance, permutations, seed=seed),
    )  # fmt: skip


def _figures(
    scale: TreeScale,
    kernels: Sequence[ItemKernel],
    samples: Sequence[Sample],
    permutations: np.ndarray,
    *,
    num_bootstrap: int,
    seed: int,
) -> dict[str, AgreementFigure]:
    found, errors = [], []
    for kernel, sample in zip(kernels, samples, strict=True):
        _, error = kernel.jackknife(lambda k, s=sample: scale.figures(similarity(k, s, scale.cuts)))
        found.append(similarity(kernel, sample, scale.cuts))
        errors.append(error)
    of_kernels_KF = np.array([scale.figures(one) for one in found])
    null_RF = np.array([
        np.mean([scale.permuted(order).figures(one) for one in found], axis=0)
        for order in permutations
    ])  # fmt: skip
    drawn_BF = resampled(scale, found, num_bootstrap, seed)
    error_F = np.sqrt(np.square(errors).sum(axis=0)) / len(kernels)
    return {
        name: _figure(of_kernels_KF[:, f], error_F[f], drawn_BF[:, f], null_RF[:, f])
        for f, name in enumerate(scale.names)
    }


def _permutations(count: int, most: int, seed: int) -> np.ndarray:
    """Return all orders of so many classes, or the identity and some at random, `[R, C]`."""
    if math.factorial(count) <= _ALL:
        return np.array(list(itertools.permutations(range(count))))
    same = np.tile(np.arange(count), (most + 1, 1))
    same[1:] = np.random.default_rng(seed).permuted(same[1:], axis=1)
    return same


def _figure(
    of_kernels: np.ndarray, error: float, drawn: np.ndarray, null: np.ndarray
) -> AgreementFigure:
    value = float(of_kernels.mean())
    low, high = interval(drawn)
    p = float((null >= value - _TIE).mean()) if math.isfinite(value) else math.nan
    return AgreementFigure(
        value, float(error), low, high, p, float(null.mean()), *interval(null),
        tuple(map(float, of_kernels)),
    )  # fmt: skip
