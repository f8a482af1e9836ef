"""Run the chains of one run: starts, steps, and the values of items at a draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from bif import tensors
from bif.problem.array_layout import Panels
from bif.problem.problem import Problem
from bif.problem.weights import load_weights_
from bif.sampling.chain import Position, draw_index, trajectory
from bif.sampling.factory import item_weights, make_oracle, make_posterior, make_sampler, run_device
from bif.sampling.fused_step import StreamedGradient, fused_trajectory
from bif.sampling.gradients import ControlVariateGradient, FullGradient, MiniBatchGradient
from bif.sampling.observer import Observer
from bif.sampling.oracles import LiveOracle
from bif.sampling.oracles.compilation import compiled
from bif.sampling.rng import BlockNoise, LeafNoise, ShuffledOrder, generator
from bif.sampling.sampler_state import restored, state_tensors
from bif.sampling.settings import RunSettings
from bif.sampling.stochastic_rounding import refuse_coarse
from bif.sampling.whole_model import WHOLE
from bif.types import Draw, Gradient, HasParams, Mass, Params, Shards

_LARGE_LEAF = 2**20
"""Weights from which on a leaf is worth a compiled kernel of its own."""


@dataclass(frozen=True)
class Start:
    """The place from which a block of chains starts or goes on."""

    step: int
    state: HasParams
    noise: BlockNoise | LeafNoise

    def saved(self, position: Position) -> dict[str, Tensor]:
        """Return a copy of all it takes to go on from a position."""
        return {
            **{f"sampler/{n}": x for n, x in state_tensors(position.state).items()},
            "noise": self.noise.state(),
        }


class Engine:
    """The posterior, oracle, sampler and observer of one run, and the steps that they take.

    It is one class because start, steps and draws must all use the same center and random numbers.

    Args:
        problem: What is to be attributed.
        settings: Complete.
        mass: The mass that calibration measured, where `settings.mass="kronecker"`.
        shards: The processes that hold a part of the model each, all of which build an engine.

    Raises:
        ValueError: Another number of shards than that of the settings; losses that are NaN or
            infinite at w*; steps below the rounding of the weights.
    """

    def __init__(
        self,
        problem: Problem,
        settings: RunSettings,
        *,
        mass: Mass | None = None,
        shards: Shards = WHOLE,
    ) -> None:
        if shards.count != settings.shards:
            raise ValueError(
                f"shards={settings.shards}, and the model is in {shards.count}: only bif.attribute "
                "with ranks samples a model that is split among them."
            )
        if (mass is not None) != (settings.mass == "kronecker"):
            raise ValueError(
                f"mass={settings.mass!r} was asked for, and {mass!r} is given: build the engine by "
                "make_engine, which measures the mass."
            )
        self.problem, self.settings, self.mass = problem, settings, mass
        self.shards = shards
        self.device = run_device(problem, settings)
        self.posterior = make_posterior(problem, settings, shards=shards)
        self._of_large_leaf = tensors.squared_distance
        if settings.compiled:  # one pass over a leaf and its center, where eagerly it is two
            self._of_large_leaf = compiled(tensors.squared_distance)
        names = list(self.posterior.center)
        self.oracle = make_oracle(problem, settings, names, shards=shards)
        self.sampler = make_sampler(settings, self.mass)
        if settings.memory == "lean":
            refuse_coarse(self.posterior.center, settings.step_size)
        self.panels = Panels.of(problem, anchored=settings.estimator == "anchored")
        first = next(iter(self.posterior.center.values()))
        self.weights = item_weights(problem, first)
        self.observer = Observer(problem, settings, self.oracle, self.center(1))

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
        self.observer.evaluate_center(self.center(1))

    @property
    def last_step(self) -> int:
        """Return the step of the last draw."""
        s = self.settings
        return s.burn_in + (s.draws - 1) * s.thin

    def start(self, block: int, num_chains: int) -> Start:
        """Return the start of a block at w*."""
        noise = self._noise(block, 0)
        return Start(0, self.sampler.init(self.center(num_chains), noise), noise)

    def resumed(
        self,
        block: int,
        num_chains: int,
        saved: Mapping[str, Tensor],
        *,
        step: int,
        same_device: bool,
    ) -> Start:
        """Return the start of a block where `Start.saved` left it.

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
                raise ValueError(
                    "the saved state of the random numbers is of another device: go on where the "
                    "run was begun."
                )
            noise.restore(numbers)
        return Start(step, restored(state, own), noise)

    def positions(
        self, block: int, num_chains: int, start: Start, *, last_step: int | None = None
    ) -> Iterator[Position]:
        """Yield the block's positions, to the last draw's unless told otherwise."""
        s = self.settings
        end = self.last_step if last_step is None else last_step
        if isinstance(start.noise, LeafNoise):
            return fused_trajectory(
                self.sampler, self.posterior, gradient=self._streamed(block), state=start.state,
                noise=start.noise, first_step=start.step, last_step=end,
            )  # fmt: skip
        return trajectory(
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
        """Return which draw the position before a step is, if any."""
        s = self.settings
        return draw_index(step, burn_in=s.burn_in, thin=s.thin)

    def observed(self, position: Position) -> tuple[Tensor, Tensor]:
        """Return losses of the scored items `[C, N]` and observables of the queries `[C, A·Q]`."""
        params = position.state.params
        return self.observer.train(params, position.losses), self.observer.queries(params)

    def mean_train_loss(self, train: Tensor) -> Tensor | None:
        """Return the weighted mean loss `[C]` of the train items, from a draw's columns `[C, N]`.

        None where tokens have the columns: masks may leave some out.
        """
        if self.problem.train_by_token:
            return None
        losses = train[:, : self.problem.num_train]
        return (losses * self.weights.to(losses)).mean(dim=1)

    def observed_draws(self, block: int, num_chains: int) -> Iterator[tuple[Draw, Tensor, Tensor]]:
        """Yield the draws of a block from w*, with what is observed at them.

        Nothing here waits for the device.
        """
        for position in self.positions(block, num_chains, self.start(block, num_chains)):
            index = self.draw_at(position.step)
            if index is not None:
                draw = Draw(index, position.state.params, position.losses)
                yield draw, *self.observed(position)

    def _noise(self, block: int, counter: int) -> BlockNoise | LeafNoise:
        if self.settings.memory != "plain":
            return LeafNoise(
                self.posterior.center, seed=self.settings.seed, block=block, device=self.device,
                counter=counter, masks=self.posterior.masks,
            )  # fmt: skip
        source = generator(
            self.settings.seed, block, "noise", device=self.device, counter=counter,
            shard=self.shards.index,
        )  # fmt: skip
        return BlockNoise(source, self.posterior.masks)

    def distance_squared(self, params: Params) -> Tensor:
        """Return `|w - w*|²` of each chain, `[C]`."""
        return self.posterior.distance_squared(params, self._of_leaf)

    def _of_leaf(self, leaf: Tensor, center: Tensor) -> Tensor:
        large = center.numel() >= _LARGE_LEAF
        return (self._of_large_leaf if large else tensors.squared_distance)(leaf, center)

    def center(self, num_chains: int) -> Params:
        """Return fresh chains at w*, leaves `[C, *shape]`."""
        center = self.posterior.center
        if isinstance(self.oracle, LiveOracle):
            live = self.oracle.live_params()
            for name, leaf in live.items():
                leaf.copy_(center[name].unsqueeze(0))
            return live
        return tensors.stacked(center, num_chains)

    def gradient(self, block: int, num_chains: int) -> Gradient:
        """Return the gradient of a block's chains."""
        s, full = self.settings, self.full_gradient()
        if s.gradient == "full":
            return full
        order = ShuffledOrder(
            self.problem.num_train, s.mini_batch, num_chains=num_chains, seed=s.seed,
            block=block, device=self.device,
        )  # fmt: skip
        if s.gradient == "minibatch":
            return MiniBatchGradient(
                self.oracle, self.observer.train_items, order=order, train_weights=self.weights
            )
        center_gradient = full(tensors.stacked(self.posterior.center, 1), 0).gradient
        return ControlVariateGradient(
            self.oracle,
            self.observer.train_items,
            order=order,
            train_weights=self.weights,
            center=tensors.stacked(self.posterior.center, num_chains),
            center_gradient=center_gradient,
        )

    def full_gradient(self) -> FullGradient:
        """Return the gradient of all train items, whatever the chains take."""
        return self._full_gradient

    @cached_property
    def _full_gradient(self) -> FullGradient:
        s = self.settings
        chunk = self.problem.num_train if s.oracle == "live" else s.chunk_size
        return FullGradient(
            self.oracle, self.observer.train_items, chunk_size=chunk, train_weights=self.weights,
            halves=s.shards == 1,
        )  # fmt: skip

    @property
    def halved_passes(self) -> list[str]:
        """Return notes of passes that became smaller because the device's memory was short."""
        passes = {
            "gradients": self._full_gradient.pass_size, "evaluations": self.observer.pass_size,
        }  # fmt: skip
        return [size.in_words(what) for what, size in passes.items() if size.halved]

    def _streamed(self, block: int) -> StreamedGradient:
        """Return the live chain's gradient, which steps fused into the backward pass take."""
        s, oracle = self.settings, self.oracle
        assert isinstance(oracle, LiveOracle)
        order = None
        if s.gradient == "minibatch":
            order = ShuffledOrder(
                self.problem.num_train, s.mini_batch, num_chains=1, seed=s.seed, block=block,
                device=self.device,
            )  # fmt: skip
        return StreamedGradient(
            oracle, self.observer.train_items, order=order, train_weights=self.weights
        )
