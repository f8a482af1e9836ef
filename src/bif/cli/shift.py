"""The command that predicts what a shift of the training data does, and checks it if asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bif import store
from bif.cli.language import Language
from bif.cli.options import Target
from bif.cli.retraining import EVERY, Checked, Request, attributed_run, query_groups, retrain_task
from bif.sampling.settings import Settings
from bif.terminal import escape_controls, say

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from bif.benchmark import Task
    from bif.runs.run import Run
    from bif.susceptibility import Shifts

SHIFT, PAGE = "shift.zarr", "shift.html"
ORDERS = ("first", "second", "reweighted")
UNVERIFIED = "a prediction, unverified: no network was retrained"
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Predict how losses move when groups of the training data lose or gain weight.

    To first and second order, and by re-weighting the draws, from one run and without retraining
    unless --retrain asks for it.  Writes shift.html, shift.zarr, and summary.json with the change
    of the mean over all queries.
    """

    target: Target = None
    """FILE.py:FUNCTION, unless there is a --run-folder or a --model; its run is kept in OUT/run.
    The function returns a bif.Problem, or a bif.benchmark.Task."""
    run_folder: str | None = None
    """A run's folder with the traces of its items, in the place of another run."""
    groups: str = "label"
    """Which text of the train items names their groups, such as label or source."""
    sizes: tuple[float, ...] = (-1.0, -0.5, -0.2, -0.1, -0.01, 0.01, 0.1, 0.2, 0.5, 1.0)
    """Changes of the weight of a group's items; -1 removes the group, 1 doubles it."""
    total_weight: Literal["preserved", "added"] = "preserved"
    """Whether weights are normalised to the sum they had, as if the network were trained on the
    mean loss of other data."""
    retrain: bool = False
    """Retrain networks with every shift, and show what became of the queries beside what was
    predicted; of a task, FILE.py:FUNCTION."""
    seeds: int = 5
    """With --retrain: networks of every shift."""
    out: str
    """Folder for shift.html, shift.zarr and summary.json."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.report.shift_page import render_shift
        from bif.susceptibility import group_shifts, predicted_change

        run, weights, task = self._run()
        shifts = group_shifts(
            run, self.groups, total_weight=self.total_weight, train_weights=weights
        )
        queries = query_groups(run, self.groups)
        found = predicted_change(run, shifts, self.sizes, queries=queries)
        notes = self._notes(shifts.names, queries)
        fit = None
        if task is not None:
            checked = self._retrained(task, shifts)
            found = _beside(found, checked, queries)
            fit = {name: agreement(found[name], found["retrained"]) for name in ORDERS}
        what = UNVERIFIED if task is None else f"retrained with {found.sizes['seed']} seeds"
        found = found.assign_attrs(what=what)
        about = {
            "what": what, "trusted": bool(run.summary.trusted),
            "failed_gates": run.failed_gates, "notes": notes, "groups": self.groups,
            **({"fit": fit} if fit else {}),
        }  # fmt: skip
        page = render_shift(
            found, groups=self.groups, failed_gates=run.failed_gates, notes=notes, fit=fit,
            version=run.manifest.versions.get("bif", ""),
        )  # fmt: skip
        figures = dict(found.attrs) | about | {"shifts": _figures(found)}
        store.write_summary(self.out, figures, files={PAGE: page}, datasets={SHIFT: found})
        if run.failed_gates:
            say([f"NOT TRUSTED ({', '.join(run.failed_gates)}): changes may be noise."])
        self._print(found, notes, fit)

    def _notes(self, names: Sequence[str], queries: Mapping[str, Sequence[int]]) -> list[str]:
        """Return what is to be said of groups that are removed, and of which there are queries."""
        asked = [name for name in names if name in queries]
        if min(self.sizes) > -1 or not asked:
            return []
        shown = ", ".join(f"{name} ({len(queries[name])})" for name in asked[:_SHOWN])
        more = f" and {len(asked) - _SHOWN} others" if len(asked) > _SHOWN else ""
        return [
            f"Some queries are of the {self.groups} that is removed, which is no small shift for "
            f"them. Their number: {shown}{more}."
        ]

    def _run(self) -> tuple[Run, Tensor | None, Task | None]:
        """Return the run, the weights of the problem's train items, and the task to retrain."""
        asked = Request(self.seeds, set(self.sizes) == {-1.0}) if self.retrain else None
        return attributed_run(
            self.target, self.run_folder, self.language, self.settings, out=self.out,
            query=self.query, groups=self.groups, retraining=asked, estimator="covariance",
        )  # fmt: skip

    def _retrained(self, task: Task, shifts: Shifts) -> Checked:
        """Retrain with the weights of every shift at every size."""
        rows = [shifts.weights_at(size).numpy() for size in self.sizes]
        weights = np.stack(rows, axis=1)  # [P, Z, N]
        return retrain_task(task, weights.reshape(-1, weights.shape[-1]), num_seeds=self.seeds)

    def _print(
        self, found: xr.Dataset, notes: Sequence[str], fit: Mapping[str, Mapping[str, Any]] | None
    ) -> None:
        from bif.report.shift_page import told_size

        size = min(self.sizes) if "retrained" in found else told_size(found)
        rows = found.isel(observable=0).sel(query=EVERY, size=size)
        first, what = str(found["observable"].values[0]), found.attrs["what"]
        quantile = float(found.attrs["error_quantile"])
        say_plainly(
            f"change of the mean {first} of all queries at size {size:g}, with 95 % intervals, "
            f"{what}:"
        )
        order = np.argsort(-np.abs(rows["second"].values))[:_SHOWN]
        for row in (rows.isel(shift=int(place)) for place in order):
            shown = ", ".join(
                f"{name} {float(row[name]):+.4g} ± {quantile * float(row[f'{name}_error']):.2g}"
                for name in ORDERS
            )
            draws = f"{float(row['effective_draws']):,.0f} draws' worth"
            if "retrained" in row:
                seeds = row["retrained"].values
                shown += (
                    f", retrained {seeds.mean():+.4g} ({seeds.min():+.4g} to {seeds.max():+.4g})"
                )
            say_plainly(f"{row['shift'].item()}: {shown} ({draws})")
        if size > min(self.sizes):
            say_plainly("larger shifts are beyond what these draws can tell")
        for name, of in (fit or {}).items():
            sizes = zip(self.sizes, of["r2_by_size"], strict=True)
            near = ", ".join(f"{r2:.2f} at {size:+g}" for size, r2 in sizes)
            say_plainly(
                f"{name}: R² {of['r2']:.3f}, slope {of['slope']:.3f} against retraining; R² {near}"
            )
        for note in notes:
            say_plainly(f"note: {note}")
        say_plainly(f"written: {self.out}")


