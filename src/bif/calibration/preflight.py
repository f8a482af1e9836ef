"""Evaluate all items at w* twice before anything is chosen, and name the broken ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bif.problem.functional import ItemFunction
from bif.problem.items import Items, batch_leaves, preserve_randomness
from bif.problem.losses import cross_entropy, margin
from bif.problem.problem import Problem
from bif.sampling.choices import Choices
from bif.sampling.factory import run_device
from bif.sampling.movable_weights import moving
from bif.sampling.oracles import autocast
from bif.sampling.oracles.precision import matmul_precision, precision_at_center
from bif.sampling.settings import Settings
from bif.tensors import dense
from bif.types import Batch, ItemLoss

_NAMED = 5
"""Ids that a message lists, at most."""
_RELATIVE = 1e-3
"""Relative difference within which two values of one item agree: devices vary the order of sums."""
_ABSOLUTE = 1e-5
"""Absolute difference within which they agree, for values near zero."""
_checked: WeakKeyDictionary[Problem, dict[object, tuple[str, ...]]] = WeakKeyDictionary()
"""Remarks by what is movable: a problem is checked once, however often it is calibrated."""


@dataclass(frozen=True)
class _Group:
    """The items of one kind, and a function of each."""

    kind: str
    what: str
    function: ItemLoss
    items: Items

    def name(self, positions: list[int]) -> str:
        ids = ", ".join(repr(str(self.items.ids[i])) for i in positions[:_NAMED])
        more = f" and {len(positions) - _NAMED:,} others" if len(positions) > _NAMED else ""
        return f"{ids}{more}"


def check_items(problem: Problem, settings: Settings, choices: Choices) -> None:
    """Evaluate every train item, candidate and query at w* in two passes, and compare these.

    The second pass takes gradients besides, where the run has room for them, and says how many
    weights nothing moves.

    Args:
        problem: What is to be attributed.
        settings: Settings with oracle and chunk size.
        choices: Gets remarks on what was found.

    Raises:
        ValueError: A value that is NaN or infinite, or differs between the passes; an item on which
            a function fails; labels out of range.  All by id.
    """
    known = _checked.setdefault(problem, {})
    if settings.movable not in known:
        known[settings.movable] = _check(problem, settings)
    for remark in known[settings.movable]:
        choices.remark(remark)


def _check(problem: Problem, settings: Settings) -> tuple[str, ...]:
    device, lean = run_device(problem, settings), settings.memory == "lean"
    groups = list(_groups(problem, device))
    model = problem.evaluation_copy(device, lean=lean)
    chains = settings.block_size or 1 if settings.oracle == "stacked" else 1
    size = chains * (settings.chunk_size or 1)
    numbers = sum(leaf.numel() for leaf in model.parameters())
    precision = precision_at_center(settings.precisions[1], numbers)
    with matmul_precision(precision), preserve_randomness():
        for group in groups:
            _refuse_labels(model, group, lean=lean)
        once = [_values(model, group, size, lean=lean) for group in groups]
        for group, values in zip(groups, once, strict=True):
            _refuse_unusable(group, values)
        gradients = _Gradients(problem, settings, model) if settings.memory == "plain" else None
        for group, values in zip(groups, once, strict=True):
            again = _values(model, group, size, lean=lean, gradients=gradients)
            _refuse_another(group, values, again)
    return () if gradients is None else gradients.in_words()


def _groups(problem: Problem, device: torch.device) -> Iterator[_Group]:
    yield _Group("train items", "loss", problem.loss, problem.train.to(device))
    for name, items in problem.candidate_groups.items():
        yield _Group(f"candidates of {name!r}", "loss", problem.loss, items.to(device))
    for name, items in problem.query_groups.items():
        for observable in problem.observables:
            what = f"observable {observable.name!r}"
            yield _Group(f"queries of {name!r}", what, observable.function, items.to(device))


class _Gradients:
    """The weights that have a gradient at w*, of any train item and of any item at all."""

    def __init__(self, problem: Problem, settings: Settings, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        self._leaves = {
            name: (
                parameters[name].requires_grad_(),
                torch.as_tensor(mask, device=parameters[name].device).expand_as(parameters[name]),
            )
            for name, mask in moving(problem, settings.movable).items()
        }
        self._random = torch.Generator().manual_seed(0)
        self._unmoved: dict[str, int] = {}

    def add(self, values: Tensor) -> None:
        """Add the gradient of values `[B]`, each with a factor of its own so that none cancel."""
        if values.requires_grad:
            factors = torch.rand(len(values), generator=self._random).to(values) + 0.5
            (factors * values).sum().backward()

    def end(self, group: _Group) -> None:
        """Count after a group of items; those before are included."""
        self._unmoved[group.kind] = sum(
            int((mask if leaf.grad is None else mask & (dense(leaf.grad) == 0)).sum())
            for leaf, mask in self._leaves.values()
        )

    def is_finite(self) -> bool:
        """Return whether every gradient is finite."""
        return all(leaf.grad is None or bool(dense(leaf.grad).isfinite().all())
                   for leaf, _ in self._leaves.values())  # fmt: skip

    def forget(self) -> None:
        """Drop the gradients that were added."""
        for leaf, _ in self._leaves.values():
            leaf.grad = None

    def in_words(self) -> tuple[str, ...]:
        """Return a remark on weights that nothing moves."""
        by_train, by_any = self._unmoved["train items"], min(self._unmoved.values())
        if not by_train:
            return ()
        total = sum(int(mask.sum()) for _, mask in self._leaves.values())
        others = "" if by_any == by_train else f", of which {by_train - by_any:,} move a query"
        return (
            f"no train item's loss has a gradient by {by_train:,} of {total:,} weights at w*"
            f"{others}: rows of embeddings that no item uses, dead units and the like. gamma alone "
            "holds them, unless they come to matter as others move; movable leaves them out",
        )


def _values(
    model: nn.Module, group: _Group, size: int, *, lean: bool, gradients: _Gradients | None = None
) -> Tensor:
    """Return the group's values `[N]` on the CPU."""
    of_items = ItemFunction(model, group.function)
    parts = []
    for part, batch in group.items.chunks(size):
        with torch.set_grad_enabled(gradients is not None):
            found = _evaluate(of_items, group, part, batch, lean=lean)
            if gradients is not None:
                gradients.add(found)
        parts.append(found.detach().cpu())
    if gradients is not None:
        if group.kind == "train items" and not gradients.is_finite():
            _refuse_gradient(of_items, group, gradients)
        gradients.end(group)
    return torch.cat(parts)


