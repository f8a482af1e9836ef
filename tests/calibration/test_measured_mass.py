"""The Kronecker mass: the same posterior in coordinates of the mass, and fewer steps to forget."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import exp, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from bif import Problem, Settings, attribute, tensors
from bif.calibration import measured_mass as measured
from bif.calibration.calibrate import calibrate
from bif.calibration.measured_mass import measured_mass, whitened_curvature
from bif.losses import squared_error
from bif.samplers import BAOAB
from bif.sampling.mass_matrix import KroneckerMass
from bif.sampling.rng import BlockNoise, generator
from exact_problems import mutate_baoab

CPU = torch.device("cpu")


def random_mass(seed: int = 0) -> KroneckerMass:
    """For a leaf `[3, 4]` rotated on both sides and a leaf `[2]` that is only scaled."""
    source = torch.Generator().manual_seed(seed)

    def rotation(size: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64))[0]

    scale = {
        "w": 0.5 + torch.rand(3, 4, generator=source, dtype=torch.float64),
        "b": torch.tensor([[0.5, 2.0]], dtype=torch.float64),
    }
    return KroneckerMass({"w": rotation(3)}, {"w": rotation(4)}, scale)


def dense(mass: KroneckerMass) -> torch.Tensor:
    """`M^(-1/2)` as a matrix over both leaves, from its action on unit vectors."""
    eye = torch.eye(14, dtype=torch.float64)
    made = mass.to_weights({"w": eye[:, :12].reshape(14, 3, 4), "b": eye[:, 12:]})
    return torch.cat([made["w"].flatten(1), made["b"]], dim=1).T


def test_to_velocity_is_the_transpose_of_to_weights():
    mass, root = random_mass(), dense(random_mass())
    force = {"w": torch.randn(5, 3, 4, dtype=torch.float64),
             "b": torch.randn(5, 2, dtype=torch.float64)}  # fmt: skip
    found = mass.to_velocity(force)
    flat = torch.cat([force["w"].flatten(1), force["b"]], dim=1)
    expected = flat @ root
    assert torch.allclose(found["w"].flatten(1), expected[:, :12], atol=1e-12)
    assert torch.allclose(found["b"], expected[:, 12:], atol=1e-12)


@pytest.mark.parametrize("wrong", [False, True], ids=["mass", "noise of unit mass"])
def test_the_stationary_law_of_a_quadratic_is_exact_with_a_mass(wrong: bool):
    """Case: U = ½ wᵀ K w with K in the basis of the mass; Var(M^(1/2) w) = 1/k at any step."""
    mass = random_mass()
    root = dense(mass)
    inverse_root = torch.linalg.inv(root)
    round_curvature = torch.linspace(0.3, 3.0, 14, dtype=torch.float64)
    hessian = inverse_root.T @ torch.diag(round_curvature) @ inverse_root

    sampler = BAOAB(0.9, 0.7, mass)
    chains = 4000
    noise = BlockNoise(generator(1, 0, "noise", device=CPU))
    params = {"w": torch.zeros(chains, 3, 4, dtype=torch.float64),
              "b": torch.zeros(chains, 2, dtype=torch.float64)}  # fmt: skip
    state = sampler.init(params, noise)
    for _ in range(150):
        flat = torch.cat([state.params["w"].flatten(1), state.params["b"]], dim=1)
        force = flat @ hessian
        gradient = {"w": force[:, :12].reshape(-1, 3, 4), "b": force[:, 12:]}
        if wrong:  # a mutant: the noise of unit mass, the kick and drift of another
            state = _mutant(state, mass, gradient, noise, sampler)
        else:
            state = sampler.step(state, gradient, noise)
    flat = torch.cat([state.params["w"].flatten(1), state.params["b"]], dim=1)
    whitened = flat @ inverse_root.T
    variance = whitened.var(dim=0) * round_curvature
    error = sqrt(2 / chains)
    off = float((variance - 1).abs().max())
    assert (off > 8 * error) if wrong else (off < 5 * error)


def _mutant(state, mass, gradient, noise, sampler):
    h, c = sampler.step_size, sampler.velocity_kept
    velocity = tensors.add_(state.velocity, mass.to_weights(mass.to_velocity(gradient)), -h)
    drift = tensors.copied(velocity)
    tensors.mul_(velocity, c)
    tensors.add_(velocity, noise.normal(velocity), sqrt(1 - c * c))
    return type(state)(tensors.add_(state.params, tensors.add_(drift, velocity), h / 2), velocity)


def steep_problem(n: int = 60) -> Problem:
    """Linear regression `[3 outputs]` on inputs whose scales span a factor of 100."""
    source = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=source, dtype=torch.float64))[0]
    scales = torch.logspace(0, -1.5, 6, dtype=torch.float64)
    x = torch.randn(n, 6, generator=source, dtype=torch.float64) * scales @ turn
    model = nn.Linear(6, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 6, generator=source, dtype=torch.float64))
    y = model(x).detach() + 0.1 * torch.randn(n, 3, generator=source, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return Problem(model, squared_error, train=(x, y), queries=(x[:5], y[:5]))


SETTINGS = Settings(nbeta=600.0, gamma=0.05, oracle="stacked", chunk_size=60, chains=8)


def test_the_measured_mass_makes_a_kronecker_hessian_round():
    """Linear regression: H = I ⊗ XᵀX/n is a Kronecker product: 1 in the coordinates of the mass."""
    problem = steep_problem()
    curvatures = torch.linalg.eigvalsh(
        problem.train.data[0].T @ problem.train.data[0] / problem.num_train
    )
    found = whitened_curvature(problem, SETTINGS)
    assert curvatures.max() / curvatures.min() > 300
    # 64 random products leave an eighth of scatter in each of 18 directions.
    assert 0.8 < found < 1.8


class TestRunningOff:
    """No trajectory stays near w*, as where the loss is far from quadratic."""

    @pytest.fixture(autouse=True)
    def all_trajectories(self, monkeypatch):
        monkeypatch.setattr(measured, "short_trajectory", lambda *given, **named: None)

    def test_no_mass_is_chosen_whose_steps_are_not_known(self):
        found = calibrate(steep_problem(), Settings(nbeta=600.0, gamma=0.05))
        assert found.settings.mass == "identity"
        assert any("chains run off w* with every step" in line for line in found.explanations)

    def test_a_mass_asked_for_whose_chains_run_off_is_refused(self):
        with pytest.raises(ValueError, match="run off w\\* with every step .* Leave mass open"):
            calibrate(steep_problem(), Settings(nbeta=600.0, gamma=0.05, mass="kronecker"))


def test_where_a_solver_for_eigenvectors_gives_up_another_finds_them(monkeypatch):
    solve, calls = torch.linalg.eigh, []

    def gives_up_first(matrix: torch.Tensor):
        calls.append(matrix)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("did not converge")
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", gives_up_first)
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    found = measured._rotation(matrix)
    values = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(found @ values @ found.T, matrix)
    assert len(calls) == 2


def test_the_mass_does_not_depend_on_the_seed_and_leaves_global_randomness_alone():
    problem, again = steep_problem(), steep_problem()
    before = torch.get_rng_state()
    one = measured_mass(problem, SETTINGS)
    other = measured_mass(again, replace(SETTINGS, seed=7))
    # The last bits of two problems' w* may differ.
    assert torch.allclose(one.scale["weight"], other.scale["weight"], rtol=1e-6)
    assert torch.allclose(one.right["weight"], other.right["weight"], atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)


def test_calibration_takes_a_mass_where_curvatures_span_far_and_says_why():
    steep = calibrate(steep_problem(), Settings(gamma=0.05, seed=1))
    assert steep.settings.mass == "kronecker"
    assert any(line.startswith("mass = kronecker") for line in steep.explanations)
    # gamma as large as the steepest direction: nothing to gain.
    flat = calibrate(steep_problem(), Settings(gamma=60.0, seed=1))
    assert flat.settings.mass == "identity"
    assert any(line.startswith("mass = identity") for line in flat.explanations)


@pytest.mark.parametrize("given", [{"step_size": 0.01}, {"friction": 1.0}, {"sampler": "sgld"}])
def test_a_step_given_in_units_of_weights_keeps_unit_mass(given: dict):
    assert calibrate(steep_problem(), Settings(gamma=0.05, **given)).settings.mass == "identity"


def exact_scores(problem: Problem, *, nbeta: float, gamma: float) -> np.ndarray:
    """`-(g_q S g_i + tr(H_q S H_i S) / 2)` of the regression at its minimum, `[Q, N]`."""
    (x, y), (asked, wanted) = problem.train.data, problem.query_groups["query"].data
    (weight,) = (p.detach() for p in problem.model.parameters())
    S = torch.linalg.inv(nbeta * x.T @ x / len(x) + gamma * torch.eye(6, dtype=torch.float64))
    inner = asked @ S @ x.T
    residuals = (asked @ weight.T - wanted) @ (x @ weight.T - y).T
    return -(residuals * inner + 1.5 * inner.square()).numpy()


@cache
def steep_case() -> tuple[Problem, Settings]:
    """`steep_problem` and settings that are complete, for every seed."""
    problem = steep_problem()
    given = Settings(nbeta=600.0, gamma=0.05, mass="kronecker", chains=32, draws=150)
    return problem, calibrate(problem, given).settings


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [False, True], ids=["noise", "halved noise"])
def test_scores_with_a_mass_are_exact(wrong: bool, monkeypatch: pytest.MonkeyPatch):
    """U is quadratic, where BAOAB has no bias: over seeds the slope on the exact scores is 1."""
    (problem, given), slopes = steep_case(), []
    if wrong:
        mutate_baoab(monkeypatch, noise=sqrt(0.5))
    exact = exact_scores(problem, nbeta=600.0, gamma=0.05)
    for seed in range(4):
        scores = attribute(problem, replace(given, seed=seed)).influence.dataset["influence"]
        slopes.append(float((scores.values[0] * exact).sum() / (exact**2).sum()))
    error = float(np.std(slopes, ddof=1)) / sqrt(len(slopes))
    assert error < 0.015, "the runs are too short to tell"
    # Student's t of four slopes exceeds 7 by chance in 1 of 170 cases.
    assert (abs(float(np.mean(slopes)) - 1) > 7 * error) is wrong


def test_a_mass_costs_fewer_steps():
    problem, given = steep_problem(), Settings(gamma=0.05, chains=32, seed=2)
    runs = {
        "identity": attribute(problem, replace(given, mass="identity", draws=40)),
        "kronecker": attribute(problem, replace(given, mass="kronecker", draws=80)),
    }
    steps = {mass: float(run.summary["autocorrelation_steps"]) for mass, run in runs.items()}
    assert steps["kronecker"] < 0.5 * steps["identity"]
    assert runs["kronecker"].summary["trusted"]


def test_a_weight_that_may_not_move_stays_put_with_a_mass():
    problem = steep_problem()
    settings = calibrate(
        problem, Settings(gamma=0.05, mass="kronecker", movable=("weight[0:2]",))
    ).settings
    mass = measured_mass(problem, settings)
    assert "weight" not in mass.left
    moved = mass.to_weights({"weight": torch.zeros(1, 3, 6, dtype=torch.float64)})
    assert not moved["weight"].any()


def test_long_sides_are_not_rotated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bif.calibration.measured_mass.LARGEST_ROTATION", 4)
    mass = measured_mass(steep_problem(), SETTINGS)
    assert set(mass.left) == {"weight"}
    assert not mass.right


@pytest.mark.parametrize("other", [{"sampler": "sgld"}, {"oracle": "live"}])
def test_a_mass_elsewhere_is_refused(other: dict):
    with pytest.raises(ValueError, match=r"mass='kronecker' needs .*\(baoab\)"):
        Settings(mass="kronecker", **other)


def test_velocity_kept_is_the_same_with_a_mass():
    assert BAOAB(0.5, 0.4, random_mass()).velocity_kept == exp(-0.2)
