"""Chains that diverge are noticed, left out and named; with too few of the others a run fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses, store
from bif.sampling.chain import Position
from broken_runs import assert_same
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked")

SAMPLING = sys.modules["bif.sampling.engine"]


def disturb(monkeypatch: pytest.MonkeyPatch, *, chain: int, step: int, push: float) -> None:
    """Push one chain's weights before a step; TINY draws at steps 4, 6, 8, 10, 12, 14."""
    original = SAMPLING.trajectory

    def trajectory(*args: Any, **kwargs: Any) -> Iterator[Position]:
        for position in original(*args, **kwargs):
            if position.step == step:
                for leaf in position.state.params.values():
                    leaf[chain] += push
            yield position

    monkeypatch.setattr(SAMPLING, "trajectory", trajectory)


class TestDivergence:
    @pytest.mark.parametrize("push", [float("nan"), float("inf"), 1e4])
    def test_a_chain_that_diverges_is_left_out_named_and_warned_of(self, monkeypatch, push):
        calm = bif.attribute(classification(), TINY)
        disturb(monkeypatch, chain=1, step=10, push=push)
        run = bif.attribute(classification(), TINY)
        assert run.traces.blocks[0].chains == (0, 2, 3)
        expected = calm.traces.blocks[0].only([0, 2, 3])
        assert torch.equal(run.traces.blocks[0].train, expected.train)
        assert torch.equal(run.traces.blocks[0].query, expected.query)
        assert run.summary["diverged_chains"] == [1] and run.summary["chains"] == 3
        assert run.diagnostics.attrs["diverged_chains"] == [1]
        assert run.diagnostics["chain"].values.tolist() == [0, 2, 3]
        said = run.manifest["warnings"]
        (warning,) = [w for w in said if w.startswith("1 of 4 chains (1) diverged, the first by")]
        assert any(w.startswith("not trusted, divergence: 1 chains diverged, 25%") for w in said)
        assert "step_size=0.02" in warning and "set step_size=0.01" in warning
        expected = bif.estimate.estimate_covariance(run.traces)
        np.testing.assert_allclose(
            run.influence.dataset["influence"].values.reshape(10, 20), -expected.value, rtol=1e-6
        )

    def test_the_warning_reaches_report_manifest_and_files(self, monkeypatch, tmp_path):
        disturb(monkeypatch, chain=2, step=6, push=float("nan"))
        saved = bif.attribute(classification(), TINY).save(tmp_path / "saved")
        bif.attribute(classification(), TINY, out=tmp_path / "out")
        for folder in (saved, tmp_path / "out"):
            assert "1 of 4 chains (2) diverged" in (folder / "report.html").read_text()
            found = bif.load(folder)
            assert any("1 of 4 chains (2) diverged" in w for w in found.manifest["warnings"])
            assert found.traces.blocks[0].chains == (0, 1, 3)

    def test_with_fewer_than_two_survivors_the_run_fails_and_says_what_to_change(self):
        with pytest.raises(RuntimeError, match="only 0 of 4 chains survived") as error:
            bif.attribute(classification(), replace(TINY, step_size=50.0))
        text = str(error.value)
        assert text.count("diverged") == 1  # in one sentence, not one a chain
        assert "4 of 4 chains (0, 1, 2, 3) diverged" in text
        assert "set step_size=25, burn_in=" in text

    def test_a_block_whose_chains_have_all_diverged_is_not_run_to_the_end(self):
        steps = []

        def counting(model: nn.Module, batch: Any) -> Tensor:
            steps.append(1)
            return losses.cross_entropy(model, batch)

        problem = classification(loss=counting, observables=None)
        steps.clear()
        with pytest.raises(RuntimeError, match="only 0 of 4"):
            bif.attribute(problem, replace(TINY, step_size=50.0, draws=10_000))
        assert len(steps) < 3 * 1000

    def test_a_single_survivor_is_not_enough(self, monkeypatch):
        disturb(monkeypatch, chain=0, step=6, push=float("nan"))
        with pytest.raises(RuntimeError, match="only 1 of 2 chains survived"):
            bif.attribute(classification(), replace(TINY, chains=2))

    def test_its_folder_keeps_what_happened_and_gives_way_to_a_smaller_step(self, tmp_path):
        out, wild = tmp_path / "out", replace(TINY, step_size=50.0)
        for _ in range(2):  # the second time from what was committed
            with pytest.raises(RuntimeError, match="only 0 of 4 chains survived"):
                bif.attribute(classification(), wild, out=out)
            assert store.RUN.read(store.folder_at(out))["complete"] is False
            assert store.BlockStore(store.folder_at(out), 0).commits()[0].diverged.keys() == set(
                range(4)
            )
        with pytest.raises(store.FolderInUse, match=r"another settings\.step_size"):
            bif.attribute(classification(), TINY, out=out)
        run = bif.attribute(classification(), TINY, out=out, on_existing="replace")
        assert_same(run, bif.attribute(classification(), TINY))
        assert_same(bif.load(out), run)

    def test_an_ordinary_run_is_far_from_the_limit(self):
        run = bif.attribute(classification(), replace(TINY, draws=200))
        assert run.summary["diverged_chains"] == []
