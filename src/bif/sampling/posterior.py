"""The local posterior that the chains sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from bif import tensors
from bif.sampling.whole_model import WHOLE
from bif.types import Params

_SLICED = re.compile(r"(.+)\[([\d:, ]*:[\d:, ]*)\]")
"""A glob and a region of the leaves that it matches; no character class has a colon."""


@dataclass(frozen=True)
class LocalPosterior:
    """The tempered posterior, held near the trained weights by a Gaussian.

    `p(w) ∝ exp(-U(w))` with
    `U(w) = nbeta * L(w) + (gamma / 2) * |w - center|² + nbeta * (weight_decay / 2) * |w|²`,
    where L is the (weighted) mean loss of the train items and norms run over movable weights.
    Where the problem has a metric, w are its coordinates (`bif.problem.metric`).

    Args:
        center: Trained weights w*, leaves `[*shape]`; must hold at least one movable leaf.
        nbeta: Inverse temperature times the number of items; n is the untempered posterior, of
            losses that are an item's negative log-likelihood.
        gamma: Precision of the Gaussian around w*, in units of U's curvature.
        movable: Globs of parameter names such as `"layers.0.*"`, with slices at their end
            (`"*.q_proj.weight[0:64]"`, `"*.o_proj.weight[:,0:64]"`) for a part of each, or a
            mapping from parameter names to True or to a boolean mask `[*shape]`.  Everything
            else stays at w*.
        weight_decay: Coefficient of `|w|²/2` in the training objective; 0 leaves it out of U.
        decay_origin: Weights at which the decay pulls no further, leaves `[*shape]`; 0 by default.
        copies_center: False takes the tensors of `center` as they are: they must not change.
        total: Sum of a tensor over the shards of a model of which `center` holds some rows.

    Attributes:
        num_moving: Number of weights that move, of all shards.

    Raises:
        ValueError: Nothing movable, a glob or name that matches nothing, a mask of another shape,
            slices beyond a shape, a parameter that is not floating point, a negative nbeta, gamma
            or weight decay.

    Source: Kreer et al. 2025 (arXiv 2509.26544), the localised posterior; Lau et al. 2025.
    """

    center: Params
    nbeta: float
    gamma: float
    movable: Sequence[str] | Mapping[str, bool | Tensor] = ("*",)
    weight_decay: float = 0.0
    decay_origin: Params | None = None
    copies_center: bool = True
    total: Callable[[Tensor], Tensor] = field(default=WHOLE.total, repr=False, compare=False)
    masks: Params = field(init=False, repr=False)
    num_moving: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("nbeta", "gamma", "weight_decay"):
            value = getattr(self, name)
            if not (value >= 0 and value < float("inf")):
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}.")
        if self.nbeta == 0 and self.gamma == 0:
            raise ValueError(
                "nbeta and gamma are both 0: the posterior is flat and the chains would wander "
                "off. Set gamma > 0, or nbeta > 0, or both."
            )
        chosen = choose(self.center, self.movable)
        center = {n: self.center[n].detach() for n in chosen}
        if self.copies_center:
            center = {n: leaf.clone() for n, leaf in center.items()}
        object.__setattr__(self, "center", center)
        masks = {n: m for n, m in chosen.items() if m is not None}
        object.__setattr__(self, "masks", masks)
        here = sum(c.numel() for n, c in center.items() if n not in masks)
        here += sum(int(m.sum()) for m in masks.values())
        object.__setattr__(self, "num_moving", int(self.total(torch.tensor(here))))

    def potential_gradient_(self, mean_loss_gradient: Params, params: Params) -> Params:
        """Turn the mean loss's gradient into the potential's, in place.

        `∇U = nbeta * (∇L + weight_decay * w) + gamma * (w - center)`, 0 where nothing may move.

        Args:
            mean_loss_gradient: ∇L of all leaves or some, `[C, *shape]`; overwritten.
            params: w, the same leaves.
        """
        gradient = tensors.mul_(mean_loss_gradient, self.nbeta)
        tensors.add_(gradient, self.displacement(params), self.gamma)
        self.add_decay_(gradient, params, self.nbeta)
        return self.masked_(gradient)

    def masked_(self, leaves: Params) -> Params:
        """Set what belongs to weights that may not move to 0, in place."""
        for name in leaves.keys() & self.masks.keys():
            leaves[name].mul_(self.masks[name])
        return leaves

    def add_decay_(self, gradient: Params, params: Params, factor: float = 1.0) -> None:
        """Add the weight decay's gradient times a factor, in place: `weight_decay * w`."""
        if not self.weight_decay:
            return
        tensors.add_(gradient, params, factor * self.weight_decay)
        if self.decay_origin is not None:
            origin = {n: self.decay_origin[n].expand_as(g) for n, g in gradient.items()}
            tensors.add_(gradient, origin, -factor * self.weight_decay)

    def potential(self, mean_loss: Tensor, params: Params) -> Tensor:
        """Return `U(w)` of each chain, `[C]`, from its mean loss `[C]`."""
        value = self.nbeta * mean_loss.double() + 0.5 * self.gamma * self.distance_squared(params)
        if self.weight_decay:
            value = value + 0.5 * self.nbeta * self.weight_decay * self._squared_norm(params)
        return value

    def _squared_norm(self, params: Params) -> Tensor:
        """Return `|w|²` over the weights that move, `[C]`."""
        origin = self.decay_origin
        away = params if origin is None else {n: leaf - origin[n] for n, leaf in params.items()}
        moving = {n: leaf * self.masks[n] if n in self.masks else leaf for n, leaf in away.items()}
        return self.total(tensors.squared_norm(moving))

    def inner(self, x: Params, y: Params) -> Tensor:
        """Return each chain's inner product of two vectors of weights, `[C]`, in float64."""
        return self.total(tensors.inner(x, y))

    def displacement(self, params: Params) -> Params:
        """Return `w - center`, leaves `[C, *shape]`."""
        return tensors.difference(params, {n: self.center[n].unsqueeze(0) for n in params})

    def distance_squared(
        self, params: Params, of_leaf: Callable[[Tensor, Tensor], Tensor] = tensors.squared_distance
    ) -> Tensor:
        """Return `|w - center|²` of each chain, `[C]`.

        Args:
            params: w.
            of_leaf: Function of one leaf `[C, *shape]` and its center `[1, *shape]`.
        """
        # Leaf by leaf: all displacements at once would be another model.
        parts = [of_leaf(leaf, self.center[name].unsqueeze(0)) for name, leaf in params.items()]
        return self.total(torch.stack(parts).sum(dim=0))


