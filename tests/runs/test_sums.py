"""Runs that keep sums in the place of traces: the same scores, and what they cannot answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load, save
from torch import Tensor

import bif
from bif import calibrate
from bif.estimate.covariance import (
    Covariance,
    CovarianceSums,
    GroupSums,
    estimate_covariance,
)
from bif.estimate.sums import BlockSums
from bif.estimate.traces import LossTraces, chain_groups
from bif.runs.block_recorder import BlockRecorder, Subset
from bif.runs.recording import Context, Recording, deal
from bif.runs.retention import Keep, forecast
from bif.runs.writer import Writer
from bif.sampling.engine import Engine
from bif.sampling.settings import RunSettings
from same_bits import assert_same_run, bits
from small_problems import TINY, classification, labelled, network, normal

pytestmark = pytest.mark.usefixtures("no_page", "unchecked")

MANY = replace(TINY, draws=36, burn_in=1, thin=1)
CHAINS_AND_BLOCKS = [(16, 16), (16, 5), (20, 9), (37, 12), (3, 2)]
"""The last but one: 16 groups of two or three chains, some of them in two blocks."""
CPU = torch.device("cpu")


def recorded(keep: Keep, *, chains: int, block_size: int) -> Recording:
    problem = classification()
    settings = replace(MANY, chains=chains, block_size=block_size)
    engine = Engine(problem, calibrate(problem, settings).settings)
    with Writer() as writer:
        recording = Recording(Context(engine, keep, None, 1e9, deal(chains, block_size), writer))
        recording.run(show_progress=False)
    return recording


def assert_close_covariances(got: Covariance, expected: Covariance) -> None:
    """To 1e-9 of the scale of each entry."""
    assert got.num_groups == expected.num_groups
    scale = (expected.row_variance[:, None] * expected.column_variance).sqrt()
    for name in ("value", "standard_error"):
        difference = (getattr(got, name) - getattr(expected, name)).abs()
        assert bool((difference <= 1e-9 * scale).all()), name
    for name in ("row_variance", "column_variance", "column_variance_error"):
        a, b = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.max()))
    torch.testing.assert_close(got.row_mean, expected.row_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.column_mean, expected.column_mean, rtol=1e-9, atol=1e-9)


@cache
def all_traces(*, chains: int, block_size: int) -> LossTraces:
    return recorded("traces", chains=chains, block_size=block_size).traces()


@contextmanager
def diverging(chain: int, *, draw: int) -> Iterator[None]:
    """The chain's losses are NaN from a draw on."""
    add = BlockRecorder.add

    def poisoned(self: BlockRecorder, train: Tensor, *args: Any) -> None:
        if chain in self.chains and self.taken >= draw:
            train = train.clone()
            train[self.chains.index(chain)] = float("nan")
        add(self, train, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockRecorder, "add", poisoned)
        yield


class TestScores:
    @pytest.mark.parametrize(("chains", "block_size"), CHAINS_AND_BLOCKS)
    def test_covariances_are_those_of_the_traces(self, chains, block_size):
        sums = recorded("sums", chains=chains, block_size=block_size)
        traces = all_traces(chains=chains, block_size=block_size)
        assert_close_covariances(sums.covariance(), estimate_covariance(traces))

    @pytest.mark.parametrize("on_disk", [False, True])
    def test_results_are_those_of_the_traces(self, tmp_path, on_disk):
        problem, settings = classification(), replace(MANY, chains=20, block_size=9)
        out = tmp_path / "sums" if on_disk else None
        got = bif.attribute(problem, settings, keep="sums", out=out).influence.dataset
        expected = bif.attribute(problem, settings).influence.dataset
        assert set(got) == set(expected) and got.sizes == expected.sizes
        for name, there in expected.data_vars.items():
            # Float32 where N·Q numbers are stored: what differs by 1e-9 rounds to neighbours.
            rtol = 1e-9 if there.dtype == np.float64 else 2.0**-23
            atol = 1e-9 * float(np.abs(there).max())
            np.testing.assert_allclose(got[name], there, rtol=rtol, atol=atol, err_msg=str(name))

    def test_the_traces_of_few_items_are_all_kept(self):
        problem, settings = classification(), replace(MANY, chains=3, block_size=2)
        sums = bif.attribute(problem, settings, keep="sums")
        traces = bif.attribute(problem, settings)
        for got, expected in zip(sums.traces.blocks, traces.traces.blocks, strict=True):
            assert torch.equal(got.train, expected.train)
            assert torch.equal(got.query, expected.query)
        assert sums.summary["reliability"] == traces.summary["reliability"]
        assert sums.summary["rhat_max"] == traces.summary["rhat_max"]


