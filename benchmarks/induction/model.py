"""A network of two attention layers, its training in a fixed order, and measures of induction."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.induction.sequences import ALPHABET, LENGTH, Group

WIDTH, HEADS, LAYERS = 64, 4, 2
BATCH = 32
"""Sequences of an update."""
_RATE, _WARM_UP = 4e-3, 50
"""Learning rate of AdamW, and the updates in which it rises."""


def sinusoids(length: int, width: int) -> Tensor:
    """Return positions as sines and cosines, in which a shift is a rotation, `[T, d]`."""
    speeds = 1000.0 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Attention(nn.Module):
    """Causal attention in which queries and keys alone know the positions.

    So no position is copied by a value (Press et al. 2021, arXiv 2012.15832).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.heads = heads

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is added to x `[B, T, d]`, and the pattern `[B, H, T, T]`."""
        count, length, width = x.shape
        normed = self.norm(x)
        placed = normed + positions[:length]

        def split(leaf: Tensor) -> Tensor:
            return leaf.reshape(count, length, self.heads, -1).transpose(1, 2)

        q, k, v = split(self.query(placed)), split(self.key(placed)), split(self.value(normed))
        scores = q @ k.mT * (width // self.heads) ** -0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        pattern = scores.masked_fill(later, -1e9).softmax(dim=-1)
        return self.out((pattern @ v).transpose(1, 2).reshape(count, length, width)), pattern


class Network(nn.Module):
    """An attention-only language model of characters.

    Args:
        width: Of the residual stream.
        heads: Heads of each layer.
        layers: Layers of attention.
    """

    positions: Tensor

    def __init__(self, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.register_buffer("positions", sinusoids(LENGTH, width))
        self.layers = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)
        for leaf in self.parameters():
            if leaf.dim() > 1:
                nn.init.normal_(leaf, std=width**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits `[B, T, V]`."""
        return self.with_patterns(input_ids)[0]

    def with_patterns(self, input_ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits, and the attention pattern of each layer, `[B, H, T, T]`."""
        x, patterns = self.embedding(input_ids), []
        for layer in self.layers:
            added, pattern = layer(x, self.positions)
            x = x + added
            patterns.append(pattern)
        return self.head(self.norm(x)), patterns


def network(seed: int) -> Network:
    """Return a network before training; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()


# --- Training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """A training before an update, to go on from.

    Attributes:
        step: Updates so far.
        weights: State dict of the network.
        optimizer: State dict of AdamW.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]


ItemWeights = Callable[[int], Tensor | None]
"""From a step to the weights of all train items in it, `[N]`; None if all are 1."""


def batch_at(step: int, count: int, seed: int) -> np.ndarray:
    """Return the items of an update, in an order that is drawn anew in every epoch."""
    epoch, place = divmod(step, count // BATCH)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[place * BATCH : (place + 1) * BATCH]


def start(seed: int, device: str) -> State:
    """Return the state before the first update."""
    model = network(seed).to(device)
    return _state(0, model, _optimizer(model))


def train(
    state: State, pool: Tensor, *, seed: int, until: int, keep: Collection[int] = (),
    item_weights: ItemWeights | None = None,
    watch: Callable[[int, Network], None] | None = None,
) -> list[State]:  # fmt: skip
    """Train on from a state, and return the states that are kept and the last.

    The same state, seed and weights give the same bits on a CPU with as many threads.

    Args:
        state: Where the training starts; it is not changed.
        pool: Ids of all train sequences, `[N, T]`, on the device.
        seed: Seed of the order.
        until: Updates at the end, those before `state` among them.
        keep: Steps before which the state is kept.
        item_weights: Weights of the items in the loss; the tokens it is divided by stay the same.
        watch: A function that sees the network before each update and at the end.
    """
    model = Network().to(pool.device)
    model.load_state_dict(state.weights)
    optimizer = _optimizer(model)
    optimizer.load_state_dict(copy.deepcopy(state.optimizer))
    kept = []
    for step in range(state.step, until + 1):
        if step in keep:
            kept.append(_state(step, model, optimizer))
        if watch is not None:
            watch(step, model)
        if step == until:
            break
        chosen = torch.from_numpy(batch_at(step, len(pool), seed)).to(pool.device)
        weights = None if item_weights is None else item_weights(step)
        losses = token_losses(model, pool[chosen])
        if weights is not None:
            losses = losses * weights[chosen, None]
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / _WARM_UP)
        optimizer.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return [*kept, _state(until, model, optimizer)]


def token_losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the cross-entropy of every next character, nats, `[B, T - 1]`."""
    return F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def _optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01)


def _state(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    weights = {name: leaf.detach().clone() for name, leaf in model.state_dict().items()}
    return State(step, weights, copy.deepcopy(optimizer.state_dict()))


# --- Measures of induction ------------------------------------------------------------------------


def prefix_matching(pattern: Tensor, periods: Tensor) -> Tensor:
    """Return the prefix-matching score of each head, `[H]` (Olsson et al. 2022, arXiv 2209.11895).

    The mean attention of the tokens of the second copy to the token that followed the same token in
    the first copy.

    Args:
        pattern: Attention of one layer, `[B, H, T, T]`.
        periods: Lengths of the repeated segments, `[B]`.
    """
    place = torch.arange(pattern.shape[-1], device=pattern.device)
    counted = (place >= periods[:, None]) & (place < 2 * periods[:, None])
    followed = (place - periods[:, None] + 1).clamp(min=0)
    chosen = followed[:, None, :, None].expand(-1, pattern.shape[1], -1, 1)
    attention = pattern.gather(3, chosen)[..., 0] * counted[:, None]
    return attention.sum(dim=(0, 2)) / counted.sum()


def measures(model: Network, group: Group) -> dict[str, float]:
    """Return the largest prefix-matching score of the heads, and the loss on either copy.

    `in_context_drop` is the mean loss of the first copy less that of the second, nats a token.
    """
    with torch.no_grad():
        logits, patterns = model.with_patterns(group.ids)
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), group.ids[:, 1:], reduction="none")
    scores = torch.cat([prefix_matching(pattern, group.periods) for pattern in patterns])
    first = float(losses[group.first_copy()[:, 1:]].mean())
    second = float(losses[group.asked[:, 1:]].mean())
    return {
        "prefix_score": float(scores.max()), "first_copy_loss": first, "second_copy_loss": second,
        "in_context_drop": first - second,
    }  # fmt: skip
