"""Runs compared to the last bit, and runs stopped at a chosen step; for the tests of exactness."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import bif
from bif.estimate.traces import LossTraces
from bif.sampling.engine import Engine
from bif.store.signals import Preempted

if TYPE_CHECKING:
    import xarray as xr

CLOCKS = {"seconds", "draws_per_second", "sampling_seconds"}


def assert_same_datasets(got: xr.Dataset, expected: xr.Dataset) -> None:
    """The same variables, attributes and bits; strings may be stored in either way."""
    assert set(got.variables) == set(expected.variables)
    for name, there in expected.variables.items():
        here = got.variables[name]
        assert here.dims == there.dims, name
        if there.dtype.kind in "OUT":
            assert here.values.tolist() == there.values.tolist(), name
        else:
            assert here.dtype == there.dtype, name
            assert here.values.tobytes() == there.values.tobytes(), name
    np.testing.assert_equal(_listed(got.attrs), _listed(expected.attrs))  # NaN is NaN


def assert_same_traces(got: LossTraces, expected: LossTraces) -> None:
    """The same blocks, chains, draws and bits, and some of them."""
    assert expected.blocks
    assert [b.chains for b in got.blocks] == [b.chains for b in expected.blocks]
    for here, there in zip(got.blocks, expected.blocks, strict=True):
        for a, b in ((here.train, there.train), (here.query, there.query)):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert a.numpy().tobytes() == b.numpy().tobytes()


def assert_same_scores(got: bif.Run, expected: bif.Run) -> None:
    """Scores, diagnostics and figures agree to the last bit, but for clocks."""
    assert_same_datasets(got.influence.dataset, expected.influence.dataset)
    assert_same_datasets(got.diagnostics, expected.diagnostics)
    figures = [{n: v for n, v in r.summary.items() if n not in CLOCKS} for r in (got, expected)]
    np.testing.assert_equal(figures[0], figures[1])


def assert_same_run(got: bif.Run, expected: bif.Run) -> None:
    """Scores and traces agree to the last bit."""
    assert_same_scores(got, expected)
    assert_same_traces(got.traces, expected.traces)


@contextmanager
def signalled(
    *numbers: signal.Signals, block: int, step: int, only_first: bool = True
) -> Iterator[list[int]]:
    """Send signals at the position before `step` of a block; yields the steps where it happened."""
    positions, sent = Engine.positions, []

    def watched(self: Engine, index: int, *args: Any, **given: Any) -> Iterator[Any]:
        for position in positions(self, index, *args, **given):
            if (index, position.step) == (block, step) and not (only_first and sent):
                sent.append(position.step)
                for number in numbers:
                    signal.raise_signal(number)
            yield position

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "positions", watched)
        yield sent


@contextmanager
def preempted(*, block: int, step: int) -> Iterator[None]:
    """SIGTERM at the position before `step` of a block: what runs inside ends with `Preempted`."""
    with signalled(signal.SIGTERM, block=block, step=step) as sent, pytest.raises(Preempted):
        yield
    assert sent == [step]


@contextmanager
def without_page() -> Iterator[None]:
    """Leave out the page for people, whose drawing takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bif.report.render_report", lambda *args, **given: "<html></html>")
        yield


def files(folder: Path) -> dict[str, bytes]:
    """Names and bytes of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _listed(attrs: dict[str, Any]) -> dict[str, Any]:
    return {n: np.asarray(v).tolist() for n, v in attrs.items()}


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Any, ...]]:
    """Types, shapes and bytes of named tensors."""
    return {
        n: (x.dtype, tuple(x.shape), x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for n, x in tensors.items()
    }
