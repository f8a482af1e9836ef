"""Influence with eigenvalue-corrected Kronecker factors (EK-FAC), by curvlinops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from bif.baselines.fitted import require_same_fit, resolve_damping
from bif.baselines.kronecker import Factors, compute_factors, kronecker_operator, mean_of
from bif.baselines.layers import OtherLayers, kronecker_layers
from bif.curvature.fisher import FisherType
from bif.curvature.outputs import Criterion
from bif.curvature.products import first_items
from bif.problem.checkpoints import (
    Checkpoint,
    at_checkpoint,
    duration_shares,
    require_checkpoints,
)
from bif.problem.literals import require_literal
from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import (
    item_gradient_chunks,
    rows_that_fit,
    signed_products,
    trained,
)
from bif.sampling.posterior import LocalPosterior
from bif.types import Params


@dataclass(frozen=True)
class _Layer:
    """One layer's eigenbasis of gradient matrices `[out, in]`, the bias as a last column."""

    columns: tuple[slice, ...]  # of its weights in rows of gradients
    input_vectors: Tensor
    output_vectors: Tensor
    eigenvalues: Tensor

    def apply(self, rows: Tensor, values: Tensor) -> list[Tensor]:
        """Return `Q_G ((Q_Gᵀ G Q_A) · values) Q_Aᵀ`, split as the rows are."""
        out = len(self.output_vectors)
        parts = [rows[:, part].reshape(len(rows), out, -1) for part in self.columns]
        along = self.output_vectors.T @ torch.cat(parts, dim=2) @ self.input_vectors
        applied = self.output_vectors @ (along * values) @ self.input_vectors.T
        pieces = applied.split([part.shape[2] for part in parts], dim=2)
        return [piece.flatten(1) for piece in pieces]


@dataclass(frozen=True)
class _Diagonal:
    """Weights without factors, each with the mean square of the items' gradients along it."""

    columns: tuple[slice, ...]
    eigenvalues: Tensor

    def apply(self, rows: Tensor, values: Tensor) -> list[Tensor]:
        applied = torch.cat([rows[:, part] for part in self.columns], dim=1) * values
        return list(applied.split([part.stop - part.start for part in self.columns], dim=1))


