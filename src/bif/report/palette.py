"""Colours of classes and of quantities, the same in pages and figures."""

from __future__ import annotations

import colorsys

UNSTABLE = "#9aa0a6"
"""Of items whose neighbours are not stable, in both schemes."""
_CLASSES: tuple[str, ...] = (
    "#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e",
    "#97bbf5", "#c2410c",
)  # fmt: skip
"""Told apart from one another on light and dark ground."""
QUANTITY = (
    "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6dcd59", "#b4de2c",
    "#fde725",
)  # fmt: skip
"""From low to high, equally far apart to the eye: matplotlib's viridis without its darkest end."""
_TURN = 0.381966
"""Golden section of the colour circle, which keeps any number of hues apart."""


def class_colours(count: int) -> list[str]:
    """Return a colour for each of so many classes, as `#rrggbb`."""
    made = list(_CLASSES[:count])
    for i in range(count - len(made)):
        hue, light = (0.07 + _TURN * i) % 1, (0.42, 0.6)[i % 2]
        channels = colorsys.hls_to_rgb(hue, light, 0.6)
        made.append("#" + "".join(f"{round(255 * c):02x}" for c in channels))
    return made
