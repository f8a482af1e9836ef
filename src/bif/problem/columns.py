"""Columns of the scores: one for every item, or one for every token that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from bif.problem.items import Items, batch_leaves
from bif.types import Batch

Tokens = Literal["train", "query", "both"]
"""The side of the scores that has a column or row for every token instead of every item."""


@dataclass(frozen=True)
class Columns:
    """The columns of groups of items in the scores: one an item, or one a token.

    Attributes:
        item_ids: Names of the items, in order; "group/id" where several groups ask for it.
        item: The item of each column, a position in `item_ids`, `[n]`.
        token: The column's token, a position in its item's text, `[n]`; None for whole items.
    """

    item_ids: np.ndarray
    item: np.ndarray
    token: np.ndarray | None

    @classmethod
    def of(cls, groups: Sequence[Items], *, names: np.ndarray, by_token: bool) -> Columns:
        """Return the columns of groups one after another; `names` are their items'."""
        if not by_token:
            return cls(names, np.arange(len(names)), None)
        places = [np.nonzero(mask_of(items)) for items in groups]
        first = np.cumsum([0, *(len(items) for items in groups)])
        return cls(
            names,
            np.concatenate([row + start for (row, _), start in zip(places, first, strict=False)]),
            np.concatenate([token for _, token in places]),
        )

    def __len__(self) -> int:
        return len(self.item)

    @property
    def ids(self) -> np.ndarray:
        """Names of the columns: the item's, or `ID[t]`."""
        if self.token is None:
            return self.item_ids
        names = self.item_ids.tolist()
        pairs = zip(self.item.tolist(), self.token.tolist(), strict=True)
        return np.asarray([f"{names[i]}[{t}]" for i, t in pairs])


def num_columns(items: Items, *, by_token: bool) -> int:
    """Return the number of columns of one group."""
    return int(mask_of(items).sum()) if by_token else len(items)


def token_shift(values: Tensor, batch: Batch, items: Items, *, what: str, where: str) -> int:
    """Return how many tokens at the start of a text have no value: 0 or 1.

    Args:
        values: The function's values of the batch.
        batch: The first items, which may be cut to less than the width of their mask.
        items: The items whose tokens are to have columns.
        what: The function, for messages.
        where: The items, for messages.

    Raises:
        ValueError: No token mask; values that are not `[B, T]` or, of next tokens, `[B, T - 1]`.
    """
    if items.token_mask is None:
        raise ValueError(
            f"tokens of the {where} are to be scored, but nothing says which tokens count: pass "
            "Items(…, token_mask=[N, T] bool)."
        )
    mask = items.token_mask
    leaves = [leaf.shape[1] for leaf in batch_leaves(batch).values() if leaf.dim() > 1]
    widths = [max((w for w in leaves if w <= mask.shape[1]), default=0), mask.shape[1]]
    got = values.shape[1] if values.dim() == 2 else -1
    shifts = [width - got for width in widths if width - got in (0, 1)]
    if not shifts:
        raise ValueError(
            f"tokens of the {where} are to be scored by their mask of {mask.shape[1]} tokens an "
            f"item, but the {what} returned shape {tuple(values.shape)}: expected one value a "
            "token, [B, T], or one a next token, [B, T - 1]."
        )
    if shifts[0] and mask[:, 0].any():
        raise ValueError(
            f"token_mask holds the first token of some {where}, but the {what} has values of next "
            "tokens, and the first token is none: set token_mask[:, 0] = False."
        )
    return shifts[0]


def mask_of(items: Items) -> np.ndarray:
    """Return which tokens have a column, bool `[N, T]`."""
    assert items.token_mask is not None
    return items.token_mask
