"""Susceptibility matrices of a known signal and known noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bif.susceptibility import SusceptibilityMatrix

GROUPS = 8


def made(signal: np.ndarray, noise: Callable[[], np.ndarray]) -> SusceptibilityMatrix:
    """A matrix of signal and noise, from eight groups of chains with √8 times the noise each."""
    groups = np.stack([signal + noise() * GROUPS**0.5 for _ in range(GROUPS)])
    value = groups.mean(axis=0)
    spread = (groups - value) / (GROUPS * (GROUPS - 1)) ** 0.5
    halves = np.stack([groups[::2].mean(axis=0), groups[1::2].mean(axis=0)])
    names = tuple(f"c{k}" for k in range(len(signal)))
    contexts = tuple(map(str, range(signal.shape[1])))
    return SusceptibilityMatrix(names, contexts, value, spread, halves, "L", 1.0, 1.0, {})
