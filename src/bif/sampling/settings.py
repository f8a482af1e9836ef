"""Settings of a run: frozen, serialisable, complete once resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, get_origin, get_type_hints

import torch

from bif.problem.literals import require_literal, suggests_names, unknown_names
from bif.sampling.oracles.precision import EXACTNESS, Precision
from bif.sampling.samplers import SAMPLERS, Traits, names_of
from bif.types import Target

if TYPE_CHECKING:
    SamplerName = str
else:  # a type checker reads no registry; the checks below and the command line do
    SamplerName = Literal[tuple(SAMPLERS)]
GradientMode = Literal["full", "minibatch", "control_variate"]
MassName = Literal["identity", "kronecker"]
OracleName = Literal["stacked", "sequential", "live"]
MemoryName = Literal["plain", "fused", "lean"]
EstimatorName = Literal["covariance", "response", "anchored"]
CurvatureName = Literal["gauss_newton", "hessian"]
_OF_THE_SOLVER = (
    "solver_curvature", "solver_steps", "solver_residual", "solver_items", "self_influence",
)  # fmt: skip
SHARED_BY_ESTIMATORS = (
    "retrained_from", "nbeta", "gamma", "chunk_size", "movable", "weight_decay",
    "gradient_precision", "loss_precision", "estimator", *_OF_THE_SOLVER, "device", "seed",
)  # fmt: skip
"""Settings that do not tell which estimator is meant."""
_NOT_OF_THE_SOLVER = (
    "chains", "draws", "reliability", "budget", "burn_in", "thin", "step_size", "friction", "mass",
    "gradient", "batch_size", "oracle", "block_size", "micro_batch",
)  # fmt: skip
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
"""Seconds of the units in which a budget can be given."""


@suggests_names
@dataclass(frozen=True)
class Settings:
    """What to sample and how.  What is left out is chosen from model and data, with the reason.

    Attributes:
        sampler: The SG-MCMC rule.
        retrained_from: What the scores are to predict: networks retrained on other data from
            "scratch", or from the "checkpoint" w*.  The default of nbeta follows.
        nbeta: Inverse temperature times the number of items.  By default 10 n where training went
            to a minimum, 40 n for networks retrained from the checkpoint; n or, retrained from
            scratch, n/4 where it stopped short of one.  n is the number of items, or of their
            tokens where a loss is the mean over an item's (`bif.losses.averages`).
        gamma: Precision of the Gaussian around w*; by default nbeta times a damping between
            (largest curvature at w*) / 50 and the curvature along the gradient that training left
            there, up to 100 times that where gradients of items are nearly orthogonal.
        chains: Independent chains, at least 2.
        draws: Recorded draws of each chain; 200 by default, or as many as `reliability` needs and
            `budget` allows.
        reliability: The agreement of two halves of the run to aim at, below 1.
        budget: Seconds of sampling to aim at, calibration included; also "90s", "10m", "1.5h".
        burn_in: Steps of each chain before its first draw.
        thin: Steps from one draw to the next.
        step_size: Step size of the sampler, in its own unit.
        friction: Friction of `baoab` (and diffusion of `sgnht`), in units of 1 / step_size.
        mass: Mass of `baoab`: the unit one, or one that makes U round, measured at the start by
            products with its Hessian; step size and friction are in its coordinates.  The posterior
            is the same.  By default "kronecker" for stacked chains with full gradients, where step
            size and friction are open too.
        gradient: All items a step, mini-batches of each chain's own, or these with a control
            variate at w*.  All items by default, whose losses come along; a control variate where
            `budget` is too small for that.
        batch_size: Items of a mini-batch.
        oracle: Chains stacked by vmap, one after another, or the live module.
        block_size: Chains that step as one stacked operation.
        chunk_size: Items of a forward (and backward) pass.
        micro_batch: Items of a backward pass of the live module, whose gradients add up over the
            mini-batch; `chunk_size` by default, and the whole mini-batch where steps are fused.
        memory: Memory of the live module: "plain" holds weights, w* and the gradient; "fused" steps
            within the backward pass and never holds the gradient; "lean" does so with the matrices
            and w* in bfloat16, rounded stochastically.
        movable: Globs of the parameters that move, with slices for a part: `*.weight[0:64]`; by
            default those that the model does not freeze (`requires_grad`), padding rows left out.
        weight_decay: Coefficient of |w|²/2 in the training objective that enters U.
        gradient_precision: Compute precision of gradients; the weights stay as they are.  By
            default TF32 on a GPU, bfloat16 with memory="lean", and float32 elsewhere.
        loss_precision: Compute precision of recorded losses; the same default.  Where it is more
            exact than the gradient's, losses get a forward pass of their own.
        compiled: Compile the functions of the oracle with `torch.compile` (worth it on a GPU); of a
            live module its repeated blocks, and passes are replayed as CUDA graphs if it is small.
        controls: Score also by a Gaussian ball (nbeta = 0), by the gradient product, and with
            chains shuffled, for comparison.
        estimator: "covariance" samples; "response" solves the linear system that the covariance
            tends to at low temperature, without noise and with what training takes of memory;
            "anchored" does both, and samples only what the system leaves of the covariance.  By
            default the response where a setting of the solver is given, the covariance where one
            for chains is, such as `draws` or `budget`, or the model cannot be solved for; else by a
            forecast of what each would cost and miss, which the run's choices explain.
        solver_curvature: Of the system: the Gauss-Newton matrix, by default, or the Hessian.
        solver_steps: Exactly so many products with the curvature for each query; stopping early
            damps, too, so this is a setting to tune.
        solver_residual: Residual of a system, relative to the query's gradient, at which it counts
            as solved; .05 by default.
        solver_items: Train items, drawn at random, whose curvature is taken; all by default.  The
            errors hold what the others might have changed.
        self_influence: Solve for the influence of each train item on its own loss too, a system an
            item; sampled runs have it without.
        device: Device of the run; the model's by default.
        shards: Ranks that hold one copy of the live module between them, by rows of its weights,
            for a model that one device does not hold; `chunk_size` and `micro_batch` count the
            items of all of them.  What needs a whole model is refused, calibration too.
        seed: Seed of all random numbers.
    """

    sampler: SamplerName = "baoab"
    retrained_from: Target | None = None
    nbeta: float | None = None
    gamma: float | None = None
    chains: int | None = None
    draws: int | None = None
    reliability: float | None = None
    budget: float | str | None = None
    burn_in: int | None = None
    thin: int | None = None
    step_size: float | None = None
    friction: float | None = None
    mass: MassName | None = None
    gradient: GradientMode | None = None
    batch_size: int | None = None
    oracle: OracleName | None = None
    block_size: int | None = None
    chunk_size: int | None = None
    micro_batch: int | None = None
    memory: MemoryName = "plain"
    movable: tuple[str, ...] | None = None
    weight_decay: float = 0.0
    gradient_precision: Precision | None = None
    loss_precision: Precision | None = None
    compiled: bool = False
    controls: bool = False
    estimator: EstimatorName | None = None
    solver_curvature: CurvatureName | None = None
    solver_steps: int | None = None
    solver_residual: float | None = None
    solver_items: int | None = None
    self_influence: bool = False
    device: str | None = None
    shards: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, literal in _literals().items():
            if (value := getattr(self, name)) is not None or name in ("sampler", "memory"):
                require_literal(name, value, literal)
        at_least = {"chains": 2, "draws": 2, "burn_in": 0, "thin": 1, "batch_size": 1,
                    "block_size": 1, "chunk_size": 1, "micro_batch": 1, "shards": 1,
                    "solver_steps": 1, "solver_items": 8}  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not hasattr(value, "__index__") or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number ≥ {least}, got {value!r}.")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if self.retrained_from is not None and self.nbeta is not None:
            raise ValueError(
                f"retrained_from={self.retrained_from!r} chooses nbeta, and nbeta={self.nbeta:g} "
                "is given: give one or the other."
            )
        for name in ("step_size", "friction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a finite number > 0, got {value}.")
        for name in ("nbeta", "gamma", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value}.")
        object.__setattr__(self, "budget", _seconds(self.budget))
        if self.device is not None:
            _require_device_name(self.device)
        if self.reliability is not None and not 0 < self.reliability < 1:
            raise ValueError(
                f"reliability is {self.reliability}: expected a number between 0 and 1, such as .9."
            )
        if self.draws is not None and (self.budget, self.reliability) != (None, None):
            raise ValueError(
                f"draws={self.draws} leaves nothing to choose by budget or reliability: give one "
                "or the other."
            )
        if self.gradient in (None, "full") and self.batch_size is not None:
            raise ValueError(
                f"batch_size={self.batch_size} has no use with gradient='full': drop it, or set "
                "gradient='minibatch' or 'control_variate'."
            )
        if self.mass == "kronecker" and (not self.traits.takes_mass or self.oracle == "live"):
            able = names_of(lambda traits: traits.takes_mass)
            raise ValueError(
                f"mass='kronecker' needs a sampler that takes a mass ({able}) and an oracle that "
                f"copies the weights, got {self.sampler!r} and {self.oracle!r}: leave mass open, "
                "or change these."
            )
        self._refuse_memory()
        self._refuse_shards()
        self._refuse_other_estimators()

    @property
    def traits(self) -> Traits:
        """Return the traits that the sampler declares."""
        return SAMPLERS[self.sampler].traits

    @property
    def pass_size(self) -> int | None:
        """Return the items of a backward pass of the live module; None for all train items."""
        if self.micro_batch is not None or self.memory == "plain":
            return self.micro_batch or self.chunk_size
        return self.batch_size

    @property
    def precisions(self) -> tuple[Precision, Precision]:
        """Return those of gradients and of recorded losses; exact where none was chosen."""
        return self.gradient_precision or "float32", self.loss_precision or "float32"

    @property
    def gradient_brings_losses(self) -> bool:
        """Return whether a gradient brings losses as exact as asked for."""
        gradient, loss = (EXACTNESS.index(precision) for precision in self.precisions)
        return gradient >= loss

    def plain(self) -> Self:
        """Return settings for the posterior itself: not compiled, weights exactly the model's."""
        if self.memory == "lean":
            exact: dict[str, Any] = {"gradient_precision": "float32", "loss_precision": "float32"}
            return replace(self, compiled=False, memory="plain", **exact)
        return replace(self, compiled=False)

    def reopened(self, **changes: Any) -> Settings:
        """Return settings with changes, of which those that are None are chosen anew."""
        return Settings(**{**self.as_dict(), **changes})

    def require_chains(self, what: str) -> None:
        """Raise where these settings solve and chains are needed.

        Raises:
            ValueError: They do; names what needs chains.
        """
        if self.estimator == "response":
            raise ValueError(
                f"{what} is for chains, and estimator='response' solves without any: leave "
                "estimator out, or pass these settings to bif.attribute, which chooses the rest."
            )

    def with_draws(self, draws: int | None) -> Settings:
        """Return settings of so many draws, without `reliability` and `budget`."""
        return self.reopened(draws=draws, reliability=None, budget=None)

    def _refuse_other_estimators(self) -> None:
        """Raise where a setting is of another estimator."""
        if self.estimator is None and any(self._given(_OF_THE_SOLVER)):
            if not any(self._given(_NOT_OF_THE_SOLVER)):
                object.__setattr__(self, "estimator", "response")
        solves = self.estimator == "response"
        if self.estimator == "anchored":
            self._refuse_unanchored()
        others = _NOT_OF_THE_SOLVER if solves else _OF_THE_SOLVER
        given = [] if self.estimator == "anchored" else self._given(others)
        if solves:
            given += [name for name in ("compiled", "controls") if getattr(self, name)]
            given += ["memory"] if self.memory != "plain" else []
        if given:
            raise ValueError(
                f"{', '.join(given)} has no use with estimator={self.estimator!r}: drop it, or use "
                f"estimator={'covariance' if solves else 'response'!r}."
            )
        if self.solver_steps is not None and self.solver_residual is not None:
            raise ValueError(
                f"solver_steps={self.solver_steps} and solver_residual={self.solver_residual}: a "
                "solve ends by one or the other, so give one of them."
            )
        if self.estimator in ("response", "anchored") and self.nbeta == 0:
            raise ValueError("nbeta is 0: a response needs the loss, so give nbeta > 0 or none.")
        if self.solver_residual is not None and not 0 < self.solver_residual < 1:
            raise ValueError(
                f"solver_residual is {self.solver_residual}: expected a number between 0 and 1."
            )

    def _refuse_unanchored(self) -> None:
        """Raise where chains cannot have anchors."""
        if self.self_influence:
            raise ValueError(
                "self_influence solves for each train item, and estimator='anchored' samples it: "
                "leave self_influence out and ask items as queries, whose anchors are then solved "
                "for, or use estimator='response'."
            )

    def _given(self, names: Sequence[str]) -> list[str]:
        """Return which of these settings were given."""
        return [name for name in names if getattr(self, name) not in (None, False)]

    def _refuse_memory(self) -> None:
        """Raise where the live module's settings contradict others."""
        if self.micro_batch is not None and self.oracle != "live":
            raise ValueError(
                f"micro_batch={self.micro_batch} is for oracle='live', got oracle={self.oracle!r}: "
                "drop it; chunk_size bounds the items of a pass."
            )
        if self.memory == "plain":
            return
        asked = f"memory={self.memory!r}"
        if self.oracle != "live":
            raise ValueError(
                f"{asked} moves a live module, one leaf after another: set oracle='live', got "
                f"{self.oracle!r}."
            )
        if not self._has_room(self.traits):
            raise ValueError(
                f"{asked} has no room for the state of sampler={self.sampler!r}, or it needs all "
                f"leaves at once: expected one of {names_of(self._has_room)}."
            )
        if self.gradient == "control_variate":
            raise ValueError(
                f"{asked} never holds a gradient, and gradient='control_variate' holds the one at "
                "w*: use gradient='minibatch'."
            )
        gradient = self.gradient or "full"
        whole = self.batch_size if gradient == "minibatch" else None
        if self.micro_batch is not None and (whole is None or self.micro_batch < whole):
            raise ValueError(
                f"{asked} steps within one backward pass, so that pass must hold the whole "
                f"mini-batch: micro_batch={self.micro_batch} with gradient={gradient!r} and "
                f"batch_size={whole}. Leave micro_batch out, lower batch_size, or use "
                "memory='plain', which adds gradients up."
            )
        precisions = (self.gradient_precision, self.loss_precision)
        if self.memory == "lean" and not {*precisions} <= {None, "bfloat16"}:
            raise ValueError(
                "memory='lean' keeps weights in bfloat16, so nothing is computed more exactly: set "
                "gradient_precision='bfloat16' and loss_precision='bfloat16', or leave them out, "
                f"got {precisions[0]!r} and {precisions[1]!r}. Losses are float32 all the same."
            )

    def _refuse_shards(self) -> None:
        """Raise where a setting is for a model that one device holds."""
        if self.shards == 1:
            return
        if self.oracle is None:
            object.__setattr__(self, "oracle", "live")
        whole = {
            "oracle": self.oracle != "live",
            "memory": self.memory != "plain",
            "compiled": self.compiled,
            "mass": self.mass == "kronecker",
            "controls": self.controls,
            "reliability": self.reliability is not None,
            "budget": self.budget is not None,
            "estimator": self.estimator not in (None, "covariance"),
            **{name: bool(self._given([name])) for name in _OF_THE_SOLVER},
        }
        given = [f"{name}={getattr(self, name)!r}" for name, is_given in whole.items() if is_given]
        if given:
            raise ValueError(
                f"shards={self.shards} split the weights of a live module, and {', '.join(given)} "
                "is for models that one device holds: leave it out, or shards."
            )
        if not self.traits.leafwise:
            able = names_of(lambda traits: traits.leafwise)
            raise ValueError(
                f"sampler={self.sampler!r} has a number that all weights share, and shards="
                f"{self.shards} split these: expected one of {able}."
            )

    def require_steps(self) -> None:
        """Raise where shards leave open what is measured by chains of a whole model.

        Raises:
            ValueError: They do, with the names.
        """
        if self.shards == 1:
            return
        names = ["nbeta", "gamma", "step_size", "burn_in", "thin", "chunk_size"]
        names += ["friction"] if self.traits.underdamped else []
        left = [name for name in names if getattr(self, name) is None]
        if left:
            raise ValueError(
                f"shards={self.shards}, and {', '.join(left)} would be measured by chains of a "
                "whole model: set them, for instance to what bif.calibrate finds with "
                "device='cpu', or for a smaller model of the kind."
            )

    def _has_room(self, traits: Traits) -> bool:
        """Return whether leaves can move one by one, with their state where memory is lean."""
        return traits.leafwise and not (self.memory == "lean" and traits.state_leaves)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return the settings that `as_dict` returned, from JSON or not.

        Raises:
            ValueError: Unknown names, or values that are no settings.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(found) - known)
        if unknown:
            raise ValueError(
                f"unknown settings {unknown_names(unknown, known)}: of another version of bif? Use "
                "that version, or leave them out."
            )
        given: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in found.items()
        }
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"values that are no settings: {error}.") from error

    def as_dict(self) -> dict[str, object]:
        """Return all settings by name; shards and what solves where they are given."""
        names = ("estimator", *_OF_THE_SOLVER)  # settings of older runs lack them
        return {
            f.name: getattr(self, f.name) for f in fields(self)
            if (f.name not in names or getattr(self, f.name) not in (None, False))
            and (f.name, getattr(self, f.name)) != ("shards", 1)
        }  # fmt: skip


