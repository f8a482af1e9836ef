"""Rows whose products make the Gauss-Newton matrix: for systems of the items, not the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from bif import tensors
from bif.curvature.outputs import Criterion, SplitLoss
from bif.curvature.passes import RootedOutputs
from bif.curvature.products import first_items, join_leaves, trainable_copy, weighted_chunks
from bif.problem.items import map_batch
from bif.problem.problem import Problem
from bif.types import Params

_CHUNK_BYTES = 2**29
"""Bytes of rows that are made at a time."""


def root_rows(problem: Problem, *, criterion: Criterion | None = None) -> Iterator[Tensor]:
    """Yield rows A `[B·K, P]` with `Aᵀ A` the Gauss-Newton matrix of the mean train loss at w*.

    An item has K of them, `sqrt(rho_i / n) Sᵀ J` with J the derivatives of its K outputs and
    `S Sᵀ` the Hessian of its loss in these.  With a metric M columns are divided by `M^(1/2)`.

    Args:
        problem: Model, loss and train items.
        criterion: How the loss curves in the model's outputs; found by default.

    Raises:
        ValueError: A loss that cannot be split into outputs and criterion.
    """
    model = trainable_copy(problem)
    split = SplitLoss(model, problem.loss, first_items(problem), criterion)
    outputs = RootedOutputs(model, split)
    leaves = dict(model.named_parameters())
    params: Params = {name: leaves[name].detach() for name in problem.trainable}
    scale = problem.metric_scale(params)
    factor = None if scale is None else join_leaves(tensors.stacked(scale, 1))
    model.requires_grad_(False)

    def of_item(params: Params, given: dict[str, Any]) -> Tensor:
        alone = map_batch(lambda leaf: leaf.unsqueeze(0), given)
        named = {f"model.{name}": leaf for name, leaf in params.items()}
        return functional_call(outputs, named, (alone,))[0]

    width = sum(leaf.numel() * leaf.element_size() for leaf in params.values())
    size = max(1, min(256, _CHUNK_BYTES // (width * split.num_outputs)))
    for share, batch in weighted_chunks(problem, size):
        given = {"weights": share.sqrt(), "batch": batch, "root": split.root(batch)}
        found = vmap(jacrev(of_item), in_dims=(None, 0))(params, given)
        rows = join_leaves({name: leaf.flatten(0, 1) for name, leaf in found.items()})
        yield rows if factor is None else rows * factor
