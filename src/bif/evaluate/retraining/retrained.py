"""Retraining of a bank's networks: what is missing of it, stack by stack, each committed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bif import store
from bif.evaluate.retrain import MatmulPrecision, Recipe, check_seeds
from bif.evaluate.retraining.bank import Bank, BankPart
from bif.evaluate.retraining.load import load_networks
from bif.evaluate.retraining.parts import PartToTrain, identity, parts_to_train
from bif.evaluate.retraining.plan import Plan
from bif.evaluate.retraining.progress import progress_bar
from bif.evaluate.retraining.trainers import FunctionTrainer, RecipeTrainer, Trainer, TrainFunction
from bif.evaluate.training import Network
from bif.problem.items import Items
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.problem.provenance import hardware, versions
from bif.store.signals import termination_raises
from bif.types import Batch, Target

_RETRAIN_SHARE = 0.05
"""Largest share of the remaining time that training one network again may take."""
_RELATIVE_TOLERANCE = 0.01
"""Relative distance by which a network that is trained again may differ in any case."""
_FUNCTION_CHUNK = 16
"""Networks of one seed that are stored together where they are trained singly."""


def retrained(
    problem: Problem,
    tuning_queries: Items | Batch | Dataset[Any] | None,
    how: Recipe | TrainFunction,
    plan: Plan,
    *,
    target: Target,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    networks_per_stack: int = 64,
    precision: MatmulPrecision = "float32",
    show_progress: bool = False,
) -> Bank:
    """Retrain networks on subsets of the train items and measure what becomes of queries.

    A network depends on its subset and its seed alone: how it is stacked with others changes it by
    rounding only, and equal stacks give equal bits. With `out` every stack is committed as soon as
    it is trained; the same call goes on after whatever ended the process, and a call with further
    seeds or subsets adds to the bank. Networks of a recipe run in evaluation mode: dropout is off,
    and running statistics, which would have to be trained, are refused from scratch.

    Args:
        problem: Model, loss, train items, queries of the reported part, observables.
        tuning_queries: Queries of the tuning part; None where the plan has no tuning subsets.
        how: A recipe, by which many networks are trained at once; or a function
            `train(start, items, seed) -> model`, called network by network. `start` is a fresh
            copy of the trained model, or None from scratch; `items` are the subset's train items
            as one batch on the device, in the structure of `problem.train`; `seed`, in [0, 2^31),
            belongs to this subset and seed alone, and the global generators are seeded with it.
            The model that it returns is evaluated in evaluation mode.
        plan: Which subsets and seeds.
        target: "scratch": fresh weights; "checkpoint": the problem's trained weights.
        out: A path or fsspec URL; in memory only if None.
        device: Where to train; the model's device by default.
        networks_per_stack: Networks of a recipe that are trained at once: memory against speed.
        precision: Precision of matrix products of a recipe: "float32", or "tf32" on a GPU that has
            it.
        show_progress: Draw a progress bar on the terminal.

    Returns:
        The bank, with the networks of `plan`; the folder may hold more.

    Raises:
        ValueError: What does not fit, before any training.
        FloatingPointError: A network diverges; names subset and seed.
        FolderInUse: `out` holds another bank, other files, or has another writer; the message
            names what differs. Or a network that is there comes out otherwise when it is trained
            again, which is tried with the cheapest one.
        DamagedRun: The manifest in `out` cannot be read.  Other damage is mended by training anew.
        OSError: `out` cannot be written to; what was committed stays.
        Preempted: SIGTERM came; what was committed is in `out`.
    """
    _check(problem, target, networks_per_stack)
    trainer: Trainer
    if isinstance(how, Recipe):
        for seeds in (plan.seeds, plan.tuning_seeds):
            assert isinstance(seeds, tuple)
            check_seeds(seeds, how, target)
        trainer = RecipeTrainer(
            problem, how, target=target, device=device, num_at_once=networks_per_stack,
            precision=precision,
        )  # fmt: skip
    else:
        trainer = FunctionTrainer(problem, how, target=target, device=device)
    parts = parts_to_train(problem, tuning_queries, plan)
    manifest = {  # before anything is evaluated: a loss may be an object that remembers its calls
        "identity": identity(problem, parts, plan, how=trainer.description, target=target),
        "plan": plan.as_dict(),
        "networks_per_chunk": _FUNCTION_CHUNK if trainer.num_at_once == 1 else networks_per_stack,
        "versions": versions(),
        "hardware": [hardware(trainer.device)],
    }
    trainer.check(parts[0].masks[0], [part.queries for part in parts])
    work = _Training(problem.train.ids, parts, trainer, plan, manifest)
    if out is None:
        return work.run(None, show_progress=show_progress)
    bank = _load_if_complete(out, manifest, plan)
    if bank is not None:
        return bank
    with termination_raises(), store.open_bank(out, manifest) as folder:
        return work.run(folder, show_progress=show_progress)


@dataclass
class _Training:
    """A bank in training."""

    train_ids: np.ndarray
    parts: list[PartToTrain]
    trainer: Trainer
    plan: Plan
    manifest: dict[str, Any]

    def run(self, folder: store.BankFolder | None, *, show_progress: bool) -> Bank:
        """Train what is missing, and return the bank of the plan's networks."""
        manifest = store.plain(self.manifest)
        stores: list[store.BankPartStore | None] = [None for _ in self.parts]
        if folder is not None:
            _extend_manifest(folder, self.plan, hardware(self.trainer.device))
            manifest = folder.manifest
            stores = [_part_store(folder, part, self.train_ids) for part in self.parts]
        slots = [_PartOutcomes(p, s, manifest) for p, s in zip(self.parts, stores, strict=True)]
        if folder is not None:
            said = _refuse_other_training(slots, self.trainer, folder.folder)
            if said:
                folder.update({"notes": [*manifest.get("notes", []), said]})
        total = sum(len(slot.part.seeds) * len(slot.part.masks) for slot in slots)
        missing = sum(len(slot.missing()) for slot in slots)
        with progress_bar(total, total - missing, shown=show_progress) as advance:
            for slot in slots:
                slot.fill(self.trainer, advance)
        if folder is not None:
            folder.update({"complete": True})
            manifest = folder.manifest
        found = manifest["identity"]
        made = {slot.part.purpose: slot.result(self.train_ids, found["target"]) for slot in slots}
        return Bank(
            reported=made["reported"],
            tuning=made.get("tuning"),
            target=found["target"],
            recipe=found["how"],
            plan=self.plan,
            manifest=manifest,
        )


