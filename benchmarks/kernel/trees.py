"""The trees of classes that kernels are held against, stated before any kernel was looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bif.kernel import ClassTree

FASHION = """
    clothing > tops > T-shirt, pullover, dress, coat, shirt
    clothing > bottoms > trouser
    footwear > shoes > sandal, sneaker, boot
    accessories > bags > bag
"""
"""Tops, bottoms, shoes and bags; a dress covers the upper body."""
CIFAR = """
    object > instrumentality > craft > airplane, ship
    object > instrumentality > motor vehicle > automobile, truck
    object > vertebrate > bird, frog
    object > vertebrate > placental > carnivore > cat, dog
    object > vertebrate > placental > ungulate > deer, horse
"""
"""WordNet's hypernyms of the ten nouns, without nodes that have a single child."""
TREES = {"fashion": FASHION, "cifar": CIFAR}


def edges(name: str) -> list[tuple[str, str, float]]:
    """Return the edges of a tree from parent to child with their lengths, each once.

    Lengths are 1, and the last one of a class as long as makes all classes equally deep: then the
    distance says where two classes part, and not how many names are between.
    """
    ways = _ways(name)
    deepest = max(map(len, ways.values()))
    found: dict[tuple[str, str], float] = {}
    for leaf, way in ways.items():
        found |= dict.fromkeys(zip(["all", *way], way, strict=False), 1.0)
        found[way[-1], leaf] = deepest - len(way) + 1.0
    return [(*edge, length) for edge, length in found.items()]


def class_tree(name: str) -> ClassTree:
    """Return a tree as the kernel's agreement takes it."""
    import networkx as nx

    from bif.kernel import tree_of

    graph = nx.DiGraph()
    graph.add_weighted_edges_from(edges(name), weight="length")
    return tree_of(graph)


def levels(name: str) -> dict[str, dict[str, str]]:
    """Return the group of each class at each depth below the root, by "G groups".

    Depths at which a class has ended are left out.
    """
    ways = _ways(name)
    found = {}
    for depth in range(min(map(len, ways.values()))):
        groups = {leaf: way[depth] for leaf, way in ways.items()}
        found[f"{len(set(groups.values()))} groups"] = groups
    return {n: groups for n, groups in found.items() if n != "1 groups"}


def _ways(name: str) -> dict[str, list[str]]:
    """Return the nodes from below the root to above each class."""
    found = {}
    for line in TREES[name].strip().splitlines():
        *way, leaves = (part.strip() for part in line.split(">"))
        found |= {leaf.strip(): way for leaf in leaves.split(",")}
    return found
