"""Curves of influence over a training, with error bars, as one SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bif.extras import needs_extra

_WIDE, _HIGH = 8.0, 2.4
"""Inches of a panel."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by the colour-blind, too (Okabe and Ito)."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A quantity at every checkpoint.

    Attributes:
        name: In the legend.
        values: `[K]`.
        errors: Half the length of each error bar, `[K]`; none by default.
        dashed: Whether it is drawn so, as what a curve is compared with.
    """

    name: str
    values: np.ndarray
    errors: np.ndarray | None = None
    dashed: bool = False


def draw_curves(
    steps: Sequence[int],
    panels: Mapping[str, Sequence[Curve]],
    *,
    marked: Mapping[str, int] | None = None,
) -> str:
    """Return an SVG of panels above one another, over the steps of training.

    Args:
        steps: Of the checkpoints, `[K]`.
        panels: The curves of each, by what its axis says.
        marked: Steps that a thin line marks in every panel, by what they are.
    """
    with needs_extra("report", "Curves over a training need matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "bif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(_WIDE, _HIGH * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (label, curves) in zip(axes, panels.items(), strict=True):
            axis.axhline(0, color="#999999", linewidth=0.6)
            for step in (marked or {}).values():
                axis.axvline(step, color="#999999", linewidth=0.6, linestyle=":")
            for curve, colour in zip(curves, _COLOURS * len(curves), strict=False):
                axis.errorbar(
                    steps, curve.values, yerr=curve.errors, label=curve.name, color=colour,
                    linewidth=1.2, elinewidth=0.8, linestyle="--" if curve.dashed else "-",
                )  # fmt: skip
            axis.set_ylabel(label)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize="small", loc="best")
        for k, (name, step) in enumerate((marked or {}).items()):
            axes[0].annotate(  # neighbours on lines of their own
                name, (step, 1.0 + 0.09 * (k % 2)), xycoords=("data", "axes fraction"),
                fontsize="x-small", ha="center", va="bottom",
            )  # fmt: skip
        axes[-1].set_xlabel("steps of training")
        held = io.StringIO()
        figure.savefig(held, format="svg", metadata={"Date": None})
    return held.getvalue()
