"""Forecast what a live run will take: bytes on the device by what they are for, and seconds.

Weights, w*, the sampler's state and the step are counted from shapes; what a pass of the model
takes besides is measured on a few items and on half as many, and is a line in their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bif.calibration.calibrate import calibrate
from bif.calibration.measured_mass import make_engine
from bif.calibration.peak_memory import PeakBytes
from bif.problem.items import Items, batch_leaves
from bif.problem.problem import Problem
from bif.problem.weights import NARROW
from bif.sampling.device_memory import free_bytes
from bif.sampling.engine import Engine
from bif.sampling.factory import run_device, wait_for
from bif.sampling.fused_step import ROWS_OF
from bif.sampling.movable_weights import moving
from bif.sampling.oracles import LiveOracle
from bif.sampling.settings import Settings
from bif.terminal import as_bytes

_TIMED_STEPS = 3
"""Steps that are timed; the first two are warm-up."""
_MEASURED_ITEMS = 16
"""Items of a measured pass at most: with far fewer, memory is not yet a line in their number."""
_ROWS_HELD = {"fused": 3.0, "lean": 4.25}
"""Numbers of 4 bytes that a fused step holds for each weight that it moves, by `memory`: the force,
w - w* and noise; where weights are bfloat16 also their wide copies and their rounding."""


@dataclass(frozen=True)
class WeightBytes:
    """The bytes that weights take on the device of a live run, whatever the items.

    Attributes:
        weights: The live module's own.
        center: w*; 0 where the caller's model is on the device and serves as it.
        state: What the sampler keeps besides the weights.
        step: Gradient, `w - w*` and noise, as far as they exist together; of a fused step that of
            its largest rows.
    """

    weights: int
    center: int
    state: int
    step: int

    @property
    def total(self) -> int:
        """Return the sum of all parts."""
        return self.weights + self.center + self.state + self.step


_GRAPHS_RESERVE = 460 * 2**20
"""Bytes that the pools of CUDA graphs hold beyond their passes' own values: .33 to .54 GiB on an
H100, with models of 14 to 160 million weights."""


@dataclass(frozen=True)
class Pass:
    """The bytes of a pass of the model besides weights: a line in the number of items."""

    fixed: int
    item: int

    def of(self, num_items: int) -> int:
        """Return the bytes of a pass of so many items."""
        return self.fixed + num_items * self.item


@dataclass(frozen=True)
class Plan:
    """The forecast of a live run.

    Attributes:
        weights: Bytes of weights, by shapes.
        items: Bytes of the items on the device.
        backward: A step's pass; a fused step is in it, gradients of a plain one are not.
        forward: A pass that observes.
        settings: The run's, complete.
        num_train: n.
        warm_up: Seconds of the first step and draw beyond the later ones: libraries and compilers.
        step: Seconds of a step.
        record: Seconds that a draw takes beyond its step.
        replays: Whether passes are replayed as CUDA graphs, each in memory of its own.
    """

    weights: WeightBytes
    items: int
    backward: Pass
    forward: Pass
    settings: Settings
    num_train: int
    warm_up: float
    step: float
    record: float
    replays: bool = False

    @property
    def peak(self) -> int:
        """Return the most bytes on the device at a time, besides the caller's own model."""
        w, s = self.weights, self.settings
        passing = self.backward.of(self.pass_size)
        observing = self.forward.of(self.chunk_size)
        if s.memory == "plain":
            gradient = w.step // 3
            # One backward pass frees activations as it makes gradients, further ones add to what
            # is there; and the gradient before is held until the next has come.
            one = self.pass_size == self.batch_size
            passing = gradient + (max(passing, gradient) if one else passing + gradient)
            observing += gradient
        most = max(passing, observing, w.step)
        if self.replays:
            most = passing + observing + w.step + _GRAPHS_RESERVE
        return w.weights + w.center + w.state + self.items + most

    @property
    def seconds(self) -> float:
        """Return the seconds of sampling all chains, one after another."""
        s = self.settings
        assert None not in (s.chains, s.draws, s.burn_in, s.thin)
        steps = (s.burn_in or 0) + ((s.draws or 0) - 1) * (s.thin or 0)
        chain = steps * self.step + (s.draws or 0) * self.record
        return self.warm_up + (s.chains or 0) * chain

    @property
    def batch_size(self) -> int:
        """Return the items of a step."""
        s = self.settings
        return self.num_train if s.gradient == "full" else s.batch_size or self.num_train

    @property
    def pass_size(self) -> int:
        """Return the items of a backward pass."""
        return min(self.settings.pass_size or self.num_train, self.batch_size)

    @property
    def chunk_size(self) -> int:
        """Return the items of a forward pass that observes."""
        return min(self.settings.chunk_size or self.num_train, self.num_train)

    def in_words(self) -> list[str]:
        """Return the forecast as lines of text."""
        w = self.weights
        parts = {
            "weights": w.weights,
            "w*": w.center,
            "sampler": w.state,
            f"step ({self.settings.memory})": w.step,
            f"backward pass of {self.pass_size} items": self.backward.of(self.pass_size),
            f"forward pass of {self.chunk_size} items": self.forward.of(self.chunk_size),
        }
        listing = ", ".join(f"{name} {as_bytes(size)}" for name, size in parts.items() if size)
        return [
            f"memory of the device at its peak: {as_bytes(self.peak)} ({listing})",
            f"sampling: {self.seconds:,.0f} s, at {self.step:.3g} s a step and {self.record:.3g} s "
            f"a draw, after {self.warm_up:.1f} s of warm-up",
        ]


