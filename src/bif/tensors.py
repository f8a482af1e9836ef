"""Operate on dictionaries of chain-stacked tensors, as the only user of `torch._foreach_*`.

A verb that ends in `_` writes into its first argument and returns it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bif.types import Params


def _aligned(x: Params, y: Params) -> tuple[list[Tensor], list[Tensor]]:
    return list(x.values()), [y[name] for name in x]


def add_(x: Params, y: Params, scale: float = 1.0) -> Params:
    """Add in place: `x += scale * y`."""
    leaves, others = _aligned(x, y)
    torch._foreach_add_(leaves, others, alpha=scale)
    return x


def mul_(x: Params, factor: float) -> Params:
    """Multiply in place: `x *= factor`."""
    torch._foreach_mul_(list(x.values()), factor)
    return x


def add_product_(x: Params, y: Params, z: Params, scale: float = 1.0) -> Params:
    """Add in place `x += scale * y * z`, leaf by leaf."""
    leaves, others = _aligned(x, y)
    torch._foreach_addcmul_(leaves, others, [z[name] for name in x], value=scale)
    return x


def scale_chains_(x: Params, factor_C: Tensor) -> Params:
    """Multiply in place `x[c] *= factor_C[c]` for every chain c."""
    for leaf in x.values():
        leaf.mul_(factor_C.to(leaf.dtype).view(-1, *[1] * (leaf.dim() - 1)))
    return x


def difference(x: Params, y: Params) -> Params:
    """Return `x - y`; a leaf of y may have a chain axis of length 1."""
    leaves, others = _aligned(x, y)
    return dict(zip(x, torch._foreach_sub(leaves, others), strict=True))


def copied(x: Params) -> Params:
    """Return a copy in fresh contiguous memory."""
    return {
        name: leaf.detach().clone(memory_format=torch.contiguous_format) for name, leaf in x.items()
    }


def zeros_like(x: Params) -> Params:
    """Return zeros in the shapes of x."""
    return {name: torch.zeros_like(leaf) for name, leaf in x.items()}


def stacked(x: Params, num_chains: int) -> Params:
    """Return leaves `[*shape]` as fresh leaves `[num_chains, *shape]`, every chain the same."""
    return {
        name: leaf.detach().unsqueeze(0).expand(num_chains, *leaf.shape).clone()
        for name, leaf in x.items()
    }


def chain(x: Params, index: int) -> Params:
    """Return the leaves `[*shape]` of one chain: views, not copies."""
    return {name: leaf[index] for name, leaf in x.items()}


def squared_norm(x: Params) -> Tensor:
    """Return each chain's sum of squares `[C]`: rows in the leaf's precision, then float64."""
    parts = []
    for leaf in x.values():
        rows = leaf.reshape(len(leaf), leaf.shape[1] if leaf.dim() > 2 else 1, -1)
        parts.append(torch.linalg.vector_norm(rows, dim=2).double().square().sum(dim=1))
    return torch.stack(parts).sum(dim=0)


def squared_distance(leaf: Tensor, other: Tensor) -> Tensor:
    """Return each chain's sum of squares of `leaf - other`, `[C]`, as in `squared_norm`."""
    return squared_norm({"": leaf - other})


def inner(x: Params, y: Params) -> Tensor:
    """Return each chain's inner product, `[C]`, accumulated in float64."""
    leaves, others = _aligned(x, y)
    parts = [
        (a * b).reshape(len(a), -1).sum(dim=1, dtype=torch.float64)
        for a, b in zip(leaves, others, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


def num_elements(x: Params) -> int:
    """Return the weights per chain of leaves `[C, *shape]`."""
    return sum(leaf[0].numel() for leaf in x.values())


def dense(leaf: Tensor) -> Tensor:
    """Return the leaf, dense where it is sparse, as gradients of embeddings are."""
    return leaf if leaf.layout == torch.strided else leaf.to_dense()


def apart(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return leaves that may each be overwritten.

    Copied are those in the memory of an earlier one, and those of which several numbers are one.
    Where two parameters are added, one of them reshaped or the whole compiled, autograd hands out
    their equal gradients as two tensors in one place, and the gradient of a sum as one number.
    """
    seen: set[int] = set()
    found = []
    for leaf in leaves:
        storage = leaf.untyped_storage().data_ptr()
        steps = zip(leaf.shape, leaf.stride(), strict=True)
        repeated = any(length > 1 and step == 0 for length, step in steps)
        shared = storage in seen or repeated
        found.append(leaf.clone(memory_format=torch.contiguous_format) if shared else leaf)
        seen.add(storage)
    return found
