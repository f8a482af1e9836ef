"""Observe items at weights: losses of train items and observables of queries at a draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bif.problem.array_layout import Panels
from bif.problem.items import Items
from bif.problem.problem import Observable, Problem
from bif.sampling.factory import run_device
from bif.sampling.linearisation import Linearised, centered
from bif.sampling.observe import observe
from bif.sampling.observe_tokens import TokenReader
from bif.sampling.oracles import Oracle
from bif.sampling.pass_size import PassSize
from bif.sampling.settings import Settings
from bif.types import ItemLoss, Params


@dataclass(frozen=True)
class Asked:
    """An observable as the chains record it.

    Attributes:
        function: The observable, or its linearisation in a proxy.
        groups: The groups of queries, with what the function needs.
        readers: Readers of the groups' tokens, where these have columns.
    """

    function: ItemLoss
    groups: list[Items]
    readers: list[TokenReader]


class Observer:
    """The items of a problem on the run's device, observed at any weights.

    Args:
        problem: What is to be attributed.
        settings: With the items of a pass.
        oracle: Evaluates items.
        center: w* of one chain, leaves `[1, *shape]`.

    Attributes:
        device: Of the run.
        settings: With the items of a pass.
        train_items: On the device.
        scored_items: These and each group of candidates.
        query_items: Each group of queries.
        train_center: Losses of the scored columns at w*, `[N]`.
        query_center: Observables of the query columns at w*, `[A·Q]`.
        pass_size: Items of a forward pass.

    Raises:
        ValueError: Losses or observables that are NaN or infinite at w*.
    """

    def __init__(
        self, problem: Problem, settings: Settings, oracle: Oracle, center: Params
    ) -> None:
        self.device = device = run_device(problem, settings)
        self._problem, self.settings, self._oracle = problem, settings, oracle
        self.train_items = problem.train.to(device)
        candidates = [items.to(device) for items in problem.candidate_groups.values()]
        self.scored_items = [self.train_items, *candidates]
        self.query_items = [items.to(device) for items in problem.query_groups.values()]
        largest = max(len(items) for items in (*self.scored_items, *self.query_items))
        self.pass_size = PassSize(
            min(settings.chunk_size or largest, largest), halves=settings.shards == 1
        )
        self._tokens = _readers(self.scored_items, problem.train_by_token, problem.train_shift)
        self.evaluate_center(center)

    def evaluate_center(self, center: Params) -> None:
        """Evaluate all items at w*, where proxies are linearised.

        Args:
            center: w* of one chain, leaves `[1, *shape]`.

        Raises:
            ValueError: Losses or observables that are NaN or infinite there.
        """
        self.asked = [self._asked(observable, center) for observable in self._problem.observables]
        self.train_center = self.train(center)[0].cpu()
        self.query_center = self.queries(center)[0].cpu()
        self._refuse_bad_losses()

    def train(
        self, params: Params, losses: Tensor | None = None, *, oracle: Oracle | None = None
    ) -> Tensor:
        """Return losses of the train items and candidates, or of their tokens, `[C, N]`.

        Args:
            losses: Losses of the train items that the gradient brought along; they serve where they
                are as exact as asked for.
            oracle: Where values come from; the observer's own by default.
        """
        s, used = self.settings, oracle or self._oracle
        if losses is None or self._problem.train_by_token or not s.gradient_brings_losses:
            losses = self._observe_scored(0, params, used)
        count = len(self.scored_items)
        others = [self._observe_scored(i, params, used) for i in range(1, count)]
        return torch.cat([losses, *others], dim=1) if others else losses

    def queries(self, params: Params) -> Tensor:
        """Return observables of the queries as they are recorded, `[C, A·Q]`, observable-major."""
        return torch.cat(
            [
                self._observe_asked(asked, i, params)
                for asked in self.asked
                for i in range(len(self.query_items))
            ],
            dim=1,
        )

    def panel(self, name: str, params: Params) -> Tensor:
        """Return what one array of the traces records at a draw: `[C, N_g]` or `[C, A, Q_g]`."""
        kind, _, index = name.partition("-")
        if kind == "train_loss":
            return self._observe_scored(int(index), params, self._oracle)
        return torch.stack([self._observe_asked(a, int(index), params) for a in self.asked], dim=1)

    def _observe_scored(self, index: int, params: Params, oracle: Oracle) -> Tensor:
        """Return the loss of a group's columns, the train items being group 0, `[C, N_g]`."""
        return self._columns(
            self._problem.loss, self.scored_items, self._tokens, index, params, oracle
        )

    def _observe_asked(self, asked: Asked, index: int, params: Params) -> Tensor:
        """Return what is recorded of a group of queries, `[C, Q_g]`."""
        return self._columns(
            asked.function, asked.groups, asked.readers, index, params, self._oracle
        )

    def _columns(
        self,
        function: ItemLoss,
        groups: list[Items],
        readers: list[TokenReader],
        index: int,
        params: Params,
        oracle: Oracle,
    ) -> Tensor:
        """Return `function` of the columns of one of the groups, `[C, N_g]`."""
        items = groups[index]
        if readers:
            return self.pass_size.run(
                lambda size: readers[index](oracle, function, params, chunk_size=size)
            )
        return self.pass_size.run(
            lambda size: observe(oracle, function, params, items, chunk_size=size)
        )

    def _asked(self, observable: Observable, center: Params) -> Asked:
        """Return an observable as it is recorded: through a proxy, linearised around w*."""
        groups: list[Items] = self.query_items
        function, through = observable.function, observable.through
        if through is not None:
            groups = [
                centered(
                    items, function, through, oracle=self._oracle, center=center,
                    chunk_size=min(self.pass_size.size, len(items)),
                )
                for items in groups
            ]  # fmt: skip
            function = Linearised(through)
        by_token, shift = self._problem.query_by_token, self._problem.query_shift
        return Asked(function, groups, _readers(groups, by_token, shift))

    def center_values(self) -> list[Tensor]:
        """Return what each array of the traces would record at w*: `[N_g]` or `[A, Q_g]`."""
        train, query = self.train_center[None, None], self.query_center[None, None]
        parts = Panels.of(self._problem).split(train, query)
        return [torch.from_numpy(x[0, 0]) for x in parts.values()]

    def _refuse_bad_losses(self) -> None:
        bad = (~self.train_center.isfinite()).nonzero().flatten().tolist()
        if bad:
            ids = [str(self._problem.scored_ids[i]) for i in bad[:5]]
            raise ValueError(
                f"the loss is NaN or infinite at w* for {len(bad)} train items, such as {ids}: "
                "mend the model, the data or the loss before sampling."
            )
        if not self.query_center.isfinite().all():
            columns = (~self.query_center.isfinite()).nonzero().flatten()
            ids = [str(self._problem.query_ids[int(c) % self._problem.num_queries])
                   for c in columns[:5]]  # fmt: skip
            raise ValueError(
                f"an observable is NaN or infinite at w* for queries such as {ids}: mend the "
                "model, the data or the observable before sampling."
            )


def _readers(groups: list[Items], by_token: bool, shift: int) -> list[TokenReader]:
    """Return readers of the groups' tokens, where these have columns."""
    return [TokenReader(items, shift=shift) for items in groups] if by_token else []
