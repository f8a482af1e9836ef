"""What the page needs from the saved datasets, checked once and read as plain arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bif.report.answer import is_own_text

if TYPE_CHECKING:
    import xarray as xr

_REQUIRED = {
    "influence": ("observable", "query", "train"),
    "standard_error": ("observable", "query", "train"),
    "query_id": ("query",),
    "train_id": ("train",),
}
_CONTROL = "control_"
_DIRECTIONS = ("lower", "higher", "")


@dataclass(frozen=True)
class Items:
    """Training items or queries: ids and what is known of each."""

    kind: str
    ids: list[str]
    labels: list[str]
    groups: list[str]
    images: xr.DataArray | None
    texts: list[str] = field(default_factory=list)
    """What each item says; "" where that is not known."""
    features: list[str] = field(default_factory=list)
    """The few numbers that each item is; "" where that is not known."""
    targets: list[str] = field(default_factory=list)
    """What a regressor is to say of each item; "" where that is not known."""
    predictions: list[str] = field(default_factory=list)
    """What the model says of each item; "" where that is not known."""
    _pictures: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Say nothing of items about which nothing is known."""
        for known in (self.texts, self.features, self.targets, self.predictions):
            known.extend([""] * (len(self.ids) - len(known)))

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, index: int) -> str:
        """Return what one item says, or its features."""
        return self.texts[index] or self.features[index]

    def image(self, index: int) -> np.ndarray | None:
        """Return the uint8 picture of one item, [row, column] or [row, column, channel]."""
        if self.images is None:
            return None
        if index not in self._pictures:
            self._pictures[index] = np.asarray(self.images.isel({self.kind: index}).values)
        return self._pictures[index]


@dataclass(frozen=True)
class Suspects:
    """Scores for wrong labels, [N], and the truth where it is known."""

    score: np.ndarray
    relabelled: np.ndarray | None
    original: list[str]


