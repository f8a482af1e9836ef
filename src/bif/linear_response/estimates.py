"""Responses of a block of pairs: time averages at temperature 1, displaced minima at 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from bif import tensors
from bif.estimate.response import BatchMeans
from bif.linear_response.pairs import Moment, NoNoise, Pairs, repeated
from bif.problem.items import Items
from bif.sampling.oracles.precision import rounding
from bif.sampling.samplers import BAOAB
from bif.types import Params

NUM_BATCHES = 10
"""Batches behind the errors at temperature 1, at least: replicates times stretches of time."""

_RELAXATIONS_PER_LOOK = 2
_MAX_LOOKS = 40


class BlockResponse(NamedTuple):
    """What a block of pairs gave; an entry that is not finite marks a pair that diverged.

    Attributes:
        response: `(E₊[l_i] - E₋[l_i]) / (2h)`, `[K, N]` float64.
        standard_error: `[K, N]`.
        changes: The same for the differences of neighbouring pairs, where asked for.
        moments: Means and variances of what the chains saw; None at temperature 0.
        num_steps: Of every chain.
        unsettled: Pairs that were still moving, bool `[K]`; all False at temperature 1.
    """

    response: Tensor
    standard_error: Tensor
    changes: Tensor | None
    change_error: Tensor | None
    moments: Moments | None
    num_steps: int
    unsettled: Tensor


class Moments:
    """Mean and variance of the items' losses `[N]` and of the pairs' observable `[K]`."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, losses_CN: Tensor, observable_KX: Tensor) -> None:
        """One moment; means are over chains, and over the chains of a pair."""
        self.count += 1
        for name, x in (("losses", losses_CN.T), ("observable", observable_KX)):
            x = x.double()
            if name not in self._sums:
                zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
                self._sums[name] = x.mean(dim=1), zero, zero.clone()
            reference, first, second = self._sums[name]
            away = x - reference.unsqueeze(1)
            first += away.mean(dim=1)
            second += away.square().mean(dim=1)

    def mean_and_variance(self, name: str) -> tuple[Tensor, Tensor]:
        """Of `losses` or `observable`."""
        reference, first, second = self._sums[name]
        mean = first / self.count
        return reference + mean, (second / self.count - mean.square()).clamp(min=0)


@dataclass(frozen=True)
class Clock:
    """Lengths of a run at temperature 1, in steps: `batch` records `stride` apart, `times` over."""

    burn_in: int
    stride: int
    batch: int
    times: int

    @classmethod
    def of(cls, pairs: Pairs, *, burn_in: int, steps: int) -> Clock:
        """At least `steps` recorded steps in equal batches."""
        stride = 1 if pairs.losses_are_free else pairs.settings.thin
        times = ceil(NUM_BATCHES / pairs.num_replicates)
        return cls(burn_in, stride, ceil(steps / (stride * times)), times)

    @property
    def num_steps(self) -> int:
        """Steps to the last record."""
        return self.burn_in + (self.batch * self.times - 1) * self.stride

    def record_at(self, step: int) -> int | None:
        """Which record the moment before a step is, if any."""
        index, off = divmod(step - self.burn_in, self.stride)
        return index if index >= 0 and not off else None


def sampled(
    pairs: Pairs,
    queries: Items,
    indices_K: Tensor,
    h_K: Tensor,
    *,
    clock: Clock,
    neighbours: int | None = None,
) -> BlockResponse:
    """Temperature 1: averages over time of the differences of paired chains.

    Args:
        neighbours: Pairs are `[H, neighbours]` with h growing along H: their changes are wanted.
    """
    means, changes, moments = BatchMeans(), BatchMeans(), Moments()
    for moment in pairs.walk(
        pairs.engine.sampler,
        pairs.noise(),
        start=pairs.start(len(h_K)),
        queries=queries,
        indices_K=indices_K,
        h_K=h_K,
        num_steps=clock.num_steps,
    ):
        record = clock.record_at(moment.step)
        if record is None:
            continue
        response_KRN, losses = pairs.responses(moment, h_K)
        means.add(response_KRN)
        moments.add(losses, moment.observable.view(len(h_K), -1))
        if neighbours:
            changes.add(response_KRN[neighbours:] - response_KRN[:-neighbours])
        if (record + 1) % clock.batch == 0:
            means.close()
            if neighbours:
                changes.close()
    change = changes.finish() if neighbours else (None, None)
    unsettled = torch.zeros(len(h_K), dtype=torch.bool)
    return BlockResponse(*means.finish(), *change, moments, clock.num_steps, unsettled)


