"""Calibration: curvatures, complete settings, reasons, and settings that contradict each other."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, hessian, jvp

import bif
from bif import Settings, losses
from bif.calibration.damping import SHARE
from bif.curvature.extreme_eigenvalues import largest_curvature, smallest_curvature
from bif.problem.items import Items
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import StackedOracle
from bif.sampling.rng import BlockNoise
from exact_problems import Point, quadratic_loss
from small_problems import NotStackable, classification, labelled, network, normal, stack_near

TRAIN = labelled(20, seed=1)
MODEL = network()
PARAMS = stack_near({n: p.detach() for n, p in network().named_parameters()}, 2)


def mean_loss(flat: Tensor) -> Tensor:
    parts = flat.split([p[0].numel() for p in PARAMS.values()])
    named = {n: x.view(p.shape[1:]) for (n, p), x in zip(PARAMS.items(), parts, strict=True)}
    return losses.cross_entropy(
        lambda x: functional_call(MODEL, named, (x,)),  # type: ignore[arg-type]
        TRAIN,
    ).mean()


def curvature(
    iterations: int, masks: dict[str, Tensor] | None = None, params: Any = PARAMS
) -> Tensor:
    oracle = StackedOracle(network().eval().requires_grad_(False), losses.cross_entropy)
    direction = BlockNoise(torch.Generator().manual_seed(0), masks).normal(params)
    return largest_curvature(
        mean_gradient(oracle, Items(TRAIN), params), params,
        direction=direction, masks=masks or {}, iterations=iterations,
    )  # fmt: skip


def mean_gradient(oracle: StackedOracle, items: Items, params: Any) -> FullGradient:
    like = next(iter(params.values()))
    ones = torch.ones(len(items), dtype=like.dtype)
    return FullGradient(oracle, items, chunk_size=len(items), train_weights=ones)


def start(params: Any = PARAMS) -> Tensor:
    drawn = BlockNoise(torch.Generator().manual_seed(0)).normal(params)
    return torch.cat([leaf.flatten(1) for leaf in drawn.values()], dim=1)


def difference_error(point: Tensor, direction: Tensor, distance: float = 1e-4) -> float:
    """Bound on a central difference of gradients: `h²/6 ‖d³∇L/dt³‖`, and rounding `ε‖∇L‖/h`."""
    gradient = torch.func.grad(mean_loss)

    def derivative(function: Any) -> Any:
        return lambda x: jvp(function, (x,), (direction,))[1]

    third = derivative(derivative(derivative(gradient)))(point).norm()
    rounding = 2**-52 * (1 + gradient(point).norm()) * len(point) / distance
    # The third derivative hardly changes over ± 1e-4: the factor 2 is for that.
    return float(2 * distance**2 / 6 * third + rounding)


class TestLargestCurvature:
    FLAT = torch.cat([leaf.flatten(1) for leaf in PARAMS.values()], dim=1)

    @pytest.mark.parametrize("iterations", [1, 2, 3])
    def test_the_first_steps_are_power_iteration_on_the_exact_hessian_of_each_chain(
        self, iterations
    ):
        compared = 0
        for seed in range(8):
            one = stack_near({n: p.detach() for n, p in MODEL.named_parameters()}, 1, seed=seed)
            flat = torch.cat([leaf.flatten() for leaf in one.values()])
            got = float(curvature(iterations, params=one))
            matrix, direction, error = hessian(mean_loss)(flat), start(one)[0], 0.0
            quotients: list[tuple[float, float]] = []
            norm = float(torch.linalg.matrix_norm(matrix, 2))
            for _ in range(iterations):
                direction = direction / direction.norm()
                product = matrix @ direction
                wrong = difference_error(flat, direction)
                quotients.append((float(direction @ product), 2 * norm * error + wrong))
                # An error in a product turns the next direction by twice its share of the length.
                error = 2 * (norm * error + wrong) / float(product.norm())
                direction = product
            if quotients[-1][0] > quotients[-1][1]:  # else the search starts again: see below
                expected, bound = max(quotients)
                assert got == pytest.approx(expected, abs=bound)
                compared += 1
        assert compared >= 3

    def test_it_converges_to_the_largest_eigenvalue_also_where_a_negative_one_is_larger(self):
        got, kinds = curvature(300), set()
        for c in range(len(got)):
            values, vectors = torch.linalg.eigh(hessian(mean_loss)(self.FLAT[c]))
            kinds.add(bool(-values[0] > values[-1]))
            assert values[-1] - values[-2] > 0.04 * (values[-1] - values[0]), "too small a gap"
            # (1 - 0.04)^(2 * 300) is 2e-11.  An error in the products enters once in the quotient,
            # and squared through the direction.
            error = difference_error(self.FLAT[c], vectors[:, -1])
            assert float(got[c]) == pytest.approx(float(values[-1]), abs=2 * error + 1e-9)
        assert kinds == {False, True}

    def test_weights_that_may_not_move_have_no_curvature(self):
        # Only part of the last layer's weights: a block of the Hessian.
        mask = torch.zeros(3, 5, dtype=torch.bool)
        mask[:2, 1:4] = True
        masks = {n: torch.zeros(p.shape[1:], dtype=torch.bool) for n, p in PARAMS.items()}
        masks["2.weight"] = mask
        chosen = torch.cat([masks[n].flatten() for n in PARAMS])
        got = curvature(100, masks)
        for c in range(2):
            block = hessian(mean_loss)(self.FLAT[c])[chosen][:, chosen]
            values, vectors = torch.linalg.eigh(block)
            begin = vectors.T @ start()[c][chosen]
            left = (begin[:-1] / begin[-1]).square() * (values[:-1] / values[-1]).abs() ** 198
            short = float(((values[-1] - values[:-1]) * left).sum())
            along = torch.zeros_like(self.FLAT[c])
            along[chosen] = vectors[:, -1]
            assert float(got[c]) == pytest.approx(
                float(values[-1]), abs=short + 3 * difference_error(self.FLAT[c], along)
            )

    def test_a_flat_loss_has_curvature_0(self):
        oracle = StackedOracle(
            network().eval().requires_grad_(False), lambda m, b: 0 * m(b[0])[:, 0]
        )
        gradient = mean_gradient(oracle, Items(TRAIN), PARAMS)
        direction = BlockNoise(torch.Generator().manual_seed(0)).normal(PARAMS)
        got = largest_curvature(gradient, PARAMS, direction=direction, masks={})
        assert got.tolist() == [0.0, 0.0]


OPTIONAL = {
    "reliability", "budget", "retrained_from", "device", "batch_size", "micro_batch", "friction",
    "estimator", "solver_curvature", "solver_steps", "solver_residual", "solver_items",
}  # fmt: skip


# Oracles and samplers are chosen apart: each once, not all pairs of them.
@pytest.mark.parametrize(
    ("sampler", "oracle"),
    [("baoab", None), ("sgld", "stacked"), ("rmsprop_sgld_frozen", "sequential"),
     ("sgnht", "live")],
)  # fmt: skip
class TestComplete:
    def test_nothing_is_left_open_and_every_choice_is_explained(self, sampler, oracle):
        asked = Settings(sampler=sampler, oracle=oracle)
        made = bif.calibrate(classification(), asked)
        got, said = made.settings, " ".join(made.explanations)
        for field in fields(got):
            if field.name not in OPTIONAL:
                assert getattr(got, field.name) is not None, field.name
        assert (got.friction is None) == ("sgld" in sampler)
        names = ["nbeta", "gamma", "chains", "step_size", "burn_in", "thin", "chunk_size"]
        for name in names if "sgld" in sampler else [*names, "friction"]:
            assert f"{name} = " in said, name
        assert "largest curvature of the mean loss" in said
        assert bif.calibrate(classification(), asked).settings == got  # the same every time

    @pytest.mark.parametrize("gradient", ["minibatch", "control_variate"])
    def test_mini_batches_get_a_size(self, sampler, oracle, gradient):
        got = bif.calibrate(
            classification(), Settings(sampler=sampler, oracle=oracle, gradient=gradient)
        ).settings
        assert got.batch_size == 20 and got.gradient == gradient


GIVEN: dict[str, Any] = {
    "nbeta": 7.0, "gamma": 3.0, "chains": 6, "draws": 11, "burn_in": 0, "thin": 4,
    "step_size": 0.0123, "friction": 0.77, "block_size": 3, "chunk_size": 9,
    "weight_decay": 0.01, "seed": 5,
}  # fmt: skip


class TestFixedSettings:
    def test_given_settings_are_respected_together(self):
        got = bif.calibrate(classification(), Settings(**GIVEN, gradient="full"))
        assert {name: getattr(got.settings, name) for name in GIVEN} == GIVEN
        assert got.explanations == (
            "movable = 43 of 43 weights: all that there are",
            "oracle = stacked: all chains of a block step as one operation",
        )

    @pytest.mark.parametrize("name", GIVEN)
    def test_each_given_setting_is_respected_alone(self, name):
        # A mass, whose measurement takes the longest, has a say in these alone.
        mass = None if name in ("step_size", "friction", "burn_in") else "identity"
        got = bif.calibrate(classification(), Settings(**{name: GIVEN[name]}, mass=mass))
        assert getattr(got.settings, name) == GIVEN[name]
        assert not any(line.startswith(f"{name} = ") for line in got.explanations)

    def test_a_live_module_has_blocks_of_one_chain(self):
        got = bif.calibrate(classification(), Settings(oracle="live", chains=3)).settings
        assert (got.block_size, got.chains) == (1, 3)

    def test_blocks_are_no_larger_than_the_number_of_chains(self):
        settings = Settings(chains=5, mass="identity")
        assert bif.calibrate(classification(), settings).settings.block_size == 5


class TestRules:
    def test_gamma_is_a_share_of_the_largest_curvature_and_the_step_fits_it(self):
        got = bif.calibrate(classification(), Settings(mass="identity"))
        (line,) = [s for s in got.explanations if s.startswith("largest curvature")]
        at_center = float(line.split(": ")[1].split(" at w*")[0])
        away = float(line.split("at w*, ")[1].split(" along")[0])
        s = got.settings
        assert s.nbeta == 200 and s.gamma is not None and s.step_size is not None
        # Explanations are printed with four digits.
        (why,) = [line for line in got.explanations if line.startswith("gamma = ")]
        # The network is not trained, and its loss curves downwards in places.
        downwards = float(why.split(", and ")[1].split(" more, since")[0])
        assert s.gamma == pytest.approx(200 * at_center / SHARE + downwards, rel=1e-3)
        k_max = 200 * max(at_center, away) + s.gamma
        assert s.step_size == pytest.approx(s.traits.default_step / math.sqrt(k_max), rel=1e-3)
        assert s.friction == pytest.approx(1.4 * math.sqrt(s.gamma), rel=1e-3)

    def test_the_posterior_does_not_depend_on_the_seed(self):
        chosen = [
            bif.calibrate(classification(), Settings(seed=seed, mass="identity")).settings
            for seed in (0, 1)
        ]
        assert chosen[0].gamma == chosen[1].gamma

    @pytest.mark.parametrize("times", [0.1, 0.5, 1.0, 2.0, 10.0])
    def test_burn_in_is_ten_relaxation_times_at_any_friction(self, times):
        given = Settings(gamma=1.0, step_size=0.1, friction=2 * times)  # critical: 2 sqrt(gamma)
        got = bif.calibrate(classification(), given).settings
        # w'' = -friction w' - k w with k = 1: the slowest root of s² + friction s + 1 = 0.
        rate = min(-complex(r).real for r in np.roots([1, 2 * times, 1]))
        assert got.burn_in is not None and abs(got.burn_in - 10 / (0.1 * rate)) <= 1

    def test_the_curvature_at_the_center_is_the_hessians(self):
        got = bif.calibrate(classification(), Settings(mass="identity"))
        (line,) = [s for s in got.explanations if s.startswith("largest curvature")]
        flat = torch.cat([p.detach().flatten() for p in network().parameters()])
        top = float(torch.linalg.eigvalsh(hessian(mean_loss)(flat))[-1])
        at_center = float(line.split(": ")[1].split(" at w*")[0])
        assert 0.95 * top < at_center < 1.001 * top  # 20 iterations from four starts

    def test_nbeta_0_needs_no_loss_and_gamma_0_no_gaussian(self):
        ball = bif.calibrate(classification(), Settings(nbeta=0.0)).settings
        unit = Settings(gamma=0.0, mass="identity")
        free = bif.calibrate(classification(), unit).settings
        assert ball.nbeta == 0 and ball.gamma is not None and ball.gamma > 0
        assert free.gamma == 0 and free.step_size is not None and free.step_size > 0

    def test_chunks_fit_the_memory_for_activations(self, monkeypatch):
        module = __import__("sys").modules["bif.calibration.calibrate"]
        monkeypatch.setitem(module._ACTIVATION_BYTES, "cpu", 16 * 1024)
        got = bif.calibrate(classification(), Settings(chains=16, mass="identity"))
        assert got.settings.chunk_size is not None and 1 <= got.settings.chunk_size < 20
        one = bif.calibrate(
            classification(), Settings(chains=16, oracle="sequential", mass="identity")
        )
        assert one.settings.chunk_size == 20  # one chain at a time

    def test_weights_that_move_alone_set_the_step(self):
        asked = Settings(gamma=1.0, mass="identity")
        all_move = bif.calibrate(classification(), asked).settings
        few = bif.calibrate(classification(), replace(asked, movable=("2.bias",))).settings
        assert few.step_size is not None and all_move.step_size is not None
        assert few.step_size > all_move.step_size

    def test_global_randomness_and_the_model_are_left_alone(self):
        before = torch.get_rng_state()
        model = network()
        kept = [p.clone() for p in model.parameters()]
        bif.calibrate(classification(model=model), Settings())
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))


class TestContradictions:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("chains", 1), ("draws", 1), ("burn_in", -1), ("thin", 0), ("block_size", 0),
         ("chunk_size", 0)],
    )  # fmt: skip
    def test_counts_that_are_too_small_are_refused(self, name, value):
        with pytest.raises(ValueError, match=rf"{name} must be at least {value + 1}, got {value}"):
            Settings(**{name: value})

    def test_a_batch_size_of_zero_is_refused(self):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            Settings(gradient="minibatch", batch_size=0)

    @pytest.mark.parametrize(
        ("name", "value"),
        list(itertools.product(("step_size", "friction"), (0.0, -1.0, math.inf, math.nan))),
    )
    def test_steps_that_are_not_positive_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
            Settings(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        list(itertools.product(("nbeta", "gamma", "weight_decay"), (-1.0, math.inf, math.nan))),
    )
    def test_negative_and_infinite_nbeta_or_gamma_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be a finite number ≥ 0"):
            Settings(**{name: value})

    def test_nbeta_and_gamma_of_zero_are_refused_together(self):
        with pytest.raises(ValueError, match="nbeta and gamma are both 0"):
            bif.calibrate(classification(), Settings(nbeta=0.0, gamma=0.0))

    def test_a_batch_size_with_full_gradients_is_refused(self):
        with pytest.raises(ValueError, match="batch_size=5 has no use with gradient='full'"):
            Settings(batch_size=5)

    def test_a_batch_larger_than_the_data_is_refused(self):
        with pytest.raises(ValueError, match="batch_size=21 exceeds the 20 train items"):
            bif.calibrate(classification(), Settings(gradient="minibatch", batch_size=21))

    def test_a_model_that_vmap_refuses_cannot_be_stacked(self):
        with pytest.raises(ValueError, match="cannot be stacked by torch.func.vmap"):
            bif.calibrate(classification(model=NotStackable()), Settings(oracle="stacked"))


def test_settings_go_into_the_manifest_field_by_field():
    settings = replace(Settings(), draws=3)
    assert settings.as_dict()["draws"] == 3
    not_given = {  # older runs lack them
        "estimator", "solver_curvature", "solver_steps", "solver_residual", "solver_items",
        "self_influence", "shards",
    }  # fmt: skip
    named = [f.name for f in fields(Settings) if f.name not in not_given]
    assert list(settings.as_dict()) == named
    assert normal(1, seed=0).dtype == torch.float64


def downhill(bend: float) -> bif.Problem:
    """Quadratic losses whose mean has the curvatures `bend` and 3."""
    hessian = torch.diag(torch.tensor([bend, 3.0], dtype=torch.float64))
    batch = normal(6, 2, seed=0), hessian.expand(6, 2, 2)
    return bif.Problem(Point(torch.zeros(2).double()), quadratic_loss, train=batch, queries=batch)


class TestDownhill:
    @pytest.mark.parametrize("bend", [-2.0, -0.5, 0.5, 5.0])
    def test_the_smallest_curvature_is_found(self, bend):
        problem = downhill(bend)
        oracle = StackedOracle(problem.evaluation_copy(torch.device("cpu")), problem.loss)
        params = {"w": torch.zeros(1, 2).double()}
        noise = BlockNoise(torch.Generator().manual_seed(0))
        gradient = mean_gradient(oracle, problem.train, params)
        largest = largest_curvature(gradient, params, direction=noise.normal(params), masks={})
        assert float(largest) == pytest.approx(max(bend, 3.0), rel=1e-3)
        got = smallest_curvature(
            gradient, params, direction=noise.normal(params), masks={}, largest=largest
        )
        assert float(got) == pytest.approx(min(bend, 3.0), rel=1e-3)

    def test_a_saddle_beyond_gamma_is_warned_of_with_the_remedy(self):
        found = bif.calibrate(downhill(-2.0), Settings(nbeta=10.0, gamma=15.0, mass="identity"))
        (warning,) = found.warnings
        assert "U curves downwards at w*" in warning and "-5" in warning
        assert "Set gamma=None, which adds 20 to its default, or set gamma=40, or" in warning

    def test_left_open_gamma_holds_the_chains_there(self):
        found = bif.calibrate(downhill(-2.0), Settings(nbeta=10.0, mass="identity"))
        assert not found.warnings and found.settings.gamma is not None
        assert found.settings.gamma == pytest.approx(10 * (3 / SHARE + 2), rel=1e-3)
        assert any("curves downwards by as much at w*" in line for line in found.explanations)

    @pytest.mark.parametrize("bend", [-2.0, 0.5])
    def test_a_gamma_above_the_downward_curvature_brings_no_warning(self, bend):
        settings = Settings(nbeta=10.0, gamma=25.0, mass="identity")
        assert bif.calibrate(downhill(bend), settings).warnings == []

    def test_chains_that_run_off_are_warned_of_with_the_remedy(self, monkeypatch):
        module = importlib.import_module("bif.calibration.pilot")
        monkeypatch.setattr(module, "short_trajectory", lambda *given, **named: None)
        found = bif.calibrate(classification(), Settings(mass="identity"))
        assert any("run off with every step" in w and "Set gamma=" in w for w in found.warnings)
        assert any(line.endswith("unknown away from it") for line in found.explanations)

    def test_the_warning_stands_beside_the_result(self):
        settings = Settings(nbeta=1.0, gamma=1.9, chains=4, draws=5, thin=1, mass="identity")
        run = bif.attribute(downhill(-2.0), settings)
        assert any("U curves downwards" in warning for warning in run.manifest["warnings"])


class TestKnownCurvature:
    def test_the_step_follows_and_nothing_is_measured(self, monkeypatch):
        module = importlib.import_module("bif.calibration.calibrate")
        monkeypatch.setattr(module, "pilot", None)  # a call would fail
        settings = Settings(nbeta=100.0, gamma=20.0, weight_decay=0.1, mass="identity")
        found = bif.calibrate(classification(), settings, curvature=3.0)
        assert found.curvature == 3.0
        assert found.settings.step_size == pytest.approx(
            settings.traits.default_step / math.sqrt(100 * 3.1 + 20)
        )
        assert any("3, as given" in line for line in found.explanations)

    def test_it_is_reported_where_it_was_measured(self):
        settings = Settings(nbeta=100.0, mass="identity")
        found = bif.calibrate(classification(), settings)
        assert found.curvature is not None and found.settings.gamma is not None
        again = bif.calibrate(
            classification(), replace(settings, gamma=found.settings.gamma),
            curvature=found.curvature,
        )  # fmt: skip
        assert again.settings == found.settings
