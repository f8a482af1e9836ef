"""Other similarities of a problem's items, which stand beside its loss kernel as controls.

Each is a kernel with the items, ids and labels of `bif.loss_kernel`, so that neighbours, maps and
agreement with a hierarchy take it as they take that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif.baselines.projection import Projection
from bif.baselines.similarity import representations
from bif.estimate.item_kernel import FeatureKernel, ItemKernel, classes_of
from bif.estimate.loss_kernel import LossKernel
from bif.estimate.token_overlap import TokenOverlap
from bif.problem.items import Items, batch_leaves
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.runs.classes import class_labels
from bif.runs.controls import ball_traces
from bif.runs.loss_kernel import Sides, joined_labels, loss_kernel
from bif.runs.run import Run
from bif.sampling.engine import Engine
from bif.sampling.item_gradients import item_gradient_chunks
from bif.sampling.settings import RunSettings

_MOST_EXACT = 2**28
"""Numbers of all items' gradients up to which they are kept as they are: 1 GiB in float32."""
_DIMENSION = 4096
"""Of projected gradients: a cosine then has an error of 1/64."""
_GROUPS = 8
"""Groups of independent draws, by whose spread errors are known."""
_ITEMS = 256
"""Items of a batch that is read at a time."""


def activation_kernel(
    problem: Problem, sides: Sides = "train", *, layer: str | None = None
) -> FeatureKernel:
    """Return the similarity of hidden representations at w*, of which correlations are cosines.

    Args:
        problem: Model and items.
        sides: Items, as for `bif.loss_kernel`.
        layer: Name of the module whose *input* is the representation; by default the Linear layer
            that runs last, so the last hidden layer.  Inputs `[B, T, d]` are averaged over T,
            others flattened.

    Raises:
        ValueError: No such layer, or no Linear layer; tokens with columns of their own.
    """
    groups, ids, labels = _items_of(problem, sides)
    rows = representations(problem, groups, layer=layer)
    return FeatureKernel(torch.cat(rows).cpu(), ids, labels)


def gradient_kernel(
    problem: Problem,
    sides: Sides = "train",
    *,
    movable: Sequence[str] | None = None,
    dimension: int | None = None,
    seed: int = 0,
) -> FeatureKernel:
    """Return inner products of the items' gradients at w*, of which correlations are cosines.

    `g_i·g_j` is the limit of the loss kernel at large gamma, times gamma.  Gradients of up to 2^28
    numbers in all are kept as they are; of more, random projections to 4,096 dimensions, whose
    cosines have a standard error of 1/64.

    Args:
        problem: Model, loss and items.  Rows are divided by `M^(1/2)` of its metric if it has one.
        sides: Items, as for `bif.loss_kernel`.
        movable: Globs of the parameters whose gradients count; all that are trained by default.
        dimension: Of projections; a cosine's error is at most `1 / sqrt(dimension)`.
        seed: Of the projection.

    Raises:
        ValueError: A dimension below 1; tokens with columns of their own.
    """
    groups, ids, labels = _items_of(problem, sides)
    rows: list[Tensor] = []
    project = None
    for items in groups:
        for chunk in item_gradient_chunks(problem, problem.loss, items, movable=movable):
            if dimension is None and chunk.shape[1] * len(ids) > _MOST_EXACT:
                dimension = min(_DIMENSION, chunk.shape[1])
            if dimension is not None and project is None:
                project = Projection(
                    chunk.shape[1], dimension, kind="rademacher", seed=seed, like=chunk
                )
            rows.append((chunk if project is None else project(chunk)).cpu())
    return FeatureKernel(torch.cat(rows), ids, labels)


def input_kernel(
    problem: Problem, sides: Sides = "train", *, leaf: str | None = None, padding: int | None = None
) -> FeatureKernel | TokenOverlap:
    """Return the similarity of the inputs themselves, without the model.

    Of numbers such as pixels inner products, less their mean over the items; correlations are their
    cosines.  Of integers such as tokens Jaccard's index of the sets of them.

    Args:
        problem: Whose items.
        sides: Items, as for `bif.loss_kernel`.
        leaf: Which tensor of a batch is the input, such as "batch[0]" or "batch['input_ids']";
            by default the first.
        padding: A token that does not count.

    Raises:
        ValueError: No such tensor; tokens with columns of their own.
    """
    groups, ids, labels = _items_of(problem, sides)
    parts = [_leaf(batch, leaf) for items in groups for _, batch in items.chunks(_ITEMS)]
    if parts[0].is_floating_point():
        return _centred(torch.cat([part.flatten(1).cpu() for part in parts]), ids, labels)
    tokens = [row.flatten().cpu().numpy() for part in parts for row in part]
    return TokenOverlap(tuple(row[row != padding] for row in tokens), ids, labels)


def picture_kernel(pictures: np.ndarray, kernel: ItemKernel) -> FeatureKernel:
    """Return the similarity of the items' pictures, as `input_kernel` has it of pixels.

    Args:
        pictures: Of the items, as `pictures_of` returns them, `[N, …]` uint8.
        kernel: Whose items.

    Raises:
        ValueError: Another number of pictures than items.
    """
    rows = torch.from_numpy(np.ascontiguousarray(pictures)).flatten(1).float()
    return _centred(rows, kernel.ids, kernel.labels)


