"""A part of Fashion-MNIST under the same names, for a machine that takes little data."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from bif.benchmark.tasks.files import find_path, read_gzip

_HEADERS = {"train-images-idx3-ubyte.gz": (16, 784), "train-labels-idx1-ubyte.gz": (8, 1)}
"""Bytes of the header and of an item; bytes 4 to 8 are the number of items."""


def subset(data: Path, out: Path, count: int) -> None:
    """Write the first train items and all test items of Fashion-MNIST, and the other data sets.

    6,000 train items make 17 MiB of all.

    Args:
        data: Folder with `fashion-mnist/`, `cifar10/` and `resnet-cifar10/`.
        out: Folder for the same three.
        count: Train items.
    """
    place = find_path(data, "fashion-mnist", ".")
    (out / "fashion-mnist").mkdir(parents=True, exist_ok=True)
    for path in sorted(place.glob("*.gz")):
        target = out / "fashion-mnist" / path.name
        if path.name not in _HEADERS:
            shutil.copyfile(path, target)
            continue
        header, size = _HEADERS[path.name]
        content = read_gzip(path)
        cut = content[:4] + count.to_bytes(4, "big") + content[8 : header + count * size]
        target.write_bytes(gzip.compress(cut, mtime=0))
    for name in ("cifar10", "resnet-cifar10"):
        (out / name).mkdir(exist_ok=True)
        for path in sorted((data / name).iterdir()):
            shutil.copyfile(path, out / name / path.name)
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {total / 2**20:.1f} MiB")
