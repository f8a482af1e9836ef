"""One run's chains: where they start, their steps, and the values of items at a draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif import tensors
from bif.problem.array_layout import Panels
from bif.problem.items import Items
from bif.problem.problem import Observable, Problem
from bif.problem.weights import load_weights_
from bif.sampling.chain import Position, draw_index, walk
from bif.sampling.factory import item_weights, make_oracle, make_posterior, make_sampler, run_device
from bif.sampling.fused_step import StreamedGradient, walk_fused
from bif.sampling.gradients import ControlVariateGradient, FullGradient, MiniBatchGradient
from bif.sampling.linearisation import Linearised, centered
from bif.sampling.observe import observe
from bif.sampling.observe_tokens import TokenReader
from bif.sampling.oracles import LiveOracle
from bif.sampling.oracles.compilation import compiled
from bif.sampling.rng import BlockNoise, LeafNoise, ShuffledOrder, generator
from bif.sampling.sampler_state import restored, state_tensors
from bif.sampling.settings import RunSettings
from bif.sampling.stochastic_rounding import refuse_coarse
from bif.types import Draw, Gradient, HasParams, ItemLoss, Mass, Params

_GRADIENT_ITEMS = 32
"""Train items whose gradient at w* is compared when a run goes on."""
_LARGE_LEAF = 2**20
"""Weights from which on a leaf is worth a compiled kernel of its own."""


@dataclass(frozen=True)
class Start:
    """Where a block of chains starts from, or goes on."""

    step: int
    state: HasParams
    noise: BlockNoise | LeafNoise

    def saved(self, position: Position) -> dict[str, Tensor]:
        """All it takes to go on from a position, copied."""
        return {
            **{f"sampler/{n}": x for n, x in state_tensors(position.state).items()},
            "noise": self.noise.state(),
        }


@dataclass(frozen=True)
class Asked:
    """An observable as the chains record it.

    Attributes:
        function: The observable, or its linearisation in a proxy.
        groups: The groups of queries, with what the function needs.
        readers: Of their tokens, where these have columns.
    """

    function: ItemLoss
    groups: list[Items]
    readers: list[TokenReader]


class Engine:
    """The machinery of one run.

    Args:
        problem: What is to be attributed.
        settings: Complete.
        mass: Of `settings.mass="kronecker"`, as measured by calibration.

    Raises:
        ValueError: Losses that are NaN or infinite at w*; steps below the rounding of the weights.
    """

    def __init__(
        self, problem: Problem, settings: RunSettings, *, mass: Mass | None = None
    ) -> None:
        if (mass is not None) != (settings.mass == "kronecker"):
            raise ValueError(f"mass={settings.mass!r} was asked for, and {mass!r} is given.")
        self.problem, self.settings, self.mass = problem, settings, mass
        self.device = run_device(problem, settings)
        self.posterior = make_posterior(problem, settings)
        self._of_large_leaf = tensors.squared_distance
        if settings.compiled:  # one pass over a leaf and its center, where eagerly it is two
            self._of_large_leaf = compiled(tensors.squared_distance)
        self.oracle = make_oracle(problem, settings, list(self.posterior.center))
        self.sampler = make_sampler(settings, self.mass)
        if settings.memory == "lean":
            refuse_coarse(self.posterior.center, settings.step_size)
        self.train = problem.train.to(self.device)
        self.candidates = [items.to(self.device) for items in problem.candidate_groups.values()]
        self.queries = [items.to(self.device) for items in problem.query_groups.values()]
        self._train_tokens = _readers(
            [self.train, *self.candidates], problem.train_by_token, problem.train_shift
        )
        self.panels = Panels.of(problem)
        first = next(iter(self.posterior.center.values()))
        self.weights = item_weights(problem, first)
        self._look_at_center()

    def recentre(self, weights: Params) -> None:
        """Move w* to another checkpoint of the model.

        Oracle, items, mass and whatever was compiled or captured stay; the problem's own model is
        not touched.

        Args:
            weights: Every parameter of the model, and the buffers that differ, by name `[*shape]`.

        Raises:
            ValueError: Names or shapes that are not the model's; losses that are NaN or infinite.
        """
        load_weights_(self.oracle.model, weights)
        center = {
            n: weights[n].detach().to(like, copy=True) for n, like in self.posterior.center.items()
        }
        self.posterior = replace(self.posterior, center=center, copies_center=False)
        self._look_at_center()

    def _look_at_center(self) -> None:
        """Evaluate all items at w*."""
        alone = self._start(1)
        self.asked = [self._asked(observable, alone) for observable in self.problem.observables]
        self.train_center = self.observe_train(alone)[0].cpu()
        self.query_center = self.observe_queries(alone)[0].cpu()
        self._refuse_bad_losses()

    @property
    def last_step(self) -> int:
        """The step of the last draw."""
        s = self.settings
        return s.burn_in + (s.draws - 1) * s.thin

    def start(self, block: int, num_chains: int) -> Start:
        """A block at w*."""
        noise = self._noise(block, 0)
        return Start(0, self.sampler.init(self._start(num_chains), noise), noise)

    def resumed(
        self,
        block: int,
        num_chains: int,
        saved: Mapping[str, Tensor],
        *,
        step: int,
        same_device: bool,
    ) -> Start:
        """A block where `Start.saved` left it.

        Args:
            same_device: Whether the saved numbers are of this kind of device; else fresh ones go
                on from there, equal in law.
        """
        state = self.start(block, num_chains).state
        prefix = "sampler/"
        own = {n.removeprefix(prefix): x for n, x in saved.items() if n.startswith(prefix)}
        noise = self._noise(block, 0 if same_device else 1 + step)
        if same_device:
            numbers, like = saved.get("noise"), noise.state()
            if numbers is None or (numbers.shape, numbers.dtype) != (like.shape, like.dtype):
                raise ValueError("the saved state of the random numbers is not of this device.")
            noise.restore(numbers)
        return Start(step, restored(state, own), noise)

    def positions(
        self, block: int, num_chains: int, start: Start, *, last_step: int | None = None
    ) -> Iterator[Position]:
        """The block's steps, to the last draw's unless told otherwise."""
        s = self.settings
        end = self.last_step if last_step is None else last_step
        if isinstance(start.noise, LeafNoise):
            return walk_fused(
                self.sampler, self.posterior, gradient=self._streamed(block), state=start.state,
                noise=start.noise, first_step=start.step, last_step=end,
            )  # fmt: skip
        return walk(
            self.sampler,
            self.posterior,
            gradient=self.gradient(block, num_chains),
            state=start.state,
            noise=start.noise,
            first_step=start.step,
            last_step=end,
            use_compile=s.compiled and s.traits.compiles,
            precision="float32" if s.precisions[0] == "float32" else "tf32",
        )

    def draw_at(self, step: int) -> int | None:
        """Which draw the position before a step is, if any."""
        s = self.settings
        return draw_index(step, burn_in=s.burn_in, thin=s.thin)

    def observed(self, position: Position) -> tuple[Tensor, Tensor]:
        """Losses of the scored items `[C, N]` and observables of the queries `[C, A·Q]`."""
        params = position.state.params
        return self.observe_train(params, position.losses), self.observe_queries(params)

    def observed_draws(self, block: int, num_chains: int) -> Iterator[tuple[Draw, Tensor, Tensor]]:
        """Draws of a block from w*, with what is observed at them.

        Nothing here waits for the device.
        """
        for position in self.positions(block, num_chains, self.start(block, num_chains)):
            index = self.draw_at(position.step)
            if index is not None:
                draw = Draw(index, position.state.params, position.losses)
                yield draw, *self.observed(position)

    def observe_train(self, params: Params, losses: Tensor | None = None) -> Tensor:
        """Losses of the train items and candidates, or of their tokens, `[C, N]`.

        Args:
            losses: Of the train items, as the gradient brought them along; they serve where they
                are as exact as asked for.
        """
        s = self.settings
        if losses is None or self.problem.train_by_token or not s.gradient_brings_losses:
            losses = self._observe_scored(0, params)
        others = [self._observe_scored(1 + i, params) for i in range(len(self.candidates))]
        return torch.cat([losses, *others], dim=1) if others else losses

    def mean_train_loss(self, train: Tensor) -> Tensor | None:
        """Weighted mean loss `[C]` of the train items, from the columns `[C, N]` of a draw.

        None where tokens have the columns: masks may leave some out.
        """
        if self.problem.train_by_token:
            return None
        losses = train[:, : self.problem.num_train]
        return (losses * self.weights.to(losses)).mean(dim=1)

    def observe_queries(self, params: Params) -> Tensor:
        """Observables of the queries as they are recorded, `[C, A·Q]`, observable-major."""
        return torch.cat(
            [
                self._observe_asked(asked, i, params)
                for asked in self.asked
                for i in range(len(self.queries))
            ],
            dim=1,
        )

    def observe_panel(self, name: str, params: Params) -> Tensor:
        """What one array of the traces records at a draw: `[C, N_g]` or `[C, A, Q_g]`."""
        kind, _, index = name.partition("-")
        if kind == "train_loss":
            return self._observe_scored(int(index), params)
        return torch.stack([self._observe_asked(a, int(index), params) for a in self.asked], dim=1)

    def _observe_scored(self, index: int, params: Params) -> Tensor:
        """The loss of a group's columns, the train items being group 0, `[C, N_g]`."""
        groups = [self.train, *self.candidates]
        return self._columns(self.problem.loss, groups, self._train_tokens, index, params)

    def _observe_asked(self, asked: Asked, index: int, params: Params) -> Tensor:
        """What is recorded of a group of queries, `[C, Q_g]`."""
        return self._columns(asked.function, asked.groups, asked.readers, index, params)

    def _columns(
        self,
        function: ItemLoss,
        groups: list[Items],
        readers: list[TokenReader],
        index: int,
        params: Params,
    ) -> Tensor:
        """`function` of the columns of one of the groups, `[C, N_g]`."""
        chunk_size = self.settings.chunk_size
        if readers:
            return readers[index](self.oracle, function, params, chunk_size=chunk_size)
        return self.observe(function, params, groups[index])

    def _asked(self, observable: Observable, center: Params) -> Asked:
        """An observable as it is recorded; linearised around w* where it goes through a proxy."""
        groups: list[Items] = self.queries
        function, through = observable.function, observable.through
        if through is not None:
            groups = [
                centered(
                    items, function, through, oracle=self.oracle, center=center,
                    chunk_size=self.settings.chunk_size,
                )
                for items in groups
            ]  # fmt: skip
            function = Linearised(through)
        by_token, shift = self.problem.query_by_token, self.problem.query_shift
        return Asked(function, groups, _readers(groups, by_token, shift))

    def center_values(self) -> list[Tensor]:
        """What each array of the traces would record at w*: `[N_g]` or `[A, Q_g]`."""
        parts = self.panels.split(self.train_center[None, None], self.query_center[None, None])
        return [torch.from_numpy(x[0, 0]) for x in parts.values()]

    def center_gradient(self) -> Tensor:
        """What tells of the gradient at w*: of every moving leaf its norm and two sums, `[L, 3]`.

        Of a few train items; empty where steps leave no room for a gradient of their own.
        """
        s = self.settings
        if s.memory != "plain":
            return torch.empty(0, 3, dtype=torch.float64)
        num = min(_GRADIENT_ITEMS, s.chunk_size, len(self.train))
        chosen = torch.linspace(0, len(self.train) - 1, num, device=self.device).long()
        gradient, _ = self.oracle.gradient(
            self._start(1), self.train.take(chosen), self.weights[chosen], per_chain=False
        )
        rows = []
        for leaf in gradient.values():
            x = leaf.detach().reshape(-1).double()
            waves = torch.cos(torch.arange(len(x), device=x.device, dtype=torch.float64))
            mean, wave = x.sum() / len(x) ** 0.5, x @ waves / len(x) ** 0.5  # at most the norm
            rows.append(torch.stack([x.norm(), mean, wave]))
        return torch.stack(rows).cpu()

    def observe(self, function: ItemLoss, params: Params, items: Items) -> Tensor:
        """`function` of items, `[C, N]`."""
        return observe(self.oracle, function, params, items, chunk_size=self.settings.chunk_size)

    def _noise(self, block: int, counter: int) -> BlockNoise | LeafNoise:
        if self.settings.memory != "plain":
            return LeafNoise(
                self.posterior.center, seed=self.settings.seed, block=block, device=self.device,
                counter=counter, masks=self.posterior.masks,
            )  # fmt: skip
        source = generator(self.settings.seed, block, "noise", device=self.device, counter=counter)
        return BlockNoise(source, self.posterior.masks)

    def distance_squared(self, params: Params) -> Tensor:
        """`|w - w*|²` of each chain, `[C]`."""
        return self.posterior.distance_squared(params, self._of_leaf)

    def _of_leaf(self, leaf: Tensor, center: Tensor) -> Tensor:
        large = center.numel() >= _LARGE_LEAF
        return (self._of_large_leaf if large else tensors.squared_distance)(leaf, center)

    def distance_limit(self) -> float:
        """`|w - w*|²` that no chain reaches while it samples the posterior.

        With losses ≥ 0, `gamma · E|w - w*|²` is at most about `2·nbeta·L(w*)`, all the loss there
        is to lose, plus the number of moving weights; a hundred times that is far out.  Without
        gamma only NaN and infinity tell.
        """
        s = self.settings
        if not s.gamma:
            return math.inf
        items = sum(len(group) for group in self.problem.scored_groups.values())
        to_lose = 2 * s.nbeta * abs(float(self.train_center.double().sum())) / items
        return 100 * (self.posterior.num_moving + 25 + to_lose) / s.gamma

    def _start(self, num_chains: int) -> Params:
        """Fresh chains at w*."""
        center = self.posterior.center
        if isinstance(self.oracle, LiveOracle):
            live = self.oracle.live_params()
            for name, leaf in live.items():
                leaf.copy_(center[name].unsqueeze(0))
            return live
        return tensors.stacked(center, num_chains)

    def gradient(self, block: int, num_chains: int) -> Gradient:
        """How a block's chains get their gradients."""
        s = self.settings
        chunk = self.problem.num_train if s.oracle == "live" else s.chunk_size
        full = FullGradient(self.oracle, self.train, chunk_size=chunk, train_weights=self.weights)
        if s.gradient == "full":
            return full
        order = ShuffledOrder(
            self.problem.num_train, s.mini_batch, num_chains=num_chains, seed=s.seed,
            block=block, device=self.device,
        )  # fmt: skip
        if s.gradient == "minibatch":
            return MiniBatchGradient(
                self.oracle, self.train, order=order, train_weights=self.weights
            )
        center_gradient = full(tensors.stacked(self.posterior.center, 1), 0).gradient
        return ControlVariateGradient(
            self.oracle,
            self.train,
            order=order,
            train_weights=self.weights,
            center=tensors.stacked(self.posterior.center, num_chains),
            center_gradient=center_gradient,
        )

    def _streamed(self, block: int) -> StreamedGradient:
        """How the live chain gets its gradients where steps are fused into the backward pass."""
        s, oracle = self.settings, self.oracle
        assert isinstance(oracle, LiveOracle)
        order = None
        if s.gradient == "minibatch":
            order = ShuffledOrder(
                self.problem.num_train, s.mini_batch, num_chains=1, seed=s.seed, block=block,
                device=self.device,
            )  # fmt: skip
        return StreamedGradient(oracle, self.train, order=order, train_weights=self.weights)

    def _refuse_bad_losses(self) -> None:
        bad = (~self.train_center.isfinite()).nonzero().flatten().tolist()
        if bad:
            ids = [str(self.problem.scored_ids[i]) for i in bad[:5]]
            raise ValueError(
                f"the loss is NaN or infinite at w* for {len(bad)} train items, such as {ids}: "
                "mend the model, the data or the loss before sampling."
            )
        if not self.query_center.isfinite().all():
            columns = (~self.query_center.isfinite()).nonzero().flatten()
            ids = [str(self.problem.query_ids[int(c) % self.problem.num_queries])
                   for c in columns[:5]]  # fmt: skip
            raise ValueError(
                f"an observable is NaN or infinite at w* for queries such as {ids}: mend the "
                "model, the data or the observable before sampling."
            )


def _readers(groups: list[Items], by_token: bool, shift: int) -> list[TokenReader]:
    """Of the groups' tokens, where these have columns."""
    return [TokenReader(items, shift=shift) for items in groups] if by_token else []
