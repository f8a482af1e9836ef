"""Random subsets of the training items, as boolean masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def random_subsets(
    num_items: int, num_subsets: int, *, fraction: float = 0.5, seed: int | Sequence[int]
) -> np.ndarray:
    """Draw independent uniform subsets, all of `round(fraction * num_items)` items.

    All subsets have one size, so that an offset common to all scores drops out of the linear
    datamodeling score. Row m depends on `seed` and m alone: asking for more subsets later
    extends the earlier ones.

    Args:
        num_items: Number of training items N.
        num_subsets: Number of subsets M.
        fraction: Share of the items that a subset holds, between 0 and 1.
        seed: Seed of numpy's generator, a number or several.

    Returns:
        Masks [M, N], bool; True marks an item that the subset holds.

    Raises:
        ValueError: If the numbers are not positive, the rounded size leaves a subset empty or
            whole, or M distinct subsets of that size do not exist.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction is {fraction}; expected a number between 0 and 1, exclusive.")
    num_kept = round(fraction * num_items)
    _check_counts(num_items, num_subsets, num_kept, f"fraction={fraction}")
    rng = np.random.default_rng(seed)
    masks = np.zeros((num_subsets, num_items), dtype=bool)
    for mask in masks:
        mask[rng.permutation(num_items)[:num_kept]] = True
    return masks


def leave_out(
    num_items: int, num_subsets: int, *, num_removed: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Draw subsets that lack `num_removed` items each.

    The removed items come from shuffled sweeps through all items, cut into disjoint pieces:
    items are removed about equally often, and with `num_removed=1` the first N subsets leave
    out every item exactly once. More subsets later extend the earlier ones.

    Args:
        num_items: Number of training items N.
        num_subsets: Number of subsets M.
        num_removed: Number of items that each subset lacks.
        seed: Seed of numpy's generator, a number or several.

    Returns:
        Masks [M, N], bool; True marks an item that stays.

    Raises:
        ValueError: If the numbers are not positive, nothing would stay, or M distinct subsets
            of that size do not exist.
    """
    num_kept = num_items - num_removed
    _check_counts(num_items, num_subsets, num_kept, f"num_removed={num_removed}")
    rng = np.random.default_rng(seed)
    per_sweep = num_items // num_removed
    masks = np.ones((num_subsets, num_items), dtype=bool)
    for start in range(0, num_subsets, per_sweep):
        pieces = rng.permutation(num_items)[: per_sweep * num_removed].reshape(per_sweep, -1)
        for mask, removed in zip(masks[start : start + per_sweep], pieces, strict=False):
            mask[removed] = False
    return masks


def _check_counts(num_items: int, num_subsets: int, num_kept: int, setting: str) -> None:
    if num_items < 2 or num_subsets < 1:
        raise ValueError(
            f"num_items is {num_items} and num_subsets is {num_subsets}; expected at least 2 "
            "items and 1 subset."
        )
    if not 0 < num_kept < num_items:
        raise ValueError(
            f"{setting} leaves {num_kept} of {num_items} items in a subset; expected at least "
            f"1 and at most {num_items - 1}. Change {setting.split('=')[0]}."
        )
    if math.comb(num_items, num_kept) < num_subsets:
        raise ValueError(
            f"num_subsets is {num_subsets}, but only {math.comb(num_items, num_kept)} distinct "
            f"subsets of {num_kept} out of {num_items} items exist. Ask for fewer."
        )
