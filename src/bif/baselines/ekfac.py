"""Influence with eigenvalue-corrected Kronecker factors (EK-FAC), by curvlinops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bif.baselines.fitted import require_same_fit, resolve_damping
from bif.baselines.layers import OtherLayers, kronecker_layers
from bif.curvature.fisher import FisherType, squared_fisher
from bif.curvature.library import import_curvlinops
from bif.curvature.outputs import Criterion
from bif.curvature.products import first_items
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

    def apply_inverse(self, rows: Tensor, damping: float) -> list[Tensor]:
        """Return `Q_G ((Q_Gᵀ G Q_A) / (eigenvalues + damping)) Q_Aᵀ`, split as the rows are."""
        out = len(self.output_vectors)
        parts = [rows[:, part].reshape(len(rows), out, -1) for part in self.columns]
        along = self.output_vectors.T @ torch.cat(parts, dim=2) @ self.input_vectors
        solved = self.output_vectors @ (along / (self.eigenvalues + damping)) @ self.input_vectors.T
        pieces = solved.split([part.shape[2] for part in parts], dim=2)
        return [piece.flatten(1) for piece in pieces]


@dataclass(frozen=True)
class _Diagonal:
    """Weights without factors, each with the mean square of the items' gradients along it."""

    columns: tuple[slice, ...]
    eigenvalues: Tensor

    def apply_inverse(self, rows: Tensor, damping: float) -> list[Tensor]:
        parts = torch.cat([rows[:, part] for part in self.columns], dim=1)
        solved = parts / (self.eigenvalues + damping)
        return list(solved.split([part.stop - part.start for part in self.columns], dim=1))


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

    Source: George et al. 2018 (arXiv 1806.03884); for influence Grosse et al. 2023 (arXiv
    2308.03296), eq. 21.
    """

    def __init__(
        self, problem: Problem, names: list[str], layers: Mapping[str, _Layer | _Diagonal]
    ) -> None:
        self.eigenvalues = {name: layer.eigenvalues for name, layer in layers.items()}
        self._problem, self._names, self._layers = problem, names, layers

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
                outputs for "type-2".
            ImportError: The extra `baselines` is not installed.
        """
        require_literal("fisher_type", fisher_type, FisherType)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        problem = problem.with_metric(None)
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
        wrapped, data = squared_fisher(problem, model, fisher_type, criterion,
                                 chunk_size or rows_that_fit(chosen))  # fmt: skip
        parameters = dict(model.named_parameters())
        operator = import_curvlinops().EKFACLinearOperator(
            wrapped,
            nn.MSELoss(reduction="sum"),
            [parameters[name] for name in names],
            data,
            check_deterministic=False,
            seed=seed,
            fisher_type="mc" if fisher_type == "mc" else "type-2",
            mc_samples=num_samples if fisher_type == "mc" else 1,
            num_per_example_loss_terms=1,
            separate_weight_and_bias=False,
            num_data=problem.num_train,
            batch_size_fn=lambda x: len(x["weights"]),
        )
        _ = operator.trace  # makes curvlinops compute everything
        found: dict[str, _Layer | _Diagonal] = {}
        if other_layers == "diagonal" and others:
            found["weights without factors"] = _diagonal(problem, chosen, others)
            names = list(chosen)
        found |= _eigenbases(operator.state_dict(), layers, chosen, names)
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
        return signed_products(problem, function, movable=self._names, prepare=prepare)

    def apply_inverse(self, rows: Tensor, damping: float) -> Tensor:
        """Return `X (F + damping·I)⁻¹` of rows over the weights that count, `[K, P]`."""
        return self._apply_inverse(rows, dampings=self._dampings(damping, None))

    def require_all_weights(self) -> None:
        """Raise unless every weight that the model does not freeze counts.

        Raises:
            ValueError: Some were left out.
        """
        left_out = [name for name in self._problem.trainable if name not in self._names]
        if left_out:
            raise ValueError(
                f"EK-FAC was fitted without {', '.join(left_out[:5])} ({len(left_out)} in all), "
                "and a preconditioner takes all weights: fit it with other_layers='diagonal'."
            )

    def _apply_inverse(self, rows: Tensor, dampings: Sequence[float]) -> Tensor:
        solved = torch.empty_like(rows)
        for layer, own in zip(self._layers.values(), dampings, strict=True):
            pieces = layer.apply_inverse(rows, own)
            for part, piece in zip(layer.columns, pieces, strict=True):
                solved[:, part] = piece
        return solved

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


def _diagonal(problem: Problem, params: Params, others: list[str]) -> _Diagonal:
    """Return the mean squares of the items' gradients, weighted, of some of the parameters."""
    rho = problem.train_weights
    total, start = torch.zeros(()), 0
    for rows in item_gradient_chunks(problem, problem.loss, problem.train, movable=others):
        share = rows.new_ones(len(rows))
        if rho is not None:
            share = rho[start : start + len(rows)].to(rows)
        total = total.to(rows) + (share[:, None] * rows.square()).sum(dim=0)
        start += len(rows)
    columns = _columns(params, list(params))
    return _Diagonal(tuple(columns[name] for name in others), total / problem.num_train)


def _eigenbases(
    state: dict[str, Any], layers: dict[str, list[str]], params: Params, names: list[str]
) -> dict[str, _Layer]:
    """Return the eigenvectors and corrected eigenvalues of curvlinops, by layer."""
    columns, found = _columns(params, names), {}
    for layer, weights in layers.items():
        key = f"model.{layer}".rstrip(".")
        values = state["corrected_eigenvalues"][key]
        if isinstance(values, dict):  # the weight or the bias alone
            values = next(iter(values.values()))
        output_vectors = state["gradient_covariances_eigenvectors"][key]
        input_vectors = state["input_covariances_eigenvectors"].get(key)
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
