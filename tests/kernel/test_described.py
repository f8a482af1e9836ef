"""What a kernel says of its items, in Python and from the command line."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networkx import node_link_data

import bif
from bif import store
from bif.estimate.item_kernel import FeatureKernel
from bif.kernel import (
    class_linkage,
    cleaned,
    clusters,
    describe,
    item_map,
    linear_share,
    neighbour_stability,
    suspects,
    top_suspects,
)
from class_trees import graph_of
from command_line import failed
from same_bits import without_page
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
    np.testing.assert_array_equal(dataset["kept"], neighbour_stability(kernel, 4).kept)
    assert figures["neighbours_kept"] == pytest.approx(float(dataset["kept"].mean()))
    assert figures["kept_by_chance"] == pytest.approx(4 / 19)
    stability = neighbour_stability(kernel, 4)
    np.testing.assert_array_equal(dataset["stable"], stability.stable)
    assert figures["kept_by_hubs"] == pytest.approx(stability.by_hubs.mean())
    assert figures["items_with_stable_neighbours"] == pytest.approx(stability.stable.mean())
    groups = clusters(kernel)
    np.testing.assert_array_equal(dataset["cluster"], groups.labels)
    assert figures["cluster_agreement"] == groups.agreement
    np.testing.assert_allclose(dataset["class_join"], class_linkage(kernel)[1])
    np.testing.assert_array_equal(
        dataset["class_margin"], suspects(kernel, count=4)["class_margin"]
    )
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


def test_what_has_no_neighbours_is_refused(kernel: bif.LossKernel):
    with pytest.raises(ValueError, match="of 1 items no loss moves with another: expected two"):
        describe(kernel.of_items([3]))
    still = bif.LossKernel(torch.ones(20, 40), torch.arange(40) // 10, kernel.ids, {})
    with pytest.raises(ValueError, match="of 20 items no loss moves .* at all draws. Look at what"):
        describe(still)


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (describe, "descriptions"),
        (suspects, "suspects"),
        (clusters, "clusters of items"),
        (cleaned, "cleaned kernels"),
        (neighbour_stability, "stable neighbours"),
        (item_map, "maps of items"),
        (lambda k: linear_share(k, k), "shares of what was sampled"),
    ],
)
def test_what_needs_chains_refuses_kernels_without(kernel: bif.LossKernel, call, asked: str):
    features = FeatureKernel(kernel.embedding(), kernel.ids, kernel.labels)
    with pytest.raises(ValueError, match=f"{asked} need the draws of chains, and a FeatureKernel"):
        call(features)


def test_classes_that_are_nearly_as_many_as_items_have_no_scores(
    kernel: bif.LossKernel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.import_module("bif.estimate.suspects"), "MOST_CLASSES", 19)
    labels = {"label": kernel.ids, "group": kernel.labels["label"]}
    named = bif.LossKernel(kernel.losses, kernel.chains, kernel.ids, labels)
    assert "class_margin" not in describe(named)[0]
    assert "class_margin" in describe(named, label="group")[0]
    with pytest.raises(ValueError, match="label 'label' has 20 classes of 20 items, expected at"):
        describe(named, label="label")


def test_items_that_stand_out_are_named(kernel: bif.LossKernel):
    dataset, _ = describe(kernel)
    dataset["is_duplicate"][4] = True
    dataset["twin"][4] = 9
    found = top_suspects(dataset, count=2)
    by_variance = dataset["loss_variance"].argsort().values[::-1]
    assert found["largest_variance"] == f"{by_variance[0]}, {by_variance[1]}"
    low = int(dataset["class_margin"].values.argmin())
    named = f"{low} ({dataset['item_class'].values[low]}, moves against class "
    assert found["lowest_class_margin"].startswith(named)
    assert found["duplicates"] == "4 of 9"
    bare = bif.LossKernel(kernel.losses, kernel.chains, kernel.ids, {})
    assert top_suspects(describe(bare)[0]).keys() == {"largest_variance"}


def test_two_items_have_no_clusters_and_classes_of_one_item_no_mean(kernel: bif.LossKernel):
    labels = kernel.labels["label"]
    two = kernel.of_items([0, next(i for i in range(20) if labels[i] != labels[0])])
    figures = describe(two)[1]
    assert "clusters" not in figures and np.isnan(figures["within_classes"])
    assert np.isfinite(figures["across_classes"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, which no command changes."""
    place = tmp_path_factory.mktemp("made") / "run"
    with without_page():
        bif.attribute(classification(), TINY, out=place)
    return place


def test_the_command_writes_neighbours_and_figures(call, made: Path, tmp_path: Path):
    code, out, said = call(
        "kernel", made, "--out", tmp_path / "k", "--sides", "both", "--layout", "none"
    )
    assert code == 0 and "items: 25" in out and "NOT TRUSTED" in said, said
    assert "largest_variance: " in out
    figures = json.loads((tmp_path / "k" / store.SUMMARY).read_text())
    assert figures["trusted"] is False and figures["items"] == 25
    (tmp_path / "k" / "map.html").write_text("of an earlier call")
    store.mark(store.folder_at(tmp_path / "k"), ["map.html"])
    again = call("kernel", made, "--out", tmp_path / "k", "--neighbours", "3", "--layout", "none")
    assert again[0] == 0
    assert not (tmp_path / "k" / "map.html").exists()  # of other neighbours than the summary
    found = store.load_dataset(tmp_path / "k", name="kernel.zarr")
    assert found["neighbour"].shape == (20, 3) and found.attrs["trusted"] == 0
    assert "expected a run's folder" in failed(call("kernel", "--out", tmp_path / "k"))
    refused = failed(call("kernel", made, "--out", made, "--layout", "none"))
    assert "holds a run" in refused and bif.load(made).summary.trusted is False


def test_what_can_be_refused_is_before_it_takes_long(
    call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, out = made, tmp_path / "k"
    monkeypatch.setattr("bif.kernel.describe", lambda *_, **__: pytest.fail("it took long"))
    assert "holds a run" in failed(call("kernel", run, "--out", run))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "map.html").write_text("mine")
    assert "map.html that bif has not made" in failed(call("kernel", run, "--out", foreign))
    assert (foreign / "map.html").read_text() == "mine"
    (tmp_path / "file").touch()
    failed(call("kernel", run, "--out", tmp_path / "file" / "k"))
    tree = tmp_path / "tree.json"
    graph = graph_of("root one", "root other", "root third")
    tree.write_text(json.dumps(node_link_data(graph, edges="edges")))
    with_tree = ("--hierarchy", tree, "--label", "group")
    said = failed(call("kernel", run, "--out", out, "--sides", "query", *with_tree))
    assert "labels missing from the tree" in said
    said = failed(call("kernel", run, "--out", out, "--label", "species"))
    assert "no label 'species': they have label" in said
    for option in ("--neighbours", "--layout-seeds"):
        assert "expected 1 or more, got 0" in failed(call("kernel", run, "--out", out, option, "0"))
    assert "no run" in failed(call("kernel", tmp_path / "no", "--out", out)) and not out.exists()