def _refuse_gradient(
    of_items: Callable[[Batch], Tensor], group: _Group, gradients: _Gradients
) -> None:
    bad = []
    for i in range(len(group.items)):
        gradients.forget()
        gradients.add(of_items(group.items.take(torch.tensor([i]))))
        if not gradients.is_finite():
            bad.append(i)
    raise ValueError(
        f"the gradient of the {group.what} is NaN or infinite at w* for {len(bad):,} of "
        f"{len(group.items):,} {group.kind}, whose values are finite: {group.name(bad)}. Look for "
        "infinities in the data, and in the model or loss for a root or a norm at 0, or a branch "
        "that is masked only afterwards."
    )


def _evaluate(
    of_items: Callable[[Batch], Tensor], group: _Group, part: slice, batch: Batch, *, lean: bool
) -> Tensor:
    with autocast(batch, "bfloat16" if lean else "float32"):
        try:
            return of_items(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a user's function meets in an item
            if "device-side assert" in str(error):
                raise ValueError(
                    f"the {group.what} of {group.kind} indexes out of range on the device, as by a "
                    "label or token that is too large: run with device='cpu', which names the item."
                ) from error
            bad = []
            for i in range(part.start, part.stop):
                try:
                    of_items(group.items.take(torch.tensor([i])))
                except Exception:
                    bad.append(i)
            names = group.name(bad or list(range(part.start, part.stop)))
            raise ValueError(
                f"the {group.what} fails on {group.kind} {names} with {type(error).__name__}: "
                f"{error} Mend or leave out these, such as labels or tokens out of range."
            ) from error


def _refuse_unusable(group: _Group, values: Tensor) -> None:
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if not bad:
        return
    first = values[bad[0]]
    kind = "NaN" if first.isnan() else "infinite"
    if len({bool(values[i].isnan()) for i in bad}) == 2:
        kind = "NaN or infinite"
    leaves = batch_leaves(group.items.take(torch.tensor(bad[:1])))
    held = [path for path, leaf in leaves.items() if not leaf.isfinite().all()]
    why = f" ({', '.join(held)} of {str(group.items.ids[bad[0]])!r} is too)" if held else ""
    raise ValueError(
        f"the {group.what} is {kind} at w* for {len(bad):,} of {len(values):,} {group.kind}: "
        f"{group.name(bad)}{why}. Mend or leave out these, or mend the model or the {group.what}, "
        "before sampling."
    )


def _refuse_another(group: _Group, once: Tensor, again: Tensor) -> None:
    same = torch.isclose(once, again, rtol=_RELATIVE, atol=_ABSOLUTE)
    bad = (~same).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"two passes at w* gave different values of the {group.what} for {len(bad):,} of "
            f"{len(once):,} {group.kind}: {group.name(bad)}; the first {once[bad[0]]:.4g}, then "
            f"{again[bad[0]]:.4g}. Such noise would enter every covariance. A Dataset that "
            "augments at random returns different versions of an item: pass it without "
            "augmentation. A loss that draws noise: draw it once and put it into the batch."
        )


def _refuse_labels(model: nn.Module, group: _Group, *, lean: bool) -> None:
    """Raise where a label is out of range: a GPU that meets it answers nothing more."""
    if group.function not in (cross_entropy, margin):
        return
    num_classes = None
    for part, (inputs, labels) in group.items.chunks(4096):
        if labels.is_floating_point():
            return
        if num_classes is None:
            with torch.no_grad(), autocast(inputs, "bfloat16" if lean else "float32"):
                num_classes = model(inputs[:1]).shape[1 if group.function is cross_entropy else -1]
        ignored = labels == -100 if group.function is cross_entropy else labels != labels
        bad = ((labels < 0) | (labels >= num_classes)) & ~ignored
        where = bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()
        if where:
            label = labels[where[0]][bad[where[0]]].flatten()[0]
            bad_ones = group.name([part.start + i for i in where])
            raise ValueError(
                f"the label {int(label)} is out of range: the model has {num_classes} classes, 0 "
                f"to {num_classes - 1}. So for {group.kind} {bad_ones}. "
                "Number classes from 0, or leave these out."
            )
