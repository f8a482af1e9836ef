"""Control variates whose anchor moves along the chain, for `mixing.py`.

    ∇L ≈ g_batch(w) - g_batch(a) + ∇L(a)

At every draw the losses of all items are needed, so their gradient is taken there too and the draw
is the next anchor: what a mini-batch adds is the change since then, not since w*.  (Johnson & Zhang
2013; Dubey et al. 2016, variance reduction in SGLD.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from judging import judged_draws

import bif
from bif import tensors
from bif.bank import BankPart
from bif.estimate.diagnostics import convergence, reliability
from bif.estimate.traces import LossTraces
from bif.sampling.chain import walk
from bif.sampling.engine import Engine
from bif.sampling.gradients import FullGradient
from bif.sampling.rng import ShuffledOrder
from bif.types import GradientEstimate, Params


class RefreshedGradient:
    """A full gradient at every `thin`-th step, and mini-batches against it in between.

    Args:
        full: The gradient of all items.
        engine: Its run.
        order: Which items each chain sees at each step.
        thin: Steps from one anchor to the next.
    """

    def __init__(self, full: FullGradient, engine: Engine, order: ShuffledOrder, thin: int) -> None:
        self._full, self._sampling, self._order, self._thin = full, engine, order, thin
        self._anchor: Params = {}
        self._gradient: Params = {}

    def __call__(self, params: Params, step: int) -> GradientEstimate:
        if step % self._thin == 0:
            estimate = self._full(params, step)
            self._anchor = tensors.copied(params)
            self._gradient = tensors.copied(estimate.gradient)
            return estimate
        engine, indices = self._sampling, self._order.indices(step)
        batch, weights = engine.train.take(indices), engine.weights[indices]
        weights = weights / self._order.batch_size
        gradient, _ = engine.oracle.gradient(params, batch, weights, per_chain=True)
        before, _ = engine.oracle.gradient(self._anchor, batch, weights, per_chain=True)
        tensors.add_(gradient, before, -1.0)
        return GradientEstimate(tensors.add_(gradient, self._gradient), None)


@dataclass(frozen=True)
class Refreshed:
    """Chains with such gradients.

    Args:
        problem: What is attributed.
        settings: Complete, of one block of stacked chains that take full gradients.
        batch_size: Of the mini-batches.
    """

    problem: bif.Problem
    settings: bif.Settings
    batch_size: int

    def judged(self, part: BankPart, *, seconds: float) -> dict[str, Any]:
        """LDS, effective draws and reliability of as many draws as come within so many seconds."""
        s, started = self.settings, time.perf_counter()
        assert s.chains is not None and s.thin is not None and s.burn_in is not None
        engine, train, queries = Engine(self.problem, s), [], []
        full = engine.gradient(0, s.chains)
        assert isinstance(full, FullGradient)
        order = ShuffledOrder(
            self.problem.num_train, self.batch_size, num_chains=s.chains, seed=s.seed, block=0,
            device=engine.device,
        )  # fmt: skip
        start = engine.start(0, s.chains)
        for position in walk(
            engine.sampler, engine.posterior,
            gradient=RefreshedGradient(full, engine, order, s.thin), state=start.state,
            noise=start.noise, first_step=0, last_step=10**9,
        ):  # fmt: skip
            if position.step >= s.burn_in and position.step % s.thin == 0:
                losses, values = engine.observed(position)
                train.append(losses.cpu())
                queries.append(values.cpu())
                if time.perf_counter() - started > seconds and len(train) > 1:
                    break
        spent = time.perf_counter() - started
        traces = LossTraces.from_arrays(torch.stack(train, 1), torch.stack(queries, 1))
        losses, values = (torch.cat(x) for x in (train, queries))
        effective, rhat = convergence(traces)
        return {
            **judged_draws(self.problem, part, losses, values), "draws": len(losses),
            "ess_median": float(np.nanmedian(effective)), "rhat_max": float(np.nanmax(rhat)),
            "reliability": reliability(traces, num_queries=32, num_train=512), "seconds": spent,
        }  # fmt: skip
