"""The command that predicts what a shift of the training data does, without retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from bif import store
from bif.cli.language import Language, pose_problem
from bif.sampling.settings import Settings
from bif.terminal import escape_controls, say

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from bif.problem.problem import Problem
    from bif.runs.run import Run

SHIFT = "shift.zarr"
UNVERIFIED = "a prediction, unverified: no network was retrained"
_EVERY = "all queries"
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Predict how losses move when groups of the training data lose or gain weight.

    To first and second order, and by re-weighting the draws, from one run and without retraining.
    Writes shift.zarr, and summary.json with the change of the mean over all queries.
    """

    target: tyro.conf.Positional[str | None] = None
    """FILE.py:FUNCTION, unless there is a --run-folder or a --model; its run is kept in OUT/run."""
    run_folder: str | None = None
    """A run's folder with the traces of its items, in the place of FILE.py:FUNCTION."""
    groups: str = "label"
    """Which text of the train items names their groups, such as label or source."""
    sizes: tuple[float, ...] = (-1.0, -0.5, -0.2, -0.1, -0.01, 0.01, 0.1, 0.2, 0.5, 1.0)
    """Changes of the weight of a group's items; -1 removes the group, 1 doubles it."""
    total_weight: Literal["preserved", "added"] = "preserved"
    """Whether weights are normalised to the sum they had, as if the network were trained on the
    mean loss of other data."""
    out: str
    """Folder for shift.zarr and summary.json."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.susceptibility import group_shifts, predicted_change

        if self.run_folder is not None and (self.target or self.language.model):
            raise ValueError("expected FILE.py:FUNCTION, a --model, or --run-folder DIR, not two.")
        run, weights = self._run()
        shifts = group_shifts(
            run, self.groups, total_weight=self.total_weight, train_weights=weights
        )
        queries = _query_groups(run, self.groups)
        found = predicted_change(run, shifts, self.sizes, queries=queries)
        removed = shifts.names if min(self.sizes) <= -1 else ()
        notes = [f"{n}: removed, and {len(queries[n])} queries are of it: far from small"
                 for n in removed if n in queries]  # fmt: skip
        about = {
            "what": UNVERIFIED, "trusted": bool(run.summary.trusted),
            "failed_gates": run.failed_gates, "notes": notes, "groups": self.groups,
        }  # fmt: skip
        figures = dict(found.attrs) | about | {"shifts": _figures(found)}
        store.write_summary(
            self.out, figures, datasets={SHIFT: found.assign_attrs(what=UNVERIFIED)}
        )
        if run.failed_gates:
            say([f"NOT TRUSTED ({', '.join(run.failed_gates)}): changes may be noise."])
        self._print(found, notes)

    def _run(self) -> tuple[Run, Tensor | None]:
        """Return the run, and the weights of the problem's train items."""
        from bif.runs.attribute import attribute
        from bif.runs.run import load

        if self.run_folder is not None:
            return load(self.run_folder), None
        problem, settings = pose_problem(
            self.target, self.language, self.settings, query=self.query
        )
        _refuse_without_text(problem, self.groups)
        settings = replace(settings, estimator="covariance")
        folder = f"{self.out.rstrip('/')}/run"
        return attribute(problem, settings, out=folder, show_progress=True), problem.train_weights

    def _print(self, found: xr.Dataset, notes: Sequence[str]) -> None:
        size = min(self.sizes)
        rows = found.isel(observable=0).sel(query=_EVERY, size=size)
        first = str(found["observable"].values[0])
        print(
            escape_controls(
                f"change of the mean {first} of all queries at size {size:g}, {UNVERIFIED}:"
            )
        )
        order = np.argsort(-np.abs(rows["second"].values))[:_SHOWN]
        for row in (rows.isel(shift=int(place)) for place in order):
            shown = ", ".join(
                f"{name} {float(row[name]):+.4g} ± {float(row[f'{name}_error']):.2g}"
                for name in ("first", "second", "reweighted")
            )
            draws = float(row["effective_draws"])
            print(escape_controls(f"{row['shift'].item()}: {shown} ({draws:,.0f} draws' worth)"))
        for note in notes:
            print(escape_controls(f"note: {note}"))
        print(escape_controls(f"written: {self.out}"))


def _refuse_without_text(problem: Problem, text: str) -> None:
    """Raise before the run where the train items do not say their groups.

    Raises:
        KeyError: They do not.
    """
    known = {*problem.train.about, *(["label"] if problem.train.labels is not None else [])}
    if text not in {*known, *(["group"] if problem.candidate_groups else [])}:
        raise KeyError(
            f"the train items have no {text!r} that names their groups; they have {sorted(known)}: "
            "give them labels, or Items(about=…), or name another in --groups."
        )


def _query_groups(run: Run, text: str) -> dict[str, Sequence[int]]:
    """Return all queries, and those of each group by the same text, or by their own groups."""
    from bif.results.group_sums import members_of

    dataset = run.influence.dataset
    name = f"query_{text}" if f"query_{text}" in dataset.coords else "query_group"
    names = [str(value) for value in dataset[name].values]
    everything = {_EVERY: range(len(names))}
    return everything | (members_of(names, len(names)) if len(set(names)) > 1 else {})


def _figures(found: xr.Dataset) -> Mapping[str, Any]:
    """Return the changes of the mean over all queries, by group, observable and size."""
    means = found.sel(query=_EVERY)
    names = [n for n in found if n not in ("mean", "effective_draws")]
    return {
        str(shift): {
            "effective_draws": means["effective_draws"].sel(shift=shift).values.tolist(),
            **{
                str(observable): {
                    str(n): means[n].sel(shift=shift, observable=observable).values.tolist()
                    for n in names
                }
                for observable in found["observable"].values
            },
        }
        for shift in found["shift"].values
    } | {"sizes": found["size"].values.tolist()}
