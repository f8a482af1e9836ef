"""A tree of classes: how far apart they are in it, and its groups of them at each level."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bif.extras import needs_extra

if TYPE_CHECKING:
    import networkx as nx

_SHOWN = 5
"""Names that an error shows."""
_DIGITS = 12
"""Decimal digits of a distance as a part of the largest: below, sums differ by rounding alone."""


@dataclass(frozen=True, eq=False)
class ClassTree:
    """A tree whose leaves are classes.

    Attributes:
        classes: The leaves' names.
        distance: Length of the path between two leaves, through their lowest common ancestor,
            `[C, C]`.
        groups: Which ancestor each leaf has at each depth below the root, or the leaf itself where
            it is no deeper, `[L, C]`.  Only the number's being the same or another says anything.
        inner: Names of the nodes that are no leaves.
    """

    classes: tuple[str, ...]
    distance: np.ndarray
    groups: np.ndarray
    inner: frozenset[str] = frozenset()

    def of_classes(self, classes: Sequence[str]) -> ClassTree:
        """Return the tree of some of the classes, in the order given.

        Only those levels stay at which some classes are together and some apart, each once, from
        the fewest groups to the most.

        Raises:
            ValueError: Classes that are no leaves; fewer than three; all equally far apart.
        """
        missing = sorted(set(classes) - set(self.classes))
        if missing:
            inner = [name for name in missing if name in self.inner]
            why = f" ({_shown(inner)}: no leaf, but a group of others)" if inner else ""
            raise ValueError(
                f"labels missing from the tree: {_shown(missing)}{why}. Each label has to be the "
                "name of a leaf."
            )
        if len(set(classes)) < 3:
            raise ValueError(
                f"{len(set(classes))} classes ({_shown(sorted(set(classes)))}), expected three or "
                "more: two have one distance."
            )
        places = [self.classes.index(name) for name in classes]
        distance = self.distance[np.ix_(places, places)]
        apart = distance[~np.eye(len(places), dtype=bool)]
        if apart.min() == apart.max():
            raise ValueError(
                f"all {len(places)} classes are equally far apart in the tree, so it says nothing "
                "of which are alike."
            )
        levels: dict[int, np.ndarray] = {}
        for level in self.groups[:, places]:
            names, numbered = np.unique(level, return_inverse=True)
            if 1 < len(names) < len(places):
                levels.setdefault(len(names), numbered)
        groups = np.array([levels[count] for count in sorted(levels)], dtype=int)
        return ClassTree(
            tuple(classes), distance, groups.reshape(len(levels), len(places)), self.inner
        )


def read_tree(path: str | Path) -> ClassTree:
    """Return the tree of a file of `networkx.node_link_data`, whose leaves are named by their id.

    Edges go from parent to child, and may have a `length`, which is 1 by default.

    Raises:
        ValueError: No such JSON, or what it says is no tree.
        ImportError: networkx is not installed.
    """
    with needs_extra("maps", "trees of classes are read by networkx"):
        import networkx as nx
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"expected a JSON object, got a {type(content).__name__}")
        # networkx before 3.4 wrote "links"
        word = "links" if "links" in content else "edges"
        graph = nx.node_link_graph(content, edges=word)
    except (
        ValueError, TypeError, KeyError, AttributeError, RecursionError, nx.NetworkXError
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} is no tree as networkx.node_link_data writes it, with nodes and edges: {error}"
        ) from error
    try:
        return tree_of(graph)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def tree_of(graph: nx.DiGraph) -> ClassTree:
    """Return the tree of a graph, whose leaves are named by their node.

    Args:
        graph: With edges from parent to child, that may have a `length`, 1 by default.

    Raises:
        ValueError: Edges without direction, a cycle, several roots, a node of several parents, two
            nodes of one name, or lengths that are no positive numbers.
    """
    with needs_extra("maps", "trees of classes are checked by networkx"):
        import networkx as nx
    _refuse_what_is_no_tree(graph)
    order = list(nx.topological_sort(graph))
    depth, height = {order[0]: 0}, {order[0]: 0.0}
    for parent, child in nx.bfs_edges(graph, order[0]):
        depth[child] = depth[parent] + 1
        height[child] = height[parent] + _length(graph, parent, child)
    leaves = [node for node in order if graph.out_degree(node) == 0]
    own = {leaf: [place] for place, leaf in enumerate(leaves)}
    under = {node: list(own.get(node, [])) for node in order}
    for node in reversed(order[1:]):
        under[next(iter(graph.predecessors(node)))] += under[node]
    # From the root down, so that the last to write is the lowest common ancestor.
    shared = np.zeros((len(leaves), len(leaves)))
    levels = max(depth[leaf] for leaf in leaves)
    groups = np.tile(len(order) + np.arange(len(leaves)), (levels, 1))
    for number, node in enumerate(order):
        shared[np.ix_(under[node], under[node])] = height[node]
        if depth[node]:
            groups[depth[node] - 1, under[node]] = number
    heights = np.array([height[leaf] for leaf in leaves])
    distance = heights[:, None] + heights[None, :] - 2 * shared
    np.fill_diagonal(distance, 0.0)
    # one number for all sums of lengths that rounding alone makes different
    rounded = np.round(distance / (distance.max() or 1.0), _DIGITS)
    _, first, same = np.unique(rounded, return_index=True, return_inverse=True)
    distance = distance.ravel()[first][same].reshape(distance.shape)
    inner = frozenset(str(node) for node in order if node not in own)
    return ClassTree(tuple(map(str, leaves)), distance, groups, inner)


def _refuse_what_is_no_tree(graph: nx.DiGraph) -> None:
    import networkx as nx

    if not len(graph):
        raise ValueError("the tree has no nodes.")
    if not graph.is_directed():
        raise ValueError('the edges have no direction, expected "directed": true, parent to child.')
    if not nx.is_directed_acyclic_graph(graph):
        edges = list(nx.find_cycle(graph))
        cycle = " -> ".join(str(edge[0]) for edge in [*edges, edges[0]])
        raise ValueError(f"a tree has no cycle, and here is one: {cycle}.")
    for node, parents in graph.in_degree():
        if parents > 1:
            raise ValueError(
                f"{node} has {parents} parents ({_shown(sorted(map(str, graph.pred[node])))}), "
                "expected one."
            )
    roots = [str(node) for node, parents in graph.in_degree() if parents == 0]
    if len(roots) > 1:
        raise ValueError(
            f"{len(roots)} roots ({_shown(roots)}), expected one: join them under a node."
        )
    names = [str(node) for node in graph]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several nodes have one name: {_shown(twice)}.")


def _length(graph: nx.DiGraph, parent: object, child: object) -> float:
    found = graph.get_edge_data(parent, child)
    # a multigraph has edges by key
    found = next(iter(found.values())) if graph.is_multigraph() else found
    length = found.get("length", 1.0)
    known = isinstance(length, int | float) and not isinstance(length, bool)
    if not (known and 0 < length < float("inf")):
        raise ValueError(
            f"the edge from {parent} to {child} has length {length!r}, expected a number above 0."
        )
    return float(length)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
