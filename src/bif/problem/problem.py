"""The problem that a user hands over, checked once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bif.problem.columns import Columns, Tokens, num_columns
from bif.problem.items import Items, as_items, batch_leaves, to_device
from bif.problem.literals import require_literal
from bif.problem.losses import margin, plain_form
from bif.problem.metric import require_metric
from bif.problem.proxy import Proxy, default_proxy
from bif.problem.validation import (
    check_item_values,
    check_left_padding,
    check_proxy,
    check_right_padding,
    probe_shift,
)
from bif.problem.weights import (
    copy_module,
    densify_,
    load_weights_,
    narrow_types,
    padding_rows,
    require_weights,
    trainable,
    widen,
    widen_,
)
from bif.types import Batch, Better, ItemLoss, Params

TiedWeights = Literal["refuse", "share"]
UNNAMED = "query"
"""Name of the group of queries that were given without one."""


@dataclass(frozen=True)
class Observable:
    """A number for each query whose response to the train items is wanted.

    Args:
        name: Name of the observable in results.
        function: `function(model, batch) -> [B]` (or `[B, T]`, summed over T).
        better: "lower" for a loss, "higher" for a margin, None if neither is called helpful.
        through: The proxy that the chains record in its place, by the chain rule at w*; the
            observable itself if None.
    """

    name: str
    function: ItemLoss
    better: Better | None = None
    through: Proxy | None = None

    def __post_init__(self) -> None:
        if self.better is not None:
            require_literal("better", self.better, Better)
        if self.through is not None and not isinstance(self.through, Proxy):
            raise TypeError(
                f"through must be a bif.Proxy or None, got {self.through!r}: use "
                "bif.known_proxy(loss), or bif.Proxy(name, function, slope)."
            )

    @property
    def recorded(self) -> ItemLoss:
        """The function that is evaluated at the draws: the observable's, or that of its proxy."""
        return self.function if self.through is None else self.through.function


def loss_observable(loss: ItemLoss) -> Observable:
    """Return the loss of the queries, lower is better; a cross-entropy goes through its margin."""
    return Observable("loss", loss, "lower", default_proxy(loss))


MARGIN = Observable("margin", margin, "higher")
"""The classification margin `log(p / (1 - p))` of the query's label."""


def observable_position(names: Sequence[str], name: str | None) -> int:
    """Return the position of one of the observables, the first by default.

    Raises:
        KeyError: There is none of that name.
    """
    if name is None:
        return 0
    if name not in names:
        raise KeyError(f"no observable {name!r}; there are {list(names)}: name one.")
    return list(names).index(name)


def find_observable(problem: Problem, name: str | None) -> Observable:
    """Return one of the problem's observables, the first by default.

    Raises:
        KeyError: There is none of that name.
    """
    names = [observable.name for observable in problem.observables]
    return problem.observables[observable_position(names, name)]


