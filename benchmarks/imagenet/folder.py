"""Images of a folder with one folder a class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")
_SHOWN = 48
"""Pixels a side of a picture on a page."""


@dataclass(frozen=True)
class Images:
    """Some images of each class.

    Attributes:
        pixels: `[N, 3, size, size]` uint8.
        targets: Positions of their classes among all, `[N]`.
        labels: Names of their classes.
        ids: Files below the folder, without their endings.
        pictures: Small ones to be shown, `[N, 48, 48, 3]` uint8.
    """

    pixels: Tensor
    targets: Tensor
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    pictures: np.ndarray


def class_names(folder: Path) -> list[str]:
    """Return the classes of a folder in the order of their numbers: by name.

    Raises:
        FileNotFoundError: There is no folder, or none in it.
    """
    names = sorted(x.name for x in folder.iterdir() if x.is_dir()) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(
            f"no folders of classes in {folder}: expected {folder}/CLASS/IMAGE.JPEG."
        )
    return names


def read_images(
    folder: Path, classes: Sequence[str], *, chosen: Sequence[str], per_class: int, size: int = 224
) -> Images:
    """Read the first images of each class by name, in the middle of 7/8 of their shorter side.

    Args:
        folder: With a folder for each class that is chosen.
        classes: All classes, in the order of their numbers.
        chosen: Which of them are read.
        per_class: Images of a class; all where there are fewer.
        size: Pixels a side.

    Raises:
        FileNotFoundError: A class without images.
        ValueError: A file that is no image.
    """
    pixels, pictures, targets, ids = [], [], [], []
    for name in chosen:
        inside = folder / name
        files = sorted(f for f in inside.glob("*") if f.suffix.lower() in _ENDINGS)[:per_class]
        if not files:
            raise FileNotFoundError(f"no images in {inside}: expected {', '.join(_ENDINGS)} files.")
        for file in files:
            image = _read(file, size)
            pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            pictures.append(np.array(image.resize((_SHOWN, _SHOWN))))
            targets.append(classes.index(name))
            ids.append(f"{name}/{file.stem}")
    labels = tuple(str(classes[target]) for target in targets)
    return Images(
        torch.stack(pixels), torch.tensor(targets), labels, tuple(ids), np.stack(pictures)
    )


def _read(file: Path, size: int) -> Any:
    """Return the middle of an image, RGB, `size` pixels a side."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is no image that Pillow reads: {error}") from None
    shorter = round(size * 8 / 7)  # 256 for 224, as torchvision's weights were trained to see
    scale = shorter / min(image.size)
    width, height = (round(scale * side) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