class TestDivergence:
    # Groups of 37 chains: 2-3; 11-12 and 34-36, each with its last chain in another block.
    @pytest.mark.parametrize(
        ("chain", "along"), [(2, [3]), (11, []), (12, []), (35, [34])]
    )  # fmt: skip
    def test_a_diverged_chain_takes_its_group_along_and_nothing_else(self, chain, along):
        with diverging(chain, draw=5):
            sums = recorded("sums", chains=37, block_size=12)
        assert sums.diverged == {chain: 5}
        assert sums.lost_to_others == along
        whole = all_traces(chains=37, block_size=12)
        rest = CovarianceSums()
        for group in chain_groups(whole, 16):
            for block, positions in group:
                part = whole.blocks[block].only(positions)
                if chain not in part.chains:
                    alone = GroupSums()
                    alone.update(part.train, part.query)
                    rest.add(alone.close())
        assert_close_covariances(sums.covariance(), rest.finish())
        survivors = [c for block in sums.traces().blocks for c in block.chains]
        assert survivors == [c for c in range(37) if c not in {chain, *along}]

    def test_the_run_says_whom_it_left_out_and_is_loaded_without_them(self, tmp_path):
        settings = replace(MANY, chains=18, block_size=10, draws=64)
        with diverging(7, draw=40):
            run = bif.attribute(classification(), settings, keep="sums", out=tmp_path)
        assert run.manifest["left_out"] == [7, 8]
        said = " ".join(run.manifest["warnings"])
        assert "1 of 18 chains (7) diverged" in said
        assert "chains [8] were left out too: they shared their sums" in said
        assert run.summary["chains"] == 16 and run.summary["diverged_chains"] == [7]
        assert np.isfinite(run.influence.dataset["standard_error"].values).all()
        assert_same_run(bif.load(tmp_path), run)


