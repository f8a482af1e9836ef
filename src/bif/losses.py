"""Per-item losses and observables, ready made: the public name of `bif.problem.losses`.

Every function here takes `(model, batch)` and returns one number an item `[B]`, or one a token
`[B, T]`; token losses are *summed* to the item's loss by the library.
"""

from bif.problem.losses import (
    at_least_float32,
    averages,
    counted,
    counted_tokens,
    cross_entropy,
    margin,
    mean_over_counted,
    next_targets,
    next_token,
    next_token_mean,
    per_item,
    reads_masks,
    refuse_other_than_texts,
    squared_error,
)

__all__ = [
    "at_least_float32",
    "averages",
    "counted",
    "counted_tokens",
    "cross_entropy",
    "margin",
    "mean_over_counted",
    "next_targets",
    "next_token",
    "next_token_mean",
    "per_item",
    "reads_masks",
    "refuse_other_than_texts",
    "squared_error",
]
