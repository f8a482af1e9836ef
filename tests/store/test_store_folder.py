"""Folders: whole files or none, nothing outside, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

from bif import store
from bif.store import DamagedRun, Folder, FolderInUse, folder_at
from bif.store import folder as module
from bif.store.folder import LOCK, LocalFolder, RemoteFolder, refuse_outside
from bif.store.leases import HELD, LEASE_SECONDS, Lease

OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "..", "a\\..\\x", "nul\0"]


@pytest.fixture(params=["path", "file URL", "memory URL"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    place = {
        "path": str(tmp_path / "run"),
        "file URL": f"file://{tmp_path}/run",
        "memory URL": f"memory://{uuid.uuid4().hex}/run",
    }[request.param]
    made = folder_at(place)
    assert isinstance(made, RemoteFolder if request.param == "memory URL" else LocalFolder)
    return made


@pytest.fixture
def local(tmp_path: Path) -> LocalFolder:
    (tmp_path / "run").mkdir()
    return LocalFolder(tmp_path / "run")


def everything(root: Path) -> dict[str, bytes | None]:
    """Files by their content and folders as None, links not followed."""
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")
    }


class TestFiles:
    def test_what_was_written_last_is_read(self, folder):
        for content in (b"first", b"second, longer", b""):
            folder.write("deep/er/file", content)
            assert folder.read("deep/er/file") == content
        assert folder.names("deep/er") == ["file"]

    def test_files_and_folders_are_distinguished(self, folder):
        folder.write("a/b", b"x")
        assert folder.is_file("a/b") and not folder.is_folder("a/b")
        assert folder.is_folder("a") and not folder.is_file("a")
        assert not folder.is_file("c") and not folder.is_folder("c")

    def test_names_are_sorted_and_those_of_nothing_are_none(self, folder):
        for name in ("b", "a", "c/d"):
            folder.write(name, b"x")
        assert folder.names() == ["a", "b", "c"] and folder.names("c") == ["d"]
        assert folder.names("a") == [] and folder.names("nowhere") == []

    def test_what_is_not_there_cannot_be_read(self, folder):
        with pytest.raises(FileNotFoundError):
            folder.read("nowhere")

    def test_files_folders_and_nothing_can_be_removed(self, folder):
        for name in ("a", "b/c", "b/d/e"):
            folder.write(name, b"x")
        folder.remove("a")
        folder.remove("b")
        folder.remove("b")
        assert folder.names() == []

    def test_the_files_of_a_folder_at_any_depth_are_named_and_those_of_nothing_are_none(
        self, folder
    ):
        for name in ("b", "a/d", "a/c/e", "aa"):
            folder.write(name, b"x")
        assert sorted(folder.files("a")) == ["a/c/e", "a/d"] and folder.files("b") == ["b"]
        assert folder.files("nowhere") == folder.files("b/nowhere") == []

    def test_a_folder_takes_the_place_of_what_was_there(self, folder):
        folder.write("old/inner/x", b"old")
        folder.write("old/left-over", b"old")
        with folder.replacing("old") as fresh:
            folder.write(f"{fresh}/inner/x", b"new")
        assert folder.names() == ["old"] and folder.names("old") == ["inner"]
        assert folder.read("old/inner/x") == b"new"

    def test_a_folder_holds_zarr_arrays(self, folder):
        values = np.arange(6.0).reshape(2, 3)
        made = zarr.create_array(folder.zarr("x.zarr"), shape=(2, 3), chunks=(1, 3), dtype="f8")
        made[:] = values
        got = zarr.open_array(folder.zarr("x.zarr", read_only=True), mode="r")
        np.testing.assert_array_equal(got[:], values)
        assert folder.is_file("x.zarr/zarr.json")

    def test_a_folder_stays_what_it_is(self, folder):
        assert folder_at(folder) is folder


class TestAtomicWrites:
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_failure_leaves_the_old_content_and_no_rubbish(self, local, monkeypatch, step, error):
        local.write("a/file", b"old")

        def fail(*_: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(*((module.os, "fsync") if step == "fsync" else (Path, "replace")), fail)
            with pytest.raises(type(error)):
                local.write("a/file", b"new and longer")
            with pytest.raises(type(error)):
                local.write("a/other", b"new")
        assert everything(local.root) == {"a": None, "a/file": b"old"}

    def test_what_a_killed_writer_left_is_swept_and_nothing_else(self, local, tmp_path):
        (tmp_path / "outside").write_text("mine")
        for name in ("kept", "partial", "checkpoints/b/kept.json"):
            local.write(name, b"x")
        half = f".{uuid.uuid4().hex}{module.PARTIAL}"
        mine = [f"weights{half}", f"checkpoints/mine{module.PARTIAL}", f"mine.zarr/0{half}"]
        for name in mine:
            local.write(name, b"mine")
        local.write(f"checkpoints/b/file{half}", b"half")
        local.write(f"influence.zarr{module.PARTIAL}/c/0", b"half")
        (local.root / f"run.json{half}").symlink_to(tmp_path / "outside")
        local.sweep(["run.json", "checkpoints", "influence.zarr"])
        assert everything(local.root) == {
            "kept": b"x", "partial": b"x", "checkpoints": None, "checkpoints/b": None,
            "checkpoints/b/kept.json": b"x", "mine.zarr": None, **dict.fromkeys(mine, b"mine"),
        }  # fmt: skip
        assert (tmp_path / "outside").read_text() == "mine"

    def test_what_others_left_half_written_is_not_swept(self, local):
        (local.root / f"film.mkv{module.PARTIAL}").write_text("half of it")
        with contextlib.suppress(FolderInUse), store.open_run(local, {"identity": {}}):
            pass
        assert (local.root / f"film.mkv{module.PARTIAL}").exists()


class TestContainment:
    @pytest.mark.parametrize("name", OUTSIDE)
    def test_names_that_lead_out_are_refused(self, folder, name):
        operations: list[Callable[[], Any]] = [
            lambda: folder.read(name), lambda: folder.write(name, b"x"),
            lambda: folder.is_file(name), lambda: folder.is_folder(name),
            lambda: folder.names(name), lambda: folder.remove(name),
            lambda: folder.files(name), lambda: folder.replacing(name).__enter__(),
            lambda: folder.zarr(name),
        ]  # fmt: skip
        folder.write("y", b"y")
        for operation in operations:
            with pytest.raises(DamagedRun, match="leads out of the run's folder: refused"):
                operation()
        assert folder.read("y") == b"y"

    @pytest.mark.parametrize("name", ["", "a/b", "..a", "a..", "...", "<x>", "\N{GRINNING FACE}"])
    def test_names_that_stay_inside_are_not_refused(self, name):
        assert refuse_outside(name) == name

    @pytest.fixture
    def outside(self, local: LocalFolder, tmp_path: Path) -> Path:
        """A folder elsewhere, with a link to it, and to its file, in the run's folder."""
        place = tmp_path / "outside"
        place.mkdir()
        (place / "file").write_text("mine")
        (local.root / "link").symlink_to(place)
        (local.root / "file-link").symlink_to(place / "file")
        (local.root / "dangling").symlink_to(place / "new")
        local.write("y", b"y")
        return place

    @pytest.mark.parametrize("name", ["link", "link/file", "link/new", "file-link", "dangling"])
    @pytest.mark.parametrize(
        "operation",
        ["read", "write", "is_file", "is_folder", "names", "files", "zarr", "replacing"],
    )
    def test_links_that_lead_out_are_refused(self, local, outside, operation, name):
        call: Callable[[str], Any] = {
            "write": lambda n: local.write(n, b"x"),
            "replacing": lambda n: local.replacing(n).__enter__(),
        }.get(operation) or getattr(local, operation)
        with pytest.raises(DamagedRun, match="link that leads out of the run's folder: refused"):
            call(name)
        assert everything(outside) == {"file": b"mine"} and local.read("y") == b"y"

    @pytest.mark.parametrize("name", ["link", "file-link", "dangling"])
    def test_removing_a_link_removes_no_more_than_the_link(self, local, outside, name):
        local.remove(name)
        assert not (local.root / name).is_symlink()
        assert everything(outside) == {"file": b"mine"}

    def test_nothing_is_removed_behind_a_link(self, local, outside):
        with pytest.raises(DamagedRun):
            local.remove("link/file")
        assert everything(outside) == {"file": b"mine"}

    def test_a_link_in_the_place_of_the_lock_is_not_followed(self, local, outside):
        (local.root / LOCK).symlink_to(outside / "file")
        with contextlib.suppress(DamagedRun, FolderInUse, PermissionError), local.locked():
            pass
        assert everything(outside) == {"file": b"mine"}

    def test_a_link_to_itself_is_refused(self, local):
        (local.root / "loop").symlink_to(local.root / "loop")
        with pytest.raises(DamagedRun):
            local.is_file("loop")

    def test_links_inside_and_a_link_to_the_folder_itself_are_fine(self, local, tmp_path):
        local.write("a/file", b"x")
        (local.root / "inner").symlink_to(local.root / "a")
        (tmp_path / "alias").symlink_to(local.root)
        assert LocalFolder(tmp_path / "alias").read("inner/file") == b"x"


