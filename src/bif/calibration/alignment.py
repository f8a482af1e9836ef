"""Choose how far to damp where the items' gradients are nearly orthogonal.

Noise in a covariance of N effective draws has variance `Var(l_i)·Var(phi) / N`, so scores of items
that hardly share a direction need many draws, the more so the less these directions are damped:
curvature along an item's own gradient quiets just what of it a query could see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bif.estimate.correlation import correlation
from bif.problem.items import Items
from bif.sampling.oracles import Oracle
from bif.types import Params

FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Factors by which the usual damping may be raised."""
EFFECTIVE_DRAWS = 4000
"""Effective draws of a default run: about a third of its draws."""
NUM_ITEMS = 48
"""Items whose gradients are compared: their gradients are taken one by one."""
FEWEST_ITEMS = 8
"""Items below which no damping is chosen: a median over fewer tells nothing."""
_NEARLY = 0.02
"""Part of the best quality that is given up for less damping."""
_SKETCHED = 2**20
"""Length of a sketch; longer gradients are sketched to it to bound the memory."""


class Damping(NamedTuple):
    """The effect of a factor on the usual damping.

    Attributes:
        factor: On the usual damping.
        draws_for_half: Effective draws for scores of a reliability of one half.
        agreement: Correlation of the scores with those of the usual damping, noise apart.
    """

    factor: float
    draws_for_half: float
    agreement: float

    @property
    def quality(self) -> float:
        """Return the expected correlation with noiseless scores of the usual damping."""
        reliability = EFFECTIVE_DRAWS / (EFFECTIVE_DRAWS + self.draws_for_half)
        return self.agreement * reliability**0.5


def best_damping(dampings: Sequence[Damping]) -> Damping:
    """Return the smallest factor whose quality is nearly the best."""
    # F, the mean of g gᵀ, may be less than the curvature is: less damping is the safer choice.
    best = max(d.quality for d in dampings)
    return min((d for d in dampings if d.quality >= (1 - _NEARLY) * best), key=lambda d: d.factor)


def dampings(gradients_IK: Tensor, *, usual: float, num_train: int) -> list[Damping]:
    """Return what each of `FACTORS` does, by the gradients of a few train items at w*.

    With `A = F + damping`, F the mean of `g gᵀ` over the items, a query's scores to first order
    are `K_i = g_phiᵀ A⁻¹ g_i`, and a draw's signal is `s = Var_i(K_i) / (mean_i(g_iᵀ A⁻¹ g_i) ·
    g_phiᵀ A⁻¹ g_phi)`: 1/s effective draws have a reliability of one half.  Each item stands for a
    query in its turn, left out of F, where each other item counts as one of `num_train`.

    Args:
        gradients_IK: Of at least three items, or sketches that keep their inner products.
        usual: gamma/nbeta and weight decay, in units of the mean loss's curvature.
        num_train: All train items.
    """
    gram = gradients_IK.double() @ gradients_IK.double().T
    found: list[Damping] = []
    first: Tensor | None = None
    for factor in FACTORS:
        rows = [
            _row(gram, j, damping=factor * usual, num_train=num_train) for j in range(len(gram))
        ]
        signal = float(torch.stack([s for _, s in rows]).median())
        scores = torch.stack([row for row, _ in rows])
        first = scores if first is None else first
        agreements = torch.from_numpy(correlation(scores, first)).nan_to_num()
        found.append(Damping(factor, 1 / max(signal, 1e-12), float(agreements.median())))
    return found


def _row(gram: Tensor, query: int, *, damping: float, num_train: int) -> tuple[Tensor, Tensor]:
    """Return one item's scores for the others, and the signal of a draw."""
    others = torch.arange(len(gram)) != query
    inside, cross, count = gram[others][:, others], gram[query, others], len(gram) - 1
    # (Gᵀ G / count + damping)⁻¹ between gradients, by matrices of the number of items.
    inverse = torch.linalg.inv(inside / count + damping * torch.eye(count, dtype=gram.dtype))
    scores, own = cross @ inverse, (inside @ inverse).diagonal()
    of_query = (gram[query, query] - scores @ cross / count) / damping
    # An item is one of `num_train`, not of `count`: the rest of its share is taken out of F.
    excess = max(1 / count - 1 / num_train, 0.0)
    scores, own = scores / (1 - excess * own), own / (1 - excess * own)
    return scores, scores.var() / (own.mean() * of_query).clamp(min=1e-300)


def gradient_sketches(
    oracle: Oracle, params: Params, items: Items, indices: Sequence[int], *, masks: Params
) -> Tensor:
    """Return the gradients of single items at one chain's weights, `[I, K]`, sketched if long.

    Args:
        oracle: Source of gradients.
        params: w, leaves `[1, *shape]`.
        items: The train items, on the chain's device.
        indices: Positions of the items whose gradients are wanted.
        masks: Boolean masks `[*shape]` of leaves that move only in part.
    """
    rows = []
    for i in indices:
        batch = items.take(torch.tensor([i]))
        weight = next(iter(params.values())).new_ones(1)
        gradient, _ = oracle.gradient(params, batch, weight, per_chain=False)
        moving = {n: leaf * masks[n] if n in masks else leaf for n, leaf in gradient.items()}
        rows.append(_sketch(moving))
    return torch.stack(rows)


def _sketch(gradient: Params) -> Tensor:
    """Return the gradient as one vector, or its sums with random signs where it is long."""
    # E[s(x)·s(y)] = x·y: a sketch keeps inner products.
    total = sum(leaf.numel() for leaf in gradient.values())
    leaves = list(gradient.values())
    if total <= _SKETCHED:
        return torch.cat([leaf.flatten().float() for leaf in leaves]).cpu()
    device = leaves[0].device
    source, place = torch.Generator(device).manual_seed(0), 0
    sums = torch.zeros(_SKETCHED, device=device)
    for leaf in leaves:
        signs = torch.randint(
            0, 2, (leaf.numel(),), generator=source, device=device, dtype=torch.int8
        )
        signed = leaf.flatten().float() * (2 * signs - 1)
        while len(signed):
            part, signed = signed[: _SKETCHED - place], signed[_SKETCHED - place :]
            sums[place : place + len(part)] += part
            place = (place + len(part)) % _SKETCHED
    return sums.cpu()
