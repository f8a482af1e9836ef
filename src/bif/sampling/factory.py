"""Build the objects of a run from complete settings."""

from __future__ import annotations

import torch
from torch import Tensor

from bif.problem.problem import Problem
from bif.problem.weights import widen
from bif.sampling.movable_weights import moving
from bif.sampling.oracles import LiveOracle, Oracle, SequentialOracle, StackedOracle
from bif.sampling.oracles.activation_checkpointing import keep_less_
from bif.sampling.oracles.compilation import repeated_blocks
from bif.sampling.oracles.in_metric import InMetric
from bif.sampling.posterior import LocalPosterior
from bif.sampling.samplers import SAMPLERS
from bif.sampling.settings import RunSettings, Settings
from bif.sampling.whole_model import WHOLE
from bif.types import Mass, Params, Sampler, Shards


def make_posterior(
    problem: Problem,
    settings: Settings,
    *,
    copies_center: bool = True,
    shards: Shards = WHOLE,
) -> LocalPosterior:
    """Return the posterior of complete settings, on the run's device.

    Where memory is short, or no copy is wanted, w* is the problem's own model if that is on the
    device.

    Raises:
        ValueError: A shard without any weight that moves.
    """
    assert settings.nbeta is not None and settings.gamma is not None
    center = moving_center(problem, settings, shards=shards)
    found = moving(problem, settings.movable)
    return LocalPosterior(
        center,
        settings.nbeta,
        settings.gamma,
        {n: shards.local(m) if isinstance(m := found[n], Tensor) else m for n in center},
        settings.weight_decay,
        decay_origin=_decay_origin(problem, center),
        copies_center=copies_center and settings.memory == "plain",
        total=shards.total,
    )


def _decay_origin(problem: Problem, center: Params) -> Params | None:
    """Return the coordinates of the weights 0, `w* - M^(1/2) w*`; None without a metric."""
    scale = problem.metric_scale(center)
    return scale and {name: leaf - leaf / scale[name] for name, leaf in center.items()}


def moving_center(problem: Problem, settings: Settings, *, shards: Shards = WHOLE) -> Params:
    """Return w* of the weights that move, leaves `[*shape]` as the run stores them.

    Args:
        problem: Whose model.
        settings: Of which `movable`, `memory` and `device` matter.
        shards: This one's rows are returned, of leaves of which it has any.

    Raises:
        ValueError: A shard has none.
    """
    device, parameters = run_device(problem, settings), problem.parameters()
    names = moving(problem, settings.movable)
    local = {name: _rows_that_move(parameters[name], names[name], shards) for name in names}
    found = {n: _stored(leaf, settings).to(device) for n, leaf in local.items() if leaf.numel()}
    if not all(shards.gather(bool(found))):
        raise ValueError(
            f"movable={settings.movable} leaves a shard without any weight that moves, for leaves "
            f"are split by rows: use fewer shards than {shards.count}, or move more."
        )
    return found


def _rows_that_move(leaf: Tensor, mask: bool | Tensor, shards: Shards) -> Tensor:
    """Return this shard's rows of a leaf; none where no weight of them moves."""
    rows = shards.local(leaf)
    still = isinstance(mask, Tensor) and not shards.local(mask).any()
    return rows[:0] if still else rows


def _stored(leaf: Tensor, settings: Settings) -> Tensor:
    """Return a weight as the run stores it."""
    # Vectors are few, and norms' scales near 1 have the coarsest rounding of all.
    narrow = settings.memory == "lean" and leaf.dim() >= 2 and leaf.is_floating_point()
    return leaf.to(torch.bfloat16) if narrow else widen(leaf)


def make_oracle(
    problem: Problem, settings: Settings, names: list[str], *, shards: Shards = WHOLE
) -> Oracle:
    """Return the oracle of complete settings, on the run's device."""
    oracle = _make_oracle(problem, settings, names, shards)
    if problem.metric is None:
        return oracle
    center = {n: leaf.to(run_device(problem, settings)) for n, leaf in problem.center().items()}
    scale = problem.metric_scale({name: center[name] for name in names})
    return InMetric(oracle, center, scale or {})


def _make_oracle(problem: Problem, settings: Settings, names: list[str], shards: Shards) -> Oracle:
    device = run_device(problem, settings)
    gradient, value = settings.precisions
    if settings.oracle == "live":
        if problem.metric is not None:
            raise ValueError(
                "oracle='live' moves the model's own weights, whose coordinates are not those of "
                "the problem's metric: use oracle='sequential', or estimator='response'."
            )
        # Narrowed before it moves: the device never holds the wide weights.
        model = problem.evaluation_copy(problem.device, lean=settings.memory == "lean")
        moved = moving(problem, settings.movable)
        for name, parameter in model.named_parameters():
            if name in moved:
                parameter.data = _stored(parameter.data, settings)
            parameter.requires_grad_(name in moved)  # the same on all shards
        keep_less_(model)
        if settings.compiled and settings.memory != "plain" and not repeated_blocks(model):
            raise ValueError(
                f"memory={settings.memory!r} moves each leaf as soon as its gradient is there, and "
                f"a compiled {type(model).__name__}, which has no repeated blocks to compile one "
                "by one, returns all gradients at once: drop compiled, or use memory='plain'."
            )
        return LiveOracle(
            model,
            problem.loss,
            names=names,
            shards=shards,
            device=device,
            micro_batch=settings.pass_size or problem.num_train,
            gradient_precision=gradient,
            value_precision=value,
            use_compile=settings.compiled,
        )
    model = problem.evaluation_copy(device)
    copied = SequentialOracle if settings.oracle == "sequential" else StackedOracle
    return copied(
        model,
        problem.loss,
        gradient_precision=gradient,
        value_precision=value,
        use_compile=settings.compiled,
    )


def make_sampler(settings: RunSettings, mass: Mass | None = None) -> Sampler:
    """Return the sampler of complete settings."""
    return SAMPLERS[settings.sampler].from_settings(settings, mass)


def run_device(problem: Problem, settings: Settings) -> torch.device:
    """Return the device of the run.

    Raises:
        ValueError: There is no such device here.
    """
    if settings.device is None:
        return problem.device
    device = torch.device(settings.device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = torch.cuda.device_count()
        there = f"torch sees {count} CUDA device{'' if count == 1 else 's'}"
        raise ValueError(
            f"device={settings.device!r} cannot be used here: {there}. Leave device out to run "
            f"where the model is, on {str(problem.device)!r}, or name one that is there."
        ) from error
    return device


def wait_for(device: torch.device) -> None:
    """Wait until everything asked of the device is done, for times that count all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def item_weights(problem: Problem, like: Tensor) -> Tensor:
    """Return training weights rho `[N]`, on the device and in the dtype of a loss tensor."""
    if problem.train_weights is None:
        return torch.ones(problem.num_train, dtype=like.dtype, device=like.device)
    return problem.train_weights.to(like)
