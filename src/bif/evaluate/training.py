"""Training stacks of small networks: the weights of G networks along a leading axis.

`torch.func.vmap` runs the model once for the whole stack. A network is fixed by its subset (the
mask itself, not its place in a list) and its seed, which together seed its initial weights and
its order of mini-batches: banks of networks can be trained in any pieces and extended. Weights of
its items do not seed anything: networks that differ in them alone share both.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bif.evaluate.recipe import Recipe
from bif.problem.functional import ItemFunction
from bif.problem.items import batch_leaves, map_batch, to_device
from bif.problem.literals import require_literal
from bif.problem.weights import copy_module, narrow_types, widen, widen_
from bif.types import Batch, ItemLoss, Target

_CHUNK_SIZE = 1024


class Network(NamedTuple):
    """A network's subset, a mask [N], its seed, its number for messages, and weights of items [N].

    All networks of a stack have weights, or none has.
    """

    mask: np.ndarray
    seed: int
    subset: int = 0
    weights: np.ndarray | None = None

    def __str__(self) -> str:
        of = "subset" if self.weights is None else "row of weights"
        return f"{of} {self.subset} and seed {self.seed}"


def values_of_stack(function: ItemFunction, leaves: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return values [G, B] of a batch under every network, 1,024 items at a time."""
    num_items = len(next(iter(batch_leaves(batch).values())))
    values = []
    for start in range(0, num_items, _CHUNK_SIZE):
        part = slice(start, start + _CHUNK_SIZE)
        items = map_batch(lambda t, part=part: t[part], batch)
        with torch.no_grad():
            values.append(_stacked_values(function, leaves, items, own_batches=False))
    return values[0] if len(values) == 1 else torch.cat(values, dim=1)


def _stacked_values(
    function: ItemFunction, leaves: dict[str, Tensor], batch: Batch, *, own_batches: bool
) -> Tensor:
    """Return values [G, B].

    The batch is [G, B, …] where networks have batches of their own, else [B, …].
    """
    if len(next(iter(leaves.values()))) == 1:  # alone it needs no vmap, which not all models take
        if own_batches:
            batch = map_batch(lambda t: t[0], batch)
        return function.at({name: leaf[0] for name, leaf in leaves.items()}, batch).unsqueeze(0)
    try:
        in_dims = (0, 0 if own_batches else None)
        return torch.func.vmap(function.at, in_dims=in_dims)(leaves, batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"torch.func.vmap cannot run this model or function, which work on their own: {error} "
            "Rewrite the operation in plain tensor operations, or train such networks one by one "
            "with networks_per_stack=1."
        ) from error


class StackTrainer:
    """A trainer of stacks of networks."""

    def __init__(
        self,
        model: nn.Module,
        loss: ItemLoss,
        items: Batch,
        recipe: Recipe,
        init: Target,
        device: torch.device | str | None,
    ) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            raise ValueError(
                "The model has no parameter that requires gradients, so there is nothing to train: "
                "call requires_grad_() on those that are to be trained."
            )
        require_literal("init", init, Target)
        if init == "scratch":
            _check_resettable(model)
        self.device = torch.device(device) if device is not None else trainable[0].device
        self.model = widen_(copy_module(model)).to(self.device).eval()
        self.init = init
        # fresh weights are drawn on the CPU: the same on every device
        self._template = widen_(copy_module(model)).cpu() if init == "scratch" else None
        self._losses = ItemFunction(self.model, loss)
        items = map_batch(widen, items) if narrow_types(model) else items
        self._items = to_device(items, self.device)
        self._recipe = recipe

    def check(self, mask: np.ndarray) -> None:
        """Call the loss once, plainly, and say what is wrong with it or with batch_size."""
        size = self._recipe.batch_size or int(mask.sum())
        if size > mask.sum():
            raise ValueError(
                f"batch_size is {size}, but a subset holds {int(mask.sum())} items; expected at "
                "most that many. Lower batch_size or set it to None."
            )
        index = torch.from_numpy(np.flatnonzero(mask)[:size]).to(self.device)
        with torch.no_grad():
            values = self._losses.raw(map_batch(lambda t: t[index], self._items))
        check_per_item(values, size, "the loss")

    def fit(self, networks: Sequence[Network]) -> dict[str, Tensor]:
        """Return trained weights [G, *shape] of networks."""
        leaves: dict[str, Tensor] = {}
        for leaves in self.path(networks):  # noqa: B007
            pass
        return {name: leaf.detach() for name, leaf in leaves.items()}

    def path(self, networks: Sequence[Network]) -> Iterator[dict[str, Tensor]]:
        """Yield weights [G, *shape] before the first update and after each, then changed."""
        leaves, recipe = self._initial_weights(networks), self._recipe
        momenta: list[Tensor | None] = [None for _ in leaves]
        yield leaves
        for step, (batch, weight_GB) in enumerate(self._batches(networks)):
            with torch.enable_grad():
                loss_GB = _stacked_values(self._losses, leaves, batch, own_batches=True)
                if weight_GB is not None:
                    loss_GB = loss_GB * weight_GB.to(loss_GB.dtype)
                gradients = torch.autograd.grad(
                    loss_GB.mean(dim=1).sum(), list(leaves.values()), materialize_grads=True
                )
            with torch.no_grad():
                if step == 0:
                    leaves = _match_layout(gradients, leaves)
                    if recipe.momentum:
                        momenta = [torch.zeros_like(leaf) for leaf in leaves.values()]
                rate = recipe.rate_at(step)
                for weight, momentum, gradient in zip(
                    leaves.values(), momenta, gradients, strict=True
                ):
                    _update_(weight, momentum, gradient, recipe, rate=rate)
            yield leaves

    def _initial_weights(self, networks: Sequence[Network]) -> dict[str, Tensor]:
        drawn: dict[str, list[Tensor]] = {
            name: [] for name, p in self.model.named_parameters() if p.requires_grad
        }
        for network in networks:
            source = self.model
            if self._template is not None:
                source = self._template
                _reset_(source, stream("weights", network.mask, network.seed))
            parameters = dict(source.named_parameters())
            for name, values in drawn.items():
                values.append(parameters[name].detach().clone())
        return {
            name: torch.stack(values).to(self.device).requires_grad_()
            for name, values in drawn.items()
        }

    def _batches(self, networks: Sequence[Network]) -> Iterator[tuple[Any, Tensor | None]]:
        """Yield items [G, B, …] of every step, and their weights [G, B] if there are any."""
        kept = torch.from_numpy(np.stack([np.flatnonzero(net.mask) for net in networks]))
        given = [net.weights for net in networks if net.weights is not None]
        weights = torch.from_numpy(np.stack(given)).to(self.device) if given else None

        def at(index: Tensor) -> tuple[Any, Tensor | None]:
            batch = map_batch(lambda t: t[index], self._items)
            return batch, None if weights is None else weights.gather(1, index)

        if self._recipe.batch_size is None:
            return itertools.repeat(at(kept.to(self.device)), self._recipe.steps)
        orders = [
            torch.Generator().manual_seed(stream("order", net.mask, net.seed)) for net in networks
        ]
        return map(at, self._shuffled_batches(kept, orders, self._recipe.batch_size))

    def _shuffled_batches(
        self, kept_GN: Tensor, orders: list[torch.Generator], batch_size: int
    ) -> Iterator[Tensor]:
        """Yield the positions of the items of every step, [G, B]."""
        num_kept = kept_GN.shape[1]
        per_epoch = num_kept // batch_size
        shuffled = kept_GN
        for step in range(self._recipe.steps):
            position = step % per_epoch
            if position == 0:
                permutations = torch.stack([torch.randperm(num_kept, generator=g) for g in orders])
                shuffled = _move_asynchronously(kept_GN.gather(1, permutations), self.device)
            yield shuffled[:, position * batch_size : (position + 1) * batch_size]


