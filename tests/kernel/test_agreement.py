"""Agreement of kernels with trees of classes, against brute force and kernels that are a tree."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from scipy import stats

import bif
from bif import store
from bif.kernel import agreement, tree_of
from bif.kernel.class_similarity import Sample
from bif.kernel.tree_figures import (
    detectable_correlation,
    in_order,
    linear_correlation,
    mutual_information,
    purity,
    rank_correlation,
    triplet_accuracy,
)
from class_trees import binary, graph_of, kernel_of, kernel_of_binary, random_kernel
from command_line import failed
from small_problems import TINY, classification, labelled

FOUR = ["aa", "ab", "ba", "bb"]


def spearman(x: Any, y: Any) -> float:
    found: Any = stats.spearmanr(x, y)
    return float(found.statistic)


def test_a_kernel_that_is_the_tree_agrees_in_all_and_no_permutation_does_better():
    found = agreement(kernel_of_binary(2), tree_of(binary(2)), num_bootstrap=20)
    assert found.num_classes == 4 and found.num_permutations == 24 and found.exact
    assert found.least_p == pytest.approx(8 / 24)  # of 24 orders, 8 leave the tree as it is
    assert {"purity_of_2_groups", "mutual_information_of_2_groups"} <= found.figures.keys()
    for name, figure in found.figures.items():
        assert figure.value == pytest.approx(1, abs=1e-9), name
        assert figure.p == pytest.approx(8 / 24), name
        assert figure.high == pytest.approx(1, abs=1e-9) and figure.standard_error >= 0
    assert np.isnan(found.detectable_correlation)


def test_eight_classes_at_random_permutations_reach_a_small_p():
    found = agreement(
        kernel_of_binary(3), tree_of(binary(3)), num_permutations=200, num_bootstrap=5
    )
    assert not found.exact and found.num_permutations == 201
    rank = found.figures["rank_correlation"]
    assert rank.value == pytest.approx(1) and rank.p == found.least_p <= 3 / 201
    assert found.figures["mutual_information_of_4_groups"].value == pytest.approx(1)


def test_the_null_of_four_classes_is_that_of_all_their_permutations():
    kernel, tree = random_kernel([name for name in FOUR for _ in range(3)]), tree_of(binary(2))
    found = agreement(kernel, tree, num_bootstrap=2)
    means = kernel.class_blocks(kernel.labels["label"])[1]
    upper = np.triu_indices(4, 1)
    places = [tree.classes.index(name) for name in FOUR]
    distance = tree.distance[np.ix_(places, places)]
    null = np.array([
        spearman(-means[upper], distance[np.ix_(order, order)][upper])
        for order in map(list, itertools.permutations(range(4)))
    ])  # fmt: skip
    rank = found.figures["rank_correlation"]
    assert rank.value == pytest.approx(null[0])
    assert rank.p == pytest.approx((null >= null[0] - 1e-12).mean())
    assert rank.null_mean == pytest.approx(null.mean()) == pytest.approx(0, abs=1e-12)
    assert (rank.null_low, rank.null_high) == pytest.approx(np.percentile(null, [2.5, 97.5]))
    assert found.figures["triplet_accuracy"].null_mean == pytest.approx(0.5)
    assert found.figures["item_triplet_accuracy"].null_mean == pytest.approx(0.5)


def test_the_test_finds_what_is_not_there_no_more_often_than_its_level():
    # Without a relation all 24 ways to name the classes are equally likely.
    tree, kernel = tree_of(binary(2)), random_kernel([name for name in FOUR for _ in range(2)])
    ps: dict[str, list[float]] = {}
    for order in itertools.permutations(FOUR):
        named = dict(zip(FOUR, order, strict=True))
        classes = [named[name] for name in kernel.labels["label"]]
        found = agreement(kernel_of(kernel.losses, classes), tree, num_bootstrap=1)
        for name, figure in found.figures.items():
            ps.setdefault(name, []).append(figure.p)
    for name, values in ps.items():
        for level in values:
            assert np.mean(np.array(values) <= level) <= level + 1e-12, name


def test_figures_of_classes_and_items_are_those_of_loops():
    classes = [*"abcd", *"aabbcd"]
    kernel, tree = (
        random_kernel(classes, seed=3),
        tree_of(graph_of("r a", "r x", "x b", "x y", "y c", "y d")),
    )
    found = agreement(kernel, tree, num_bootstrap=1)
    distance = {
        (a, b): tree.distance[tree.classes.index(a), tree.classes.index(b)]
        for a in "abcd"
        for b in "abcd"
    }
    names, means = kernel.class_blocks(classes)
    of_items = kernel.block().numpy()
    for kind, labels, alike in (("", names, means), ("item_", classes, of_items)):
        right = []
        for i, j, k in itertools.permutations(range(len(labels)), 3):
            a, b, c = labels[i], labels[j], labels[k]
            if len({a, b, c}) == 3 and distance[a, b] < distance[a, c]:
                right.append(alike[i, j] > alike[i, k])
        assert found.figures[f"{kind}triplet_accuracy"].value == pytest.approx(np.mean(right))
        pairs = [
            (-alike[i, j], distance[labels[i], labels[j]])
            for i, j in itertools.combinations(range(len(labels)), 2)
            if labels[i] != labels[j]
        ]
        expected = spearman(*np.transpose(pairs))
        assert found.figures[f"{kind}rank_correlation"].value == pytest.approx(expected)


def test_weights_are_repetitions():
    source = np.random.default_rng(0)
    x, y = source.integers(6, size=(2, 30))
    weights = source.integers(3, size=30).astype(float)
    many_x, many_y = (np.repeat(v, weights.astype(int)) for v in (x, y))
    assert rank_correlation(x, y, weights) == pytest.approx(spearman(many_x, many_y))
    assert linear_correlation(x, y, weights) == pytest.approx(np.corrcoef(many_x, many_y)[0, 1])
    signs = np.sign(x - 3), np.sign(y - 3)
    repeated = (np.repeat(v, weights.astype(int)) for v in signs)
    assert triplet_accuracy(*signs, weights) == pytest.approx(triplet_accuracy(*repeated))
    assert purity(x, y, weights) == pytest.approx(purity(many_x, many_y))
    metrics = pytest.importorskip("sklearn.metrics")
    expected = metrics.normalized_mutual_info_score(many_y, many_x)
    assert mutual_information(x, y, weights) == pytest.approx(expected)


def test_constant_quantities_have_no_figure():
    same, other = np.zeros(4, dtype=int), np.arange(4)
    assert np.isnan(rank_correlation(same, other)) and np.isnan(linear_correlation(other, same))
    assert np.isnan(triplet_accuracy(other, same)) and np.isnan(mutual_information(same, same))
    still = kernel_of(random_kernel(FOUR).losses * 0, FOUR)
    found = agreement(still, tree_of(binary(2)), num_bootstrap=2).figures
    assert np.isnan(found["rank_correlation"].value) and np.isnan(found["rank_correlation"].p)
    assert np.isnan(found["rank_correlation"].low)
    assert found["triplet_accuracy"].value == 0.5 and found["triplet_accuracy"].p == 1


def test_several_kernels_are_taken_together():
    kernels = [random_kernel(FOUR * 2, seed=seed) for seed in range(3)]
    tree = tree_of(binary(2))
    together = agreement(kernels, tree, num_bootstrap=50).figures
    alone = [agreement(kernel, tree, num_bootstrap=50).figures for kernel in kernels]
    for name, figure in together.items():
        assert figure.of_kernels == tuple(one[name].value for one in alone)
        assert figure.value == pytest.approx(np.mean(figure.of_kernels))
        errors = [one[name].standard_error for one in alone]
        assert figure.standard_error == pytest.approx(np.sqrt(np.square(errors).sum()) / 3)
        assert figure.low <= figure.high
    again = agreement(kernels, tree, num_bootstrap=50).figures
    assert again == together


def test_intervals_hold_the_spread_over_classes():
    # Half of the classes follow the tree and half do not: which are drawn makes a difference.
    kernel = kernel_of_binary(3)
    losses = kernel.losses.clone()
    losses[8:] = random_kernel(["x"] * 8).losses
    classes = list(kernel.labels["label"])
    found = agreement(kernel_of(losses, classes), tree_of(binary(3)), num_permutations=20)
    rank = found.figures["rank_correlation"]
    assert rank.low < rank.value < rank.high <= 1 and rank.high - rank.low > 0.1


def test_three_classes_are_too_few_for_an_interval():
    # All three are drawn in 6 of 27 resamples, and two have a single distance.
    tree = tree_of(graph_of("r x", "x a", "x b", "r c"))
    rank = agreement(random_kernel([*"abcabc"]), tree, num_bootstrap=100).figures[
        "rank_correlation"
    ]
    assert np.isfinite(rank.value) and np.isnan(rank.low) and np.isnan(rank.high)


@pytest.mark.parametrize("size", [2, 3])
def test_samples_of_uneven_classes_are_uniform(size: int):
    labels = ["a"] * 20 + ["b"] * 6 + ["c"] * 3

    def sets(most: int) -> list[tuple[int, ...]]:
        sample = Sample.draw(labels, most=most, seed=0)
        found = sample.item_pairs if size == 2 else sample.item_triplets
        return [
            (i, *sorted(rest)) if size == 3 else tuple(sorted((i, *rest))) for i, *rest in found
        ]

    draws, kinds = {2: (400, 120 + 60 + 18), 3: (5000, 3 * 20 * 6 * 3)}[size]
    every, drawn = sets(20_000), sets(draws)
    assert len(every) == len(set(every)) == kinds and len(drawn) == draws
    assert set(drawn) <= set(every)
    times = Counter(drawn)
    counts, mean = np.array([times[one] for one in every]), draws / kinds
    # chi-squared: of mean K - 1 and variance 2 (K - 1) (n - 1) / n where all are equally likely
    spread = (2 * (kinds - 1) * (draws - 1) / draws) ** 0.5
    assert abs(((counts - mean) ** 2).sum() / mean - (kinds - 1)) < 5 * spread


def test_hardly_any_triplet_of_different_classes_is_found_all_the_same():
    sample = Sample.draw(["a"] * 5000 + ["b", "c"], most=100, seed=0)
    ordered = np.sort(sample.classes[sample.item_triplets], axis=1)
    assert (ordered == [0, 1, 2]).all() and len(ordered) == 100


def test_more_classes_make_smaller_correlations_detectable():
    source = np.random.default_rng(0)

    def of(depth: int) -> float:
        tree = tree_of(binary(depth))
        count = len(tree.classes)
        orders = source.permuted(np.tile(np.arange(count), (400, 1)), axis=1)
        orders[0] = np.arange(count)
        return detectable_correlation(tree.distance, orders)

    assert 0.5 > of(3) > of(4) > 0.05


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2, 2), (5, 5)])
def test_ten_classes_show_correlations_from_about_a_third(sizes: tuple[int, ...]):
    edges = [f"root g{g}" for g in range(len(sizes))]
    edges += [f"g{g} c{g}{k}" for g, count in enumerate(sizes) for k in range(count)]
    tree, source = tree_of(graph_of(*edges)), np.random.default_rng(0)
    orders = source.permuted(np.tile(np.arange(10), (2001, 1)), axis=1)
    orders[0] = np.arange(10)
    assert 0.33 < detectable_correlation(tree.distance, orders) < 0.40


def test_the_detectable_correlation_is_found_in_80_percent_of_kernels():
    trials, tree, source = 400, tree_of(binary(3)), np.random.default_rng(1)
    orders = np.stack([np.arange(8), *(source.permutation(8) for _ in range(300))])
    aim = detectable_correlation(tree.distance, orders)
    a, b = np.triu_indices(8, 1)
    noise = source.standard_normal((trials, len(a)))

    def ranked(x: np.ndarray) -> np.ndarray:
        return stats.zscore(stats.rankdata(x, axis=1), axis=1) / x.shape[1] ** 0.5

    permuted = ranked(np.array([tree.distance[order[a], order[b]] for order in orders]))
    sizes = np.linspace(0.5, 6, 12) * tree.distance[a, b].std()
    under = [ranked(tree.distance[a, b] + size * noise) @ permuted.T for size in sizes]
    means = np.array([one[:, 0].mean() for one in under])
    found = [((one >= one[:, :1] - 1e-12).mean(axis=1) <= 0.05).mean() for one in under]
    share = np.interp(-aim, -means, found)
    # binomial errors of 1,000 kernels there and of 400 here
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 * (1 / 1000 + 1 / trials)) ** 0.5


def test_kernels_that_do_not_fit_are_refused():
    kernel, tree = random_kernel(FOUR), tree_of(binary(2))
    with pytest.raises(KeyError, match="no label 'species': they have label"):
        agreement(kernel, tree, label="species")
    with pytest.raises(ValueError, match="different classes"):
        agreement([kernel, random_kernel(FOUR[:3])], tree)
    with pytest.raises(ValueError, match="labels missing from the tree: cow"):
        agreement(random_kernel([*FOUR, "cow"]), tree)
    with pytest.raises(ValueError, match="0 kernels, and .* expected one or more"):
        agreement([], tree)
    with pytest.raises(ValueError, match="needs two chains"):
        agreement(kernel.of_chains([0]), tree)


def test_the_command_adds_the_hierarchy_and_writes_nothing_when_it_does_not_fit(
    call, tmp_path: Path, unchecked: None, no_page: None
):
    x, y = labelled(20, seed=1)
    labels = [f"class {int(label)}" for label in y]
    items, names = bif.Items((x, y), labels=labels), sorted(set(labels))
    bif.attribute(classification(train=items), TINY, out=tmp_path / "run")
    path = tmp_path / "tree.json"

    def write(classes: list[str]) -> nx.DiGraph:
        edges = [("r", "x"), ("x", classes[0]), ("x", classes[1])]
        graph = nx.DiGraph([*edges, *(("r", name) for name in classes[2:])])
        path.write_text(json.dumps(nx.node_link_data(graph, edges="edges")))
        return graph

    out = "--out", tmp_path / "k", "--layout", "none"
    arguments = "kernel", tmp_path / "run", *out, "--hierarchy", path
    write(["x1", *names[1:]])
    assert f"labels missing from the tree: {names[0]}" in failed(call(*arguments))
    assert not (tmp_path / "k").exists()
    graph = write(names)
    code, out, said = call(*arguments)
    assert code == 0 and "triplet_accuracy: " in out and "detectable_correlation" in out, said
    found = json.loads((tmp_path / "k" / store.SUMMARY).read_text())["hierarchy"]
    expected = agreement(bif.loss_kernel(bif.load(tmp_path / "run")), tree_of(graph))
    assert found == json.loads(json.dumps(store.plain(expected.to_dict())))
    refused = call("kernel", "--example", "two-tasks", "--out", tmp_path / "t", "--hierarchy", path)
    assert "not with an --example" in failed(refused)


def test_places_in_order_are_equal_for_equal_values():
    assert in_order(np.array([[3.0, 1.0], [1.0, 7.0]])).tolist() == [[1, 0], [0, 2]]
