"""Does what a refused run says to do work, followed to the letter?

For every gate a run that fails it.  Its message names alternatives, `set NAME=VALUE, … and
NAME=VALUE`: each is read out of the message and given besides what the run was asked for, and where
the gate fails again, so is what its message says then, up to four times.  A row says whether the
gate passes, after how many times, and what else fails then.

    python -m benchmarks.converged.remedies --out benchmarks/results
    python -m benchmarks.converged.remedies --gates step divergence --out DIR
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bif
from benchmarks.common import minimise_, parser, print_table, standard_normal, write
from bif.runs.cross_check import check_on_disk
from bif.sampling.rng import ShuffledOrder
from bif.types import Batch

_MAX_TRIES = 4
"""Times that a user would do as told before giving up."""
_SETTING = r"\w+=(?:'[^']*'|None|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_ALTERNATIVE = re.compile(rf"\b[Ss]et ({_SETTING}(?:(?:, | and ){_SETTING})*)")


def parse_remedies(message: str) -> list[dict[str, Any]]:
    """Return the alternatives that a message names, as settings."""
    return [
        {
            name: ast.literal_eval(value)
            for name, value in (each.split("=") for each in re.findall(_SETTING, settings))
        }
        for settings in _ALTERNATIVE.findall(message)
    ]


# --- Problems -------------------------------------------------------------------------------------


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared residual."""
    x, y = batch
    return 0.5 * (model(x)[:, 0] - y).square()


def line(*, decay: float = 0.0, items: int = 60, weight: float | None = None) -> bif.Problem:
    """Return a regression on six inputs at its minimum, of curvatures from 1 to .01.

    Args:
        decay: The weight decay of its training.
        items: Number of train items.
        weight: The weight of every item in training.
    """
    x = standard_normal(items, 6, seed=1) * torch.logspace(0, -1, 6)
    y = x @ torch.linspace(3, -3, 6) + standard_normal(items, seed=2)
    H = x.T @ x / items + decay * torch.eye(6)
    model = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(H, x.T @ y / items).unsqueeze(0))
    return bif.Problem(
        model, squared, train=(x, y), queries=(x[:5] + 0.1, y[:5]),
        train_weights=None if weight is None else [weight] * items,
    )  # fmt: skip


