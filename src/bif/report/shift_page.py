"""The page of shifts of the training data: what is predicted, and what retraining made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bif.report.markup import (
    called,
    escape,
    facts,
    notes_section,
    number,
    plural,
    score_and_error,
    untrusted_box,
)
from bif.report.page import assemble_page

if TYPE_CHECKING:
    import xarray as xr

MOST_SHIFTS = 24
"""Charts on the page: of the groups that move the observables most."""
MOST_QUERIES = 40
"""Groups of queries that can be chosen on the page."""
FEW_DRAWS = 0.05
"""Share of the draws below which re-weighted ones say little: 2 % was wrong where 50 % was not."""
_ORDERS = {"first": "First order", "second": "Second order", "reweighted": "Re-weighted draws"}
_DIGITS = 4


def render_shift(
    dataset: xr.Dataset,
    *,
    groups: str,
    failed_gates: Sequence[str] = (),
    notes: Sequence[str] = (),
    fit: Mapping[str, Mapping[str, Any]] | None = None,
    version: str = "",
) -> str:
    """Return one self-contained HTML page about shifts of the training data.

    The answer in a sentence; for each group a chart of the predicted change against the size of the
    shift, with what retraining made of it where there is any; and a table.  It loads nothing.

    Args:
        dataset: Of `predicted_change`, and `retrained` on (`observable`, `query`, `shift`, `size`,
            `seed`) where networks were retrained.  The first group of queries comes first.
        groups: What names the groups, such as "label".
        failed_gates: Of the run; the page then warns.
        notes: For the reader.
        fit: `r2`, `slope` and `r2_by_size` of each order against retraining.
        version: Of bif.
    """
    text = json.dumps(_shown(dataset, groups), separators=(",", ":"), allow_nan=False)
    data = text.replace("<", "\\u003c")
    return assemble_page(
        script="shift.js",
        styles=("style.css", "shift.css"),
        manifest={"versions": {"bif": version}} if version else {},
        warnings=untrusted_box(failed_gates),
        headline=_headline(dataset, groups),
        trust=_facts(dataset, fit, trusted=not failed_gates),
        sections=[
            f'<script type="application/json" id="shifts">{data}</script>{_chart(dataset)}',
            _TABLE, notes_section(notes),
        ],
        title="Shifts of the training data",
        eyebrow="Shifts of the training data",
    )  # fmt: skip


def _headline(dataset: xr.Dataset, groups: str) -> str:
    retrained, quantile = "retrained" in dataset, float(dataset.attrs["error_quantile"])
    size = float(dataset["size"].values.min()) if retrained else told_size(dataset)
    rows = dataset.isel(observable=0, query=0).sel(size=size)
    value = rows["retrained"].mean("seed") if retrained else rows["second"]
    half = quantile * rows["second_error"].values
    best = int(np.nanargmax(np.abs(value.values)))
    what = f"{dataset['observable'].values[0]} of {dataset['query'].values[0]}"
    name, moved = str(dataset["shift"].values[best]), float(value.values[best])
    doing = _in_words(size, f"{groups} {name}")
    verb = "lower" if moved < 0 else "raise"
    if retrained:
        seeds = plural(dataset.sizes["seed"], "retrained network")
        text, told = (score_and_error(float(x), float("nan"), exponent=0)[0]
                      for x in (moved, rows["second"].values[best]))  # fmt: skip
        answer = f"{doing} {verb}s the mean {what} most: by {text[1:]}, where {told} was predicted"
        lead = f"The mean of {seeds}, less as many with the weights as they are."
    elif abs(moved) <= half[best]:
        answer = f"No group moves the mean {what} beyond the noise of this run"
        lead = f"At size {number(size)}. {UNVERIFIED}"
    else:
        text, error = score_and_error(moved, float(half[best]), exponent=0)
        answer = f"{doing} is predicted to {verb} the mean {what} most: by {text[1:]} ± {error}"
        lead = UNVERIFIED
    if size > float(dataset["size"].values.min()):
        lead += " Larger sizes are beyond what this run can tell."
    return (
        f'<h1>{escape(answer)}</h1><p class="lead">{escape(lead)} '
        f"{plural(dataset.sizes['shift'], 'group')} of training items, by {escape(groups)}. A "
        "shift of size −0.2 takes a fifth of the weight of a group's items, −1 removes them, 1 "
        f"doubles them{_mass(dataset)}</p>"
    )


UNVERIFIED = "A prediction, unverified: no network was retrained."


def _mass(dataset: xr.Dataset) -> str:
    if dataset.attrs.get("total_weight") == "preserved":
        return ", and all weights are normalised to the sum they had."
    return ", and the total weight changes with it."


def told_size(dataset: xr.Dataset) -> float:
    """Return the most negative size for which half of the groups have draws enough."""
    sizes, draws = dataset["size"].values, dataset["effective_draws"].values
    enough = (draws >= FEW_DRAWS * np.nanmax(draws)).mean(axis=0) >= 0.5
    return float(sizes[enough].min()) if enough.any() else float(sizes[np.abs(sizes).argmin()])


def _in_words(size: float, name: str) -> str:
    return f"Removing {name}" if size == -1 else f"Weighting {name} by {1 + size:g}"


def _facts(
    dataset: xr.Dataset, fit: Mapping[str, Mapping[str, Any]] | None, *, trusted: bool
) -> str:
    rows = {"Run": "trusted" if trusted else "not trusted"}
    if fit is None:
        return facts(rows | {
            "Retrained networks": "none", "Groups": f"{dataset.sizes['shift']:,}",
            "Training items": f"{int(dataset.attrs['num_train']):,}",
        })  # fmt: skip
    count = (dataset.sizes["shift"] * dataset.sizes["size"] + 1) * dataset.sizes["seed"]
    rows["Retrained networks"] = f"{count:,}"
    for name in ("first", "second"):
        rows[f"R², {_ORDERS[name].lower()}"] = number(fit[name]["r2"])
    rows["Slope, second order"] = number(fit["second"]["slope"])
    rows["Sizes with R² ≥ .9"] = _radius(dataset["size"].values, fit["second"]["r2_by_size"])
    return facts(rows)


def _radius(sizes: np.ndarray, r2: Sequence[float]) -> str:
    """Return between which sizes R² is at least .9, from 0 outwards."""
    ends = []
    for sign in (-1, 1):
        side = sorted((abs(size), ok >= 0.9) for size, ok in zip(sizes, r2, strict=True)
                      if size * sign > 0)  # fmt: skip
        reached = [size for k, (size, _) in enumerate(side) if all(ok for _, ok in side[: k + 1])]
        ends.append(sign * max(reached, default=0.0))
    if not any(ends):
        return "at no size"
    return f"{ends[0]:g} to {ends[1]:g}".replace("-", "−")


def _chart(dataset: xr.Dataset) -> str:
    count = dataset.sizes["shift"]
    which = (
        "Each group" if count <= MOST_SHIFTS
        else f"The {MOST_SHIFTS} groups of {count:,} that move it most"
    )  # fmt: skip
    legend = "".join(f'<li class="{name}">{label}</li>' for name, label in _ORDERS.items())
    seen = ""
    if "retrained" in dataset:
        legend += '<li class="retrained">Retrained</li>'
        seen = " Retrained: the mean over the seeds, and the range of the seeds."
    return f"""<section id="charts"><h2>Change against size of the shift</h2>
