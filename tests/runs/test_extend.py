"""Runs that grow become, to the last bit, the runs that had everything from the start."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import Problem, Settings, losses, store
from bif.calibration.calibrate import calibrate
from bif.problem.items import as_items
from bif.runs.backfill import ReplayDeparts, _kept
from bif.sampling.center_gradient import gradient_sums
from bif.sampling.engine import Engine
from bif.sampling.observer import Observer
from bif.sampling.oracles import StackedOracle
from bif.store.arrays import DrawArrays
from bif.store.signals import Preempted
from growing_runs import BASE, EXTRA, MORE, OWN, THIRD, problem
from same_bits import assert_same_run, files, preempted
from small_problems import filled, normal

pytestmark = pytest.mark.usefixtures("unchecked", "no_page")

MINIBATCH: dict[str, Any] = {"gradient": "minibatch", "batch_size": 6}


@contextmanager
def counted_gradients() -> Iterator[list[int]]:
    """The steps at which a gradient was asked for; that at w*, which is compared, is none."""
    gradient, seen = StackedOracle.gradient, []

    def uncounted(engine: Engine) -> torch.Tensor:
        before = len(seen)
        found = gradient_sums(engine)
        del seen[before:]
        return found

    def counting(self: StackedOracle, *args: Any, **given: Any) -> Any:
        seen.append(1)
        return gradient(self, *args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StackedOracle, "gradient", counting)
        patch.setattr("bif.runs.resumption.gradient_sums", uncounted)
        yield seen


@contextmanager
def observation_stops(*, after: int) -> Iterator[None]:
    """SIGTERM while new groups are observed at old draws: at the one after `after` others."""
    observe, done = Observer.panel, []

    def stopping(self: Observer, *args: Any) -> Tensor:
        done.append(1)
        if len(done) == after + 1:
            signal.raise_signal(signal.SIGTERM)
        return observe(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Observer, "panel", stopping)
        with pytest.raises(Preempted):
            yield
    assert len(done) > after


class TestGroups:
    @pytest.mark.parametrize(
        "given", [{}, MINIBATCH, {"sampler": "sgnht", "oracle": "sequential"},
                  {"oracle": "live", "chains": 2, "block_size": None}],
        ids=["full", "minibatch", "sequential", "live"],
    )  # fmt: skip
    @pytest.mark.parametrize("keep", ["traces", "weights"])
    def test_later_ones_are_as_if_there_from_the_start(self, tmp_path, keep, given):
        settings = replace(BASE, **given)
        bif.attribute(problem(), settings, out=tmp_path, keep=keep)
        grown = problem().extended(queries=MORE, candidates=EXTRA)
        with counted_gradients() as gradients:
            got = bif.extend(tmp_path, grown)
        if "oracle" not in given:
            assert bool(gradients) is (keep == "traces")
        expected = bif.attribute(problem(queries={**OWN, **MORE}, candidates=EXTRA), settings)
        assert_same_run(got, expected)
        assert_same_run(bif.load(tmp_path), expected)
        assert got.influence.dataset.sizes == {"observable": 2, "query": 8, "train": 24}

    def test_it_is_the_run_that_the_same_call_would_have_made(self, tmp_path):
        bif.attribute(problem(), BASE, out=tmp_path)
        grown = problem().extended(queries=MORE)
        run = bif.extend(tmp_path, grown, draws=5)
        with counted_gradients() as gradients:
            assert_same_run(bif.attribute(grown, replace(BASE, draws=5), out=tmp_path), run)
            assert_same_run(bif.extend(tmp_path, grown), run)
        assert not gradients

    @pytest.mark.parametrize("at", ["loss", "noise"])
    @pytest.mark.parametrize("gradient", [{}, MINIBATCH], ids=["full", "minibatch"])
    def test_a_replay_that_departs_is_refused(self, tmp_path, monkeypatch, at, gradient):
        bif.attribute(problem(), replace(BASE, **gradient), out=tmp_path)
        if at == "loss":
            _perturb_a_loss(tmp_path, block=1, draw=3)
        else:
            noise = Engine._noise
            monkeypatch.setattr(Engine, "_noise", lambda self, b, c: noise(self, b + 1, c))
        with pytest.raises(ReplayDeparts, match=r"gave other losses at draw \d"):
            bif.extend(tmp_path, problem().extended(queries=MORE))

    def test_a_run_whose_replay_departs_stays_what_it_was(self, tmp_path):
        run = bif.attribute(problem(), BASE, out=tmp_path)
        _perturb_a_loss(tmp_path, block=0, draw=0)
        with pytest.raises(ReplayDeparts):
            bif.extend(tmp_path, problem().extended(queries=MORE))
        again = bif.attribute(problem(), BASE, out=tmp_path)
        assert again.manifest["complete"] is True
        assert torch.equal(again.traces.blocks[1].train, run.traces.blocks[1].train)

    @pytest.mark.parametrize("keep", ["traces", "weights"])
    def test_interrupted_half_way_they_are_completed_later(self, tmp_path, monkeypatch, keep):
        monkeypatch.setattr("bif.runs.backfill._DRAWS_AT_ONCE", 2)  # written two draws at a time
        bif.attribute(problem(), BASE, out=tmp_path, keep=keep)
        grown = problem().extended(queries=MORE, candidates=EXTRA)
        for after in (3, 4, 7):  # values of two groups at four draws of two blocks
            with observation_stops(after=after):
                bif.extend(tmp_path, grown)
        got = bif.extend(tmp_path, grown)
        expected = bif.attribute(problem(queries={**OWN, **MORE}, candidates=EXTRA), BASE)
        assert_same_run(got, expected)
        assert_same_run(bif.load(tmp_path), expected)

    @pytest.mark.parametrize("writes", [1, 3])
    def test_groups_of_which_unequal_parts_were_written_are_completed(
        self, tmp_path, monkeypatch, writes
    ):
        monkeypatch.setattr("bif.runs.backfill._DRAWS_AT_ONCE", 2)
        bif.attribute(problem(), BASE, out=tmp_path)
        grown = problem().extended(queries=MORE, candidates=EXTRA)
        append, calls = DrawArrays.append, count()

        def failing(self: DrawArrays, *args: Any, **given: Any) -> None:
            if next(calls) == writes:
                raise OSError("the disk is full")
            append(self, *args, **given)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
            patch.setattr(DrawArrays, "append", failing)
            bif.extend(tmp_path, grown)
        arrays = store.BlockStore(store.folder_at(tmp_path), 0).traces
        assert arrays.length("train_loss-1") == arrays.length("query_value-1") + 2
        expected = bif.attribute(problem(queries={**OWN, **MORE}, candidates=EXTRA), BASE)
        assert_same_run(bif.extend(tmp_path, grown), expected)
        assert {arrays.length(name) for name in arrays.names()} == {4}

    def test_kept_weights_lie_in_memory_of_their_own_as_those_of_chains_do(self, tmp_path):
        # The last bits of a product can depend on how its factors are aligned.
        settings = calibrate(problem(), replace(BASE, chains=2, block_size=1)).settings
        bif.attribute(problem(), settings, out=tmp_path, keep="weights")
        block = store.BlockStore(store.folder_at(tmp_path), 0)
        for _, params in _kept(Engine(problem(), settings), block, range(4)):
            for leaf in params.values():
                assert leaf.storage_offset() == 0 and leaf.is_contiguous()

    def test_one_chains_kept_weights_give_the_same_bits_in_float32(self, tmp_path):
        given = _wide_regression()
        settings = replace(BASE, chains=2, block_size=1, step_size=0.002)
        start = Problem(given["model"], losses.squared_error, **given["data"], queries=OWN_WIDE)
        bif.attribute(start, settings, out=tmp_path, keep="weights")
        got = bif.extend(tmp_path, start.extended(queries=MORE_WIDE))
        both = {**OWN_WIDE, **MORE_WIDE}
        whole = Problem(given["model"], losses.squared_error, **given["data"], queries=both)
        assert_same_run(got, bif.attribute(whole, settings))


def _wide(num_items: int, *, seed: int) -> tuple[Tensor, Tensor]:
    return normal(num_items, 31, seed=seed).float(), normal(num_items, seed=seed + 1).float()


OWN_WIDE = {"own": as_items(_wide(5, seed=2))}
MORE_WIDE = {"more": as_items(_wide(37, seed=5))}


def _wide_regression() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(31, 29), nn.Tanh(), nn.Linear(29, 1))
    return {"model": filled(model, scale=0.2).float(), "data": {"train": _wide(20, seed=1)}}


def _perturb_a_loss(folder: Path, *, block: int, draw: int) -> None:
    """The last bit of one loss, as if the run itself had recorded it."""
    token = store.RUN.read(store.folder_at(folder))["token"]
    there = store.BlockStore(store.folder_at(folder), block, token=token)
    assert there.good_draws(["train_loss-0"]) == 4
    losses = there.traces.read("train_loss-0", 0, 4).copy()
    losses.view("int64")[0, draw, 3] ^= 1
    there.traces.append({"train_loss-0": losses}, start=0)
    there.amend(there.commits()[0])


class TestDrawsAndChains:
    @pytest.mark.parametrize("given", [{}, MINIBATCH], ids=["full", "minibatch"])
    @pytest.mark.parametrize("keep", ["traces", "sums", "weights"])
    def test_further_draws_are_those_of_the_longer_run(self, tmp_path, keep, given):
        settings = replace(BASE, chains=3, draws=20, thin=1, **given)
        bif.attribute(problem(), settings, out=tmp_path, keep=keep)
        got = bif.extend(tmp_path, problem(), draws=40)  # sums are taken of 32 draws at once
        longer = replace(settings, draws=40)
        if keep == "weights":
            expected = bif.attribute(problem(), longer)
        else:
            expected = bif.attribute(problem(), longer, keep=keep)
        assert_same_run(got, expected)

    @pytest.mark.parametrize("keep", ["traces", "weights"])
    def test_further_chains_in_further_blocks_are_those_of_the_larger_run(self, tmp_path, keep):
        bif.attribute(problem(), BASE, out=tmp_path, keep=keep)
        with counted_gradients() as gradients:
            got = bif.extend(tmp_path, problem(), chains=8)
        assert len(gradients) == 2 * 9  # two new blocks of nine steps, and nothing else
        assert_same_run(got, bif.attribute(problem(), replace(BASE, chains=8)))
        assert_same_run(bif.load(tmp_path), got)

    def test_chains_that_fill_no_block_follow_in_a_smaller_one(self, tmp_path):
        bif.attribute(problem(), BASE, out=tmp_path)
        got = bif.extend(tmp_path, problem(), chains=7)
        assert [b.chains for b in got.traces.blocks] == [(0, 1), (2, 3), (4, 5), (6,)]
        assert_same_run(got, bif.attribute(problem(), replace(BASE, chains=7)))

    def test_a_growth_interrupted_anywhere_ends_the_same(self, tmp_path):
        bif.attribute(problem(), BASE, out=tmp_path)
        grown = problem().extended(queries=MORE)
        wanted: dict[str, Any] = {"draws": 6, "chains": 6}
        for block, step in ((0, 10), (1, 8), (2, 0), (2, 7)):
            with preempted(block=block, step=step):
                bif.extend(tmp_path, grown, **wanted)
        got = bif.extend(tmp_path, grown, **wanted)
        expected = bif.attribute(problem(queries={**OWN, **MORE}), replace(BASE, **wanted))
        assert_same_run(got, expected)

    def test_a_growth_can_be_ended_by_the_call_that_would_have_made_it(self, tmp_path):
        bif.attribute(problem(), BASE, out=tmp_path)
        with preempted(block=1, step=9):
            bif.extend(tmp_path, problem(), draws=6)
        got = bif.attribute(problem(), replace(BASE, draws=6), out=tmp_path)
        assert_same_run(got, bif.attribute(problem(), replace(BASE, draws=6)))

    def test_a_run_that_was_interrupted_itself_can_grow(self, tmp_path):
        with preempted(block=1, step=5):
            bif.attribute(problem(), BASE, out=tmp_path)
        got = bif.extend(tmp_path, problem().extended(queries=MORE), draws=6)
        expected = bif.attribute(problem(queries={**OWN, **MORE}), replace(BASE, draws=6))
        assert_same_run(got, expected)


@pytest.mark.parametrize("keep", ["traces", "weights"])
def test_several_growths_in_a_row_are_the_run_that_had_it_all(tmp_path, keep):
    bif.attribute(problem(), BASE, out=tmp_path, keep=keep)
    first = problem().extended(queries=MORE)
    bif.extend(tmp_path, first, draws=5)
    second = first.extended(candidates=EXTRA)
    bif.extend(tmp_path, second, chains=6)
    third = second.extended(queries=THIRD)
    got = bif.extend(tmp_path, third, draws=7)
    whole = problem(queries={**OWN, **MORE, **THIRD}, candidates=EXTRA)
    assert_same_run(got, bif.attribute(whole, replace(BASE, draws=7, chains=6)))


def test_a_copy_grows_and_the_original_stays_byte_by_byte(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    run = bif.attribute(problem(), BASE, out=original)
    before = files(original)
    store.copy_run(original, copy)
    assert_same_run(bif.load(copy), run)
    grown = problem().extended(queries=MORE, candidates=EXTRA)
    bif.extend(copy, grown, draws=6, chains=6)
    assert files(original) == before
    assert_same_run(bif.load(original), run)


def test_settings_are_those_that_were_chosen_when_the_run_was_begun(tmp_path):
    open_settings = Settings(chains=2, draws=4, seed=3)
    begun = bif.attribute(problem(), open_settings, out=tmp_path)
    grown = bif.extend(tmp_path, problem(), draws=6)
    then, now = begun.manifest["settings"], grown.manifest["settings"]
    assert {**then, "draws": 6} == now
    assert grown.manifest["explanations"] == begun.manifest["explanations"]
