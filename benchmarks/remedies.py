"""Does each gate's remedy work when it is followed as it is printed?

For every gate a run that fails it, then each remedy of its message alone, as a user would follow
it: "lower step_size (try half)" halves the step that the run had, "raise burn_in" takes four times
as many steps, and so on, up to four times in a row, with everything else as it was asked for.  A
row says whether the gate passes then, after how many times, and what else fails.

    python benchmarks/remedies.py --out benchmarks/results
    python benchmarks/remedies.py --gates step divergence --out DIR
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from common import parser, print_table, write
from torch import Tensor, nn

import bif
from bif.rng import ShuffledOrder
from bif.types import Batch

_TIMES = 4
"""As often as a user would do as told before giving up."""

Complete = dict[str, Any]
"""The settings that the last run had, from its manifest."""
Remedy = Callable[[bif.Settings, Complete], bif.Settings]


def times(name: str, factor: float) -> Remedy:
    """Multiply what the run had, as the only thing that is given besides."""

    def follow(asked: bif.Settings, had: Complete) -> bif.Settings:
        value = had[name] * factor
        whole = name in ("burn_in", "thin", "draws", "batch_size")
        return replace(asked, **{name: max(round(value), 10) if whole else value})

    return follow


def to(**given: Any) -> Remedy:
    """Give these."""
    return lambda asked, _: replace(asked, **given)


def both(*remedies: Remedy) -> Remedy:
    """One after the other."""

    def follow(asked: bif.Settings, had: Complete) -> bif.Settings:
        for remedy in remedies:
            asked = remedy(asked, had)
        return asked

    return follow


HALF_STEP = times("step_size", 0.5)
MORE_BURN_IN, MORE_DRAWS, MORE_THIN = times("burn_in", 4), times("draws", 4), times("thin", 4)
MORE_GAMMA, LESS_NBETA = times("gamma", 4), times("nbeta", 0.25)
FULL, CONTROLLED = to(gradient="full", batch_size=None), to(gradient="control_variate")
LARGER_BATCHES, MORE_FRICTION = times("batch_size", 2), times("friction", 2)


class Squared(NamedTuple):
    """A network and what it is fitted to."""

    model: nn.Module
    train: tuple[Tensor, Tensor]

    def problem(self, **given: Any) -> bif.Problem:
        x, y = self.train
        queries = (x[:5] + 0.1, y[:5])
        return bif.Problem(self.model, squared, train=self.train, queries=queries, **given)


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """Half the squared residual."""
    x, y = batch
    return 0.5 * (model(x)[:, 0] - y).square()


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def line(*, decay: float = 0.0) -> Squared:
    """60 items, six weights of curvatures from 1 to .01, at the minimum."""
    x = _normal(60, 6, seed=1) * torch.logspace(0, -1, 6)
    y = x @ torch.linspace(3, -3, 6) + _normal(60, seed=2)
    H = x.T @ x / 60 + decay * torch.eye(6)
    model = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(H, x.T @ y / 60).unsqueeze(0))
    return Squared(model, (x, y))


def network(*, trained: bool = True) -> Squared:
    """80 items, a tanh network of 33 weights."""
    x = _normal(80, 2, seed=3)
    y = 3 * torch.sin(2 * x[:, 0]) + _normal(80, seed=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = squared(model, (x, y)).mean()
        value = value + 5e-3 * sum(p.square().sum() for p in model.parameters())
        value.backward()
        return value

    if trained:
        optimizer.step(closure)
        optimizer.zero_grad()
    return Squared(model, (x, y))


@dataclass(frozen=True)
class Case:
    """A run that fails a gate, and what its message tells to do.

    Attributes:
        name: Of the gate; of a warning or an error, words that are in its message.
        problem: What is attributed.
        settings: With which it fails.
        remedies: What the message says, and that as settings.
        around: What is wrong with the machinery meanwhile.
    """

    name: str
    problem: Callable[[], bif.Problem]
    settings: bif.Settings
    remedies: dict[str, Remedy]
    around: Callable[[], Any] = field(default=lambda: _nothing())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def shared_mini_batches() -> Iterator[None]:
    """Every chain of a block sees the first one's."""
    own = ShuffledOrder.indices

    def first(self: ShuffledOrder, step: int) -> Tensor:
        return own(self, step)[:1].expand(self.num_chains, -1)

    ShuffledOrder.indices = first
    try:
        yield
    finally:
        ShuffledOrder.indices = own


