"""What changes a fingerprint of code, and what does not: every change that a user may make."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import bif
from bank_cases import bank
from bif.bank import Bank, Plan
from bif.problem.code import code_fingerprint, model_code
from bif.store import FolderInUse
from broken_runs import SETTINGS, assert_same
from small_problems import classification

CODE = '''
    """Losses."""
    import argparse
    import functools
    from dataclasses import dataclass
    import torch
    from torch import nn
    import bif
    import {helper}
    from {helper} import clipped, OPTIMISER

    RATE = 0.1
    TABLE = {{"weight": 1.0, "layers": [1, 2]}}
    ARGUMENTS = argparse.Namespace(rate=0.1)
    DEVICE = "cpu"


    class Base(nn.Module):
        """The base."""

        def scaled(self, x):
            # twice
            return 2.0 * x


    class Net(Base):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.temperature = 1.0
            self.register_buffer("shift", torch.zeros(3), persistent=False)

        def forward(self, x):
            return inner(self.scaled(self.layer(x))) / self.temperature + self.shift


    def inner(x):
        return x.tanh()


    @dataclass
    class Options:
        factor: float = 1.0


    class Loss:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, model, batch):
            return self.factor * plain_loss(model, batch)


    SCALED = Loss(1.0)


    def plain_loss(model, batch):
        """A loss."""
        return {helper}.detached(clipped(RATE * bif.losses.cross_entropy(model, batch)))


    def with_options(options):
        def loss(model, batch):
            return options.factor * plain_loss(model, batch)

        return loss


    closure = with_options(Options())


    def tables(model, batch):
        return TABLE["weight"] * ARGUMENTS.rate * SCALED(model, batch)


    def late(model, batch):
        from {helper} import deep

        return deep(plain_loss(model, batch))


    def train(start, items, seed):
        optimiser = made(start.parameters())
        return start


    def made(parameters):
        return OPTIMISER(parameters, lr=RATE)
'''
HELPER = """
    import torch

    OPTIMISER = torch.optim.Adam
    UNUSED = 1


    def detached(x):
        return kept(x)


    def kept(x):
        return x + 0.0


    def clipped(x):
        return x.clamp(max=10.0)


    def deep(x):
        return 1.0 * x


    def unused(x):
        return x
