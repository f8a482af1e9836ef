"""The covariance of traces larger than memory: streamed from the store, each chunk read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import bif
from bif import store
from bif.estimate.covariance import Covariance, estimate_covariance
from bif.estimate.traces import TraceBlock
from bif.mesh import Ranks
from bif.store.arrays import DrawArrays
from command_line import Answer, failed
from forked_ranks import on_ranks
from run_folders import resealed, wanted
from small_problems import TINY, classification, labelled

MIB = 2**20


def stored(folder: Path, *, blocks: int, chains: int, draws: int, sizes: tuple[int, ...],
           commits: int = 1) -> Path:  # fmt: skip
    """Traces of random numbers on a trend, in several commits; `sizes` of items and queries."""
    with store.open_run(folder, wanted()) as run:
        edges = [[b * chains, (b + 1) * chains] for b in range(blocks)]
        run.update({"blocks": edges, "arrays": ["train_loss-0", "query_value-0"]})
        for b in range(blocks):
            source, block = np.random.default_rng(b), run.block(b)
            for c in range(commits):
                common = source.standard_normal((chains, draws, 1), dtype=np.float32)
                train, query = (
                    common + source.standard_normal((chains, draws, n), dtype=np.float32)
                    for n in sizes
                )
                block.commit(
                    store.Commit(serial=c + 1, step=0, draws=(c + 1) * draws),
                    traces={"train_loss-0": train, "query_value-0": query[:, :, None]},
                    weights={}, state={},
                )  # fmt: skip
    return folder


def assert_close(got: Covariance, expected: Covariance) -> None:
    """Equal to 1e-12 of the largest."""
    for name in (f.name for f in fields(Covariance)):
        here, there = (torch.as_tensor(getattr(x, name)).double() for x in (got, expected))
        assert here.shape == there.shape
        assert float((here - there).abs().max()) <= 1e-12 * float(there.abs().max()), name


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 5 blocks in several commits, with candidates and two groups of queries."""
    folder = tmp_path_factory.mktemp("streamed") / "run"
    problem = classification(queries={"a": labelled(5, seed=2), "b": labelled(2, seed=4)})
    settings = replace(TINY, chains=9, block_size=2, draws=40)
    bif.attribute(problem, settings, out=folder, commit_every=0)
    return folder


@pytest.mark.parametrize("num_groups", [2, 3, 16])
def test_it_is_the_covariance_in_memory(run_folder, num_groups):
    expected = estimate_covariance(bif.load(run_folder).traces, num_groups=num_groups)
    assert_close(bif.stream_covariance(run_folder, num_groups=num_groups), expected)


def test_its_negative_is_the_runs_influence(run_folder):
    scores = bif.load(run_folder).influence.dataset["influence"].values
    got = -bif.stream_covariance(run_folder).value.numpy().reshape(scores.shape)
    np.testing.assert_allclose(got, scores, rtol=1e-6, atol=1e-9)  # saved in float32


def streamed_to(folder: Path, answer: Answer) -> tuple[xr.Dataset, dict[str, Any]]:
    """The scores and figures that the command has written."""
    assert answer[0] == 0, answer[2]
    scores = xr.open_zarr(folder / "influence.zarr", consolidated=False).load()
    return scores, json.loads((folder / "summary.json").read_text())


def test_the_command_writes_a_runs_scores_by_name(run_folder, tmp_path, call):
    got, figures = streamed_to(tmp_path, call("stream-covariance", run_folder, "--out", tmp_path))
    run = bif.load(run_folder)
    expected = run.influence.dataset
    for name in ("influence", "standard_error", "correlation", "derivative"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, atol=1e-9)
    for name in ("query_id", "query_group", "train_id", "observable", "better"):
        assert got[name].values.tolist() == expected[name].values.tolist()
    assert {n: got.attrs[n] for n in got.attrs} == {n: expected.attrs[n] for n in got.attrs}
    assert figures["num_draws"] == run.summary.draws == 9 * 40
    assert figures["trusted"] is bool(run.summary.trusted)


def test_the_command_takes_names_from_the_problem_of_a_run_that_has_no_results(
    tmp_path, call, file
):
    expected = bif.attribute(classification(), TINY, out=tmp_path / "run").influence.dataset
    for name in ("summary.json", "influence.zarr/zarr.json"):
        (tmp_path / "run" / name).unlink()
    resealed(tmp_path / "run/run.json", "results", complete=False)
    command = ["stream-covariance", tmp_path / "run", "--out", tmp_path / "out"]
    assert "has no results yet, and so no names" in failed(call(*command))
    assert "of another problem, with another train" in failed(call(*command, f"{file}:other"))
    into_run = ["stream-covariance", tmp_path / "run", "--out", tmp_path / "run"]
    assert "holds a run: choose another folder" in failed(call(*into_run))
    got, figures = streamed_to(tmp_path / "out", call(*command, f"{file}:problem"))
    np.testing.assert_allclose(got["influence"], expected["influence"], rtol=1e-6, atol=1e-9)
    assert got["train_id"].values.tolist() == expected["train_id"].values.tolist()
    assert figures["trusted"] is False and got.attrs["trusted"] == 0  # nobody has judged it


