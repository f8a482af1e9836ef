"""Group influence over the checkpoints of a training, beside measures of induction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bif
from benchmarks.induction import moments
from benchmarks.induction.model import Network, State, measures, network, start, train
from benchmarks.induction.sequences import GROUPS, Corpus, Group, corpus
from bif import baselines

FIRST_COPY = "first copy"
"""Queries about what no context predicts: the first copy of the segments of "induction"."""
QUERIES = (*GROUPS, FIRST_COPY)
BLOCKS = 2
"""Queries of each kind, each about several sequences."""
DAMPING = 25.0
"""gamma/nbeta: about the largest that checkpoints of a training of seed 100 need by default."""
WATCH_EVERY = 20
"""Updates between two measurements of induction."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the study.

    Attributes:
        steps: Updates of a training.
        checkpoints: Number of them, at equal ratios of steps.
        first: Step of the first; before any training all gradients are large.
        train: Train sequences by group, in the order of `GROUPS`.
        held_out: Held-out sequences of each group: half for queries, half to measure induction.
        scored: Train sequences that are scored, by group.
        window: Updates of the window of which halves are left out in the sweep.
        subsets: Such halves.
    """

    steps: int = 1200
    checkpoints: int = 16
    first: int = 80
    train: tuple[int, int, int] = (4096, 2048, 2048)
    held_out: int = 128
    scored: tuple[int, int, int] = (32, 16, 16)
    window: int = 6
    subsets: int = 48

    @property
    def kept(self) -> list[int]:
        """Return the steps of the checkpoints."""
        spread = np.geomspace(self.first, self.steps, self.checkpoints).round().astype(int)
        return sorted(set(spread.tolist()))


@dataclass
class Watch:
    """The measures of induction every few updates.

    Attributes:
        group: Sequences that are measured on.
        found: Steps, and at each the measures: a list a name.
    """

    group: Group
    found: dict[str, list[float]] = field(default_factory=lambda: {"step": []})

    def __call__(self, step: int, model: Network) -> None:
        if step % WATCH_EVERY:
            return
        self.found["step"].append(step)
        for name, value in measures(model, self.group).items():
            self.found.setdefault(name, []).append(value)


@dataclass(frozen=True)
class Trained:
    """A training, its checkpoints and what was measured on the way.

    Attributes:
        seed: Of the start, the order and the sequences.
        sizes: Sizes of the study.
        corpus: The sequences.
        pool: Ids of all train sequences, `[N, T]`, one group after another.
        states: The checkpoints.
        watched: Measures of induction by name, and their steps.
    """

    seed: int
    sizes: Sizes
    corpus: Corpus
    pool: Tensor
    states: Sequence[State]
    watched: dict[str, list[float]]

    @property
    def group_of(self) -> np.ndarray:
        """Return the group of every train sequence, `[N]`."""
        return np.repeat(GROUPS, self.sizes.train)

    def new_watch(self) -> Watch:
        """Return a watch of the same sequences as the training's own."""
        return Watch(_measured_on(self.corpus, self.pool.device))


def train_whole(texts: Sequence[str], sizes: Sizes, *, seed: int, device: str) -> Trained:
    """Train a network, and keep checkpoints and measures of induction."""
    found = corpus(
        texts, sizes=dict(zip(GROUPS, sizes.train, strict=True)), held_out=sizes.held_out, seed=seed
    )
    pool = torch.cat([found.train[name].ids for name in GROUPS]).to(device)
    watch = Watch(_measured_on(found, pool.device))
    states = train(
        start(seed, device), pool, seed=seed, until=sizes.steps, keep=sizes.kept[:-1], watch=watch
    )
    return Trained(seed, sizes, found, pool, states, watch.found)


