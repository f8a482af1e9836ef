"""SOURCE: influence by unrolled differentiation, with training cut into stationary segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bif.baselines.ekfac import EKFAC
from bif.baselines.exact import dense_curvature
from bif.baselines.fitted import require_damping, require_same_fit
from bif.baselines.layers import OtherLayers
from bif.curvature.fisher import FisherType
from bif.curvature.outputs import Criterion
from bif.problem.checkpoints import (
    Checkpoint,
    at_checkpoint,
    duration_shares,
    require_checkpoints,
)
from bif.problem.literals import require_literal
from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import item_gradient_chunks, query_gradient_blocks

SourceCurvature = Literal["ekfac", "gauss_newton"]
"""EK-FAC's approximation of the Gauss-Newton matrix, or the matrix itself."""


@dataclass(frozen=True, eq=False)
class _Dense:
    """A matrix by its eigenvalues `[P]` and eigenvectors `[P, P]`, float64."""

    names: list[str]
    eigenvalues: Tensor
    eigenvectors: Tensor

    def apply_function(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        along = rows.double() @ self.eigenvectors
        return (along * function(self.eigenvalues)) @ self.eigenvectors.T


@dataclass(frozen=True)
class _Segment:
    """Consecutive checkpoints, and the mean curvature over them."""

    checkpoints: Sequence[Checkpoint]
    curvature: EKFAC | _Dense

    @property
    def duration(self) -> float:
        """Learning rate times steps of the segment, in 1/curvature."""
        return sum(one.duration for one in self.checkpoints)


class Source:
    """`-Σ_s g_phiᵀ S_L ⋯ S_{s+1} F_s ḡ_{i,s}` over the segments s = 1, …, L of training.

    With C_s the mean curvature of a segment plus the damping, ḡ_{i,s} the mean gradient of an item,
    both over the segment's checkpoints by learning rate times steps, and `t_s` the sum of learning
    rate times steps:

        S_s = exp(-t_s C_s)                    what the segment's steps leave of an earlier change
        F_s = (I - exp(-t_s C_s)) C_s⁻¹        what its steps on one item add up to

    This is the derivative of the observable at the end of training by the item's weight in the mean
    loss, times n, for gradient descent whose gradients and curvature are constant in a segment.
    One long segment at w* is `-g_phiᵀ C⁻¹ g_i`, classical influence; without curvature it is the
    sum of TracIn, with the query's gradient at the end.

        fitted = Source.fit(problem, checkpoints)
        fitted.scores(problem, damping=weight_decay)

    Source: Bae et al. 2024, "Training Data Attribution via Approximate Unrolled Differentiation"
    (arXiv 2405.12186).  Unlike there, means are weighted by learning rate times steps.
    """

    def __init__(self, problem: Problem, segments: Sequence[_Segment]) -> None:
        self._problem, self._segments = problem, tuple(segments)

    @classmethod
    def fit(
        cls,
        problem: Problem,
        checkpoints: Sequence[Checkpoint],
        *,
        num_segments: int = 3,
        curvature: SourceCurvature = "ekfac",
        criterion: Criterion | None = None,
        fisher_type: FisherType = "type-2",
        other_layers: OtherLayers = "refuse",
        num_samples: int = 1,
        seed: int = 0,
    ) -> Source:
        """Compute the mean curvature of every segment.

        Args:
            problem: Model at the end of training, loss and train items.
            checkpoints: Weights on the way of training, in its order, each with the learning rate
                and the number of steps that it stands for.
            num_segments: Number of segments L, of as many checkpoints each as can be.
            curvature: "ekfac", or "gauss_newton" with its dense eigendecomposition in float64: at
                most 30,000 weights, and sensible up to some 5,000.
            criterion: How the loss curves in the model's outputs: "cross_entropy" (a softmax over
                the last axis) or "squared_error".  Found by default.
            fisher_type: For "ekfac", as for `EKFAC.fit`, and so are the others.
            other_layers: For "ekfac": weights outside of Linear and Conv2d layers.
            num_samples: For "ekfac" and "mc".
            seed: For "ekfac" and "mc".

        Raises:
            ValueError: No checkpoint, or one of another model; fewer checkpoints than segments;
                what `EKFAC.fit` refuses; too many weights, or a loss that cannot be split, for
                "gauss_newton".
            TypeError: One that is no `Checkpoint`.
            ImportError: For "ekfac", the extra `baselines` is not installed.
        """
        require_literal("curvature", curvature, SourceCurvature)
        require_checkpoints(problem, checkpoints)
        if not 1 <= num_segments <= len(checkpoints):
            raise ValueError(
                f"num_segments is {num_segments}; expected 1 to {len(checkpoints)}, the number of "
                "checkpoints."
            )
        segments = []
        for places in np.array_split(np.arange(len(checkpoints)), num_segments):
            own = [checkpoints[i] for i in places]
            segments.append(
                _Segment(
                    own,
                    _dense_mean(problem, own, criterion)
                    if curvature == "gauss_newton"
                    else EKFAC.fit(
                        problem, checkpoints=own, criterion=criterion, fisher_type=fisher_type,
                        other_layers=other_layers, num_samples=num_samples, seed=seed,
                    ),
                )
            )  # fmt: skip
        return cls(problem, segments)

    def scores(
        self, problem: Problem, *, damping: float = 0.0, observable: str | None = None
    ) -> Tensor:
        """Return the scores of any queries at any damping.

        Args:
            problem: The one that was fitted, or one that differs in queries and observables.
            damping: What is added to the curvature of the mean loss.  The weight decay of training
                is such a term; the method itself needs none.
            observable: Name of one of the problem's observables; the first by default.

        Returns:
            `[Q, N]` on the CPU, in float64.

        Raises:
            KeyError: No such observable.
            ValueError: Another model or train items; a negative damping.
        """
        require_same_fit(self._problem, problem)
        require_damping(damping)
        function = find_observable(problem, observable).function
        names = self._segments[-1].curvature.names
        blocks = []
        for rows in query_gradient_blocks(problem, function, movable=names):
            block = torch.zeros(len(rows), problem.num_train, dtype=torch.float64)
            for segment in reversed(self._segments):
                apply = segment.curvature.apply_function
                given = {"damping": damping, "duration": segment.duration}
                block -= _mean_products(problem, segment, apply(rows, partial(_gained, **given)))
                rows = apply(rows, partial(_kept, **given))
            blocks.append(block)
        return torch.cat(blocks)


def _kept(eigenvalues: Tensor, *, damping: float, duration: float) -> Tensor:
    """Return `exp(-t (σ + damping))`."""
    return torch.exp(-duration * (eigenvalues + damping))


def _gained(eigenvalues: Tensor, *, damping: float, duration: float) -> Tensor:
    """Return `(1 - exp(-t (σ + damping))) / (σ + damping)`, t where that is 0/0."""
    values = eigenvalues + damping
    flat = values == 0
    return torch.where(flat, duration, -torch.expm1(-duration * values) / (values + flat))


def _mean_products(problem: Problem, segment: _Segment, left: Tensor) -> Tensor:
    """Return products of rows `[Q', P]` with the items' mean gradients, `[Q', N]` on the CPU."""
    total = torch.zeros(len(left), problem.num_train, dtype=torch.float64)
    shares = duration_shares(segment.checkpoints)
    for checkpoint, share in zip(segment.checkpoints, shares, strict=True):
        here = at_checkpoint(problem, checkpoint)
        chunks = item_gradient_chunks(here, here.loss, here.train, movable=segment.curvature.names)
        parts = [(left @ rows.to(left.dtype).T).double().cpu() for rows in chunks]
        total += share * torch.cat(parts, dim=1)
    return total


def _dense_mean(
    problem: Problem, checkpoints: Sequence[Checkpoint], criterion: Criterion | None
) -> _Dense:
    """Return the mean Gauss-Newton matrix over checkpoints."""
    total = None
    for checkpoint, share in zip(checkpoints, duration_shares(checkpoints), strict=True):
        own = share * dense_curvature(at_checkpoint(problem, checkpoint), "gauss_newton", criterion)
        total = own if total is None else total + own
    assert total is not None
    return _Dense(list(problem.trainable), *torch.linalg.eigh(total))