<p>{which}; bars are 95 % intervals. First order: as if the change were linear in the size;
second order: with its curvature; re-weighted draws: all orders. Hollow points rest on too few
draws.{seen}</p>
<div class="choose"><label>Observable <select id="observable"></select></label>
<label>Queries <select id="queries"></select></label>
<label>Sizes <select id="up-to"></select></label></div>
<ul class="legend">{legend}</ul>
<div class="grid" id="grid"></div></section>"""


_TABLE = """<section id="table"><h2>Groups at one size</h2>
<div class="choose"><label>Size <select id="size"></select></label></div>
<div class="scroll"><table id="rows"></table></div></section>"""


def _shown(dataset: xr.Dataset, groups: str) -> dict[str, Any]:
    """Return what the page draws, of the groups that move the observables most."""
    first = dataset["second"].isel(observable=0, query=0).values
    order = np.argsort(-np.nan_to_num(np.abs(first)).max(axis=1), kind="stable")
    # The table has all groups, in the order of the charts.
    part = dataset.isel(shift=order, query=slice(MOST_QUERIES))
    quantile = float(dataset.attrs["error_quantile"])
    values: dict[str, Any] = {}
    for name in _ORDERS:
        values[name] = _plain(part[name].values)
        values[f"{name}_half"] = _plain(quantile * part[f"{name}_error"].values)
    if "retrained" in part:
        values["retrained"] = _plain(part["retrained"].mean("seed").values)
        values["low"] = _plain(part["retrained"].min("seed").values)
        values["high"] = _plain(part["retrained"].max("seed").values)
    draws = part["effective_draws"].values
    return {
        "observables": [str(x) for x in part["observable"].values],
        "queries": [str(x) for x in part["query"].values],
        "shifts": [called(x, groups) for x in part["shift"].values],
        "sizes": [float(x) for x in part["size"].values],
        "draws": _plain(draws),
        "few": FEW_DRAWS * float(draws.max()),
        "charts": MOST_SHIFTS,
        "values": values,
    }


def _plain(values: np.ndarray) -> Any:
    """Return nested lists of numbers of a few digits, None where they are not finite."""
    if values.ndim:
        return [_plain(part) for part in values]
    return float(f"{float(values):.{_DIGITS}g}") if np.isfinite(values) else None