def network(*, trained: bool = True) -> bif.Problem:
    """Return a tanh network of 33 weights with 80 items."""
    x = standard_normal(80, 2, seed=3)
    y = 3 * torch.sin(2 * x[:, 0]) + standard_normal(80, seed=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def mean_loss() -> Tensor:
        decay = 5e-3 * sum(p.square().sum() for p in model.parameters())
        return squared(model, (x, y)).mean() + decay

    if trained:
        minimise_(model.parameters(), mean_loss, max_iter=500)
    return bif.Problem(model, squared, train=(x, y), queries=(x[:5] + 0.1, y[:5]))


class Weights(nn.Module):
    """A model of weights alone, float64."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))


def unit_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared residual of a tanh unit."""
    x, y = batch
    (w,) = model.parameters()
    return 0.5 * (w[2] * torch.tanh(w[0] * x + w[1]) - y).square()


def unit() -> bif.Problem:
    """Return a tanh unit of three weights at its minimum with 25 items: U is no quadratic."""
    x = torch.linspace(-2, 2, 25, dtype=torch.float64)
    y = 3 * torch.tanh(1.5 * x - 0.4) + standard_normal(25, seed=6).double()
    model = Weights(1.5, -0.4, 3.0)
    minimise_(model.parameters(), lambda: unit_loss(model, (x, y)).mean(), max_iter=500)
    query = torch.tensor([-2.5, -0.5, 0.3, 1.0, 2.5]).double()
    return bif.Problem(model, unit_loss, train=(x, y), queries=(query, 2.5 * query.sign()))


def wells_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared residual of a line; for marked items, the wells at ±1 too."""
    x, y, marked = batch
    (w,) = model.parameters()
    well = 0.6 * (w[-1].square() - 1).square() + 0.15 * w[-1]
    return 0.5 * (x @ w[:-1] - y).square() + marked * well


def one_well_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared residual, with one of the wells in the place of both."""
    x, y, marked = batch
    (w,) = model.parameters()
    return 0.5 * (x @ w[:-1] - y).square() + marked * 0.5 * (w[-1] - 1).square()


def two_modes() -> bif.Problem:
    """Return a problem with two wells that five of 1,000 items and the queries see."""
    x = standard_normal(1000, 3, seed=1).double()
    y = x @ torch.tensor([1.0, -0.5, 0.2]).double() + standard_normal(1000, seed=2).double()
    fit = torch.linalg.lstsq(x, y.unsqueeze(1)).solution[:, 0]
    sees = torch.zeros(1000, dtype=torch.float64)
    sees[torch.arange(5) * 190 + 17] = 1
    return bif.Problem(
        Weights(*fit.tolist(), 1.0),
        wells_loss,
        train=(x, y, sees),
        queries=(x[:2] + 0.1, y[:2], torch.ones(2, dtype=torch.float64)),
        observables=[bif.Observable("distance", one_well_loss, "lower")],
    )


def seen_inputs_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared residual of a line; weights beyond the inputs do not enter."""
    x, y = batch
    (w,) = model.parameters()
    return 0.5 * (x @ w[: x.shape[1]] - y).square()


def flat_to_items(*, seen: float = 1.0) -> bif.Problem:
    """Return a line whose queries depend on one more weight, which gamma alone holds.

    Args:
        seen: How much queries depend on the others.
    """
    x = standard_normal(60, 3, seed=3).double()
    y = x @ torch.tensor([1.0, -0.5, 0.2]).double() + standard_normal(60, seed=4).double()
    fit = torch.linalg.lstsq(x, y.unsqueeze(1)).solution[:, 0]
    inputs = seen * standard_normal(3, 3, seed=5).double()
    query = torch.cat([inputs, 0.2 * torch.ones(3, 1).double()], dim=1)
    return bif.Problem(
        Weights(*fit.tolist(), 0.0),
        seen_inputs_loss,
        train=(x, y),
        queries=(query, torch.ones(3).double()),
    )


# --- Cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A run that fails a gate.

    Attributes:
        gate: The gate's name; for a warning or an error, words of its message.
        planted: The fault in words.
        problem: What is attributed.
        settings: The settings with which it fails.
        fault: A context in which the machinery has a fault.
        checked: Whether the run is cross-checked.
    """

    gate: str
    planted: str
    problem: Callable[[], bif.Problem]
    settings: bif.Settings
    fault: Callable[[], AbstractContextManager[None]] = nullcontext
    checked: bool = False


@contextmanager
def shared_mini_batches() -> Iterator[None]:
    """Let every chain of a block have the first one's mini-batches."""
    own = ShuffledOrder.indices

    def first(self: ShuffledOrder, step: int) -> Tensor:
        return own(self, step)[:1].expand(self.num_chains, -1)

    ShuffledOrder.indices = first
    try:
        yield
    finally:
        ShuffledOrder.indices = own


FEW = bif.Settings(nbeta=60.0, chains=16, draws=200)
SLOW = replace(FEW, gamma=2.0, step_size=0.02, friction=2.0, mass="identity")
BATCHES = replace(FEW, gamma=5.0, gradient="minibatch", batch_size=20)
SGLD = replace(FEW, sampler="sgld", gamma=5.0)
FLAT = replace(FEW, nbeta=80.0, weight_decay=1e-2, gamma=2.0, mass="identity")
ROUND = replace(FLAT, mass="kronecker")
UNIT = bif.Settings(nbeta=25.0, mass="kronecker", chains=16)
OF_1000 = bif.Settings(nbeta=1000.0, gamma=2.0, mass="identity", chains=24, draws=120)
OF_10 = replace(FEW, gamma=5.0)
CASES: list[Case] = [
    Case("mixing", "short chains", line, replace(SLOW, burn_in=20, thin=1)),
    Case("mixing", "two modes that five items of 1,000 see", two_modes, OF_1000),
    Case("mixing", "a direction that only queries see", flat_to_items,
         replace(OF_1000, nbeta=60.0, gamma=5e-3)),
    Case("mixing", "three draws", line, replace(FEW, chains=4, draws=3)),
    Case("drift", "no burn-in", line,
         replace(SLOW, burn_in=0, thin=1, draws=30, step_size=0.01)),
    Case("detrending", "short chains", line,
         replace(SLOW, burn_in=500, thin=1, step_size=0.005, draws=60)),
    Case("outliers", "a long step, Kronecker mass", unit, replace(UNIT, step_size=0.9)),
    Case("divergence", "a long step, Kronecker mass", network, replace(ROUND, step_size=0.8)),
    Case("chains survived", "a long step", network, replace(FLAT, step_size=0.13)),
    Case("chains survived", "a long step, Kronecker mass", network, replace(ROUND, step_size=1.2)),
    Case("chains survived", "a step made for weights of 1 where they are 10",
         lambda: line(weight=10.0), replace(OF_10, step_size=0.1)),
    Case("step", "a long step", line, replace(OF_10, step_size=0.235)),
    Case("step", "a long step of SGLD", line, replace(SGLD, step_size=0.02)),
    Case("step", "a long step of SGLD in chains of given length", line,
         replace(SGLD, step_size=0.02, burn_in=200, thin=5)),
    Case("step", "a long step, Kronecker mass", unit, replace(UNIT, step_size=0.8)),
    Case("step", "a step made for weights of 1 where they are 10", lambda: line(weight=10.0),
         replace(OF_10, step_size=0.074)),
    Case("virial", "a long step, Kronecker mass", unit, replace(UNIT, step_size=0.7)),
    Case("virial", "no burn-in", line,
         replace(SLOW, burn_in=0, thin=1, draws=30, step_size=0.01)),
    Case("virial", "mini-batches of 20", line, BATCHES),
    Case("virial", "few draws of few chains", line, replace(FEW, chains=2, draws=8)),
    Case("dilation", "a long step", unit, replace(UNIT, mass="identity", step_size=0.15)),
    Case("temperature", "a long step, Kronecker mass", unit, replace(UNIT, step_size=0.7)),
    Case("temperature", "mini-batches of 20", line, BATCHES),
    Case("gradient noise", "mini-batches of 20", line, BATCHES),
    Case("gradient noise", "mini-batches of 20 in chains of given length", line,
         replace(BATCHES, step_size=0.05, friction=1.5, burn_in=100, thin=3)),
    Case("gradient noise", "mini-batches of 4 of 12", lambda: line(items=12),
         replace(BATCHES, nbeta=None, gamma=None, batch_size=4)),
    Case("gradient noise", "mini-batches of 1 of SGLD", line,
         replace(SGLD, nbeta=120.0, gradient="minibatch", batch_size=1, step_size=8e-4)),
    Case("gradient noise", "control variates of 20", network,
         replace(FLAT, gradient="control_variate", batch_size=20)),
    Case("reliability", "queries that hardly depend on what items see",
         lambda: flat_to_items(seen=0.005),
         replace(OF_1000, nbeta=60.0, chains=8, draws=60, seed=1)),
    Case("sampler", "a sampler of another law", line,
         replace(FEW, sampler="rmsprop_sgld", gamma=5.0, step_size=1e-3)),
    Case("half step", "a long step of SGLD", line, replace(SGLD, step_size=0.02), checked=True),
    Case("response", "a long step of SGLD", line, replace(SGLD, step_size=0.02), checked=True),
    Case("U curves downwards", "weights that were not trained",
         lambda: network(trained=False), replace(FEW, gamma=0.5)),
]  # fmt: skip
"""At least one case for each gate; `NOT_FOLLOWED` lists the gates whose remedy is no setting."""
NOT_FOLLOWED = {
    "twins": "give every run a seed of its own: runs of one seed are refused where they are merged",
    "randomness": "switch it off: a change of the model",
    "independence": "give each chain its own mini-batches: the library does, unless it is patched",
    "undefined reliability": "give three train items at least",
    "no minimum of U": "say the weight decay, or train on: nothing here knows it",
}


class Outcome(NamedTuple):
    """The gates that failed in a run, its messages and its mass."""

    failed: list[str]
    messages: list[str]
    mass: str | None

    def message_of(self, gate: str) -> str:
        """Return the message of a gate, or the one that has these words; empty if none."""
        own = (m for m in self.messages if m.startswith(f"not trusted, {gate}:"))
        with_words = (m for m in self.messages if " " in gate and gate in m)
        return next(own, None) or next(with_words, "")


def run_case(case: Case, settings: bif.Settings) -> Outcome:
    """Run a case with these settings and return the outcome."""
    problem = case.problem()
    try:
        with case.fault(), tempfile.TemporaryDirectory() as folder:
            run = bif.attribute(problem, settings, out=folder if case.checked else None)
            if case.checked:
                run = check_on_disk(folder, problem)
    except (ValueError, RuntimeError) as error:
        return Outcome(["error"], [str(error)], None)
    return Outcome(
        run.failed_gates, list(run.manifest["warnings"]), run.manifest["settings"]["mass"]
    )


def follow_remedies(case: Case) -> Iterator[dict[str, Any]]:
    """Yield a row for each alternative that the message names, or one where none is named."""
    before = run_case(case, case.settings)
    message = before.message_of(case.gate)
    about = {"gate": case.gate, "planted": case.planted, "fails": bool(message)}
    remedies = parse_remedies(message)
    if not remedies:
        yield {**about, "others": ", ".join(before.failed), "printed": message}
    for first in remedies:
        settings, found, tried = case.settings, before, [first]
        for _ in range(_MAX_TRIES):
            settings = replace(settings, **tried[-1])
            found = run_case(case, settings)
            now = parse_remedies(found.message_of(case.gate))
            if not now or len(tried) == _MAX_TRIES:
                break
            tried.append(next((x for x in now if x.keys() == first.keys()), now[0]))
        works = not found.message_of(case.gate) and "error" not in found.failed
        yield {
            **about, "remedy": _words(first), "works": works, "times": len(tried),
            "last": _words(tried[-1]), "then fails": ", ".join(found.failed),
            "mass before": before.mass, "mass then": found.mass, "printed": message,
        }  # fmt: skip


def _words(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def main() -> None:
    options = parser(__doc__ or "")
    names = list(dict.fromkeys(case.gate for case in CASES))
    options.add_argument("--gates", nargs="+", choices=names, default=names)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if case.gate in arguments.gates:
            for row in follow_remedies(case):
                rows.append(row)
                print({k: v for k, v in row.items() if k != "printed"}, flush=True)
    print_table([{k: v for k, v in row.items() if k != "printed"} for row in rows])
    write("remedies", arguments, rows, not_followed=NOT_FOLLOWED)


if __name__ == "__main__":
    main()
