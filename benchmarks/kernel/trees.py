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
"""WordNet's hypernyms of the ten nouns, without nodes of a single child."""
TREES = {"fashion": FASHION, "cifar": CIFAR}


def edges(name: str) -> list[tuple[str, str]]:
    """Return the edges of a tree, from parent to child, each once."""
    found = []
    for line in TREES[name].strip().splitlines():
        *way, leaves = (part.strip() for part in line.split(">"))
        way = ["all", *way]
        found += zip(way, way[1:], strict=False)
        found += [(way[-1], leaf.strip()) for leaf in leaves.split(",")]
    return list(dict.fromkeys(found))


def class_tree(name: str) -> ClassTree:
    """Return a tree as the kernel's agreement takes it."""
    import networkx as nx

    from bif.kernel import tree_of

    return tree_of(nx.DiGraph(edges(name)))


def levels(name: str) -> dict[str, dict[str, str]]:
    """Return the group of each class at each depth below the root, by "G groups".

    Depths at which a class has ended are left out.
    """
    ways = {}
    for line in TREES[name].strip().splitlines():
        *way, leaves = (part.strip() for part in line.split(">"))
        ways |= {leaf.strip(): way for leaf in leaves.split(",")}
    found = {}
    for depth in range(min(map(len, ways.values()))):
        groups = {leaf: way[depth] for leaf, way in ways.items()}
        found[f"{len(set(groups.values()))} groups"] = groups
    return {n: groups for n, groups in found.items() if n != "1 groups"}
