"""Plans by sizes alone: the formulas of every run, against measurements and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bif import store
from bif.calibration.memory_plan import uniform_weight_bytes, weight_bytes
from bif.calibration.peak_memory import PeakBytes
from bif.estimate.covariance import estimate_covariance
from bif.estimate.dataset import ScoreAxes, influence_dataset
from bif.estimate.traces import TraceBlock
from bif.runs.retention import forecast, recorded_bytes
from bif.runs.size_plan import Sizes, plan_sizes
from bif.sampling.factory import make_posterior
from command_line import failed
from small_problems import TINY, classification

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SMALL = Sizes(items=1_000, tokens=10, model_params=10**6, queries=100, gpus=4, gpu_flops=1e12)
SGLD = bif.Settings(
    oracle="live",
    sampler="sgld",
    gradient="minibatch",
    chains=8,
    draws=50,
    burn_in=10,
    thin=2,
    batch_size=5,
)


def test_time_is_that_of_the_passes_by_hand():
    found = plan_sizes(SMALL, SGLD)
    item = 2 * 1e6 * 10 / 1e12  # seconds of a forward pass
    chain = (10 + 49 * 2) * 3 * item * 5 + 50 * item * 1_100
    assert found.seconds == pytest.approx(2 * chain)  # 8 chains on 4 GPUs
    assert found.device.record == pytest.approx(1_100 * item)
    shares = found.shares
    assert list(shares) == ["scoring items", "scoring queries", "steps"]
    assert shares["scoring items"] == pytest.approx(50 * item * 1_000 / chain)
    assert sum(shares.values()) == pytest.approx(1)
    full = plan_sizes(SMALL, replace(SGLD, gradient="full", batch_size=None))
    assert full.device.step == pytest.approx(3 * 1_000 * item)
    assert full.device.record == pytest.approx(100 * item)  # the items' losses come along


def test_seconds_a_draw_are_those_measured_within_a_fifth():
    """GPT-NeoX of 160 million to 12 billion weights on an H100, one step a draw."""
    rows = json.loads((RESULTS / "scaling-2026-11-28.json").read_text())["rows"]
    measured = {}
    for row in rows:
        if row["method"] == "bif" and row["weights"] > 1.5e8 and "seconds_a_draw" in row:
            fastest = measured.get(row["weights"], math.inf)
            measured[row["weights"]] = min(fastest, row["seconds_a_draw"])
    assert len(measured) == 7
    for weights, seconds in measured.items():
        sizes = Sizes(items=128, tokens=512, model_params=int(weights), queries=16)
        device = plan_sizes(sizes, replace(SGLD, memory="lean", batch_size=16)).device
        assert abs((device.step + device.record) / seconds - 1) < 0.2, weights


def test_bytes_are_those_that_forecast_a_run():
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)).float()
    inputs, classes = torch.ones(20, 4), torch.ones(20).long()
    problem = classification(
        model=model, train=(inputs, classes), queries=(inputs[:5], classes[:5]),
        observables=[bif.MARGIN],
    )  # fmt: skip
    sizes = Sizes(items=20, tokens=1, model_params=35, queries=5)
    for keep in ("traces", "sums", "weights"):
        settings = plan_sizes(sizes, SGLD, keep=keep).settings
        posterior = make_posterior(problem, replace(settings, nbeta=1.0, gamma=1.0))
        assert plan_sizes(sizes, SGLD, keep=keep).disk == forecast(
            problem, posterior, settings, keep
        )
    for changed in ({}, {"sampler": "baoab", "friction": 1.0}, {"memory": "lean"}):
        settings = replace(SGLD, **changed)
        got, there = uniform_weight_bytes(35, settings), weight_bytes(problem, settings)
        if settings.memory != "plain":  # rows of a step are few in a large model alone
            there = replace(there, step=0)
        assert got == there


def test_results_and_the_sums_behind_them_take_what_is_forecast(tmp_path):
    source = torch.Generator().manual_seed(0)
    train, query = (torch.randn(4, 6, n, generator=source) for n in (1_000, 80))
    traces = bif.LossTraces((TraceBlock((0, 1, 2, 3), train, query),))
    sizes = recorded_bytes(rows=80, columns=1_000, weights=0, settings=TINY, keep="traces")
    with PeakBytes() as counter:
        covariance = estimate_covariance(traces)
    assert abs(counter.peak / sizes["scores"] - 1) < 0.05
    axes = ScoreAxes(
        observables={"loss": "lower", "margin": "higher"}, nbeta=1.0,
        query_ids=[f"q-{i}" for i in range(40)], train_ids=[f"row-{i}" for i in range(1_000)],
    )  # fmt: skip
    dataset = influence_dataset(covariance, axes, num_chains=4, num_draws=24)
    store.save_dataset(dataset, tmp_path / "influence.zarr")
    files = [file for file in (tmp_path / "influence.zarr").rglob("*") if file.is_file()]
    assert abs(sum(file.stat().st_size for file in files) / sizes["results"] - 1) < 0.2


def test_draws_tell_correlations_from_the_largest_by_chance():
    found = plan_sizes(replace(SMALL, items=2_000), SGLD)
    assert found.total_draws == 400
    source = np.random.default_rng(0)
    by_chance = [
        np.abs(source.standard_normal((2_000, 400)) @ source.standard_normal(400)).max() / 400
        for _ in range(20)
    ]
    # The largest of N is spread around its bound by about 1 / sqrt(2 ln(N) T), here .013.
    assert abs(np.mean(by_chance) - found.distinguishable) < 0.03


def test_a_model_that_exceeds_a_gpu_is_held_by_several():
    sizes = replace(SMALL, gpu_bytes=7e6)  # plain takes 20 bytes a weight
    found = plan_sizes(sizes, SGLD)
    assert found.shards == 3 and found.rounds == 8  # one group of three of the four GPUs
    assert found.device.record == pytest.approx(plan_sizes(SMALL, SGLD).device.record / 3)
    passes = 16 + 2 + 2 * (10 + 49 * 2) / 50  # chunks of 64, and two for each step
    assert found.gathered == pytest.approx(4 * 1e6 * (2 / 3) * passes)
    assert plan_sizes(SMALL, replace(SGLD, shards=2)).rounds == 4
    assert plan_sizes(SMALL, SGLD).gathered == 0
    assert any("of weights to each GPU" in line for line in found.in_words())


def test_chains_are_one_for_each_group_of_gpus():
    assert plan_sizes(replace(SMALL, gpus=256)).settings.chains == 256
    assert plan_sizes(SMALL).settings.chains == 16


class TestLimits:
    def test_none_is_reached(self):
        (line,) = plan_sizes(SMALL, SGLD).limits(60.0)
        assert line.startswith("limit: none; of 1 min it takes")

    def test_time_names_what_fits_in_two_stages(self):
        found = plan_sizes(SMALL, SGLD)
        budget = found.seconds / 2
        fit = found.items_within(budget)
        assert 0 < fit < 1_000
        within = [plan_sizes(replace(SMALL, items=n), SGLD).seconds for n in (fit, fit + 1)]
        assert within[0] <= budget < within[1]
        (line,) = found.limits(budget)
        assert line.startswith("limit: time: ") and f"the best {fit:,} are then scored" in line
        one_pass = 2 * 1e6 * 10 * 1_000 / 4e12
        assert f"a forward pass over all items takes {one_pass:.3g} s" in line
        assert "more GPUs" in line
        assert "more GPUs" not in plan_sizes(replace(SMALL, gpus=8), SGLD).limits(1e-9)[0]
        assert found.items_within(1e-9) == 0

    def test_memory_comes_in_the_order_of_its_excess(self):
        vast = replace(SMALL, items=10**9, queries=10**5, model_params=10, tokens=1)
        lines = plan_sizes(vast, SGLD).limits(1e9)
        assert [line.split(":")[0] for line in lines] == ["limit", "then"]
        assert "of scores. Knobs: top" in lines[0] and "of traces. Knobs: keep='sums'" in lines[1]
        few = replace(SMALL, gpu_bytes=1e6)
        assert (
            "memory of the GPUs: a model needs 20, and there are 4"
            in plan_sizes(few, SGLD).limits(1e9)[0]
        )


class TestCommand:
    SIZES = ("--items", "1e9", "--tokens", "2048", "--model-params", "7e9", "--queries", "1000")

    def test_the_internet_is_planned(self, call):
        code, out, _ = call("plan", *self.SIZES, "--gpus", "256")
        names = [line.split(":")[0].split(",")[0] for line in out.strip().splitlines()]
        assert code == 0 and names == [
            "draws", "time", "memory of a GPU", "memory of the host", "disk", "network",
            "cost drivers", "limit", "then", "then",
        ]  # fmt: skip

    def test_a_budget_moves_the_limit(self, call):
        hour, year = (
            call("plan", *self.SIZES, "--budget", time)[1].split("the best ")[1]
            for time in ("1h", "9000h")
        )
        assert int(hour.split()[0].replace(",", "")) < int(year.split()[0].replace(",", ""))

    @pytest.mark.parametrize(("given", "message"), [
        (("--items", "10"), "needs both --items and --model-params"),
        (("--items", "10.5", "--model-params", "5"), "items is 10.5: expected a whole number"),
        (("--items", "-1", "--model-params", "5"), "items is -1"),
        (("--items", "10", "--model-params", "5", "--gpus", "0"), "gpus is 0"),
        (("--items", "10", "--model-params", "5", "--tokens", "both"), "--tokens both is of a"),
        (("x.py:f", "--items", "10", "--model-params", "5"), "name no problem beside them"),
        (("x.py:f", "--tokens", "5"), "--tokens 5 is for a plan by sizes"),
    ])  # fmt: skip
    def test_sizes_that_cannot_be_are_refused(self, call, given, message):
        assert message in failed(call("plan", *given))