def plan(problem: Problem, settings: Settings | None = None) -> Plan:
    """Return the forecast of what `bif.attribute` of a live module would take.

    Args:
        problem: What is to be attributed.
        settings: Settings with `oracle="live"`; what is open is chosen as by `bif.calibrate`.

    Raises:
        ValueError: Another oracle; a model that does not fit on the device.
    """
    chosen = calibrate(problem, settings or Settings(oracle="live")).settings
    refuse_unfit(problem, chosen)
    return forecast_live(make_engine(problem, chosen))


def weight_bytes(problem: Problem, settings: Settings) -> WeightBytes:
    """Return the bytes of weights by shapes alone; nothing is evaluated.

    Args:
        problem: What is to be attributed.
        settings: Settings of a live module; `movable`, `memory` and `sampler` matter.

    Raises:
        ValueError: Another oracle.
    """
    if settings.oracle != "live":
        raise ValueError(
            f"only live modules are planned, got oracle={settings.oracle!r}: set oracle='live'. "
            "Of stacked chains chunk_size bounds the memory."
        )
    held = problem.parameters()
    moves = {name: held[name] for name in moving(problem, settings.movable)}
    lean, plain = settings.memory == "lean", settings.memory == "plain"
    wide = {
        name: leaf.numel() * (4 if leaf.dtype in NARROW else leaf.element_size())
        for name, leaf in held.items()
    }
    stored = {
        name: 2 * leaf.numel() if lean and leaf.dim() >= 2 else wide[name]
        for name, leaf in moves.items()
    }
    still = sum(
        leaf.numel() * leaf.element_size() if lean else wide[name]
        for name, leaf in held.items()
        if name not in moves
    )
    here = run_device(problem, settings) == problem.device
    copied = {
        name: size
        for name, size in stored.items()
        if plain or not here or size != moves[name].numel() * moves[name].element_size()
    }
    step = 3 * sum(stored.values())
    if not plain:
        step = max(_step_bytes(leaf, settings) for leaf in moves.values())
    return WeightBytes(
        weights=sum(stored.values()) + still,
        center=sum(copied.values()),
        state=settings.traits.state_leaves * sum(wide[name] for name in moves),
        step=step,
    )


def uniform_weight_bytes(num_weights: int, settings: Settings) -> WeightBytes:
    """Return the bytes of a float32 model by its size, with all weights in matrices that move.

    The caller's model counts as w* where it may serve as it.

    Args:
        num_weights: Weights of the model.
        settings: Of which `memory` and `sampler` matter.
    """
    stored = (2 if settings.memory == "lean" else 4) * num_weights
    return WeightBytes(
        weights=stored,
        center=stored,
        state=settings.traits.state_leaves * 4 * num_weights,
        step=3 * stored if settings.memory == "plain" else 0,  # that of some rows
    )


