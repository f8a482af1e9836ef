"""`benchmarks.kernel`: its trees and scores, what it stores, and its studies on random pictures."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kernel import backdoor, checkpoints, images, mislabel
from benchmarks.kernel.__main__ import options, run
from benchmarks.kernel.item_scores import class_gap, mean_correlation, neighbour_disagreement
from benchmarks.kernel.score import score
from benchmarks.kernel.stored import StoredKernel, rows_of_map, stored
from benchmarks.kernel.subset import subset
from benchmarks.kernel.trees import class_tree, levels
from benchmarks.pages import kernels
from bif.benchmark.tasks import fashion
from bif.kernel import FeatureKernel, agreement
from class_trees import random_kernel
from small_problems import normal


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random pictures under the names of Fashion-MNIST, each class with a picture of its own."""
    place = tmp_path_factory.mktemp("data") / "fashion-mnist"
    place.mkdir()
    source = np.random.default_rng(0)
    of_classes = source.integers(0, 200, (10, 784))
    for part, count in (("train", 500), ("t10k", 120)):
        labels = source.permutation(np.arange(count) % 10)
        pictures = of_classes[labels] + source.integers(0, 56, (count, 784))
        for kind, header, array in (("images-idx3", 16, pictures), ("labels-idx1", 8, labels)):
            content = bytes(header) + array.astype(np.uint8).tobytes()
            (place / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    return place.parent


def arguments(study: str, data: Path, out: Path, *, seeds: int) -> argparse.Namespace:
    given = f"{study} --tiny --device cpu --seeds {seeds}".split()
    return options().parse_args([*given, "--data", str(data), "--out", str(out)])


@pytest.mark.parametrize(
    "study",
    [
        "mislabel-fashion",
        *(pytest.param(name, marks=pytest.mark.slow)
          for name in ("fashion", "backdoor-fashion", "checkpoints")),
    ],
)  # fmt: skip
def test_a_study_runs_goes_on_where_it_stopped_and_is_scored(
    study: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("cleanlab")
    monkeypatch.setattr("benchmarks.kernel.maps.SENSITIVITY", ((0.1, 1.0),))
    monkeypatch.setattr("benchmarks.kernel.checkpoints.COUNT", 3)
    monkeypatch.setattr("benchmarks.kernel.mislabel.SHARES", (0.2,))
    monkeypatch.setattr("benchmarks.kernel.score.PERMUTATIONS", 10)
    monkeypatch.setattr("benchmarks.kernel.score.RESAMPLES", 10)
    asked = arguments(study, data, tmp_path, seeds=1)
    run(study, asked)
    before = np.load(tmp_path / f"{study}.npz")
    run(study, asked)
    again = np.load(tmp_path / f"{study}.npz")
    assert before.files == again.files
    assert all(np.array_equal(before[n], again[n]) for n in before.files if n != "about")
    with pytest.raises(ValueError, match="is of another plan: choose another folder"):
        run(study, arguments(study, data, tmp_path, seeds=3))
    score(tmp_path, asked)
    (file,) = tmp_path.glob(f"kernel-{study}-*.json")
    found = json.loads(file.read_text())
    assert found["rows"] and found["runs"] and str(tmp_path) not in file.read_text()
    assert {"command", "versions", "hardware", "plan", "seed"} <= found.keys()
    newest = {f"kernel-{study}": found}
    monkeypatch.setattr(kernels, "newest_run", newest.get)
    tables = (kernels.hierarchies, kernels.mislabelled, kernels.backdoored, kernels.levels)
    (lines,) = (made for table in tables if (made := table()))
    assert sum(line.startswith("| ") for line in lines) >= 4
    assert any("sampled runs are trusted" in line for line in lines)


def test_trees_have_the_classes_of_the_data_and_the_groups_that_are_stated():
    assert sorted(class_tree("fashion").classes) == sorted(fashion.CLASSES)
    tree = class_tree("cifar")
    assert len(tree.classes) == 10
    place = tree.classes.index

    def apart(a: str, b: str) -> float:
        return tree.distance[place(a), place(b)]

    assert apart("cat", "dog") < apart("cat", "deer") < apart("cat", "bird") < apart("cat", "ship")
    groups = levels("fashion")
    assert list(groups) == ["3 groups", "4 groups"]
    assert groups["4 groups"]["dress"] == "tops" and groups["4 groups"]["boot"] == "shoes"


def test_a_stored_kernel_agrees_as_the_kernel_itself():
    classes = [*fashion.CLASSES] * 3
    kernel, tree = random_kernel(classes), class_tree("fashion")
    kept = StoredKernel(kernel.ids, kernel.labels, **stored(kernel, pairs=300))
    given: Any = {"num_pairs": 300, "num_permutations": 10, "num_bootstrap": 10}
    first, second = (agreement(one, tree, **given).figures for one in (kernel, kept))
    for name, figure in first.items():
        assert second[name].value == pytest.approx(figure.value, abs=1e-6), name
        assert second[name].standard_error == pytest.approx(figure.standard_error, abs=1e-6)
    with pytest.raises(ValueError, match="a stored kernel has no rows"):
        kept.embedding()
    with pytest.raises(ValueError, match="a stored kernel has no other pairs"):
        kept.at_pairs(np.array([0]), np.array([0]))


def test_rows_of_a_map_keep_a_kernel_of_low_rank():
    rows = normal(40, 5, seed=0) @ normal(5, 600, seed=1)
    kernel = FeatureKernel(rows, tuple(map(str, range(40))), {})
    found = torch.from_numpy(rows_of_map(kernel)["rows"]).float()
    assert found.shape == (40, 256)
    torch.testing.assert_close(found @ found.T, kernel.block().float(), atol=5e-3, rtol=0)


def test_scores_of_items_are_those_of_loops():
    labels = [*"aaabbbccc"]
    kernel = FeatureKernel(normal(9, 4, seed=2), tuple(map(str, range(9))), {})
    dense = kernel.block().numpy()
    for i, label in enumerate(labels):
        means = {
            c: np.mean([dense[i, j] for j in range(9) if labels[j] == c and j != i]) for c in "abc"
        }
        own = means.pop(label)
        assert class_gap(kernel, labels)[i] == pytest.approx(max(means.values()) - own)
        nearest = sorted((j for j in range(9) if j != i), key=lambda j: -dense[i, j])[:3]
        share = np.mean([labels[j] != label for j in nearest])
        assert neighbour_disagreement(kernel, labels, 3)[i] == pytest.approx(share)
    known = np.array([1, 4])
    np.testing.assert_allclose(mean_correlation(kernel, known), dense[:, known].mean(axis=1))


def test_poison_changes_a_part_of_one_class_and_flips_a_share_of_all(data: Path):
    train = images.read(data, "fashion", 400, 0, "cpu").train
    inputs, classes = images.inputs_and_classes(train)
    made, known, rest = backdoor.poison(train, 0)
    moved, others = images.inputs_and_classes(made)
    changed = np.flatnonzero((moved != inputs).any(dim=1).numpy())
    assert sorted([*known, *rest]) == changed.tolist()
    assert (classes[changed] == backdoor.SOURCE).all() and (
        others[changed] == backdoor.TARGET
    ).all()
    difference = (moved - inputs)[changed[0]].reshape(28, 28).nonzero()
    assert difference.min() >= 24 and difference.max() <= 26
    flipped, which = mislabel.flip(train, 0.2, 0)
    assert which.sum() == 80
    now = images.inputs_and_classes(flipped)[1]
    np.testing.assert_array_equal((now != classes).numpy(), which)
    assert flipped.labels is not None and flipped.labels[0] == fashion.CLASSES[int(now[0])]


def test_half_of_the_way_is_found_between_checkpoints():
    values = np.array([0.0, 0.1, 0.3, 0.5])
    steps = [0, 1, 9, 99]
    # a quarter of the way in log(1 + step) would be .15; .25 lies at 3/4 between 1 and 9
    expected = np.expm1(np.log(2) + 0.75 * (np.log(10) - np.log(2)))
    assert checkpoints.half_way(steps, values) == pytest.approx(expected)


def test_a_subset_is_read_as_the_first_items(data: Path, tmp_path: Path):
    for name in ("cifar10", "resnet-cifar10"):
        (data / name).mkdir(exist_ok=True)
    subset(data, tmp_path, 50)
    whole = images.read(data, "fashion", 50, 100, "cpu")
    part = images.read(tmp_path, "fashion", 50, 100, "cpu")
    for one, other in zip(whole, part, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one.data[0], other.data[0])
        assert one.ids.tolist() == other.ids.tolist()
    with pytest.raises(ValueError, match="fewer than 51 images"):
        images.read(tmp_path, "fashion", 51, 100, "cpu")
