"""Trees of classes, and kernels that follow them exactly."""

from __future__ import annotations

import itertools

import networkx as nx
import torch

from bif import LossKernel

CHAINS, DRAWS = 4, 40


def graph_of(*edges: str) -> nx.DiGraph:
    """Return a graph of edges such as "root animal" or "root animal 2.5"."""
    graph = nx.DiGraph()
    for parent, child, *length in (edge.split() for edge in edges):
        graph.add_edge(parent, child, **({"length": float(length[0])} if length else {}))
    return graph


def binary(depth: int) -> nx.DiGraph:
    """Return a tree of two children at each node, named by the way to it: leaves are such as ab."""
    graph = nx.DiGraph()
    for length in range(depth):
        for way in map("".join, itertools.product("ab", repeat=length)):
            for turn in "ab":
                graph.add_edge(way or "root", way + turn)
    return graph


def kernel_of(
    losses: torch.Tensor, classes: list[str], *, name: str = "label", chains: int = CHAINS
) -> LossKernel:
    places = torch.arange(losses.shape[1]) * chains // losses.shape[1]
    ids = tuple(f"item {k}" for k in range(len(classes)))
    return LossKernel(losses, places, ids, {name: tuple(classes)})


def kernel_of_binary(depth: int, *, items: int = 2) -> LossKernel:
    """Return a kernel whose correlations are exactly linear in a binary tree's distances.

    Every node has a row of its own, all orthogonal and of mean zero, and an item's
    loss is the sum of those of its ancestors and of its own.
    """
    leaves = ["".join(way) for way in itertools.product("ab", repeat=depth)]
    classes = [leaf for leaf in leaves for _ in range(items)]
    parts = {leaf[:k] for leaf in leaves for k in range(1, depth + 1)}
    names = [*sorted(parts), *range(len(classes))]
    source = torch.Generator().manual_seed(0)
    draws = CHAINS * DRAWS
    noise = torch.randn(draws, len(names), generator=source, dtype=torch.float64)
    rows = dict(zip(names, torch.linalg.qr(noise - noise.mean(dim=0))[0].T, strict=True))
    losses = [
        rows[k] + sum(rows[leaf[:length]] for length in range(1, depth + 1))
        for k, leaf in enumerate(classes)
    ]
    return kernel_of(torch.stack(losses), classes)


def random_kernel(classes: list[str], *, seed: int = 0) -> LossKernel:
    source = torch.Generator().manual_seed(seed)
    shape = len(classes), CHAINS * DRAWS
    return kernel_of(torch.randn(shape, generator=source, dtype=torch.float64), classes)
