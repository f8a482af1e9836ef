"""Derivatives of means over queries by the weight of every train item, with their noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bif.estimate.traces import LossTraces, chain_groups
from bif.results.group_sums import members_of
from bif.runs.run import Run
from bif.susceptibility.expansion import Queries, means_of_queries

_LEAST_GROUPS = 4
"""Groups of chains with which each half has a spread."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """`dE[phi]/d rho_i = -(nbeta/n)·Cov(phi, l_i)` of R observables, by groups of chains.

    Attributes:
        observables: Names of observables.
        queries: Names of groups of queries; R is their product with the observables.
        parts: Of each group of chains, `[G, R, N]`; of one where the scores alone are known.
        share: Of the draws in each part, `[G]`, with sum 1.
        bound: Largest error of each where it was solved for, `[R, N]`.
    """

    observables: tuple[str, ...]
    queries: tuple[str, ...]
    parts: np.ndarray
    share: np.ndarray
    bound: np.ndarray | None = None

    @classmethod
    def of(cls, run: Run, queries: Queries | None, num_groups: int) -> Slopes:
        """Return the derivatives of a run: from its traces, or from its scores without them.

        Args:
            run: Sampled or solved.
            queries: Groups of queries; every query by default.
            num_groups: Groups of chains.

        Raises:
            ValueError: Groups of queries that are not of the run; fewer than four chains.
        """
        dataset = run.influence.dataset
        names = [str(name) for name in dataset["query_id"].values]
        if queries is None:
            queries = {name: [place] for place, name in enumerate(names)}
        means = means_of_queries(run, queries)
        axes = (
            tuple(map(str, dataset["observable"].values)),
            tuple(members_of(queries, len(names), "query")),
        )
        if run.manifest.keep != "sums" and run.traces.blocks:
            each = torch.eye(len(axes[0]), dtype=torch.float64)
            scale = float(dataset.attrs["nbeta"]) / int(dataset.attrs["num_train"])
            parts, share = _by_groups(run.traces, torch.kron(each, means), num_groups)
            return cls(*axes, -scale * parts, share)
        if "derivative" not in dataset or dataset["derivative"].dims[-1] != "train":
            raise ValueError(
                "the run kept the strongest scores alone, and steering needs those of all items: "
                "attribute without top, or keep the traces."
            )
        value = np.einsum("pq,aqn->apn", means.numpy(), dataset["derivative"].values)
        bound = None
        if dataset.attrs.get("estimator") == "response":
            scale = float(dataset.attrs["nbeta"]) / int(dataset.attrs["num_train"])
            errors = dataset["standard_error"].values
            bound = scale * np.einsum("pq,aqn->apn", means.numpy(), errors).reshape(
                -1, value.shape[2]
            )
        return cls(*axes, value.reshape(1, -1, value.shape[2]), np.ones(1), bound)

    @property
    def is_sampled(self) -> bool:
        """Whether the noise of the derivatives is known, by groups of chains."""
        return len(self.parts) > 1

    def halves(self) -> tuple[Slopes, Slopes]:
        """Return those of every other group of chains, and of the others."""
        first, second = (
            replace(
                self, parts=self.parts[at::2], share=self.share[at::2] / self.share[at::2].sum()
            )
            for at in (0, 1)
        )
        return first, second

    def change(self, weights: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the change that a change of the weights makes, and its standard error, `[P]`.

        The error is of weights that do not depend on these chains; of a solved run it is a bound,
        and NaN where it is not known.

        Args:
            weights: `[N]`.
            rows: Combinations of the observables, `[P, R]`.
        """
        moved = (self.parts @ weights) @ rows.T
        mean = self.share @ moved
        if self.bound is not None:
            return mean, np.abs(rows) @ (self.bound @ np.abs(weights))
        if not self.is_sampled:
            return mean, np.full_like(mean, np.nan)
        return mean, np.sqrt(self.share @ (moved - mean) ** 2 / (len(moved) - 1))


def _by_groups(traces: LossTraces, rows: Tensor, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `Cov(phi, l_i)` of groups of chains, `[G, R, N]`, and their shares of the draws."""
    found, draws = [], []
    if min(num_groups, traces.num_chains) < _LEAST_GROUPS:
        raise ValueError(
            f"there are {min(num_groups, traces.num_chains)} groups of chains, and steering plans "
            f"with one half and predicts with the other: at least {_LEAST_GROUPS} are needed. Use "
            "more chains."
        )
    for group in chain_groups(traces, num_groups):
        chains = [(traces.blocks[index], at) for index, places in group for at in places]
        x = torch.cat([block.query[at].double() @ rows.T for block, at in chains])
        x, origin = x - x.mean(dim=0), chains[0][0].train[chains[0][1], 0].double()
        total, start = torch.zeros(len(rows), chains[0][0].train.shape[2]).double(), 0
        for block, at in chains:  # x is centred, so that the losses need not be
            part = x[start : start + block.num_draws]
            total += part.T @ (block.train[at].double() - origin)
            start += block.num_draws
        found.append((total / (len(x) - 1)).numpy())
        draws.append(len(x))
    share = np.asarray(draws, dtype=float)
    return np.stack(found), share / share.sum()