class _PartOutcomes:
    """The outcomes [A, S, M, Q] and seconds [S, M] of one part; NaN where a network is missing.

    Args:
        part: The part.
        arrays: The stored arrays of the part, or None.
        manifest: The folder's manifest, whose seeds may be more and in another order.
    """

    def __init__(
        self, part: PartToTrain, arrays: store.BankPartStore | None, manifest: dict[str, Any]
    ) -> None:
        self.part, self.arrays = part, arrays
        shape = (len(part.queries), len(part.seeds), len(part.masks), part.num_queries)
        self.outcomes, self.seconds = np.full(shape, np.nan), np.full(shape[1:3], np.nan)
        if arrays is not None:
            kept = _seeds_of(Plan.from_dict(manifest["plan"]), part)
            self._rows = [kept.index(seed) for seed in part.seeds]
            outcomes, seconds = arrays.read()
            self.outcomes = outcomes[:, self._rows, : shape[2]]
            self.seconds = seconds[self._rows, : shape[2]]

    def missing(self) -> list[tuple[int, int]]:
        """Return positions of seed and subset of networks that are still to be trained."""
        done = np.isfinite(self.outcomes).all(axis=(0, 3))
        return [(int(s), int(m)) for s, m in np.argwhere(~done)]

    def fill(self, trainer: Trainer, advance: Callable[[int], None]) -> None:
        """Train what is missing, a stack at a time."""
        missing = self.missing()
        for start in range(0, len(missing), trainer.num_at_once):
            stack = missing[start : start + trainer.num_at_once]
            networks = [Network(self.part.masks[m], self.part.seeds[s], m) for s, m in stack]
            began = time.perf_counter()
            values = trainer.outcomes(networks, self.part.queries)
            seconds = (time.perf_counter() - began) / len(stack)
            outcomes_AGQ = np.stack([values[name] for name in self.part.queries])
            for first, last in _consecutive_networks(stack):
                (s, m), g, count = stack[first], first, last - first
                self.outcomes[:, s, m : m + count] = outcomes_AGQ[:, g:last]
                self.seconds[s, m : m + count] = seconds
                if self.arrays is not None:
                    self.arrays.write(self._rows[s], m, outcomes_AGQ[:, g:last], seconds)
            advance(len(stack))

    def result(self, train_ids: np.ndarray, target: Target) -> BankPart:
        """Return the part, complete."""
        return BankPart(
            purpose=self.part.purpose,
            masks=self.part.masks,
            outcomes=dict(zip(self.part.queries, self.outcomes, strict=True)),
            seeds=self.part.seeds,
            train_ids=train_ids,
            query_ids=self.part.query_ids,
            seconds=float(np.nansum(self.seconds)),
            target=target,
        )


