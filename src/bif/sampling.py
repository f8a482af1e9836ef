"""One run's chains: every block sampled, every draw observed and recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bif import tensors
from bif.assemble import item_weights, make_oracle, make_posterior, make_sampler, run_device
from bif.chains import run_chains
from bif.estimate.diagnostics import reliability
from bif.gradients import ControlVariateGradient, FullGradient, MiniBatchGradient
from bif.items import Items
from bif.observe import observe
from bif.oracles import LiveOracle
from bif.problem import Problem
from bif.progress import ProgressBar
from bif.record import BlockRecorder
from bif.rng import BlockNoise, ShuffledOrder, generator
from bif.settings import Settings
from bif.traces import LossTraces
from bif.types import Draw, Gradient, ItemLoss, Params

_EXACTNESS = {"bfloat16": 0, "tf32": 1, "float32": 2}


@dataclass
class Sampling:
    """One run's machinery and what it has recorded so far."""

    problem: Problem
    settings: Settings
    recorders: list[BlockRecorder] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        problem, settings = self.problem, self.settings
        self.device = run_device(problem, settings)
        self.posterior = make_posterior(problem, settings)
        self.oracle = make_oracle(problem, settings, list(self.posterior.center))
        self.sampler = make_sampler(settings)
        self.train = problem.train.to(self.device)
        self.queries = [items.to(self.device) for items in problem.query_groups.values()]
        first = next(iter(self.posterior.center.values()))
        self.weights = item_weights(problem, first)
        alone = self._start(1)
        self.train_center = self.observe_train(alone)[0].cpu()
        self.query_center = self.observe_queries(alone)[0].cpu()
        self._refuse_bad_losses()

    def record(self, *, show_progress: bool) -> None:
        """Run every block of chains; Ctrl-C stops and keeps what there is."""
        s = self.settings
        assert s.chains is not None
        bar = ProgressBar(
            s.chains * s.draws, reliability=self.current_reliability, shown=show_progress
        )
        with bar:
            try:
                for block, chains in enumerate(self._blocks()):
                    self._record_block(block, chains, bar)
            except KeyboardInterrupt:
                self.interrupted = True
        for recorder in self.recorders:
            recorder.flush()

    def traces(self) -> LossTraces:
        """What has been recorded by chains that are alive and have two draws."""
        blocks = [recorder.block() for recorder in self.recorders]
        return LossTraces(tuple(b for b in blocks if b is not None and b.num_draws >= 2))

    def current_reliability(self) -> float:
        """Reliability of what has reached the host."""
        traces = self.traces()
        if traces.num_chains < 2:
            return float("nan")
        return reliability(traces, num_queries=16, num_train=256)

    @property
    def diverged(self) -> dict[int, int]:
        """Chains that were left out, and the draw by which they had diverged."""
        return {c: d for recorder in self.recorders for c, d in recorder.diverged.items()}

    def _blocks(self) -> Iterator[range]:
        chains, size = self.settings.chains, self.settings.block_size
        assert chains is not None and size is not None
        for start in range(0, chains, size):
            yield range(start, min(start + size, chains))

    def _record_block(self, block: int, chains: range, bar: ProgressBar) -> None:
        s, posterior = self.settings, self.posterior
        recorder = BlockRecorder(chains, num_draws=s.draws, distance_limit=self._distance_limit())
        self.recorders.append(recorder)
        for draw, train, query in self.observed_draws(block, len(chains)):
            recorder.add(train, query, posterior.distance_squared(draw.params))
            bar.advance(len(chains))
            if recorder.all_diverged:
                break

    def observed_draws(self, block: int, num_chains: int) -> Iterator[tuple[Draw, Tensor, Tensor]]:
        """Draws of a block with losses of the train items `[C, N]` and observables `[C, A·Q]`.

        Nothing here waits for the device.
        """
        s = self.settings
        assert s.burn_in is not None and s.thin is not None
        noise = BlockNoise(
            generator(s.seed, block, "noise", device=self.device), self.posterior.masks
        )
        draws = run_chains(
            self.sampler,
            self.posterior,
            gradient=self._gradient(block, num_chains),
            params=self._start(num_chains),
            noise=noise,
            num_draws=s.draws,
            burn_in=s.burn_in,
            thin=s.thin,
            # RMSprop's step counter would be compiled in anew at every step.
            use_compile=s.compiled and not s.sampler.startswith("rmsprop"),
        )
        # Losses that fell out of the gradient serve where they are as exact as asked for.
        reuse = _EXACTNESS[s.gradient_precision] >= _EXACTNESS[s.loss_precision]
        for draw in draws:
            losses = draw.losses if reuse else None
            train = self.observe_train(draw.params) if losses is None else losses
            yield draw, train, self.observe_queries(draw.params)

    def _distance_limit(self) -> float:
        """`|w - w*|²` that no chain reaches while it samples the posterior.

        With losses ≥ 0, `gamma · E|w - w*|²` is at most about `2·nbeta·L(w*)`, all the loss there
        is to lose, plus the number of moving weights; a hundred times that is far out.  Without
        gamma only NaN and infinity tell.
        """
        s = self.settings
        if not s.gamma or s.nbeta is None:
            return math.inf
        to_lose = 2 * s.nbeta * abs(float(self.train_center.double().mean()))
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

    def _gradient(self, block: int, num_chains: int) -> Gradient:
        s = self.settings
        assert s.chunk_size is not None
        chunk = self.problem.num_train if s.oracle == "live" else s.chunk_size
        full = FullGradient(self.oracle, self.train, chunk_size=chunk, train_weights=self.weights)
        if s.gradient == "full":
            return full
        assert s.batch_size is not None
        order = ShuffledOrder(
            self.problem.num_train, s.batch_size, num_chains=num_chains, seed=s.seed,
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

    def observe_train(self, params: Params) -> Tensor:
        """Losses of the train items, `[C, N]`."""
        return self._observe(self.problem.loss, params, self.train)

    def observe_queries(self, params: Params) -> Tensor:
        """Observables of the queries, `[C, A·Q]`, observable-major."""
        return torch.cat(
            [
                self._observe(observable.function, params, items)
                for observable in self.problem.observables
                for items in self.queries
            ],
            dim=1,
        )

    def _observe(self, function: ItemLoss, params: Params, items: Items) -> Tensor:
        assert self.settings.chunk_size is not None
        return observe(self.oracle, function, params, items, chunk_size=self.settings.chunk_size)

    def _refuse_bad_losses(self) -> None:
        bad = (~self.train_center.isfinite()).nonzero().flatten().tolist()
        if bad:
            ids = [str(self.problem.train.ids[i]) for i in bad[:5]]
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