class EKFAC:
    """`-g_iᵀ (F + damping·I)⁻¹ g_phi`, F the EK-FAC approximation of the mean loss's curvature.

    Layer by layer `F = (Q_A ⊗ Q_G) diag(eigenvalues) (Q_A ⊗ Q_G)ᵀ`, where Q_A and Q_G diagonalise
    the second moments of the layer's inputs (with a 1 for the bias) and output gradients, and the
    eigenvalues are the mean squares of the items' gradients in that basis: the diagonal of the
    Gauss-Newton matrix there, exactly, for "type-2".  So F has the Gauss-Newton matrix's trace,
    and equals its block where the block is a Kronecker product.  The damping is added to the
    corrected eigenvalues, not to the factors.

        fitted = EKFAC.fit(problem)
        fitted.scores(problem, damping_scale=1.0)

    Attributes:
        eigenvalues: The eigenvalues of every layer, by its name, `[out, in]`.
        names: Names of the parameters that count, in the model's order.

    Source: George et al. 2018 (arXiv 1806.03884); for influence Grosse et al. 2023 (arXiv
    2308.03296), eq. 21.
    """

    def __init__(
        self, problem: Problem, names: list[str], layers: Mapping[str, _Layer | _Diagonal]
    ) -> None:
        self.eigenvalues = {name: layer.eigenvalues for name, layer in layers.items()}
        self._problem, self.names, self._layers = problem, names, layers

    @property
    def mean_eigenvalue(self) -> float:
        """The mean eigenvalue of all layers together."""
        values = [layer.eigenvalues.double() for layer in self._layers.values()]
        return float(sum(v.sum() for v in values) / sum(v.numel() for v in values))

    @classmethod
    def fit(
        cls,
        problem: Problem,
        *,
        checkpoints: Sequence[Checkpoint] | None = None,
        fisher_type: FisherType = "type-2",
        criterion: Criterion | None = None,
        other_layers: OtherLayers = "refuse",
        movable: Sequence[str] | None = None,
        num_samples: int = 1,
        seed: int = 0,
        chunk_size: int | None = None,
    ) -> EKFAC:
        """Compute factors, then eigenvalues in their basis: two passes over the train items.

        The damping is isotropic: a metric of the problem is left out.

        Args:
            problem: Model, loss and train items.
            checkpoints: The curvature is the mean over these, by learning rate times steps,
                instead of the one at w*: Q_A and Q_G diagonalise the mean moments, and the
                eigenvalues are the means of the checkpoints' in that basis.
            fisher_type: "type-2": the exact Gauss-Newton matrix, one backward pass an output, at
                most 1,000; "mc": an unbiased estimate of it from `num_samples` backward passes,
                the one for tokens; "empirical": from the items' own loss gradients.
            criterion: How the loss curves in the model's outputs: "cross_entropy" (a softmax over
                the last axis) or "squared_error".  Found by default; "empirical" needs none.
            other_layers: Weights outside of Linear and Conv2d layers: "refuse" names them in an
                error; "leave_out" scores without them, as other tools do without a word;
                "diagonal" takes the mean squares of the items' gradients along them.
            movable: Globs of the parameters that count; by default all that the model does not
                freeze.
            num_samples: For "mc".
            seed: For "mc".
            chunk_size: Items a pass; by default as many as fit.

        Raises:
            ValueError: Layers that EK-FAC cannot take; a loss that cannot be split; too many
                outputs for "type-2"; no checkpoint, or one of another model.
            ImportError: The extra `baselines` is not installed.
        """
        require_literal("fisher_type", fisher_type, FisherType)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        problem = problem.with_metric(None)
        problems, shares = _problems_and_shares(problem, checkpoints)
        posterior = LocalPosterior(problem.center(), 1.0, 1.0, movable or trained(problem))
        if posterior.masks:
            raise ValueError(
                f"movable has slices of {sorted(posterior.masks)}, and EK-FAC takes whole "
                "parameters: leave the slices out."
            )
        chosen = posterior.center
        model = problem.evaluation_copy(problem.device).requires_grad_()
        layers = kronecker_layers(model, problem.loss, first_items(problem), chosen, other_layers)
        weights = {n for group in layers.values() for n in group}
        names = [name for name in chosen if name in weights]
        others = [name for name in chosen if name not in weights]
        operators = [
            kronecker_operator(
                one, names, fisher_type=fisher_type, criterion=criterion, num_samples=num_samples,
                seed=seed, chunk_size=chunk_size or rows_that_fit(chosen),
            )
            for one in problems
        ]  # fmt: skip
        factors = compute_factors(operators, shares, layers)
        found: dict[str, _Layer | _Diagonal] = {}
        if other_layers == "diagonal" and others:
            columns = _columns(chosen, list(chosen))
            found["weights without factors"] = _Diagonal(
                tuple(columns[name] for name in others),
                mean_of([_mean_squares(one, others) for one in problems], shares),
            )
            names = list(chosen)
        found |= _place(factors, layers, chosen, names)
        return cls(problem, names, found)

    def scores(
        self,
        problem: Problem,
        *,
        damping: float | None = None,
        damping_scale: float | None = None,
        observable: str | None = None,
    ) -> Tensor:
        """Return the scores of any queries at any damping.

        Args:
            problem: The one that was fitted, or one that differs in queries and observables.
            damping: Damping in units of the mean loss's curvature, the same for all layers.
            damping_scale: Instead, each layer's damping in units of its own mean eigenvalue; .1 is
                the usual default of others, and the best value differs by problem: tune it.
            observable: Name of one of the problem's observables; the first by default.

        Returns:
            `[Q, N]` on the CPU, in float64.

        Raises:
            ValueError: Another model or train items; both or neither of the dampings; no damping
                where an eigenvalue is 0.
        """
        problem = problem.with_metric(None)
        require_same_fit(self._problem, problem)
        dampings = self._dampings(damping, damping_scale)
        function = find_observable(problem, observable).function
        prepare = partial(self._apply_inverse, dampings=dampings)
        return signed_products(problem, function, movable=self.names, prepare=prepare)

    def apply_inverse(self, rows: Tensor, damping: float) -> Tensor:
        """Return `X (F + damping·I)⁻¹` of rows over the weights that count, `[K, P]`."""
        return self._apply_inverse(rows, dampings=self._dampings(damping, None))

    def apply_function(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `X f(F)` of rows over the weights that count, f a function of eigenvalues."""
        return self._apply(rows, [function(one.eigenvalues) for one in self._layers.values()])

    def require_all_weights(self) -> None:
        """Raise unless every weight that the model does not freeze counts.

        Raises:
            ValueError: Some were left out.
        """
        left_out = [name for name in self._problem.trainable if name not in self.names]
        if left_out:
            raise ValueError(
                f"EK-FAC was fitted without {', '.join(left_out[:5])} ({len(left_out)} in all), "
                "and a preconditioner takes all weights: fit it with other_layers='diagonal'."
            )

    def _apply_inverse(self, rows: Tensor, dampings: Sequence[float]) -> Tensor:
        layers = zip(self._layers.values(), dampings, strict=True)
        return self._apply(rows, [1 / (layer.eigenvalues + own) for layer, own in layers])

    def _apply(self, rows: Tensor, values: Sequence[Tensor]) -> Tensor:
        applied = torch.empty_like(rows)
        for layer, own in zip(self._layers.values(), values, strict=True):
            for part, piece in zip(layer.columns, layer.apply(rows, own), strict=True):
                applied[:, part] = piece
        return applied

    def _dampings(self, damping: float | None, damping_scale: float | None) -> list[float]:
        resolve_damping(damping, damping_scale, self.mean_eigenvalue)
        dampings = []
        for name, layer in self._layers.items():
            mean = float(layer.eigenvalues.mean())
            own = resolve_damping(damping, damping_scale, mean)
            lowest = float(layer.eigenvalues.min())
            if not lowest + own > torch.finfo(layer.eigenvalues.dtype).eps * mean:
                raise ValueError(
                    f"layer {name!r} has eigenvalues from {lowest:.3g}, so its curvature cannot be "
                    f"inverted with damping {own:.3g}: raise the damping, for example "
                    "damping_scale=0.1."
                )
            dampings.append(own)
        return dampings


def _columns(params: Params, names: Sequence[str]) -> dict[str, slice]:
    """Return where each parameter stands in rows of gradients."""
    ends, columns = 0, {}
    for name in names:
        columns[name] = slice(ends, ends + params[name].numel())
        ends = columns[name].stop
    return columns


def _mean_squares(problem: Problem, names: list[str]) -> Tensor:
    """Return the mean squares of the items' gradients, weighted, of some of the parameters."""
    rho = problem.train_weights
    total, start = torch.zeros(()), 0
    for rows in item_gradient_chunks(problem, problem.loss, problem.train, movable=names):
        share = rows.new_ones(len(rows))
        if rho is not None:
            share = rho[start : start + len(rows)].to(rows)
        total = total.to(rows) + (share[:, None] * rows.square()).sum(dim=0)
        start += len(rows)
    return total / problem.num_train


def _problems_and_shares(
    problem: Problem, checkpoints: Sequence[Checkpoint] | None
) -> tuple[list[Problem], list[float]]:
    """Return where the curvature is taken, and the weights of its mean."""
    if checkpoints is None:
        return [problem], [1.0]
    require_checkpoints(problem, checkpoints)
    return [at_checkpoint(problem, one) for one in checkpoints], duration_shares(checkpoints)


def _place(
    factors: Mapping[str, Factors],
    layers: dict[str, list[str]],
    params: Params,
    names: list[str],
) -> dict[str, _Layer]:
    """Return the eigenbasis of every layer with the columns of its weights."""
    columns, found = _columns(params, names), {}
    for layer, weights in layers.items():
        input_vectors, output_vectors, values = factors[layer]
        if input_vectors is None:  # a bias alone
            input_vectors = torch.ones_like(values[:1, None])
        found[layer] = _Layer(
            tuple(columns[name] for name in weights),
            input_vectors,
            output_vectors,
            values.reshape(len(output_vectors), -1),
        )
        assert found[layer].eigenvalues.numel() == sum(prod(params[n].shape) for n in weights)
    return found
