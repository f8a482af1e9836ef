"""Settings of the whole suite."""

import pytest
import torch

from small_problems import nothing_measured

# The tensors of the tests are small, and the workers of `pytest -n` already fill the cores.
torch.set_num_threads(1)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without a look at their sampler."""
    monkeypatch.setattr("bif.runs.recording.check", nothing_measured)
