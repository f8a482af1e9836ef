"""Put influence from loss traces into a dataset whose rows and columns keep their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bif.estimate.covariance import DEFAULT_GROUPS, Covariance, estimate_covariance
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from bif.estimate.top_k import StrongestInfluences

_READING = (
    "the way the observable moves when the item gains weight. For a loss negative is helpful; for "
    "an observable that should be large positive is."
)
SIGN = f"influence = -Cov(train loss, observable): {_READING}"
SIGN_OF_SOLVED = f"influence = -(1/nbeta) g_i·(C + damping)⁻¹·g_phi: {_READING}"
"""With gradients g and the curvature C of the mean loss at w*."""


@dataclass(frozen=True, kw_only=True)
class ScoreAxes:
    """Names of the rows and columns of scores, and the posterior that they are of.

    Attributes:
        observables: A names to "lower", "higher" or None, in the order of the query columns.
        query_ids: Q names.
        train_ids: N names.
        nbeta: nbeta of the posterior that was sampled.
        query_groups: Q names of groups; all "query" if None.
        num_train: n, the items that the posterior was sampled with; N unless candidates, which
            are scored only, are among the columns.
    """

    observables: Mapping[str, str | None]
    query_ids: Sequence[str] | np.ndarray
    train_ids: Sequence[str] | np.ndarray
    nbeta: float
    query_groups: Sequence[str] | np.ndarray | None = None
    num_train: int | None = None

    @classmethod
    def of(cls, dataset: xr.Dataset) -> ScoreAxes:
        """Return the axes of a dataset of scores."""
        better = [str(b) or None for b in dataset["better"].values]
        return cls(
            observables=dict(zip(map(str, dataset["observable"].values), better, strict=True)),
            query_ids=dataset["query_id"].values,
            query_groups=dataset["query_group"].values,
            train_ids=dataset["train_id"].values,
            nbeta=float(dataset.attrs["nbeta"]),
            num_train=int(dataset.attrs["num_train"]),
        )

    @property
    def scale(self) -> float:
        """Return `nbeta / n`, which makes a derivative by an item's weight of an influence."""
        return self.nbeta / self._num_train

    @property
    def _num_train(self) -> int:
        return len(self.train_ids) if self.num_train is None else self.num_train

    def rows(self, *, num_chains: int, num_draws: int) -> xr.Dataset:
        """Return a dataset of the rows' names, with what is known of the run behind the scores."""
        import xarray as xr

        groups = ["query"] * len(self.query_ids) if self.query_groups is None else self.query_groups
        return xr.Dataset(
            coords={
                "observable": list(self.observables),
                "better": ("observable", [b or "" for b in self.observables.values()]),
                "query_id": ("query", _texts(self.query_ids)),
                "query_group": ("query", _texts(groups)),
            },
            attrs={
                "sign": SIGN, "nbeta": float(self.nbeta), "num_train": self._num_train,
                "num_chains": num_chains, "num_draws": num_draws,
            },
        )  # fmt: skip


def estimate_influence(
    traces: LossTraces,
    axes: ScoreAxes,
    *,
    num_groups: int = DEFAULT_GROUPS,
    device: torch.device | None = None,
) -> xr.Dataset:
    """Return influence estimated from loss traces.

    `influence[a, q, i] = -Cov(l_i, phi_aq)`,
    `derivative = -(nbeta / n) * Cov(l_i, phi_aq)`, which is `dE[phi_aq] / d rho_i`,
    `correlation` = minus the Pearson correlation, 0 where a variance is 0.

    Args:
        traces: Query columns observable-major, `[C, D, A·Q]`.
        axes: Names of rows and columns.
        num_groups: Groups of chains behind the standard errors.
        device: Device of the arithmetic.

    Returns:
        `influence`, `derivative`, `correlation`, `standard_error` on (`observable`, `query`,
        `train`), and means and self-influence on the axes they have.
    """
    return influence_dataset(
        estimate_covariance(traces, num_groups=num_groups, device=device),
        axes,
        num_chains=traces.num_chains,
        num_draws=traces.total_draws,
    )


def influence_dataset(
    covariance: Covariance, axes: ScoreAxes, *, num_chains: int, num_draws: int
) -> xr.Dataset:
    """Return a covariance `[A·Q, N]` of queries with train items as the result that users see.

    Args:
        covariance: Covariance of query columns with train columns.
        axes: Names of rows and columns.
        num_chains: Behind the covariance.
        num_draws: Draws of all these chains.
    """
    rows = axes.rows(num_chains=num_chains, num_draws=num_draws)
    return _filled(rows, covariance, rows.attrs, axes.train_ids)


