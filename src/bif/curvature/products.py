"""Products of the curvature of the mean train loss with many vectors at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from bif import tensors
from bif.curvature.outputs import Criterion, SplitLoss
from bif.curvature.passes import MOST_BYTES, GaussNewtonPass, HessianPass
from bif.curvature.rows import RowsTogether, padded
from bif.problem.cuda_graphs import Replayed, SharedMemory
from bif.problem.items import to_device
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.types import Batch, Params

Curvature = Literal["gauss_newton", "hessian"]
"""The generalised Gauss-Newton matrix `(1/n) Σ rho_i Jᵢᵀ ∇²l Jᵢ`, or the Hessian."""
_ROOT_BYTES = 2**28
"""Bytes of the roots of losses' curvatures that are kept: they are the same in every product."""
_EARLIER_WORDS = {"ggn": "gauss_newton", "bregman": "gauss_newton"}


def require_curvature(curvature: str) -> Curvature:
    """Return the curvature that a word names; words of earlier versions still do.

    Raises:
        ValueError: Another word.
    """
    word = _EARLIER_WORDS.get(curvature, curvature)
    require_literal("curvature", word, Curvature)
    return cast(Curvature, word)


class CurvatureProduct:
    """The map `X -> X C` of rows, with C the curvature of the (weighted) mean train loss at w*.

    With a metric M of the problem it is `M^(-1/2) C M^(-1/2)`.

    Args:
        problem: Model, loss and train items.
        curvature: "gauss_newton" or "hessian".
        names: Parameters whose curvature it is, in the model's order; by default all that the
            model does not freeze.
        criterion: For "gauss_newton", how the loss curves in the model's outputs; found by default.
        items: Positions of the train items that it is taken over; all by default.
        chunk_size: Items of a pass.
        compute_dtype: What matrices are multiplied in, such as bfloat16; sums stay as they are.
        num_together: Rows of a pass; fewer where memory does not hold them.

    Attributes:
        model: A copy of the problem's, whose weights are w*.
        num_products: Rows that have been multiplied so far.

    Raises:
        ValueError: Another word for the curvature; a loss that cannot be split for "gauss_newton".
    """

    def __init__(
        self,
        problem: Problem,
        curvature: str = "gauss_newton",
        *,
        names: tuple[str, ...] | None = None,
        criterion: Criterion | None = None,
        items: Tensor | None = None,
        chunk_size: int = 256,
        num_together: int = 64,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.curvature = require_curvature(curvature)
        self._problem, self._items, self._chunk = problem, items, chunk_size
        on_gpu = problem.device.type == "cuda"  # where each size of a pass gets a graph
        self._together = RowsTogether(num_together, few_sizes=on_gpu)
        self.num_products = 0
        self.model = trainable_copy(problem)
        chosen = problem.trainable if names is None else names
        leaves = dict(self.model.named_parameters())
        self.params: Params = {name: leaves[name].detach() for name in chosen}
        self._split = None
        if self.curvature == "gauss_newton":
            self._split = SplitLoss(self.model, problem.loss, first_items(problem), criterion)
        scale = problem.metric_scale(self.params)
        self._scale = None if scale is None else join_leaves(tensors.stacked(scale, 1))
        self.model.requires_grad_(False)  # what is differentiated is passed in
        about = self.params, compute_dtype
        made = (
            HessianPass(self.model, problem.loss, *about)
            if self._split is None
            else GaussNewtonPass(self.model, self._split, *about)
        )
        self._pass = Replayed(made, SharedMemory(), most_bytes=MOST_BYTES, lends=True)
        self._roots: dict[int, Tensor] = {}

    @property
    def num_weights(self) -> int:
        """P, the length of a row."""
        return sum(leaf.numel() for leaf in self.params.values())

    def __call__(self, rows: Tensor, item_weights: Tensor | None = None) -> Tensor:
        """Return the products of rows `[K, P]`.

        Args:
            rows: X.
            item_weights: `[K, n]`, for each row factors of the curvatures of the n items.

        Raises:
            torch.OutOfMemoryError: Not even a single row fits.
        """
        self.num_products += len(rows)
        rows = rows if self._scale is None else rows * self._scale
        total = torch.zeros_like(rows)
        sums = split_rows(total, self.params, cast=False)
        first = 0
        for number, (share, batch) in enumerate(self._chunks()):
            given = {"share": share, "batch": batch}
            if self._split is not None:
                given["root"] = self._root(self._split, number, batch)
            last = first + len(share)
            factors = None if item_weights is None else item_weights[:, first:last].to(share)
            first, start = last, 0

            def some(
                part: slice, given: Batch = given, factors: Tensor | None = factors
            ) -> tuple[Tensor, ...]:
                here = {} if factors is None else {"factors": padded(factors, part)}
                leaves = split_rows(padded(rows, part), self.params)
                return self._pass({**given, **here, "rows": leaves})

            for found in self._together.map(some, len(rows)):
                stop = min(start + len(found[0]), len(rows))
                for leaf, of_all in zip(found, sums.values(), strict=True):
                    # Not joined: rows may be as large as the model.
                    of_all[start:stop] += leaf[: stop - start]
                start = stop
        return total if self._scale is None else total.mul_(self._scale)

    def _root(self, split: SplitLoss, number: int, batch: Batch) -> Tensor:
        """Return the root of the loss's curvature in a chunk's outputs, kept where it is small."""
        if number in self._roots:
            return self._roots[number]
        root = split.root(batch)
        held = sum(there.nbytes for there in self._roots.values())
        if held + root.nbytes <= _ROOT_BYTES:
            self._roots[number] = root
        return root

    def _chunks(self) -> Iterator[tuple[Tensor, Batch]]:
        """Yield `rho_i / n` `[B]` of the items that count, and their batches."""
        yield from weighted_chunks(self._problem, self._chunk, items=self._items)


def trainable_copy(problem: Problem) -> nn.Module:
    """Return a copy of the model in which trained weights alone require gradients."""
    model = problem.evaluation_copy(problem.device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in problem.trainable)
    return model


def first_items(problem: Problem) -> Batch:
    """Return the first train items, on the problem's device."""
    return to_device(problem.train.first(3), problem.device)


def weighted_chunks(
    problem: Problem, chunk_size: int, *, items: Tensor | None = None
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield `rho_i / n` `[B]` and the batch, on the problem's device.

    Args:
        problem: Whose train items.
        chunk_size: Items of a batch.
        items: Positions of the n items that count; all by default.
    """
    like = next(iter(problem.center().values()))
    weights = problem.train_weights
    weights = torch.ones(problem.num_train, dtype=torch.float64) if weights is None else weights
    places = torch.arange(problem.num_train) if items is None else items
    for part in places.split(chunk_size):
        share = (weights[part] / len(places)).to(device=like.device)
        yield (
            share.to(torch.promote_types(like.dtype, torch.float32)),
            to_device(problem.train.take(part), problem.device),
        )


def split_rows(rows: Tensor, like: Params, *, cast: bool = True) -> Params:
    """Return rows `[K, P]` as leaves `[K, *shape]`, in the leaves' dtypes or as views."""
    parts = rows.split([leaf.numel() for leaf in like.values()], dim=1)
    return {
        name: part.view(len(rows), *leaf.shape).to(leaf.dtype if cast else rows.dtype)
        for part, (name, leaf) in zip(parts, like.items(), strict=True)
    }


def join_leaves(leaves: Params) -> Tensor:
    """Return leaves `[K, *shape]` as rows `[K, P]`."""
    return torch.cat([leaf.flatten(1) for leaf in leaves.values()], dim=1)


def curvature_in_words(curvature: str) -> str:
    """Return the name of a curvature for people."""
    names = dict(zip(get_args(Curvature), ("Gauss-Newton matrix", "Hessian"), strict=True))
    return names[require_curvature(curvature)]
