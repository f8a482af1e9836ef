"""Proxies, through which observables are recorded: lighter tails, with the slope at w*."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bif.problem.losses import at_least_float32, cross_entropy, margin, squared_error
from bif.types import Batch, ItemLoss


@dataclass(frozen=True)
class Proxy:
    """A quantity m that stands in for an observable phi, by the chain rule at w*.

    `phi(w*) + slope · (m(w) - m(w*))` is recorded in the place of phi(w).  To first order nothing
    changes: phi and what is recorded have the same value and the same gradient at w*.  A covariance
    differs by the curvature of phi as a function of m, which stays out of it with its heavy tails.

    Attributes:
        name: Name of the proxy in results.
        function: m, `function(model, batch) -> [B]`, or `[B, K]` where phi depends on K numbers,
            such as the outputs of a regression; `[B, T]` where phi itself has a value a token.
        slope: `d phi / d m`, in the shape of m; it is evaluated at w*.
    """

    name: str
    function: ItemLoss
    slope: ItemLoss


def residuals(model: nn.Module, batch: Batch) -> Tensor:
    """Return `f(x) - y` of each output, `[B, K]`; batch `(x [B, …], y [B] or [B, K])`."""
    inputs, targets = batch
    outputs = at_least_float32(model(inputs))
    return outputs.reshape(len(targets), -1) - targets.reshape(len(targets), -1)


def _slope_in_margin(model: nn.Module, batch: Batch) -> Tensor:
    """Return `d loss / d margin = -(1 - p)`, `[B]`: the loss is `log(1 + exp(-margin))`."""
    return -torch.sigmoid(-margin(model, batch))


_KNOWN: tuple[tuple[ItemLoss, Proxy], ...] = (
    (cross_entropy, Proxy("margin", margin, _slope_in_margin)),
    (squared_error, Proxy("residual", residuals, residuals)),
)


def known_proxy(function: ItemLoss) -> Proxy | None:
    """Return the proxy of a loss of `bif.losses`, or None for any other loss.

    `cross_entropy` has its margin, with the slope `-(1 - p)`, and `squared_error` the residual of
    each output, with the residual at w* as its slope.
    """
    return next((proxy for loss, proxy in _KNOWN if loss is function), None)


def default_proxy(function: ItemLoss) -> Proxy | None:
    """Return the proxy of a loss unless another is asked for: a cross-entropy's margin.

    A squared error is recorded itself: it has no heavy tails to leave out, and its slope may change
    sign.  Where draws lie far from w*, the residual of their mean is another than that at w*.
    """
    return known_proxy(function) if function is cross_entropy else None
