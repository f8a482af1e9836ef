"""Runs that must not be trusted, planted one by one, and one that may be."""

from __future__ import annotations

import importlib
import signal
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bif
from bif.calibration.remedies import Remedies
from bif.estimate.diagnostics import convergence, diagnose
from bif.estimate.traces import LossTraces
from bif.report import render_report
from bif.runs.gates import Gate
from bif.runs.records import Summary
from bif.runs.summary import figures_of, judge
from bif.sampling.rng import ShuffledOrder
from bif.sampling.sampler_checks import Checks, not_measured
from bif.store.signals import Preempted
from complete_settings import complete
from same_bits import signalled
from small_problems import classification, filled, labelled, normal

HEALTHY = bif.Settings(
    nbeta=60.0, gamma=20.0, chains=16, draws=150, burn_in=60, thin=2, step_size=0.1, friction=6.0
)  # fmt: skip
COMPLETE = complete(HEALTHY)


def failed(run: bif.Run) -> set[str]:
    """Names of the gates that failed; the manifest, the summary and the warnings agree on them."""
    names = {gate["name"] for gate in run.manifest["gates"] if gate["failed"]}
    assert run.summary["trusted"] is (not names)
    for name in names:
        assert any(w.startswith(f"not trusted, {name}: ") for w in run.manifest["warnings"])
    assert ("NOT TRUSTED" in repr(run)) is bool(names)
    return names


def page(run: bif.Run) -> str:
    """The report."""
    return render_report(
        run.influence.dataset,
        diagnostics=run.diagnostics,
        summary=run.summary,
        manifest=run.manifest,
    )


@pytest.fixture(scope="module")
def healthy() -> bif.Run:
    return bif.attribute(classification(), HEALTHY)


def test_a_healthy_run_is_trusted(healthy):
    assert failed(healthy) == set()
    assert "not trusted" not in page(healthy)
    listed = {gate["name"] for gate in healthy.manifest["gates"]}
    assert listed == {
        "mixing", "drift", "detrending", "outliers", "independence", "twins", "divergence",
        "reliability", "step", "virial", "dilation", "temperature", "gradient noise", "randomness",
    }  # fmt: skip


def test_its_figures_are_those_of_the_posterior(healthy):
    s = healthy.summary
    assert abs(s["virial"] - 1) < 4 * s["virial_error"]
    assert abs(s["kinetic"] - 1) < 4 * s["kinetic_error"]
    assert abs(s["dilation"] - 1) < 4 * s["dilation_error"] < 0.4
    assert s["heat"] == 0 and s["randomness"] == 0
    assert 0.02 < s["significant_share_null"] < 0.09 < s["significant_share"]
    assert s["autocorrelation_steps"] == pytest.approx(2 * s["draws"] / s["ess_median"])


def test_a_step_that_is_too_large_fails_its_gate():
    settings = replace(
        HEALTHY, sampler="sgld", friction=None, chains=48, draws=50, step_size=0.001, thin=60,
        burn_in=600,
    )  # fmt: skip
    assert failed(bif.attribute(classification(), settings)) == set()
    large = replace(settings, step_size=0.02, thin=4)
    assert "step" in failed(bif.attribute(classification(), large))


def test_chains_without_burn_in_fail_the_gate_of_drift():
    settings = replace(HEALTHY, burn_in=0, thin=1, draws=30, step_size=0.02)
    assert "drift" in failed(bif.attribute(classification(), settings))


def test_mini_batches_that_chains_share_fail_the_gate_of_independence(monkeypatch):
    settings = replace(
        HEALTHY, gradient="minibatch", batch_size=10, chains=8, draws=400, friction=8.0, thin=3
    )
    # Their noise is hot, but each chain has its own.
    hot = failed(bif.attribute(classification(), settings))
    assert "gradient noise" in hot and "independence" not in hot
    own = ShuffledOrder.indices

    def shared(self: ShuffledOrder, step: int) -> torch.Tensor:
        return own(self, step)[:1].expand(self.num_chains, -1)

    monkeypatch.setattr(ShuffledOrder, "indices", shared)
    assert "independence" in failed(bif.attribute(classification(), settings))


