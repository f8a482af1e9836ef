"""`kill -9` at any moment of the demo: the same command ends as if nothing had happened."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

import bif
from bif import store
from bif.cli import digits_demo

pytest.importorskip("sklearn", reason="the extra `demo` is not installed")

Program = Callable[[Path], None]
SETTINGS = bif.Settings(chains=4, draws=100, gamma=50.0, burn_in=30, thin=2, step_size=0.02,
                        friction=10.0, weight_decay=1e-3)  # fmt: skip
# Victims are forked from a process that has done the slow imports once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "bif.cli.digits_demo",
        "sklearn.datasets",
        "zarr",
        "arviz_stats",
        "matplotlib.figure",
        "rich.console",
    ]
)


def short(folder: Path) -> None:
    """A demo with a small problem and commits all the time."""
    digits_demo.RECIPE = replace(digits_demo.RECIPE, steps=30)
    digits_demo.NUM_TRAIN, digits_demo.NUM_QUERIES = 100, 20
    digits_demo.run_demo(folder, seed=0, settings=SETTINGS, commit_every=0.05)


def whole(folder: Path) -> None:
    """The demo itself."""
    digits_demo.run_demo(folder, seed=0, commit_every=1.0)


def quietly(program: Program, folder: Path) -> None:
    """Run the program with what it says kept beside its folder."""
    with folder.with_suffix(".txt").open("w") as said:
        os.dup2(said.fileno(), sys.stdout.fileno())
        os.dup2(said.fileno(), sys.stderr.fileno())
        program(folder)


@dataclass(frozen=True)
class Victim:
    """A program that makes a run in a folder."""

    program: Program
    folder: Path

    def start(self) -> BaseProcess:
        process = PROCESSES.Process(target=quietly, args=(self.program, self.folder))
        process.start()
        return process

    def said(self) -> str:
        return self.folder.with_suffix(".txt").read_text()

    def finish(self) -> float:
        """Let it run to its end; the seconds that took."""
        started = time.monotonic()
        process = self.start()
        process.join()
        assert process.exitcode == 0, self.said()
        return time.monotonic() - started

    def killed_after(self, seconds: float) -> bool:
        """Whether it was still running then and was killed."""
        process = self.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL), self.said()
        return process.exitcode != 0

    def phase(self) -> str:
        """What a killed run was doing, by its files."""
        folder = store.folder_at(self.folder)
        if not folder.is_file(store.MANIFEST):
            return "set-up and training"
        manifest = store.RUN.read(folder)
        if manifest["complete"]:
            return "after the end"
        if "blocks" not in manifest:
            return "calibration"
        commits = store.BlockStore(folder, 0).commits()
        if not commits or not commits[0].draws:
            return "burn-in"
        if commits[0].draws < manifest["settings"]["draws"]:
            return "sampling"
        return "scores and report"


def committed(folder: Path) -> dict[str, np.ndarray]:
    """The committed draws of every array; none where nothing is committed."""
    block = store.BlockStore(store.folder_at(folder), 0)
    commits = block.commits()
    draws = commits[0].draws if commits else 0
    return {n: block.traces.read(n, 0, draws) for n in block.traces.names()} if draws else {}


def scores(folder: Path) -> dict[str, np.ndarray]:
    """Every number of the results."""
    run = store.read_run(folder)
    return {
        f"{part}/{name}": variable.values
        for part in ("influence", "diagnostics")
        for name, variable in run[part].variables.items()
    }


def assert_same_bits(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def kill_again_and_again(program: Program, folder: Path, *, kills: int) -> Counter[str]:
    """Kill `kills` times, each at another share of the time, and go on; the phases that were hit.

    What is committed is compared at every kill, and the results whenever a run comes to its end.
    """
    undisturbed = Victim(program, folder / "whole")
    undisturbed.finish()
    traces, results = committed(undisturbed.folder), scores(undisturbed.folder)
    # The first of all waited for the imports.
    seconds = Victim(program, folder / "again").finish()
    shares = (np.arange(kills) + 0.5) / kills
    # A fresh run is first killed early, each a little later than the one before: what has been
    # killed in the middle never sees its own beginning again.
    early = iter(shares)
    anywhere = itertools.cycle(np.random.default_rng(0).permutation(shares))
    phases: Counter[str] = Counter()
    ended, draws, fresh = 0, 0, True
    victim = Victim(program, folder / "0")
    while True:
        share, fresh = next(early) if fresh else next(anywhere), False
        if victim.killed_after(float(share) * seconds):
            phases[victim.phase()] += 1
            kept = committed(victim.folder)
            now = next(iter(kept.values())).shape[1] if kept else 0
            assert now >= draws, "a commit was lost"
            assert_same_bits(kept, {n: traces[n][:, :now] for n in kept})
            draws = now
            if sum(phases.values()) < kills:
                continue
            victim.finish()
        assert_same_bits(committed(victim.folder), traces)
        assert_same_bits(scores(victim.folder), results)
        shutil.rmtree(victim.folder)
        if sum(phases.values()) == kills:
            return phases
        ended, draws, fresh = ended + 1, 0, True
        victim = Victim(program, folder / str(ended))


def test_three_kills_of_a_short_demo_change_no_bit(tmp_path):
    phases = kill_again_and_again(short, tmp_path, kills=3)
    assert sum(phases.values()) == 3


@pytest.mark.slow
def test_fifty_kills_of_the_demo_change_no_bit(tmp_path, capsys):
    phases = kill_again_and_again(whole, tmp_path, kills=50)
    with capsys.disabled():
        print(f"\nkilled during: {dict(phases)}")
    assert sum(phases.values()) == 50
    # Calibration and burn-in last a second each: 50 kills may miss one of them.
    assert {"set-up and training", "sampling", "scores and report"} <= set(phases)
    assert {"calibration", "burn-in"} & set(phases)
