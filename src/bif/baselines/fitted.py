"""Checks of rivals that are fitted once to the train items."""

from __future__ import annotations

import torch

from bif.problem.problem import Problem


def require_same_fit(fitted: Problem, problem: Problem) -> None:
    """Raise unless `problem` differs from the fitted one in queries and observables alone.

    Raises:
        ValueError: Another number of train items, other train weights, another model or metric.
    """
    if problem is fitted:
        return
    if problem.num_train != fitted.num_train:
        raise ValueError(
            f"fitted to {fitted.num_train} train items, asked about {problem.num_train}: only the "
            "queries and observables may differ. Fit again."
        )
    before, now = fitted.center(), problem.center()
    same = before.keys() == now.keys() and all(
        before[n].shape == now[n].shape and torch.equal(before[n], now[n].to(before[n]))
        for n in before
    )
    metrics = fitted.metric or {}, problem.metric or {}
    same_metric = metrics[0].keys() == metrics[1].keys() and all(
        torch.equal(metrics[0][n], metrics[1][n].to(metrics[0][n])) for n in metrics[0]
    )
    if not (same and same_metric and _same(fitted.train_weights, problem.train_weights)):
        what = "train weights rho" if same_metric else "metric's numbers"
        what = what if same else "model's weights"
        raise ValueError(
            f"the {what} are not those that were fitted: only the queries and observables may "
            "differ. Fit again."
        )


def resolve_damping(
    damping: float | None, damping_scale: float | None, mean_eigenvalue: float
) -> float:
    """Return `damping`, or `damping_scale · mean_eigenvalue`; one of the two must be given.

    Raises:
        ValueError: Both or neither; a negative number, NaN or infinity.
    """
    if (damping is None) == (damping_scale is None):
        raise ValueError(
            "give either damping (in units of the curvature) or damping_scale (in units of the "
            f"mean eigenvalue, {mean_eigenvalue:.3g}); got damping={damping!r}, "
            f"damping_scale={damping_scale!r}."
        )
    if damping is not None:
        return require_damping(damping)
    return require_damping(damping_scale, "damping_scale") * mean_eigenvalue


def require_damping(damping: float | None, name: str = "damping") -> float:
    """Return a damping that is a finite number ≥ 0.

    Raises:
        ValueError: Not a finite number ≥ 0.
    """
    if damping is None or not 0 <= damping < float("inf"):
        raise ValueError(f"{name} must be a finite number ≥ 0, got {damping!r}.")
    return float(damping)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)
