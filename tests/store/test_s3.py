"""A run on a store of the protocol S3, whose server this file starts, stops and starts again."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fsspec.config import conf

import bif
from bif.mesh import Ranks
from bif.store import RUN, BlockStore, FilesFailed, FolderInUse, folder_at, open_run, share_run
from bif.store.folder import LOCK
from broken_runs import SETTINGS, assert_same, attribute
from forked_ranks import outcomes_on_ranks
from run_folders import commit, wanted

pytest.importorskip("moto", reason="needs moto[s3], of the extra dev")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs, of the extra dev")
pytest.importorskip("flask_cors", reason="needs flask-cors, of the extra dev")
pytestmark = pytest.mark.usefixtures("small_shards")

_SAID = {"503": ("503 Slow Down", "SlowDown"), "403": ("403 Forbidden", "AccessDenied"),
         "closed": ("503 Slow Down", "SlowDown")}  # fmt: skip
"""Status and code of answers that fail; of "closed" they come too late."""
READ_TIMEOUT = 0.5
"""Seconds that a client waits for an answer."""


def nothing(method: str, path: str) -> None:
    """Do nothing after a call."""


class Server:
    """Moto's S3 in this process, with calls to it that fail as asked for.

    Attributes:
        failures: What becomes of the calls to come, the next one first.
        calls: Method and path of those that were answered.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import create_backend_app

        self._app = create_backend_app("s3")
        self.failures, self.calls = list[str](), list[tuple[str, str]]()
        self.after: Callable[[str, str], None] = nothing
        self._port = 0
        self.start()

    def start(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: Any) -> None: ...

        self._server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, request_handler=Quiet
        )
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def leave_to_parent(self) -> None:
        """Close the socket that a fork has inherited, or it would accept what nobody answers."""
        os.close(self._server.fileno())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _answer(self, environment: dict[str, Any], start: Any) -> Any:
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "slow":
            time.sleep(2 * READ_TIMEOUT)
        if failure == "closed":
            environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        if failure in _SAID:
            status, code = _SAID[failure]
            start(status, [("Content-Type", "application/xml")])
            body = f"<Error><Code>{code}</Code><Message>{status}</Message></Error>".encode()
            return [] if environment["REQUEST_METHOD"] == "HEAD" else [body]
        answer = self._app(environment, start)
        call = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        self.calls.append(call)
        self.after(*call)
        return answer


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    patch = pytest.MonkeyPatch()
    made = Server()
    patient = {"retries": {"max_attempts": 2}, "read_timeout": READ_TIMEOUT}
    given = {
        "key": "key", "secret": "secret", "endpoint_url": made.url, "config_kwargs": patient,
        "client_kwargs": {"region_name": "us-east-1"},
    }  # fmt: skip
    patch.setitem(conf, "s3", given)
    patch.setattr(s3fs.S3FileSystem, "retries", 3)
    s3fs.S3FileSystem().call_s3("create_bucket", Bucket="bucket")
    yield made
    made.stop()
    patch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.failures.clear()
    running.calls.clear()
    yield running
    running.after = nothing


# Two blocks of one chain, three draws of each, a commit after every step.
SHARED = replace(SETTINGS, chains=2, block_size=1, draws=3, burn_in=0)


def test_two_ranks_ride_out_short_outages_and_another_process_ends_what_a_long_one_stopped(server):
    place = "s3://bucket/run"
    records = set[str]()

    def after(method: str, path: str) -> None:
        if method == "PUT" and re.search(r"/checkpoints/block-.*\.json$", path):
            records.add(path)
            if len(records) == 1:
                server.failures[:] = ["503", "closed", "slow", "503"]
            if len(records) >= 4 and len({path.split("/")[-2] for path in records}) == 2:
                server.after = nothing
                threading.Thread(target=server.stop).start()

    def work(ranks: Ranks) -> None:
        server.leave_to_parent()
        attribute(place, settings=SHARED, ranks=ranks)  # type: ignore[arg-type]

    server.after = after
    failed = outcomes_on_ranks(2, work)
    assert {name for name, _ in failed} <= {"FilesFailed", "RankFailed"}, failed
    assert any("bucket/run" in said and "Could not connect" in said for _, said in failed), failed
    with pytest.raises(FilesFailed, match=r"bucket/run/run\.json.*Could not connect"):
        attribute(place, settings=SHARED)  # type: ignore[arg-type]
    server.start()
    folder = folder_at(place)
    commits = [BlockStore(folder, block).commits()[0] for block in range(2)]
    assert sum(commit.draws for commit in commits) >= 2 and not server.failures
    assert folder.is_file(LOCK)  # nobody could give it back
    token = RUN.read(folder)["token"]
    got = attribute(place, settings=SHARED)  # type: ignore[arg-type]
    assert RUN.read(folder)["token"] == token  # it went on
    assert_same(got, attribute("memory://whole/run", settings=SHARED))  # type: ignore[arg-type]
    assert_same(bif.load(place), got)


def test_a_bucket_that_does_not_exist_is_named_and_not_made(server):
    with pytest.raises(FileNotFoundError, match="s3://none/run cannot .*bucket that exists"):
        attribute("s3://none/run", settings=SHARED)  # type: ignore[arg-type]
    assert ("PUT", "/none") not in server.calls and ("PUT", "/none/") not in server.calls


def test_what_another_writer_has_put_or_removed_is_seen_at_once(server):
    place = "s3://bucket/seen"
    with open_run(place, wanted()) as run:
        commit(run)
        with pytest.raises(FolderInUse, match="being written"), open_run(place, wanted()):
            pass
        with share_run(place, run.manifest["token"]) as beside:
            assert run.folder.names("checkpoints/block-000") == [
                "00000001.json",
                "00000001.safetensors",
            ]
            beside.folder.write("checkpoints/block-000/x", b"x")
            assert "x" in run.folder.names("checkpoints/block-000")
            beside.folder.remove("checkpoints/block-000")
            assert run.folder.files("checkpoints") == ["checkpoints/run.json"]
            assert not run.folder.is_folder("checkpoints/block-000")


def test_what_the_credentials_do_not_allow_is_named(server):
    server.failures[:] = ["403"] * 9
    with pytest.raises(PermissionError, match=r"bucket/own/run\.json cannot .*credentials"):
        attribute("s3://bucket/own", settings=SHARED)  # type: ignore[arg-type]