def choose(
    center: Params, movable: Sequence[str] | Mapping[str, bool | Tensor]
) -> dict[str, Tensor | None]:
    """Return the movable names in the model's order, each with its mask or None.

    Args:
        center: Weights by name; values do not matter.
        movable: Globs as for `LocalPosterior`.

    Raises:
        ValueError: As for `LocalPosterior`, of what is movable.
    """
    known = ", ".join(list(center)[:8]) + (", …" if len(center) > 8 else "")
    if isinstance(movable, Mapping):
        named = movable
    else:
        named = _matching(center, [movable] if isinstance(movable, str) else movable, known)
    unknown = [name for name in named if name not in center]
    if unknown:
        raise ValueError(f"movable names unknown parameters {unknown}. The model has: {known}.")
    chosen: dict[str, Tensor | None] = {}
    for name in center:
        value = named.get(name, False)
        if isinstance(value, Tensor):
            if value.shape != center[name].shape or value.dtype != torch.bool:
                raise ValueError(
                    f"the mask of {name!r} must be bool {tuple(center[name].shape)}, got "
                    f"{value.dtype} {tuple(value.shape)}."
                )
            if value.any():
                chosen[name] = value.to(center[name].device)
        elif value:
            chosen[name] = None
    if not chosen:
        raise ValueError(
            f"no movable parameter: movable={movable!r} leaves nothing to sample. Name at least "
            f"one of: {known}."
        )
    for name in chosen:
        if not center[name].is_floating_point() or center[name].dtype.itemsize < 2:
            raise ValueError(
                f"parameter {name!r} is {center[name].dtype}, which cannot be sampled. Sampling "
                "needs floating-point weights: load the model unquantised, or leave the parameter "
                "out with movable=[…]."
            )
    return chosen


def _matching(center: Params, patterns: Sequence[str], known: str) -> dict[str, bool | Tensor]:
    """Return names that the patterns match: True for whole leaves, masks for parts."""
    found: dict[str, bool | Tensor] = {}
    for pattern in patterns:
        sliced = _SLICED.fullmatch(pattern)
        glob = sliced[1] if sliced else pattern
        names = [name for name in center if fnmatchcase(name, glob)]
        if not names:
            raise ValueError(
                f"movable pattern {pattern!r} matches no parameter. The model has: {known}."
            )
        for name in names:
            if sliced is None:
                found[name] = True
                continue
            shape = center[name].shape
            mask = found.setdefault(name, torch.zeros(shape, dtype=torch.bool))
            if isinstance(mask, Tensor):
                mask[_region(sliced[2], shape, pattern=pattern, name=name)] = True
    return found


def _region(words: str, shape: torch.Size, *, pattern: str, name: str) -> tuple[slice, ...]:
    """Return slices such as `:, 0:64`, one an axis from the first on."""
    matches = [re.fullmatch(r"(\d*):(\d*)", word.strip()) for word in words.split(",")]
    region = [slice(int(m[1] or 0), int(m[2]) if m[2] else None) for m in matches if m]
    fits = len(region) == len(matches) <= len(shape) and all(
        part.start < (size if part.stop is None else part.stop) <= size
        for part, size in zip(region, shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"movable pattern {pattern!r} does not fit {name!r} {tuple(shape)}: expected slices "
            "START:STOP inside of it, one an axis."
        )
    return tuple(region)
