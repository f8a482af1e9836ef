"""Nearest items of each item: exact or approximate, and which of them are more than noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from bif.estimate.item_kernel import ItemKernel, refuse_other_counts
from bif.estimate.loss_kernel import LossKernel, refuse_without_chains
from bif.estimate.parallel import threads_of_torch
from bif.extras import needs_extra

Search = Literal["auto", "exact", "approximate"]
MOST_EXACT = 100_000
"""Items up to which the search is exact: 8 minutes on one core at 2,000 draws."""
_CANDIDATES = 4
"""Items that are looked at for each neighbour that is wanted."""
_ELEMENTS = 2**25
"""Numbers of candidates' traces that are held at a time."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other items of each item, by correlation.

    Attributes:
        places: Positions, the nearest first, `[N, k]`.
        values: Correlations, of the whole traces, `[N, k]`.
        exact: Whether all pairs were looked at.
        recall: Share of the true neighbours that were found; of 1,000 items at random if not exact.
    """

    places: np.ndarray
    values: np.ndarray
    exact: bool
    recall: float


def find_neighbours(
    kernel: ItemKernel, count: int = 15, *, search: Search = "auto", seed: int = 0
) -> Neighbours:
    """Return the nearest other items of each, by correlation.

    An approximate search descends the graph of neighbours over the whole traces, looks at four
    times as many candidates, and computes their correlations anew.

    Args:
        kernel: Of the items.
        count: Neighbours of each.
        search: "exact" looks at all pairs, `N² M` products; "auto" does up to 100,000 items.
        seed: Of the approximate search, and of the items by which it is judged.

    Raises:
        ValueError: As many neighbours as items, or none; an unknown search.
        ImportError: pynndescent, which umap-learn brings, is missing (extra `maps`).

    Source: Dong, Moses & Li 2011, "Efficient k-nearest neighbor graph construction for generic
    similarity measures".
    """
    if search not in ("auto", "exact", "approximate"):
        raise ValueError(f"no search {search!r}: expected 'auto', 'exact' or 'approximate'.")
    if search == "exact" or (search == "auto" and len(kernel) <= MOST_EXACT):
        return Neighbours(*kernel.nearest(count), exact=True, recall=1.0)
    refuse_other_counts(count, len(kernel))
    places, values = _descend(kernel, count, seed)
    return Neighbours(places, values, exact=False, recall=recall(kernel, places, seed=seed))


def recall(
    kernel: ItemKernel, places: np.ndarray, *, num_items: int = 1000, seed: int = 0
) -> float:
    """Return the share of true nearest items that are among the found, over random items.

    Args:
        kernel: Of the items.
        places: Positions of the found, `[N, k]`.
        num_items: At random; all if there are no more.
        seed: Of the choice.

    Raises:
        ValueError: Neighbours of another number of items.
    """
    if len(places) != len(kernel):
        raise ValueError(f"neighbours of {len(places)} items, expected of {len(kernel)}.")
    count, total = places.shape[1], len(kernel)
    rows = np.random.default_rng(seed).permutation(total)[:num_items]
    x, found = kernel.embedding(), []
    for part in np.array_split(rows, -(-len(rows) // 256)):
        block = x[part] @ x.T
        block[torch.arange(len(part)), torch.from_numpy(part)] = -torch.inf
        found.append(kept_share(places[part], block.topk(count, dim=1).indices.numpy()))
    return float(np.concatenate(found).mean())


def kept_share(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of each item's neighbours that both name, `[N]`.

    Args:
        first: Positions of neighbours, `[N, k]`.
        second: Positions of as many, `[N, k]`.

    Raises:
        ValueError: Neighbours of other shapes.

    >>> kept_share(np.array([[1, 2]]), np.array([[2, 3]])).tolist()
    [0.5]
    """
    if first.shape != second.shape:
        raise ValueError(f"neighbours are {first.shape} and {second.shape}, expected the same.")
    return (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)


