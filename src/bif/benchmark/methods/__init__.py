"""The methods that the benchmark compares."""

from bif.benchmark.methods.base import Judge, Method, Scored, Unsuited
from bif.benchmark.methods.fluctuation import Fluctuation
from bif.benchmark.methods.response import Automatic, Responses
from bif.benchmark.methods.rivals import SameDamping, rivals
from bif.benchmark.methods.solving import solving


def all_methods() -> dict[str, Method]:
    """Return every method by name, in the order of the table."""
    ours = (
        Fluctuation(), Fluctuation("bif_anchored", anchored=True), Fluctuation.with_defaults(),
        Responses(), Automatic(), SameDamping(),
    )  # fmt: skip
    return {**rivals(), **solving(), **{method.name: method for method in ours}}


__all__ = ["Judge", "Method", "Scored", "Unsuited", "all_methods"]
