"""Products of the curvature of the mean train loss with many vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif import tensors
from bif.curvature.attention import DifferentiableAttention
from bif.curvature.outputs import Criterion, SplitLoss
from bif.curvature.rows import RowsTogether
from bif.problem.functional import ItemFunction
from bif.problem.items import to_device
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.types import Batch, Params

Curvature = Literal["gauss_newton", "hessian"]
"""The generalised Gauss-Newton matrix `(1/n) Σ rho_i Jᵢᵀ ∇²l Jᵢ`, or the Hessian."""
_Product = Callable[[Params, Tensor | None], Params]
"""Of rows' leaves `[K, *shape]`, and factors of the items `[K, B]` if any."""
_FACTORS = ""
"""The name of a row's factors beside its leaves."""
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

    Gauss-Newton products are a forward derivative of the outputs and a backward one; where an
    operation knows no forward derivative, the backward pass is differentiated in its place.
    Hessian products differentiate backward twice.

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
        self._compute = compute_dtype
        self._together, self.num_products = RowsTogether(num_together), 0
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
        self._along = AlongDirections()
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
            product, start = self._of_chunk(number, share, batch), 0
            factors = None
            if item_weights is not None:
                factors = item_weights[:, first : first + len(share)].to(share)
            first += len(share)

            def some(
                part: slice, product: _Product = product, factors: Tensor | None = factors
            ) -> Params:
                here = None if factors is None else factors[part]
                return product(split_rows(rows[part], self.params), here)

            for part in self._together.map(some, len(rows)):
                count = len(next(iter(part.values())))
                for name, leaf in part.items():  # not joined: rows may be as large as the model
                    sums[name][start : start + count] += leaf
                start += count
        return total if self._scale is None else total.mul_(self._scale)

    def _of_chunk(self, number: int, share: Tensor, batch: Batch) -> _Product:
        """Return the product of rows' leaves `[K, *shape]` with a chunk's part of C."""
        return (
            self._hessian(share, batch)
            if self._split is None
            else self._rooted(self._split, self._root(self._split, number, batch), share, batch)
        )

    def _hessian(self, share: Tensor, batch: Batch) -> _Product:
        losses = _Losses(ItemFunction(self.model, self._problem.loss), self._compute)

        def total(params: Params, share: Tensor) -> Tensor:
            values = functional_call(losses, _prefixed(params, "inner.model."), (batch,))
            return (share * values).sum()

        pull = vjp(grad(partial(total, share=share)), self.params)[1]

        def product(leaves: Params, factors: Tensor | None) -> Params:
            if factors is None:
                return map_rows(lambda v: pull(v)[0], leaves)

            def weighted(row: Params) -> Params:
                of_row = partial(total, share=share * row.pop(_FACTORS))
                return vjp(grad(of_row), self.params)[1](row)[0]

            return map_rows(weighted, {**leaves, _FACTORS: factors})

        return product

    def _rooted(self, split: SplitLoss, root: Tensor, share: Tensor, batch: Batch) -> _Product:
        outputs = RootedOutputs(self.model, split, self._compute)
        given = {"weights": share.sqrt(), "batch": batch, "root": root}

        def rooted(params: Params) -> Tensor:
            return functional_call(outputs, _prefixed(params, "model."), (given,))

        pull = vjp(rooted, self.params)[1]

        def product(leaves: Params, factors: Tensor | None) -> Params:
            pushed = self._along(rooted, self.params, leaves)
            if factors is not None:
                pushed = pushed * factors.unsqueeze(2)
            return map_rows(lambda u: pull(u)[0], pushed)

        return product

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


class AlongDirections:
    """Derivatives of a function of weights along directions: J v of each row v.

    Attributes:
        forward: Whether forward differentiation is tried first; where an operation knows none, the
            map `u -> Jᵀ u` is differentiated backward from then on.
    """

    def __init__(self) -> None:
        self.forward = True

    def __call__(
        self, function: Callable[[Params], Tensor], center: Params, directions: Params
    ) -> Tensor:
        """Return `[K, *outputs]` of directions with leaves `[K, *shape]`."""
        if self.forward:
            try:
                return map_rows(lambda v: jvp(function, (center,), (v,))[1], directions)
            except (NotImplementedError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "forward" not in str(error):
                    raise
                self.forward = False
        out, pull = vjp(function, center)[:2]
        push = vjp(lambda u: pull(u)[0], torch.zeros_like(out))[1]
        return map_rows(lambda v: push(v)[0], directions)


class RootedOutputs(nn.Module):
    """`sqrt(rho_i / n) · Sᵀ f`, `[B, K]`: half its square curves like the mean loss."""

    def __init__(
        self, model: nn.Module, split: SplitLoss, compute_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.model, self._compute = model, compute_dtype
        self._of = lambda x: split.apply_root(split.outputs(x["batch"]), x["root"])

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        with differentiable(x["root"].device, self._compute):
            return x["weights"].unsqueeze(1) * self._of(x)


class _Losses(nn.Module):
    """Item losses."""

    def __init__(self, inner: ItemFunction, compute_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.inner, self._compute = inner, compute_dtype

    def forward(self, batch: Batch) -> Tensor:
        device = next(self.inner.parameters()).device
        with differentiable(device, self._compute):
            return self.inner(batch)


@contextmanager
def differentiable(device: torch.device, compute_dtype: torch.dtype | None) -> Iterator[None]:
    """Let attention have all derivatives and, if given, matrices be multiplied in another dtype."""
    # The cache of autocast would hold casts of weights that functorch has wrapped.
    narrow = torch.autocast(
        device.type, compute_dtype, enabled=compute_dtype is not None, cache_enabled=False
    )
    # Torch's own modules call attention within functions that the mode sees as a whole, and have a
    # fused forward pass where no weight requires a gradient.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), DifferentiableAttention(), narrow:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


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


def map_rows(function: Callable[[Any], Any], rows: Any) -> Any:
    """Return `function` of every row of a tensor or of leaves, together, or else one by one.

    `vmap` refuses some operations of some models; a model that it refuses is only slower.
    """
    try:
        return vmap(function)(rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "forward" in str(error) and "AD" in str(error):
            raise
    leaves = rows if isinstance(rows, dict) else {"": rows}
    count = len(next(iter(leaves.values())))
    each = ({n: leaf[k] for n, leaf in leaves.items()} for k in range(count))
    found = [function(one if isinstance(rows, dict) else one[""]) for one in each]
    if isinstance(found[0], dict):
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}
    return torch.stack(found)


def _prefixed(params: Params, prefix: str) -> Params:
    return {f"{prefix}{name}": leaf for name, leaf in params.items()}


def curvature_in_words(curvature: str) -> str:
    """Return the name of a curvature for people."""
    names = dict(zip(get_args(Curvature), ("Gauss-Newton matrix", "Hessian"), strict=True))
    return names[require_curvature(curvature)]