FEW = bif.Settings(nbeta=60.0, chains=16, draws=100)
SLOW = replace(FEW, gamma=2.0, step_size=0.02, friction=2.0, mass="identity")
BATCHES = replace(
    FEW, gamma=2.0, gradient="minibatch", batch_size=8, step_size=0.05, friction=1.5, burn_in=100,
    thin=3,
)  # fmt: skip
HOT = replace(BATCHES, nbeta=400.0, batch_size=6, step_size=0.012, friction=0.2)
FLAT = replace(FEW, nbeta=80.0, weight_decay=1e-2, gamma=2.0, mass="identity")
ROUND = replace(FLAT, mass="kronecker")
SURVIVE = {"lower step_size (try half)": HALF_STEP, "raise gamma": MORE_GAMMA,
           "lower nbeta": LESS_NBETA}  # fmt: skip
CASES: list[Case] = [
    Case("mixing", lambda: line().problem(), replace(SLOW, burn_in=20, thin=1),
         {"raise burn_in and draws": both(MORE_BURN_IN, MORE_DRAWS), "raise gamma": MORE_GAMMA}),
    Case("drift", lambda: line().problem(),
         replace(SLOW, burn_in=0, thin=1, draws=30, step_size=0.01),
         {"raise burn_in": MORE_BURN_IN, "raise gamma": MORE_GAMMA}),
    Case("detrending", lambda: line().problem(),
         replace(SLOW, burn_in=3000, thin=1, step_size=0.005, draws=60),
         {"raise draws": MORE_DRAWS, "raise thin": MORE_THIN, "raise gamma": MORE_GAMMA}),
    Case("outliers", lambda: network().problem(), replace(ROUND, step_size=0.8),
         {"raise burn_in": MORE_BURN_IN, "lower step_size (try half)": HALF_STEP,
          "raise gamma": MORE_GAMMA}),
    Case("independence", lambda: line().problem(), replace(BATCHES, batch_size=20, step_size=0.1),
         {"raise burn_in": MORE_BURN_IN}, shared_mini_batches),
    Case("divergence", lambda: network().problem(), replace(FLAT, step_size=0.1),
         {"lower step_size (try half)": HALF_STEP, "raise gamma": MORE_GAMMA}),
    Case("divergence", lambda: network().problem(), replace(ROUND, step_size=1.0),
         {"lower step_size (try half)": HALF_STEP, "raise gamma": MORE_GAMMA}),
    Case("step", lambda: line().problem(),
         replace(FEW, sampler="sgld", step_size=0.02, gamma=5.0, burn_in=200, thin=5),
         {"lower step_size (try half)": HALF_STEP}),
    Case("step", lambda: line().problem(), replace(FEW, step_size=0.235, gamma=5.0),
         {"lower step_size (try half)": HALF_STEP}),
    Case("virial", lambda: line().problem(), HOT,
         {"gradient='full'": FULL, "larger batches": LARGER_BATCHES, "raise burn_in": MORE_BURN_IN,
          "lower step_size": HALF_STEP}),
    Case("temperature", lambda: line().problem(), HOT,
         {"gradient='full'": FULL, "gradient='control_variate'": CONTROLLED,
          "larger batches": LARGER_BATCHES, "more friction": MORE_FRICTION}),
    Case("gradient noise", lambda: line().problem(), BATCHES,
         {"gradient='full'": FULL, "gradient='control_variate'": CONTROLLED,
          "larger batches": LARGER_BATCHES, "a smaller step": HALF_STEP,
          "lower nbeta": LESS_NBETA}),
    Case("chains survived", lambda: network().problem(), replace(FLAT, step_size=0.13), SURVIVE),
    Case("chains survived", lambda: network().problem(), replace(ROUND, step_size=1.2), SURVIVE),
    Case("U curves downwards", lambda: network(trained=False).problem(), replace(FEW, gamma=0.5),
         {"raise gamma": MORE_GAMMA}),
    Case("no minimum of U", lambda: line(decay=0.5).problem(), FEW,
         {"say the weight decay": to(weight_decay=0.5)}),
    Case("below the", lambda: line().problem(), bif.Settings(reliability=0.9999, budget="3s"),
         {"a larger budget": times("budget", 4)}),
]  # fmt: skip
"""Of each gate at least one; `NOT_FOLLOWED` lists those whose remedy is no setting."""
NOT_FOLLOWED = {
    "twins": "give every run a seed of its own: runs of one seed are refused where they are merged",
    "randomness": "switch it off: a change of the model",
    "independence": "give each chain its own mini-batches: the library does, unless it is patched",
    "no minimum of U": "train on: a change of the weights",
}


