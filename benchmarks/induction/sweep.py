"""Do scores predict a window of training without half of its sequences?  Swept over settings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bif
from benchmarks.induction.model import Network, State, batch_at, train
from benchmarks.induction.stages import (
    QUERIES,
    Trained,
    mean_asked_loss,
    problem,
    queries,
    settings,
)
from bif import baselines
from bif.evaluate import lds

DAMPINGS = (2.5, 25.0, 250.0, 2500.0)
"""gamma/nbeta of the response, around that of the trajectories."""
SAMPLED_DAMPING = 250.0
"""gamma/nbeta of the covariance: with less, so few steps do not cover the posterior."""
STEP_SIZES = (1e-8, 3e-8, 1e-7)
"""Step sizes of SGLD; its largest is near the edge of stability at this nbeta."""
_CHAINS, _BURN_IN, _DRAWS = 4, 50, 150


def window_items(trained: Trained, state: State) -> np.ndarray:
    """Return the train sequences of the updates of the window, each once."""
    steps = range(state.step, state.step + trained.sizes.window)
    parts = [batch_at(step, len(trained.pool), trained.seed) for step in steps]
    return np.unique(np.concatenate(parts))


def outcomes(trained: Trained, state: State, items: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the loss on every query at the end of the window with each subset alone, `[M, Q]`.

    Args:
        trained: The training.
        state: Its state before the window.
        items: The window's sequences, `[N]`.
        masks: Those that are left in, bool `[M, N]`.
    """
    asked, found = queries(trained.corpus), []
    batches = [{k: leaf.to(trained.pool.device) for k, leaf in asked[q].items()} for q in QUERIES]
    model = Network().to(trained.pool.device)
    until = state.step + trained.sizes.window
    for mask in masks:
        weights = torch.ones(len(trained.pool), device=trained.pool.device)
        weights[torch.from_numpy(items[~mask]).to(weights.device)] = 0.0
        end = train(
            state, trained.pool, seed=trained.seed, until=until, item_weights=_constant(weights)
        )[-1]
        model.load_state_dict(end.weights)
        with torch.no_grad():
            found.append(torch.cat([mean_asked_loss(model, batch) for batch in batches]).tolist())
    return np.array(found)


def _constant(weights: Tensor) -> Any:
    return lambda step: weights


def rows(
    trained: Trained, state: State, *, dampings: Sequence[float], step_sizes: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Yield the rank correlation with leaving halves out, a row a setting.

    Args:
        trained: The training.
        state: The checkpoint before the window.
        dampings: gamma/nbeta of the response.
        step_sizes: Step sizes of the covariance, none to leave it out.
    """
    items = window_items(trained, state)
    source = np.random.default_rng([trained.seed, state.step])
    masks = np.zeros((trained.sizes.subsets, len(items)), bool)
    for mask in masks:
        mask[source.permutation(len(items))[: len(items) // 2]] = True
    truth = outcomes(trained, state, items, masks)
    posed = problem(trained, trained.pool[torch.from_numpy(items)]).at_weights(state.weights)
    about = {"part": "sweep", "seed": trained.seed, "step": state.step, "items": len(items)}

    def row(how: Mapping[str, Any], scores: Any, began: float) -> dict[str, Any]:
        found = lds(scores, masks, truth, num_bootstrap=1).per_query
        by_kind = found.reshape(len(QUERIES), -1).mean(axis=1)
        kinds = {f"lds, {kind}": float(x) for kind, x in zip(QUERIES, by_kind, strict=True)}
        seconds = time.perf_counter() - began
        return {**about, **how, "lds": float(found.mean()), **kinds, "seconds": seconds}

    began = time.perf_counter()
    product = baselines.gradient_product(posed).numpy()
    yield row({"method": "gradient product"}, product, began)
    for damping in dampings:
        began = time.perf_counter()
        run = bif.attribute(posed, settings(trained, damping=damping, estimator="response"))
        scores = run.influence.dataset["influence"].values[0]
        yield row({"method": "response", "damping": damping}, scores, began)
    for step_size in step_sizes:
        began = time.perf_counter()
        how = {"method": "covariance", "damping": SAMPLED_DAMPING, "step_size": step_size}
        try:
            run = bif.attribute(posed, sampled(trained, step_size))
        except (ValueError, RuntimeError) as error:  # chains that diverged
            yield {**about, **how, "failed": str(error)[:200]}
            continue
        how |= {"rhat": run.summary.rhat_max, "trusted": bool(run.summary.trusted)}
        yield row(how, run.influence.dataset["influence"].values[0], began)


def sampled(trained: Trained, step_size: float) -> bif.Settings:
    """Return settings of chains of SGLD with full gradients."""
    return settings(
        trained, damping=SAMPLED_DAMPING, estimator="covariance", sampler="sgld",
        step_size=step_size, chains=_CHAINS, draws=_DRAWS, burn_in=_BURN_IN, thin=1,
    )  # fmt: skip
