"""The command line under torchrun: two processes, one run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

import bif
from command_line import TINY_FLAGS, failed
from same_bits import assert_same_run, assert_same_traces
from small_problems import TINY, classification

LOST = """
    import os, signal
    import bif
    from small_problems import classification

    class Calls:
        count = 0

    def loss(model, batch):
        Calls.count += 1
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if Calls.count == 12:
                os.kill(os.getpid(), signal.SIGKILL)
        return bif.losses.cross_entropy(model, batch)

    def problem():
        return classification(loss=loss)
"""


def torchrun(*arguments: object, max_restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 -m bif ARGUMENTS`."""
    tests = Path(__file__).parents[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path(bif.__file__).parents[1]}:{tests}",
    }  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--max-restarts", str(max_restarts)]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", "-m", "bif", *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip


def test_torchrun_makes_the_run_of_one_process(tmp_path, file, call):
    flags = [*TINY_FLAGS, "--block-size", "2"]
    done = torchrun("attribute", f"{file}:problem", "--out", tmp_path / "two", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1  # rank 0 alone prints
    assert call("attribute", f"{file}:problem", "--out", tmp_path / "one", *flags)[0] == 0
    two, one = bif.load(tmp_path / "two"), bif.load(tmp_path / "one")
    assert_same_run(two, one)
    assert len(two.manifest["ranks"]) == 2


@pytest.mark.slow
def test_torchrun_starts_the_ranks_again_where_one_is_lost(tmp_path):
    file = tmp_path / "lost.py"
    file.write_text(dedent(LOST))
    done = torchrun(
        "attribute", f"{file}:problem", "--out", tmp_path / "run", *TINY_FLAGS,
        "--block-size", "2", "--commit-every", "0", max_restarts=1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr  # SIGKILL
    settings = replace(TINY, block_size=2)
    expected = bif.attribute(classification(), settings)
    assert_same_traces(bif.load(tmp_path / "run").traces, expected.traces)


def test_ranks_extend_no_run(monkeypatch, call, file):
    class Alone:
        def __enter__(self) -> object:
            return object()

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr("bif.mesh.launched", lambda: True)
    monkeypatch.setattr("bif.mesh.join", Alone)
    message = failed(call("attribute", f"{file}:problem", "--from", "run"))
    assert "--from extends a run in one process" in message
