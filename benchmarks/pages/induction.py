"""The picture of influence over a training in which a head of induction forms."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.pages.runs import Run

_CURVES = (
    ("influence", "influence", "induction on induction", "#c2410c"),
    ("gradient product", "influence", "induction on induction, gradient product", "#1d4ed8"),
    ("prefix-matching score", "measures", "prefix_score", "#15803d"),
    ("in-context loss drop", "measures", "in_context_drop", "#71717a"),
)
"""Label, part of a seed's curves, name there and colour."""


def figure(run: Run) -> Any:
    """Draw influence and measures of induction over updates, a line a seed.

    Each is in units of its largest value after the first checkpoint in any seed; influence is
    turned, so that help is above.
    """
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 3.6), layout="constrained")
    panels = made.subplots(1, 2, sharey=True)
    for place, (label, part, name, colour) in enumerate(_CURVES):
        axes = panels[place // 2]
        steps = np.array(run["curves"][0][part]["step"])
        values = np.array([seed[part][name] for seed in run["curves"]], float)
        values = (-values if part == "influence" else values)[:, steps >= 80]
        values = values / values.max()
        for seed, line in enumerate(values):
            axes.plot(steps[steps >= 80], line, color=colour, lw=0.9, alpha=0.8,
                      label=None if seed else label)  # fmt: skip
    for axes in panels:
        axes.set_xlabel("updates")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel("share of the largest")
    return made
