"""The two parts of a bank that is to be trained: subsets, queries, and that they are not mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bif.evaluate.retrain import Queries
from bif.evaluate.retraining.bank import Purpose
from bif.evaluate.retraining.plan import Plan
from bif.problem.code import code_fingerprint, model_code
from bif.problem.items import Items, as_items, batch_leaves, map_batch
from bif.problem.problem import Problem
from bif.problem.provenance import fingerprint, items_fingerprint
from bif.types import Batch, Target


@dataclass(frozen=True, eq=False)
class PartToTrain:
    """One part: every network of it, and what is asked of them.

    Attributes:
        purpose: The purpose of the part.
        masks: The subsets, bool [M, N].
        seeds: The seeds, S of them.
        groups: The queries.
        query_ids: Their names, [Q].
        queries: Observable -> function and batches of queries.
    """

    purpose: Purpose
    masks: np.ndarray
    seeds: tuple[int, ...]
    groups: dict[str, Items]
    query_ids: np.ndarray
    queries: Queries

    @property
    def num_queries(self) -> int:
        """Number of queries Q."""
        return len(self.query_ids)


def parts_to_train(
    problem: Problem, tuning_queries: Items | Batch | Dataset[Any] | None, plan: Plan
) -> list[PartToTrain]:
    """Return the reported part and, if the plan has one, the tuning part.

    Raises:
        ValueError: Subsets that cannot be drawn; tuning queries where there are no tuning subsets
            or the other way round, of another structure, or among the reported ones.
    """
    problem.refuse_tokens("a bank of retrained networks")
    n = problem.num_train
    reported = _part(
        problem, "reported", plan.masks(n), plan.seeds, problem.query_groups, problem.query_ids
    )
    if (tuning_queries is None) != (plan.num_tuning_subsets == 0):
        got = "are given" if tuning_queries is not None else "is None"
        raise ValueError(
            f"tuning_queries {got} and num_tuning_subsets is {plan.num_tuning_subsets}; expected "
            "both or neither. Methods are tuned on subsets and queries that are not reported."
        )
    if tuning_queries is None:
        return [reported]
    items = as_items(tuning_queries)
    problem.extended(queries={_unused_name(problem): items})  # checks structure and values
    _refuse_shared(problem.query_groups, items)
    groups = {"tuning": items}
    tuning = _part(problem, "tuning", plan.tuning_masks(n), plan.tuning_seeds, groups, items.ids)
    return [reported, tuning]


def identity(
    problem: Problem,
    parts: list[PartToTrain],
    plan: Plan,
    *,
    how: dict[str, Any],
    target: Target,
) -> dict[str, Any]:
    """Return what two banks share if they are one, however many seeds and subsets they have.

    Weights that fresh networks do not start from do not enter.
    """
    state = dict(problem.model.state_dict())
    if target == "scratch":
        named = problem.model.named_parameters(remove_duplicate=False)
        trained = {name for name, parameter in named if parameter.requires_grad}
        state = {name: value for name, value in state.items() if name not in trained}
    groups = {part.purpose: part.groups for part in parts}
    return {
        "how": how,
        "target": target,
        "model": model_code(problem.model),
        "weights": fingerprint(state),
        "train": items_fingerprint(problem.train),
        "subsets": {
            "fraction": plan.fraction,
            "num_removed": plan.num_removed,
            "mask_seed": plan.mask_seed,
        },
        "queries": {n: items_fingerprint(i) for n, i in groups["reported"].items()},
        "tuning_queries": {n: items_fingerprint(i) for n, i in groups.get("tuning", {}).items()},
        "observables": {o.name: code_fingerprint(o.function) for o in problem.observables},
    }


def _part(
    problem: Problem,
    purpose: Purpose,
    masks: np.ndarray,
    seeds: Sequence[int] | int | None,
    groups: dict[str, Items],
    query_ids: np.ndarray,
) -> PartToTrain:
    assert isinstance(seeds, tuple)  # since the plan was made
    batches = [items.first(len(items)) for items in groups.values()]
    queries = {o.name: (o.function, batches) for o in problem.observables}
    return PartToTrain(purpose, masks, seeds, groups, query_ids, queries)


def _unused_name(problem: Problem) -> str:
    """Return a name of a group that the problem does not have."""
    name = "tuning"
    while name in problem.query_groups:
        name += "'"
    return name


def _refuse_shared(groups: dict[str, Items], tuning: Items) -> None:
    """Raise where an item is both a reported and a tuning query, whatever it is called."""
    reported = {digest for items in groups.values() for digest in _digests(items)}
    shared = [
        i for i, digest in zip(tuning.ids, _digests(tuning), strict=True) if digest in reported
    ]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(tuning)} tuning queries are reported queries too, the first "
            f"named {', '.join(shared[:5])} among the tuning queries; expected other items: what "
            "was tuned on a query must not be reported on it. Leave them out of one of the two."
        )


def _digests(items: Items) -> list[bytes]:
    """Return hashes of the items one by one."""
    batch = map_batch(lambda leaf: leaf.cpu().contiguous(), items.first(len(items)))
    leaves = [leaf.reshape(len(items), -1) for leaf in batch_leaves(batch).values()]
    rows = [leaf.view(torch.uint8) if leaf.shape[1] else leaf for leaf in leaves]
    return [
        hashlib.sha256(b"|".join(row[i].numpy().tobytes() for row in rows)).digest()
        for i in range(len(items))
    ]