class Outcome(NamedTuple):
    """What a run says."""

    failed: list[str]
    messages: list[str]
    had: Complete

    def fails(self, name: str) -> bool:
        others = (m for m in self.messages if not m.startswith("not trusted, "))
        return name in self.failed or (" " in name and any(name in m for m in others))

    def said(self, name: str) -> str:
        found = [m for m in self.messages if m.startswith(f"not trusted, {name}:")]
        return (found or [m for m in self.messages if name in m] or [""])[0]


def outcome(case: Case, settings: bif.Settings, had: Complete) -> Outcome:
    """Of one run; an error keeps the settings that the last run had."""
    problem = case.problem()
    try:
        with case.around():
            run = bif.attribute(problem, settings)
    except (ValueError, RuntimeError) as error:
        complete = had
        if not had:
            complete = bif.calibrate(problem, settings).settings.as_dict()
        return Outcome([], [str(error)], complete)
    failed = [gate["name"] for gate in run.manifest["gates"] if gate["failed"]]
    complete = {**run.manifest["settings"], "budget": settings.budget}
    return Outcome(failed, list(run.manifest["warnings"]), complete)


def followed(case: Case) -> Iterator[dict[str, Any]]:
    """A row for each remedy."""
    before = outcome(case, case.settings, {})
    printed = before.said(case.name)
    # A remedy in numbers that are those of the run is none: "raise burn_in (burn_in=0)".
    empty = [n for n in ("burn_in", "draws") if f"({n}={before.had[n]})" in printed]
    about = {"gate": case.name, "failed before": before.fails(case.name)}
    if not before.fails(case.name):
        yield {**about, "others": ", ".join(before.failed), "printed": "; ".join(before.messages)}
        return
    for name, remedy in case.remedies.items():
        settings, found, count = case.settings, before, 0
        while found.fails(case.name) and count < _TIMES:
            settings = remedy(settings, found.had)
            found, count = outcome(case, settings, found.had), count + 1
        survived = found.failed or not any("survived" in message for message in found.messages)
        works = survived and not found.fails(case.name)
        yield {
            **about, "remedy": name, "works": works, "times": count, "empty": ", ".join(empty),
            "then fails": ", ".join(found.failed) or ("" if survived else found.messages[0][:80]),
            "mass before": before.had["mass"], "mass then": found.had["mass"],
            "printed": printed,
        }  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    names = list(dict.fromkeys(case.name for case in CASES))
    options.add_argument("--gates", nargs="+", choices=names, default=names)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if case.name in arguments.gates:
            for row in followed(case):
                rows.append(row)
                print({k: v for k, v in row.items() if k != "printed"}, flush=True)
    print_table([{k: v for k, v in row.items() if k != "printed"} for row in rows])
    write("remedies", arguments, rows, not_followed=NOT_FOLLOWED)


if __name__ == "__main__":
    main()
