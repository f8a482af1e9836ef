"""A store that does not answer for a while: what cannot be told is never taken for empty."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import bif
from bank_cases import bank, bits, distance
from bif.bank import load
from bif.runs import block_run
from bif.store import BlockStore, FilesFailed, folder_at, load_dataset, open_run
from bif.store import folder as folder_module
from broken_runs import SETTINGS, assert_same, attribute
from run_folders import commit, wanted


class Weather:
    """Calls to the store are counted, and those of an outage fail."""

    def __init__(self) -> None:
        self.calls, self.first, self.length = 0, -1, 0
        self.error: Callable[[], Exception] = lambda: OSError("the store does not answer")

    def outage(self, first: int, length: int) -> None:
        Days.now += 86_400
        self.calls, self.first, self.length = 0, first, length

    def call(self) -> None:
        self.calls += 1
        if self.first <= self.calls < self.first + self.length:
            raise self.error()


WEATHER = Weather()


class Cloud(MemoryFileSystem):
    """A store in memory whose calls may fail, with fsspec's own `isdir` and `exists`."""

    protocol = "cloud"
    store: dict[str, Any] = {}
    pseudo_dirs: list[str] = [""]


def _failing(name: str) -> Callable[..., Any]:
    own = getattr(MemoryFileSystem, name)

    def call(self: Cloud, *given: Any, **named: Any) -> Any:
        WEATHER.call()
        return own(self, *given, **named)

    return call


for _name in ("info", "ls", "cat_file", "pipe_file", "_rm", "rm", "makedirs"):
    if hasattr(MemoryFileSystem, _name):
        setattr(Cloud, _name, _failing(_name))
fsspec.register_implementation("cloud", Cloud, clobber=True)


pytestmark = pytest.mark.usefixtures("small_shards")


class Days:
    """A clock that is looked at once a day, so that no lease is fresh."""

    now = 1e9

    @classmethod
    def time(cls) -> float:
        return cls.now


@pytest.fixture(autouse=True)
def _fair_weather(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(folder_module, "time", Days)
    yield
    WEATHER.outage(-1, 0)
    WEATHER.error = lambda: OSError("the store does not answer")


def url() -> str:
    return f"cloud://{uuid.uuid4().hex}/run"


def records(place: str) -> dict[str, bytes]:
    """The newest record of every block."""
    found = {}
    for index in range(2):
        folder = folder_at(place)
        names = [n for n in folder.names(f"checkpoints/block-00{index}") if n.endswith(".json")]
        if names:
            found[f"{index}"] = BlockStore(folder, index).commits()[0].draws
    return found


@pytest.fixture(scope="module")
def whole() -> tuple[bif.Run, int]:
    """The undisturbed run, and how many calls to the store it takes."""
    WEATHER.outage(-1, 0)
    run = attribute(url())  # type: ignore[arg-type]
    return run, WEATHER.calls


@pytest.mark.parametrize("num_places", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_no_outage_costs_a_committed_draw(whole, num_places):
    """Outages of 1 to 12 calls at so many places of a run, and of the resume after each."""
    run, num_calls = whole
    num_outages = num_failed = 0
    for k, share in enumerate(np.linspace(0.01, 0.99, num_places)):
        for length in (1, 2 + k % 11):
            place, outages = url(), [(round(share * num_calls), length), (3 + 2 * k, length)]
            before: dict[str, Any] = {}
            for first, calls in outages:
                WEATHER.outage(first, calls)
                num_outages += 1
                try:
                    attribute(place)  # type: ignore[arg-type]
                except OSError:
                    num_failed += 1
                WEATHER.outage(-1, 0)
                now = records(place)
                assert all(now.get(block, 0) >= draws for block, draws in before.items())
                before = now
            assert_same(attribute(place), run)  # type: ignore[arg-type]
    assert num_outages == 4 * num_places and num_failed >= 2 * num_places


@pytest.mark.parametrize(
    "error", [OSError, TimeoutError, ConnectionError, PermissionError, RuntimeError],
    ids=lambda e: e.__name__,
)  # fmt: skip
def test_whatever_a_store_says_that_does_not_answer_it_is_no_damage(error):
    place = url()
    with open_run(place, wanted()) as run:
        commit(run)
    WEATHER.error = lambda: error("no answer")
    folder = folder_at(place)
    folder.write("x", b"")
    block = BlockStore(folder, 0)
    uses: list[Callable[[], object]] = [
        lambda: folder.is_file("run.json"), lambda: folder.is_folder("traces.zarr"),
        lambda: folder.names("checkpoints"), lambda: folder.size("run.json"),
        lambda: folder.read("run.json"), lambda: folder.remove("x"), block.commits,
        lambda: block.good_draws(["train_loss-0"]), lambda: block.usable(["train_loss-0"]),
        lambda: load_dataset(folder, name="traces.zarr/block-000"),
    ]  # fmt: skip
    for use in uses:
        num_calls = 0
        for first in range(1, 200):
            WEATHER.outage(first, 1000)
            try:
                use()
                break
            except OSError as failed:
                num_calls += 1
                assert "no answer" in str(failed)
        WEATHER.outage(-1, 0)
        assert num_calls and block.commits()[0].draws == 3 and folder.is_file("run.json")


def test_a_run_that_fails_before_its_first_commit_stays_where_nobody_answers():
    place = url()
    with pytest.raises(FilesFailed), open_run(place, wanted()):
        WEATHER.outage(1, 10**6)
        folder_at(place).write("x", b"")
    WEATHER.outage(-1, 0)
    assert folder_at(place).is_file("run.json")


def test_one_failed_write_and_one_failed_read_do_not_remove_what_was_committed():
    place = url()
    with contextlib.suppress(OSError), open_run(place, wanted()) as run:
        commit(run)
        WEATHER.outage(1, 2)
        run.folder.write("x", b"")
    WEATHER.outage(-1, 0)
    with open_run(place, wanted()) as run:
        assert [c.draws for c in run.block(0).commits()] == [3]


def test_no_outage_costs_a_network_of_a_bank():
    expected = bank()
    num_calls = 0
    place = url()
    bank(place)
    for k, share in enumerate(np.linspace(0.02, 0.98, 12)):
        place = url()
        if not num_calls:
            WEATHER.outage(-1, 0)
            bank(place)
            num_calls = WEATHER.calls
            place = url()
        stored = 0
        for first in (round(share * num_calls), 3 + 4 * k):
            WEATHER.outage(first, 1 + k % 5)
            with contextlib.suppress(OSError):
                bank(place)
            WEATHER.outage(-1, 0)
            now = len([n for n in Cloud.store if place[8:] in n and "/outcome/c/" in n])
            assert now >= stored
            stored = now
        # A stack of four is put in two writes; cut between them, the rest is a smaller stack, whose
        # products round otherwise.
        got = bank(place)
        assert distance(got, expected) <= 1e-14 and bits(load(place)) == bits(got)


def test_the_cases_are_of_the_size_that_they_say():
    assert block_run._COMMIT_SHARE == 0 and (SETTINGS.chains, SETTINGS.block_size) == (4, 2)
