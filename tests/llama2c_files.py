"""Files of llama2.c in their binary formats, tiny and random."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bif.interop.llama2c import _Header

HEADER = _Header(16, 24, 2, 4, 2, 40, 12)
"""Width 16, MLP 24, 2 layers, 4 heads of which 2 have keys and values, 40 tokens, 12 places."""


def arrays_of(header: _Header, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 arrays in the file's order; the rotary tables, which nobody reads, are NaN."""
    generator = np.random.default_rng(seed)
    made = {}
    for name, shape in header.shapes().items():
        values = generator.normal(size=shape, scale=0.5)
        if name.endswith("norm"):
            values = 1 + 0.3 * values
        if name in ("cosines", "sines"):
            values = np.full(shape, np.nan)
        made[name] = values.astype("<f4")
    return made


def write_checkpoint(path: Path, header: _Header, arrays: Mapping[str, np.ndarray]) -> Path:
    """As export.py's `legacy_export` writes it."""
    path.write_bytes(struct.pack("<7i", *header) + b"".join(a.tobytes() for a in arrays.values()))
    return path


def write_tokenizer(path: Path, merged: Sequence[tuple[str, float]]) -> Path:
    """As tokenizer.py's `export` writes it: three marks, 256 bytes, then `merged` from 259 on."""
    marks = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    singles = [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    pieces = [*marks, *singles, *((text.encode(), score) for text, score in merged)]
    content = struct.pack("<i", max(len(piece) for piece, _ in pieces))
    for piece, score in pieces:
        content += struct.pack("<fi", score, len(piece)) + piece
    path.write_bytes(content)
    return path
