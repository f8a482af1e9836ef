"""Write the weights of a model on the way of training, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def save_weights(folder: str | Path, step: int, weights: Mapping[str, Tensor]) -> Path:
    """Write a state dict to `step-00000100.pt` in a folder, which is made, and return the path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    whole = path.with_suffix(".writing")
    torch.save({name: leaf.detach().cpu() for name, leaf in weights.items()}, whole)
    os.replace(whole, path)
    return path
