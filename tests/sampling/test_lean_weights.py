"""Weights in bfloat16: an unbiased rounding of known variance, and steps that outweigh it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses
from bif.calibration.peak_memory import PeakBytes
from bif.problem.items import Items
from bif.samplers import SGLD
from bif.sampling import stochastic_rounding
from bif.sampling.engine import Engine
from bif.sampling.fused_step import StreamedGradient, fused_trajectory
from bif.sampling.oracles import LiveOracle
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import LeafNoise
from bif.sampling.stochastic_rounding import (
    refuse_coarse,
    round_stochastically_,
    rounding_shares,
    rounding_variance,
    spacing,
)
from same_bits import assert_same_run, preempted, without_page
from small_problems import TINY, assert_same_state, filled, integers, labelled, normal, state_of

CPU = torch.device("cpu")
BF16 = torch.bfloat16
LEAN = replace(
    TINY, oracle="live", sampler="sgld", friction=None, step_size=1e-3, chains=2, chunk_size=20,
    gradient="minibatch", batch_size=5, memory="lean", gradient_precision="bfloat16",
    loss_precision="bfloat16",
)  # fmt: skip


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(x: float) -> tuple[float, float]:
    """The bfloat16 at or below x in size, and the next one away from 0."""
    bits = torch.tensor(x, dtype=torch.float32).view(torch.int32) & -65536
    return float(bits.view(torch.float32)), float((bits + 65536).view(torch.float32))


def problem(**changed: Any) -> bif.Problem:
    """A float32 network of 2,400 weights in matrices and 99 in vectors; 20 items, 5 queries."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(
            nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3)
        )
    model = filled(model).float()
    (x, y), (qx, qy) = labelled(20, seed=1), labelled(5, seed=2)
    return bif.Problem(
        changed.pop("model", model), losses.cross_entropy, train=(x.float(), y),
        queries=(qx.float(), qy),
    )  # fmt: skip


class TestRounding:
    # Within a binade, just below a power of two, negative, small, subnormal, exact.
    NUMBERS = (1.2345, 1.9999, -0.3701, 3.1e-5, -2.0e-39, 1.5, 0.0)

    @pytest.mark.parametrize("x", NUMBERS)
    def test_the_mean_over_all_random_bits_is_x_exactly(self, x, monkeypatch):
        monkeypatch.setattr(
            stochastic_rounding.torch, "randint",
            lambda low, high, shape, **_: torch.arange(low, high, dtype=torch.int32),
        )  # fmt: skip
        numbers = torch.full((1 << 16,), x, dtype=torch.float32)
        got = round_stochastically_(torch.empty(1 << 16, dtype=BF16), numbers, source()).double()
        exact = float(numbers[0])
        assert float(got.mean()) == exact
        low, high = neighbours(x)
        assert set(got.tolist()) <= {low, high}
        p = (exact - low) / (high - low)
        variance = p * (1 - p) * (high - low) ** 2
        assert float(got.var(correction=0)) == pytest.approx(variance, rel=1e-12, abs=0)

    def test_ups_and_downs_have_the_binomial_law(self):
        count, x = 200_000, 1.2345
        numbers = torch.full((count,), x)
        got = round_stochastically_(torch.empty(count, dtype=BF16), numbers, source())
        low, high = neighbours(x)
        p = (float(numbers[0]) - low) / (high - low)
        ups = float((got.double() == high).double().mean())
        assert abs(ups - p) < 5 * (p * (1 - p) / count) ** 0.5
        assert abs(float(got[1:].double().sub(x) @ got[:-1].double().sub(x)) / count) < 5 * (
            p * (1 - p) * (high - low) ** 2 / count**0.5
        )

    def test_rounding_keeps_nan_and_infinity(self):
        x = torch.tensor([float("nan"), float("inf"), -float("inf")])
        x = torch.cat([x, torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)])
        got = round_stochastically_(torch.empty(4, dtype=BF16), x, source())
        assert got.isnan().tolist() == [True, False, False, True]
        assert got[1:3].tolist() == [float("inf"), -float("inf")]

    @pytest.mark.parametrize("x", (1.0, 1.99, 2.0, 0.3, -0.02, 1e-30))
    def test_the_spacing_is_the_distance_to_the_next_number(self, x):
        low, high = neighbours(x)
        assert float(spacing(torch.tensor(x))) == abs(high - low)

    def test_a_uniform_number_gains_a_sixth_of_the_squared_spacing(self):
        # The mean of p (1 - p) over all places between two neighbours.
        p = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
        assert float((p * (1 - p)).mean()) == pytest.approx(1 / 6, rel=1e-9)
        assert rounding_variance(torch.full((3,), 1.5, dtype=BF16)) == 2.0**-14 / 6