class Problem:
    """A trained model, a loss per item, train items, queries and observables.

    Nothing of the caller's is changed: a copy of the model is evaluated, in evaluation mode.
    `notes` may say how it was put together; a run keeps that among its explanations.
    It is one class because a run's identity, columns and checks must follow from the same parts.

    Args:
        model: The trained network; its parameters are w*.
        loss: `loss(model, batch) -> [B]`, or `[B, T]` whose tokens are summed.  The loss of the
            train items; also the default observable.
        train: Train items: `Items`, tensors, a dict of tensors, a Dataset, or a DataLoader of one.
        queries: Items of the same structure, or a mapping from group names to such.
        observables: What is asked of the queries; the loss (lower is better) by default, and
            `bif.losses.cross_entropy` through its margin.  For the loss itself pass
            `[bif.Observable("loss", loss, "lower")]`.
        candidates: Items that were not trained on, or a mapping from group names to such: they
            are scored beside the train items (what if one were added?) and do not enter U.
        train_weights: `[n]`, each item's weight rho in training; 1 by default.
        tied_weights: "refuse" parameters that share storage and move, or "share": sample them as
            one.  Frozen ones need neither.
        tokens: "train", "query" or "both": on that side every token of the items' `token_mask` has
            a column (or row) `ID[t]` of its own, in the place of its item's.
        metric: How stiffly each weight is held near w*, positive leaves by the names of the trained
            parameters: the diagonal M of `(gamma/2) (w - w*)ᵀ M (w - w*)`, 1 by default.
            `bif.adam_metric` and `bif.gradient_metric` make that of Adam.

    Raises:
        TypeError, ValueError: A loss that returns a scalar, another length, NaN or infinities; a
            query batch of another structure than the train batch; tied weights; parameters on
            several devices; tokens of items without a mask, or of a function that sums them.
            Raised at construction, before any long work.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ItemLoss,
        *,
        train: Items | Batch | Dataset[Any],
        queries: Items | Batch | Dataset[Any] | Mapping[str, Items | Batch | Dataset[Any]],
        observables: Sequence[Observable] | None = None,
        candidates: Items
        | Batch
        | Dataset[Any]
        | Mapping[str, Items | Batch | Dataset[Any]]
        | None = None,
        train_weights: Tensor | Sequence[float] | None = None,
        tied_weights: TiedWeights = "refuse",
        tokens: Tokens | None = None,
        metric: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"the model is a {type(model).__name__}: expected a torch.nn.Module. A function "
                "that trains one must return it."
            )
        devices = {p.device for p in model.parameters()}
        if len(devices) != 1:
            raise ValueError(
                f"the model's parameters must be on one device, got {sorted(map(str, devices))}."
                if devices
                else "the model has no parameters: there is nothing to sample."
            )
        require_literal("tied_weights", tied_weights, TiedWeights)
        self.model = model
        self.loss = loss
        self.device = devices.pop()
        self.trainable = trainable(model)
        self._tied = _tied(model, one_object_is_fine=tied_weights == "share")
        self.refuse_tied(self.trainable)
        self.padding_rows = padding_rows(model)
        self.narrow_types = narrow_types(model)
        self.train = self._items(train)
        self.query_groups = self._groups(queries, default=UNNAMED)
        self.candidate_groups = (
            {} if candidates is None else self._groups(candidates, default="candidate")
        )
        self.observables = _require_observables(observables or (loss_observable(loss),))
        self.train_weights = _weights(train_weights, len(self.train))
        self.notes: tuple[str, ...] = ()
        if tokens is not None:
            require_literal("tokens", tokens, Tokens)
        self.tokens = tokens
        self.train_shift = self.query_shift = 0
        self.path: tuple[Params, ...] = ()
        self.metric = None if metric is None else self._checked_metric(metric)
        self._probe()

    @property
    def proxy_names(self) -> list[str]:
        """What each observable is recorded through; "" for the observable itself."""
        return ["" if o.through is None else o.through.name for o in self.observables]

    @property
    def proxies_in_words(self) -> list[str]:
        """A line for each observable that is recorded through a proxy."""
        return [
            f"observable {o.name} goes through the {o.through.name}: recorded are its value at w* "
            f"and the change of the {o.through.name} times the slope at w*"
            for o in self.observables
            if o.through is not None
        ]

    @property
    def num_train(self) -> int:
        """n, the number of train items."""
        return len(self.train)

    @property
    def scored_groups(self) -> dict[str, Items]:
        """The train items, as "train", and the groups of candidates: the columns of the scores."""
        return {"train": self.train, **self.candidate_groups}

    @property
    def train_by_token(self) -> bool:
        """Whether the columns of the scores are tokens of the train items and candidates."""
        return self.tokens in ("train", "both")

    @property
    def query_by_token(self) -> bool:
        """Whether the rows of the scores are tokens of the queries."""
        return self.tokens in ("query", "both")

    @property
    def scored_columns(self) -> Columns:
        """The columns of the scores; ids of candidates are "group/id"."""
        others = [f"{g}/{i}" for g, items in self.candidate_groups.items() for i in items.ids]
        names = np.asarray([*self.train.ids.tolist(), *others])
        groups = list(self.scored_groups.values())
        return Columns.of(groups, names=names, by_token=self.train_by_token)

    @property
    def query_columns(self) -> Columns:
        """The rows of the scores of each observable; ids are "group/id" where groups have names.

        Those of queries that were given without a name are plain, whatever groups join them.
        """
        groups = self.query_groups
        names = [
            i if group == UNNAMED else f"{group}/{i}"
            for group, items in groups.items() for i in items.ids
        ]  # fmt: skip
        return Columns.of(
            list(groups.values()), names=np.asarray(names), by_token=self.query_by_token
        )

    @property
    def scored_ids(self) -> np.ndarray:
        """Names of all columns of the scores: of scored items, or of their tokens."""
        return self.scored_columns.ids

    @property
    def scored_group_names(self) -> np.ndarray:
        """The group of every column of the scores."""
        return _group_names(self.scored_groups)[self.scored_columns.item]

    @property
    def num_scored(self) -> int:
        """Number of columns of the scores."""
        by_token = self.train_by_token
        return sum(num_columns(items, by_token=by_token) for items in self.scored_groups.values())

    @property
    def num_queries(self) -> int:
        """Number of queries of all groups: whole items, or their tokens."""
        by_token = self.query_by_token
        return sum(num_columns(items, by_token=by_token) for items in self.query_groups.values())

    @property
    def query_ids(self) -> np.ndarray:
        """Names of all queries."""
        return self.query_columns.ids

    @property
    def query_group_names(self) -> np.ndarray:
        """The group of every query."""
        return _group_names(self.query_groups)[self.query_columns.item]

    def by_item(self) -> Problem:
        """Return the same problem with whole items on both sides."""
        other = copy(self)
        other.tokens = None
        return other

    def without_proxies(self) -> Problem:
        """Return the same problem with every observable recorded itself, not through a proxy."""
        other = copy(self)
        other.observables = tuple(replace(o, through=None) for o in self.observables)
        return other

    def with_plain_losses(self) -> Problem:
        """Return the same problem with losses that torch differentiates in every way.

        Values are the same: `bif.problem.losses.form_of` marks what is another form of a loss.
        """
        other = copy(self)
        other.loss = plain_form(self.loss)
        other.observables = tuple(
            replace(o, function=plain_form(o.function)) for o in self.observables
        )
        return other

    def refuse_tokens(self, what: str) -> None:
        """Raise where tokens have columns of their own, which `what` cannot use.

        Raises:
            ValueError: They do.
        """
        if self.tokens:
            raise ValueError(
                f"{what} knows whole items only, and the problem has tokens={self.tokens!r}: pass "
                "problem.by_item()."
            )

    def refuse_path(self, what: str) -> None:
        """Raise where the problem has a path, which `what` would ignore.

        Raises:
            ValueError: It has.
        """
        if self.path:
            raise ValueError(
                f"{what} is at w* alone, and the problem has a path, along which "
                "bif.attribute(…, Settings(estimator='response')) solves: pass "
                "problem.with_path(())."
            )

    def refuse_tied(self, names: Collection[str]) -> None:
        """Raise where one of these parameters, which are to move, shares storage with another.

        Raises:
            ValueError: It does, and `tied_weights` does not say that they are one.
        """
        for owner, name in self._tied:
            if owner in names or name in names:
                raise ValueError(
                    f"tied weights: {name!r} and {owner!r} share storage, so globs and masks on "
                    "one would silently act on both. Untie them, or make them one Parameter and "
                    "pass tied_weights='share' to sample them as one under the name "
                    f"{owner!r}."
                )

    def extended(
        self,
        *,
        queries: Mapping[str, Items | Batch | Dataset[Any]] | None = None,
        candidates: Mapping[str, Items | Batch | Dataset[Any]] | None = None,
    ) -> Problem:
        """Return the same problem with further groups of queries and candidates, after its own.

        Raises:
            TypeError: Groups without names.
            ValueError: A group of that name is there; a batch of another structure.
        """
        _require_names(queries, "queries")
        _require_names(candidates, "candidates")
        for kind, there, more in (
            ("queries", self.query_groups, queries or {}),
            ("candidates", self.candidate_groups, candidates or {}),
        ):
            taken = sorted(set(there) & set(more))
            if taken:
                raise ValueError(f"{kind} named {taken} are there already: choose other names.")
        other = copy(self)
        more_queries = {str(n): self._items(x) for n, x in (queries or {}).items()}
        more_candidates = {str(n): self._items(x) for n, x in (candidates or {}).items()}
        other.query_groups = {**self.query_groups, **more_queries}
        other.candidate_groups = {**self.candidate_groups, **more_candidates}
        other._probe()
        return other

    def asking(
        self,
        queries: Mapping[str, Items | Batch | Dataset[Any]],
        *,
        observables: Sequence[Observable] | None = None,
    ) -> Problem:
        """Return the same model and train items with other queries and, if given, observables.

        Raises:
            TypeError, ValueError: As at construction.
        """
        _require_names(queries, "queries")
        other = copy(self)
        other.query_groups = {str(n): self._items(x) for n, x in queries.items()}
        other.observables = self.observables if observables is None else tuple(observables)
        other._probe()
        return other

    def with_model(self, model: nn.Module) -> Problem:
        """Return the same problem at another model's weights, such as those of a checkpoint.

        Raises:
            ValueError: Weights of other names or shapes.
        """
        shapes = {name: leaf.shape for name, leaf in model.named_parameters()}
        expected = {name: leaf.shape for name, leaf in self.model.named_parameters()}
        if shapes != expected:
            raise ValueError(
                "the model must have the weights of the problem's: got "
                f"{len(shapes)} tensors, {sum(s.numel() for s in shapes.values()):,} weights; "
                f"expected {len(expected)} tensors, {sum(s.numel() for s in expected.values()):,} "
                "weights of the same names and shapes."
            )
        other = copy(self)
        other.model = model
        return other

    def at_weights(self, weights: Mapping[str, Tensor]) -> Problem:
        """Return the same problem at other weights: a state dict.

        Frozen parameters and buffers that stay as they are may be left out.

        Raises:
            ValueError: Weights of another model.
        """
        model = widen_(copy_module(self.model))
        load_weights_(model, {**self._frozen(), **weights})
        return self.with_model(model)

    def require_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raise unless `at_weights` takes these, without a copy of the model.

        Raises:
            ValueError: Weights of another model.
        """
        require_weights(self.model, {**self._frozen(), **weights})

    def _frozen(self) -> dict[str, Tensor]:
        """Return the parameters that do not train, by name."""
        own = self.parameters()
        return {name: own[name] for name in own.keys() - {*self.trainable}}

    def with_path(self, path: Sequence[nn.Module | Mapping[str, Tensor]]) -> Problem:
        """Return the same problem with weights on the way of training, over which a response goes.

        A response by solving is then the mean of those at each of these weights and at w*, with the
        curvature, the items' and the queries' gradients there.  Baselines stay at w*.

        Args:
            path: Models or state dicts, at about equal numbers of steps.

        Raises:
            TypeError: One model or state dict in the place of a list of them.
            ValueError: Weights of another model.
        """
        if isinstance(path, nn.Module | Mapping):
            raise TypeError(
                f"path is a {type(path).__name__}, expected a list of models or state dicts: pass "
                "with_path([…])."
            )
        weights = [x.state_dict() if isinstance(x, nn.Module) else x for x in path]
        for number, one in enumerate(weights):
            try:
                self.require_weights(one)
            except ValueError as error:
                raise ValueError(f"path, number {number}: {error}") from error
        other = copy(self)
        other.path = tuple({n: leaf.detach().clone() for n, leaf in w.items()} for w in weights)
        return other

    def with_metric(self, metric: Mapping[str, Tensor] | None) -> Problem:
        """Return the same problem with another metric of the localisation, or with none.

        Raises:
            ValueError: As at construction, of the metric.
        """
        other = copy(self)
        other.metric = None if metric is None else self._checked_metric(metric)
        return other

    def metric_scale(self, like: Params) -> Params | None:
        """Return `M^(-1/2)` of some leaves, on their devices; None without a metric.

        Raises:
            ValueError: Leaves that the model freezes, which a metric does not have.
        """
        if self.metric is None:
            return None
        missing = [name for name in like if name not in self.metric]
        if missing:
            raise ValueError(
                f"the metric has no leaf of {missing[:5]}, which the model freezes and movable "
                "moves: let them require gradients before the problem is made, and give theirs."
            )
        return {name: self.metric[name].rsqrt().to(leaf) for name, leaf in like.items()}

    def _checked_metric(self, metric: Mapping[str, Tensor]) -> Params:
        return require_metric(metric, {n: self.parameters()[n] for n in self.trainable})

    def parameters(self) -> Params:
        """Return all named parameters as the model holds them, leaves `[*shape]`, detached."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def center(self) -> Params:
        """Return w*: all named parameters, leaves `[*shape]`, detached, float32 or wider."""
        return {name: widen(leaf) for name, leaf in self.parameters().items()}

    def evaluation_copy(self, device: torch.device, *, lean: bool = False) -> nn.Module:
        """Return a copy of the model on `device`, in evaluation mode, free to change.

        Args:
            device: The device of the copy.
            lean: Leave matrices in float16 or bfloat16; else all weights and buffers are float32
                at least.
        """
        model = densify_(copy_module(self.model).to(device).eval().requires_grad_(False))
        return widen_(model, least_axes=2) if lean else widen_(model)

    def _items(self, data: Items | Batch | Dataset[Any]) -> Items:
        """Return items, in float32 where the model's weights are widened and inputs narrow."""
        items = as_items(data)
        return items.widened() if self.narrow_types else items

    def _groups(self, groups: Any, *, default: str) -> dict[str, Items]:
        """Return groups of items by name.

        A mapping names the groups, unless batches are dicts and it is itself a dict batch.
        """
        is_batch = (
            isinstance(self.train.first(1), Mapping)
            and isinstance(groups, Mapping)
            and all(isinstance(value, Tensor) for value in groups.values())
        )
        if isinstance(groups, Mapping) and not is_batch:
            if not groups:
                kind = {UNNAMED: "queries"}.get(default, f"{default}s")
                raise ValueError(f"{kind} is an empty mapping: expected at least one group.")
            return {str(name): self._items(data) for name, data in groups.items()}
        return {default: self._items(groups)}

    def _probe(self) -> None:
        """Evaluate three items of everything, so that mistakes show before any long work."""
        try:
            self._probe_functions()
        except ValueError as error:
            if not self.narrow_types or "dtype" not in str(error):
                raise
            raise ValueError(
                f"weights and inputs in {' and '.join(self.narrow_types)} are sampled as float32, "
                f"which the loss or an observable does not take: {error} Cast to the weights' type "
                "there, or not at all; settings such as gradient_precision='bfloat16' choose the "
                "precision of products."
            ) from error
        self._refuse_repeated_names()

    def _refuse_repeated_names(self) -> None:
        for kind, columns in (("queries", self.query_columns), ("items", self.scored_columns)):
            names, counts = np.unique(columns.item_ids, return_counts=True)
            if (counts > 1).any():
                raise ValueError(
                    f"two {kind} are named {str(names[counts > 1][0])!r}, an id or 'group/id': "
                    "rename a group or give the items other ids."
                )

    def _probe_functions(self) -> None:
        model = self.evaluation_copy(self.device)
        train_batch = to_device(self.train.first(3), self.device)
        check_item_values(self.loss, model, train_batch, "loss", "train items", self.train.ids)
        self._check_padding(self.loss, model, self.train, "loss", "train items")
        if self.train_by_token:
            self.train_shift = probe_shift(
                self.loss, model, train_batch, self.train, what="loss", where="train items"
            )
        expected = _structure(train_batch)
        shifts: dict[str, int] = {}
        queries = [("query", name, items) for name, items in self.query_groups.items()]
        others = [("candidate", name, items) for name, items in self.candidate_groups.items()]
        for kind, group, items in queries + others:
            batch = to_device(items.first(3), self.device)
            got = _structure(batch)
            if got != expected:
                raise ValueError(
                    f"{kind} group {group!r} has another structure than the train items: got "
                    f"{got}, expected {expected}."
                )
            where = f"group {group!r}"
            if kind == "candidate":
                check_item_values(self.loss, model, batch, "loss", where, items.ids)
                self._check_padding(self.loss, model, items, "loss", where)
                if self.train_by_token:
                    probe_shift(self.loss, model, batch, items, what="loss", where=where)
                continue
            for observable in self.observables:
                what = f"observable {observable.name!r}"
                check_item_values(observable.function, model, batch, what, where, items.ids)
                if observable.through is not None:
                    check_proxy(observable.through, observable.function, model, batch, what, where)
                self._check_padding(observable.function, model, items, what, where)
                if self.query_by_token:
                    shifts[what] = probe_shift(
                        observable.function, model, batch, items, what=what, where=where
                    )
        if len(set(shifts.values())) > 1:
            raise ValueError(
                f"some observables have values of every token, others of the next tokens: {shifts} "
                "tokens at the start have none. Ask for them in problems of their own."
            )
        self.query_shift = next(iter(shifts.values()), 0)

    def _check_padding(
        self, function: ItemLoss, model: nn.Module, items: Items, what: str, where: str
    ) -> None:
        check_left_padding(function, model, items, what, where, device=self.device)
        check_right_padding(function, model, items, what, where, device=self.device)


