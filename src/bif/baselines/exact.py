"""Classical influence with the exact Hessian, for models small enough to hold it; by curvlinops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bif.baselines.gradient_product import item_gradients, named_observable
from bif.functional import ItemFunction
from bif.items import map_batch
from bif.problem import Problem

_LARGEST = 30_000


def exact_influence(problem: Problem, *, damping: float, observable: str | None = None) -> Tensor:
    """`-g_iᵀ (H + damping·I)⁻¹ g_phi`, H the Hessian of the mean train loss at w*.

    The leading order of `nbeta · BIF` with `damping = gamma / nbeta` (`docs/scale-and-sign.md`).

    Args:
        problem: With at most 30,000 weights; all of them enter.
        damping: In units of the mean loss's curvature.
        observable: Of the problem's observables; the first by default.

    Returns:
        `[Q, N]` on the CPU, in float64.

    Raises:
        ValueError: Too many weights, or a Hessian that the damping does not make positive.
        ImportError: The extra `baselines` is not installed.
    """
    function = named_observable(problem, observable)
    groups = problem.query_groups.values()
    queries = torch.cat([item_gradients(problem, function, g) for g in groups]).double()
    train = item_gradients(problem, problem.loss, problem.train).double()
    hessian = exact_hessian(problem)
    hessian.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(hessian)
    if int(info):
        lowest = float(torch.linalg.eigvalsh(hessian)[0])
        raise ValueError(
            f"the damped Hessian is not positive: its smallest eigenvalue is {lowest:.3g}. "
            f"Raise damping above {damping - lowest:.3g}."
        )
    return -(queries @ torch.cholesky_solve(train.T, factor)).cpu()


def exact_hessian(problem: Problem) -> Tensor:
    """Hessian of the (weighted) mean train loss at w*, `[P, P]` float64.

    Raises:
        ValueError: More than 30,000 weights.
        ImportError: The extra `baselines` is not installed.
    """
    try:
        from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise ImportError(
            "exact influence needs curvlinops: install the extra, "
            "pip install 'bayesian-influence[baselines]'."
        ) from error
    model = problem.evaluation_copy(problem.device)
    model.requires_grad_()
    count = sum(p.numel() for p in model.parameters())
    if count > _LARGEST:
        raise ValueError(
            f"the exact Hessian of {count:,} weights does not fit: at most {_LARGEST:,}."
        )
    wrapped = _WeightedLosses(ItemFunction(model, problem.loss))
    operator: Any = HessianLinearOperator(
        wrapped,
        _MeanOfLosses(),
        list(model.parameters()),
        list(_labelled(problem, 1024)),
        check_deterministic=False,
        batch_size_fn=_num_items,
    )
    eye = torch.eye(count, dtype=next(model.parameters()).dtype, device=problem.device)
    columns: list[Tensor] = [operator @ part for part in eye.split(256, dim=1)]
    hessian = torch.cat(columns, dim=1).double()
    return (hessian + hessian.T) / 2


class _WeightedLosses(nn.Module):
    """Weighted item losses as the "prediction" whose mean curvlinops differentiates twice."""

    def __init__(self, losses: ItemFunction) -> None:
        super().__init__()
        self.losses = losses

    def forward(self, x: dict[str, Any]) -> Tensor:
        return x["weights"] * self.losses(x["batch"])


def _num_items(x: Any) -> int:
    return len(x["weights"])


class _MeanOfLosses(nn.Module):
    """The mean over a batch; `reduction` tells curvlinops how to join batches."""

    reduction = "mean"

    def forward(self, losses: Tensor, unused: Tensor) -> Tensor:
        return losses.mean()


def _labelled(problem: Problem, chunk_size: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Batches as curvlinops wants them, with a label that nothing reads."""
    like = next(problem.model.parameters())
    weights = problem.train_weights
    weights = torch.ones(problem.num_train) if weights is None else weights
    for part, batch in problem.train.chunks(chunk_size):
        share = weights[part].to(like)
        yield (
            {
                "weights": share,
                "batch": map_batch(lambda leaf: leaf.to(problem.device), batch),
            },
            torch.zeros_like(share),
        )
