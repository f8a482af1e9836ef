"""Trees of classes from graphs and files, and what is no tree."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from bif.kernel import ClassTree, read_tree, tree_of
from class_trees import binary, graph_of

ANIMALS = graph_of(
    "all animal", "all car 3", "animal pet 0.5", "animal wolf", "pet cat", "pet dog", "car van"
)


def test_distances_are_lengths_of_shortest_paths():
    tree = tree_of(ANIMALS)
    assert sorted(tree.classes) == ["cat", "dog", "van", "wolf"]
    for edge in ANIMALS.edges.values():
        edge.setdefault("length", 1.0)
    lengths = dict(nx.all_pairs_dijkstra_path_length(ANIMALS.to_undirected(), weight="length"))
    expected = [[lengths[a][b] for b in tree.classes] for a in tree.classes]
    np.testing.assert_allclose(tree.distance, expected, rtol=1e-12)


def test_equal_sums_of_lengths_are_equal_to_the_last_bit():
    tree = tree_of(graph_of("r a 0.1", "a b 0.2", "r c 0.3", "r d 0.3", "c e 0.1", "d f 0.1"))
    chosen = tree.of_classes(["b", "e", "f"])
    assert len(np.unique(chosen.distance)) == 3  # 0, 0.7 and 0.8
    assert (chosen.distance == chosen.distance.T).all()


def parted(tree: ClassTree) -> list[set[str]]:
    """Return the groups of each level."""
    return [
        {" ".join(sorted(np.array(tree.classes)[level == k])) for k in set(level)}
        for level in tree.groups
    ]


def test_levels_of_some_classes_are_those_that_part_them():
    tree = tree_of(ANIMALS).of_classes(["cat", "dog", "van", "wolf"])
    assert tree.classes == ("cat", "dog", "van", "wolf")
    assert parted(tree) == [{"cat dog wolf", "van"}, {"cat dog", "van", "wolf"}]
    assert parted(tree_of(ANIMALS).of_classes(["van", "dog", "cat"])) == [{"cat dog", "van"}]
    eight = tree_of(binary(3))
    assert [len(set(level)) for level in eight.of_classes(eight.classes).groups] == [2, 4]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dog", "cow"], "labels missing from the tree: cow. Each label"),
        (["cat", "pet", "van"], r"missing from the tree: pet \(pet: no leaf, but a group"),
        (["cat", "dog"], r"2 classes \(cat, dog\), expected three"),
        ([*"abcdefg", "cat"], "tree: a, b, c, d, e and 2 more"),
    ],
)
def test_classes_that_the_tree_cannot_hold_are_named(classes: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        tree_of(ANIMALS).of_classes(classes)


def test_a_tree_in_which_all_are_equally_far_apart_says_nothing():
    with pytest.raises(ValueError, match="all 3 classes are equally far apart"):
        tree_of(graph_of("r a", "r b", "r c")).of_classes(["a", "b", "c"])


def doubled() -> nx.MultiDiGraph:
    return nx.MultiDiGraph([("r", "a"), ("r", "a"), ("r", "b")])


def of_two_types() -> nx.DiGraph:
    return nx.DiGraph([("r", "1"), ("r", 1)])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.DiGraph(), "no nodes"),
        (nx.Graph([("r", "a")]), 'no direction, expected "directed": true'),
        (graph_of("r a", "a b", "b a"), "has no cycle, and here is one: (a -> b -> a|b -> a -> b)"),
        (graph_of("r a", "a a"), "here is one: a -> a"),
        (graph_of("r a", "r b", "a c", "b c"), r"c has 2 parents \(a, b\), expected one"),
        (graph_of("r a", "s b"), r"2 roots \(r, s\), expected one"),
        (graph_of("r a -1"), "from r to a has length -1.0, expected a number above 0"),
        (graph_of("r a nan"), "has length nan"),
        (doubled(), "a has 2 parents"),
        (of_two_types(), "several nodes have one name: 1"),
    ],
)  # fmt: skip
def test_what_is_no_tree_is_refused(graph: nx.DiGraph, message: str):
    with pytest.raises(ValueError, match=message):
        tree_of(graph)


@pytest.mark.parametrize("word", ["edges", "links"])
def test_files_of_networkx_are_read_by_either_name_of_edges(tmp_path: Path, word: str):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(nx.node_link_data(ANIMALS, edges=word)))
    tree = read_tree(path)
    assert tree.classes == tree_of(ANIMALS).classes
    np.testing.assert_array_equal(tree.distance, tree_of(ANIMALS).distance)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "expected a JSON object, got a list"),
        ("3", "expected a JSON object, got a int"),
        ("{}", "'nodes'|edges"),
        ('{"nodes": [{"id": [[]]}]}', ""),
        pytest.param("[" * 100_000, "recursion", id="nested"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "tree.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"tree.json.*({message})"):
        read_tree(path)


def test_a_file_that_is_no_tree_is_named_with_what_is_wrong(tmp_path: Path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(nx.node_link_data(graph_of("r a", "s b"), edges="edges")))
    with pytest.raises(ValueError, match=r"tree.json: 2 roots"):
        read_tree(path)
