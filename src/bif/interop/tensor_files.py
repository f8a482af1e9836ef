"""Readers of tensors and arrays from bytes; nothing is unpickled."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np


def from_safetensors(content: bytes, source: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors of a safetensors file, floats in float64, and its metadata.

    Raises:
        ValueError: If the bytes are no such file.
    """
    from safetensors.torch import load

    try:
        tensors = {name: tensor.double().numpy() for name, tensor in load(content).items()}
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except MemoryError:
        raise
    except Exception as error:  # whatever a reader says of bytes that are not its own
        raise ValueError(f"{source} is no safetensors file: {error}.") from error
    return tensors, {str(k): str(v) for k, v in header.get("__metadata__", {}).items()}


def from_numpy(content: bytes, source: str) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` file, or that of an `.npy` file under the name "scores".

    Raises:
        ValueError: If the bytes are no such file, or hold Python objects, which are pickled.
    """
    try:
        found: Any = np.load(io.BytesIO(content), allow_pickle=False)
        return {"scores": found} if isinstance(found, np.ndarray) else dict(found)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{source} is no numpy file that can be read without pickle: {error}. Save a plain "
            "array of numbers."
        ) from error
