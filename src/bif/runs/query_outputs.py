"""Outputs of the model at w* for the queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bif.problem.items import to_device
from bif.problem.problem import Problem


@torch.no_grad()
def query_outputs(
    problem: Problem, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield targets and outputs of the queries, `size` at once.

    Args:
        problem: Of items that are inputs and targets.
        size: Items of a pass.
        device: Where the model is evaluated.

    Raises:
        torch.OutOfMemoryError: It has no room for a copy of the model.
    """
    model = problem.evaluation_copy(device)
    for items in problem.query_groups.values():
        for _, batch in items.chunks(size):
            inputs, targets = to_device(batch, device)
            yield targets, model(inputs)
