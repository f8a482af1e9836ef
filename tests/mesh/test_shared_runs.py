"""A run that ranks share is the run of one process with the same blocks, to the last bit."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bif
from bif import Settings, store
from bif.mesh import Ranks
from bif.runs.retention import Keep
from bif.sampling.engine import Engine
from forked_ranks import on_ranks, outcomes_on_ranks
from run_folders import commit, wanted
from same_bits import assert_same_datasets, assert_same_run
from small_problems import TINY, classification, labelled

pytestmark = pytest.mark.usefixtures("no_page")

# 8 chains in 4 blocks; steps 0 … 8, draws at 2, 4, 6 and 8.
SHARED = replace(TINY, chains=8, block_size=2, draws=4, burn_in=2, thin=2)
SOLVED = Settings(estimator="response", nbeta=20.0, gamma=5.0, solver_residual=1e-8)


def shared(
    out: Path, settings: Settings = SHARED, *, keep: Keep = "traces", problem: Any = None
) -> Any:
    """What each rank does; it returns the bytes of its scores."""

    def work(ranks: Ranks) -> bytes:
        run = bif.attribute(
            problem or classification(), settings, out=out, keep=keep, commit_every=0, ranks=ranks
        )
        assert run.summary.complete
        return run.influence.dataset["influence"].values.tobytes()

    return work


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("keep", ["traces", "sums", "weights"])
def test_many_ranks_give_the_bits_of_one_process(tmp_path, size, keep):
    expected = bif.attribute(classification(), SHARED, out=tmp_path / "one", keep=keep)
    scores = on_ranks(size, shared(tmp_path / "many", keep=keep))
    got = bif.load(tmp_path / "many")
    assert_same_run(got, bif.load(tmp_path / "one"))
    assert set(scores) == {expected.influence.dataset["influence"].values.tobytes()}
    parts = [part["blocks"] for part in manifest_of(tmp_path / "many")["ranks"]]
    assert sorted(sum(parts, [])) == [0, 1, 2, 3] and all(parts)
    assert got.manifest.gates == bif.load(tmp_path / "one").manifest.gates


@pytest.mark.parametrize("changed", [
    {"gradient": "minibatch", "batch_size": 6},
    {"oracle": "live", "sampler": "sgld", "friction": None, "chains": 4, "block_size": None},
    {"oracle": "sequential", "estimator": "anchored", "gradient": "full"},
])  # fmt: skip
def test_so_do_other_oracles_and_anchors(tmp_path, changed):
    settings = replace(SHARED, **changed)
    expected = bif.attribute(classification(), settings)
    on_ranks(2, shared(tmp_path, settings))
    assert_same_run(bif.load(tmp_path), expected)


def test_ranks_choose_blocks_that_they_can_share(tmp_path):
    settings = replace(SHARED, block_size=None)
    on_ranks(2, shared(tmp_path, settings))
    got = bif.load(tmp_path)
    assert got.manifest.settings["block_size"] == 4
    assert any("2 ranks take whole blocks" in line for line in got.manifest.explanations)
    same = bif.attribute(classification(), replace(settings, block_size=4))
    assert torch.equal(got.traces.blocks[1].train, same.traces.blocks[1].train)


def test_a_complete_run_is_loaded_by_all(tmp_path):
    first = on_ranks(2, shared(tmp_path))
    written = (tmp_path / "run.json").stat().st_mtime_ns
    assert on_ranks(2, shared(tmp_path)) == first
    assert (tmp_path / "run.json").stat().st_mtime_ns == written


class TestSolver:
    def test_ranks_solve_their_queries_as_one_process_does(self, tmp_path):
        problem = classification(queries=labelled(8, seed=2))
        expected = bif.attribute(problem, SOLVED).influence.dataset
        on_ranks(4, shared(tmp_path, SOLVED, problem=problem))
        got = bif.load(tmp_path)
        for name in ("influence", "standard_error"):
            here, there = got.influence.dataset[name].values, expected[name].values
            # Products of other shapes round otherwise; systems are solved to 1e-8.
            assert abs(here - there).max() <= 1e-6 * abs(there).max(), name
        found = manifest_of(tmp_path)
        assert found["query_blocks"] == [[a, 2 * i, 2 * i + 2] for a in (0, 1) for i in range(4)]
        assert sorted(sum((part["blocks"] for part in found["ranks"]), [])) == list(range(8))

    def test_the_blocks_are_solved_to_the_last_bit_by_one_process_too(self, tmp_path):
        problem = classification()
        on_ranks(2, shared(tmp_path / "many", SOLVED, problem=problem))
        for kind in ("a", "b"):  # the same blocks, cut short before the first
            copy = tmp_path / kind
            store.copy_run(tmp_path / "many", copy)
        folder = tmp_path / "a"
        for block in (folder / "checkpoints").glob("block-*"):
            for file in block.iterdir():
                file.unlink()
        (folder / "influence.zarr" / "zarr.json").unlink()
        bif.attribute(problem, SOLVED, out=folder)
        got = bif.load(folder)
        assert_same_datasets(got.influence.dataset, bif.load(tmp_path / "b").influence.dataset)

    def test_fewer_queries_than_ranks_are_refused(self, tmp_path):
        problem = classification(queries=labelled(1, seed=2))
        found = outcomes_on_ranks(2, shared(tmp_path, SOLVED, problem=problem))
        assert found[0][0] == "ValueError"
        assert all("1 queries cannot be dealt to 2 ranks" in message for _, message in found)


def at_step(step: int, number: signal.Signals) -> None:
    """Send a signal to this process, which is about to end, before a step of its blocks."""
    positions = Engine.positions

    def watched(self: Engine, *args: Any, **given: Any) -> Any:
        for position in positions(self, *args, **given):
            if position.step == step:
                os.kill(os.getpid(), number)
            yield position

    Engine.positions = watched  # type: ignore[method-assign]


class TestLostRanks:
    @pytest.fixture(autouse=True)
    def _commits_at_every_step(self, monkeypatch):
        monkeypatch.setattr("bif.runs.block_run._COMMIT_SHARE", 0)

    @pytest.mark.parametrize("lost", [0, 1])
    def test_a_killed_rank_loses_nothing_that_was_committed(self, tmp_path, lost):
        def work(ranks: Ranks) -> bytes:
            if ranks.rank == lost:
                at_step(5, signal.SIGKILL)
            return shared(tmp_path)(ranks)

        found = outcomes_on_ranks(2, work)
        assert found[lost] == ("killed", -signal.SIGKILL)
        assert found[1 - lost][0] == "RankFailed"
        begun = store.BlockStore(store.folder_at(tmp_path), lost).commits()[0]
        assert begun.step >= 3 and begun.draws >= 1  # the last one may not have been written
        on_ranks(2, shared(tmp_path))
        assert_same_run(bif.load(tmp_path), bif.attribute(classification(), SHARED))
        assert not any("ranks" in w for w in bif.load(tmp_path).manifest.warnings)

    @pytest.mark.parametrize("size", [1, 4])
    def test_another_number_of_ranks_goes_on_and_says_so(self, tmp_path, size):
        def work(ranks: Ranks) -> bytes:
            if ranks.rank == 1:
                at_step(5, signal.SIGKILL)
            return shared(tmp_path)(ranks)

        outcomes_on_ranks(2, work)
        if size == 1:
            bif.attribute(classification(), SHARED, out=tmp_path)
        else:
            on_ranks(size, shared(tmp_path))
        got = bif.load(tmp_path)
        assert_same_run(got, bif.attribute(classification(), SHARED))
        assert any(
            f"begun by 2 ranks and goes on with {size}" in warning
            for warning in got.manifest.warnings
        )

    def test_no_other_writer_comes_while_a_rank_of_a_lost_run_still_writes(self, tmp_path):
        with store.open_run(tmp_path, wanted()) as folder:
            commit(folder)
            sharing = store.share_run(tmp_path, folder.manifest["token"])
            sharing.__enter__()
        with pytest.raises(store.FolderInUse, match="ranks of a run whose rank 0 has ended"):
            bif.attribute(classification(), SHARED, out=tmp_path, on_existing="replace")
        sharing.__exit__(None, None, None)
        bif.attribute(classification(), SHARED, out=tmp_path, on_existing="replace")

    def test_at_a_url_ranks_extend_the_lease_of_rank_0(self, tmp_path):
        import fsspec

        url = f"memory://{tmp_path.name}/run"
        try:
            with store.open_run(url, wanted()) as folder:
                commit(folder)
                with store.share_run(url, folder.manifest["token"]) as beside:
                    assert beside.folder is not folder.folder
                    commit(beside)
                    folder.folder.renew()
                with pytest.raises(store.FolderInUse, match="being written by another process"):
                    store.reopen_run(url).__enter__()
        finally:
            fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)

    def test_sigterm_of_all_ranks_commits_and_the_next_start_goes_on(self, tmp_path):
        def work(ranks: Ranks) -> bytes:
            at_step(5, signal.SIGTERM)
            return shared(tmp_path)(ranks)

        found = outcomes_on_ranks(2, work)
        assert {name for name, _ in found} <= {"Preempted", "RankFailed"}
        assert "Preempted" in {name for name, _ in found}
        on_ranks(2, shared(tmp_path))
        assert_same_run(bif.load(tmp_path), bif.attribute(classification(), SHARED))


class TestRefusals:
    """Each before anything is sampled or solved, on every rank."""

    def refused(self, tmp_path: Path, work: Any, *, size: int = 2) -> list[str]:
        found = outcomes_on_ranks(size, work)
        assert all(name for name, _ in found), found
        assert not list(tmp_path.rglob("block-*"))
        return [message for _, message in found]

    @pytest.mark.parametrize(("changed", "named"), [
        ({"train": labelled(20, seed=9)}, "train"),
        ({"loss": bif.losses.margin}, "loss"),
        ({"queries": labelled(4, seed=2)}, "queries.query"),
    ])  # fmt: skip
    def test_ranks_of_other_data_or_code(self, tmp_path, changed, named):
        def work(ranks: Ranks) -> Any:
            problem = classification(**(changed if ranks.rank == 1 else {}))
            return shared(tmp_path, problem=problem)(ranks)

        for message in self.refused(tmp_path, work):
            assert "rank 1 was asked for another run than rank 0, with another" in message
            assert named in message.split("with another")[1].split(":")[0]

    def test_ranks_of_other_settings_or_seed(self, tmp_path):
        def work(ranks: Ranks) -> Any:
            return shared(tmp_path, replace(SHARED, seed=ranks.rank))(ranks)

        assert all("settings.seed" in m for m in self.refused(tmp_path, work))

    @pytest.mark.parametrize("what", ["versions", "source_fingerprint"])
    def test_ranks_of_other_versions(self, tmp_path, monkeypatch, what):
        def work(ranks: Ranks) -> Any:
            if ranks.rank == 1:
                found = {"torch": "0.4"} if what == "versions" else "other"
                monkeypatch.setattr(f"bif.runs.sharing.{what}", lambda: found)
            return shared(tmp_path)(ranks)

        for message in self.refused(tmp_path, work):
            assert "rank 1 was asked for another run" in message and "version" in message

    def test_a_folder_that_is_not_shared(self, tmp_path):
        def work(ranks: Ranks) -> Any:
            out = tmp_path / str(ranks.rank)
            out.mkdir()
            return shared(out)(ranks)

        found = outcomes_on_ranks(2, work)
        assert found[1][0] == "FolderInUse" and "that rank 0 writes to" in found[1][1]
        assert found[0][0] == "RankFailed"

    def test_blocks_that_do_not_divide(self, tmp_path):
        uneven = replace(SHARED, chains=6, block_size=2)
        for message in self.refused(tmp_path, shared(tmp_path, uneven)):
            assert "6 chains in blocks of 2 are 3 blocks, and 2 ranks cannot take" in message
        few = replace(SHARED, chains=4, block_size=None, oracle="stacked")
        for message in self.refused(tmp_path, shared(tmp_path, few), size=3):
            assert "4 chains in blocks of 2 are 2 blocks, and 3 ranks cannot take" in message

    def test_a_run_in_memory(self, tmp_path):
        def work(ranks: Ranks) -> Any:
            return bif.attribute(classification(), SHARED, ranks=ranks)

        assert all("ranks meet in a folder" in m for m in self.refused(tmp_path, work))

    def test_losses_at_the_weights_that_no_fingerprint_sees(self, tmp_path):
        def work(ranks: Ranks) -> Any:
            if ranks.rank == 1:
                torch.set_default_dtype(torch.float64)
                os.environ["SHIFT"] = "1"
            return shared(tmp_path, problem=classification(loss=shifted))(ranks)

        found = outcomes_on_ranks(2, work)
        assert found[1][0] == "FolderInUse" and "other losses of the train items" in found[1][1]


def shifted(model: Any, batch: Any) -> Any:
    return bif.losses.cross_entropy(model, batch) + float(os.environ.get("SHIFT", "0"))
