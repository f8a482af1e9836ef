"""Learning coefficients that are known: what an estimate tends to for much data and small gamma."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil


def normal_crossing(powers: Sequence[int]) -> tuple[float, int]:
    """Return λ and its multiplicity for `L = c·Π_j w_j^(2 k_j)` around 0.

    `λ = min_j 1/(2 k_j)`, and the multiplicity is how many of the weights have it.

    Args:
        powers: k_j of every weight, at least 0, of which one is above it.

    Raises:
        ValueError: None above 0, or one below.

    Source: Watanabe 2009, "Algebraic geometry and statistical learning theory", section 4.2.

    >>> normal_crossing([1, 1]), normal_crossing([2, 1])
    ((0.5, 2), (0.25, 1))
    """
    if min(powers, default=-1) < 0 or max(powers) == 0:
        raise ValueError(f"powers are {list(powers)}: expected whole numbers ≥ 0, one above 0.")
    return 1 / (2 * max(powers)), list(powers).count(max(powers))


def reduced_rank_regression(inputs: int, hidden: int, outputs: int, rank: int) -> tuple[float, int]:
    """Return λ and its multiplicity for `y = B A x` with a true map of some rank.

    Args:
        inputs: M, columns of A; hidden: H, its rows; outputs: N, rows of B; rank: r ≤ min(M, H, N).

    Raises:
        ValueError: A size below 1, or a rank that the sizes do not allow.

    Source: Aoyagi and Watanabe 2005, "Stochastic complexities of reduced rank regression in
    Bayesian estimation", Neural Networks 18, theorem 1.

    >>> reduced_rank_regression(3, 2, 3, 0), reduced_rank_regression(4, 4, 4, 2)
    ((2.5, 1), (7.5, 1))
    """
    M, H, N, r = inputs, hidden, outputs, rank
    _refuse_sizes([M, H, N], r)
    if M + H < N + r:
        return (H * M - H * r + N * r) / 2, 1
    if N + H < M + r:
        return (H * N - H * r + M * r) / 2, 1
    if M + N < H + r:
        return M * N / 2, 1
    total = -((H + r) ** 2) - M**2 - N**2 + 2 * (H + r) * (M + N) + 2 * M * N
    odd = (M + H + N + r) % 2
    return (total + odd) / 8, 1 + odd


def deep_linear_network(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """Return λ and its multiplicity for `y = W_K … W_1 x` with a true map of some rank.

    Args:
        widths: Of inputs, hidden layers and outputs; rank: of the true map.

    Raises:
        ValueError: Fewer than two widths, one below 1, or a rank that they do not allow.

    Source: Aoyagi 2024, "Consideration on the learning efficiency of multiple-layered neural
    networks with linear units", Neural Networks 172, theorem 1.

    >>> deep_linear_network([2, 3], 1), deep_linear_network([1, 1, 1, 1], 0)
    ((3.0, 1), (0.5, 3))
    """
    _refuse_sizes(widths, rank)
    if len(widths) < 2:
        raise ValueError(
            f"widths are {list(widths)}: expected those of inputs and outputs at least."
        )
    excess = sorted(width - rank for width in widths)
    few = excess[:2]  # the bottleneck: the smallest widths, as many as bound each other
    while len(few) < len(excess) and sum(few) >= (len(few) - 1) * excess[len(few)]:
        few = excess[: len(few) + 1]
    count, total = len(few) - 1, sum(few)
    whole = ceil(total / count)
    left = total - (whole - 1) * count
    pairs = (total**2 - sum(x * x for x in few)) / 2
    value = (
        rank * (widths[0] + widths[-1] - rank) / 2
        + left * (count - left) / (4 * count)
        - (count - 1) * total**2 / (4 * count)
        + pairs / 2
    )
    return value, left * (count - left) + 1


def _refuse_sizes(widths: Sequence[int], rank: int) -> None:
    if min(widths, default=0) < 1 or not 0 <= rank <= min(widths):
        raise ValueError(
            f"widths {list(widths)} and rank {rank}: expected widths of at least 1, and a rank "
            "from 0 to the smallest of them."
        )
