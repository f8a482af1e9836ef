"""The stages of a response on disk: the pilot and every block of queries, each kept when whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bif.problem.provenance import hardware
from bif.runs.block_run import other_hardware
from bif.store import Commit, RunFolder


class Stages:
    """What a response is made of, as far as it has come.

    Args:
        folder: Where stages are kept; None: nowhere.
        device: They are made on.
        since: When the process began with the first, by `time.perf_counter`.
        serial: Of the stages that count: those of before are made anew, and replaced one by one.

    Attributes:
        seconds: Of all stages so far, by whatever process.
        notes: What a response that went on has to say of itself.
    """

    def __init__(
        self, folder: RunFolder | None, device: torch.device, *, since: float, serial: int = 1
    ) -> None:
        self.seconds = 0.0
        self.notes: list[str] = []
        self._folder, self._hardware, self._since = folder, hardware(device), since
        self._serial = serial

    def get(self, index: int, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """A stage as it was kept, or as `make` makes it.

        Args:
            index: Of the stage.
            make: Returns tensors on the host.

        Raises:
            OSError: It can be neither read nor written.
        """
        store = self._folder.block(index) if self._folder else None
        found = store.usable([]) if store else None
        if found is not None and found[0].serial >= self._serial:
            commit, state = found
            self.seconds += commit.seconds
            note = other_hardware(commit.hardware, self._hardware)
            if dict(commit.hardware) != self._hardware and note not in self.notes:
                self.notes.append(note)
            return state
        state = make()
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.seconds += seconds
        if store and self._folder:
            commit = Commit(
                serial=self._serial, step=0, draws=0, seconds=seconds, hardware=self._hardware
            )
            store.commit(commit, traces={}, weights={}, state=state)
            self._folder.folder.renew()
        return state
