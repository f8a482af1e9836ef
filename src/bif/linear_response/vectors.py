"""Forecast of the vectors that the linear systems of queries hold."""

from __future__ import annotations

from dataclasses import dataclass

from bif.problem.problem import Problem
from bif.problem.weights import NARROW
from bif.sampling.device_memory import free_bytes, memory_of_host
from bif.sampling.factory import run_device
from bif.sampling.movable_weights import moving
from bif.sampling.settings import Settings
from bif.terminal import as_bytes

VECTORS = 10
"""Vectors of the weights' length that conjugate gradients hold of a query at most: gradient,
solution, two earlier ones, residual, direction, image, and copies of rows that are not solved."""
_ON_DEVICE, _ON_HOST = 5, 5
"""The vectors of these that products need beside them, and those that a step only adds to."""
_GPU_SHARE = 0.5
"""Part of a GPU's free memory for the vectors; passes of the model take most of the rest."""
_WAITING = 3
"""Vectors of a query that wait to be scored with others': its solution, an earlier one, and one of
the jackknife in the mean."""
_WAITING_SHARE = 0.25
"""Part of a GPU's free memory for them, where few queries are solved together."""
_HOST_SHARE = 0.5
"""Part of the host's memory for them, at most."""
_HOST_BYTES = 6 * 2**30
"""Bytes for them on the host, at most: more queries together are hardly faster there."""

_COLUMNS = 64
"""Train columns of a block of self-influence, at most: a block that ends is kept on disk."""


@dataclass(frozen=True)
class Vectors:
    """Vectors of the queries that are solved together.

    Attributes:
        num_weights: P, the length of a vector.
        row_bytes: Bytes of a query's vectors.
        num_rows: Queries that are solved together.
        num_scored: Queries whose solutions wait for one pass over the items' gradients, where these
            are more than are solved together; 0 if none wait.
        on_host: Whether what a step only adds to stays on the host, where the device has no room
            for all: moving it there takes about as long as a product.
    """

    num_weights: int
    row_bytes: int
    num_rows: int
    num_scored: int = 0
    on_host: bool = False

    def in_words(self) -> str:
        """Return what they take."""
        where = f", {_ON_HOST} of them on the host" if self.on_host else ""
        if self.num_scored:
            where += f", and the solutions of {self.num_scored} are scored together"
        return (
            f"each has {VECTORS} vectors of {self.num_weights:,} weights, "
            f"{as_bytes(self.row_bytes)}, which is {as_bytes(self.num_rows * self.row_bytes)} "
            f"together{where}"
        )


def forecast_vectors(problem: Problem, settings: Settings) -> Vectors:
    """Return how many queries are solved together, by the memory that is free now.

    Args:
        problem: What is to be attributed.
        settings: With `estimator="response"`; `movable` and `device` matter.

    Raises:
        ValueError: Not even the vectors of one query fit.
    """
    parameters, device = problem.parameters(), run_device(problem, settings)
    leaves = [parameters[name] for name in moving(problem, settings.movable)]
    widths = [4 if leaf.dtype in NARROW else leaf.element_size() for leaf in leaves]
    num_weights = sum(leaf.numel() for leaf in leaves)
    row = VECTORS * sum(leaf.numel() * width for leaf, width in zip(leaves, widths, strict=True))
    free, on_gpu = free_bytes(device), device.type == "cuda"
    at_least = row * _ON_DEVICE // VECTORS if on_gpu else row
    if at_least > free:
        where = f"are free on {device}" if on_gpu else "are the host's memory"
        count = _ON_DEVICE if on_gpu else VECTORS
        raise ValueError(
            f"a query's linear system has {count} vectors of {num_weights:,} weights there, "
            f"{as_bytes(at_least)}, and {as_bytes(free)} {where}: solve for fewer weights "
            "(movable), or use a device with more memory."
        )
    room = _GPU_SHARE * free if on_gpu else min(_HOST_BYTES, _HOST_SHARE * free)
    most = problem.num_queries
    if settings.self_influence:
        most = max(most, min(_COLUMNS, problem.num_scored))
    fit = int(room // row)
    if fit >= 1 or not on_gpu:
        rows = max(1, min(most, fit))
        width = 2 if settings.precisions[0] == "bfloat16" else row / VECTORS / num_weights
        waiting = int(_WAITING_SHARE * free // (_WAITING * width * num_weights)) if on_gpu else 0
        waiting = min(waiting, problem.num_queries)
        return Vectors(num_weights, row, rows, num_scored=waiting if waiting > rows else 0)
    there = _HOST_SHARE * memory_of_host() // (row * _ON_HOST // VECTORS)
    with_host = int(min(most, room // at_least, there))
    return Vectors(num_weights, row, max(1, with_host), on_host=True)
