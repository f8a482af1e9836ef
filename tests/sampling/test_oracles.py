"""The three oracles give the same numbers, equal plain autograd, and refuse by name."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses
from bif.problem.cuda_graphs import Replayed
from bif.problem.items import Items, map_batch
from bif.problem.problem import MARGIN
from bif.samplers import BAOAB
from bif.sampling.chain import run_chains
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import LiveOracle, Oracle, SequentialOracle, StackedOracle, vmap_refusal
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise
from bif.tensors import copied, stacked
from small_problems import (
    TINY,
    NotStackable,
    classification,
    dict_cross_entropy,
    filled,
    integers,
    labelled,
    network,
    normal,
    stack_near,
)

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
C, B = 3, 6


class Conv(nn.Module):
    """A convolutional network with group norm, on 4 inputs seen as 2×2 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 2, padding=1), nn.GroupNorm(2, 4)
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        pictures = torch.relu(self.norm(self.conv(x.unflatten(-1, (1, 2, 2)))))
        return self.head(pictures.flatten(1))


def conv() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return filled(Conv())


def token_loss(model: nn.Module, batch: Any) -> Tensor:
    """Losses `[B, T]`: the three logits as three tokens."""
    return (model(batch[0]) - batch[1].unsqueeze(-1)).square()


def dict_loss(model: nn.Module, batch: Any) -> Tensor:
    return dict_cross_entropy(model, {"x": batch[0], "y": batch[1]})


CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "network": (network, losses.cross_entropy),
    "margin": (network, losses.margin),
    "convolution": (conv, losses.cross_entropy),
    "tokens": (network, token_loss),
    "dict": (network, dict_loss),
}


def frozen(make: Callable[[], nn.Module]) -> nn.Module:
    return make().eval().requires_grad_(False)


def center(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in make().named_parameters()}


