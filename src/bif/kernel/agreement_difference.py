"""Whether one kernel agrees better with a tree of classes than another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bif.estimate.item_kernel import ItemKernel
from bif.kernel.class_similarity import similarity
from bif.kernel.class_tree import ClassTree
from bif.kernel.tree_scale import interval, refuse_none, resampled, scale_of


@dataclass(frozen=True)
class AgreementDifference:
    """One figure of a kernel's agreement less that of another.

    Attributes:
        value: Mean over the pairs of kernels.
        low: Lower end of a 95 % interval, by classes and kernels resampled for both alike.
        high: Its upper end.
    """

    value: float
    low: float
    high: float


def agreement_difference(
    kernels: ItemKernel | Sequence[ItemKernel],
    others: ItemKernel | Sequence[ItemKernel],
    tree: ClassTree,
    *,
    label: str = "label",
    num_pairs: int = 20_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, AgreementDifference]:
    """Return by how much kernels agree better with a tree than others, for each figure.

    Resamples take the same classes and the same places in both lists, so what a hard class or a
    seed does to both is no part of the interval.

    Args:
        kernels: A kernel, or one of each seed.
        others: Those that they stand beside, in the same order, or a single one for all.
        tree: Whose leaves the classes are.
        label: Which of the items' labels classes are.
        num_pairs: As for `agreement`.
        num_bootstrap: Resamples.
        seed: Of all that is random.

    Raises:
        KeyError: No such labels.
        ValueError: Another number of others than kernels; what `agreement` refuses.
    """
    several = [kernels] if isinstance(kernels, ItemKernel) else list(kernels)
    beside = [others] * len(several) if isinstance(others, ItemKernel) else list(others)
    refuse_none(len(several), num_pairs, num_bootstrap)
    if len(beside) != len(several):
        raise ValueError(
            f"{len(several)} kernels beside {len(beside)} others: expected as many, in the same "
            "order, or a single other one."
        )
    scale, samples = scale_of(
        [*several, *beside], tree, label=label, num_pairs=num_pairs, seed=seed
    )
    found = [
        similarity(kernel, sample, scale.cuts)
        for kernel, sample in zip([*several, *beside], samples, strict=True)
    ]
    values, drawn = [], []
    for part in (found[: len(several)], found[len(several) :]):
        values.append(np.mean([scale.figures(one) for one in part], axis=0))
        drawn.append(resampled(scale, part, num_bootstrap, seed))
    return {
        name: AgreementDifference(
            float(values[0][f] - values[1][f]), *interval(drawn[0][:, f] - drawn[1][:, f])
        )
        for f, name in enumerate(scale.names)
    }
