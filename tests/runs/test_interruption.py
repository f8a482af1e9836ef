"""Ctrl-C ends the sampling and keeps what there is; with a folder the same call goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses, store
from bif.runs import block_run
from broken_runs import assert_same
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked")


class Calls:
    """Counts calls of the loss, and presses Ctrl-C during one of them."""

    def __init__(self) -> None:
        self.count, self.limit = 0, math.inf


CALLS = Calls()


def watched(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy during which Ctrl-C may be pressed; fingerprints see no global variable."""
    CALLS.count += 1
    if CALLS.count > CALLS.limit:
        CALLS.limit = math.inf
        raise KeyboardInterrupt
    return losses.cross_entropy(model, batch)


PROBLEM = classification(loss=watched, observables=None)


@pytest.fixture(scope="module", autouse=True)
def _looked_at() -> None:
    """The first calibration looks at all items: before any calls are counted."""
    bif.calibrate(PROBLEM, TestInterruption.SETTINGS)


def pressed_after(num_calls: float, act: Callable[[], object]) -> int:
    """Do something, press Ctrl-C during a call of the loss; how many calls there were in all."""
    CALLS.count, CALLS.limit = 0, num_calls
    try:
        act()
    finally:
        CALLS.limit = math.inf
    return CALLS.count


class TestInterruption:
    SETTINGS = replace(TINY, oracle="sequential", block_size=2, draws=12)

    def run(self, share: float) -> bif.Run:
        def act() -> None:
            found.append(bif.attribute(PROBLEM, self.SETTINGS))

        found: list[bif.Run] = []
        num_calls = pressed_after(math.inf, act)
        pressed_after(share * num_calls, act)
        return found[-1]

    @pytest.mark.parametrize("share", [0.4, 0.75, 0.95])
    def test_what_there_is_is_kept_and_marked_as_incomplete(self, share):
        run = self.run(share)
        # `watched` is no loss that the library knows, and is recorded itself.
        observables = [bif.Observable("loss", losses.cross_entropy, "lower")]
        whole = bif.attribute(classification(observables=observables), self.SETTINGS)
        for part, all_of_it in zip(run.traces.blocks, whole.traces.blocks, strict=False):
            assert torch.equal(part.train, all_of_it.train[:, : part.num_draws])
            assert torch.equal(part.query, all_of_it.query[:, : part.num_draws])
        assert 0 < run.traces.total_draws < whole.traces.total_draws
        assert run.summary["complete"] is False and run.manifest["complete"] is False
        assert run.influence.dataset.attrs["complete"] == 0
        (warning,) = [w for w in run.manifest["warnings"] if "interrupted" in w]
        assert "of 48 draws: the result is partial" in warning
        assert np.isfinite(run.influence.dataset["influence"]).all()

    def test_the_partial_result_is_saved_and_says_so(self, tmp_path):
        run = self.run(0.75)
        folder = run.save(tmp_path / "out")
        assert "partial" in (folder / "report.html").read_text()
        assert store.read_run(folder)["manifest"]["complete"] is False
        assert bif.Influence.load(folder).dataset.sizes["train"] == 20

    @pytest.mark.parametrize("share", [0.15, 0.4, 0.75, 0.95])
    def test_with_a_folder_the_same_call_goes_on_to_the_last_bit(
        self, tmp_path, monkeypatch, share
    ):
        monkeypatch.setattr(block_run, "_COMMIT_SHARE", 0)  # commits after every step
        out, plain = tmp_path / "out", bif.attribute(PROBLEM, self.SETTINGS)
        num_calls = pressed_after(math.inf, lambda: bif.attribute(PROBLEM, self.SETTINGS))

        def begin() -> None:
            if share < 0.2:  # too early for scores
                with pytest.raises(KeyboardInterrupt, match="after 2 of 48 draws"):
                    bif.attribute(PROBLEM, self.SETTINGS, out=out, commit_every=0)
                assert not (out / "influence.zarr").exists()
            else:
                run = bif.attribute(PROBLEM, self.SETTINGS, out=out, commit_every=0)
                assert run.summary["complete"] is False
                assert bif.load(out).manifest["complete"] is False

        made = pressed_after(share * num_calls, begin)
        left = pressed_after(
            math.inf, lambda: assert_same(bif.attribute(PROBLEM, self.SETTINGS, out=out), plain)
        )
        assert_same(bif.load(out), plain)
        # Done again: the values at w* (2 calls), the gradient at the committed position (2), and
        # the step that was under way (at most 2, and 2 for the queries).  With a folder only: the
        # gradient at w*, by which a run is recognised (once each time).
        assert made + left - num_calls <= 10

    def test_too_early_it_fails_and_says_why(self):
        with pytest.raises(
            RuntimeError, match=r"only 0 of 4 chains .*interrupted after 2 of 48.*run longer\.$"
        ):
            self.run(0.15)
