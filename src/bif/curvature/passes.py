"""One pass of rows and items through a model: what a product with the curvature is summed of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif.curvature.attention import DifferentiableAttention
from bif.curvature.outputs import SplitLoss
from bif.problem.functional import ItemFunction
from bif.types import Batch, ItemLoss, Params

MOST_BYTES = 2**34
"""Of the rows of a pass that a CUDA graph has a copy of."""
_FACTORS = ""
"""The name of a row's factors beside its leaves."""


class GaussNewtonPass:
    """Rows times the part of the Gauss-Newton matrix of some items.

    A forward derivative of the outputs and a backward one; where an operation knows no forward
    derivative, the backward pass is differentiated in its place.

    Args:
        model: At `params`.
        split: Its loss.
        params: Weights whose curvature it is.
        compute_dtype: What matrices are multiplied in.
    """

    def __init__(
        self, model: nn.Module, split: SplitLoss, params: Params, compute_dtype: torch.dtype | None
    ) -> None:
        self._outputs = RootedOutputs(model, split, compute_dtype)
        self._params, self._along = params, AlongDirections()

    def __call__(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the products, leaves `[K, *shape]`.

        Args:
            given: Leaves of "rows"; `rho_i / n` as "share" `[B]`, the "batch", the "root" of their
                losses, and factors of the items for each row, "factors" `[K, B]`, if any.
        """
        share = given["share"].sqrt()
        here = {"weights": share, "batch": given["batch"], "root": given["root"]}

        def rooted(params: Params) -> Tensor:
            return functional_call(self._outputs, _prefixed(params, "model."), (here,))

        pushed = self._along(rooted, self._params, given["rows"])
        if "factors" in given:
            pushed = pushed * given["factors"].unsqueeze(2)
        pull = vjp(rooted, self._params)[1]
        return tuple(map_rows(lambda u: pull(u)[0], pushed).values())


class HessianPass:
    """Rows times the part of the Hessian of some items; backward is differentiated twice.

    Args:
        model: At `params`.
        loss: Of an item.
        params: Weights whose curvature it is.
        compute_dtype: What matrices are multiplied in.
    """

    def __init__(
        self, model: nn.Module, loss: ItemLoss, params: Params, compute_dtype: torch.dtype | None
    ) -> None:
        self._losses = _Losses(ItemFunction(model, loss), compute_dtype)
        self._params = params

    def __call__(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the products, leaves `[K, *shape]`, of what a `GaussNewtonPass` is given."""
        share, batch, rows = given["share"], given["batch"], given["rows"]

        def slope(share: Tensor) -> Callable[[Params], Any]:
            def total(params: Params) -> Tensor:
                values = functional_call(self._losses, _prefixed(params, "inner.model."), (batch,))
                return (share * values).sum()

            return vjp(grad(total), self._params)[1]

        if "factors" not in given:
            pull = slope(share)
            return tuple(map_rows(lambda v: pull(v)[0], rows).values())

        def weighted(row: Params) -> Params:
            return slope(share * row.pop(_FACTORS))(row)[0]

        return tuple(map_rows(weighted, {**rows, _FACTORS: given["factors"]}).values())


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
