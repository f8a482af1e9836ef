"""The metric of the localisation: how stiffly the Gaussian holds each weight near w*.

With a metric M, positive and diagonal, U is

    U(w) = nbeta · L(w) + (gamma/2) (w - w*)ᵀ M (w - w*) + (nbeta · weight_decay/2) wᵀ M w.

In the coordinates `v = w* + M^(1/2) (w - w*)` the Gaussian is isotropic again, so samplers, solvers
and rivals work there: gradients are divided by `M^(1/2)`, curvatures by it on both sides.

A step of Adam divides by the root of the mean square gradient.  So `t` steps of learning rate r
stop where the gradient still is about `M (w - w*) / (r t)`: at a damping in this metric.  It is the
metric in which decoupled weight decay (AdamW) pulls, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bif.problem.functional import ItemFunction
from bif.problem.items import to_device
from bif.types import Params

if TYPE_CHECKING:
    from bif.problem.problem import Problem

FLOOR = 0.1
"""Part of the metric's mean that every weight gets besides: rows of an embedding that training
never met would else be free."""


def require_metric(metric: Mapping[str, Tensor], parameters: Params) -> Params:
    """Return a metric's leaves in the order of the parameters.

    Raises:
        ValueError: Names or shapes that are not the parameters', numbers that are not positive.
    """
    unknown = sorted(set(metric) - set(parameters))
    missing = [name for name in parameters if name not in metric]
    if unknown or missing:
        raise ValueError(
            f"the metric lacks {missing[:5]} and has unknown {unknown[:5]}: give a leaf for each "
            "trained parameter of the model, by its name."
        )
    found = {}
    for name, parameter in parameters.items():
        leaf = torch.as_tensor(metric[name]).detach().to(parameter.device)
        if leaf.shape != parameter.shape:
            raise ValueError(
                f"the metric of {name!r} has shape {tuple(leaf.shape)}, expected the weights' "
                f"{tuple(parameter.shape)}."
            )
        if not bool((leaf > 0).all() & leaf.isfinite().all()):
            raise ValueError(
                f"the metric of {name!r} has numbers that are not positive and finite: add a part "
                "of its mean, as adam_metric does."
            )
        found[name] = leaf.to(torch.promote_types(parameter.dtype, torch.float32)).clone()
    return found


def adam_metric(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, floor: float = FLOOR
) -> Params:
    """Return `sqrt(v) + eps` of Adam's second moments v, bias corrected, by parameters' names.

    Args:
        optimizer: Adam or AdamW as it ended training.
        model: The model whose parameters it trained.
        floor: Part of the metric's mean that is added everywhere.

    Raises:
        ValueError: An optimizer without second moments of a parameter that is trained.

    Source: Kingma and Ba 2015, algorithm 1.
    """
    found = {}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state: Mapping[str, Any] = optimizer.state.get(parameter, {})
        group = groups.get(id(parameter), {})
        if "exp_avg_sq" not in state or "betas" not in group:
            raise ValueError(
                f"{type(optimizer).__name__} has no second moments of {name!r}: pass the Adam or "
                "AdamW that trained this model, after training, or use gradient_metric."
            )
        corrected = 1 - group["betas"][1] ** float(state["step"])
        found[name] = (state["exp_avg_sq"] / corrected).sqrt() + group["eps"]
    return _raised(found, floor)


def gradient_metric(
    problem: Problem, *, batch_size: int, num_batches: int = 16, seed: int = 0,
    floor: float = FLOOR,
) -> Params:  # fmt: skip
    """Return the root mean square of mini-batches' gradients at w*: what Adam would divide by.

    Args:
        problem: Model, loss and train items.
        batch_size: Train items of a mini-batch, as in training.
        num_batches: Mini-batches that are drawn.
        seed: Seed of the mini-batches.
        floor: Part of the metric's mean that is added everywhere.

    Raises:
        ValueError: A batch size that is not between 1 and n; no mini-batch.
    """
    if num_batches < 1:
        raise ValueError(f"num_batches must be at least 1, got {num_batches}: 16 are enough.")
    if not 1 <= batch_size <= problem.num_train:
        raise ValueError(
            f"batch_size must be from 1 to {problem.num_train:,}, the number of train items, got "
            f"{batch_size}: give the batch size of training."
        )
    model = problem.evaluation_copy(problem.device)
    of_items = ItemFunction(model, problem.loss)
    center = problem.center()
    leaves = {name: center[name].clone().requires_grad_() for name in problem.trainable}
    squares = {name: torch.zeros_like(leaf) for name, leaf in center.items() if name in leaves}
    source = torch.Generator().manual_seed(seed)
    for _ in range(num_batches):
        places = torch.randperm(problem.num_train, generator=source)[:batch_size].sort().values
        batch = to_device(problem.train.take(places), problem.device)
        rho = problem.train_weights
        weights = 1.0 if rho is None else rho[places].to(problem.device)
        with torch.enable_grad():
            value = (weights * of_items.at(leaves, batch)).mean()
            found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        for name, gradient in zip(leaves, found, strict=True):
            squares[name] += gradient.square() / num_batches
    return _raised({name: square.sqrt() for name, square in squares.items()}, floor)


def _raised(metric: Params, floor: float) -> Params:
    """Return a metric plus a part of its mean."""
    total = sum(float(leaf.double().sum()) for leaf in metric.values())
    mean = total / sum(leaf.numel() for leaf in metric.values())
    if not (floor >= 0 and mean > 0):
        raise ValueError(
            f"floor must be at least 0 and some gradient other than 0, got floor {floor!r} and a "
            f"mean of {mean:.3g}: there is no metric at a point without gradients."
        )
    return {name: leaf + floor * mean for name, leaf in metric.items()}
