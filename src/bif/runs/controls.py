"""Compute controls: scores without the posterior, and scores without any influence."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch

from bif import tensors
from bif.estimate.covariance import estimate_covariance
from bif.estimate.independence import shuffled
from bif.estimate.traces import LossTraces
from bif.sampling.engine import Engine
from bif.sampling.item_gradients import signed_products
from bif.sampling.oracles import LiveOracle
from bif.sampling.rng import BlockNoise, generator

MOST_DRAWS = 4096
"""Draws from the Gaussian ball at most: they are independent, so that these are enough."""


def controls(engine: Engine, traces: LossTraces) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return scores `[A, Q, N]` of every control, signed like the BIF, and what is missing.

    * `nbeta_0`: `-Cov(l_i, phi)` over draws from `N(w*, 1/gamma)`, a ball that knows nothing of the
      data: items are alike there by their gradients at w*.  It takes forward passes alone.
    * `gradient_product`: `-g_i·g_phi / gamma`, the limit of large gamma.
    * `shuffled`: the run's own covariances with the queries of other chains: no influence at all,
      and the errors of the run.

    Args:
        engine: The run's machinery.
        traces: Traces of the surviving chains.
    """
    problem, gamma = engine.problem, engine.settings.gamma
    shape = (len(problem.observables), problem.num_queries, problem.num_scored)
    found = {"shuffled": _scores(shuffled(traces), shape)}
    missing = []
    if not gamma:
        missing.append("control nbeta_0: without gamma there is no ball around w*")
    else:
        found["nbeta_0"] = _scores(ball_traces(engine, traces.total_draws), shape)
        product = np.full(shape, np.nan, np.float32)
        try:
            problem.refuse_tokens("it")
            for a, observable in enumerate(problem.observables):
                values = signed_products(
                    problem, observable.function, movable=engine.settings.movable
                )
                product[a, :, : problem.num_train] = values.numpy() / gamma
            found["gradient_product"] = product
        except Exception as error:  # whatever vmap meets inside the user's model
            missing.append(f"control gradient_product: {str(error).strip().splitlines()[0]}")
    return found, missing


def _scores(traces: LossTraces, shape: tuple[int, ...]) -> np.ndarray:
    value = -estimate_covariance(traces, num_groups=2).value
    return value.reshape(shape).float().cpu().numpy()


def ball_traces(engine: Engine, draws: int) -> LossTraces:
    """Return traces of independent draws from `N(w*, 1/gamma)`, 4,096 at most, as one chain.

    It takes forward passes alone, of a block of chains at a time.

    Args:
        engine: With a gamma above 0.
        draws: How many; rounded up to whole blocks.
    """
    chains = 1 if isinstance(engine.oracle, LiveOracle) else engine.settings.block_size
    rounds = max(2, -(-min(draws, MOST_DRAWS) // chains))
    source = generator(engine.settings.seed, 0, "control", device=engine.device)
    noise = BlockNoise(source, engine.posterior.masks)
    train, query = [], []
    with torch.no_grad():
        for _ in range(rounds):
            params = tensors.stacked(engine.posterior.center, chains)
            tensors.add_(params, noise.normal(params), 1 / sqrt(engine.settings.gamma))
            train.append(engine.observer.train(params).cpu())
            query.append(engine.observer.queries(params).cpu())
    # One long chain: every draw is independent of every other.
    joined = [torch.cat(parts).unsqueeze(0) for parts in (train, query)]
    return LossTraces.from_arrays(*joined)
