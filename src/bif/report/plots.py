"""Plots of the diagnostics as SVG that takes its colours and font from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bif.extras import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LINE_POINTS = 8000
"""Points drawn over all chains of the trace plot: more would make the page large."""

# Colours that nothing else uses; each becomes a variable of the page's style sheet.
_INK, _FAINT, _BLUE, _ORANGE = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "--muted", _FAINT: "--line", _BLUE: "--blue", _ORANGE: "--orange"}
_NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_EDITS = {
    r"<style.*?</style>": "",
    r'<svg [^>]*(viewBox="[^"]*")[^>]*>': r'<svg \1 aria-hidden="true" focusable="false">',
    r'<g id="[^"]*"': "<g",
    r" font-family: [^;\"]*;": "",
    r"font: ([\d.]+px)[^;\"]*": r"font-size: \1",
    r"\s*\n\s*": " ",
}
"""Edits that no option of matplotlib makes: style, size and font are the page's, and the ids of
groups, unlike those that are referred to, are not salted."""


def traces(
    mean_loss: np.ndarray, draws: np.ndarray, *, center: float, marked: Sequence[int]
) -> str:
    """Return the mean loss [C, D] of every chain against its draws [D].

    `center` is the loss at the trained weights (NaN: not drawn); chains in `marked` stand out.
    """
    stride = max(1, mean_loss.size // _MAX_LINE_POINTS)
    opacity = float(np.clip(4 / max(1, len(mean_loss)), 0.3, 0.9))

    mean_loss = np.where(np.isfinite(mean_loss), mean_loss, np.nan)
    kept = [c for c in range(len(mean_loss)) if c not in marked] or list(range(len(mean_loss)))
    inside = np.append(mean_loss[kept].ravel(), center)
    inside = inside[np.isfinite(inside)]

    def draw(axes: Axes) -> None:
        if len(inside) and np.ptp(inside) > 0:
            margin = 0.05 * np.ptp(inside)
            axes.set_ylim(inside.min() - margin, inside.max() + margin)
        for c, line in enumerate(mean_loss):
            out = c in marked
            axes.plot(
                draws[::stride],
                line[::stride],
                color=_ORANGE if out else _BLUE,
                linewidth=1.4 if out else 0.8,
                alpha=1.0 if out else opacity,
                zorder=3 if out else 2,
            )
        if np.isfinite(center):
            axes.axhline(center, color=_INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xlabel("draw")
        axes.set_ylabel("mean training loss")

    return _svg(draw, "traces")


def reliability(draws: np.ndarray, values: np.ndarray) -> str:
    """Return reliability against the total number of draws, on a logarithmic axis."""

    def draw(axes: Axes) -> None:
        axes.axhline(0.8, color=_INK, linestyle=(0, (1, 2)), linewidth=1)
        axes.plot(draws, values, color=_BLUE, linewidth=1.6, marker="o", markersize=4)
        axes.set_xscale("log")
        ticks = _log_ticks(draws)
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()
        axes.set_ylim(min(0.0, float(np.nanmin(values))) - 0.02, 1.02)
        axes.set_xlabel("draws, all chains")
        axes.set_ylabel("reliability")

    return _svg(draw, "reliability")


def histogram(values: np.ndarray, *, name: str, mark: float, counted: str = "losses") -> str:
    """Return the distribution of a diagnostic over what is counted, a mark as a dotted line."""

    def draw(axes: Axes) -> None:
        low, high = float(values.min()), float(values.max())
        spread = max(high - low, 1e-3 * max(1.0, abs(high)))
        bins = np.linspace(low - 0.02 * spread, high + 0.02 * spread, 31).tolist()
        axes.hist(values, bins=bins, color=_BLUE, alpha=0.75, rwidth=0.9)
        left, right = axes.get_xlim()
        if left - spread < mark < right + spread:
            axes.axvline(mark, color=_INK, linestyle=(0, (1, 2)), linewidth=1)
        axes.locator_params(axis="both", nbins=5)
        axes.set_xlabel(name)
        axes.set_ylabel(counted)

    return _svg(draw, re.sub(r"\W", "", name).lower())


def standalone_svg(svg: str) -> str:
    """Return a plot of this module as a file of its own, in the page's colours on white."""
    colours = "--muted:#57606a;--line:#d8dee4;--blue:#1a66b0;--orange:#bc4c00"
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="500" height="310" '
        f'style="{colours};background:#fff;font-family:sans-serif" '
    )
    return svg.replace("<svg ", opening, 1) + "\n"


def _svg(draw: Callable[[Axes], None], name: str) -> str:
    """Return the SVG of one small plot; `name` salts the ids that the SVG refers to."""
    with needs_extra("report", "Plots in the report need matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 11.5,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.formatter.useoffset": False,
        "grid.color": _FAINT,
        "grid.linewidth": 0.6,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "ytick.major.size": 0,
        "path.simplify_threshold": 0.5,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.0, 3.1), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    return _inline(buffer.getvalue())


def _inline(svg: str) -> str:
    """Turn a stand-alone SVG document of matplotlib into an element of the page."""
    svg = svg[svg.index("<svg") :].replace("xlink:href=", "href=")
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    for pattern, replacement in _EDITS.items():
        svg = re.sub(pattern, replacement, svg, flags=re.S)
    return re.sub(
        r'\b(d|x|y|transform)="[^"]*"',
        lambda found: re.sub(r"(\.\d)\d+", r"\1", found.group(0)),
        svg,
    )


def _log_ticks(draws: np.ndarray) -> list[int]:
    """Return 1-2-5 or decade ticks within the range of draws, four or five at most."""
    low, high = max(1, int(draws.min())), max(1, int(draws.max()))
    decades = range(len(str(low)) - 1, len(str(high)) + 1)
    steps = (1, 2, 5) if high / low < 30 else (1, 3) if high / low < 300 else (1,)
    ticks = [s * 10**d for d in decades for s in steps if low <= s * 10**d <= high]
    return ticks or [high]