@contextlib.contextmanager
def another_process(root: Path) -> Iterator[int]:
    """A process that holds a folder; its id."""

    def hold(connection: Connection) -> None:
        with LocalFolder(root).locked():
            connection.send("held")
            time.sleep(600)

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(there,), daemon=True)
    process.start()
    try:
        assert here.poll(600) and here.recv() == "held"
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join()


class TestLock:
    def test_a_second_writer_of_this_process_is_refused_and_the_holder_named(self, local):
        holder = rf"process {os.getpid()} on {socket.gethostname()}"
        with (
            local.locked(),
            pytest.raises(FolderInUse, match=f"being written by another process .{holder}"),
            LocalFolder(local.root).locked(),
        ):
            pass
        with LocalFolder(local.root).locked():  # and let in afterwards
            pass

    def test_another_process_keeps_writers_out_until_it_is_killed(self, local):
        with another_process(local.root) as pid:
            for _ in range(2):
                with pytest.raises(FolderInUse, match=f"process {pid} on "), local.locked():
                    pass
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with local.locked():
                assert f"process {os.getpid()} " in (local.root / LOCK).read_text()

    def test_an_exception_releases_the_lock(self, folder):
        with pytest.raises(ZeroDivisionError), folder.locked():
            raise ZeroDivisionError
        with folder.locked():
            pass

    def test_a_folder_made_for_nothing_is_removed_and_no_other(self, tmp_path):
        for name in ("new", "there", "filled"):
            made = LocalFolder(tmp_path / name)
            if name == "there":
                made.root.mkdir()
            with made.locked():
                if name == "filled":
                    made.write("x", b"x")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["filled", "there"]

    def test_a_place_where_no_folder_can_be_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with (
            pytest.raises(PermissionError, match="cannot be written to .*choose another folder"),
            LocalFolder(tmp_path / "file" / "run").locked(),
        ):
            pass


