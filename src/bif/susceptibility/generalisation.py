"""Test loss predicted from the draws of a run, by leaving out each item in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces, chain_groups
from bif.runs.run import Run
from bif.susceptibility.trained import Trained

if TYPE_CHECKING:
    import xarray as xr

_CHUNK_ELEMENTS = 4 * 2**20
"""Losses that are worked on at a time."""
_FEWEST_DRAWS = 25
"""Draws whose largest fifth still has the five weights to which a tail can be fitted."""
ESTIMATES = ("train", "first", "second", "importance")
"""Orders of the expansion, and all of them at once."""


def generalisation(
    run: Run,
    *,
    likelihood_scale: float | None = None,
    train_weights: Sequence[float] | Tensor | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> xr.Dataset:
    """Predict the mean test loss from the draws of a run on the train items alone.

    Leaving out item i moves the mean of its own loss by the expansion of `predicted_change`, at
    weight -1 and with total weight "added".  With `t = rho_i·nbeta/n`, averaged over the items:
    `train = E[l_i]`, `first = train + t·Var(l_i)`, `second = first + ½t²·κ₃(l_i, l_i, l_i)`, and
    `importance`, the mean of draws weighted by `exp(t·l_i)` after Pareto smoothing.  Of what:

    * "draws": the loss in the mean over draws; `first` is Watanabe's equation of state.
    * "center": the loss at w*; `train` is L(w*), and the others add what they add to the draws'.
    * "predictive": `-c·log E[exp(-l_i/c)]`, the loss of the averaged likelihood, with
      c = `likelihood_scale`.  `first` is the widely applicable information criterion,
      `T_n + (β/n)·V_n` at inverse temperature β = nbeta/n (nbeta = n: the untempered one);
      `importance` is PSIS-LOO; `second = first + ½(t² - t/c)·κ₃`, no different where t = 1/c.

    All are of the posterior with its nbeta and gamma: the Gaussian around w*, which has seen every
    item, stays when one is left out.  So they fall short of what training on it has gained in
    directions that gamma holds.

    Args:
        run: With the traces of its items, at least 25 draws.
        likelihood_scale: c with `-c·log p(item | w) = loss` up to a constant: 1 of cross-entropy,
            the variance of the noise of `½ r²`.  Without it nothing is predictive.
        train_weights: As the problem's, where it has any.
        num_groups: Groups of chains behind the standard errors.

    Returns:
        `loss` on (`of`, `estimate`), with `chain_error`, by groups of chains, and `item_error`, by
        the spread over items, of which the test set's mean would have one as well; `pareto_k` of
        each train item (`train`); attributes nbeta, gamma, `largest_pareto_k` above which
        `importance` is not to be trusted, the share of items above it, `trusted`.

    Raises:
        ValueError: A run without traces, or of fewer draws; columns that are tokens; nbeta = 0; a
            scale that is no positive number.

    Source: Watanabe 2010, JMLR 11 (WAIC) and Neural Networks 23 (equations of state), at any
    inverse temperature; Vehtari, Gelman & Gabry 2017 (PSIS-LOO).
    """
    trained = Trained.of(run, train_weights)
    _refuse(run, trained, likelihood_scale)
    dataset = run.influence.dataset
    columns = trained.weights.nonzero()[:, 0]
    rho = trained.weights[columns]
    left_out = _LeftOut(
        temperature=rho * (trained.nbeta / trained.num_items), scale=likelihood_scale,
        efficiency=_efficiency(run),
    )  # fmt: skip
    found: dict[tuple[str, str], _Mean] = {}
    pareto_k = np.full(len(trained.ids), np.nan)
    center = torch.as_tensor(dataset["train_center_loss"].values).double()[columns]
    step = max(1, _CHUNK_ELEMENTS // run.traces.total_draws)
    for part in torch.arange(len(columns)).split(step):
        losses = _losses(run.traces, columns[part])
        figures, pareto_k[columns[part]] = left_out.of(losses, part, center[part])
        for name, (value, influence) in figures.items():
            found.setdefault(name, _Mean(trained.num_items)).add(value, influence, rho[part])
    groups = _group_of_draws(run.traces, num_groups)
    return _dataset(run, trained, found, pareto_k, groups, likelihood_scale)


@dataclass(frozen=True)
class _LeftOut:
    """What leaving out items does to their own losses.

    Attributes:
        temperature: t of each item, `[N]`.
        scale: c, or None.
        efficiency: Effective draws a draw, at most 1.
    """

    temperature: Tensor
    scale: float | None
    efficiency: float

    def of(
        self, x: Tensor, items: Tensor, center: Tensor
    ) -> tuple[dict[tuple[str, str], tuple[Tensor, Tensor]], np.ndarray]:
        """Return figures of items, each as values `[n]` and what draws add to them `[S, n]`.

        The latter are first differences of the value as a draw's weight grows by 1/S; their sums
        over groups of chains have the spread that the value has.

        Args:
            x: Losses `[S, n]`; items: their places among all; center: their losses at w*, `[n]`.
        """
        t, draws = self.temperature[items], len(x)
        mean = x.mean(dim=0)
        away = x - mean
        variance = away.square().sum(dim=0) / (draws - 1)
        third = away.pow(3).sum(dim=0) * (draws / ((draws - 1) * (draws - 2)))
        own = {
            "train": (mean, away / draws),
            "first": (t * variance, t * (away.square() - variance) / draws),
            "second": (
                0.5 * t**2 * third,
                0.5 * t**2 * (away.pow(3) - third - 3 * variance * away) / draws,
            ),
        }  # fmt: skip
        weights, k = self._smoothed(x, t)
        moved = (weights * x).sum(dim=0)
        found = {
            ("draws", "train"): own["train"],
            ("draws", "first"): _sum(own["train"], own["first"]),
            ("draws", "second"): _sum(*own.values()),
            ("draws", "importance"): (moved, weights * (x - moved)),
        }
        shift = (center - mean, -own["train"][1])
        found |= {("center", name): _sum(found["draws", name], shift) for name in ESTIMATES}
        if self.scale is not None:
            c, even = self.scale, torch.full_like(x, 1 / draws)
            gain = _sum(own["first"], _times(1 - 1 / (t * c), own["second"]))
            train = _predictive(x, even, c)
            found |= {
                ("predictive", "train"): train,
                ("predictive", "first"): _sum(train, own["first"]),
                ("predictive", "second"): _sum(train, gain),
                ("predictive", "importance"): _predictive(x, weights, c),
            }
        return found, k

    def _smoothed(self, x: Tensor, t: Tensor) -> tuple[Tensor, np.ndarray]:
        """Return weights of the draws without each item, `[S, n]`, and the tail's shape `[n]`."""
        from arviz_stats.base import array_stats

        r_eff: Any = self.efficiency
        log_weights = (t * (x - x.mean(dim=0))).numpy()
        weights, shapes = np.full_like(log_weights, 1 / len(x)), np.full(x.shape[1], np.nan)
        for item, row in enumerate(log_weights.T):
            if np.ptp(row) > 1e-12:  # else no tail can be fitted, and none is needed
                smoothed, shapes[item] = array_stats.psislw(-row, r_eff)
                weights[:, item] = np.exp(smoothed)
        return torch.from_numpy(weights), shapes