class Still(nn.Module):
    """Independent weights, all at the same place, that no loss depends on."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((200, 100), value, dtype=BF16))


def stationary_variance(step_size: float, k: float, *, burn_in: int, draws: int) -> float:
    """Variance of lean SGLD on a quadratic of curvature k around 1.5, over weights and draws."""
    model = Still(1.5)
    oracle = LiveOracle(
        model, lambda m, b: b[0].sum(dim=1).requires_grad_(), names=["w"], micro_batch=2
    )
    posterior = LocalPosterior({"w": model.w.detach().clone()}, 0.0, k)
    gradient = StreamedGradient(
        oracle, Items((torch.zeros(2, 1), torch.zeros(2))), order=None, train_weights=torch.ones(2)
    )
    noise = LeafNoise(["w"], seed=0, block=0, device=CPU)
    sampler = SGLD(step_size)
    positions = fused_trajectory(
        sampler, posterior, gradient=gradient, state=sampler.init(oracle.live_params(), noise),
        noise=noise, first_step=0, last_step=burn_in + draws,
    )  # fmt: skip
    squares = [
        float((p.state.params["w"].float() - 1.5).square().double().mean())
        for p in positions
        if p.step > burn_in
    ]
    return float(np.mean(squares))


class TestLaw:
    @pytest.mark.parametrize("noise_in_spacings", (1.0, 0.6))
    def test_a_quadratic_has_the_discretised_variance_with_the_rounding_term(
        self, noise_in_spacings, monkeypatch
    ):
        step_size = (noise_in_spacings * 2.0**-7) ** 2
        k = 0.2 / step_size
        law = 1 / (k * (1 - step_size * k / 4))
        share = rounding_shares({"w": torch.full((2, 2), 1.5, dtype=BF16)}, step_size)["w"]
        assert share == pytest.approx(1 / 6 / noise_in_spacings**2)
        got = stationary_variance(step_size, k, burn_in=60, draws=100)
        # Squares of an autoregression with factor .9: 20,000 weights, 100 draws, tau 9.5.
        error = (2 * 9.5 / (20_000 * 100)) ** 0.5
        assert abs(got / (law * (1 + share)) - 1) < 5 * error
        # The plain law, and rounding to the nearest, are told from it.
        assert abs(got / law - 1) > 20 * error
        monkeypatch.setattr(
            "bif.sampling.fused_step.round_stochastically_",
            lambda target, x, source: target.copy_(x),
        )
        nearest = stationary_variance(step_size, k, burn_in=60, draws=100)
        assert abs(nearest / (law * (1 + share)) - 1) > 20 * error

    def test_a_small_model_has_the_variance_of_float32_and_the_rounding_term(self):
        found: dict[str, dict[str, float]] = {}
        # Curvature of U: gamma, and up to about as much of the loss.
        given = replace(
            LEAN, nbeta=1e4, gamma=3e4, step_size=1.6e-5, burn_in=50, thin=1, draws=900,
            gradient="full", batch_size=None,
        )  # fmt: skip
        exact: dict[str, Any] = {"gradient_precision": "float32", "loss_precision": "float32"}
        for memory, s in (("lean", given), ("fused", replace(given, memory="fused", **exact))):
            whole = problem()
            engine = Engine(whole, bif.calibrate(whole, s).settings)
            sums: dict[str, Tensor] = {}
            squares: dict[str, Tensor] = {}
            count = 0
            for position in engine.positions(0, 1, engine.start(0, 1)):
                if position.step < 50:
                    continue
                count += 1
                for name, leaf in position.state.params.items():
                    x = leaf.double() - engine.posterior.center[name].double()
                    sums[name] = sums.get(name, torch.zeros_like(x)) + x
                    squares[name] = squares.get(name, torch.zeros_like(x)) + x.square()
            found[memory] = {
                n: float((squares[n] / count - (sums[n] / count) ** 2).mean()) for n in sums
            }
            if memory == "lean":
                shares = rounding_shares(engine.posterior.center, 1.6e-5)
        matrices = [n for n in found["lean"] if n.endswith("weight")]
        assert shares.keys() == set(matrices) and min(shares.values()) > 0.08
        for name, share in shares.items():
            ratio = found["lean"][name] / found["fused"][name]
            # 96 weights and more, 900 draws with tau about 8: errors of a ratio below 2 %.
            assert abs(ratio / (1 + share) - 1) < 0.05, (name, ratio, share)
        weights = {n: whole.center()[n].numel() for n in matrices}
        total = [sum(found[m][n] * weights[n] for n in matrices) for m in ("lean", "fused")]
        expected = sum(found["fused"][n] * weights[n] * (1 + shares[n]) for n in matrices)
        assert abs(total[0] / expected - 1) < 0.02
        assert total[0] / total[1] > 1.08  # the term is needed


class TestMemory:
    def test_lean_memory_takes_six_bytes_a_weight_besides_activations(self):
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(24)])
        model = filled(model, scale=0.05).to(BF16)
        x, y = normal(8, 256, seed=1).to(BF16), integers(3, 8, seed=2)
        whole = bif.Problem(model, losses.cross_entropy, train=(x, y), queries=(x, y))
        weights = 24 * 256 * 256
        with PeakBytes() as count:
            engine = Engine(whole, bif.calibrate(whole, LEAN).settings)
            start, before = engine.start(0, 1), count.now
            count.peak = before
            for _ in engine.positions(0, 1, start, last_step=3):
                pass
        # The user's own model, 2 bytes a weight, is w*, and was there before.
        assert before < 2.2 * weights
        assert count.peak + 2 * weights < 6 * weights

    def test_matrices_and_w_star_are_narrow_and_vectors_as_they_were(self):
        whole = problem()
        engine = Engine(whole, bif.calibrate(whole, LEAN).settings)
        for params in (engine.posterior.center, engine.start(0, 1).state.params):
            for name, leaf in params.items():
                assert leaf.dtype == (BF16 if name.endswith("weight") else torch.float32)
        for name, leaf in whole.center().items():
            torch.testing.assert_close(
                engine.posterior.center[name].float(), leaf, rtol=2.0**-8, atol=0
            )


class TestRuns:
    @pytest.mark.usefixtures("unchecked")
    def test_a_run_that_was_cut_short_goes_on_to_the_last_bit(self, tmp_path):
        with without_page():
            whole = bif.attribute(problem(), LEAN)
            with preempted(block=1, step=7):
                bif.attribute(problem(), LEAN, out=tmp_path, keep="weights")
            run = bif.attribute(problem(), LEAN, out=tmp_path, keep="weights")
        for a, b in zip(run.traces.blocks, whole.traces.blocks, strict=True):
            assert torch.equal(a.train, b.train) and torch.equal(a.query, b.query)

    def test_a_run_ends_with_its_checks_and_leaves_the_model_as_it_was(self):
        whole = problem()
        before = state_of(whole.model)
        run = bif.attribute(whole, LEAN)
        again = bif.attribute(whole, LEAN)
        assert_same_run(run, again)
        assert np.isfinite(run.influence.dataset["influence"]).all()
        assert {"virial", "step"} <= {g["name"] for g in run.manifest["gates"]}
        assert_same_state(whole.model, before)


class TestRefusals:
    def test_a_step_below_the_rounding_is_refused_with_its_figures(self):
        whole = problem()
        with pytest.raises(
            ValueError, match=r"noise of a step, 0.0001 .* below its rounding .* '\d.weight', 0.00"
        ):
            Engine(whole, bif.calibrate(whole, replace(LEAN, step_size=1e-8)).settings)

    def test_the_step_that_it_asks_for_is_enough(self):
        leaves = {"w": normal(50, 50, seed=0).to(BF16)}
        least = rounding_variance(leaves["w"])
        with pytest.raises(ValueError, match=f"at least {least:.3g}"):
            refuse_coarse(leaves, 0.99 * least)
        refuse_coarse(leaves, 1.01 * least)
        refuse_coarse({"w": leaves["w"].float()}, 1e-12)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"gradient_precision": "float32"}, "gradient_precision='bfloat16' and loss_precision"),
            ({"loss_precision": "float32"}, "got 'bfloat16' and 'float32'"),
            ({"sampler": "baoab"}, r"no room for the state of sampler='baoab'.*one of sgld"),
        ],
    )
    def test_settings_that_contradict_lean_memory_are_refused(self, changed, said):
        with pytest.raises(ValueError, match=said):
            replace(LEAN, **changed)