def settled(
    pairs: Pairs,
    queries: Items,
    indices_K: Tensor,
    h_K: Tensor,
    *,
    start: Params,
    max_steps: int | None = None,
    neighbours: int | None = None,
) -> BlockResponse:
    """Temperature 0: the two minima of `U ± h·phi`, from the losses at them.

    The dynamics without noise at critical friction, looked at every second relaxation time until no
    pair's response changes by more than the square root of the rounding unit, relative to its norm,
    or until rounding alone moves it.  The error is the last change, together with what rounding of
    the losses leaves: `ε·|l| / h`.

    Args:
        start: Where all chains start, leaves `[1, *shape]`.
        max_steps: To stop at, settled or not.
        neighbours: As for `sampled`.
    """
    every = max(1, ceil(_RELAXATIONS_PER_LOOK * relaxation_steps(pairs)))
    num_steps = every * _MAX_LOOKS if max_steps is None else max_steps
    num_chains = len(h_K) * pairs.chains_per_pair
    walk = pairs.walk(
        critical(pairs),
        NoNoise(),
        start={n: repeated(x, num_chains) for n, x in start.items()},
        queries=queries,
        indices_K=indices_K,
        h_K=h_K,
        num_steps=num_steps,
    )
    looks = _looks(pairs, walk, h_K, every=every, num_steps=num_steps)
    before = last = next(looks)
    # Losses may come with the gradient, in its precision.
    unit = rounding(last.losses.dtype, *pairs.settings.precisions)
    limit = sqrt(unit)
    smallest = torch.full((len(h_K),), float("inf"), dtype=torch.float64)
    stagnant, moving = torch.zeros(len(h_K)), torch.ones(len(h_K), dtype=torch.bool)
    for look in looks:
        before, last = last, look
        size = last.response.norm(dim=1).clamp(min=1e-300)
        share = ((last.response - before.response).norm(dim=1) / size).cpu()
        stagnant = torch.where(share > 0.9 * smallest, stagnant + 1, 0 * stagnant)
        smallest = torch.minimum(smallest, share)
        moving = (share > limit) & share.isfinite()
        if not (moving & (stagnant < 3)).any():
            break
    return _read(
        last, before, h_K, unit=unit, moving=moving, jitters=stagnant > 0, neighbours=neighbours
    )


def _read(
    last: _Look, before: _Look, h_K: Tensor, *, unit: float, moving: Tensor, jitters: Tensor,
    neighbours: int | None,
) -> BlockResponse:  # fmt: skip
    """The last look, with the change since the one before and rounding as its errors.

    Args:
        unit: Relative rounding of a loss.
        moving: Pairs that still change, `[K]`; `jitters`: those whose changes do not get smaller.
    """
    size = last.losses.double().abs().unflatten(0, (len(h_K), -1)).amax(dim=1)
    floor = unit * size / h_K.unsqueeze(1)
    error = ((last.response - before.response).square() + floor.square()).sqrt()
    unsettled = moving & (error.norm(dim=1) > 0.01 * last.response.norm(dim=1)).cpu()
    changes = (None, None)
    if neighbours:
        # Rounding is noise to be taken off the changes; what is left of a descent is not, for
        # neighbouring pairs descend alike.
        rounding = (jitters & ~unsettled).to(error.device).unsqueeze(1)
        noise = torch.where(rounding, error, floor).square()
        change_error = (noise[neighbours:] + noise[:-neighbours]).sqrt()
        changes = (last.response[neighbours:] - last.response[:-neighbours], change_error)
    return BlockResponse(last.response, error, *changes, None, last.step, unsettled)


class _Look(NamedTuple):
    step: int
    response: Tensor
    losses: Tensor


def _looks(
    pairs: Pairs, walk: Iterator[Moment], h_K: Tensor, *, every: int, num_steps: int
) -> Iterator[_Look]:
    """Responses `[K, N]` every so often and at the end."""
    for moment in walk:
        if moment.step % every == 0 or moment.step == num_steps:
            response_KRN, losses = pairs.responses(moment, h_K)
            yield _Look(moment.step, response_KRN.mean(dim=1), losses)


def common_minimum(pairs: Pairs) -> Params:
    """The minimum of U without a perturbation, from w*, leaves `[1, *shape]`.

    What decay or early stopping left of the gradient at w* moves both chains of a pair alike; they
    start where it has done so.
    """
    center = tensors.stacked(pairs.posterior.center, 1)
    num_steps = ceil(2 * _MAX_LOOKS * relaxation_steps(pairs))
    nothing = torch.empty(0)
    walk = pairs.walk(
        critical(pairs), NoNoise(), start=center, queries=None, indices_K=nothing, h_K=nothing,
        num_steps=num_steps,
    )  # fmt: skip
    every = max(1, ceil(relaxation_steps(pairs)))
    eps = torch.finfo(next(iter(center.values())).dtype).eps
    before, found = tensors.copied(center), center
    for moment in walk:
        found = moment.params
        if moment.step and moment.step % every == 0:
            moved = float(tensors.squared_norm(tensors.difference(found, before)))
            away = float(tensors.squared_norm(pairs.posterior.displacement(found)))
            # The pairs go on to the minimum themselves; NaN ends the search, too.
            if not moved > max(eps * away, eps**2 * float(tensors.squared_norm(found))):
                break
            before = tensors.copied(found)
    return tensors.copied(found)


def critical(pairs: Pairs) -> BAOAB:
    """The rule for descent: friction critical for the slowest direction that calibration knows."""
    s = pairs.settings
    assert s.friction is not None
    return BAOAB(s.step_size, s.friction)


def relaxation_steps(pairs: Pairs) -> float:
    """Steps in which a critically damped descent forgets a share 1 - 1/e of its start."""
    rule = critical(pairs)
    return 2 / (rule.step_size * rule.friction)
