"""A map as a picture for papers."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np

from bif.extras import needs_extra
from bif.report.map_source import ItemMap
from bif.report.palette import UNSTABLE, class_colours

_SIDE = 6.0
"""Inches."""
_DOTS = 200
"""Pixels an inch, of PNG and of the points within SVG."""
_SMALLEST, _LARGEST = 1.0, 24.0
"""Area of a point in points²."""
_INK = 9000.0
"""Area of all points together, as far as those bounds allow."""
_MOST_NAMES = 40
"""Classes that are named on the map; more would hide it."""
_GROUND = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.6}
"""Behind a name in SVG, where an outline would turn its letters into shapes."""
_OUTLINE = 2.5
"""Points of white around a name in PNG."""
_LONGEST = 28
"""Characters of a name at most, as on the page."""
_MANY = 2000
"""Items above which SVG holds the points as a picture."""


def draw_map(shown: ItemMap, kind: Literal["svg", "png"]) -> bytes:
    """Return the last frame of a map in its first layout; items without stable neighbours are grey.

    Above 2,000 items an SVG has its points as a picture and its words as text.

    Raises:
        ValueError: Another kind than "svg" or "png".
    """
    if kind not in ("svg", "png"):
        raise ValueError(f"no picture of kind {kind!r}: expected 'svg' or 'png'.")
    with needs_extra("maps", "A picture of a map needs matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.patheffects import withStroke

    frame = shown.frames[-1]
    places = np.asarray(frame.places[shown.layouts[0]], float)
    names, of_item = _classes(shown)
    colours = np.array(class_colours(len(names)))
    stable = frame.stable
    shades = np.where(stable, colours[of_item], UNSTABLE)
    area = float(np.clip(_INK / len(shown), _SMALLEST, _LARGEST))
    order = np.lexsort((np.random.default_rng(0).random(len(shown)), stable))  # grey below
    with matplotlib.rc_context({"svg.hashsalt": "bif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(_SIDE, _SIDE), layout="constrained")
        axis = figure.subplots()
        axis.scatter(
            *places[order].T, s=area, c=shades[order], linewidths=0, alpha=0.85,
            rasterized=len(shown) > _MANY,
        )  # fmt: skip
        outline = [withStroke(linewidth=_OUTLINE, foreground="white")]
        readable: dict[str, Any] = {"svg": {"bbox": _GROUND}, "png": {"path_effects": outline}}
        for name, x, y, colour in _named(names, of_item, places, colours):
            axis.annotate(name, (x, y), ha="center", va="center", fontsize="small",
                          fontweight="bold", color=colour, parse_math=False,
                          **readable[kind])  # fmt: skip
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#cccccc")
        axis.set_xlabel(_words(shown, int((~stable).sum())), fontsize="small", parse_math=False)
        if shown.failed_gates:
            axis.set_title(f"NOT TRUSTED: {', '.join(shown.failed_gates)}", color="#b0480f",
                           fontsize="medium", parse_math=False)  # fmt: skip
        held = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(held, format=kind, dpi=_DOTS, metadata=metadata)
    return held.getvalue()


def _classes(shown: ItemMap) -> tuple[list[str], np.ndarray]:
    if shown.classes is None:
        return [""], np.zeros(len(shown), int)
    names, of_item = np.unique(np.asarray(shown.classes, dtype=str), return_inverse=True)
    return [_plain(str(name)) for name in names], of_item


def _named(
    names: list[str], of_item: np.ndarray, places: np.ndarray, colours: np.ndarray
) -> list[tuple[str, float, float, str]]:
    """Return each class with the median place of its items, none where there are too many."""
    if not 1 < len(names) <= _MOST_NAMES:
        return []
    return [
        (name, *np.median(places[of_item == c], axis=0), _darker(str(colours[c])))
        for c, name in enumerate(names)
    ]


def _plain(text: str) -> str:
    """Return a short text of characters that fonts and XML have."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return kept if len(kept) <= _LONGEST else f"{kept[: _LONGEST - 1]}…"


def _darker(colour: str) -> str:
    """Return a colour that can be read on white."""
    channels = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "#" + "".join(f"{round(0.6 * c):02x}" for c in channels)


def _words(shown: ItemMap, unstable: int) -> str:
    frame = f", {_plain(shown.frames[-1].name)}" if shown.frames[-1].name else ""
    grey = f"; grey: {unstable:,} without stable neighbours" if unstable else ""
    return f"{shown.layouts[0].upper()} of the loss kernel, {len(shown):,} items{frame}{grey}"