def _step_bytes(leaf: Tensor, settings: Settings) -> int:
    """Return the bytes that a fused step holds while it moves rows of a leaf `[*shape]`."""
    row = max(1, prod(leaf.shape[1:]))
    rows = min(leaf.numel(), row * max(1, ROWS_OF // row))
    return int(_ROWS_HELD[settings.memory] * max(4, leaf.element_size()) * rows)


def refuse_unfit(problem: Problem, settings: Settings) -> None:
    """Raise where the weights alone exceed the device, before anything is copied to it.

    Raises:
        ValueError: They do, with the bytes.
    """
    device = run_device(problem, settings)
    if settings.oracle != "live" or device.type != "cuda":
        return
    needed, free = weight_bytes(problem, settings), free_bytes(device)
    if needed.total > settings.shards * free:
        leaner = {"plain": "memory='fused'", "fused": "memory='lean'", "lean": "a larger device"}
        among = ""
        if settings.shards > 1:
            leaner["plain"], among = "more shards", f" and as much on each of {settings.shards}"
        raise ValueError(
            f"the run needs {as_bytes(needed.total)} for weights ({as_bytes(needed.weights)}), w* "
            f"({as_bytes(needed.center)}) and steps before the first item, and {as_bytes(free)} "
            f"are free on {device}{among}: use {leaner[settings.memory]}, or move fewer parameters."
        )


def refuse_overflow(found: Plan, engine: Engine) -> None:
    """Raise where the peak exceeds what is free on the device beside what is there already.

    Raises:
        ValueError: It does, with the bytes.
    """
    if engine.device.type != "cuda":
        return
    w = found.weights
    there = w.weights + w.center + found.items
    free = free_bytes(engine.device)
    if found.peak - there > free:
        raise ValueError(
            f"the run needs {as_bytes(found.peak - there)} besides what is on {engine.device}, "
            f"where {as_bytes(free)} are free. {found.in_words()[0]}. Lower chunk_size (and "
            "batch_size or micro_batch), have the model recompute its activations, or use another "
            "memory."
        )


def forecast_live(engine: Engine) -> Plan:
    """Measure passes of a few items, and a few steps and draws from w*.

    Args:
        engine: Engine of a live module; its next start is at w* as ever.
    """
    problem, s, oracle = engine.problem, engine.settings, engine.oracle
    weights = weight_bytes(problem, s)
    assert isinstance(oracle, LiveOracle)
    groups = [*engine.observer.scored_items, *engine.observer.query_items]
    engine.start(0, 1)
    a_step = problem.num_train if s.gradient == "full" else s.batch_size or problem.num_train
    a_pass = min(a_step, s.pass_size or a_step)
    backward = _line(a_pass, problem, lambda count: _backward(engine, oracle, count))
    forward = _line(s.chunk_size, problem, lambda count: _forward(engine, oracle, count))
    return Plan(
        weights,
        sum(_bytes_of(items) for items in groups),
        backward,
        forward,
        s,
        problem.num_train,
        *_pace(engine),
        replays=oracle.replays and engine.device.type == "cuda",
    )


def _backward(engine: Engine, oracle: LiveOracle, count: int) -> None:
    """Run a step's backward pass, with the room of a fused step taken and given back."""

    def take(name: str, gradient: Tensor) -> None:
        if engine.settings.memory != "plain":
            room = _step_bytes(engine.posterior.center[name], engine.settings)
            torch.empty(room, dtype=torch.uint8, device=gradient.device)

    oracle.stream(engine.observer.train_items.first(count), engine.weights[:count], take)


def _forward(engine: Engine, oracle: LiveOracle, count: int) -> None:
    params = oracle.live_params()
    for function in {o.recorded for o in engine.problem.observables} | {engine.problem.loss}:
        engine.oracle.values(function, params, engine.observer.train_items.first(count))


def _line(num_items: int | None, problem: Problem, run: Callable[[int], None]) -> Pass:
    """Measure peaks of a few items and of half as many; return the line through both."""
    most = min(max(2, num_items or problem.num_train), problem.num_train, _MEASURED_ITEMS)
    with torch.compiler.set_stance("force_eager"):
        run(1)  # the first call of all allocates more
    peaks = []
    for count in (few := max(1, most // 2), most):
        # Nothing can be counted inside of what is compiled, which takes no more.
        with torch.compiler.set_stance("force_eager"), PeakBytes() as counter:
            run(count)
        peaks.append(counter.peak)
    item = max(0, peaks[1] - peaks[0]) // max(1, most - few)
    return Pass(fixed=max(0, peaks[1] - most * item), item=item)


def _bytes_of(items: Items) -> int:
    """Return the bytes of items held as tensors; a Dataset's batches come one by one."""
    if isinstance(items.data, torch.utils.data.Dataset):
        return 0
    return sum(leaf.numel() * leaf.element_size() for leaf in batch_leaves(items.data).values())


def _pace(engine: Engine) -> tuple[float, float, float]:
    """Return the seconds of warm-up, of a step and of a record."""
    steps, records = [], []
    mark = time.perf_counter()
    for position in engine.positions(0, 1, engine.start(0, 1), last_step=_TIMED_STEPS):
        wait_for(engine.device)
        steps.append(time.perf_counter() - mark)
        mark = time.perf_counter()
        engine.observed(position)
        wait_for(engine.device)
        records.append(time.perf_counter() - mark)
        mark = time.perf_counter()
    # In "plain" the gradient comes before a position, in the others after it.
    step, record = min(steps[2:]), min(records[1:])
    warm_up = max(0.0, steps[0] + steps[1] + records[0] - 2 * step - record)
    return warm_up, step, record
