"""Chains in pairs: one samples `U + h·phi`, the other `U - h·phi`, with the same random numbers.

The chain axis C is (pair, sign, mirror, replicate), the replicate running fastest; a pair is a
query with an h.  With noise every replicate runs twice, with its numbers and with their negatives
(the mirror): what is odd in the noise, all of it where U is quadratic and phi linear, cancels from
their mean.  All pairs share the numbers of a replicate, which start afresh for every block of
pairs, so a query's scores do not depend on the other queries of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from bif import tensors
from bif.linear_response.bregman import bregman_divergence
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.sampling.engine import Engine
from bif.sampling.factory import make_oracle, make_posterior, run_device
from bif.sampling.gradients import ControlVariateGradient, FullGradient, MiniBatchGradient
from bif.sampling.rng import BlockNoise, ShuffledOrder, generator
from bif.sampling.settings import RunSettings, Settings
from bif.types import Gradient, ItemLoss, Noise, Params, Sampler


class SharedNoise:
    """One set of numbers a replicate, and its mirror, the same for both signs of every pair."""

    def __init__(self, source: BlockNoise, num_replicates: int) -> None:
        self._source, self._num_replicates = source, num_replicates

    def normal(self, like: Params) -> Params:
        few = {name: leaf[: self._num_replicates] for name, leaf in like.items()}
        both = {n: torch.cat([leaf, -leaf]) for n, leaf in self._source.normal(few).items()}
        return {n: repeated(leaf, len(like[n]) // len(leaf)) for n, leaf in both.items()}


class NoNoise:
    """Temperature 0: every number is 0."""

    def normal(self, like: Params) -> Params:
        return tensors.zeros_like(like)


class SharedOrder(ShuffledOrder):
    """The mini-batches of each replicate, the same for both signs of every pair."""

    def __init__(self, num_items: int, settings: RunSettings, *, num_chains: int, replicates: int,
                 device: torch.device) -> None:  # fmt: skip
        super().__init__(num_items, settings.mini_batch, num_chains=replicates, seed=settings.seed,
                         block=0, device=device)  # fmt: skip
        self._copies = num_chains // replicates

    def indices(self, step: int) -> Tensor:
        return super().indices(step).repeat(self._copies, 1)


class Moment(NamedTuple):
    """The chains before a step: weights, what the gradient brought along, and `phi` `[C]`."""

    step: int
    params: Params
    losses: Tensor | None
    observable: Tensor


class Pairs:
    """The machinery of a response: potentials, gradients, paired chains.

    Args:
        problem: What is to be attributed; its one observable is phi.
        settings: Complete.
        curvature: "gauss_newton" replaces the mean loss in U by its divergence from w*; the losses
            that are observed stay what they are.
        num_replicates: Of each pair with numbers of their own, R.
        num_mirrors: 2 with noise, 1 without.
    """

    def __init__(
        self,
        problem: Problem,
        settings: RunSettings,
        *,
        curvature: str,
        num_replicates: int,
        num_mirrors: int,
    ) -> None:
        self.engine = Engine(problem, settings)
        self.settings = settings
        self.num_replicates, self.num_mirrors = num_replicates, num_mirrors
        self.device = self.engine.device
        (asked,) = self.engine.observer.asked
        self.queries, names = asked.groups, list(self.engine.posterior.center)
        self._query_oracle = make_oracle(with_loss(problem, asked.function), settings, names)
        if curvature == "gauss_newton":
            self.posterior = make_posterior(problem, around_center(settings))
            self._oracle = make_oracle(bregman_problem(problem, settings), settings, names)
        else:
            self.posterior, self._oracle = self.engine.posterior, self.engine.oracle
        self._brings_losses = curvature == "hessian"
        self.losses_are_free = (
            curvature == "hessian"
            and settings.gradient == "full"
            and settings.gradient_brings_losses
            and len(self.engine.observer.scored_items) == 1
        )
        """Whether the losses of all scored items fall out of every step."""

    def walk(
        self,
        sampler: Sampler,
        noise: Noise,
        *,
        start: Params,
        queries: Items | None,
        indices_K: Tensor,
        h_K: Tensor,
        num_steps: int,
    ) -> Iterator[Moment]:
        """Step the pairs from `start` `[C, *shape]`, which is overwritten.

        Args:
            queries: The group of queries that `indices_K` points into; None steps without a
                perturbation.

        Yields:
            Moments 0 to `num_steps`; their buffers hold until the next one is asked for.
        """
        gradient = self._gradient(len(next(iter(start.values()))))
        state = sampler.init(start, noise)
        tilt = None if queries is None else self._tilt(queries, indices_K, h_K, state.params)
        for step in range(num_steps + 1):
            with torch.no_grad():
                estimate = gradient(state.params, step)
                force = self.posterior.potential_gradient_(estimate.gradient, state.params)
            observed = torch.empty(0, device=self.device)
            if tilt is not None:
                push, values = self._query_oracle.gradient(state.params, *tilt, per_chain=True)
                tensors.add_(force, self._moving(push))
                observed = values[:, 0]
            losses = estimate.losses if self._brings_losses else None
            yield Moment(step, state.params, losses, observed)
            if step < num_steps:
                with torch.no_grad():
                    state = sampler.step(state, force, noise)

    @property
    def chains_per_pair(self) -> int:
        """Both signs of all replicates and mirrors."""
        return 2 * self.num_mirrors * self.num_replicates

    def noise(self) -> SharedNoise:
        """The numbers from their beginning."""
        source = generator(self.settings.seed, 0, "noise", device=self.device)
        return SharedNoise(BlockNoise(source, self.posterior.masks), self.num_replicates)

    def start(self, num_pairs: int) -> Params:
        """All chains of some pairs at w*."""
        return tensors.stacked(self.posterior.center, num_pairs * self.chains_per_pair)

    def responses(self, moment: Moment, h_K: Tensor) -> tuple[Tensor, Tensor]:
        """`(l₊ - l₋) / (2h)` `[K, R, N]`, the mean of mirrors, and all losses `[C, N]`."""
        losses = self.engine.observer.train(moment.params, moment.losses)
        axes = (len(h_K), 2, self.num_mirrors, self.num_replicates, -1)
        signs = losses.double().view(axes).mean(dim=2)
        return (signs[:, 0] - signs[:, 1]) / (2 * h_K.view(-1, 1, 1)), losses

    def gradient_norms(self, queries: Items) -> Tensor:
        """`|∇phi|` of every query at w*, over the weights that move, `[Q]` float64."""
        parts = []
        for positions in torch.arange(len(queries)).split(self.settings.block_size or 1):
            params = tensors.stacked(self.posterior.center, len(positions))
            batch = queries.take(positions.to(self.device).unsqueeze(1))
            like = next(iter(params.values()))
            ones = torch.ones(len(positions), 1, dtype=like.dtype, device=self.device)
            gradient, _ = self._query_oracle.gradient(params, batch, ones, per_chain=True)
            parts.append(tensors.squared_norm(self._moving(gradient)).sqrt().cpu())
        return torch.cat(parts)

    @property
    def typical_curvature(self) -> float:
        """Geometric mean of the extreme curvatures of U, as calibration's step and gamma tell."""
        s = self.settings
        largest = 1 / s.step_size**2 if s.traits.underdamped else 1 / s.step_size
        return sqrt(largest * max(s.gamma, 1e-3 * largest))

    def _moving(self, gradient: Params) -> Params:
        """Zero where nothing may move."""
        masks = self.posterior.masks
        return {n: g * masks[n] if n in masks else g for n, g in gradient.items()}

    def _tilt(
        self, queries: Items, indices_K: Tensor, h_K: Tensor, params: Params
    ) -> tuple[object, Tensor]:
        """Every chain's own query `[C, 1, …]` and its weight, ±h `[C, 1]`."""
        first = next(iter(params.values()))
        weights_K2 = torch.stack([h_K, -h_K], dim=1)
        weights = weights_K2.flatten().repeat_interleave(self.chains_per_pair // 2)
        chains = indices_K.to(self.device).repeat_interleave(self.chains_per_pair)
        return queries.take(chains.unsqueeze(1)), weights.unsqueeze(1).to(first.dtype)

    def _chunk(self, num_chains: int) -> int:
        """Items a pass: fewer for a stack of more chains than a block, such as the pilot's."""
        s = self.settings
        if s.oracle != "stacked" or num_chains <= s.block_size:
            return s.chunk_size
        return max(1, s.chunk_size * s.block_size // num_chains)

    def _gradient(self, num_chains: int) -> Gradient:
        s, train, weights = self.settings, self.engine.observer.train_items, self.engine.weights
        full = FullGradient(
            self._oracle, train, chunk_size=self._chunk(num_chains), train_weights=weights
        )
        if s.gradient == "full":
            return full
        order = SharedOrder(
            len(train), s, num_chains=num_chains, replicates=self.num_replicates, device=self.device
        )
        if s.gradient == "minibatch":
            return MiniBatchGradient(self._oracle, train, order=order, train_weights=weights)
        return ControlVariateGradient(
            self._oracle,
            train,
            order=order,
            train_weights=weights,
            center=tensors.stacked(self.posterior.center, num_chains),
            center_gradient=full(tensors.stacked(self.posterior.center, 1), 0).gradient,
        )


def repeated(leaf: Tensor, count: int) -> Tensor:
    """A leaf `[C, *shape]` count times along the chain axis."""
    return leaf.repeat(count, *[1] * (leaf.dim() - 1))


def with_loss(problem: Problem, loss: ItemLoss) -> Problem:
    """The same problem with another function in the place of the loss."""
    other = copy(problem)
    other.loss = loss
    return other


def bregman_problem(problem: Problem, settings: Settings) -> Problem:
    """The same problem with the loss's Bregman divergence from w* in its place.

    Raises:
        ValueError: A loss whose form in output space is not known.
    """
    device = run_device(problem, settings)
    return with_loss(problem, bregman_divergence(problem.loss, problem.evaluation_copy(device)))


def around_center(settings: RunSettings) -> RunSettings:
    """Weight decay, too, by its divergence from w*: `nbeta·decay/2·|w - w*|²` joins gamma's."""
    pull = settings.nbeta * settings.weight_decay
    return replace(settings, gamma=settings.gamma + pull, weight_decay=0.0)


def blocks_of_queries(
    groups: Sequence[Items], block_size: int
) -> Iterator[tuple[Items, Tensor, slice]]:
    """Each group's queries in blocks: the group, positions in it, and the rows of the result."""
    first_row, block_size = 0, max(1, block_size)
    for items in groups:
        for start in range(0, len(items), block_size):
            stop = min(start + block_size, len(items))
            yield items, torch.arange(start, stop), slice(first_row + start, first_row + stop)
        first_row += len(items)