def _move_asynchronously(index: Tensor, device: torch.device) -> Tensor:
    """Return indices on the device, without waiting for its steps."""
    if device.type != "cuda":
        return index.to(device)
    return index.pin_memory().to(device, non_blocking=True)


def _match_layout(gradients: Sequence[Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the leaves in their gradients' memory order, where updates are three times as fast."""
    return {
        name: torch.empty_like(gradient).copy_(leaf).requires_grad_()
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _update_(
    weight: Tensor, momentum: Tensor | None, gradient: Tensor, recipe: Recipe, *, rate: float
) -> None:
    """Update a weight and its momentum in place.

    `momentum = recipe.momentum · momentum + gradient + weight_decay w`, `w -= rate momentum`.
    """
    if momentum is None:  # in two passes over memory, which is what small networks wait for
        if recipe.weight_decay:
            weight.mul_(1 - rate * recipe.weight_decay)
        weight.add_(gradient, alpha=-rate)
        return
    momentum.mul_(recipe.momentum).add_(gradient)
    if recipe.weight_decay:
        momentum.add_(weight, alpha=recipe.weight_decay)
    weight.add_(momentum, alpha=-rate)


def stream(purpose: str, mask: np.ndarray, seed: int) -> int:
    """Return a seed in [0, 2^63) that depends on subset, user's seed and purpose alone."""
    content = f"{purpose} {int(seed)} {mask.size} ".encode() + np.packbits(mask).tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def _reset_(model: nn.Module, seed: int) -> None:
    """Draw fresh weights in place, children before parents; the global state stays."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would also seed the accelerators
        torch.default_generator.manual_seed(seed)
        for module in reversed(list(model.modules())):
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()


def _check_resettable(model: nn.Module) -> None:
    stuck = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
        and not callable(getattr(module, "reset_parameters", None))
    ]
    if stuck:
        raise ValueError(
            f"Cannot re-initialise {', '.join(stuck)}: parameters without a method "
            'reset_parameters. Define it, or use init="checkpoint".'
        )
    running = [
        name for name, m in model.named_modules() if getattr(m, "running_mean", None) is not None
    ]
    if running:
        raise ValueError(
            f"Cannot train {', '.join(running)} from scratch: running statistics stay fixed in "
            'evaluation mode. Use init="checkpoint", or a normalisation without them.'
        )


def check_per_item(values: Any, num_items: int, name: str) -> None:
    """Raise ValueError unless values are [num_items] or [num_items, T] and finite."""
    if not isinstance(values, Tensor) or values.ndim not in (1, 2) or len(values) != num_items:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values)
        raise ValueError(
            f"{name} returned {got} for a batch of {num_items}; expected a tensor [{num_items}] "
            f"or [{num_items}, T], one value per item. Do not average over the batch."
        )
    if not torch.isfinite(values).all():
        raise ValueError(
            f"{name} returned NaN or infinite values under the model's weights; expected finite "
            "numbers. Look at the data and the function."
        )


def num_rows(batch: Batch, name: str) -> int:
    """Return the common length of a batch's tensors, or raise ValueError or TypeError."""
    leaves = list(batch_leaves(batch, name).values())
    if not leaves or any(leaf.ndim == 0 for leaf in leaves):
        raise ValueError(
            f"{name} hold {len(leaves)} tensors, or one without axes; expected tensors with a "
            "leading axis of items."
        )
    lengths = sorted({len(t) for t in leaves})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(f"{name} hold tensors of lengths {lengths}; expected one, above 0.")
    return lengths[0]
