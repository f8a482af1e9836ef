"""Runs on disk of which something was lost, or changed, since: what is whole is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import store
from bif.store import DamagedRun, FolderInUse
from bif.types import Batch
from broken_runs import (
    CALLS,
    SETTINGS,
    array,
    assert_goes_on,
    assert_same,
    attribute,
    crashed,
    draws_of,
    edit,
    flip,
    fragile,
    last_shard,
    problem,
    record,
    state,
    truncate,
)
from small_problems import labelled, network

pytestmark = pytest.mark.usefixtures("small_shards")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a chunk in the first block": lambda f: flip(last_shard(f, block=0)),
    "a chunk in the second block": lambda f: flip(last_shard(f)),
    "a chunk of queries": lambda f: flip(last_shard(f, "query_value-0")),
    "a truncated shard": lambda f: truncate(last_shard(f)),
    "an empty shard": lambda f: truncate(last_shard(f), 0),
    "a missing shard": lambda f: last_shard(f).unlink(),
    "missing metadata": lambda f: (array(f) / "zarr.json").unlink(),
    "missing traces of a block": lambda f: shutil.rmtree(array(f).parent),
    "a truncated record": lambda f: truncate(record(f)),
    "a record with another step": lambda f: edit(record(f), step=11),
    "both records of a block": lambda f: [truncate(record(f, 1, i)) for i in (0, 1)],
    "a truncated state": lambda f: truncate(state(f)),
    "a truncated manifest": lambda f: truncate(f / "run.json"),
    "a missing manifest": lambda f: (f / "run.json").unlink(),
    "no checkpoints at all": lambda f: shutil.rmtree(f / "checkpoints"),
    "truncated values at w*": lambda f: truncate(f / "checkpoints/center.safetensors"),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_a_run_that_was_cut_short_ends_equal(self, whole, cut_short, tmp_path, damage):
        folder = shutil.copytree(cut_short, tmp_path / "run")
        assert draws_of(folder) == [6, 5]
        damage(folder)
        assert_goes_on(folder, whole)

    @pytest.mark.parametrize(
        ("damage", "good"),
        [("a chunk in the second block", (6, 4)), ("a truncated shard", (6, 4)),
         ("an empty shard", (6, 4)), ("a missing shard", (6, 4)),
         ("a chunk of queries", (6, 0)), ("a chunk in the first block", (4, 6)),
         ("missing metadata", (6, 0)), ("missing traces of a block", (6, 0)),
         ("a truncated record", (6, 5)),
         ("both records of a block", (6, 0)), ("no checkpoints at all", (0, 0))],
    )  # fmt: skip
    def test_of_a_complete_run_the_rest_is_read_and_it_says_so(self, whole, tmp_path, damage, good):
        folder = shutil.copytree(whole.folder, tmp_path / "run")
        assert bif.load(folder).manifest["warnings"] == whole.run.manifest["warnings"]
        DAMAGE[damage](folder)
        run = bif.load(folder)
        new = [w for w in run.manifest["warnings"] if w not in whole.run.manifest["warnings"]]
        assert len(new) == sum(g < 6 for g in good), new
        for chains, draws in zip((range(2), range(2, 4)), good, strict=True):
            where = [b for b in run.traces.blocks if b.chains == tuple(chains)]
            assert len(where) == (draws > 0)
            for block in where:
                expected = whole.run.traces.blocks[chains.start // 2]
                # Of a damaged shard nothing, of the others everything.
                assert draws <= block.num_draws <= max(draws, 5 if draws < 6 else 6)
                assert torch.equal(block.train, expected.train[:, : block.num_draws])
                assert torch.equal(block.query, expected.query[:, : block.num_draws])
        np.testing.assert_array_equal(
            run.influence.dataset["influence"], whole.run.influence.dataset["influence"]
        )

    @pytest.mark.parametrize("damage", ["a truncated state", "a truncated record", None])
    def test_what_is_whole_is_not_sampled_again(self, whole, cut_short, tmp_path, damage):
        folder = shutil.copytree(cut_short, tmp_path / "run")
        if damage:
            DAMAGE[damage](folder)
        assert_goes_on(folder, whole)
        assert CALLS.walking < 0.3 * whole.walking

    def test_a_complete_run_without_a_readable_manifest_is_read_by_its_spare_and_mended(
        self, whole, tmp_path
    ):
        folder = shutil.copytree(whole.folder, tmp_path / "run")
        truncate(folder / "run.json")
        assert bif.load(folder).summary["draws"] == bif.load(whole.folder).summary["draws"]
        assert_goes_on(folder, whole)
        truncate(folder / "run.json")
        truncate(folder / "checkpoints/run.json")
        with pytest.raises(DamagedRun, match="run.json is damaged.*--overwrite"):
            bif.load(folder)

    @pytest.mark.parametrize("name", ["influence.zarr", "diagnostics.zarr", "summary.json"])
    def test_damaged_results_are_made_anew_from_the_traces(self, whole, tmp_path, name):
        folder = shutil.copytree(whole.folder, tmp_path / "run")
        files = [f for f in (folder / name).rglob("c/*") if f.is_file()] or [folder / name]
        truncate(max(files, key=lambda f: f.stat().st_size))
        assert_goes_on(folder, whole)

    @pytest.mark.parametrize("name", ["traces.zarr", "traces.zarr/block-000/train_loss-0/c"])
    def test_traces_removed_while_the_run_goes_on_are_noticed_and_taken_again(
        self, whole, tmp_path, monkeypatch, name
    ):
        folder, commit = tmp_path / "run", store.BlockStore.commit

        def removed_before(block: store.BlockStore, newest: store.Commit, **given: Any) -> None:
            if newest.draws == 4:
                shutil.rmtree(folder / name, ignore_errors=True)
            commit(block, newest, **given)

        with monkeypatch.context() as patch:
            patch.setattr(store.BlockStore, "commit", removed_before)
            with pytest.raises(DamagedRun, match=r"missing"):
                attribute(folder)
        assert_goes_on(folder, whole)

    @pytest.mark.parametrize("how", ["flipped", "missing"])
    def test_damaged_values_at_the_center_are_called_damaged_and_nothing_changed(
        self, whole, cut_short, tmp_path, how
    ):
        folder = shutil.copytree(cut_short, tmp_path / "run")
        path = folder / "checkpoints/center.safetensors"
        flip(path, -9) if how == "flipped" else path.unlink()
        run = attribute(folder)
        assert_same(run, whole.run)
        (said,) = [w for w in run.manifest["warnings"] if "could not be compared" in w]
        assert "center.safetensors is" in said and "something" not in said

    def test_another_digit_in_the_manifest_is_no_other_run(self, whole, cut_short, tmp_path):
        text = (cut_short / "run.json").read_text()
        settings = text[: text.index('"explanations"')].rindex('"settings"')
        for at in [i for i, c in enumerate(text) if c.isdigit() and i > settings][:40:4]:
            folder = shutil.copytree(cut_short, tmp_path / str(at))
            other = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
            (folder / "run.json").write_text(other)
            assert_same(attribute(folder, commit_every=60), whole.run)

    def test_what_is_left_of_another_run_is_not_taken_over(self, whole, cut_short, tmp_path):
        # As after a copy that was killed before it wrote the manifest.
        folder = shutil.copytree(cut_short, tmp_path / "run")
        (folder / "run.json").unlink()
        other = replace(SETTINGS, seed=1)
        with pytest.raises(FolderInUse, match="another settings.seed"):
            attribute(folder, settings=other)
        (folder / "checkpoints/run.json").unlink()
        expected = attribute(tmp_path / "other", settings=other)
        assert_same(attribute(folder, settings=other), expected)


class TestKeptWeights:
    """The weights of every draw are needed only later, by further queries."""

    KEPT: dict[str, Callable[[Path], object]] = {
        "nothing": lambda f: None,
        "all of them": lambda f: shutil.rmtree(f / "weights.zarr"),
        "an array": lambda f: shutil.rmtree(f / "weights.zarr/block-001/weight-0"),
        "metadata": lambda f: truncate(f / "weights.zarr/block-001/weight-0/zarr.json"),
        "a shard": lambda f: sorted(
            (f / "weights.zarr/block-001/weight-0/c").rglob("*/0/0")
        )[-1].unlink(),
        "a bit": lambda f: flip(
            sorted((f / "weights.zarr/block-001/weight-0/c").rglob("*/0/0"))[-1]
        ),
        "a bit, and a state": lambda f: (
            flip(sorted((f / "weights.zarr/block-001/weight-0/c").rglob("*/0/0"))[-1]),
            truncate(state(f)),
        ),
    }  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def kept(cls, whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return crashed(tmp_path_factory.mktemp("kept") / "run", whole, keep="weights")

    @pytest.fixture(scope="class")
    @classmethod
    def grown(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[bif.Problem, bif.Run]:
        made = problem().extended(queries={"more": bif.Items(labelled(3, seed=9))})
        return made, attribute(tmp_path_factory.mktemp("grown") / "run", made=made)

    @pytest.mark.parametrize("damage", KEPT.values(), ids=KEPT)
    def test_kept_weights_are_whole_whatever_was_lost(self, whole, kept, grown, tmp_path, damage):
        folder = shutil.copytree(kept, tmp_path / "run")
        damage(folder)
        assert_goes_on(folder, whole, keep="weights")
        assert_same(bif.extend(folder, grown[0]), grown[1])


def described_loss(factor: float) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss whose closure holds a number that changes nothing."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return (factor / factor) * fragile(model, batch)

    return loss


def another_loss(model: nn.Module, batch: Batch) -> Tensor:
    """As `fragile`, in other words."""
    return 1.0 * fragile(model, batch)


def nudged_network() -> nn.Module:
    model = network()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-15
    return model


X, Y = labelled(20, seed=1)


class TestAnotherRun:
    """Between the interruption and the same call something has changed."""

    @pytest.mark.parametrize(
        ("changed", "given", "named"),
        [
            ({}, {"settings": replace(SETTINGS, step_size=0.01)}, r"another settings.step_size\."),
            ({}, {"settings": replace(SETTINGS, seed=1)}, r"another settings.seed\."),
            ({}, {"settings": replace(SETTINGS, draws=9)}, r"another settings.draws\..*--from"),
            ({"model": nudged_network()}, {}, r"another weights\."),
            ({"train": (X + 1e-15, Y)}, {}, r"another train\."),
            ({"train": (X, (Y + 1) % 3)}, {}, r"another train\."),
            ({"train": bif.Items((X, Y), ids=[f"i{i}" for i in range(20)])}, {},
             r"another train\."),
            ({"queries": labelled(5, seed=3)}, {}, r"another queries.query\."),
            ({"queries": {"query": labelled(5, seed=2), "more": labelled(5, seed=3)}}, {},
             r"another queries.more\..*--from"),
            ({"loss": another_loss}, {}, r"another loss, observables.loss\."),
            ({"train_weights": [1.0] * 20}, {}, r"another train_weights\."),
            ({"observables": [bif.MARGIN]}, {}, "another observables.loss, observables.margin"),
            ({}, {"keep": "weights"}, "another keep .it keeps traces"),
            ({}, {"keep": "sums"}, "another keep .it keeps traces"),
        ],
    )  # fmt: skip
    def test_it_is_refused_and_the_difference_named(self, cut_short, changed, given, named):
        before = {p: p.stat().st_mtime_ns for p in cut_short.rglob("*") if p.name != ".lock"}
        with pytest.raises(FolderInUse, match=f"holds another run, with {named}"):
            attribute(cut_short, made=problem(**changed), **given)
        assert before == {p: p.stat().st_mtime_ns for p in before}

    def test_a_value_of_the_losss_closure_counts(self, whole, tmp_path):
        folder = crashed(tmp_path / "run", whole, made=problem(loss=described_loss(1.0)))
        with pytest.raises(FolderInUse, match="another loss, observables.loss"):
            attribute(folder, made=problem(loss=described_loss(2.0)))
        assert_goes_on(folder, whole, made=problem(loss=described_loss(1.0)))

    def test_a_global_variable_that_the_loss_reads_is_caught_by_the_losses(
        self, whole, cut_short, tmp_path, monkeypatch
    ):
        folder = shutil.copytree(cut_short, tmp_path / "run")
        with monkeypatch.context() as patch:
            patch.setattr(CALLS, "scale", 1.0 + 1e-12)
            with pytest.raises(FolderInUse, match=r"begun with other .* at w\*"):
                attribute(folder)
        assert_goes_on(folder, whole)

    def test_to_replace_it_is_to_begin_anew(self, whole, cut_short, tmp_path):
        folder = shutil.copytree(cut_short, tmp_path / "run")
        other = replace(SETTINGS, seed=1)
        run = attribute(folder, settings=other, on_existing="replace")
        assert_same(run, attribute(tmp_path / "other", settings=other))
        with pytest.raises(FolderInUse, match="another settings.seed"):
            attribute(folder)
        assert store.read_run(folder)["manifest"]["settings"]["seed"] == 1
