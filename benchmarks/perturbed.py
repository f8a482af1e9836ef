"""Perturb and optimise: draws that are independent by construction, for `mixing.py`.

A draw is the minimum of a perturbed potential, found by momentum from w*:

    nbeta L(w) + gamma/2 |w - a|² - <xi, w>,   a ~ N(w*, 1/gamma),   Cov(xi) = nbeta · Fisher(w*)

With a quadratic loss of that curvature it has the law of the posterior.  xi is a gradient at w*
with labels drawn from the model and random signs, one backward pass; what costs is the way down.
(Papandreou & Yuille 2010; Bardsley et al. 2014, randomise-then-optimise.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any

import torch
from judging import judged_draws
from torch import Tensor

import bif
from bif import tensors
from bif.bank import BankPart
from bif.sampling.engine import Engine
from bif.types import Params


@dataclass(frozen=True)
class PerturbAndOptimise:
    """Draws of a classifier's posterior.

    Args:
        problem: A classifier whose batches are (inputs, labels), by cross-entropy.
        settings: Complete, of stacked chains with unit mass.
        steps: On the way to each minimum.
    """

    problem: bif.Problem
    settings: bif.Settings
    steps: int

    def judged(self, part: BankPart, *, seconds: float) -> dict[str, Any]:
        """LDS of as many draws as come within so many seconds."""
        started = time.perf_counter()
        engine, train, queries = Engine(self.problem, self.settings), [], []
        source = torch.Generator(device=engine.device).manual_seed(self.settings.seed)
        while time.perf_counter() - started < seconds:
            params = self._minimum(engine, source)
            train.append(engine.observe_train(params).cpu())
            queries.append(engine.observe_queries(params).cpu())
        spent = time.perf_counter() - started
        losses, values = torch.cat(train), torch.cat(queries)
        row = judged_draws(self.problem, part, losses, values)
        return {**row, "draws": len(losses), "ess_median": float(len(losses)), "seconds": spent}

    def _minimum(self, engine: Engine, source: torch.Generator) -> Params:
        s, posterior = self.settings, engine.posterior
        assert s.step_size and s.friction and s.nbeta and s.gamma and s.chains
        params = tensors.copied(tensors.stacked(posterior.center, s.chains))
        # gamma (w - a) = gamma (w - w*) - gamma (a - w*), and the latter is sqrt(gamma) · N(0, 1).
        pull = self._labels(engine, params, source)
        for leaf in pull.values():
            noise = torch.randn(leaf.shape, generator=source, device=leaf.device, dtype=leaf.dtype)
            leaf.add_(noise, alpha=sqrt(s.gamma))
        gradient, velocity = engine.gradient(0, s.chains), tensors.zeros_like(params)
        kept = exp(-s.friction * s.step_size)
        for step in range(self.steps):
            with torch.no_grad():
                force = posterior.potential_gradient_(gradient(params, step).gradient, params)
                tensors.add_(force, pull, -1.0)
                velocity = tensors.add_(tensors.mul_(velocity, kept), force, -s.step_size)
                params = tensors.add_(params, velocity, s.step_size)
        return params

    def _labels(self, engine: Engine, params: Params, source: torch.Generator) -> Params:
        """xi of every chain."""
        s, n = self.settings, self.problem.num_train
        assert s.nbeta is not None and s.chains is not None
        inputs, labels = engine.train.data
        with torch.no_grad():
            odds = engine.problem.model(inputs).softmax(dim=1)
        drawn = torch.multinomial(odds, s.chains, replacement=True, generator=source).T
        signs = torch.randint(0, 2, drawn.shape, generator=source, device=inputs.device)
        weights: Tensor = (2 * signs - 1).to(inputs.dtype) * sqrt(s.nbeta / n)
        batch = (inputs.expand(s.chains, *inputs.shape), drawn.to(labels.dtype))
        return engine.oracle.gradient(params, batch, weights, per_chain=True)[0]
