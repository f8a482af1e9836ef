"""Influence over the checkpoints of a training, with errors, and the events in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bif import store
from bif.estimate.trajectory import Event, find_events, staying

if TYPE_CHECKING:
    import xarray as xr

_CARRIED = ("influence", "standard_error", "train_center_loss", "query_center")
_CONTROLS = "control_"
_JUDGED = ("influence", "standard_error", "error_quantile", "trusted")
"""What events are found by; a second gamma has its own."""
_GAUSSIAN_95 = 1.96
"""Standard errors to either side of a Gaussian's 95 %."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Scores of every checkpoint: `[K, A, Q, N]`.

    Attributes:
        dataset: `influence` and `standard_error` `[checkpoint, observable, query, train]`,
            `train_center_loss` `[checkpoint, train]`, `query_center` `[checkpoint, observable,
            query]`, and of every checkpoint `step`, `trusted`, `rhat`, `error_quantile`,
            `center_gradient`: the squared gradient there in units of its noise.  With a second
            gamma also `second_influence` and so on.
        notes: What a reader should know: checkpoints that were left out, and those far from a
            minimum.
    """

    dataset: xr.Dataset
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> np.ndarray:
        """Return the steps of training before each checkpoint, `[K]`."""
        return self.dataset["step"].values

    def of_pair(
        self, train: str, query: str, *, observable: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the influence of a train item on a query, and its standard errors, `[K]` each.

        Args:
            train: Id of the item, or the name of a group of a trajectory of groups.
            query: Id of the query.
            observable: The first by default.
        """
        a, q, i = self._place(train, query, observable)
        scores, errors = self.dataset["influence"], self.dataset["standard_error"]
        return scores.values[:, a, q, i], errors.values[:, a, q, i]

    def events(
        self, *, level: float = 0.05, nulls: Sequence[str] = (), most: int | None = None
    ) -> list[Event]:
        """Return the peaks, sign flips and onsets that are certain, the largest scores first.

        Each is tested at `level` over the number of pairs and checkpoints that are looked at
        (Bonferroni).  Where there is a second gamma, an event must be certain there too: of the
        same signs, and a peak or an onset at most a checkpoint away.

        Args:
            level: Chance of any event that is none.
            nulls: Names of controls, of runs with `Settings(controls=True)`: "shuffled", "nbeta_0",
                "gradient_product".  An event is left out where a null has it too, by its sign.
            most: So many of the events at most.

        Raises:
            ValueError: A null that was not recorded.
        """
        d = self.dataset
        for name in nulls:
            if f"{_CONTROLS}{name}" not in d:
                raise ValueError(
                    f"there is no null {name!r}: run the series with Settings(controls=True); "
                    f"there are {[str(v).removeprefix(_CONTROLS) for v in d if _is_control(v)]}."
                )
        without = [d[f"{_CONTROLS}{name}"].values for name in nulls]
        found = _find(d, level=level, nulls=without)
        if "second_influence" in d:
            found = staying(found, _find(d, "second_", level=level, nulls=without))
        named = [
            event.named(
                step=[int(self.steps[k]) for k in event.checkpoints],
                observable=str(d["observable"].values[event.place[0]]),
                query=str(d["query_id"].values[event.place[1]]),
                train=str(d["train_id"].values[event.place[2]]),
            )
            for event in found
        ]
        return named[:most]

    def render(self, *, most_events: int = 50) -> str:
        """Return one self-contained HTML page: curves, losses, a heat-map, rankings and events.

        Args:
            most_events: Events that are listed.
        """
        from bif import __version__
        from bif.report.trajectory_page import render_trajectory

        events = self.events()
        listed = [asdict(event) for event in events[:most_events]]
        return render_trajectory(
            self.dataset, events=listed, num_events=len(events), notes=self.notes,
            version=__version__,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the trajectory as a zarr folder.

        Raises:
            FileExistsError: There is something already.
        """
        store.save_dataset(self.dataset.assign_attrs(notes="\n".join(self.notes)), path)

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote, or the trajectory in the folder of a series."""
        dataset = store.load_dataset(path, name=store.TRAJECTORY)
        notes = dataset.attrs.pop("notes", "")
        return cls(dataset, tuple(filter(None, notes.split("\n"))))

    def _place(self, train: str, query: str, observable: str | None) -> tuple[int, int, int]:
        d = self.dataset
        places = [0 if observable is None else _index(d["observable"].values, observable)]
        return places[0], _index(d["query_id"].values, query), _index(d["train_id"].values, train)


def _find(
    dataset: xr.Dataset, prefix: str = "", *, level: float, nulls: Sequence[np.ndarray]
) -> list[Event]:
    scores, errors, width, trusted = (dataset[prefix + name].values for name in _JUDGED)
    # In units of which an interval of 95 % is that of a Gaussian.
    errors = errors * (width / _GAUSSIAN_95)[:, None, None, None]
    return find_events(
        scores, errors, level=level, unsettled=~trusted.astype(bool), nulls=nulls
    )  # fmt: skip


def _index(names: np.ndarray, name: str) -> int:
    known = [str(one) for one in names]  # read from disk they are of another type
    if known.count(name) != 1:
        raise ValueError(
            f"{name!r} names {known.count(name)} entries, expected one: {', '.join(known[:5])}…"
        )
    return known.index(name)


def _is_control(name: Any) -> bool:
    return str(name).startswith(_CONTROLS)


def with_second(first: Trajectory, second: Trajectory) -> Trajectory:
    """Return a trajectory with the scores of another gamma beside its own."""
    d, other = first.dataset, second.dataset
    beside = {f"second_{name}": (other[name].dims, other[name].values) for name in _JUDGED}
    gamma, own = float(other.attrs["gamma"]), float(d.attrs["gamma"])
    note = f"events are those that stay with gamma = {gamma:.4g} in the place of {own:.4g}"
    return Trajectory(d.assign(beside).assign_attrs(second_gamma=gamma), (*first.notes, note))


def joined(
    parts: Sequence[xr.Dataset], facts: Sequence[Mapping[str, Any]], *, notes: Sequence[str]
) -> Trajectory:
    """Return the trajectory of single results, one a checkpoint.

    Args:
        parts: Datasets of influences, alike but for the weights.
        facts: `step`, `name`, `trusted`, `rhat`, `error_quantile`, `center_gradient` of each.
        notes: For the reader.
    """
    import xarray as xr

    kept = [part[[v for v in part if v in _CARRIED or _is_control(v)]] for part in parts]
    dataset = xr.concat(kept, dim="checkpoint", join="override", combine_attrs="drop_conflicts")
    named = {name: ("checkpoint", [fact[name] for fact in facts]) for name in facts[0]}
    return Trajectory(dataset.assign_coords(named), tuple(notes))
