"""What a run was trained on: its columns, their weights in training, and the mean loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bif.runs.recorded import refuse_without_traces
from bif.runs.run import Run

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Trained:
    """The train columns of a run and their weights in training.

    Attributes:
        ids: Names of the N columns, candidates among them.
        weights: rho of each column in training, `[N]`; 0 for candidates, which were not trained on.
        nbeta: Of the posterior.
        num_items: n, items that the posterior was sampled with.
        by_token: Whether columns are tokens.
    """

    ids: tuple[str, ...]
    weights: Tensor
    nbeta: float
    num_items: int
    by_token: bool

    @classmethod
    def of(cls, run: Run, train_weights: Sequence[float] | Tensor | None = None) -> Trained:
        """Return what a run with the traces of its items was trained on.

        Args and raises: as `of_scores`, and
            ValueError: The run has no traces of all items.
        """
        refuse_without_traces(run, "a response")
        return cls.of_scores(run, train_weights)

    @classmethod
    def of_scores(cls, run: Run, train_weights: Sequence[float] | Tensor | None = None) -> Trained:
        """Return what a run was trained on, whether it was sampled or solved.

        Args:
            run: Any run.
            train_weights: rho of each train item `[n]`, of a problem that has them: a run does not
                keep them.

        Raises:
            ValueError: Weights that are missing, or of another number than the items.
        """
        dataset = run.influence.dataset
        ids = tuple(str(name) for name in dataset["train_id"].values)
        trained = np.ones(len(ids), dtype=bool)
        if "train_group" in dataset.coords:
            trained = dataset["train_group"].values.astype(str) == "train"
        place, by_token = np.arange(len(ids)), "train_item" in dataset.coords
        if by_token:  # train items come before candidates
            items = {str(n): i for i, n in enumerate(dataset["train_parent_id"].values)}
            place = np.asarray([items[str(n)] for n in dataset["train_item"].values])
        num_items = int(dataset.attrs["num_train"])
        rho = _weights(run, train_weights, num_items)
        weights = torch.zeros(len(ids), dtype=torch.float64)
        weights[torch.from_numpy(trained)] = rho[torch.from_numpy(place[trained])]
        return cls(ids, weights, float(dataset.attrs["nbeta"]), num_items, by_token)

    def mean_loss(self, losses: Tensor) -> Tensor:
        """Return `L = Σ rho_i l_i / n` of losses `[…, N]`, float64 `[…]`.

        Raises:
            ValueError: Columns are tokens, some of which may have been left out.
        """
        if self.by_token:
            raise ValueError(
                "the mean loss is of items, and the run's train columns are tokens, some of which "
                "may be left out: attribute with items as columns, tokens='query' or None."
            )
        return losses.double() @ (self.weights / self.num_items)


def proxy_of(dataset: xr.Dataset, observable: str) -> str:
    """Return the proxy through which an observable was recorded; empty for none."""
    if "through" not in dataset.coords:
        return ""
    return str(dataset["through"].sel(observable=observable).item())


def _weights(run: Run, given: Sequence[float] | Tensor | None, num_items: int) -> Tensor:
    if given is None:
        if run.manifest.identity.get("train_weights") is not None:
            raise ValueError(
                "the problem weighted its train items, and a run does not keep the weights: pass "
                "train_weights=problem.train_weights."
            )
        return torch.ones(num_items, dtype=torch.float64)
    weights = torch.as_tensor(given, dtype=torch.float64)
    if weights.shape != (num_items,) or not bool(weights.isfinite().all()):
        raise ValueError(
            f"train_weights must be {num_items} finite numbers, one a train item; got shape "
            f"{tuple(weights.shape)}."
        )
    return weights