class TestBlockSums:
    @staticmethod
    def draws(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        return normal(5, count, 7, seed=seed) + 100, normal(5, count, 3, seed=seed + 50)

    @staticmethod
    def sums() -> BlockSums:
        return BlockSums(range(4, 9), num_chains=11, num_groups=4)

    @pytest.mark.parametrize("saved_after", [0, 1, 2, 3])
    def test_saved_and_restored_they_go_on_to_the_last_bit(self, saved_after):
        straight, resumed = self.sums(), self.sums()
        for part in range(4):
            if part == saved_after:
                resumed.restore(load(save(straight.state())), CPU)
            for sums in (straight, resumed) if part >= saved_after else (straight,):
                sums.update(*self.draws(3 + part, seed=part))
        assert bits(resumed.state()) == bits(straight.state())
        closed = resumed.close([]), straight.close([])
        assert len(closed[0]) == len(closed[1]) == 3  # groups of 2-4, 5-7 and 8-10, in part
        for got, expected in zip(*closed, strict=True):
            for name in (f.name for f in fields(expected) if f.name != "freedom"):
                assert torch.equal(getattr(got, name), getattr(expected, name)), name

    def test_what_was_saved_stays_as_it_was_while_they_go_on(self):
        sums = self.sums()
        sums.update(*self.draws(3, seed=0))
        saved = sums.state()
        before = bits(saved)
        sums.update(*self.draws(3, seed=1))
        assert bits(saved) == before and bits(sums.state()) != before

    def test_nothing_is_saved_before_the_first_draws(self):
        assert self.sums().state() == {}

    @pytest.mark.parametrize("settled_at", [set(), {1, 2, 3, 31, 32, 33, 64}, set(range(70))])
    def test_buffers_do_not_depend_on_when_they_are_settled(self, settled_at):
        recorders = []
        for times in (settled_at, {50}):
            recorder = BlockRecorder(
                range(4, 9),
                num_draws=70,
                distance_limit=float("inf"),
                sums=self.sums(),
                subset=Subset(np.arange(7), np.arange(3)),
            )
            train, query = self.draws(70, seed=3)
            for draw in range(70):
                distance = torch.zeros(5, dtype=torch.float64)
                recorder.add(train[:, draw], query[:, draw], distance)
                if draw in times:
                    recorder.settle()
                    recorder.drain()
                    recorder.state()
            recorders.append(recorder)
        here, there = (bits(recorder.state()) for recorder in recorders)
        assert here == there and "pending/train" in here
        assert here["pending/train"][1] == (5, 70 - 64, 7)


class TestForecast:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("keep", ["traces", "weights", "sums"])
    def test_it_is_what_is_then_on_the_disk_before_compression(self, tmp_path, keep, dtype):
        (x, y), (qx, qy) = labelled(20, seed=1), labelled(5, seed=2)
        problem = classification(
            model=network().to(dtype), train=(x.to(dtype), y), queries=(qx.to(dtype), qy),
            candidates=(qx.to(dtype), qy),
        )  # fmt: skip
        # All draws of a run that keeps sums are in its files where buffers of 32 come out even.
        wanted = replace(MANY, draws=32, chains=3, block_size=2)
        run = bif.attribute(problem, wanted, keep=keep, out=tmp_path)
        settings = RunSettings.from_dict(run.manifest["settings"])
        sizes = forecast(problem, Engine(problem, settings).posterior, settings, keep)
        for name in ("traces", "weights"):
            assert _bytes_in(tmp_path / f"{name}.zarr") == pytest.approx(sizes[name], rel=0.01)
        assert (sizes["weights"] > 0) is (keep == "weights")

    def test_the_manifest_has_the_forecast_in_words(self):
        run = bif.attribute(classification(), replace(MANY, chains=3), keep="sums")
        (said,) = run.manifest["forecast"]
        # Float64: traces of 20 items and 10 values of queries, and sums of 3 groups.
        recorded = f"{(3 * 36 * 30 + 3 * 10 * 20) * 8 / 1024:.3g} KiB"
        assert f"for what is recorded: {recorded}, and for scores at the end" in said


def _bytes_in(place: Path) -> int:
    return sum(zarr.open_array(p.parent, mode="r").nbytes for p in place.glob("*/*/zarr.json"))


class TestWhatSumsCannotAnswer:
    def test_errors_of_summed_groups_are_unknown_and_the_sums_are_right(self, tmp_path):
        settings = replace(MANY, chains=3)
        groups = {"first": range(7), "second": range(5, 20, 3)}
        members = {name: list(positions) for name, positions in groups.items()}
        sums = bif.attribute(classification(), settings, keep="sums", out=tmp_path)
        traces = bif.attribute(classification(), settings)
        expected = traces.influence.sum_over(members).dataset
        for run in (sums, bif.load(tmp_path)):
            assert run.influence.traces is None
            got = run.influence.sum_over(members).dataset
            # Sums of at most seven numbers in float32.
            atol = 8 * 2.0**-24 * 7 * float(np.abs(traces.influence.dataset["influence"]).max())
            np.testing.assert_allclose(got["influence"], expected["influence"], rtol=0, atol=atol)
            for name in ("standard_error", "correlation", "self_influence",
                         "self_influence_standard_error"):  # fmt: skip
                assert np.isnan(got[name].values).all(), name
                assert np.isfinite(expected[name].values).all(), name

    def test_rankings_of_a_run_with_sums_need_no_traces(self):
        run = bif.attribute(classification(), replace(MANY, chains=3), keep="sums")
        ranking = run.influence.top(0, k=3, unresolved=True)
        assert len(ranking.positive) + len(ranking.negative) > 0
        assert all(np.isfinite(s.standard_error) for s in ranking.positive + ranking.negative)