@dataclass(frozen=True)
class Source:
    """Scores [O, Q, N] for O observables, their standard errors, and the two sets of items."""

    observables: list[str]
    through: list[str]
    better: list[str]
    score: np.ndarray
    error: np.ndarray
    query_center: np.ndarray
    query_mean: np.ndarray
    train: Items
    query: Items
    suspects: Suspects | None
    controls: dict[str, np.ndarray]
    attrs: dict[str, object]
    linear: np.ndarray | None = None
    """Linear parts of the scores, `[O, Q, N]`, where the rest alone was sampled."""

    @property
    def error_quantile(self) -> float:
        """Half-width of a 95 % interval in standard errors."""
        found = self.attrs.get("error_quantile")
        return float(found) if isinstance(found, int | float) else 2.0

    @property
    def solved(self) -> bool:
        """Whether the scores were solved for: there are no draws, then."""
        return self.attrs.get("estimator") == "response" and not self.attrs.get("num_draws")

    @property
    def trusted(self) -> bool:
        """Whether the run behind the scores is trusted; True where that is not known."""
        return bool(self.attrs.get("trusted", True))

    def clear(self, score: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Return which scores have a certain sign.

        Scores without an error count as certain; of a run that is not trusted, none does.
        """
        return ~(np.abs(score) <= self.error_quantile * error) & self.trusted

    def clear_shares(self) -> np.ndarray:
        """Return, per observable [O], the share of scores whose sign is certain."""
        shares = np.full(len(self.observables), np.nan)
        for o in range(len(self.observables)):
            known = np.isfinite(self.score[o]) & np.isfinite(self.error[o])
            if known.any():
                clear = self.clear(self.score[o], self.error[o])
                shares[o] = np.count_nonzero(clear & known) / np.count_nonzero(known)
        return shares

    def badness(self) -> np.ndarray:
        """Return [Q], how badly each query is handled at the trained weights; NaN if unknown.

        Taken from the first observable with a better direction, with the sign that makes larger
        worse.
        """
        for o, better in enumerate(self.better):
            if better and np.isfinite(self.query_center[o]).any():
                return self.query_center[o] if better == "lower" else -self.query_center[o]
        return np.full(len(self.query), np.nan)


def read_source(influence: xr.Dataset) -> Source:
    """Check an influence dataset and return what the page shows of it.

    Args:
        influence: the dataset of `influence.zarr`, dims `observable`, `query`, `train`.

    Returns:
        The source of the page.

    Raises:
        ValueError: a required variable or dimension is missing, or `better` is none of
            "lower", "higher", "".
    """
    for name, dims in _REQUIRED.items():
        if name not in influence.variables:
            found = ", ".join(sorted(str(v) for v in influence.variables)) or "nothing"
            raise ValueError(
                f"The influence dataset has no variable {name!r}; it holds: {found}. "
                f"The report needs {', '.join(_REQUIRED)}: pass the dataset of influence.zarr "
                "as the library saves it."
            )
        if set(influence[name].dims) != set(dims):
            raise ValueError(
                f"{name!r} of the influence dataset has dimensions {influence[name].dims}, "
                f"expected {dims}: pass the dataset of influence.zarr as the library saves it."
            )
    num_observables = influence.sizes["observable"]
    observables = _strings(influence, "observable", num_observables)
    if not any(observables):
        observables = [f"observable {o}" for o in range(num_observables)]
    better = _strings(influence, "better", num_observables)
    for name, direction in zip(observables, better, strict=True):
        if direction not in _DIRECTIONS:
            raise ValueError(
                f"'better' of observable {name!r} is {direction!r}, expected one of {_DIRECTIONS}: "
                "say which direction is better, or '' for neither."
            )
    return Source(
        observables=observables,
        through=_strings(influence, "through", num_observables),
        better=better,
        score=_scores(influence, "influence"),
        error=_scores(influence, "standard_error"),
        query_center=_per_query(influence, "query_center"),
        query_mean=_per_query(influence, "query_mean"),
        train=_items(influence, "train"),
        query=_items(influence, "query"),
        suspects=_suspects(influence),
        controls={
            str(name).removeprefix(_CONTROL): _scores(influence, str(name))
            for name in influence.data_vars
            if str(name).startswith(_CONTROL)
        },
        attrs={str(key): value for key, value in influence.attrs.items()},
        linear=_scores(influence, "linear") if "linear" in influence.data_vars else None,
    )


def choose_queries(source: Source, *, count: int = 8) -> list[int]:
    """Return up to `count` queries worth looking at, the worst handled first.

    First of each group the query with the clearest score (largest |score| / error, `count`
    groups at most), then in turn the worst handled, the clearest and the best handled ones,
    labels not yet shown going first.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(source.score[0]) / source.error[0]
    ratio = np.where(np.isfinite(ratio), ratio, -1.0)
    clarity = ratio.max(axis=1, initial=-1.0)
    badness = source.badness()
    clearest = [int(q) for q in np.argsort(-clarity, kind="stable")]
    worst = [int(q) for q in np.argsort(-badness, kind="stable") if np.isfinite(badness[q])]

    chosen: list[int] = []
    groups: set[str] = set()
    for q in clearest:
        if source.query.groups[q] not in groups and len(chosen) < count:
            groups.add(source.query.groups[q])
            chosen.append(q)
    turns = [worst, clearest, worst, worst[::-1]] if worst else [clearest]
    turn = 0
    while len(chosen) < min(count, len(source.query)):
        shown = {source.query.labels[q] for q in chosen}
        left = [q for q in turns[turn % len(turns)] if q not in chosen]
        left = left or [q for q in clearest if q not in chosen]
        # A new label if one is among the foremost tenth; further down it would no longer be
        # what the turn asks for.
        front = left[: max(1, len(source.query) // 10)]
        chosen.append(next((q for q in front if source.query.labels[q] not in shown), left[0]))
        turn += 1
    if worst:
        chosen.sort(key=lambda q: -badness[q] if np.isfinite(badness[q]) else np.inf)
    return chosen


def find_queries(source: Source, queries: Sequence[str]) -> list[int]:
    """Return the positions of the named queries, in the order given.

    Raises:
        ValueError: an id is not among the queries.
    """
    position: dict[str, int] = {}
    for q, name in enumerate(source.query.ids):
        position.setdefault(name, q)
    unknown = [name for name in queries if name not in position]
    if unknown:
        some = ", ".join(repr(name) for name in source.query.ids[:5])
        raise ValueError(
            f"No such query: {', '.join(repr(name) for name in unknown)}. The dataset has "
            f"{len(source.query)} queries, e.g. {some}: pass ids from its coordinate 'query_id'."
        )
    return list(dict.fromkeys(position[name] for name in queries))


def top_k(score: np.ndarray, *, sign: int, top: int) -> list[int]:
    """Return the at most `top` items of a row [N] whose score has this sign, strongest first."""
    signed = np.where(np.isfinite(score), score * sign, -np.inf)
    order = np.argsort(-signed, kind="stable")[:top]
    return [int(i) for i in order if signed[i] > 0]


def _strings(dataset: xr.Dataset, name: str, length: int) -> list[str]:
    if name not in dataset.variables:
        return [""] * length
    return [str(v) for v in np.atleast_1d(dataset[name].values)]


def _scores(dataset: xr.Dataset, name: str) -> np.ndarray:
    return np.asarray(dataset[name].transpose("observable", "query", "train").values)


def _per_query(dataset: xr.Dataset, name: str) -> np.ndarray:
    if name not in dataset.variables:
        return np.full((dataset.sizes["observable"], dataset.sizes["query"]), np.nan)
    return np.asarray(dataset[name].transpose("observable", "query").values)


def _items(dataset: xr.Dataset, kind: str) -> Items:
    size = dataset.sizes[kind]
    image = f"{kind}_image"
    texts, labels = _texts(dataset, kind, size), _strings(dataset, f"{kind}_label", size)
    return Items(
        kind=kind,
        ids=_strings(dataset, f"{kind}_id", size),
        labels=["" if is_own_text(x, text) else x for x, text in zip(labels, texts, strict=True)],
        groups=_strings(dataset, f"{kind}_group", size),
        images=dataset[image] if image in dataset.variables else None,
        texts=texts,
        features=_strings(dataset, f"{kind}_features", size),
        targets=_strings(dataset, f"{kind}_target", size),
        predictions=_strings(dataset, f"{kind}_prediction", size),
    )


def _texts(dataset: xr.Dataset, kind: str, size: int) -> list[str]:
    """Return the items' texts, joined from their pieces if need be."""
    if f"{kind}_text" in dataset.variables:
        return _strings(dataset, f"{kind}_text", size)
    if f"{kind}_tokens" in dataset.variables:
        return ["".join(json.loads(p)) for p in _strings(dataset, f"{kind}_tokens", size)]
    return [""] * size


def _suspects(dataset: xr.Dataset) -> Suspects | None:
    if "suspicion" not in dataset.variables:
        return None
    known = "relabelled" in dataset.variables
    return Suspects(
        score=np.asarray(dataset["suspicion"].values),
        relabelled=np.asarray(dataset["relabelled"].values).astype(bool) if known else None,
        original=_strings(dataset, "original_label", dataset.sizes["train"]),
    )
