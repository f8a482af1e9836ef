"""The identity of a run: what must be the same for two runs to be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bif.problem.code import code_fingerprint, model_code
from bif.problem.problem import Problem
from bif.problem.provenance import fingerprint, items_fingerprint


def identity(problem: Problem, settings: Mapping[str, object]) -> dict[str, Any]:
    """Return what makes two runs the same run: requested settings, weights, data and functions.

    Args:
        problem: The problem that is asked.
        settings: The requested settings, by `Settings.as_dict`.
    """
    weights = problem.train_weights
    proxies = {
        o.name: [o.through.name, *map(code_fingerprint, (o.through.function, o.through.slope))]
        for o in problem.observables
        if o.through is not None
    }
    return {
        "settings": dict(settings),
        "weights": fingerprint(dict(problem.model.state_dict())),
        "model": model_code(problem.model),
        "train": items_fingerprint(problem.train),
        "train_weights": None if weights is None else fingerprint(weights),
        "candidates": {n: items_fingerprint(i) for n, i in problem.candidate_groups.items()},
        "queries": {n: items_fingerprint(i) for n, i in problem.query_groups.items()},
        "loss": code_fingerprint(problem.loss),
        "observables": {o.name: code_fingerprint(o.function) for o in problem.observables},
        # Not there where nothing is: runs of versions that knew none are still the same runs.
        **({"through": proxies} if proxies else {}),
        **({"metric": fingerprint(problem.metric)} if problem.metric else {}),
        **({"path": [fingerprint(w) for w in problem.path]} if problem.path else {}),
        **({"tokens": problem.tokens} if problem.tokens else {}),
    }
