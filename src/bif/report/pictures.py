"""Items' images as PNG data URIs."""

import base64
import io

import numpy as np

from bif.extras import needs_extra

_SMALL_SIDE = 64
"""Pixels a side up to which a picture keeps its size; a larger one shrinks to twice as many."""


def image_tag(pixels: np.ndarray, *, alt: str) -> str:
    """Return an `<img>` with the picture inside.

    Args:
        pixels: uint8, [row, column] or [row, column, channel] with 1, 3 or 4 channels.
        alt: alternative text, already escaped.

    Returns:
        The tag; small pictures have the class `pixels` and are shown without smoothing.

    Raises:
        ValueError: the array is no such image.
        ImportError: Pillow is missing.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    channels_fit = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not channels_fit or pixels.size == 0:
        raise ValueError(
            f"An item's image has shape {pixels.shape} and type {pixels.dtype}, expected uint8 of "
            "[row, column] or [row, column, channel] with 1, 3 or 4 channels: convert it before "
            "saving, e.g. (255 * image).astype('uint8')."
        )
    with needs_extra("report", "Pictures in the report need Pillow"):
        from PIL import Image
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    small = max(picture.size) <= _SMALL_SIDE
    if not small:
        picture.thumbnail((2 * _SMALL_SIDE, 2 * _SMALL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = picture.size
    style = ' class="pixels"' if small else ""
    return (
        f'<img{style} src="data:image/png;base64,{data}" '
        f'width="{width}" height="{height}" alt="{alt}">'
    )
