"""The command that plans a re-weighting of the training data which moves chosen queries."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bif import store
from bif.cli.language import Language
from bif.cli.options import Target
from bif.cli.retraining import EVERY, Checked, Request, attributed_run, query_groups, retrain_task
from bif.cli.shift import UNVERIFIED, say_plainly
from bif.sampling.settings import Settings
from bif.terminal import say

if TYPE_CHECKING:
    from bif.runs.run import Run
    from bif.susceptibility import Steering

WEIGHTS, PAGE = "weights.csv", "steering.html"


@dataclass(frozen=True, kw_only=True)
class Steer:
    """Plan the least re-weighting of the training data that moves chosen queries by an amount.

    By influence, solved backwards; nothing is retrained unless --retrain asks for it.  Writes
    weights.csv with the weight of every item, steering.html and summary.json.
    """

    target: Target = None
    """FILE.py:FUNCTION, unless there is a --run-folder or a --model; its run is kept in OUT/run.
    The function returns a bif.Problem, or a bif.benchmark.Task."""
    run_folder: str | None = None
    """A run's folder, in the place of another run."""
    queries: str = EVERY
    """The queries that are to move: a label of theirs, or the name of their group."""
    change: float
    """By how much their mean observable is to move, such as -0.1."""
    by: str | None = None
    """Another text of the queries that names their groups."""
    observable: str | None = None
    """Which observable moves; the first one if left out."""
    hold: tuple[str, ...] = ()
    """Groups of queries that stay where they are; "others" are all others."""
    tolerance: float = 0.0
    """How far these may move, to first order."""
    groups: str | None = None
    """Text of the train items whose groups share one change; every item on its own if left out."""
    free: bool = False
    """Let weights become negative."""
    order: Literal["first", "second"] = "first"
    """To which order the change is met; "second" needs the traces."""
    total_weight: Literal["preserved", "added"] = "preserved"
    """Whether the sum of the weights stays."""
    retrain: bool = False
    """Retrain networks with the weights, and show what was achieved; of a task,
    FILE.py:FUNCTION."""
    seeds: int = 5
    """With --retrain: networks with the weights, and as many without."""
    out: str
    """Folder for weights.csv, steering.html and summary.json."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.report.steering_page import render_steering
        from bif.susceptibility import steer

        run, rho, task = attributed_run(
            self.target, self.run_folder, self.language, self.settings, out=self.out,
            query=self.query, groups=self.groups,
            retraining=Request(self.seeds) if self.retrain else None,
            estimator="covariance" if self.order == "second" else None,
        )  # fmt: skip
        queries = self._query_groups(run)
        hold = self.hold
        if "others" in hold and "others" not in queries:
            hold = tuple(n for n in queries if n not in (EVERY, self.queries))
        found = steer(
            run, self.queries, change=self.change, queries=queries, observable=self.observable,
            hold=hold, tolerance=self.tolerance, groups=self.groups,
            weights="free" if self.free else "clipped", order=self.order,
            total_weight=self.total_weight, train_weights=rho,
        )  # fmt: skip
        achieved: dict[str, list[float]] = {}
        observable = self.observable or str(found.dataset["observable"].values[0])
        if task is not None:
            checked = retrain_task(task, found.weights[None], num_seeds=self.seeds)
            achieved = _achieved(checked, observable, queries)
        page = render_steering(
            found.dataset.sel(observable=observable), queries=self.queries,
            is_reached=found.is_reached, share_moved=found.share_moved,
            failed_gates=run.failed_gates, achieved=achieved,
            version=run.manifest.versions.get("bif", ""),
        )  # fmt: skip
        figures = _figures(found, observable, achieved)
        figures |= {"trusted": bool(run.summary.trusted), "failed_gates": run.failed_gates}
        store.write_summary(self.out, figures, files={WEIGHTS: _table(found), PAGE: page})
        if run.failed_gates:
            say([f"NOT TRUSTED ({', '.join(run.failed_gates)}): changes may be noise."])
        say_plainly(f"{found!r}")
        if achieved:
            seeds = achieved[self.queries]
            say_plainly(
                f"retrained with {len(seeds)} seeds: {np.mean(seeds):+.4g} "
                f"({min(seeds):+.4g} to {max(seeds):+.4g})"
            )
        else:
            say_plainly(UNVERIFIED)
        say_plainly(f"written: {self.out}")

    def _query_groups(self, run: Run) -> dict[str, Sequence[int]]:
        """Return the queries of each name: by --by, or else by label, or by their own groups."""
        known = [str(n)[6:] for n in run.influence.dataset.coords if str(n).startswith("query_")]
        if self.by is not None and self.by not in known:
            raise KeyError(
                f"the queries have no {self.by!r} that names their groups; they have {known}: name "
                "another in --by."
            )
        by_label = query_groups(run, self.by or "label")
        if self.by is not None or self.queries in by_label:
            return by_label
        by_group = query_groups(run, "group")
        return by_group if self.queries in by_group else by_label


def _achieved(
    checked: Checked, observable: str, queries: Mapping[str, Sequence[int]]
) -> dict[str, list[float]]:
    """Return what each seed made of every group of queries."""
    return {name: checked.of(observable, places)[0].tolist() for name, places in queries.items()}


def _figures(
    found: Steering, observable: str, achieved: Mapping[str, list[float]]
) -> dict[str, Any]:
    rows = found.dataset.sel(observable=observable)
    names = ("predicted", "predicted_error", "second", "second_error")
    queries: dict[str, dict[str, Any]] = {
        str(query): {name: float(rows[name].sel(query=query)) for name in names}
        for query in rows["query"].values
    }
    for name, seeds in achieved.items():
        queries[name]["retrained"] = seeds
    return {
        "what": "retrained" if achieved else UNVERIFIED, **found.dataset.attrs,
        "asked": found.asked, "intended": found.intended, "is_reached": found.is_reached,
        "reachable": list(found.reachable), "reliability": found.reliability,
        "size": found.size, "share_moved": found.share_moved, "queries": queries,
    }  # fmt: skip


def _table(found: Steering) -> str:
    """Return the weights of the items as comma-separated values, the largest changes first."""
    dataset, held = found.dataset, io.StringIO()
    columns = [n for n in ("train_id", "train_label", "train_group") if n in dataset.coords]
    numbers = ("trained_weight", "change", "weight")
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow([*(n.removeprefix("train_") for n in columns), *numbers])
    for at in np.argsort(-np.abs(dataset["change"].values), kind="stable"):
        texts = [str(dataset[name].values[at]) for name in columns]
        writer.writerow([*texts, *(repr(float(dataset[name].values[at])) for name in numbers)])
    return held.getvalue()
