"""Import of the library that curvature matrices come from."""

from __future__ import annotations

from typing import Any

from bif.extras import needs_extra


def import_curvlinops() -> Any:
    """Return the package curvlinops.

    Raises:
        ImportError: The extra `baselines` is not installed.
    """
    with needs_extra("baselines", "EK-FAC needs curvlinops"):
        import curvlinops
    return curvlinops