def _require_names(groups: object, kind: str) -> None:
    """Raise unless groups of items have names.

    Raises:
        TypeError: They have none.
    """
    if groups is not None and not isinstance(groups, Mapping):
        raise TypeError(
            f"{kind} is a {type(groups).__name__}, expected a mapping from names of groups to "
            f"items: pass {kind}={{'more': …}}."
        )


def _require_observables(observables: Sequence[Observable]) -> tuple[Observable, ...]:
    for observable in observables:
        if not isinstance(observable, Observable):
            raise TypeError(
                f"observables must be bif.Observable, got {observable!r}: use bif.MARGIN, or "
                "bif.Observable(name, function, better)."
            )
    names = [observable.name for observable in observables]
    if len(set(names)) != len(names):
        raise ValueError(f"observables need different names, got {names}: rename one of them.")
    return tuple(observables)


def _tied(model: nn.Module, *, one_object_is_fine: bool) -> list[tuple[str, str]]:
    """Return pairs of names that share storage, the model's first one before the other."""
    found: list[tuple[str, str]] = []
    places: dict[int, list[tuple[int, int, str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=one_object_is_fine):
        if not parameter.numel():
            continue
        # Neighbours in one flat buffer, as cuDNN's recurrent layers keep them, are not tied.
        strides = zip(parameter.shape, parameter.stride(), strict=True)
        start = int(parameter.storage_offset())
        stop = start + sum(int((n - 1) * s) for n, s in strides)
        others = places.setdefault(parameter.untyped_storage().data_ptr(), [])
        for other_start, other_stop, owner in others:
            if start <= other_stop and other_start <= stop:
                found.append((owner, name))
        others.append((start, stop, name))
    return found


def _group_names(groups: Mapping[str, Items]) -> np.ndarray:
    return np.asarray([name for name, items in groups.items() for _ in range(len(items))])


def _weights(weights: Tensor | Sequence[float] | None, num_train: int) -> Tensor | None:
    if weights is None:
        return None
    array = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if array.shape != (num_train,) or not array.isfinite().all() or array.min() < 0:
        raise ValueError(
            f"train_weights must be {num_train} finite numbers ≥ 0, one a train item; got shape "
            f"{tuple(array.shape)}."
        )
    return array


def _structure(batch: Batch) -> str:
    return ", ".join(
        f"{path} {leaf.dtype}".replace("torch.", "") for path, leaf in batch_leaves(batch).items()
    )
