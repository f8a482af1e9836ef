"""Plan a run by sizes alone: draws, time, memory, disk, network, the limit and what moves it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bif.calibration.calibrate import DEFAULT_DRAWS
from bif.calibration.memory_plan import Pass, Plan, uniform_weight_bytes
from bif.estimate.covariance import DEFAULT_GROUPS
from bif.runs.retention import ON_DISK, Keep, recorded_bytes
from bif.sampling.settings import Settings
from bif.terminal import as_bytes, in_time

SUSTAINED_FLOPS = 0.45 * 989e12
"""FLOP/s of a GPU: .45 of an H100's bfloat16 peak, about what models of 160 million to 12 billion
weights reach (docs/scaling.md)."""
_BATCH, _CHUNK = 16, 64
"""Items of a step and of a forward pass where settings leave them open; calibration measures."""
_BURN_IN = 200
"""Steps before the first draw where settings leave them open; calibration chooses them."""
_WEEK = 7 * 86_400.0
"""Seconds that a plan aims at where there is no budget."""
_HOST_BYTES = 2**40
"""Bytes of a host's memory that a plan counts with."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a problem, and of the machines for it.

    Attributes:
        items: N, train items and candidates that are scored.
        tokens: Tokens of an item, and of a query.
        model_params: P, weights of the model, all of which move.
        queries: Q.
        gpus: Number of GPUs.
        gpu_bytes: Memory of each.
        gpu_flops: FLOP/s of each that passes of the model reach.

    Raises:
        ValueError: A size that is no number of at least 1.
    """

    items: int
    tokens: int
    model_params: int
    queries: int
    gpus: int = 1
    gpu_bytes: float = 80 * 2**30
    gpu_flops: float = SUSTAINED_FLOPS

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value < math.inf:
                raise ValueError(f"{name} is {value}: expected a number of at least 1.")


@dataclass(frozen=True)
class SizePlan:
    """The plan of a run of given sizes.

    Attributes:
        sizes: As asked for.
        settings: With chains and draws.
        keep: What is kept of the draws.
        shards: GPUs that hold one model together.
        rounds: Chains that such a group of GPUs takes one after another.
        device: Plan of one group.
    """

    sizes: Sizes
    settings: Settings
    keep: Keep
    shards: int
    rounds: int
    device: Plan

    @property
    def seconds(self) -> float:
        """Return the seconds of all chains on all GPUs."""
        return self.rounds * self.device.seconds / (self.device.settings.chains or 1)

    @property
    def total_draws(self) -> int:
        """Return the draws of all chains."""
        return (self.settings.chains or 0) * (self.settings.draws or 0)

    @property
    def disk(self) -> dict[str, int]:
        """Return bytes of the host's memory, and on disk before compression, by what is kept."""
        s = self.sizes
        return recorded_bytes(
            rows=s.queries, columns=s.items, weights=4 * s.model_params, settings=self.settings,
            keep=self.keep,
        )  # fmt: skip

    @property
    def scores(self) -> int:
        """Return the bytes of all scores while they are estimated."""
        return self.disk["scores"]

    @property
    def distinguishable(self) -> float:
        """Return the correlation with a query that stands out among all items.

        Of N correlations that are 0 the largest is by chance about `sqrt(2 ln(N) / T)`, with T
        independent draws.
        """
        return min(1.0, math.sqrt(2 * math.log(max(2, self.sizes.items)) / self.total_draws))

    @property
    def shares(self) -> dict[str, float]:
        """Return which part of the time goes into what, the largest first."""
        s, d = self.sizes, self.device
        steps, records = _steps(self.settings) * d.step, (self.settings.draws or 0) * d.record
        scored = s.queries if self.settings.gradient == "full" else s.items + s.queries
        of_queries = records * s.queries / scored
        parts = {
            "scoring items": records - of_queries, "scoring queries": of_queries, "steps": steps,
        }  # fmt: skip
        return {
            what: part / (steps + records)
            for what, part in sorted(parts.items(), key=lambda part: -part[1])
        }

    @property
    def gathered(self) -> float:
        """Return the bytes of weights that a GPU receives at a draw from those that share them.

        4 bytes of each weight, 2 where they are bfloat16, for every forward pass of a chunk, and
        twice for a step.
        """
        s, chunk, draws = self.sizes, self.device.chunk_size, self.settings.draws or 1
        passes = -(-s.items // chunk) - (-s.queries // chunk)
        passes += 2 * _steps(self.settings) / draws
        bytes_a_weight = 2.0 if self.settings.memory == "lean" else 4.0
        return bytes_a_weight * s.model_params * (1 - 1 / self.shards) * passes

    def items_within(self, seconds: float) -> int:
        """Return how many items, with the same draws, take so many seconds; 0 if not even one."""
        few, many = 0, self.sizes.items
        while few < many:  # the largest that fits, by halves
            middle = (few + many + 1) // 2
            sizes, asked = replace(self.sizes, items=middle), self.settings
            fits = plan_sizes(sizes, asked, keep=self.keep).seconds <= seconds
            few, many = (middle, many) if fits else (few, middle - 1)
        return few

    def in_words(self) -> list[str]:
        """Return the plan as lines of text."""
        s, d, settings, disk = self.sizes, self.device, self.settings, self.disk
        files = sum(disk[name] for name in ON_DISK)
        drivers = ", ".join(f"{what} {part:.1%}" for what, part in self.shares.items())
        held = f", {self.shards} GPUs hold a model" if self.shards > 1 else ""
        network = f"{as_bytes(files / self.seconds)}/s of files from all ranks"
        if self.shards > 1:
            network += f", and {as_bytes(self.gathered)} of weights to each GPU at a draw"
        return [
            f"draws: {self.total_draws:,} of {settings.chains:,} chains; a correlation above "
            f"{self.distinguishable:.2g} with a query stands out among {s.items:,} items",
            f"time: {in_time(self.seconds)} on {s.gpus:,} GPUs, {in_time(d.step)} a step and "
            f"{in_time(d.record)} a draw",
            f"memory of a GPU: {as_bytes(d.weights.total / self.shards)} for weights "
            f"({settings.memory}{held}); what passes take besides is measured by bif plan "
            "FILE.py:FUNCTION",
            f"memory of the host: {as_bytes(disk['memory'])} for what is recorded, "
            f"{as_bytes(self.scores)} for all scores",
            f"disk, before compression: {as_bytes(files)}, of which traces "
            f"{as_bytes(disk['traces'])} and results {as_bytes(disk['results'])}",
            f"network: {network}",
            f"cost drivers: {drivers}",
        ]

    def limits(self, budget: float | None = None) -> list[str]:
        """Return what exceeds its limit, the worst first, and the knobs that move it.

        Args:
            budget: Seconds that the run may take; a week by default.
        """
        s, disk, budget = self.sizes, self.disk, budget or _WEEK
        seconds = self.seconds
        knob = "more GPUs, fewer draws" if self.rounds > 1 else "fewer draws"
        found = [
            (seconds / budget, f"time: {in_time(seconds)}, and {in_time(budget)} are aimed at. "
                               f"Knobs: {knob}, fewer items. {self._two_stages(budget)}"),
            (self.shards / s.gpus, f"memory of the GPUs: a model needs {self.shards}, and there "
                                   f"are {s.gpus}. Knobs: memory='lean' with sampler='sgld', fewer "
                                   "weights that move"),
            (disk["memory"] / _HOST_BYTES,
             f"memory of a host: {as_bytes(disk['memory'])} of traces. Knobs: keep='sums' with few "
             "queries, fewer items or draws; bif.stream_covariance reads them in chunks"),
            (self.scores / _HOST_BYTES,
             f"memory of a host: {as_bytes(self.scores)} of scores. Knobs: top, fewer items"),
        ]  # fmt: skip
        over = sorted((part for part in found if part[0] > 1), key=lambda part: -part[0])
        lines = [f"{'then' if i else 'limit'}: {words}." for i, (_, words) in enumerate(over)]
        return lines or [f"limit: none; of {in_time(budget)} it takes {seconds / budget:.1%}."]

    def _two_stages(self, budget: float) -> str:
        """Return what a cheap filter of all items takes, and how many then have exact scores."""
        s, fit = self.sizes, self.items_within(budget)
        one_pass = 2.0 * s.model_params * s.tokens * s.items / (s.gpus * s.gpu_flops)
        return (
            f"In two stages: a forward pass over all items takes {in_time(one_pass)}, a gradient "
            f"of each three times that; with these draws the best {fit:,} are then scored within "
            "the aim"
        )


def plan_sizes(
    sizes: Sizes, settings: Settings | None = None, *, keep: Keep = "traces"
) -> SizePlan:
    """Plan a run of a live module by sizes alone, with the formulas that forecast every run.

    A forward pass takes 2 FLOP for each weight and token, and a step three times that.  A group of
    as many GPUs as hold one model takes a chain at a time, and is as fast as so many.

    Args:
        sizes: Of the problem and the machines.
        settings: Of which chains, draws, burn-in, thinning, batch, sampler, memory and, as the
            fewest, shards count.  By default a chain for each group of GPUs, 16 at least, of 200
            draws, a step a draw.
        keep: What is kept of the draws.

    Raises:
        ValueError: Settings that contradict each other.
    """
    asked = settings or Settings()
    gradient = asked.gradient or "minibatch"
    batch = None if gradient == "full" else min(asked.batch_size or _BATCH, sizes.items)
    weights = uniform_weight_bytes(sizes.model_params, asked)
    shards = max(asked.shards, math.ceil(weights.total / sizes.gpu_bytes))
    groups = max(1, sizes.gpus // shards)
    planned = asked.with_draws(asked.draws or DEFAULT_DRAWS).reopened(
        oracle="live", gradient=gradient, batch_size=batch, block_size=None,
        chains=asked.chains or max(DEFAULT_GROUPS, groups),
        chunk_size=min(asked.chunk_size or _CHUNK, sizes.items),
        burn_in=_BURN_IN if asked.burn_in is None else asked.burn_in, thin=asked.thin or 1,
    )  # fmt: skip
    an_item = 2.0 * sizes.model_params * sizes.tokens / (sizes.gpu_flops * shards)
    scored = sizes.queries if gradient == "full" else sizes.items + sizes.queries
    device = Plan(
        weights=weights, items=0, backward=Pass(0, 0), forward=Pass(0, 0),
        settings=planned, num_train=sizes.items, warm_up=0.0,
        step=3 * an_item * (batch or sizes.items), record=an_item * scored,
    )  # fmt: skip
    return SizePlan(sizes, planned, keep, shards, -(-(planned.chains or 0) // groups), device)


def _steps(settings: Settings) -> int:
    """Return the steps of a chain."""
    return (settings.burn_in or 0) + ((settings.draws or 0) - 1) * (settings.thin or 0)
