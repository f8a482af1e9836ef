"""What CUDA graphs share; they themselves are tested on a device, in `sampling/test_cuda.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bif.problem.cuda_graphs import Replayed, SharedMemory


def test_inputs_of_a_place_and_shape_lie_at_one_address():
    memory = SharedMemory()
    first = memory.copy_of({"rows": torch.ones(3), "items": (torch.zeros(2), torch.ones(2))})
    second = memory.copy_of({"rows": 2 * torch.ones(3), "items": (torch.ones(4), torch.ones(2))})
    assert first["rows"] is second["rows"] and first["rows"].tolist() == [2.0] * 3
    assert first["items"][1] is second["items"][1] is not first["items"][0]
    assert first["items"][0].tolist() == [0.0] * 2 and second["items"][0].tolist() == [1.0] * 4


def test_inputs_of_a_recording_that_failed_are_freed_and_others_stay():
    memory = SharedMemory()
    first = memory.copy_of({"x": torch.ones(3)})
    memory.copy_of({"x": torch.ones(3), "rows": torch.ones(5)})
    memory.leave()
    again = memory.copy_of({"x": torch.zeros(3), "rows": torch.ones(5)})
    assert again["x"] is first["x"] and len(memory._inputs) == 2


def test_memory_that_does_not_hold_all_inputs_is_left_as_it_was(monkeypatch):
    memory, empty_like = SharedMemory(), torch.empty_like

    def small(leaf: torch.Tensor, **named: Any) -> torch.Tensor:
        if leaf.numel() > 4:
            raise torch.OutOfMemoryError("too large")
        return empty_like(leaf, **named)

    monkeypatch.setattr(torch, "empty_like", small)
    with pytest.raises(torch.OutOfMemoryError):
        memory.copy_of({"x": torch.ones(3), "rows": torch.ones(5)})
    memory.leave()
    assert memory._inputs == {}


def test_a_view_is_copied_as_it_looks():
    x = torch.arange(6.0).view(2, 3).T
    assert torch.equal(SharedMemory().copy_of(x), x)


def test_on_a_cpu_every_call_is_that_of_the_function():
    replayed = Replayed(lambda x: (2 * x,), lends=True)
    assert [replayed(torch.full((2,), float(k)))[0].tolist() for k in range(4)] == [
        [2.0 * k] * 2 for k in range(4)
    ]
