"""Runs on disk when the world goes wrong: the same call goes on and ends equal."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import bif
from bif import cli
from bif.sampling.chain import Position
from bif.sampling.engine import Engine
from bif.store import BlockStore
from bif.store.folder import Buffer, LocalFolder
from broken_runs import (
    CALLS,
    SETTINGS,
    assert_goes_on,
    assert_same,
    attribute,
    crashed,
    draws_of,
    problem,
)
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("small_shards")


class TestReadOnlyFolders:
    @pytest.mark.parametrize("inner", ["", "new/run"])
    def test_they_are_refused_before_anything_is_sampled(self, whole, inner):
        made = problem()

        def child(connection: Connection, out: Path) -> None:
            if os.getuid() == 0:  # whom no permissions stop
                os.setgid(65534)
                os.setuid(65534)
            CALLS.count = 0
            try:
                bif.attribute(made, SETTINGS, out=out)
                connection.send(("nothing was raised", "", CALLS.count))
            except BaseException as error:
                connection.send((type(error).__name__, str(error), CALLS.count))

        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "readonly"
            folder.mkdir()
            for path, mode in ((folder, 0o555), (Path(place), 0o755)):
                path.chmod(mode)
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(
                target=child, args=(there, folder / inner)
            )
            process.start()
            assert here.poll(600)
            name, message, calls = here.recv()
            process.join()
            assert name == "PermissionError", message
            assert "cannot be written to" in message and "choose another folder" in message
            assert calls == 0 and list(folder.iterdir()) == []


class Disk:
    """A disk that takes so many files, here and in zarr arrays, and is then full."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int) -> None:
        from zarr.storage import LocalStore

        self.left, self.taken, self.committed = room, 0, [0, 0]
        write, put = LocalFolder.write, LocalStore.set

        def writing(folder: LocalFolder, name: str, *parts: Buffer) -> None:
            self.take()
            write(folder, name, *parts)
            if name.startswith("checkpoints/block-") and name.endswith(".json"):
                self.committed[int(name.split("/")[1][-3:])] = json.loads(bytes(parts[0]))["draws"]

        async def putting(target: LocalStore, key: str, value: Any) -> None:
            self.take()
            await put(target, key, value)

        patch.setattr(LocalFolder, "write", writing)
        patch.setattr(LocalStore, "set", putting)

    def take(self) -> None:
        self.taken += 1
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def num_files(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> int:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 10**9)
        attribute(tmp_path_factory.mktemp("counted") / "run")
    return disk.taken


class TestFullDisk:
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.03, 0.15, 0.3, 0.5, 0.65, 0.9, 1.0])
    def test_a_full_disk_costs_nothing_that_was_committed(
        self, whole, num_files, tmp_path, monkeypatch, share
    ):
        with monkeypatch.context() as patch:
            disk = Disk(patch, min(round(share * num_files), num_files - 1))
            with pytest.raises(OSError) as error:
                attribute(tmp_path / "run")
        assert error.value.errno == errno.ENOSPC
        assert draws_of(tmp_path / "run") == disk.committed
        assert_goes_on(tmp_path / "run", whole)

    def test_a_run_goes_on_through_one_full_disk_after_another(
        self, whole, num_files, tmp_path, monkeypatch
    ):
        before = [0, 0]
        for share in (0.1, 0.2, 0.3, 0.4):
            with monkeypatch.context() as patch:
                Disk(patch, round(share * num_files))
                with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                    attribute(tmp_path / "run")
            now = draws_of(tmp_path / "run")
            assert now >= before
            before = now
        assert before[0] == 6
        assert_goes_on(tmp_path / "run", whole)

    @pytest.mark.parametrize("size", ["96k", "224k"])
    def test_a_run_goes_on_after_a_disk_was_really_full(self, whole, tmp_path, size):
        disk = tmp_path / "disk"
        disk.mkdir()

        def mount(options: str) -> None:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True
            )
            if done.returncode:
                pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")

        if not shutil.which("mount"):
            pytest.skip("there is no mount here")
        mount(f"size={size}")
        try:
            with pytest.raises(OSError) as error:
                attribute(disk / "run")
            assert error.value.errno == errno.ENOSPC
            mount("remount,size=16m")
            assert_goes_on(disk / "run", whole)
        finally:
            subprocess.run(["umount", str(disk)], check=True)


