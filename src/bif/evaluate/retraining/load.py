"""Banks from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bif import store
from bif.evaluate.retraining.bank import Bank, BankPart, Purpose
from bif.evaluate.retraining.plan import Plan
from bif.types import Target


def load(folder: str | Path) -> Bank:
    """Return the bank in a folder.

    Args:
        folder: A path or fsspec URL that `retrained` wrote to.

    Returns:
        The bank with all its networks.

    Raises:
        FileNotFoundError: There is no bank, or networks of it are still to be trained.
        DamagedRun: A file is not what was written.
        FolderInUse: The bank was written by another version of bif.
    """
    return load_networks(folder, None)


def load_networks(folder: str | Path, plan: Plan | None) -> Bank:
    """Return the bank with the networks of `plan`, or all; raise as `load` if some are missing."""
    place = store.folder_at(folder)
    manifest = store.BANK.read(place)
    store.BANK.refuse_format(place, manifest, readable=True)
    try:
        kept = Plan.from_dict(manifest["plan"])
        target, recipe = manifest["identity"]["target"], manifest["identity"]["how"]
    except (KeyError, TypeError, ValueError) as error:
        raise store.DamagedRun(f"{folder}: the manifest is damaged: {error!r}.") from error
    plan = plan or kept
    if kept.joined(plan) != kept:
        raise FileNotFoundError(
            f"{folder} holds a bank without some of the networks asked for: make the call of "
            "bif.bank.retrained with this plan, which adds them."
        )
    token = manifest.get("token", "")
    return Bank(
        reported=_part(folder, "reported", plan.num_subsets, plan.seeds, target, token),
        tuning=(
            _part(folder, "tuning", plan.num_tuning_subsets, plan.tuning_seeds, target, token)
            if plan.num_tuning_subsets
            else None
        ),
        target=target,
        recipe=recipe,
        plan=plan,
        manifest=manifest,
    )


def _part(
    folder: str | Path, purpose: Purpose, num_subsets: int, seeds: Any, target: Target, token: str
) -> BankPart:
    found = store.read_bank_part(folder, purpose, token=token)
    try:
        kept = found["seed"].values.tolist()
        rows = [kept.index(seed) for seed in seeds]
        outcome = found["outcome"].values[:, rows, :num_subsets]
        seconds = found["seconds"].values[rows, :num_subsets]
        masks = found["mask"].values[:num_subsets].astype(bool)
        names = [str(name) for name in found["observable"].values]
        ids = [np.asarray([str(i) for i in found[n].values]) for n in ("train_id", "query_id")]
        shape = (len(names), len(seeds), num_subsets, len(ids[1]))
        if outcome.shape != shape or masks.shape != (num_subsets, len(ids[0])):
            raise ValueError(f"outcomes {outcome.shape} and masks {masks.shape} do not fit")
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise store.DamagedRun(
            f"{folder}: the {purpose} part is damaged ({error}). The call of bif.bank.retrained "
            "that made it mends it."
        ) from error
    missing = int((~np.isfinite(outcome).all(axis=(0, 3))).sum())
    if missing:
        raise FileNotFoundError(
            f"{folder}: {missing} of {len(seeds) * num_subsets} networks of the {purpose} part are "
            "still to be trained, or their files are gone: make the call of bif.bank.retrained "
            "once more, and it will go on from there."
        )
    return BankPart(
        purpose=purpose,
        masks=masks,
        outcomes=dict(zip(names, outcome, strict=True)),
        seeds=tuple(seeds),
        train_ids=ids[0],
        query_ids=ids[1],
        seconds=float(np.nansum(seconds)),
        target=target,
    )