def as_settings(given: Settings | None) -> Settings:
    """Return the settings that were given, or those that leave everything open.

    Raises:
        TypeError: Something else, such as a dict.
    """
    if given is None or isinstance(given, Settings):
        return given or Settings()
    remedy = f"**{given}" if isinstance(given, Mapping) else "chains=8"
    raise TypeError(
        f"settings are a {type(given).__name__}, expected bif.Settings: write "
        f"bif.Settings({remedy})."
    )


def without_unused(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as `as_dict` returned them without what their estimator has no use for."""
    unused = (*_NOT_OF_THE_SOLVER, "sampler", "memory", "compiled", "controls")
    solves = found.get("estimator") == "response"
    return {name: value for name, value in found.items() if not (solves and name in unused)}


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Complete settings with which a run is carried out, nothing left to choose.

    Only what the sampler, the gradient or the oracle has no use for may be None: `friction`,
    `batch_size`, `micro_batch`; and what has been followed: `retrained_from`, `reliability`,
    `budget`.

    Raises:
        ValueError: Something else is None.
    """

    nbeta: float = field()
    gamma: float = field()
    chains: int = field()
    draws: int = field()
    burn_in: int = field()
    thin: int = field()
    step_size: float = field()
    mass: MassName = "identity"
    gradient: GradientMode = field()
    oracle: OracleName = field()
    block_size: int = field()
    chunk_size: int = field()
    movable: tuple[str, ...] = field()
    gradient_precision: Precision = field()
    loss_precision: Precision = field()

    def __post_init__(self) -> None:
        names = [name for name in _of_every_run() if getattr(self, name) is None]
        if names:
            raise ValueError(
                f"settings of a run leave nothing open, got None for {names}: use "
                f"settings.reopened({names[0]}=None), which calibration completes anew."
            )
        super().__post_init__()

    @classmethod
    def completing(cls, settings: Settings, **chosen: Any) -> RunSettings:
        """Return settings completed by what has been chosen; wishes are taken as followed.

        Raises:
            ValueError: Something is left open.
        """
        followed = {"retrained_from": None, "reliability": None, "budget": None}
        return cls(**{**settings.as_dict(), **followed, **chosen})

    @property
    def mini_batch(self) -> int:
        """Return the items of a mini-batch.

        Raises:
            ValueError: Gradients are of all items.
        """
        if self.batch_size is None:
            raise ValueError(
                f"gradient={self.gradient!r} has no mini-batches: set gradient='minibatch' or "
                "'control_variate'."
            )
        return self.batch_size


@cache
def _of_every_run() -> tuple[str, ...]:
    """Return the names of the settings that no run leaves open."""
    return tuple(name for name in RunSettings.__annotations__)


@cache
def _literals() -> dict[str, Any]:
    """Return the settings that are names, each with its Literal."""
    found = {}
    for name, hint in get_type_hints(Settings).items():
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal:
                found[name] = part
    return found


def _require_device_name(device: str) -> None:
    """Raise unless torch knows the name; whether there is such a device shows when it is used.

    Raises:
        ValueError: It does not.
    """
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device is {device!r}, which torch does not know: expected a name like 'cpu', 'cuda' "
            "or 'cuda:1', or None for the model's."
        ) from error


def _seconds(budget: float | str | None) -> float | None:
    """Return a budget in seconds.

    Raises:
        ValueError: No number > 0 with one of the units.
    """
    if budget is None:
        return None
    text = str(budget).strip()
    unit = text[-1:].lower()
    number = text[:-1] if unit in _UNITS else text
    try:
        seconds = float(number) * _UNITS.get(unit, 1.0)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise ValueError(
            f"budget is {budget!r}: expected seconds > 0, as a number or like '90s', '10m', '1.5h'."
        )
    return seconds