class AlwaysDropout(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(F.dropout(x, 0.5, training=True))


def test_dropout_that_is_left_on_is_refused_before_any_sampling():
    with pytest.raises(ValueError, match="changes from one evaluation to the next.*Dropout"):
        classification(model=filled(AlwaysDropout()))


def test_dropout_that_the_first_items_do_not_show_is_noticed(monkeypatch):
    def noisy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        losses = bif.losses.cross_entropy(model, batch)
        return losses + torch.rand_like(losses) if len(losses) > 3 else losses

    settings = replace(HEALTHY, oracle="sequential", chains=4, draws=40)
    with pytest.raises(ValueError, match=r"two passes at w\* gave different values"):
        bif.attribute(classification(loss=noisy), settings)
    monkeypatch.setattr(
        importlib.import_module("bif.calibration.calibrate"), "check_items", lambda *_: None
    )
    assert "randomness" in failed(bif.attribute(classification(loss=noisy), settings))


def test_gradient_noise_that_is_too_hot_fails_its_gates():
    settings = replace(HEALTHY, gradient="minibatch", batch_size=2, nbeta=400.0, step_size=0.04)
    found = failed(bif.attribute(classification(), settings))
    assert {"gradient noise", "temperature", "virial"} <= found
    controlled = replace(settings, gradient="full", batch_size=None)
    assert not failed(bif.attribute(classification(), controlled)) & {"gradient noise", "virial"}


def test_a_run_whose_chains_mostly_diverge_fails():
    settings = replace(HEALTHY, step_size=0.45, nbeta=600.0, draws=40, chains=12)
    try:
        run = bif.attribute(classification(), settings)
    except RuntimeError as error:
        assert "chains survived" in str(error)
    else:
        assert failed(run) & {"divergence", "step"}


# --- On traces alone ------------------------------------------------------------------------------


def autoregressive(chains: int, draws: int, items: int, *, kept: float = 0.8, seed: int = 0):
    """Independent AR(1) traces `[C, D, N]` with variance 1, started in their law."""
    noise = normal(chains, draws, items, seed=seed)
    x = noise.clone()
    for d in range(1, draws):
        x[:, d] = kept * x[:, d - 1] + (1 - kept**2) ** 0.5 * noise[:, d]
    return x


def judged(train: torch.Tensor) -> set[str]:
    traces = LossTraces.from_arrays(train, train[..., :3] + 0.1)
    ess, rhat = convergence(traces, num_items=8)
    figures = Summary(
        rhat_max=float(np.nanmax(rhat)), ess_median=float(np.nanmedian(ess)),
        chains=len(train), draws=train[..., 0].numel(), reliability=1.0,
    )  # fmt: skip
    return {gate.name for gate in judge(traces, figures).gates if gate.failed}


@pytest.mark.parametrize("chains", [4, 16, 64])
def test_independent_stationary_traces_pass(chains):
    assert [judged(autoregressive(chains, 600, 30, seed=seed)) for seed in range(8)] == [set()] * 8


def test_a_chain_that_drifts_is_an_outlier():
    train = autoregressive(16, 600, 30)
    train[5] += torch.linspace(0, 3, 600).unsqueeze(1)
    assert "outliers" in judged(train)


def test_a_chain_in_another_basin_fails_the_run():
    train = autoregressive(16, 600, 30)
    train[5] += 5
    assert {"outliers", "mixing"} <= judged(train)


def test_a_duplicated_chain_fails_the_gate_of_twins():
    train = autoregressive(16, 600, 30)
    train[5] = train[11]
    assert judged(train) == {"twins"}


def test_a_drift_that_all_chains_share_fails_the_run():
    train = autoregressive(16, 600, 30)
    train += torch.linspace(0, 2, 600).view(1, -1, 1)
    assert "drift" in judged(train)


def test_chains_that_share_their_noise_fail_the_gate_of_independence():
    train = autoregressive(16, 600, 30) + autoregressive(1, 600, 30, seed=9)
    assert judged(train) == {"independence"}


def test_chains_shorter_than_their_memory_fail_the_run():
    assert {"detrending", "mixing"} <= judged(autoregressive(16, 60, 30, kept=0.99))


def test_a_gate_that_could_not_be_measured_fails_and_says_so():
    nothing = not_measured()
    traces = LossTraces.from_arrays(*[autoregressive(8, 200, 10)] * 2)
    figures = Summary(rhat_max=1.0, ess_median=800.0, chains=8, draws=1600, reliability=1.0)
    found = judge(traces, figures, checks=nothing)
    undecided = {g.name: g.reason for g in found.gates if g.failed}
    assert set(undecided) == {"virial", "randomness"}
    assert "could not be measured" in undecided["randomness"]
    assert any("no room to measure" in warning for warning in found.warnings)


def test_no_figure_that_is_not_a_number_passes():
    traces = LossTraces.from_arrays(*[autoregressive(8, 200, 10)] * 2)
    figures = Summary(chains=8, draws=1600)
    failures = {g.name for g in judge(traces, figures).gates if g.failed}
    assert failures == {"mixing", "reliability"}


def test_losses_that_never_move_are_not_trusted():
    still = torch.ones(8, 50, 10).double()
    traces = LossTraces.from_arrays(still, still[..., :2])
    figures = figures_of(traces, diagnose(traces, center_mean_loss=1.0), thin=1, seconds=1.0)
    failures = {g.name for g in judge(traces, figures).gates if g.failed}
    assert {"mixing", "reliability"} <= failures


def test_a_query_that_has_not_mixed_is_seen_among_items_that_have():
    train = autoregressive(16, 600, 300)
    query = train[..., :3].clone()
    query[..., 1] += 2 * normal(16, 1, seed=5)
    traces = LossTraces.from_arrays(train, query)
    figures = figures_of(traces, diagnose(traces, center_mean_loss=1.0), thin=1, seconds=1.0)
    assert figures["rhat_max"] > 1.5
    assert "mixing" in {g.name for g in judge(traces, figures).gates if g.failed}


def test_five_items_of_a_thousand_that_have_not_mixed_are_seen():
    train = autoregressive(16, 200, 1000)
    train[..., 400:405] += 2 * normal(16, 1, 1, seed=5)
    traces = LossTraces.from_arrays(train, train[..., :2])
    figures = figures_of(traces, diagnose(traces, center_mean_loss=1.0), thin=1, seconds=1.0)
    assert figures["rhat_max"] > 1.5


def test_a_sampler_that_does_not_sample_the_posterior_says_so():
    settings = replace(HEALTHY, sampler="rmsprop_sgld", friction=None, step_size=1e-3)
    run = bif.attribute(classification(), settings)
    assert "sampler" in failed(run)
    assert any("Set sampler='rmsprop_sgld_frozen'" in w for w in run.manifest["warnings"])


@pytest.mark.parametrize(
    ("figures", "fails"),
    [({"virial": 14.3, "virial_error": 5.0}, {"virial"}),
     ({"virial": 1.3, "virial_error": 0.2}, {"virial"}),
     ({"virial": 1.02, "virial_error": 0.2}, {"virial"}),
     ({"virial": 1.02, "virial_error": 0.02}, set()),
     ({"virial": np.nan, "virial_error": np.nan}, {"virial"}),
     ({"dilation": 1.45, "dilation_error": 0.3}, set()),
     ({"dilation": 1.15, "dilation_error": 0.01}, {"dilation"}),
     ({"dilation": 1.15, "dilation_error": 0.04}, set())],
)  # fmt: skip
def test_no_noise_excuses_an_identity_that_is_missed(figures, fails):
    fine = Checks(1.0, 0.01, 1.0, 0.01, 1.0, 0.2, 0.0, 0.1, 0.0, 1.0, 0.01)
    traces = LossTraces.from_arrays(*[autoregressive(8, 200, 10)] * 2)
    about = Summary(rhat_max=1.0, ess_median=800.0, chains=8, draws=1600, reliability=1.0)
    found = judge(traces, about, checks=replace(fine, **figures))
    assert {g.name for g in found.gates if g.failed} == fails


def test_remedies_name_numbers_in_the_coordinates_of_the_run():
    white = Remedies(replace(COMPLETE, mass="kronecker", thin=2))
    assert white.smaller_step() == "set step_size=0.05, mass='kronecker', burn_in=120 and thin=4"
    fix = Remedies(COMPLETE)
    assert fix.smaller_step(4.0) == "set step_size=0.025, burn_in=240 and thin=8"
    assert fix.tighter_ball() == "set gamma=80"
    assert Remedies(replace(COMPLETE, gamma=0.0)).tighter_ball() == "set gamma=None"
    forecast = Remedies(COMPLETE, asked=bif.Settings(budget="1m", burn_in=60))
    assert forecast.more_draws(2.0) == "set draws=300 and budget=None"
    assert forecast.tighter_ball(2.0) == "set gamma=40 and burn_in=None"
    batches = Remedies(replace(COMPLETE, gradient="minibatch", batch_size=10), num_items=60)
    assert batches.larger_batches(4.0) == "set batch_size=40"
    assert batches.larger_batches(8.0) is None
    assert batches.all_items() == "set gradient='full' and batch_size=None"


def test_the_report_of_a_run_that_is_not_trusted_says_so_first():
    settings = replace(HEALTHY, burn_in=0, thin=1, draws=30, step_size=0.02)
    text = page(bif.attribute(classification(), settings))
    body = text[text.index("<body") :]
    assert body.index("This run is not trusted") < body.index("<h1>")
    assert '<span class="verdict poor">failed</span>' in text


def test_a_center_that_is_no_minimum_is_a_warning_and_no_failure():
    settings = replace(HEALTHY, draws=20)
    run = bif.attribute(classification(train=labelled(400, seed=1)), settings)
    assert run.summary["center_gradient"] > 1
    assert any("no minimum of U" in warning for warning in run.manifest["warnings"])
    assert all(isinstance(Gate(**gate), Gate) for gate in run.manifest["gates"])


def test_a_run_that_was_interrupted_is_judged_as_one_that_was_not(tmp_path, healthy):
    with signalled(signal.SIGTERM, block=0, step=200), suppress(Preempted):
        bif.attribute(classification(), HEALTHY, out=tmp_path)
    run = bif.attribute(classification(), HEALTHY, out=tmp_path)
    assert run.manifest["gates"] == healthy.manifest["gates"]


def test_an_extended_run_is_checked_once_more_and_one_that_only_answers_is_not(tmp_path):
    problem, settings = classification(), replace(HEALTHY, draws=20)
    before = bif.attribute(problem, settings, out=tmp_path).summary["virial"]
    asked = bif.extend(tmp_path, problem.extended(queries={"more": labelled(3, seed=7)}))
    assert asked.summary["virial"] == before
    longer = bif.extend(tmp_path, problem.extended(queries={"more": labelled(3, seed=7)}), draws=30)
    assert longer.summary["virial"] != before
    whole = bif.attribute(problem, replace(settings, draws=30))
    assert longer.summary["virial"] == whole.summary["virial"]


@pytest.mark.parametrize("most", [43 * 4, 43 * 40])
def test_fewer_chains_and_batches_of_a_large_model_are_checked(monkeypatch, most, healthy):
    # the network has 43 weights
    monkeypatch.setattr("bif.sampling.sampler_checks._MOST_NUMBERS", most)
    settings = replace(HEALTHY, gradient="minibatch", batch_size=10, chains=8, draws=20)
    s = bif.attribute(classification(), settings).summary
    assert np.isnan(s["heat"]) == (most == 43 * 4)
    assert s["virial"] > 0 and s["virial_error"] > 0  # of all draws, which needs no room


def test_without_memory_for_the_checks_the_run_is_kept_and_says_so(monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("bif.runs.block_run.check", full)
    run = bif.attribute(classification(), replace(HEALTHY, draws=20))
    assert any("no memory left to check" in warning for warning in run.manifest["warnings"])
    assert "randomness" in failed(run) and run.summary["virial"] > 0
