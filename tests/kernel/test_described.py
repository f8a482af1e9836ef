"""What a kernel says of its items, in Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bif
from bif import store
from bif.kernel import describe
from command_line import TINY_FLAGS, failed, write_problem
from small_problems import TINY, classification, labelled


@pytest.fixture(scope="module")
def kernel() -> bif.LossKernel:
    x, y = labelled(20, seed=1)
    items = bif.Items((x, y), labels=[f"class {int(label)}" for label in y])
    return bif.loss_kernel(bif.attribute(classification(train=items), TINY))


def test_neighbours_and_classes_are_those_of_the_kernel(kernel: bif.LossKernel):
    dataset, figures = describe(kernel, count=4)
    places, values = kernel.nearest(4)
    np.testing.assert_array_equal(dataset["neighbour"], places)
    np.testing.assert_array_equal(dataset["correlation"], values)
    np.testing.assert_array_equal(dataset["kept"], kernel.stability(4))
    assert figures["neighbours_kept"] == pytest.approx(float(dataset["kept"].mean()))
    assert figures["kept_by_chance"] == pytest.approx(4 / 19)
    names, blocks = kernel.class_blocks(kernel.labels["label"])
    assert dataset["class"].values.tolist() == names
    np.testing.assert_allclose(dataset["class_correlation"], blocks)
    own = np.eye(len(names), dtype=bool)
    assert figures["within_classes"] == pytest.approx(blocks[own].mean())
    assert figures["across_classes"] == pytest.approx(blocks[~own].mean())
    assert (dataset["class_correlation_standard_error"] > 0).all()


def test_there_are_at_most_all_other_neighbours_and_classes_need_labels(kernel: bif.LossKernel):
    assert describe(kernel)[1]["neighbours"] == 15
    assert describe(kernel, count=40)[1]["neighbours"] == 19
    with pytest.raises(KeyError, match="no label 'species': they have label"):
        describe(kernel, label="species")
    bare = bif.LossKernel(kernel.losses, kernel.chains, kernel.ids, {})
    assert "within_classes" not in describe(bare)[1]


def test_the_command_writes_neighbours_and_figures(call, tmp_path: Path):
    target = f"{write_problem(tmp_path)}:problem"
    assert call("attribute", target, "--out", tmp_path / "run", *TINY_FLAGS)[0] == 0
    code, out, said = call(
        "kernel", tmp_path / "run", "--out", tmp_path / "k", "--sides", "both", "--layout", "none"
    )
    assert code == 0 and "items: 25" in out and "NOT TRUSTED" in said, said
    figures = json.loads((tmp_path / "k" / store.SUMMARY).read_text())
    assert figures["trusted"] is False and figures["items"] == 25
    again = call(
        "kernel", tmp_path / "run", "--out", tmp_path / "k", "--neighbours", "3", "--layout", "none"
    )
    assert again[0] == 0
    found = store.load_dataset(tmp_path / "k", name="kernel.zarr")
    assert found["neighbour"].shape == (20, 3) and found.attrs["trusted"] == 0
    assert "expected a run's folder" in failed(call("kernel", "--out", tmp_path / "k"))
    refused = failed(
        call("kernel", tmp_path / "run", "--out", tmp_path / "run", "--layout", "none")
    )
    assert "holds a run" in refused and bif.load(tmp_path / "run").summary.trusted is False
