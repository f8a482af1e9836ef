"""Complete settings for tests that choose only what matters to them."""

from __future__ import annotations

from typing import Any

from bif.sampling.settings import RunSettings, Settings

_NO_MATTER: dict[str, Any] = {
    "nbeta": 1.0, "gamma": 1.0, "chains": 2, "draws": 2, "burn_in": 0, "thin": 1,
    "step_size": 0.1, "gradient": "full", "oracle": "stacked", "block_size": 2, "chunk_size": 64,
    "movable": ("*",), "gradient_precision": "float32", "loss_precision": "float32",
    "mass": "identity",
}  # fmt: skip


def complete(settings: Settings, **given: Any) -> RunSettings:
    """Return settings in which numbers of no matter fill what is open."""
    open_ones = {n: x for n, x in _NO_MATTER.items() if getattr(settings, n) is None}
    return RunSettings.completing(settings, **{**open_ones, **given})
