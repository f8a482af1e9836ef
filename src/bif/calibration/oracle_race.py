"""Measure whether a device is faster at stacked chains or at one chain after another.

Stacks of linear layers are batched products, which fill a GPU; a stack of convolutions is a grouped
one, which a GPU may do more slowly than one after another.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from bif import tensors
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.sampling.factory import item_weights, make_oracle, make_posterior, run_device, wait_for
from bif.sampling.gradients import FullGradient
from bif.sampling.settings import Settings

_CHAINS = 8
"""Chains that are timed at most."""
_ITEMS = 1024
"""Train items of a timed gradient at most."""
_CALLS = 3
"""Gradients before the timed one: from the third on, a GPU replays a recorded graph."""


def seconds_of_gradient(problem: Problem, settings: Settings) -> float:
    """Return the seconds of a full gradient of a few chains at w*, over at most 1,024 train items.

    Args:
        problem: What is to be attributed.
        settings: Settings with oracle, chains and chunk size.
    """
    assert settings.chains is not None and settings.chunk_size is not None
    device = run_device(problem, settings)
    anywhere = replace(settings, retrained_from=None, nbeta=1.0, gamma=1.0)
    posterior = make_posterior(problem, anywhere)
    oracle = make_oracle(problem, settings, list(posterior.center))
    chosen = torch.arange(min(problem.num_train, _ITEMS))
    params = tensors.stacked(posterior.center, min(settings.chains, _CHAINS))
    gradient = FullGradient(
        oracle,
        Items(problem.train.take(chosen)).to(device),
        chunk_size=settings.chunk_size,
        train_weights=item_weights(problem, next(iter(params.values())))[chosen.to(device)],
    )
    started = 0.0
    for _ in range(_CALLS + 1):
        wait_for(device)
        started = time.perf_counter()
        gradient(params, 0)
    wait_for(device)
    return time.perf_counter() - started
