"""Memory of the device that a run is on, and of the host."""

from __future__ import annotations

import os

import torch


def free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a GPU, or the memory of the host."""
    if device.type != "cuda":
        return memory_of_host()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def memory_of_host() -> int:
    """Return the bytes of physical memory; infinity where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63
