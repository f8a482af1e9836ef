"""Fisher matrices of the mean train loss as the curvature of a summed squared error."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from bif.curvature.outputs import Criterion, SplitLoss
from bif.curvature.passes import RootedOutputs
from bif.curvature.products import first_items, weighted_chunks
from bif.problem.functional import ItemFunction
from bif.problem.problem import Problem

FisherType = Literal["type-2", "mc", "empirical"]
"""How the Fisher matrix is taken: exact over outputs, sampled, or from the items' own gradients."""

_MAX_OUTPUTS = 1000
"""Outputs of an item up to which the exact Fisher matrix is affordable."""


class _RootLosses(nn.Module):
    """`sqrt(rho_i / (2n)) · l_i`, `[B, 1]`: its "Gauss-Newton matrix" is the empirical Fisher."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.model = model
        of_items = ItemFunction(model, problem.loss)
        self._of = lambda batch: of_items(batch)

    def forward(self, x: dict[str, Any]) -> Tensor:
        return (x["weights"] * self._of(x["batch"])).unsqueeze(1)


def squared_fisher(
    problem: Problem,
    model: nn.Module,
    fisher_type: FisherType,
    criterion: Criterion | None,
    chunk_size: int,
) -> tuple[nn.Module, list[tuple[dict[str, Any], Tensor]]]:
    """Return a model and batches whose summed squared error has the wanted curvature.

    curvlinops has no train weights, one scale of squared error and a loop over items for the
    softmax. A squared error of outputs turned by the root of the loss's Hessian needs none of
    that: `Σ_i ‖sqrt(rho_i / 2n) Sᵢᵀ fᵢ‖²` has the mean loss's Gauss-Newton matrix.
    """
    if fisher_type == "empirical":
        data = [
            ({"weights": (share / 2).sqrt(), "batch": batch}, share.new_zeros(len(share), 1))
            for share, batch in weighted_chunks(problem, chunk_size)
        ]
        return _RootLosses(model, problem), data
    split = SplitLoss(model, problem.loss, first_items(problem), criterion)
    if fisher_type == "type-2" and split.num_outputs > _MAX_OUTPUTS:
        raise ValueError(
            f"fisher_type='type-2' needs a backward pass for each of {split.num_outputs:,} outputs "
            f"of an item, at most {_MAX_OUTPUTS:,}: use fisher_type='mc'."
        )
    data = [
        (
            {"weights": (share / 2).sqrt(), "batch": batch, "root": split.root(batch)},
            share.new_zeros(len(share), 1),
        )
        for share, batch in weighted_chunks(problem, chunk_size)
    ]
    return RootedOutputs(model, split), data
