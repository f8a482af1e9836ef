"""Hessian and Gauss-Newton matrix of the mean train loss at w*, as operators; by curvlinops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif.curvature.library import import_curvlinops
from bif.curvature.outputs import Criterion, SplitLoss
from bif.problem.functional import ItemFunction
from bif.problem.items import to_device
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.types import Batch

Curvature = Literal["hessian", "ggn"]
"""The Hessian, or the generalised Gauss-Newton matrix `(1/n) Σ rho_i Jᵢᵀ ∇²l Jᵢ`."""


def curvature_operator(
    problem: Problem,
    curvature: Curvature,
    *,
    criterion: Criterion | None = None,
    chunk_size: int = 1024,
) -> Any:
    """Return the curvature of the (weighted) mean train loss, `[P, P]`.

    Args:
        problem: Model, loss and train items.
        curvature: "hessian" or "ggn".
        criterion: For "ggn", how the loss curves in the model's outputs; found by default.
        chunk_size: Items per product.

    Returns:
        A linear operator: `operator @ matrix` with a matrix `[P, K]` on the problem's device, in
        the model's dtype.

    Raises:
        ValueError: Another `curvature`; a loss that cannot be split for "ggn".
        ImportError: The extra `baselines` is not installed.
    """
    require_literal("curvature", curvature, Curvature)
    curvlinops = import_curvlinops()
    model = trainable_copy(problem)
    if curvature == "hessian":
        kind, wrapped = curvlinops.HessianLinearOperator, _WeightedLosses(model, problem)
        total: nn.Module = _Sum()
        data = [
            ({"weights": share, "batch": batch}, torch.zeros_like(share))
            for share, batch in weighted_chunks(problem, chunk_size)
        ]
    else:
        split = SplitLoss(model, problem.loss, first_items(problem), criterion)
        kind, wrapped, total = curvlinops.GGNLinearOperator, RootedOutputs(model, split), _Half()
        data = rooted_data(problem, split, chunk_size=chunk_size)
    return kind(
        wrapped,
        total,
        [p for name, p in model.named_parameters() if name in problem.trainable],
        data,
        check_deterministic=False,
        num_data=problem.num_train,
        batch_size_fn=lambda x: len(x["weights"]),
    )


def trainable_copy(problem: Problem) -> nn.Module:
    """Return a copy of the model in which trained weights alone require gradients."""
    model = problem.evaluation_copy(problem.device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in problem.trainable)
    return model


def rooted_data(
    problem: Problem, split: SplitLoss, *, chunk_size: int, scale: float = 1.0
) -> list[tuple[dict[str, Any], Tensor]]:
    """Return batches for `RootedOutputs`, with labels that nothing reads.

    Their outputs times `sqrt(scale · rho_i / n)` are what is squared.
    """
    return [
        (
            {"weights": (scale * share).sqrt(), "batch": batch, "root": split.root(batch)},
            share.new_zeros(len(share), 1),
        )
        for share, batch in weighted_chunks(problem, chunk_size)
    ]


def weighted_chunks(problem: Problem, chunk_size: int) -> Iterator[tuple[Tensor, Batch]]:
    """Yield `rho_i / n` `[B]` and the batch, on the problem's device."""
    like = next(iter(problem.center().values()))
    weights = problem.train_weights
    weights = torch.ones(problem.num_train, dtype=torch.float64) if weights is None else weights
    for part, batch in problem.train.chunks(chunk_size):
        share = (weights[part] / problem.num_train).to(device=like.device)
        yield (
            share.to(torch.promote_types(like.dtype, torch.float32)),
            to_device(batch, problem.device),
        )


def first_items(problem: Problem) -> Batch:
    """Return the first train items, on the problem's device."""
    return to_device(problem.train.first(3), problem.device)


class RootedOutputs(nn.Module):
    """`sqrt(rho_i / n) · Sᵀ f`, `[B, K]`: half its square curves like the mean loss."""

    def __init__(self, model: nn.Module, split: SplitLoss) -> None:
        super().__init__()
        self.model = model
        self._of = lambda x: split.apply_root(split.outputs(x["batch"]), x["root"])

    def forward(self, x: dict[str, Any]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no forward derivatives
            return x["weights"].unsqueeze(1) * self._of(x)


class _WeightedLosses(nn.Module):
    """Weighted item losses as the "prediction" whose sum curvlinops differentiates twice."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.losses = ItemFunction(model, problem.loss)

    def forward(self, x: dict[str, Any]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no forward derivatives
            return x["weights"] * self.losses(x["batch"])


class _Sum(nn.Module):
    """The sum over a batch; `reduction` tells curvlinops how to join batches."""

    reduction = "sum"

    def forward(self, predictions: Tensor, unused: Tensor) -> Tensor:
        return predictions.sum()


class _Half(nn.Module):
    """Half the sum of squares, whose Hessian is the identity."""

    reduction = "sum"

    def forward(self, predictions: Tensor, unused: Tensor) -> Tensor:
        return 0.5 * predictions.square().sum()