def say_plainly(line: str) -> None:
    """Print a line without the control characters of foreign names."""
    print(escape_controls(line))


def agreement(predicted: xr.DataArray, retrained: xr.DataArray) -> dict[str, Any]:
    """Return how a prediction agrees with the mean of the seeds, over groups and queries.

    `r2 = 1 - Σ (r - p)² / Σ r²`, 0 for a prediction of no change, and the `slope` of r on p through
    0; `r2_by_size` is of each size alone.  Of the first observable, without the mean over all
    queries where there are groups.
    """
    r, p = (x.isel(observable=0) for x in (retrained.mean("seed"), predicted))
    if r.sizes["query"] > 1:
        r, p = r.isel(query=slice(1, None)), p.isel(query=slice(1, None))
    r, p = (x.transpose("size", "query", "shift").values.reshape(x.sizes["size"], -1)
            for x in (r, p))  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "r2": float(1 - ((r - p) ** 2).sum() / (r**2).sum()),
            "slope": float((r * p).sum() / (p**2).sum()),
            "r2_by_size": (1 - ((r - p) ** 2).sum(axis=1) / (r**2).sum(axis=1)).tolist(),
        }


def _beside(
    found: xr.Dataset, checked: Checked, queries: Mapping[str, Sequence[int]]
) -> xr.Dataset:
    """Return the predictions with what the seeds' networks made of each, as `retrained`."""
    import xarray as xr

    grid = (found.sizes["shift"], found.sizes["size"], checked.num_seeds)
    values = np.stack([
        np.stack([checked.of(str(name), places).reshape(grid) for places in queries.values()])
        for name in found["observable"].values
    ])  # fmt: skip
    axes = ("observable", "query", "shift", "size", "seed")
    return found.assign(retrained=xr.DataArray(values, dims=axes)).assign_coords(
        seed=range(checked.num_seeds)
    )


def _figures(found: xr.Dataset) -> Mapping[str, Any]:
    """Return the changes of the mean over all queries, by group, observable and size."""
    means = found.sel(query=EVERY)
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
