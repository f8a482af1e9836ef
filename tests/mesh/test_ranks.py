"""Ranks meet, tell each other, deal work, and notice when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bif
from bif.mesh import RankFailed, Ranks, join, launched
from forked_ranks import on_ranks, outcomes_on_ranks

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize("named", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_ranks_are_meant_where_a_launcher_says_where_they_meet(monkeypatch, named):
    for name in {*TORCHRUN, *SLURM}:
        monkeypatch.delenv(name, raising=False)
    for name, value in named.items():
        assert not launched()
        monkeypatch.setenv(name, value)
    assert launched()
    monkeypatch.delenv("MASTER_ADDR")  # as in a Slurm allocation without srun
    assert not launched()
    with pytest.raises(ValueError, match="no launcher has started this process"):
        join()


def test_importing_bif_imports_no_mesh():
    script = "import sys, bif, bif.cli; assert not [m for m in sys.modules if 'bif.mesh' in m]"
    environment = os.environ | {"PYTHONPATH": str(Path(bif.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_rank_gathers_all_values_and_hears_what_the_first_one_made():
    def work(ranks: Ranks) -> Any:
        made = ranks.from_first(lambda: f"by {os.getpid()}")
        return ranks.gather(ranks.rank * 10), made, ranks.is_first

    found = on_ranks(3, work)
    assert [f[0] for f in found] == [[0, 10, 20]] * 3
    assert len({f[1] for f in found}) == 1
    assert [f[2] for f in found] == [True, False, False]


def test_every_index_is_dealt_once_the_first_to_rank_0_and_fewer_to_a_slow_rank():
    def work(ranks: Ranks) -> list[list[int]]:
        taken: list[list[int]] = []
        for _ in range(2):  # a second deal begins anew
            taken.append([])
            for index in ranks.deal(8):
                taken[-1].append(index)
                time.sleep(0.5 if ranks.rank == 1 else 0.001)
            ranks.gather(None)
        return taken

    for fast, slow in zip(*on_ranks(2, work), strict=True):
        assert sorted(fast + slow) == list(range(8))
        assert fast[0] == 0 and slow[0] == 1
        assert len(slow) < len(fast)


def test_fewer_indices_than_ranks_leave_some_ranks_without():
    assert on_ranks(3, lambda ranks: list(ranks.deal(2))) == [[0], [1], []]


def test_an_error_of_the_first_rank_is_raised_by_all():
    def broken() -> None:
        raise ValueError("the data are gone")

    first, second = outcomes_on_ranks(2, lambda ranks: ranks.from_first(broken))
    assert first[0] == "ValueError"
    assert second[0] == "RankFailed" and "rank 0 failed: the data are gone" in second[1]


def test_a_rank_that_is_killed_is_noticed_by_those_that_wait():
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.gather(None)

    first, second = outcomes_on_ranks(2, work)
    assert second == ("killed", -signal.SIGKILL)
    assert first[0] == "RankFailed"
    assert "rank 0: another rank has ended" in first[1] and "start all ranks again" in first[1]


def test_ranks_that_do_not_meet_are_named(monkeypatch):
    from datetime import timedelta

    for name, value in {**TORCHRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("bif.mesh.ranks._MEETING", timedelta(seconds=0.2))
    with pytest.raises(RankFailed, match="rank 1: the ranks could not meet"):
        join()