def shared_neighbours(kernels: Sequence[ItemKernel], count: int = 15) -> np.ndarray:
    """Return the share of neighbours that two kernels both name, `[N]`, as a mean over pairs.

    Such as of several sampler seeds, or of the halves of the chains.  By chance it is
    `count / (N - 1)`.

    Args:
        kernels: Two or more, of the same items in the same order.
        count: Neighbours of each item.

    Raises:
        ValueError: A single kernel; kernels of other items.
    """
    if len(kernels) < 2:
        raise ValueError(f"{len(kernels)} kernels, expected two or more to compare.")
    for k, kernel in enumerate(kernels):
        if kernel.ids != kernels[0].ids:
            raise ValueError(
                f"kernel {k} is of {len(kernel)} items, and not the {len(kernels[0])} of kernel 0 "
                "in their order: take the same items, by `of_items`."
            )
    places = [find_neighbours(kernel, count).places for kernel in kernels]
    shares = [kept_share(a, b) for a, b in itertools.combinations(places, 2)]
    return np.mean(shares, axis=0)


@dataclass(frozen=True, eq=False)
class Stability:
    """Which neighbours two independent halves of the chains both name.

    Attributes:
        kept: Share of an item's neighbours, `[N]`; 0 of one whose loss never moves in a half, which
            has no neighbours.
        by_hubs: What it would be if the second half's lists were dealt to the items at random: a
            few items that are near to all are in every list.  `[N]`.
        stable: Whether so many would be kept by that chance with at most the given probability,
            `[N]`.
    """

    kept: np.ndarray
    by_hubs: np.ndarray
    stable: np.ndarray


def neighbour_stability(
    kernel: LossKernel, count: int = 15, *, false_alarms: float = 0.01
) -> Stability:
    """Return which share of its neighbours each item keeps between halves of the chains.

    A neighbour that the first half names is in a list of the second, dealt to the items at random,
    with probability `c_m / (N - 1)`, `c_m` being the number of lists it is in.  The number kept
    then has a tail below that of a binomial with their mean, and an item is stable where this tail
    is at most `false_alarms`, with either half as the first.  The whole run's neighbours are better
    than those of its halves, so this is the less that can be said of them.

    Args:
        kernel: Of at least two chains.
        count: Neighbours of each item.
        false_alarms: Most items of noise, as a share, that are called stable.

    Raises:
        ValueError: No chains, or a single one; as many neighbours as items; a rate outside of 0 to
            1.

    Source: Hoeffding 1956, "On the distribution of the number of successes in independent trials",
    for the bound.
    """
    from scipy.stats import binom

    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms is {false_alarms:g}, expected a share between 0 and 1.")
    refuse_without_chains(kernel, "stable neighbours")
    halves = kernel.halves()
    first, second = (find_neighbours(half, count).places for half in halves)
    moves = np.logical_and(*(half.variance.numpy() > 0 for half in halves))
    kept = kept_share(first, second) * moves
    by_hubs = np.maximum(_by_hubs(first, second), _by_hubs(second, first))
    number = np.round(kept * count).astype(int)
    tail = binom.sf(number - 1, count, by_hubs)
    return Stability(kept, by_hubs, moves & (np.asarray(tail) <= false_alarms))


def _by_hubs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of the first's neighbours that are in a list of the second's, `[N]`."""
    lists = np.bincount(second.ravel(), minlength=len(second))
    return np.minimum(lists[first].mean(axis=1) / (len(first) - 1), 1.0)


def _descend(kernel: ItemKernel, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best of the candidates of a descent, by correlations of the whole traces."""
    with needs_extra("maps", "an approximate search of neighbours needs pynndescent"):
        from pynndescent import NNDescent
    x = kernel.embedding().float()
    most = min(_CANDIDATES * count, len(x) - 1)
    with threads_of_torch():
        index = NNDescent(
            x.numpy(), metric="cosine", n_neighbors=most + 1, random_state=seed, low_memory=True
        )
        graph = index.neighbor_graph
    assert graph is not None  # there is one until the index is compressed for queries
    candidates = torch.from_numpy(np.asarray(graph[0], dtype=np.int64))
    places, values = [], []
    size = max(1, _ELEMENTS // (candidates.shape[1] * x.shape[1]))
    for start in range(0, len(x), size):
        named = candidates[start : start + size]
        own = torch.arange(start, start + len(named))[:, None]
        found = torch.bmm(x[named], x[start : start + size, :, None]).squeeze(2)
        found[(named == own) | (named < 0)] = -torch.inf
        best = found.topk(count, dim=1)
        places.append(named.gather(1, best.indices))
        values.append(best.values)
    return torch.cat(places).numpy(), torch.cat(values).numpy()