class Clock:
    """The time of day as leases see it."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=made.time))
    return made


@pytest.fixture
def pair() -> tuple[RemoteFolder, RemoteFolder]:
    """One remote folder as two processes see it."""
    url = f"memory://{uuid.uuid4().hex}/run"
    return RemoteFolder(url), RemoteFolder(url)


def lease_of(folder: RemoteFolder, *pids: int) -> Lease:
    """A lease as processes of this machine have renewed it just now."""
    ((machine, _),) = Lease().renewed_by("", 0.0).writers
    return Lease(folder._owner, time.time(), tuple((machine, pid) for pid in pids))


class TestLease:
    def test_a_fresh_lease_refuses_others_and_names_the_holder(self, clock, pair):
        mine, other = pair
        with mine.locked():
            clock.now += LEASE_SECONDS - 1
            with (
                pytest.raises(FolderInUse, match=f"process {os.getpid()} on .*last 10 minutes"),
                other.locked(),
            ):
                pass
        with other.locked():  # given back at the end
            pass
        assert mine.names() == []

    def test_a_lease_that_ran_out_is_taken_over(self, clock, pair):
        killed, other = pair
        killed.renew()
        clock.now += LEASE_SECONDS + 1
        with other.locked():
            assert json.loads(other.read(LOCK))["owner"] == other._owner

    def test_renewing_extends_the_lease(self, clock, pair):
        mine, other = pair
        with mine.locked():
            for _ in range(3):
                clock.now += LEASE_SECONDS / 2
                mine.renew()
            with pytest.raises(FolderInUse), other.locked():
                pass

    def test_the_first_owner_notices_that_it_was_taken_and_leaves_it_alone(self, clock, pair):
        slow, thief = pair
        with contextlib.ExitStack() as later:
            with pytest.raises(FolderInUse, match="was taken by another process"), slow.locked():
                clock.now += LEASE_SECONDS + 1
                later.enter_context(thief.locked())
                slow.renew()
            assert json.loads(thief.read(LOCK))["owner"] == thief._owner

    def test_two_that_take_it_at_the_same_moment_do_not_both_have_it(self, pair, monkeypatch):
        loser, winner = pair
        renew = loser.renew

        def renew_and_lose() -> None:
            renew()
            loser.remove(LOCK)
            winner.renew()

        monkeypatch.setattr(loser, "renew", renew_and_lose)
        with pytest.raises(FolderInUse, match="at the same moment"), loser.locked():
            pass
        assert json.loads(winner.read(LOCK))["owner"] == winner._owner

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b"\xff", b"{}", b'{"owner": "x"}', b'{"renewed": null}',
         b'{"renewed": "soon"}', b'{"renewed": [1]}', pytest.param(b"[" * 10**5, id="deep")],
    )  # fmt: skip
    def test_a_damaged_lease_is_none(self, pair, content):
        mine, _ = pair
        mine.write(LOCK, content)
        with mine.locked():
            assert json.loads(mine.read(LOCK))["owner"] == mine._owner


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="/proc is of Linux")
class TestWritersOfALease:
    def test_a_lease_whose_processes_have_ended_is_taken_over_at_once(self, pair):
        killed, other = pair
        with subprocess.Popen(["true"]) as gone:
            pass
        for pids in ((gone.pid,), (os.getpid(),), (gone.pid, os.getpid())):  # not held here
            killed.write(LOCK, lease_of(killed, *pids).as_bytes())
            with other.locked():
                assert json.loads(other.read(LOCK))["owner"] == other._owner

    def test_not_if_one_of_them_lives_or_is_of_another_machine(self, pair):
        killed, other = pair
        with subprocess.Popen(["true"]) as gone:
            pass
        alive = lease_of(killed, gone.pid, os.getppid())
        elsewhere = replace(alive, writers=(("another", gone.pid),))
        unknown = replace(alive, writers=())
        for lease in (alive, elsewhere, unknown):
            killed.write(LOCK, lease.as_bytes())
            with pytest.raises(FolderInUse, match="being written"), other.locked():
                pass

    def test_all_that_share_a_lease_are_among_its_writers(self, pair):
        mine, other = pair
        with mine.locked():
            there = Lease.parse(mine.read(LOCK))
            mine.write(LOCK, replace(there, writers=(("another", 1),)).as_bytes())
            with other.shared():
                assert Lease.parse(mine.read(LOCK)).writers == (*there.writers, ("another", 1))
                assert HELD == [mine._owner] * 2
        assert not HELD
