"""TRAK: influence in a linear model of randomly projected gradients; a small implementation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bif.baselines.fitted import require_same_fit, resolve_damping
from bif.baselines.projection import Projection, ProjectionKind
from bif.curvature.outputs import Criterion
from bif.problem import losses
from bif.problem.functional import ItemFunction
from bif.problem.items import to_device
from bif.problem.losses import per_item
from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import item_gradient_chunks, query_gradient_blocks
from bif.types import Batch, ItemLoss


@dataclass(frozen=True)
class _Checkpoint:
    """One model's features in the directions of `ΦᵀΦ`."""

    model: nn.Module
    eigenvalues: Tensor  # [k]
    eigenvectors: Tensor  # [k, k]
    features: Tensor  # [N, k], turned
    weights: Tensor  # [N]


class TRAK:
    """`+g̃_phi · (ΦᵀΦ + damping·I)⁻¹ φ_i · w_i`: how the observable moves with item i's weight.

    `φ_i = Rᵀ ∇f(z_i)` are projected gradients of the *output function* f, for classes the margin
    `log p/(1-p)`; `w_i = -dl/df`, for classes `1 - p_i`; and `g̃_phi = Rᵀ ∇phi`.  For the margin
    as observable this is TRAK's score; for any other observable the chain rule is in ∇phi (for the
    loss, TRAK's score times `-(1 - p)` of the query), so the scores are signed like the BIF.

    With several checkpoints the products and the weights are averaged over them separately, as in
    the paper.

    Source: Park et al. 2023 (arXiv 2303.14186), eq. 13 to 17 and algorithm 1.
    """

    def __init__(self, problem: Problem, projection: Projection | None,
                 checkpoints: list[_Checkpoint]) -> None:  # fmt: skip
        self._problem, self._projection, self._checkpoints = problem, projection, checkpoints

    @classmethod
    def fit(
        cls,
        problem: Problem,
        *,
        models: Sequence[nn.Module] | None = None,
        criterion: Criterion | None = None,
        output: tuple[ItemLoss, ItemLoss] | None = None,
        dimension: int | None = 2048,
        projection: ProjectionKind = "rademacher",
        seed: int = 0,
    ) -> TRAK:
        """Project the train items' gradients and decompose their second moments.

        Args:
            problem: Loss, train items and, if `models` is None, the model.
            models: Trained models of the same architecture, on the problem's device.
            criterion: "cross_entropy": the output function is the margin of the batch `(x, y)`;
                "squared_error": the model's only output.  By default after the problem's loss; of
                next tokens it is the log odds of `p = exp(-l)`, a text's probability.
            output: Instead, the output function f and the weight `-dl/df`, each of (model, batch)
                and with one number an item.
            dimension: Dimension of the projection; None for none, where the model is small.
            projection: "rademacher" or "gaussian".
            seed: Seed of the projection.

        Raises:
            ValueError: A loss that is not known and neither `criterion` nor `output`; models of
                other weights; a model of several outputs for "squared_error".
        """
        function, weight = output or _output_function(problem.loss, criterion)
        center = problem.center()
        params = {name: center[name] for name in problem.trainable}
        count = sum(leaf.numel() for leaf in params.values())
        like = next(iter(params.values()))
        project = None
        if dimension is not None:
            project = Projection(count, dimension, kind=projection, seed=seed, like=like)
        fitted = [
            _checkpoint(problem.with_model(model), function, weight, project)
            for model in ([problem.model] if models is None else _require_models(models))
        ]
        return cls(problem, project, fitted)

    def scores(
        self,
        problem: Problem,
        *,
        damping: float | None = None,
        damping_scale: float | None = None,
        observable: str | None = None,
        soft_threshold: float = 0.0,
    ) -> Tensor:
        """Return the scores of any queries at any damping.

        Args:
            problem: The one that was fitted, or one that differs in queries and observables.
            damping: Damping added to `ΦᵀΦ`, which is a *sum* over train items.
            damping_scale: Instead, in units of the mean eigenvalue of `ΦᵀΦ`.
            observable: Name of one of the problem's observables; the first by default.
            soft_threshold: Scores shrink towards 0 by this share of the query's largest absolute
                score, `sign(s)·max(|s| - threshold, 0)`; 0 leaves them.

        Returns:
            `[Q, N]` on the CPU, in float64.

        Raises:
            ValueError: A singular `ΦᵀΦ` without damping; a threshold outside of [0, 1); another
                model or train items; both or neither of the dampings.
        """
        require_same_fit(self._problem, problem)
        if not 0 <= soft_threshold < 1:
            raise ValueError(f"soft_threshold must be in [0, 1), got {soft_threshold!r}.")
        function = find_observable(problem, observable).function
        products, weights = [], []
        for one in self._checkpoints:
            mean = float(one.eigenvalues.mean())
            own = resolve_damping(damping, damping_scale, mean)
            if float(one.eigenvalues[0]) + own <= 1e-12 * float(one.eigenvalues[-1]):
                raise ValueError(
                    f"ΦᵀΦ is singular: {len(one.features)} items, {len(one.eigenvalues)} "
                    "directions. Give damping, for example damping_scale=0.1, or a smaller "
                    "dimension."
                )
            blocks = query_gradient_blocks(problem.with_model(one.model), function)
            along = (
                torch.cat([_project(rows, self._projection) for rows in blocks]) @ one.eigenvectors
            )
            products.append(along / (one.eigenvalues + own) @ one.features.T)
            weights.append(one.weights)
        scores = torch.stack(products).mean(dim=0) * torch.stack(weights).mean(dim=0)
        limit = soft_threshold * scores.abs().amax(dim=1, keepdim=True)
        return (scores.sign() * (scores.abs() - limit).clamp(min=0)).cpu()


