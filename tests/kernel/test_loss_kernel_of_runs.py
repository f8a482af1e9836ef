"""The loss kernel of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import bif
from bif.kernel import pictures_of
from small_problems import TINY, classification, labelled


@pytest.fixture(scope="module")
def run() -> bif.Run:
    return bif.attribute(classification(), TINY)


def test_the_kernel_between_train_items_and_queries_is_minus_the_influence(run: bif.Run):
    kernel = bif.loss_kernel(run, "both")
    assert len(kernel) == 25 and kernel.ids[:2] == ("0", "1")
    traces = run.traces.blocks[0]
    losses = np.concatenate([traces.train, traces.query[:, :, :5]], axis=2).reshape(-1, 25)
    np.testing.assert_allclose(
        kernel.block(range(20, 25), range(20), kind="covariance"),
        np.cov(losses.T)[20:, :20], rtol=1e-9,
    )  # fmt: skip
    np.testing.assert_array_equal(kernel.chains.bincount(), [traces.num_draws] * len(traces.chains))


def test_sides_and_observables_are_chosen(run: bif.Run):
    margins = bif.loss_kernel(run, "query", observable="margin")
    assert len(margins) == 5
    expected = run.traces.blocks[0].query[:, :, 5:].reshape(-1, 5).T
    np.testing.assert_array_equal(margins.losses, expected)
    assert bif.loss_kernel(run, "both").labels["side"] == ("train",) * 20 + ("query",) * 5
    assert "side" not in margins.labels
    for refused in (bif.loss_kernel, pictures_of):
        with pytest.raises(ValueError, match="sides is 'trian': expected one of .*'train' is the"):
            refused(run, "trian")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="no observable 'none': there are loss, margin"):
        bif.loss_kernel(run, observable="none")


def test_labels_come_with_the_items():
    x, y = labelled(20, seed=1)
    items = bif.Items((x, y), labels=[str(int(label)) for label in y])
    kernel = bif.loss_kernel(bif.attribute(classification(train=items), TINY))
    assert kernel.labels["label"] == tuple(str(int(label)) for label in y)
    names, blocks = kernel.class_blocks(kernel.labels["label"])
    assert blocks.shape == (len(names), len(names))


def test_a_run_without_traces_of_all_items_is_refused(tmp_path: Path):
    solved = bif.attribute(classification(), bif.Settings(estimator="response"))
    with pytest.raises(ValueError, match="the run was solved.*: .*estimator='covariance'"):
        bif.loss_kernel(solved)
    sums = bif.attribute(classification(), TINY, keep="sums")
    with pytest.raises(ValueError, match="the run kept sums alone"):
        bif.loss_kernel(sums)
    bif.attribute(classification(), TINY, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "traces.zarr")
    with pytest.raises(ValueError, match="or has lost its traces: a loss kernel"):
        bif.loss_kernel(bif.load(tmp_path / "run"))
