"""How well changes are predicted: R² without refitting, the seeds' noise taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.evaluate.resampling import resample_counts

GOOD = 0.9
"""R² up to which a prediction counts as good."""
_FEWEST = 5
"""Groups below which they are not resampled."""


@dataclass(frozen=True, eq=False)
class Counts:
    """How often a resample holds each group, seed and query; ones for the sample itself."""

    groups: np.ndarray
    seeds: np.ndarray
    queries: np.ndarray


def resamples(shape: tuple[int, ...], number: int, seed: int) -> list[Counts]:
    """Return the sample and resamples of changes `[G, Z, S, Q]`."""
    rng = np.random.default_rng(seed)
    num_groups, _, num_seeds, num_queries = shape
    drawn = [
        resample_counts(num_groups, number, rng)
        if num_groups >= _FEWEST else np.ones((number, num_groups)),
        resample_counts(num_seeds, number, rng),
        resample_counts(num_queries, number, rng),
    ]  # fmt: skip
    own = Counts(*(np.ones(count) for count in (num_groups, num_seeds, num_queries)))
    return [own, *(Counts(*counts) for counts in zip(*drawn, strict=True))]


@dataclass(frozen=True, eq=False)
class Truth:
    """Changes by retraining, and the variance of their mean over seeds.

    Attributes:
        changes: `[G, Z, S, Q]`.
        labels: Groups of the queries, `[Q]`; None where each query counts by itself.
    """

    changes: np.ndarray
    labels: np.ndarray | None

    def means(self, values: np.ndarray, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Return values `[…, Q]` of what is predicted, and its weights: queries, or their means."""
        if self.labels is None:
            return values, counts.queries
        names = np.unique(self.labels)
        members = (self.labels == names[:, None]) * counts.queries
        total = members.sum(axis=1)
        return values @ (members / np.maximum(total, 1)[:, None]).T, (total > 0).astype(float)

    def sums(self, predictions: np.ndarray, counts: Counts) -> dict[str, np.ndarray]:
        """Return sums over queries and groups at every size.

        The variance of a mean of S seeds, by their spread, is taken out of squares of errors and of
        changes.  A resample of seeds spreads once more around the seeds' own mean, so that the
        variance of that is taken out of it, too.

        Args:
            predictions: `[M, G, Z, Q]`.
            counts: A resample.

        Returns:
            "errors" and "products" and "squares", `[M, Z]`; "changes" and "noise", `[Z]`.
        """
        changes, weights = self.means(self.changes, counts)
        told, _ = self.means(predictions, counts)
        mean, noise = _mean_and_noise(changes, counts.seeds)
        if not np.all(counts.seeds == 1):
            noise = noise + _mean_and_noise(changes, np.ones(len(counts.seeds)))[1]

        def total(values: np.ndarray) -> np.ndarray:
            return np.einsum("...gzq,g,q->...z", values, counts.groups, weights)

        taken = total(noise)
        return {
            "errors": total((told - mean) ** 2) - taken, "changes": total(mean**2) - taken,
            "products": total(told * mean), "squares": total(told**2), "noise": taken,
        }  # fmt: skip


def _mean_and_noise(changes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over seeds and the variance of that mean, `[G, Z, Q]`."""
    number = counts.sum()
    mean = np.einsum("gzsq,s->gzq", changes, counts) / number
    if number < 2:
        return mean, np.zeros_like(mean)
    square = np.einsum("gzsq,s->gzq", (changes - mean[:, :, None]) ** 2, counts)
    return mean, square / (number * (number - 1))


def scores(
    truth: Truth, predictions: dict[str, np.ndarray], sizes: Sequence[float],
    differences: Sequence[tuple[str, str]], *, number: int, seed: int,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Return R² by size, differences of it, and how far it is good.

    Args:
        truth: What is predicted.
        predictions: By method, `[G, Z, Q]`.
        sizes: Z of them, rising.
        differences: Pairs of methods; how much better the first is, on the same resamples.
        number: Resamples.
        seed: Of the resamples.

    Returns:
        "curves": `R² = 1 - Σ(told - mean)²/Σ mean²` of each method and size with its interval, and
        the slope of the changes on what was told.  "differences" the same.  "radii": the largest
        size, down and up, up to which R² is at least .9; 0 where it is at none.
    """
    names = list(predictions)
    stacked = np.stack([predictions[name] for name in names])
    drawn = [
        truth.sums(stacked, counts)
        for counts in resamples(truth.changes.shape, number, seed)
    ]  # fmt: skip
    squares = np.stack([1 - sums["errors"] / sums["changes"] for sums in drawn])  # [1 + R, M, Z]
    own, count = drawn[0], truth.means(truth.changes, resamples(truth.changes.shape, 1, 0)[0])[0]
    per_size = count[:, 0, 0].size
    found: dict[str, list[dict[str, Any]]] = {"curves": [], "differences": [], "radii": []}
    for m, name in enumerate(names):
        for z, size in enumerate(sizes):
            slope = own["products"][m, z] / own["squares"][m, z] if own["squares"][m, z] else None
            found["curves"].append({
                "method": name, "size": size, **_interval("r2", squares[:, m, z]), "slope": slope,
                "rms_change": float(np.sqrt(max(own["changes"][z], 0) / per_size)),
                "noise_share": float(own["noise"][z] / (own["changes"][z] + own["noise"][z])),
            })  # fmt: skip
        reach = np.stack([radii(row, sizes) for row in squares[:, m]])
        found["radii"].append({
            "method": name, **_interval("radius_down", reach[:, 0]),
            **_interval("radius_up", reach[:, 1]),
        })  # fmt: skip
    for better, worse in differences:
        gain = squares[:, names.index(better)] - squares[:, names.index(worse)]
        found["differences"] += [
            {"method": better, "less": worse, "size": size, **_interval("difference", gain[:, z])}
            for z, size in enumerate(sizes)
        ]
    return found


def radii(squares: np.ndarray, sizes: Sequence[float]) -> tuple[float, float]:
    """Return the largest size down and up, up to which R² `[Z]` is at least .9."""
    x = np.asarray(sizes)
    reached = []
    for sign in (-1, 1):
        order = np.argsort(np.abs(x[x * sign > 0]))
        good = (squares[x * sign > 0] >= GOOD)[order]
        steps = int(np.argmin([*good, False]))
        reached.append(float(np.abs(x[x * sign > 0])[order][steps - 1]) if steps else 0.0)
    return reached[0], reached[1]


def one_network(truth: Truth) -> np.ndarray:
    """Return the R² by size of retraining a single network, for the mean of others, `[Z]`.

    One less the variance of the seeds over the squared mean change.
    """
    counts = resamples(truth.changes.shape, 1, 0)[0]
    sums = truth.sums(np.zeros((1, *truth.changes[:, :, 0].shape)), counts)
    return 1 - sums["noise"] * truth.changes.shape[2] / sums["changes"]


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975], method="inverted_cdf")
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
