"""The library that curvature matrices come from."""

from __future__ import annotations

from typing import Any


def curvlinops_module() -> Any:
    """The package curvlinops.

    Raises:
        ImportError: The extra `baselines` is not installed.
    """
    try:
        import curvlinops
    except ImportError as error:
        raise ImportError(
            "exact influence, conjugate gradients and EK-FAC need curvlinops: install the extra, "
            "pip install 'bayesian-influence[baselines]'."
        ) from error
    return curvlinops
