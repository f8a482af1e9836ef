"""Fingerprints of tensors and items, versions, and the device in words."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from bif.problem.items import Items, batch_leaves
from bif.types import Batch, Params


def fingerprint(tensors: Params | Batch) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of a batch's or model's tensors."""
    digest = hashlib.sha256()
    for path, leaf in sorted(batch_leaves(tensors).items()):
        digest.update(f"{path}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
        data = leaf.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest()


def items_fingerprint(items: Items) -> str:
    """Return the fingerprint of items: data, ids, token mask and what is shown of them."""
    digest = hashlib.sha256("\x1f".join(items.ids.tolist()).encode())
    for _, batch in items.chunks(4096):  # a few thousand at a time
        digest.update(fingerprint(batch).encode())
    if items.token_mask is not None:
        digest.update(items.token_mask.tobytes())
    for name, texts in (("label", items.labels), *sorted(items.about.items())):
        if texts is not None:
            digest.update("\x1f".join([name, *map(str, np.asarray(texts).tolist())]).encode())
    if items.images is not None:
        digest.update(f"images{items.images.shape}".encode() + items.images.tobytes())
    if items.tokens is not None:
        digest.update("\x1f".join("\x1e".join(pieces) for pieces in items.tokens).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("bayesian-influence", "torch", "numpy", "xarray", "zarr", "arviz-stats"):
        found[package] = _version(package)
    return found


@cache
def source_fingerprint() -> str:
    """Return the SHA-256 of the source of this library."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}|".encode() + file.read_bytes())
    return digest.hexdigest()


@cache  # each look-up searches the whole path
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def hardware(device: torch.device) -> dict[str, str]:
    """Return what the last bits of a run depend on besides its seed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "any",
        "torch": str(torch.__version__),
    }