"""


class Written:
    """Modules of a user's, imported anew after every change."""

    def __init__(self, place: Path) -> None:
        self._place, self._count = place, 0

    def imported(self, *changes: tuple[str, str]) -> ModuleType:
        """With texts replaced, each of which must be there."""
        self._count += 1
        names = [f"{kind}_{abs(hash(str(self._place)))}" for kind in ("mine", "helper")]
        texts = [dedent(CODE).replace("{helper}", names[1]).replace("{{", "{").replace("}}", "}"),
                 dedent(HELPER)]  # fmt: skip
        for old, new in changes:
            assert any(old in text for text in texts), old
            texts = [text.replace(old, new) for text in texts]
        folder = self._place / str(self._count)
        folder.mkdir()
        for name, text in zip(names, texts, strict=True):
            (folder / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        sys.path.insert(0, str(folder))
        try:
            importlib.invalidate_caches()
            for name in reversed(names):
                found = importlib.import_module(name)
        finally:
            sys.path.remove(str(folder))
        return found


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    there = set(sys.modules)
    yield Written(tmp_path)
    for name in set(sys.modules) - there:
        if name.startswith(("mine_", "helper_")):
            del sys.modules[name]


def fingerprints(module: ModuleType) -> dict[str, str]:
    torch.manual_seed(0)
    return {
        "loss": code_fingerprint(module.plain_loss),
        "closure": code_fingerprint(module.closure),
        "tables": code_fingerprint(module.tables),
        "late": code_fingerprint(module.late),
        "train": code_fingerprint(module.train),
        "model": model_code(module.Net()),
    }


LOSSES = {"loss", "closure", "tables", "late"}
CHANGES: dict[str, tuple[str, str, set[str]]] = {
    "the loss itself": ("RATE * bif", "2 * RATE * bif", LOSSES),
    "a helper": ("clamp(max=10.0)", "clamp(max=1.0)", LOSSES),
    "a helper's helper, which detaches": ("x + 0.0", "x.detach() + 0.0", LOSSES),
    "a helper that is imported when called": ("1.0 * x", "0.5 * x", {"late"}),
    "a global number": ("RATE = 0.1", "RATE = 0.2", LOSSES | {"train"}),
    "a global table": ('"weight": 1.0', '"weight": 2.0', {"tables"}),
    "the arguments of a script": ("Namespace(rate=0.1)", "Namespace(rate=0.2)", {"tables"}),
    "a global object that is called": ("Loss(1.0)", "Loss(2.0)", {"tables"}),
    "a dataclass in a closure": ("factor: float = 1.0", "factor: float = 2.0", {"closure"}),
    "a method of a base class": ("2.0 * x", "3.0 * x", {"model"}),
    "a function that forward calls": ("x.tanh()", "x.relu()", {"model"}),
    "an attribute of a module": ("temperature = 1.0", "temperature = 2.0", {"model"}),
    "a buffer that no state holds": ("torch.zeros(3)", "torch.ones(3)", {"model"}),
    "the optimiser": ("torch.optim.Adam", "torch.optim.SGD", {"train"}),
    "a helper of the training": ("lr=RATE)", "lr=RATE, foreach=False)", {"train"}),
}
NO_CHANGES = {
    "a comment": ("# twice", "# two times"),
    "a comment more": ("return x.tanh()", "return x.tanh()  # squashed"),
    "a docstring": ('"""A loss."""', '"""Another text."""'),
    "no docstring": ('        """The base."""\n', ""),
    "a docstring of the module": ('"""Losses."""', '"""Mine."""'),
    "formatting": ("x.clamp(max=10.0)", "x.clamp(\n            max=10.0,\n        )"),
    "quotes": ('TABLE["weight"]', "TABLE['weight']"),
    "empty lines": ("def made", "\n\n\ndef made"),
    "what is not reachable": ("UNUSED = 1", "UNUSED = 2"),
    "a function that nobody calls": (
        "def unused(x):\n    return x",
        "def unused(x):\n    return 0",
    ),
    "another device": ('DEVICE = "cpu"', 'DEVICE = "cuda"'),
}


@pytest.mark.parametrize(("old", "new", "changed"), CHANGES.values(), ids=CHANGES)
def test_every_change_of_what_is_reachable_is_seen_where_it_is(written, old, new, changed):
    before = fingerprints(written.imported())
    after = fingerprints(written.imported((old, new)))
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize(("old", "new"), NO_CHANGES.values(), ids=NO_CHANGES)
def test_what_changes_nothing_is_not_seen(written, old, new):
    before = fingerprints(written.imported())
    assert fingerprints(written.imported((old.removeprefix("        "), new))) == before


class TestHooks:
    KINDS: dict[str, Callable[[nn.Module, Any], Any]] = {
        "forward": lambda m, f: m.register_forward_hook(f),
        "before forward": lambda m, f: m.register_forward_pre_hook(f),
        "backward": lambda m, f: m.register_full_backward_hook(f),
        "before backward": lambda m, f: m.register_full_backward_pre_hook(f),
        "an instance's own forward": lambda m, f: setattr(m, "forward", f),
    }

    @pytest.mark.parametrize("register", KINDS.values(), ids=KINDS)
    def test_hooks_count_by_what_they_do(self, register):
        found = set()
        for hook in (None, lambda *given: None, lambda *given: given[-1] * 2):
            model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
            if hook is not None:
                register(model[0], hook)
            found.add(model_code(model))
        assert len(found) == 3

    def test_numbers_of_hooks_do_not_count(self):
        def model() -> nn.Module:
            made = nn.Linear(4, 3)
            made.register_forward_hook(_nothing)
            return made

        assert model_code(model()) == model_code(model())


def _nothing(*given: Any) -> None:
    """A hook."""


class Counter:
    def __init__(self) -> None:
        self.count = 0


COUNTER = Counter()


def counting(model: nn.Module, batch: Any) -> torch.Tensor:
    COUNTER.count += 1
    return bif.losses.cross_entropy(model, batch)


def test_what_a_global_object_has_counted_is_no_code():
    before = code_fingerprint(counting)
    counting(classification().model, classification().train.first(2))
    assert COUNTER.count == 1 and code_fingerprint(counting) == before


SWITCH = [torch.tensor(0.0), True]


class Halved(torch.autograd.Function):
    """The identity, whose gradient is halved where the environment says so."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        import os

        return gradient * float(os.environ.get("BIF_TEST_FACTOR", "1"))

    generate_vmap_rule = True


def outside(model: nn.Module, batch: Any) -> torch.Tensor:
    """A loss whose gradient depends on what no fingerprint sees, and whose value does not."""
    return Halved.apply(bif.losses.cross_entropy(model, batch))  # type: ignore[return-value]


@pytest.mark.usefixtures("unchecked", "no_page")
def test_a_gradient_that_has_changed_is_refused_although_all_losses_are_the_same(
    tmp_path, monkeypatch
):
    made = classification(loss=outside, observables=None)
    settings = replace(SETTINGS, oracle="sequential")
    whole = bif.attribute(made, settings, out=tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    with monkeypatch.context() as patch:
        patch.setenv("BIF_TEST_FACTOR", "0.5")
        with pytest.raises(FolderInUse, match=r"begun with other gradients at w\*"):
            bif.attribute(made, settings, out=tmp_path / "run")
    assert_same(bif.attribute(made, settings, out=tmp_path / "run"), whole)


class TestBanks:
    FEW, MORE = Plan(num_subsets=3, seeds=2), Plan(num_subsets=40, seeds=2)

    @staticmethod
    def train(start: nn.Module, items: Any, seed: int) -> nn.Module:
        import os

        optimiser = torch.optim.SGD(
            start.parameters(), lr=float(os.environ.get("BIF_TEST_RATE", "0.05"))
        )
        for _ in range(3):
            chosen = torch.randperm(len(items[1]))[:8]
            loss = bif.losses.cross_entropy(start, (items[0][chosen], items[1][chosen])).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return start

    @pytest.fixture(autouse=True)
    def _seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every network takes a second."""
        ticks = itertools.count()
        clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
        monkeypatch.setattr(sys.modules["bif.evaluate.retraining.retrained"], "time", clock)

    def made(self, place: Path, plan: Plan) -> Bank:
        return bank(place, tuning_queries=None, how=self.train, plan=plan, target="checkpoint")

    def test_a_network_that_comes_out_otherwise_is_noticed_before_the_bank_goes_on(
        self, tmp_path, monkeypatch
    ):
        before = self.made(tmp_path, self.FEW)
        with monkeypatch.context() as patch:
            patch.setenv("BIF_TEST_RATE", "2.0")
            with pytest.raises(FolderInUse, match=r"comes out otherwise .* trained again"):
                self.made(tmp_path, self.MORE)
        after = self.made(tmp_path, self.MORE)
        for name, values in before.reported.outcomes.items():
            assert (after.reported.outcomes[name][:, :3] == values).all()
        assert "notes" not in after.manifest

    def test_a_check_that_would_take_long_is_left_out_and_said(self, tmp_path):
        self.made(tmp_path, self.FEW)
        found = self.made(tmp_path, replace(self.FEW, num_subsets=4))
        assert "no network was retrained" in found.manifest["notes"][0]
