"""Derivatives that a solve needs, tried on a few items before anything long begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from bif.curvature.derivatives import Derivatives
from bif.curvature.products import (
    CurvatureProduct,
    curvature_in_words,
    first_items,
    require_curvature,
    split_rows,
)
from bif.linear_response.column_gradients import query_gradients
from bif.problem.problem import Problem
from bif.sampling.movable_weights import moving
from bif.sampling.posterior import LocalPosterior
from bif.sampling.settings import Settings

_ITEMS = 3
"""Train items of a trial: enough for a batch, few enough to cost nothing."""
_SHOWN = 160
"""Characters of torch's own words that a message repeats."""
_UNKNOWN = "torch has no such derivative of an operation of the model or the loss"
_OUTSIDE = "the model or the loss reads tensors outside of torch, where no derivative follows"
_CAUSES = {
    "saved tensor hooks": (
        "the model recomputes activations (torch.utils.checkpoint), which torch.func does not "
        "differentiate, use_reentrant=True neither",
        "have it call its layers without checkpoint(…), and bound the memory by chunk_size",
    ),
    "setup_context": (
        "the model or the loss calls a torch.autograd.Function without setup_context, such as that "
        "of checkpoint(…, use_reentrant=True)",
        "give it a forward without ctx, a staticmethod setup_context(ctx, inputs, output) and "
        "generate_vmap_rule = True, or call layers without checkpoint(…)",
    ),
    "not implemented": (_UNKNOWN, "write that operation by others"),
    "not been implemented": (_UNKNOWN, "write that operation by others"),
    "numpy": (_OUTSIDE, "compute it by torch"),
    "data pointer": (_OUTSIDE, "compute it by torch"),
}
"""Causes and remedies, by what torch's words contain."""
_T = TypeVar("_T")


def require_derivatives(problem: Problem, settings: Settings) -> None:
    """Try on a few items what a solve differentiates, and refuse what torch does not.

    That is the gradient of each observable of one query column, the derivatives of a few items'
    losses along it, and its product with the curvature.

    Args:
        problem: What is to be attributed.
        settings: With `estimator="response"`; `movable` and `solver_curvature` matter.

    Raises:
        ValueError: The cause, what was tried and what to do; a loss without a Gauss-Newton matrix.
    """
    curvature = require_curvature(settings.solver_curvature or "gauss_newton")
    posterior = LocalPosterior(
        problem.center(), 1.0, 1.0, moving(problem, settings.movable), copies_center=False
    )
    center, rows = posterior.center, torch.empty(0)
    for phi in problem.observables:
        rows = _tried(
            f"the gradient of the observable {phi.name!r}",
            lambda phi=phi: query_gradients(problem, phi, range(1), posterior),
        )
    rows = rows.nan_to_num(0.0, 0.0, 0.0)  # a query whose gradient is not finite is named later
    _tried(
        "the derivative of item losses along a direction",
        lambda: Derivatives(problem).values(
            problem.loss, split_rows(rows, center), first_items(problem)
        ),
    )

    def product(curvature: str) -> Tensor:
        items = torch.arange(min(_ITEMS, problem.num_train))
        return CurvatureProduct(problem, curvature, names=tuple(center), items=items)(rows)

    def of_other() -> str:
        other = "hessian" if curvature == "gauss_newton" else "gauss_newton"
        try:
            product(other)
        except (ValueError, RuntimeError):
            return f"solver_curvature={other!r} was tried too and is refused. "
        return f"solver_curvature={other!r} was tried too and works. "

    needed = f"the product of a vector and the {curvature_in_words(curvature)}"
    _tried(needed, lambda: product(curvature), otherwise=of_other)


def _tried(what: str, run: Callable[[], _T], *, otherwise: Callable[[], str] = str) -> _T:
    """Return what `run` returns.

    Args:
        what: Its name in an error.
        run: Differentiates a few items.
        otherwise: Says what else may be used, where torch refuses.

    Raises:
        ValueError: Torch refuses.
    """
    try:
        return run()
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        text = str(error).replace("curvature='hessian'", "solver_curvature='hessian'")
        raise ValueError(text) from error
    except RuntimeError as error:
        said = " ".join(str(error).split())
        cause, remedy = next(
            (found for part, found in _CAUSES.items() if part in said),
            ("torch fails in it", "change the model or the loss there"),
        )
        said = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
        raise ValueError(
            f"estimator='response' needs {what}. It was tried on the first items and fails: "
            f"{cause}. Torch says: {said!r}. To mend it, {remedy}. {otherwise()}Or use "
            "estimator='covariance', which takes first derivatives only, with oracle='live' where "
            "the model recomputes activations."
        ) from error
