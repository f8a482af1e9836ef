"""Susceptibilities of components: runs in which one of them moves, beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.estimate.cumulants import GroupCumulants, group_cumulants
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces, TraceBlock
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.runs.attribute import attribute
from bif.runs.recorded import query_columns
from bif.runs.run import Run
from bif.sampling.settings import Settings
from bif.susceptibility.trained import Trained

Side = Literal["train", "query"]


@dataclass(frozen=True, eq=False)
class SusceptibilityMatrix:
    """`chi = -Cov_c(phi, l_x - L)` of K components c with X contexts x.

    `nbeta·chi` is the derivative of `E_c[phi]` as the data shift from what they are to context x.

    Attributes:
        components: Names of the rows; contexts: ids of the columns.
        value: `[K, X]` float64.
        noise: By groups of chains, `[G, K, X]`: combinations with independent N(0, 1) weights for
            each component have the covariance over contexts that its errors have.
        halves: By every other group of chains, and by the rest, `[2, K, X]`.
        observable: Name of phi.
        nbeta: Of all runs; gamma: of all runs.
        failed_gates: Of every component whose run is not trusted.
    """

    components: tuple[str, ...]
    contexts: tuple[str, ...]
    value: np.ndarray
    noise: np.ndarray
    halves: np.ndarray
    observable: str
    nbeta: float
    gamma: float
    failed_gates: Mapping[str, Sequence[str]]

    @property
    def standard_error(self) -> np.ndarray:
        """Return the standard errors by the spread over groups of chains, `[K, X]`."""
        return np.sqrt((self.noise**2).sum(axis=0))

    @property
    def error_quantile(self) -> float:
        """Return the half-width of a 95 % interval in standard errors, by Student's t."""
        return t_quantile(len(self.noise))

    def standardised(self) -> np.ndarray:
        """Return each component's row with mean 0 and variance 1 over the contexts, `[K, X]`.

        A restricted susceptibility is known up to a factor of its component, which this takes out.

        Raises:
            ValueError: A component whose susceptibilities are all the same.
        """
        return standardised(self.value, self.components)

    def reliability(self) -> np.ndarray:
        """Return the correlation over contexts of both halves of the chains, `[K]`.

        Stepped up to all chains by `2r/(1+r)` where it is positive.
        """
        first, second = (standardised(half, self.components) for half in self.halves)
        r = (first * second).mean(axis=1)
        return np.where(r > 0, 2 * r / (1 + r.clip(min=0)), r)


