"""A run that was interrupted and taken up again is the run that was not, to the last bit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import Settings, losses, store
from bif.runs.block_run import BlockRun
from bif.runs.retention import Keep
from bif.types import Batch
from same_bits import assert_same_run, assert_same_scores, preempted, signalled, without_page
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked")

# Steps 0 … 8, draws at 2, 4, 6 and 8; blocks of two chains and of one; mini-batches of 20 items.
SHORT = replace(TINY, chains=3, block_size=2, draws=4, burn_in=2, thin=2)
LONG = replace(SHORT, draws=40, burn_in=1, thin=1)
"""Longer than the 32 draws of which sums are taken at once."""
GRADIENTS: dict[str, dict[str, Any]] = {
    "full": {},
    "minibatch": {"gradient": "minibatch", "batch_size": 6},
    "control_variate": {"gradient": "control_variate", "batch_size": 6},
}


@pytest.fixture(autouse=True)
def _no_page_and_no_fuse() -> Iterator[None]:
    Fuse.lit(0)
    with without_page():
        yield


@pytest.fixture
def commits_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockRun, "_commit_due", lambda self: True)


@pytest.fixture
def commits_at_every_sixth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count()
    monkeypatch.setattr(BlockRun, "_commit_due", lambda self: next(steps) % 6 == 0)


@cache
def uninterrupted(settings: Settings, keep: Keep = "traces") -> bif.Run:
    """In memory, of the problem that most tests have."""
    return bif.attribute(classification(), settings, keep=keep)


def kept_weights(folder: Path, block: int) -> list[bytes]:
    arrays = store.BlockStore(store.folder_at(folder), block).weights
    return [arrays.read(n, 0, arrays.length(n)).tobytes() for n in arrays.names()]


@pytest.mark.parametrize("gradient", list(GRADIENTS))
@pytest.mark.parametrize(
    "sampler", ["baoab", "sgld", "rmsprop_sgld", "rmsprop_sgld_frozen", "sgnht"]
)
def test_two_interruptions_leave_no_trace(tmp_path, sampler, gradient):
    settings = replace(SHORT, sampler=sampler, **GRADIENTS[gradient])
    problem, out = classification(), tmp_path / "run"
    for block, step in ((0, 4), (1, 5)):
        with preempted(block=block, step=step):
            bif.attribute(problem, settings, out=out)
    got = bif.attribute(problem, settings, out=out)
    expected = bif.attribute(problem, settings)
    assert_same_run(got, expected)
    assert got.manifest["warnings"] == expected.manifest["warnings"]
    assert got.manifest["complete"] is True


class TestWhereItStops:
    @pytest.mark.parametrize(
        ("block", "step"), [(0, 1), (0, 2), (0, 8), (1, 0), (1, 8)],
        ids=["burn-in", "first draw", "a block's last draw", "between blocks", "last draw"],
    )  # fmt: skip
    def test_a_stopped_run_goes_on_from_its_last_step(self, tmp_path, block, step):
        problem = classification()
        with preempted(block=block, step=step):
            bif.attribute(problem, SHORT, out=tmp_path)
        newest = store.BlockStore(store.folder_at(tmp_path), block).commits()[0]
        assert newest.step == step and newest.draws == max(0, step // 2)
        with signalled(block=block, step=step - 1) as seen:  # steps that were done stay done
            got = bif.attribute(problem, SHORT, out=tmp_path)
        assert not seen
        assert_same_run(got, uninterrupted(SHORT))

    def test_a_run_stopped_before_every_single_step_is_the_run(self, tmp_path):
        settings = replace(SHORT, **GRADIENTS["minibatch"])
        problem = classification()
        for block in (0, 1):
            for step in range(9):
                with preempted(block=block, step=step):
                    bif.attribute(problem, settings, out=tmp_path)
        got = bif.attribute(problem, settings, out=tmp_path)
        assert_same_run(got, bif.attribute(problem, settings))

    @pytest.mark.parametrize("oracle", ["sequential", "live"])
    def test_a_stopped_run_goes_on_whatever_the_oracle(self, tmp_path, oracle):
        settings = replace(SHORT, oracle=oracle, block_size=None, chains=2)
        problem = classification()
        for step in (1, 5):
            with preempted(block=0, step=step):
                bif.attribute(problem, settings, out=tmp_path)
        got = bif.attribute(problem, settings, out=tmp_path)
        assert_same_run(got, bif.attribute(problem, settings))


class TestWhatIsKept:
    @pytest.mark.parametrize("keep", ["traces", "sums", "weights"])
    def test_interrupted_runs_keep_the_same(self, tmp_path, keep):
        problem = classification()
        straight = bif.attribute(problem, LONG, out=tmp_path / "straight", keep=keep)
        for block, step in ((0, 20), (0, 36), (1, 33)):
            with preempted(block=block, step=step):
                bif.attribute(problem, LONG, out=tmp_path / "run", keep=keep)
        got = bif.attribute(problem, LONG, out=tmp_path / "run", keep=keep)
        assert_same_run(got, straight)
        for block in (0, 1):
            weights = kept_weights(tmp_path / "run", block)
            assert weights == kept_weights(tmp_path / "straight", block)
            assert bool(weights) is (keep == "weights")

    @pytest.mark.parametrize("keep", ["traces", "sums", "weights"])
    def test_what_is_loaded_is_what_was_returned(self, tmp_path, keep):
        run = bif.attribute(classification(), LONG, out=tmp_path, keep=keep)
        assert_same_run(bif.load(tmp_path), run)

    @pytest.mark.parametrize("keep", ["traces", "sums"])
    def test_a_run_in_memory_is_the_run_on_disk(self, tmp_path, keep):
        problem = classification()
        on_disk = bif.attribute(problem, LONG, out=tmp_path, keep=keep)
        assert_same_run(on_disk, uninterrupted(LONG, keep))

    @pytest.mark.parametrize("keep", ["traces", "sums"])
    def test_a_run_saved_from_memory_is_loaded_as_it_was(self, tmp_path, keep):
        run = uninterrupted(LONG, keep)
        assert_same_run(bif.load(run.save(tmp_path / "saved")), run)


@pytest.mark.usefixtures("commits_at_every_sixth_step")
@pytest.mark.parametrize("keep", ["traces", "sums", "weights"])
def test_commits_change_no_bit(tmp_path, monkeypatch, keep):
    often = bif.attribute(classification(), LONG, out=tmp_path / "often", keep=keep)
    monkeypatch.setattr(BlockRun, "_commit_due", lambda self: False)
    once = bif.attribute(classification(), LONG, out=tmp_path / "once", keep=keep)
    assert_same_run(often, once)


@pytest.mark.parametrize("commit_every", [0, 1e9])
def test_the_seconds_between_commits_change_no_bit(tmp_path, commit_every):
    problem = classification()
    got = bif.attribute(problem, SHORT, out=tmp_path, commit_every=commit_every)
    assert_same_run(got, uninterrupted(SHORT))


class Fuse:
    """Counts the calls of the loss, and breaks at one of them."""

    calls = 0
    burns_at = 0
    error: ClassVar[BaseException] = KeyboardInterrupt()

    @classmethod
    def lit(cls, burns_at: int, error: BaseException | None = None) -> None:
        cls.calls, cls.burns_at, cls.error = 0, burns_at, error or KeyboardInterrupt()


def fused(model: nn.Module, batch: Batch) -> Tensor:
    Fuse.calls += 1
    if Fuse.calls == Fuse.burns_at:
        raise Fuse.error
    return losses.cross_entropy(model, batch)


@pytest.mark.usefixtures("commits_at_every_step")
class TestBrokenOffInTheMiddleOfAStep:
    @pytest.mark.parametrize("keep", ["traces", "sums"])
    def test_what_was_not_committed_is_done_again(self, tmp_path, keep):
        problem = classification(loss=fused)
        Fuse.lit(0)
        expected = bif.attribute(problem, SHORT, keep=keep)
        got, breaks = None, 0
        while got is None or not got.summary["complete"]:
            burns_at = 12 if breaks else 20  # at first calibration looks at the items
            Fuse.lit(burns_at)
            with suppress(KeyboardInterrupt):
                got = bif.attribute(problem, SHORT, out=tmp_path, keep=keep)
            breaks += Fuse.calls >= burns_at
        assert breaks >= 2
        assert_same_run(got, expected)

    def test_an_error_of_the_users_own_costs_nothing_that_was_committed(self, tmp_path):
        problem = classification(loss=fused)
        expected = bif.attribute(problem, SHORT)
        Fuse.lit(21, RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            bif.attribute(problem, SHORT, out=tmp_path)
        assert store.BlockStore(store.folder_at(tmp_path), 0).commits()
        Fuse.lit(0)
        assert_same_run(bif.attribute(problem, SHORT, out=tmp_path), expected)

    def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_that_was_committed(self, tmp_path):
        problem = classification()
        twice = (signal.SIGINT, signal.SIGINT)
        with signalled(*twice, block=0, step=5), suppress(KeyboardInterrupt):
            assert not bif.attribute(problem, SHORT, out=tmp_path).summary["complete"]
        assert store.BlockStore(store.folder_at(tmp_path), 0).commits()[0].step == 4
        got = bif.attribute(problem, SHORT, out=tmp_path)
        assert_same_run(got, uninterrupted(SHORT))


class TestComplete:
    @pytest.mark.parametrize("keep", ["traces", "sums", "weights"])
    def test_a_complete_run_calls_no_loss(self, tmp_path, keep):
        problem = classification(loss=fused)
        run = bif.attribute(problem, LONG, out=tmp_path, keep=keep)
        Fuse.lit(0)
        again = bif.attribute(problem, LONG, out=tmp_path, keep=keep)
        assert Fuse.calls == 0
        assert_same_scores(again, run)

    @pytest.mark.parametrize("keep", ["traces", "sums"])
    def test_a_partial_result_is_loaded_as_it_was_returned(self, tmp_path, keep):
        with signalled(signal.SIGINT, block=0, step=36) as sent:
            run = bif.attribute(classification(), LONG, out=tmp_path, keep=keep)
        assert sent and run.summary["complete"] is False
        assert run.traces.blocks[0].num_draws == 36
        assert_same_run(bif.load(tmp_path), run)


class TestAtAnotherPlace:
    def test_runs_live_at_urls_too(self, tmp_path):
        import fsspec

        url = f"memory://{tmp_path.name}/run"
        problem = classification()
        try:
            for block, step in ((0, 3), (1, 1)):
                with preempted(block=block, step=step):
                    bif.attribute(problem, SHORT, out=url)
            got = bif.attribute(problem, SHORT, out=url)
            assert_same_run(got, uninterrupted(SHORT))
            assert_same_run(bif.load(url), got)
        finally:
            fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)

    def test_another_number_of_threads_is_warned_of(self, tmp_path, monkeypatch):
        problem = classification()
        with monkeypatch.context() as there, preempted(block=0, step=5):
            there.setattr(torch, "get_num_threads", lambda: 7)
            bif.attribute(problem, SHORT, out=tmp_path)
        got = bif.attribute(problem, SHORT, out=tmp_path)
        (warning,) = (w for w in got.manifest["warnings"] if "begun elsewhere" in w)
        assert "threads 7 then, 1 now" in warning and "device" not in warning
        assert bif.load(tmp_path).manifest["warnings"] == got.manifest["warnings"]
        assert_same_run(got, uninterrupted(SHORT))  # the machine is the same after all

    @pytest.mark.parametrize("keep", ["traces", "sums"])
    def test_another_device_goes_on_from_the_same_weights_with_fresh_numbers(
        self, tmp_path, monkeypatch, keep
    ):
        problem = classification()
        _on_another_device(monkeypatch, problem, LONG, out=tmp_path, keep=keep, step=20)
        got = bif.attribute(problem, LONG, out=tmp_path, keep=keep)
        assert any("device cpu (other) then" in w for w in got.manifest["warnings"])
        same = uninterrupted(LONG, keep)
        here, there = got.traces.blocks[0].train, same.traces.blocks[0].train
        # Draw d stands before step d + 1; the last one that the same numbers led to is draw 19.
        assert here.shape == there.shape
        assert torch.equal(here[:, :20], there[:, :20])
        assert not (here[:, 20:] == there[:, 20:]).all(dim=2).any()
        assert torch.equal(got.traces.blocks[1].train, same.traces.blocks[1].train)

    def test_the_warning_outlives_a_further_interruption(self, tmp_path, monkeypatch):
        problem = classification()
        _on_another_device(monkeypatch, problem, SHORT, out=tmp_path, step=3)
        with preempted(block=0, step=6):
            bif.attribute(problem, SHORT, out=tmp_path)
        got = bif.attribute(problem, SHORT, out=tmp_path)
        assert any("device cpu (other) then" in w for w in got.manifest["warnings"])


def _on_another_device(
    monkeypatch: pytest.MonkeyPatch, problem: bif.Problem, settings: Settings, *,
    step: int, **given: Any,
) -> None:  # fmt: skip
    with monkeypatch.context() as there, preempted(block=0, step=step):
        there.setattr("platform.machine", lambda: "other")
        bif.attribute(problem, settings, **given)