def axes_dataset(
    found: StrongestInfluences, axes: ScoreAxes, *, num_chains: int, num_draws: int
) -> xr.Dataset:
    """Return what `influence_dataset` says of rows and columns, without the scores of their pairs.

    Args: as for `influence_dataset`.
    """
    rows = axes.rows(num_chains=num_chains, num_draws=num_draws)
    attrs = {**rows.attrs, "error_quantile": found.error_quantile}
    return _with_axes(rows, found, attrs, axes.train_ids)


def summed_influence(
    dataset: xr.Dataset,
    traces: LossTraces,
    groups: Mapping[str, Sequence[int]] | None,
    *,
    queries: Mapping[str, Sequence[int]] | None = None,
) -> tuple[xr.Dataset, LossTraces]:
    """Return influence of sums over train columns and on sums over queries, with its traces.

    A covariance is linear in both, so the scores are the sums of their columns' scores; errors are
    those of the summed traces, since columns are correlated.

    Args:
        dataset: The dataset that `estimate_influence` returned for these traces.
        traces: The traces.
        groups: Names to positions of train columns; a group acts as one item with the summed loss.
            None leaves the columns as they are.
        queries: Groups of queries, likewise.

    Returns:
        The scores, and the summed traces behind them.
    """
    summed = traces.summed_over(
        groups, queries=queries, num_observables=dataset.sizes["observable"]
    )
    kept = dataset.drop_dims("train")
    if queries is not None:
        kept = kept.drop_dims("query").assign_coords(
            query_id=("query", _texts(list(queries))),
            query_group=("query", _texts(["query"] * len(queries))),
        )
    covariance = estimate_covariance(summed)
    if groups is not None:
        return _filled(kept, covariance, dataset.attrs, list(groups)), summed
    result = _filled(kept, covariance, dataset.attrs, dataset["train_id"].values)
    rest = [n for n, v in dataset.variables.items() if v.dims == ("train",) and n not in result]
    return result.merge(dataset[rest], compat="override"), summed


def _filled(
    queries: xr.Dataset,
    covariance: Covariance,
    attrs: dict[str, object],
    train_ids: Sequence[str] | np.ndarray,
) -> xr.Dataset:
    """Put a covariance `[A·Q, N]` under the names of observables, queries and items."""
    shape = (queries.sizes["observable"], queries.sizes["query"], len(train_ids))
    axes = ("observable", "query", "train")
    nbeta, num_train = float(attrs["nbeta"]), int(attrs["num_train"])  # type: ignore[arg-type]
    row_scale = covariance.row_variance.sqrt()
    column_scale = covariance.column_variance.sqrt()
    influence = np.empty(shape, np.float32)
    correlation, errors = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for row in range(shape[0] * shape[1]):  # a row at a time: no float64 copy of the full size
        place = divmod(row, shape[1])
        value = -covariance.value[row]
        scale = row_scale[row] * column_scale
        influence[place] = value.cpu().numpy()
        correlation[place] = (value / scale).where(scale > 0, 0.0 * value).cpu().numpy()
        errors[place] = covariance.standard_error[row].cpu().numpy()
    scores = queries.assign(
        influence=(axes, influence),
        derivative=(axes, np.float32(nbeta / num_train) * influence),
        correlation=(axes, correlation),
        standard_error=(axes, errors),
    )
    attrs = {**attrs, "error_quantile": t_quantile(covariance.num_groups)}
    return _with_axes(scores, covariance, attrs, train_ids)


def _with_axes(
    queries: xr.Dataset,
    found: Covariance | StrongestInfluences,
    attrs: dict[str, object],
    train_ids: Sequence[str] | np.ndarray,
) -> xr.Dataset:
    """Add names, means and self-influence of rows and columns."""
    shape = (queries.sizes["observable"], queries.sizes["query"])
    return (
        queries.assign(
            self_influence=("train", -found.column_variance.cpu().numpy()),
            self_influence_standard_error=("train", found.column_variance_error.cpu().numpy()),
            train_mean_loss=("train", found.column_mean.cpu().numpy()),
            query_mean=(("observable", "query"), found.row_mean.reshape(shape).cpu().numpy()),
        )
        .assign_coords(train_id=("train", _texts(train_ids)))
        .assign_attrs(attrs)
    )


def _texts(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return strings of one width; those read from a file are of NumPy's variable kind."""
    return np.asarray([str(value) for value in values])
