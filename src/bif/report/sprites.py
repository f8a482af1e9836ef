"""Many small pictures in a few large ones, within a number of bytes."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.extras import needs_extra

_SIDES = (96, 64, 48, 32, 24, 16)
"""Pixels of the longer side, tried from the largest on."""
_ROW = 32
"""Pictures in a row of a sheet, and rows in it."""
_SAMPLE = 256
"""Pictures by which bytes are forecast."""
_RESERVE = 1.1
"""Factor on the forecast: what is drawn may be smaller than what is not."""
_QUALITY = 80
"""Of JPEG."""


@dataclass(frozen=True, eq=False)
class Sprites:
    """Pictures of items, packed.

    Attributes:
        sheets: Data URIs, each of as many pictures as fit in a grid, row by row.
        size: Width and height of a picture in pixels.
        columns: Pictures in a row of a sheet.
        per_sheet: Pictures on a sheet.
        note: What was changed to make them fit, as a sentence; empty if nothing.
    """

    sheets: list[str]
    size: tuple[int, int]
    columns: int
    per_sheet: int
    note: str

    def layout(self) -> dict[str, Any]:
        """Return all but the sheets, for a page's script."""
        return {"width": self.size[0], "height": self.size[1], "columns": self.columns,
                "perSheet": self.per_sheet, "sheets": len(self.sheets)}  # fmt: skip


def pack_pictures(pictures: np.ndarray, *, most_bytes: int) -> Sprites:
    """Return pictures in sheets that take at most so many bytes, or none with a note.

    The largest size is taken that fits, without loss where that fits, too, else as JPEG.

    Args:
        pictures: uint8, `[N, row, column]` or `[N, row, column, channel]` with 1, 3 or 4 channels.
        most_bytes: Of all sheets, as base64.

    Raises:
        ValueError: The array is no such pictures.
        ImportError: Pillow is missing.
    """
    shown = pictures[..., 0] if pictures.ndim == 4 and pictures.shape[3] == 1 else pictures
    colour = shown.ndim == 4 and shown.shape[3] in (3, 4)
    if pictures.dtype != np.uint8 or not (shown.ndim == 3 or colour) or 0 in shown.shape:
        raise ValueError(
            f"pictures are {pictures.dtype} {pictures.shape}, expected uint8 [N, row, column] or "
            "[N, row, column, channel] with 1, 3 or 4 channels."
        )
    own = max(shown.shape[1:3])
    chosen = np.linspace(0, len(shown) - 1, min(_SAMPLE, len(shown))).round().astype(int)
    limit = most_bytes / len(shown)
    for side in dict.fromkeys(min(side, own) for side in _SIDES):
        for kind in ("PNG", "JPEG"):
            sample = sum(len(s) for s in _sheets(shown[chosen], side, kind)) / len(chosen)
            if _RESERVE * sample <= limit:
                return _packed(shown, side, kind, own)
    return Sprites([], (0, 0), _ROW, _ROW * _ROW, _LEFT_OUT.format(count=len(shown)))


_LEFT_OUT = "The {count:,} pictures are left out: they do not fit into the page."


def _packed(pictures: np.ndarray, side: int, kind: str, own: int) -> Sprites:
    changed = [f"shrunk from {own} to {side} pixels"] if side < own else []
    changed += ["stored with loss"] if kind == "JPEG" else []
    note = f"Pictures are {' and '.join(changed)}." if changed else ""
    size = _size(pictures, side)
    return Sprites(_sheets(pictures, side, kind), size, _ROW, _ROW * _ROW, note)


def _size(pictures: np.ndarray, side: int) -> tuple[int, int]:
    high, wide = pictures.shape[1:3]
    scale = side / max(high, wide)
    return max(1, round(wide * scale)), max(1, round(high * scale))


def _sheets(pictures: np.ndarray, side: int, kind: str) -> list[str]:
    with needs_extra("maps", "Pictures on a map need Pillow"):
        from PIL import Image
    size, made = _size(pictures, side), []
    for start in range(0, len(pictures), _ROW * _ROW):
        part = pictures[start : start + _ROW * _ROW]
        columns, rows = min(_ROW, len(part)), math.ceil(len(part) / _ROW)
        mode = "L" if part.ndim == 3 else "RGBA" if part.shape[3] == 4 else "RGB"
        sheet = Image.new(mode, (columns * size[0], rows * size[1]))
        for i, pixels in enumerate(part):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.LANCZOS)
            sheet.paste(picture, (i % _ROW * size[0], i // _ROW * size[1]))
        held = io.BytesIO()
        if kind == "PNG":
            sheet.save(held, "PNG")
        else:
            sheet.convert("L" if mode == "L" else "RGB").save(held, "JPEG", quality=_QUALITY)
        text = base64.b64encode(held.getvalue()).decode()
        made.append(f"data:image/{kind.lower()};base64,{text}")
    return made