def _refuse_other_training(
    slots: list[_PartOutcomes], trainer: Trainer, folder: store.Folder
) -> str | None:
    """Retrain the cheapest network of the bank, and raise if it comes out otherwise.

    Returns:
        What is to be said where that would take too long.

    Raises:
        FolderInUse: It differs by more than seeds do, or subsets where there is one seed.
    """
    left = sum(len(slot.missing()) for slot in slots)
    there = [
        (slot.seconds[s, m], i, s, m)
        for i, slot in enumerate(slots)
        for s, m in np.argwhere(np.isfinite(slot.outcomes).all(axis=(0, 3))).tolist()
    ]
    if not left or not there:
        return None
    known = [seconds for seconds, *_ in there if np.isfinite(seconds)]
    seconds, index, s, m = min(there, key=lambda one: (not np.isfinite(one[0]), one[0]))
    cost = seconds * trainer.num_at_once  # one alone takes about as long as its stack did
    if known and cost > _RETRAIN_SHARE * left * float(np.mean(known)):
        return (
            f"no network was retrained when the bank went on with {left} to train: one takes about "
            f"{cost:.3g} s, more than {_RETRAIN_SHARE:.0%} of what was left"
        )
    slot = slots[index]
    network = Network(slot.part.masks[m], slot.part.seeds[s], m)
    values = trainer.outcomes([network], slot.part.queries)
    for a, name in enumerate(slot.part.queries):
        then, now = slot.outcomes[a, s, m], values[name][0]
        seeds = slot.outcomes[a, :, m]
        others = seeds if np.isfinite(seeds).all(axis=1).sum() > 1 else slot.outcomes[a, s]
        spread = others[np.isfinite(others).all(axis=1)].std(axis=0)
        allowed = np.sqrt(np.mean(spread**2)) + _RELATIVE_TOLERANCE * np.sqrt(np.mean(then**2))
        distance = np.sqrt(np.mean((now - then) ** 2))
        if not distance <= allowed:
            raise store.FolderInUse(
                f"{folder} holds a network (subset {m}, seed {network.seed}) that comes out "
                f"otherwise when it is trained again: {name!r} of the queries differs by "
                f"{distance:.3g}, {allowed:.3g} or less was expected. Something that the training "
                "depends on has changed: put it back, or choose another folder."
            )
    return None


def _consecutive_networks(stack: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield stretches `[first, last)` of one seed and consecutive subsets."""
    keyed = groupby(enumerate(stack), key=lambda item: (item[1][0], item[1][1] - item[0]))
    for _, group in keyed:
        positions = [position for position, _ in group]
        yield positions[0], positions[-1] + 1


def _extend_manifest(folder: store.BankFolder, plan: Plan, where: dict[str, str]) -> None:
    """Enter further subsets, seeds and hardware before any training."""
    try:
        kept = Plan.from_dict(folder.manifest["plan"])
    except ValueError as error:
        raise store.DamagedRun(f"the plan in {folder.folder}'s manifest: {error}") from error
    machines = folder.manifest["hardware"]
    folder.update({
        "plan": kept.joined(plan).as_dict(),
        "hardware": machines if where in machines else [*machines, where],
        "complete": False,
    })  # fmt: skip


def _part_store(
    folder: store.BankFolder, part: PartToTrain, train_ids: np.ndarray
) -> store.BankPartStore:
    plan = Plan.from_dict(folder.manifest["plan"])
    reported, num_items = part.purpose == "reported", len(train_ids)
    layout = store.BankLayout(
        observables=list(part.queries),
        seeds=list(_seeds_of(plan, part)),
        masks=plan.masks(num_items) if reported else plan.tuning_masks(num_items),
        train_ids=train_ids.tolist(),
        query_ids=part.query_ids.tolist(),
        networks_per_chunk=folder.manifest["networks_per_chunk"],
    )
    return folder.part(part.purpose, layout)


def _seeds_of(plan: Plan, part: PartToTrain) -> tuple[int, ...]:
    seeds = plan.seeds if part.purpose == "reported" else plan.tuning_seeds
    assert isinstance(seeds, tuple)  # since the plan was made
    return seeds


def _load_if_complete(out: str | Path, manifest: dict[str, Any], plan: Plan) -> Bank | None:
    """Return the bank in the folder if it holds these networks; write nothing."""
    with contextlib.suppress(FileNotFoundError, store.DamagedRun, ValueError):
        found = store.BANK.read(store.folder_at(out))
        if found.get("complete") and not store.differences(
            found["identity"], store.plain(manifest["identity"])
        ):
            return load_networks(out, plan)
    return None


def _check(problem: Problem, target: str, networks_per_stack: int) -> None:
    require_literal("target", target, Target)
    if networks_per_stack < 1:
        raise ValueError(f"networks_per_stack is {networks_per_stack}; expected at least 1.")
    if problem.train_weights is not None:
        raise ValueError(
            "the problem has train_weights, which retraining would leave out of account; expected "
            "none. Make the weight a part of each item and let the loss multiply by it."
        )