def _project(rows: Tensor, projection: Projection | None) -> Tensor:
    return (rows if projection is None else projection(rows)).double()


def _checkpoint(
    problem: Problem, function: ItemLoss, weight: ItemLoss, projection: Projection | None
) -> _Checkpoint:
    chunks = item_gradient_chunks(problem, function, problem.train)
    parts = [_project(rows, projection) for rows in chunks]
    features = torch.cat(parts)
    values, vectors = torch.linalg.eigh(features.T @ features)
    weights = torch.cat(list(_values(problem, weight))).double()
    return _Checkpoint(problem.model, values, vectors, features @ vectors, weights)


def _values(problem: Problem, function: ItemLoss) -> Iterator[Tensor]:
    of_items = ItemFunction(problem.evaluation_copy(problem.device), function)
    for _, batch in problem.train.chunks(256):
        with torch.no_grad():
            yield of_items(to_device(batch, problem.device))


def _require_models(models: Sequence[nn.Module]) -> Sequence[nn.Module]:
    if not len(models):
        raise ValueError("models is empty: expected at least one, or None for the problem's.")
    return models


def _output_function(loss: ItemLoss, criterion: Criterion | None) -> tuple[ItemLoss, ItemLoss]:
    if criterion == "cross_entropy" or (criterion is None and loss is losses.cross_entropy):
        return losses.margin, _one_minus_p
    if criterion is None and loss in (losses.next_token, losses.next_token_mean):
        return partial(_log_odds, loss), partial(_not_probable, loss)
    if criterion == "squared_error" or (criterion is None and loss is losses.squared_error):
        return _only_output, _residual
    raise ValueError(
        f"TRAK's output function is not known for this loss (criterion={criterion!r}): say "
        "criterion='cross_entropy' or 'squared_error', or give output=(f, minus_dl_df)."
    )


def _one_minus_p(model: nn.Module, batch: Batch) -> Tensor:
    """Return `-dl/df = 1 - p` for `l = log(1 + exp(-f))`, f the margin."""
    return torch.sigmoid(-losses.margin(model, batch))


def _log_odds(loss: ItemLoss, model: nn.Module, batch: Batch) -> Tensor:
    """Return `log p/(1-p)` with `p = exp(-l)`, of the mean loss a text's mean probability."""
    value = per_item(loss(model, batch))
    return -value - torch.log(-torch.expm1(-value))


def _not_probable(loss: ItemLoss, model: nn.Module, batch: Batch) -> Tensor:
    """Return `-dl/df = 1 - p` of the same."""
    return -torch.expm1(-per_item(loss(model, batch)))


def _only_output(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's output `[B]`."""
    output = model(batch[0])
    if output.numel() != len(output):
        raise ValueError(
            f"TRAK for squared errors needs one output an item, got shape {tuple(output.shape)}: "
            "give output=(f, minus_dl_df)."
        )
    return output.flatten()


def _residual(model: nn.Module, batch: Batch) -> Tensor:
    """Return `-dl/df = y - f` for `l = ½ (y - f)²`."""
    return batch[1].flatten() - _only_output(model, batch)