def _measured_on(found: Corpus, device: torch.device) -> Group:
    """Return held-out sequences of which no query is."""
    group = found.held_out["induction"]
    return group.part(len(group) // 2, len(group)).to(device)


# --- Influence ------------------------------------------------------------------------------------


def mean_asked_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean loss over the characters asked about in the sequences of a query, `[B]`.

    `batch` has `input_ids` and `labels` `[B, S, T]`.
    """
    ids, labels = batch["input_ids"].flatten(0, 1), batch["labels"].flatten(0, 1)[:, 1:]
    logits = model(ids)[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    count = len(batch["labels"])
    return losses.reshape(count, -1).sum(1) / (labels != -100).reshape(count, -1).sum(1)


def queries(found: Corpus) -> dict[str, dict[str, Tensor]]:
    """Return the queries by kind, `[BLOCKS, S, T]`, of the first half of what is held out."""
    made = {}
    for name in QUERIES:
        group = found.held_out["induction" if name == FIRST_COPY else name]
        asked = group.first_copy() if name == FIRST_COPY else group.asked
        count = len(group) // 2 // BLOCKS * BLOCKS
        labels = group.ids.masked_fill(~asked, -100)
        made[name] = {
            key: leaf[:count].reshape(BLOCKS, count // BLOCKS, -1)
            for key, leaf in (("input_ids", group.ids), ("labels", labels))
        }
    return made


def problem(trained: Trained, scored: Tensor) -> bif.Problem:
    """Return the problem of some train sequences, with all queries."""
    return bif.Problem(
        network(trained.seed).to(trained.pool.device), bif.losses.next_token,
        train={"input_ids": scored, "labels": scored.clone()}, queries=queries(trained.corpus),
        observables=[bif.Observable("loss", mean_asked_loss, "lower")],
    )  # fmt: skip


def settings(trained: Trained, *, damping: float = DAMPING, **given: Any) -> bif.Settings:
    """Return settings of an estimator at the untempered posterior of all train sequences."""
    count = float(len(trained.pool))
    return bif.Settings(
        nbeta=count, gamma=damping * count, seed=trained.seed, device=str(trained.pool.device),
        **given,
    )  # fmt: skip


def influence_over_checkpoints(trained: Trained) -> dict[str, Any]:
    """Return curves over the checkpoints, `[K]` each: by query and train group, beside measures.

    Influences are means over the sequences of a group and the queries of a kind, in nats for one
    sequence more, times the number of train sequences; the gradient product is so, too.  "helps" is
    minus the influence of "induction" on itself, "helps_second_only" that less what it helps the
    first copy.
    """
    sizes = trained.sizes
    chosen = torch.cat(
        [trained.corpus.train[g].ids[:n] for g, n in zip(GROUPS, sizes.scored, strict=True)]
    ).to(trained.pool.device)
    names = np.repeat(GROUPS, sizes.scored)
    posed = problem(trained, chosen)
    series = bif.CheckpointSeries.from_weights({s.step: s.weights for s in trained.states})
    found = bif.trajectory(
        posed, series, settings(trained, estimator="response"), groups=names.tolist()
    )
    product = np.stack(
        [baselines.gradient_product(posed.at_weights(s.weights)).numpy() for s in trained.states]
    )
    d = found.dataset
    columns = [str(name) for name in d["train_id"].values]
    curves: dict[str, Any] = {"step": found.steps.tolist()}
    for row, query in enumerate(QUERIES):
        rows = slice(row * BLOCKS, (row + 1) * BLOCKS)
        for group, count in zip(GROUPS, sizes.scored, strict=True):
            one = d["influence"].values[:, 0, rows, columns.index(group)].mean(axis=1)
            error = d["standard_error"].values[:, 0, rows, columns.index(group)].max(axis=1)
            scale = len(trained.pool) / count
            key = f"{group} on {query}"
            curves[key] = (one * scale).tolist()
            curves[f"{key}, error"] = (error * scale).tolist()
            own = product[:, rows][:, :, names == group].mean(axis=(1, 2))
            curves[f"{key}, gradient product"] = own.tolist()
    curves["center_gradient"] = d["center_gradient"].values.tolist()
    curves["trusted"] = d["trusted"].values.astype(bool).tolist()
    curves["events"] = [
        event.in_words() for event in found.events()
        if event.train == "induction" and event.query.startswith("induction")
    ]  # fmt: skip
    return curves


# --- Moments --------------------------------------------------------------------------------------


def quantities(curves: dict[str, Any], watched: dict[str, list[float]]) -> dict[str, Any]:
    """Return what rises as induction is learned, each as steps and values."""
    made = {}
    for name, suffix in (("influence", ""), ("gradient product", ", gradient product")):
        second, first = (
            -np.array(curves[f"induction on {query}{suffix}"])
            for query in ("induction", FIRST_COPY)
        )
        made[name] = (curves["step"], second.tolist())
        made[f"{name}, less first copy"] = (curves["step"], (second - first).tolist())
    for name in ("prefix_score", "in_context_drop"):
        made[name] = (watched["step"], watched[name])
    return made


def moments_of(curves: dict[str, Any], watched: dict[str, list[float]]) -> dict[str, Any]:
    """Return onset, half of the rise, steepest rise and peak of each quantity, and its end.

    "left at end" is the share of the rise that is left at the last checkpoint.
    """
    made = {}
    for name, (steps, values) in quantities(curves, watched).items():
        at, x = np.asarray(steps), np.asarray(values)
        low = float(np.median(x[(at >= moments.EARLY[0]) & (at <= moments.EARLY[1])]))
        top = float(x[at >= moments.EARLY[0]].max())
        made[name] = {
            "onset": moments.rise(steps, values, moments.ONSET),
            "half": moments.rise(steps, values, 0.5),
            "peak": moments.peak(steps, values),
            "before": low, "largest": top, "end": float(x[-1]),
            "left_at_end": (float(x[-1]) - low) / (top - low) if top > low else float("nan"),
        }  # fmt: skip
        if name in ("prefix_score", "in_context_drop"):
            made[name]["steepest"] = moments.steepest(steps, values)
    return made