def _predictive(x: Tensor, weights: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return `-c·log Σ p exp(-x/c)` `[n]` for weights p of the draws, and what draws add."""
    least = x.amin(dim=0)
    likelihood = weights * torch.exp((least - x) / scale)
    total = likelihood.sum(dim=0)
    return least - scale * total.log(), scale * (weights - likelihood / total)


def _sum(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    values, influences = zip(*parts, strict=True)
    return torch.stack(values).sum(dim=0), torch.stack(influences).sum(dim=0)


def _times(factor: Tensor, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return factor * part[0], factor * part[1]


@dataclass
class _Mean:
    """A figure's mean over items, with its errors.

    Attributes:
        num_items: n.
        values: Of items, times their weights, in chunks.
        influence: What each draw adds to the mean, `[S]`.
    """

    num_items: int
    values: list[Tensor] = field(default_factory=list)
    influence: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, value: Tensor, influence: Tensor, rho: Tensor) -> None:
        self.values.append(rho * value)
        self.influence = self.influence + influence @ rho / self.num_items

    def figures(self, groups: Tensor) -> tuple[float, float, float]:
        """Return the mean, its error by groups of chains `[S]`, and that by items."""
        values, count = torch.cat(self.values), int(groups.max()) + 1
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, self.influence)
        spread = float((sums - sums.mean()).square().sum())
        by_chains = (count / (count - 1) * spread) ** 0.5 if count > 1 else float("nan")
        by_items = float(values.std()) * len(values) ** 0.5 / self.num_items
        return float(values.sum()) / self.num_items, by_chains, by_items


def _losses(traces: LossTraces, columns: Tensor) -> Tensor:
    """Return the losses of some items at all draws, chain after chain, float64 `[S, n]`."""
    return torch.cat([train[:, columns].double() for _, train, _ in traces.each_chain()])


def _group_of_draws(traces: LossTraces, num_groups: int) -> Tensor:
    """Return the group of chains of every draw, `[S]`."""
    return torch.cat(list(_groups(traces, num_groups)))


def _groups(traces: LossTraces, num_groups: int) -> Iterator[Tensor]:
    for number, group in enumerate(chain_groups(traces, num_groups)):
        draws = sum(traces.blocks[block].num_draws * len(places) for block, places in group)
        yield torch.full((draws,), number)


def _efficiency(run: Run) -> float:
    """Return effective draws a draw, at most 1; 1 where it is not known."""
    found = run.summary.ess_median / run.traces.total_draws
    return min(1.0, found) if found > 0 else 1.0


def _refuse(run: Run, trained: Trained, scale: float | None) -> None:
    if trained.by_token:
        raise ValueError(
            "items are left out, and the run's train columns are tokens: attribute with items as "
            "columns, tokens='query' or None."
        )
    if trained.nbeta == 0:
        raise ValueError(
            "nbeta is 0: draws that know no data say nothing about other data. Attribute with "
            "nbeta > 0."
        )
    if scale is not None and not 0 < scale < float("inf"):
        raise ValueError(
            f"likelihood_scale is {scale}: expected a positive number, 1 of a cross-entropy, the "
            "variance of the noise of a squared error."
        )
    if run.traces.total_draws < _FEWEST_DRAWS:
        raise ValueError(
            f"the run has {run.traces.total_draws} draws: the weights of draws without an item "
            f"need at least {_FEWEST_DRAWS}. Record more."
        )


def _dataset(
    run: Run,
    trained: Trained,
    found: dict[tuple[str, str], _Mean],
    pareto_k: np.ndarray,
    groups: Tensor,
    scale: float | None,
) -> xr.Dataset:
    import xarray as xr

    of = list(dict.fromkeys(name for name, _ in found))
    cells = np.array([[found[name, order].figures(groups) for order in ESTIMATES] for name in of])
    # Vehtari et al. 2024, "Pareto smoothed importance sampling", JMLR 25.
    effective = max(10.0, _efficiency(run) * run.traces.total_draws)
    largest = min(0.7, 1 - 1 / np.log10(effective))
    known = pareto_k[np.isfinite(pareto_k)]
    names = ("loss", "chain_error", "item_error")
    return xr.Dataset(
        {name: (("of", "estimate"), cells[..., place]) for place, name in enumerate(names)}
        | {"pareto_k": ("train", pareto_k)},
        coords={"of": of, "estimate": list(ESTIMATES), "train_id": ("train", list(trained.ids))},
        attrs={
            "nbeta": trained.nbeta, "gamma": float(run.influence.dataset.attrs["gamma"]),
            "num_train": trained.num_items, "draws": run.traces.total_draws,
            "likelihood_scale": np.nan if scale is None else scale,
            "largest_pareto_k": float(largest),
            "share_above_it": float((known > largest).mean()) if len(known) else 0.0,
            "error_quantile": t_quantile(int(groups.max()) + 1),
            "trusted": int(bool(run.summary.trusted)),
        },
    )  # fmt: skip
