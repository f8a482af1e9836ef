"""The gradient product and cosine: the limit of the BIF at large gamma, a control for any claim."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import signed_products


def gradient_product(
    problem: Problem, *, observable: str | None = None, movable: Sequence[str] | None = None
) -> Tensor:
    """Return `-g_i · g_phi` for all queries and train items.

    The limit of `gamma · BIF` as gamma → ∞ (`docs/scale-and-sign.md`), so signed like the BIF.

    Args:
        problem: Model, items, queries.
        observable: Name of one of the problem's observables; the first by default.
        movable: Globs of the parameters whose gradients count; by default all that the model does
            not freeze.

    Returns:
        `[Q, N]` on the CPU, in float64.

    Raises:
        KeyError: No such observable.
        ValueError: `movable` matches nothing.
    """
    return signed_products(problem, find_observable(problem, observable).function, movable=movable)


def gradient_cosine(
    problem: Problem, *, observable: str | None = None, movable: Sequence[str] | None = None
) -> Tensor:
    """Return `-cos(g_i, g_phi)`: the gradient product that forgets how large gradients are.

    0 where a gradient vanishes.

    Args:
        problem: Model, items, queries.
        observable: Name of one of the problem's observables; the first by default.
        movable: Globs of the parameters whose gradients count; by default all that the model does
            not freeze.

    Returns:
        `[Q, N]` in [-1, 1] on the CPU, in float64.

    Raises:
        KeyError: No such observable.
        ValueError: `movable` matches nothing.
    """
    function = find_observable(problem, observable).function
    return signed_products(
        problem, function, movable=movable, prepare=_unit_rows, prepare_train=_unit_rows
    )


def _unit_rows(rows: Tensor) -> Tensor:
    """Return rows scaled to length 1; those of length 0 stay 0."""
    return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)