def live_gradient(
    make: Callable[[], nn.Module], loss: Any, params: Any, batch: Any, weights: Tensor,
    *, per_chain: bool, micro_batch: int = B,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """The live oracle's answer for several chains, one module after another."""
    gradients, values = [], []
    for c in range(C):
        oracle = LiveOracle(frozen(make), loss, names=list(params), micro_batch=micro_batch)
        live = oracle.live_params()
        for name, leaf in live.items():
            leaf.copy_(params[name][c : c + 1])
        part = map_batch(lambda leaf, c=c: leaf[c : c + 1], batch) if per_chain else batch
        weight = weights[c : c + 1] if per_chain else weights
        gradient, value = oracle.gradient(live, part, weight, per_chain=per_chain)
        gradients.append(gradient)
        values.append(value)
    return {n: torch.cat([g[n] for g in gradients]) for n in params}, torch.cat(values)


@pytest.mark.parametrize("case", CASES)
class TestTheSameNumbers:
    @pytest.mark.parametrize("per_chain", [False, True], ids=["shared batch", "own batches"])
    def test_gradients_of_all_oracles_equal_autograd_on_the_plain_module(self, case, per_chain):
        make, loss = CASES[case]
        params = stack_near(center(make), C)
        shape = (C, B) if per_chain else (B,)
        batch = normal(*shape, 4, seed=5), integers(3, *shape, seed=6)
        weights = normal(*shape, seed=7).exp()

        expected, expected_losses = {n: [] for n in params}, []
        for c in range(C):
            model = make()
            model.load_state_dict({n: leaf[c] for n, leaf in params.items()})
            values = loss(model, map_batch(lambda x, c=c: x[c], batch) if per_chain else batch)
            values = values if values.dim() == 1 else values.sum(dim=1)
            (values * (weights[c] if per_chain else weights)).sum().backward()
            expected_losses.append(values.detach())
            for name, p in model.named_parameters():
                expected[name].append(p.grad)

        answers = {
            "stacked": StackedOracle(frozen(make), loss).gradient(
                params, batch, weights, per_chain=per_chain
            ),
            "sequential": SequentialOracle(frozen(make), loss).gradient(
                params, batch, weights, per_chain=per_chain
            ),
            "live": live_gradient(make, loss, params, batch, weights, per_chain=per_chain),
            "live, micro-batches": live_gradient(
                make, loss, params, batch, weights, per_chain=per_chain, micro_batch=4
            ),
        }
        for gradient, values in answers.values():
            assert list(gradient) == list(params)
            assert values.shape == (C, B)
            torch.testing.assert_close(values, torch.stack(expected_losses), **EXACT)
            for name, leaves in expected.items():
                torch.testing.assert_close(gradient[name], torch.stack(leaves), **EXACT)
                assert not gradient[name].requires_grad

    def test_values_of_all_oracles_equal_the_plain_module(self, case):
        make, loss = CASES[case]
        params, batch = stack_near(center(make), C), labelled(B, seed=5)
        expected = []
        for c in range(C):
            model = make()
            model.load_state_dict({n: leaf[c] for n, leaf in params.items()})
            values = loss(model, batch).detach()
            expected.append(values if values.dim() == 1 else values.sum(dim=1))
        live = LiveOracle(frozen(make), loss, names=list(params), micro_batch=B)
        answers = [
            StackedOracle(frozen(make), loss).values(loss, params, batch),
            SequentialOracle(frozen(make), loss).values(loss, params, batch),
            torch.cat(
                [live.values(loss, {n: p[c : c + 1] for n, p in params.items()}, batch)
                 for c in range(C)]
            ),
        ]  # fmt: skip
        for values in answers:
            torch.testing.assert_close(values, torch.stack(expected), **EXACT)

    def test_parameters_that_do_not_move_stay_at_their_trained_values(self, case):
        make, loss = CASES[case]
        some = dict(list(center(make).items())[-2:])
        params, batch = stack_near(some, C), labelled(B, seed=5)
        weights = torch.ones(B, dtype=torch.float64)
        whole = stacked(center(make), C) | params
        everything, _ = StackedOracle(frozen(make), loss).gradient(
            whole, batch, weights, per_chain=False
        )
        answers = [
            StackedOracle(frozen(make), loss).gradient(params, batch, weights, per_chain=False),
            SequentialOracle(frozen(make), loss).gradient(params, batch, weights, per_chain=False),
            live_gradient(make, loss, params, batch, weights, per_chain=False),
        ]
        for gradient, _ in answers:
            assert list(gradient) == list(some)
            for name in some:
                torch.testing.assert_close(gradient[name], everything[name], **EXACT)


def test_a_parameter_without_influence_has_gradient_zero():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.unused = network(), nn.Parameter(normal(2, seed=0))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    params, batch = stack_near(center(Unused), C), labelled(B, seed=5)
    weights = torch.ones(B, dtype=torch.float64)
    answers = [
        StackedOracle(frozen(Unused), losses.margin).gradient(
            params, batch, weights, per_chain=False
        ),
        SequentialOracle(frozen(Unused), losses.margin).gradient(
            params, batch, weights, per_chain=False
        ),
        live_gradient(Unused, losses.margin, params, batch, weights, per_chain=False),
    ]
    for gradient, _ in answers:
        assert torch.equal(gradient["unused"], torch.zeros(C, 2, dtype=torch.float64))


class Sums(nn.Module):
    """Two weights that are added, and one of which only the sum counts: their gradients are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.full((4,), 0.5 * k)) for k in (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.a + self.b) + self.c.sum()


@pytest.mark.parametrize("kind", [StackedOracle, SequentialOracle])
def test_gradients_of_weights_that_are_added_may_each_be_overwritten(kind):
    def squares(model: nn.Module, batch: Any) -> Tensor:
        return model(batch).square()

    model = Sums().double().eval().requires_grad_(False)
    params = stacked({n: p.detach() for n, p in model.named_parameters()}, C)
    gradient, _ = kind(model, squares).gradient(
        params, normal(B, 4, seed=1), torch.ones(B, dtype=torch.float64), per_chain=False
    )
    before = copied(gradient)
    for leaf in gradient.values():
        leaf.mul_(2.0)
    for name, leaf in gradient.items():
        torch.testing.assert_close(leaf, 2 * before[name], **EXACT)


@pytest.mark.parametrize("kind", [StackedOracle, SequentialOracle])
def test_what_an_oracle_recorded_goes_with_it(kind):
    """On a GPU that is memory, which Python's search for cycles knows nothing of."""
    oracle = kind(frozen(network), losses.cross_entropy)
    batch, params = labelled(B, seed=1), stacked(center(network), C)
    oracle.gradient(params, batch, torch.ones(B, dtype=torch.float64), per_chain=False)
    oracle.values(losses.cross_entropy, params, batch)
    replayed = replayed_of(oracle)
    assert len(replayed) >= 2  # gradients and values
    kept = [weakref.ref(x) for x in (oracle, *replayed)]
    del replayed
    gc.disable()
    try:
        del oracle
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


def replayed_of(oracle: Any) -> list[Any]:
    parts = [y for x in vars(oracle).values() for y in (x.values() if isinstance(x, dict) else [x])]
    return [part for part in parts if isinstance(part, Replayed)]


class TestLive:
    def test_a_sampler_moves_the_module_itself_and_stays_with_the_stacked_chain(self):
        items = Items(labelled(20, seed=1))
        posterior = LocalPosterior(center(network), nbeta=20.0, gamma=2.0)
        weights = torch.ones(20, dtype=torch.float64)
        module = frozen(network)
        live = LiveOracle(
            module, losses.cross_entropy, names=list(posterior.center), micro_batch=20
        )
        places = {n: p.data_ptr() for n, p in module.named_parameters()}

        def draws(oracle: Oracle, params: Any) -> Any:
            return run_chains(
                BAOAB(0.1, 1.0),
                posterior,
                gradient=FullGradient(oracle, items, chunk_size=20, train_weights=weights),
                params=params,
                noise=BlockNoise(torch.Generator().manual_seed(0)),
                num_draws=201,
                burn_in=0,
                thin=1,
            )

        pairs = zip(
            draws(live, live.live_params()),
            draws(
                StackedOracle(frozen(network), losses.cross_entropy), stacked(posterior.center, 1)
            ),
            strict=True,
        )
        for a, b in pairs:
            for name, parameter in module.named_parameters():
                assert a.params[name].data_ptr() == places[name] == parameter.data_ptr()
                torch.testing.assert_close(parameter.data, b.params[name][0], rtol=0, atol=1e-11)
            torch.testing.assert_close(a.losses, b.losses, rtol=0, atol=1e-11)
        moved = torch.cat([(p - posterior.center[n]).flatten() for n, p in
                           module.named_parameters()])  # fmt: skip
        assert moved.abs().min() > 1e-4  # all of them, in place

    def test_weights_elsewhere_are_evaluated_without_moving_the_module(self):
        module = frozen(network)
        oracle = LiveOracle(
            module, losses.cross_entropy, names=list(center(network)), micro_batch=9
        )
        before = {n: p.data_ptr() for n, p in module.named_parameters()}
        params = {n: p[:1] for n, p in stack_near(center(network), 1).items()}
        kept, batch = copied(params), labelled(B, seed=5)
        got = oracle.values(losses.margin, params, batch)
        expected = StackedOracle(frozen(network), losses.margin).values(
            losses.margin, params, batch
        )
        torch.testing.assert_close(got, expected, **EXACT)
        for name, parameter in module.named_parameters():
            assert parameter.data_ptr() == before[name] and parameter.grad is None
            assert torch.equal(parameter.data, center(network)[name])
            assert torch.equal(params[name], kept[name])


def test_a_compiled_live_module_has_the_plain_ones_numbers(monkeypatch):
    eager = partial(torch.compile, backend="aot_eager")  # no compiler for C++ or the GPU is needed
    monkeypatch.setattr(torch, "compile", eager)
    settings = replace(TINY, oracle="live", chunk_size=20)
    plain = bif.attribute(classification(), settings)
    compiled = bif.attribute(classification(), replace(settings, compiled=True))
    for a, b in zip(compiled.traces.blocks, plain.traces.blocks, strict=True):
        torch.testing.assert_close(a.train, b.train, rtol=0, atol=1e-9)
        torch.testing.assert_close(a.query, b.query, rtol=0, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_chains_one_after_another_have_the_plain_ones_numbers(monkeypatch, precision):
    calls: list[object] = []

    def eager(function: Any, **options: Any) -> Any:
        calls.append(function)
        return compile_(function, backend="aot_eager", fullgraph=True, **options)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", eager)
    dtype = torch.float32 if precision == "bfloat16" else torch.float64  # autocast leaves float64
    plain, compiled = (
        SequentialOracle(
            frozen(network).to(dtype), losses.cross_entropy, gradient_precision=precision,
            value_precision=precision, use_compile=use_compile,
        )
        for use_compile in (False, True)
    )  # fmt: skip
    params = {n: leaf.to(dtype) for n, leaf in stack_near(center(network), C).items()}
    x, y = labelled(B, seed=5)
    batch, weights = (x.to(dtype), y), normal(C, B, seed=6).to(dtype)
    own = map_batch(lambda leaf: torch.stack([leaf.roll(c, 0) for c in range(C)]), batch)
    for items, rows, per_chain in ((batch, weights[0], False), (own, weights, True)):
        got = compiled.gradient(params, items, rows, per_chain=per_chain)
        expected = plain.gradient(params, items, rows, per_chain=per_chain)
        torch.testing.assert_close(got, expected, **EXACT)
    for function in (losses.cross_entropy, losses.margin, losses.margin):
        got = compiled.values(function, params, batch)
        torch.testing.assert_close(got, plain.values(function, params, batch), **EXACT)
    assert len(calls) == 3  # the train items' losses, and two functions' values


class TestModelsThatVmapRefuses:
    @staticmethod
    def branching(model: nn.Module, batch: Any) -> Tensor:
        values = losses.cross_entropy(model, batch)
        return values if values.sum() < 1e9 else 2 * values

    def test_the_refused_operation_is_named(self):
        def refusal(make: Callable[[], nn.Module], loss: Any) -> str | None:
            return vmap_refusal(
                make(), loss, params=stack_near(center(make), 2), batch=labelled(2, seed=0),
                per_chain=True, observables=[losses.margin],
            )  # fmt: skip

        said = refusal(NotStackable, losses.cross_entropy)
        assert said is not None and ".item()" in said
        said = refusal(network, self.branching)
        assert said is not None and "data-dependent control flow" in said
        assert refusal(network, losses.margin) is None

    def test_they_fall_back_to_one_chain_after_another_and_say_so(self):
        problem = classification(model=NotStackable())
        run = bif.attribute(problem, TINY)
        assert run.manifest["settings"]["oracle"] == "sequential"
        assert any(
            "vmap cannot take the model" in line and ".item()" in line
            for line in run.manifest["explanations"]
        )
        plain = bif.attribute(classification(), replace(TINY, oracle="sequential"))
        assert torch.equal(run.traces.blocks[0].train, plain.traces.blocks[0].train)

    def test_asked_to_stack_they_are_refused_with_the_operation_and_the_way_out(self):
        with pytest.raises(ValueError, match=r"(?s)cannot be stacked.*\.item\(\).*'sequential'"):
            bif.attribute(classification(model=NotStackable()), replace(TINY, oracle="stacked"))

    def test_a_branch_on_the_mini_batch_is_noticed_before_sampling(self):
        # With full gradients all chains see the same items, and vmap takes this model.
        class LooksAtItems(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network()

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x) if x.sum() < 1e9 else self.inner(-x)

        problem = classification(model=LooksAtItems())
        full = bif.calibrate(problem, TINY).settings
        assert full.oracle == "stacked"
        settings = replace(TINY, gradient="minibatch", batch_size=5)
        assert bif.calibrate(problem, settings).settings.oracle == "sequential"
        with pytest.raises(ValueError, match="cannot be stacked"):
            bif.calibrate(problem, replace(settings, oracle="stacked"))

    def test_an_observable_that_vmap_cannot_take_is_noticed_before_sampling(self):
        problem = classification(observables=[bif.Observable("branching", self.branching)])
        assert bif.calibrate(problem, TINY).settings.oracle == "sequential"
        with pytest.raises(ValueError, match="cannot be stacked"):
            bif.calibrate(problem, replace(TINY, oracle="stacked"))


def oracles_of(model: nn.Module, **precision: Any) -> dict[str, Oracle]:
    names = [n for n, _ in model.named_parameters()]
    loss = losses.cross_entropy
    return {
        "stacked": StackedOracle(model, loss, **precision),
        "sequential": SequentialOracle(model, loss, **precision),
        "live": LiveOracle(model, loss, names=names, micro_batch=4, **precision),
    }


@pytest.mark.parametrize("kind", ["stacked", "sequential", "live"])
class TestPrecision:
    def test_bfloat16_compute_gives_finite_float32_gradients_and_losses(self, kind):
        model = network().float().eval().requires_grad_(False)
        params = {n: p.detach().clone()[None] for n, p in model.named_parameters()}
        x, y = labelled(B, seed=5)
        batch, weights = (x.float(), y), torch.ones(B)
        exact = oracles_of(model)["stacked"]
        rough = oracles_of(model, gradient_precision="bfloat16", value_precision="bfloat16")[kind]
        for per_chain in (False, True):
            mine = map_batch(lambda leaf: leaf[None], batch) if per_chain else batch
            weight = weights[None] if per_chain else weights
            gradient, values = rough.gradient(params, mine, weight, per_chain=per_chain)
            expected, _ = exact.gradient(params, mine, weight, per_chain=per_chain)
            assert values.dtype == torch.float32 and values.isfinite().all()
            for name, leaf in gradient.items():
                assert leaf.dtype == torch.float32 and leaf.isfinite().all()
                scale = expected[name].abs().max()
                # bfloat16 keeps 8 bits: 2⁻⁸ a rounding, through two layers and back.
                assert 0 < (leaf - expected[name]).abs().max() < 16 * 2**-8 * scale
        values = rough.values(losses.cross_entropy, params, batch)
        assert values.dtype == torch.float32 and values.isfinite().all()

    def test_losses_keep_their_own_precision(self, kind):
        model = network().float().eval().requires_grad_(False)
        params = {n: p.detach().clone()[None] for n, p in model.named_parameters()}
        x, y = labelled(B, seed=5)
        oracle = oracles_of(model, gradient_precision="bfloat16")[kind]
        exact = losses.cross_entropy(model, (x.float(), y))
        got = oracle.values(losses.cross_entropy, params, (x.float(), y))
        torch.testing.assert_close(got[0], exact, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("before", [False, True])
    def test_the_callers_tf32_flags_are_put_back_also_after_an_error(self, kind, before):
        flags: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
        was = [flag.allow_tf32 for flag in flags]
        try:
            for flag in flags:
                flag.allow_tf32 = before
            seen = []

            def looking(model: nn.Module, batch: Any) -> Tensor:
                seen.append([flag.allow_tf32 for flag in flags])
                return losses.cross_entropy(model, batch)

            def failing(model: nn.Module, batch: Any) -> Tensor:
                raise RuntimeError("mine")

            model = frozen(network)
            oracle = oracles_of(model, value_precision="tf32")[kind]
            params = {n: p.detach().clone()[None] for n, p in model.named_parameters()}
            oracle.values(looking, params, labelled(B, seed=5))
            assert seen[-1] == [True, True]
            assert [flag.allow_tf32 for flag in flags] == [before, before]
            with pytest.raises(RuntimeError, match="mine"):
                oracle.values(failing, params, labelled(B, seed=5))
            assert [flag.allow_tf32 for flag in flags] == [before, before]
        finally:
            for flag, value in zip(flags, was, strict=True):
                flag.allow_tf32 = value

    @pytest.mark.parametrize("asked", ["highest", "high", "medium"])
    def test_the_callers_float32_matmul_precision_is_put_back(self, kind, asked):
        was = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision(asked)
            model = frozen(network)
            params = {n: p.detach().clone()[None] for n, p in model.named_parameters()}
            for precision in ("float32", "tf32", "bfloat16"):
                oracle = oracles_of(model, value_precision=precision)[kind]
                oracle.values(losses.margin, params, labelled(B, seed=5))
                assert torch.get_float32_matmul_precision() == asked
        finally:
            torch.set_float32_matmul_precision(was)


@pytest.mark.parametrize("mine", ["ieee", "tf32"])
def test_a_caller_who_uses_the_newer_tf32_switches_gets_them_back(mine):
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    was = [s.fp32_precision for s in switches]
    model = frozen(network)
    params = {n: p.detach().clone()[None] for n, p in model.named_parameters()}
    try:
        for switch in switches:
            switch.fp32_precision = mine
        for precision in ("float32", "tf32"):
            oracle = oracles_of(model, value_precision=precision)["stacked"]
            oracle.values(losses.margin, params, labelled(B, seed=5))
            assert [s.fp32_precision for s in switches] == [mine, mine]
    finally:
        for switch, value in zip(switches, was, strict=True):
            switch.fp32_precision = value


def test_the_problem_defines_margins_as_higher_is_better():
    assert MARGIN.better == "higher" and MARGIN.function is losses.margin