def component_runs(
    problem: Problem,
    components: Mapping[str, Sequence[str]],
    settings: Settings,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> dict[str, Run]:
    """Carry out one run for each component, in which only its weights move.

    Args:
        problem: What is attributed.
        components: Names to globs and slices of weights, as `Settings.movable` takes them and
            `bif.language.movable_weights` returns them for layers and heads.
        settings: With nbeta and gamma, which are the same for all; each run has its own seed.
        out: Folder with one run's folder for each component, named after it; in memory if None.
        show_progress: Draw progress bars.

    Raises:
        ValueError: No components; names that are no folders' names; nbeta, gamma open, or movable
            given; what `bif.attribute` refuses.
    """
    if not components:
        raise ValueError("no component was given: name at least one, with globs of its weights.")
    if settings.nbeta is None or settings.gamma is None:
        raise ValueError(
            "components are compared at one nbeta and one gamma, and these are open: give both, "
            "such as those of bif.calibrate(problem)."
        )
    if settings.movable is not None:
        raise ValueError("settings.movable is what components are for: leave it None.")
    bad = [name for name in components if not name or set(name) & set('/\\:*?"<>|')]
    if bad and out is not None:
        raise ValueError(f"component {bad[0]!r} is no name of a folder: use letters and digits.")
    asked = replace(settings, estimator="covariance")
    return {
        name: attribute(
            problem,
            replace(asked, movable=tuple(globs), seed=settings.seed + place),
            out=None if out is None else f"{str(out).rstrip('/')}/{name}",
            show_progress=show_progress,
        )
        for place, (name, globs) in enumerate(components.items())
    }


def susceptibility_matrix(
    runs: Mapping[str, Run],
    *,
    contexts: Side = "train",
    observable: str | None = None,
    context_observable: str | None = None,
    train_weights: Sequence[float] | Tensor | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> SusceptibilityMatrix:
    """Return the susceptibilities of components to contexts, from a run of each.

    Args:
        runs: By component: of one problem at one nbeta and gamma, in which only the component
            moved.  `component_runs` makes them.
        contexts: Train items, or queries (or their tokens), towards which the data shift.
        observable: phi, averaged over the queries; the mean loss of the train items, L, if None.
        context_observable: The loss of the contexts where they are queries; the first by default.
        train_weights: As the problem's, where it has any.
        num_groups: Groups of chains behind the standard errors.

    Raises:
        KeyError: No such observable.
        ValueError: No runs; runs of other items, nbeta or gamma; runs without traces.

    Source: Baker et al. 2025, arXiv 2504.18274, of whose `chi` this is the estimate.
    """
    require_literal("contexts", contexts, Side)
    if not runs:
        raise ValueError("no run was given: pass one for each component.")
    names, first = list(runs), next(iter(runs.values()))
    for name in names[1:]:
        _refuse_other(names[0], first, name, runs[name])
    fewest = min(num_groups, *(run.traces.num_chains for run in runs.values()))
    if fewest < 2:
        raise ValueError(f"errors need at least 2 groups of chains, got {fewest}: use more.")
    rows = []
    for run in runs.values():
        traces = _traces(run, contexts, observable, context_observable, train_weights)
        rows.append(_row(list(group_cumulants(traces, (), num_groups=fewest))))
    value, noise, halves = (torch.stack(part, dim=-2).numpy() for part in zip(*rows, strict=True))
    dataset = first.influence.dataset
    return SusceptibilityMatrix(
        components=tuple(map(str, names)),
        contexts=tuple(str(x) for x in dataset[f"{contexts}_id"].values),
        value=value, noise=noise, halves=halves,
        observable=observable or "mean loss of the train items",
        nbeta=float(dataset.attrs["nbeta"]), gamma=float(dataset.attrs["gamma"]),
        failed_gates={n: run.failed_gates for n, run in runs.items() if run.failed_gates},
    )  # fmt: skip


def standardised(x: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return rows `[K, X]` with mean 0 and variance 1.

    Raises:
        ValueError: A row that is constant, by its name.
    """
    away = x - x.mean(axis=1, keepdims=True)
    scale = np.sqrt((away**2).mean(axis=1, keepdims=True))
    still = np.flatnonzero(~(scale[:, 0] > 1e-12 * np.abs(x).max(axis=1)))
    if len(still):
        raise ValueError(
            f"the susceptibilities of component {names[still[0]]!r} are the same for all contexts, "
            "so that nothing can be standardised: do its weights move, and the losses with them?"
        )
    return away / scale


def _traces(
    run: Run, contexts: Side, observable: str | None, context_observable: str | None,
    train_weights: Sequence[float] | Tensor | None,
) -> LossTraces:  # fmt: skip
    """Return `l_x - L` as columns and phi as the row, of all chains."""
    trained = Trained.of(run, train_weights)
    blocks = []
    for block in run.traces.blocks:
        mean = trained.mean_loss(block.train)[..., None]
        phi = mean
        if observable is not None:
            columns = query_columns(run, observable)[1]
            phi = block.query[..., columns].double().mean(dim=2, keepdim=True)
        losses = block.train
        if contexts == "query":
            losses = block.query[..., query_columns(run, context_observable)[1]]
        away = losses - mean.to(losses.dtype)
        blocks.append(TraceBlock(block.chains, away, phi))
    return LossTraces(tuple(blocks))


def _row(groups: Sequence[GroupCumulants]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a component's value `[X]`, noise `[G, X]` and halves `[2, X]`."""
    values = torch.stack([-group.covariance[0] for group in groups])
    draws = torch.tensor([group.draws for group in groups], dtype=torch.float64)
    share = (draws / draws.sum())[:, None]
    value = (share * values).sum(dim=0)
    noise = (share / (len(groups) - 1)).sqrt() * (values - value)
    halves = [(draws[k::2, None] * values[k::2]).sum(dim=0) / draws[k::2].sum() for k in (0, 1)]
    return value, noise, torch.stack(halves)


def _refuse_other(name: str, first: Run, other_name: str, other: Run) -> None:
    """Raise where two runs are not of one problem at one temperature."""
    a, b = first.influence.dataset, other.influence.dataset
    for what in ("train_id", "query_id", "observable"):
        if a[what].values.tolist() != b[what].values.tolist():
            raise ValueError(
                f"the runs of components {name!r} and {other_name!r} differ in {what}: a matrix "
                "needs runs of one problem."
            )
    for what in ("nbeta", "gamma"):
        if not np.isclose(float(a.attrs[what]), float(b.attrs[what]), rtol=1e-9):
            raise ValueError(
                f"the runs of components {name!r} and {other_name!r} have {what} "
                f"{float(a.attrs[what]):g} and {float(b.attrs[what]):g}: a matrix needs the same, "
                "as component_runs takes care of."
            )
