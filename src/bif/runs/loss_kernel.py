"""The loss kernel of a run's items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bif.estimate.loss_kernel import LossKernel
from bif.problem.literals import require_literal
from bif.runs.recorded import query_columns, refuse_without_traces
from bif.runs.run import Run

Sides = Literal["train", "query", "both"]


_NO_LABELS = ("id", "prediction", "features", "target")
"""What a run tells of items beside their labels."""


def loss_kernel(run: Run, sides: Sides = "train", *, observable: str | None = None) -> LossKernel:
    """Return covariances of the losses of a run's items, at any pair of them.

    Args:
        run: With the traces of its items.
        sides: Train items, queries by an observable, or both, train items first.  Of both each has
            the label "side", unless they have one of that name.
        observable: Of the queries; the first by default.

    Raises:
        ValueError: The run was solved, keeps sums or has lost its traces; other sides.
        KeyError: No such observable.
    """
    require_literal("sides", sides, Sides)
    _, columns = query_columns(run, observable)
    refuse_without_traces(run, "a loss kernel")
    dataset = run.influence.dataset
    parts, ids, labels = [], [], []
    if sides != "query":
        parts.append(_joined([train for _, train, _ in run.traces.each_chain()]))
        ids += _texts(dataset["train_id"].values)
        labels.append(_labels(run, "train"))
    if sides != "train":
        parts.append(_joined([query[:, columns] for _, _, query in run.traces.each_chain()]))
        ids += _texts(dataset["query_id"].values)
        labels.append(_labels(run, "query"))
    counts = [len(train) for _, train, _ in run.traces.each_chain()]
    chains = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    joined = joined_labels(labels, [len(part) for part in parts])
    return LossKernel(torch.cat(parts), chains, tuple(ids), joined)


def joined_labels(
    labels: Sequence[Mapping[str, Sequence[str]]], counts: Sequence[int]
) -> dict[str, tuple[str, ...]]:
    """Return the labels that all sides have; of train items and queries which of them each is.

    Args:
        labels: Of each side, train items first, by their names.
        counts: Items of each.
    """
    shared = [name for name in labels[0] if all(name in some for some in labels)]
    joined = {name: tuple(x for some in labels for x in some[name]) for name in shared}
    if len(labels) > 1 and "side" not in joined:
        joined["side"] = ("train",) * counts[0] + ("query",) * counts[1]
    return joined


def pictures_of(run: Run, sides: Sides = "train") -> np.ndarray | None:
    """Return the pictures of a run's items, uint8 `[N, row, column]` or `[…, channel]`, if any.

    Args:
        run: Whose items.
        sides: As for `loss_kernel`; of both there are pictures where they have one size.
    """
    require_literal("sides", sides, Sides)
    dataset = run.influence.dataset
    chosen = ("train", "query") if sides == "both" else (sides,)
    found = [np.asarray(dataset[f"{side}_image"].values) for side in chosen
             if f"{side}_image" in dataset.variables]  # fmt: skip
    if len(found) < len(chosen) or len({pictures.shape[1:] for pictures in found}) > 1:
        return None
    return np.concatenate(found)


def _joined(of_chains: list[Tensor]) -> Tensor:
    """Return losses `[N, M]` of chains' traces `[D, N]`."""
    return torch.cat(of_chains).T.contiguous()


def _labels(run: Run, side: str) -> dict[str, list[str]]:
    """Return what is known of the items of a side in words, by its name."""
    found = {}
    for name, values in run.influence.dataset.coords.items():
        known = str(name).removeprefix(f"{side}_")
        if known != name and known not in _NO_LABELS and values.dims == (side,):
            if values.dtype.kind in "OUST":
                found[known] = _texts(values.values)
    return found


def _texts(values: np.ndarray) -> list[str]:
    return [str(value) for value in values]