def _centred(
    rows: Tensor, ids: tuple[str, ...], labels: dict[str, tuple[str, ...]]
) -> FeatureKernel:
    return FeatureKernel((rows - rows.mean(dim=0, dtype=torch.float64)).to(rows), ids, labels)


def label_kernel(kernel: ItemKernel, label: str = "label") -> FeatureKernel:
    """Return the kernel of one who knows the classes alone: 1 within a class, 0 across.

    Args:
        kernel: Whose items and labels.
        label: Which of the labels classes are.

    Raises:
        KeyError: No such labels.
    """
    names, index = classes_of(kernel.labels_of(label), len(kernel))
    rows = torch.nn.functional.one_hot(index, len(names)).double()
    return FeatureKernel(rows, kernel.ids, kernel.labels)


def ball_kernel(
    problem: Problem, run: Run, sides: Sides = "train", *, observable: str | None = None
) -> LossKernel:
    """Return the loss kernel at `nbeta = 0`: of the Gaussian `N(w*, 1/gamma)` that knows no data.

    What it shows comes from the network at w* and from the loss, not from the landscape around.  It
    has as many draws as the run, up to 4,096, all independent of each other, in eight groups in
    the place of chains.

    Args:
        problem: Of the run.
        run: Beside which it stands, for gamma, seed and what is movable.
        sides: Items, as for `bif.loss_kernel`.
        observable: Of the queries; the first by default.

    Raises:
        ValueError: A run without gamma, which has no ball, or one that was solved; another problem
            than the run's.
        KeyError: No such observable.
    """
    if not run.traces.blocks:
        raise ValueError(
            "the run was solved: a ball stands beside chains. Attribute with "
            "Settings(estimator='covariance')."
        )
    settings = RunSettings(**{**run.manifest["settings"], "mass": "identity"})
    if not settings.gamma:
        raise ValueError(
            "the run has gamma=0, and at nbeta=0 gamma alone holds the weights near w*: there is "
            "no ball. Attribute with gamma > 0."
        )
    of_run = loss_kernel(run, sides, observable=observable)
    _, ids, labels = _items_of(problem, sides)
    if ids != of_run.ids:
        raise ValueError("the problem has other items than the run: pass that of the run.")
    engine = Engine(problem, settings)
    traces = ball_traces(engine, settings.chains * settings.draws)
    names = [one.name for one in problem.observables]
    first = names.index(observable or names[0]) * problem.num_queries
    ((_, train, query),) = traces.each_chain()
    parts = {"train": train, "query": query[:, first : first + problem.num_queries]}
    losses = torch.cat([part for side, part in parts.items() if sides in (side, "both")], dim=1)
    groups = torch.arange(len(losses)) * _GROUPS // len(losses)
    return LossKernel(losses.T.contiguous(), groups, ids, labels)


def _items_of(
    problem: Problem, sides: Sides
) -> tuple[list[Items], tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return groups of items with the ids and labels that `loss_kernel` gives them."""
    require_literal("sides", sides, Sides)
    problem.refuse_tokens("a similarity of items")
    train, query, classes = problem.scored_groups, problem.query_groups, class_labels(problem)
    of_sides = {
        # a run names the groups of its train items only where there are candidates
        "train": _labelled(
            train, list(map(str, problem.scored_ids)), classes.get("train_label"),
            grouped=len(train) > 1,
        ),
        "query": _labelled(
            query, list(map(str, problem.query_ids)), classes.get("query_label"), grouped=True
        ),
    }  # fmt: skip
    chosen = [of_sides[side] for side in of_sides if sides in (side, "both")]
    return (
        [items for groups, _, _ in chosen for items in groups],
        tuple(name for _, ids, _ in chosen for name in ids),
        joined_labels([labels for _, _, labels in chosen], [len(ids) for _, ids, _ in chosen]),
    )


def _labelled(
    groups: Mapping[str, Items], ids: list[str], classes: np.ndarray | None, *, grouped: bool
) -> tuple[list[Items], list[str], dict[str, list[str]]]:
    """Return groups of one side, and their ids and labels as a run has them."""
    texts = [
        ({} if items.labels is None else {"label": items.labels})
        | items.about
        | ({"group": [name] * len(items)} if grouped else {})
        for name, items in groups.items()
    ]
    shared = [name for name in texts[0] if all(name in some for some in texts)]
    labels = {name: [str(x) for some in texts for x in some[name]] for name in shared}
    if classes is not None:
        labels.setdefault("label", list(map(str, classes)))
    return list(groups.values()), ids, labels


def _leaf(batch: Any, name: str | None) -> Tensor:
    leaves = batch_leaves(batch)
    if name is not None and name not in leaves:
        raise ValueError(
            f"a batch has no tensor {name!r}: it has {', '.join(leaves)}. Name one of these."
        )
    return next(iter(leaves.values())) if name is None else leaves[name]