def test_chains_that_were_left_out_stay_out(tmp_path):
    bif.attribute(classification(), replace(TINY, chains=8, block_size=2), out=tmp_path)
    whole = bif.stream_covariance(tmp_path).value
    resealed(tmp_path / "run.json", left_out=[1, 4, 5])  # of two blocks, one of which is gone
    assert bif.load(tmp_path).traces.num_chains == 5
    assert not torch.equal(bif.stream_covariance(tmp_path).value, whole)
    assert_close(bif.stream_covariance(tmp_path), estimate_covariance(bif.load(tmp_path).traces))


def test_ranks_stream_some_blocks_each_and_get_the_same_bits(run_folder):
    def work(ranks: Ranks) -> bytes:
        found = bif.stream_covariance(run_folder, ranks=ranks)
        return found.value.numpy().tobytes() + found.standard_error.numpy().tobytes()

    alone = bif.stream_covariance(run_folder)
    expected = alone.value.numpy().tobytes() + alone.standard_error.numpy().tobytes()
    assert on_ranks(3, work) == [expected] * 3


def test_each_chunk_is_read_once(tmp_path, monkeypatch):
    # 50 draws a chunk of train losses, 436 of queries, in commits of 300 draws.
    folder = stored(tmp_path, blocks=2, chains=2, draws=300, sizes=(5_000, 600), commits=3)
    read, reads = DrawArrays._read, list[tuple[str, int, int]]()

    def counted(self: DrawArrays, array: Any, name: str, start: int, stop: int) -> np.ndarray:
        assert start % array.chunks[1] == 0 and stop - start <= array.chunks[1]
        reads.append((f"{self._name}/{name}", start, stop))
        return read(self, array, name, start, stop)

    monkeypatch.setattr(DrawArrays, "_read", counted)
    got = bif.stream_covariance(folder)
    names = {name for name, _, _ in reads}
    assert len(names) == 4
    for name in names:
        parts = sorted(part[1:] for part in reads if part[0] == name)
        assert [a for a, _ in parts] == [0, *(b for _, b in parts[:-1])] and parts[-1][1] == 900
        assert len(parts) >= (3 if "query" in name else 18)
    # Numbers with a common part of variance 1: each covariance is 1, by 3,600 draws.
    assert float((got.value - 1).abs().max()) < 8 * (3 / 3_596) ** 0.5


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        bif.stream_covariance(tmp_path / "nothing")
    bif.attribute(classification(), TINY, out=tmp_path / "sums", keep="sums")
    with pytest.raises(ValueError, match="keeps sums: bif.load has its scores"):
        bif.stream_covariance(tmp_path / "sums")
    solved = bif.Settings(estimator="response", nbeta=20.0, gamma=5.0)
    bif.attribute(classification(), solved, out=tmp_path / "solved")
    with pytest.raises(ValueError, match="cannot be streamed: it has no traces"):
        bif.stream_covariance(tmp_path / "solved")
    with store.open_run(tmp_path / "begun", wanted()) as run:
        run.update({"blocks": [[0, 2]], "arrays": ["train_loss-0"]})
    with pytest.raises(store.DamagedRun, match="no two chains with two draws"):
        bif.stream_covariance(tmp_path / "begun")


def test_damaged_traces_are_refused(tmp_path):
    folder = stored(tmp_path, blocks=1, chains=2, draws=10, sizes=(50, 4))
    (shard,) = (folder / "traces.zarr/block-000/train_loss-0/c/0").rglob("0/0")
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(store.DamagedRun):
        bif.stream_covariance(folder)


STREAM = """
import sys, threading, time
import torch, zarr, xarray
import bif

def anonymous():
    # Without pages of files, such as libraries, which come and go with the memory of the machine.
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("RssAnon")).split()[1])

def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.002)

torch.set_num_threads(1)
seen = [anonymous()]
threading.Thread(target=watch, daemon=True).start()
found = bif.stream_covariance(sys.argv[1])
print(max(seen) - seen[0])
torch.save((found.value[::50], found.standard_error[::50]), sys.argv[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
@pytest.mark.parametrize("draws", [78, pytest.param(781, marks=pytest.mark.slow)])
def test_traces_stream_for_a_thousand_queries_within_512_mib(tmp_path, draws):
    # 16 blocks of 2 chains of 156 or 1,562 draws of 4,000 + 1,000 numbers: 0.1e9 or 1.0e9 bytes.
    folder = stored(tmp_path / "run", blocks=16, chains=2, draws=draws, sizes=(4_000, 1_000),
                    commits=2)  # fmt: skip
    size = 16 * 2 * (2 * draws) * 5_000 * 4
    environment = {**os.environ, "PYTHONPATH": str(Path(bif.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(folder), str(tmp_path / "found.pt")],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    print(f"{size / 1e9:.2f} GB streamed within {peak / MIB:.0f} MiB above the import")
    assert peak < 512 * MIB
    value, error = torch.load(tmp_path / "found.pt")
    blocks = []
    for b in range(16):
        block = store.BlockStore(store.folder_at(folder), b)
        train = torch.from_numpy(block.traces.read("train_loss-0", 0, 2 * draws))
        query = torch.from_numpy(block.traces.read("query_value-0", 0, 2 * draws)[:, :, 0, ::50])
        blocks.append(TraceBlock((2 * b, 2 * b + 1), train, query.contiguous()))
    expected = estimate_covariance(bif.LossTraces(tuple(blocks)))
    for got, there in ((value, expected.value), (error, expected.standard_error)):
        assert float((got - there).abs().max()) <= 1e-12 * float(there.abs().max())