class TestDivergedChains:
    @pytest.fixture(autouse=True)
    def poisoned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Chain 1 becomes NaN at the step of its second draw."""
        positions = Engine.positions

        def disturbed(engine: Engine, block: int, *given: Any, **more: Any) -> Iterator[
            Position[Any]
        ]:  # fmt: skip
            for position in positions(engine, block, *given, **more):
                if block == 0 and position.step == 4:
                    for leaf in position.state.params.values():
                        leaf[1] = float("nan")
                yield position

        monkeypatch.setattr(Engine, "positions", disturbed)

    @pytest.mark.parametrize("share", [0.4, 0.9])
    def test_a_resumed_run_remembers_them(self, whole, tmp_path, share):
        expected = attribute(tmp_path / "undisturbed")
        assert expected.summary["diverged_chains"] == [1]
        folder = crashed(tmp_path / "run", whole, share)
        assert BlockStore(LocalFolder(folder), 0).commits()[0].diverged == {1: 1}
        run = attribute(folder)
        assert run.summary["diverged_chains"] == [1]
        assert any("1 of 4 chains (1) diverged" in w for w in run.manifest["warnings"])
        assert [b.chains for b in run.traces.blocks] == [(0,), (2, 3)]
        assert_same(run, expected)
        assert_same(bif.load(folder), expected)


COMMAND = """
    import os, sys, time
    sys.path.insert(0, {tests!r})
    import bif, bif.report
    from small_problems import classification

    bif.report.render_report = lambda *_, **__: "<html></html>"  # pictures take seconds

    def slow(model, batch):
        if "SLOW" in os.environ:
            open(os.environ["SLOW"], "a").write("x")
            time.sleep(0.03)
        return bif.losses.cross_entropy(model, batch)

    def problem():
        return classification(loss=slow, observables=None)
"""
FLAGS = ["--chains", "4", "--draws", "12", "--burn-in", "2", "--thin", "2", "--block-size", "4",
         "--step-size", "0.02", "--friction", "2.0", "--gamma", "5.0"]  # fmt: skip


def own_loss(model, batch):
    return bif.losses.cross_entropy(model, batch)


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "status", "partial"), [(signal.SIGTERM, 75, False), (signal.SIGINT, 130, True)]
    )
    def test_they_end_the_command_and_the_same_one_goes_on(
        self, tmp_path, monkeypatch, capsys, number, status, partial
    ):
        file, out, calls = tmp_path / "mine.py", tmp_path / "run", tmp_path / "calls"
        file.write_text(dedent(COMMAND).format(tests=str(Path(__file__).parents[1])))
        command = ["attribute", f"{file}:problem", "--out", str(out), *FLAGS]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(bif.__file__).parents[1]),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "SLOW": str(calls),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "bif", *command],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            while not calls.exists() or calls.stat().st_size < 30:  # of 66 or so
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate()
        finally:
            process.kill()
        assert process.returncode == status, said
        assert "Traceback" not in said
        assert (out / "report.html").exists() == partial
        draws = draws_of(out)[0]
        assert 2 <= draws < 12
        if partial:
            assert bif.load(out).summary["complete"] is False
            assert bif.load(out).traces.blocks[0].num_draws == draws
        else:
            assert "run the same command to go on from there" in said
        monkeypatch.setattr(sys, "argv", ["bif", *command])
        cli.main()
        assert "report:" in capsys.readouterr().out
        settings = replace(TINY, draws=12, burn_in=2, block_size=4)
        # The file's loss is none that the library knows: it is recorded itself, without classes.
        posed = classification(loss=own_loss, observables=None)
        assert_same(bif.load(out), bif.attribute(posed, settings))
