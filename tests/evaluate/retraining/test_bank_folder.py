"""Banks on disk: gone on with, lengthened, mended, and refused where they are others."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import bif
from bank_cases import PER_STACK, PLAN, RECIPE, bank, bits, distance
from bif import store
from bif.bank import Bank, Plan, load
from bif.evaluate import Recipe
from bif.evaluate.retraining.trainers import RecipeTrainer
from bif.store import DamagedRun, FolderInUse
from bif.types import Batch
from run_folders import content
from small_problems import classification, labelled, network

OUTCOME = "bank.zarr/reported/outcome"


class Counted:
    """Counts the networks that are trained, and fails before a given one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.subsets: list[tuple[int, int]] = []
        self.fail_after: int | None = None
        true = RecipeTrainer.outcomes

        def outcomes(trainer: RecipeTrainer, networks: Any, queries: Any) -> Any:
            if self.fail_after is not None and len(self.subsets) >= self.fail_after:
                raise KeyboardInterrupt
            self.subsets += [(network.seed, network.subset) for network in networks]
            return true(trainer, networks, queries)

        patch.setattr(RecipeTrainer, "outcomes", outcomes)

    def __len__(self) -> int:
        return len(self.subsets)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bank"


@cache
def in_memory() -> Bank:
    """The bank that nothing disturbed."""
    return bank()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank on disk, to be copied."""
    folder = tmp_path_factory.mktemp("made") / "bank"
    bank(folder)
    return folder


@pytest.fixture
def kept(made: Path, folder: Path) -> Path:
    """A copy of the bank on disk."""
    return shutil.copytree(made, folder)


def test_a_bank_on_disk_is_that_in_memory_to_the_last_bit(folder: Path):
    made, loaded = bank(folder), load(folder)
    assert bits(made) == bits(loaded) == bits(bank())
    assert loaded.plan == made.plan == PLAN and loaded.target == "scratch"
    assert loaded.recipe == made.recipe and loaded.recipe["learning_rate"] == RECIPE.learning_rate
    assert loaded.seconds == pytest.approx(made.seconds) and loaded.num_networks == 13
    assert loaded.manifest == made.manifest
    for a, b in zip(loaded.parts, made.parts, strict=True):
        assert (a.purpose, a.seeds) == (b.purpose, b.seeds)
        assert a.query_ids.tolist() == b.query_ids.tolist()
        assert a.train_ids.tolist() == b.train_ids.tolist()


def test_a_bank_lives_at_any_fsspec_url():
    url = f"memory://{uuid.uuid4().hex}/bank"
    made = bank(url)
    assert bits(load(url)) == bits(made)
    longer = bank(url, plan=Plan(num_subsets=6, seeds=3, num_tuning_subsets=3, tuning_seeds=(7,)))
    assert np.array_equal(longer.reported.outcomes["loss"][:2, :5], made.reported.outcomes["loss"])


def test_xarray_opens_both_parts_with_their_names(folder: Path):
    made = bank(folder, problem=classification(queries=bif.Items(labelled(5, seed=2), ids="abcde")))
    for part in made.parts:
        found = xr.open_zarr(folder / "bank.zarr", group=part.purpose, consolidated=False)
        assert found["outcome"].dims == ("observable", "seed", "subset", "query")
        assert found["mask"].dims == ("subset", "train") and found["mask"].dtype == bool
        assert found["observable"].values.tolist() == ["loss", "margin"]
        assert found["seed"].values.tolist() == list(part.seeds)
        assert found["train_id"].dims == ("train",) and "train_id" in found.coords
        assert found["query_id"].values.tolist() == part.query_ids.tolist()
        assert found.attrs["purpose"] == part.purpose
        picked = found["outcome"].sel(observable="margin").values
        assert np.array_equal(picked, part.outcomes["margin"])
    manifest = json.loads((folder / "bank.json").read_text())
    assert manifest["complete"] and manifest["versions"]["torch"]
    assert (
        Recipe(6, 0.1, 0.5, batch_size=3).as_dict().items() <= manifest["identity"]["how"].items()
    )


def test_a_complete_bank_is_returned_without_training_also_where_nothing_can_be_written(
    kept: Path, trained: Counted
):
    folder, first = kept, bits(in_memory())
    trained.subsets.clear()
    before = content(folder)
    folder.chmod(0o500)
    try:
        assert bits(bank(folder)) == first
        part = bank(folder, plan=Plan(num_subsets=2, num_tuning_subsets=1, tuning_seeds=(7,)))
    finally:
        folder.chmod(0o700)
    assert part.reported.outcomes["loss"].shape == (1, 2, 5) and part.num_networks == 3
    assert not len(trained) and content(folder) == before


@pytest.mark.parametrize("stacks", [0, 1, 2, 3])
def test_what_was_committed_before_an_interruption_is_not_trained_again(
    folder: Path, trained: Counted, stacks: int
):
    whole = bits(in_memory())
    trained.subsets.clear()
    trained.fail_after = min(stacks * PER_STACK, 10)  # stacks of 4 + 4 + 2 and 3 networks
    with pytest.raises(KeyboardInterrupt):
        bank(folder)
    committed = len(trained)
    assert committed == trained.fail_after
    if committed:
        with pytest.raises(FileNotFoundError, match="still to be trained"):
            load(folder)
    else:  # a recipe that fails at once does not keep its folder
        assert not folder.exists()
    trained.fail_after = None
    assert bits(bank(folder)) == whole == bits(load(folder))
    assert len(trained) == 13


def test_further_seeds_and_subsets_train_only_what_is_missing(kept: Path, trained: Counted):
    folder, first = kept, in_memory()
    trained.subsets.clear()
    plan = Plan(num_subsets=7, seeds=(2, 0, 1), num_tuning_subsets=4, tuning_seeds=(7, 9))
    longer = bank(folder, plan=plan)
    new = {(2, m) for m in range(7)} | {(s, m) for s in (0, 1) for m in (5, 6)}
    new_tuning = {(7, 3)} | {(9, m) for m in range(4)}
    assert set(trained.subsets[:11]) == new and set(trained.subsets[11:]) == new_tuning
    for name, values in longer.reported.outcomes.items():
        assert values.shape == (3, 7, 5)
        assert np.array_equal(values[1:, :5], first.reported.outcomes[name])
    assert distance(longer, bank(plan=plan)) < 1e-12
    assert longer.reported.seeds == (2, 0, 1) and load(folder).reported.seeds == (0, 1, 2)
    assert bits(bank(folder)) == bits(first), "the smaller plan is a part of the folder"
    assert bits(bank(folder, plan=plan)) == bits(longer)


def test_another_stack_size_goes_on_with_the_same_bank(folder: Path, trained: Counted):
    trained.fail_after = PER_STACK
    with pytest.raises(KeyboardInterrupt):
        bank(folder)
    trained.fail_after = None
    assert distance(bank(folder, networks_per_stack=3), in_memory()) < 1e-12


class Square(nn.Module):
    """Another model with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, _, self.b = network().children()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) ** 2)


def half(model: nn.Module, batch: Batch) -> torch.Tensor:
    return 0.5 * bif.losses.cross_entropy(model, batch)


def trained_once(start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
    return network(seed=seed)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"how": Recipe(steps=7, learning_rate=0.1, momentum=0.5, batch_size=3)}, "how.steps"),
        ({"how": trained_once}, "how.function"),
        ({"precision": "tf32"}, "how.precision"),
        ({"target": "checkpoint"}, "target"),
        ({"problem": classification(model=Square())}, "model"),
        ({"problem": classification(loss=half)}, "how.loss"),
        ({"problem": classification(train=labelled(20, seed=8))}, "train"),
        ({"problem": classification(queries=labelled(5, seed=8))}, "queries.query"),
        ({"problem": classification(observables=[bif.MARGIN])}, "observables.loss"),
        ({"tuning_queries": labelled(4, seed=8)}, "tuning_queries.tuning"),
        ({"plan": Plan(num_subsets=5, fraction=0.3, num_tuning_subsets=3)}, "subsets.fraction"),
        ({"plan": Plan(num_subsets=5, mask_seed=1, num_tuning_subsets=3)}, "subsets.mask_seed"),
        ({"plan": Plan(num_subsets=5), "tuning_queries": None}, "tuning_queries.tuning"),
    ],
)
def test_another_bank_is_refused_and_the_difference_named(
    kept: Path, changes: dict[str, Any], named: str
):
    before = content(kept)
    with pytest.raises(FolderInUse, match=rf"another bank, with another .*{named}\b"):
        bank(kept, **changes)
    assert content(kept) == before


def test_weights_are_part_of_a_bank_from_the_checkpoint_and_not_of_one_from_scratch(folder: Path):
    plan, other = Plan(num_subsets=2), classification(model=network(seed=5))
    bank(folder, plan=plan, tuning_queries=None)
    bank(folder, plan=plan, tuning_queries=None, problem=other)
    late = folder.with_name("late")
    bank(late, plan=plan, tuning_queries=None, target="checkpoint")
    with pytest.raises(FolderInUse, match="another weights"):
        bank(late, plan=plan, tuning_queries=None, target="checkpoint", problem=other)


def test_other_files_a_run_and_another_writer_are_refused(folder: Path):
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderInUse, match="holds no bank"):
        bank(folder)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    held = folder.with_name("held")
    with store.folder_at(held).locked(), pytest.raises(FolderInUse, match="by another process"):
        bank(held)


def test_a_leave_one_out_bank_refuses_subsets_that_were_for_tuning(folder: Path):
    small = Plan(num_subsets=6, num_removed=1, num_tuning_subsets=4)
    bank(folder, plan=small)
    with pytest.raises((FolderInUse, ValueError), match="other subsets|only 0 others"):
        bank(folder, plan=Plan(num_subsets=16, num_removed=1, num_tuning_subsets=4))


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


WAYS = ("flipped", "truncated", "empty", "missing")
DAMAGE = [
    *(("reported/outcome/c/0/0/1/0", 1, how) for how in WAYS),  # chunks of 4 of the 5 subsets
    ("reported/outcome/c/0/1/0/0", 4, "flipped"),
    ("tuning/outcome/c/0/0/0/0", 3, "missing"),
    *(("reported/outcome/zarr.json", 0, how) for how in WAYS),
    *(("reported/mask/c/0/0", 0, how) for how in WAYS),
    ("reported/seconds/c/0/0", 0, "flipped"),
    ("reported/mask/zarr.json", 0, "truncated"),
    ("reported/seed/c/0", 0, "missing"),
    ("tuning/query_id/c/0", 0, "flipped"),
    ("tuning/zarr.json", 0, "empty"),
    ("zarr.json", 0, "missing"),
]


@pytest.mark.parametrize(("file", "lost", "how"), DAMAGE)
def test_damage_is_noticed_and_costs_no_more_than_the_networks_that_it_hit(
    kept: Path, trained: Counted, file: str, lost: int, how: str
):
    folder, whole = kept, in_memory()
    trained.subsets.clear()
    damaged(folder / "bank.zarr" / file, how)
    if file != "zarr.json":  # the outer group is not needed to read the inner ones
        try:
            assert bits(load(folder)) == bits(whole)  # or read as it was, never as something else
        except (DamagedRun, FileNotFoundError):
            pass
    assert distance(bank(folder), whole) < 1e-12
    assert len(trained) == lost
    assert distance(load(folder), whole) < 1e-12
    xr.open_zarr(folder / "bank.zarr", group="reported", consolidated=False).load()


def test_damaged_outcomes_are_never_read_as_outcomes(kept: Path):
    folder = kept
    damaged(folder / OUTCOME / "c/0/0/0/0", "flipped")
    with pytest.raises(DamagedRun, match="damaged"):
        load(folder)
    damaged(folder / OUTCOME / "c/0/0/0/0", "missing")
    with pytest.raises(FileNotFoundError, match="4 of 10 networks of the reported part"):
        load(folder)


@pytest.mark.parametrize("how", WAYS)
def test_a_damaged_manifest_is_read_from_its_spare(kept: Path, trained: Counted, how: str):
    folder, whole = kept, bits(in_memory())
    trained.subsets.clear()
    if how == "flipped":
        (folder / "bank.json").write_text('{"format": 1, "plan": 3}')
    else:
        damaged(folder / "bank.json", how)
    assert bits(load(folder)) == whole == bits(bank(folder)) and not len(trained)
    (folder / "bank.json").write_text("{")
    (folder / "bank.spare.json").write_text("[]")
    with pytest.raises(DamagedRun, match=r"bank\.json is damaged.*train the bank anew"):
        bank(folder)


def test_a_bank_of_another_format_is_refused(kept: Path):
    folder = kept
    for name in ("bank.json", "bank.spare.json"):
        (folder / name).write_text('{"format": 3}')
    for use in (load, bank):
        with pytest.raises(FolderInUse, match="holds a bank of format 3, .* reads 2"):
            use(folder)


def test_no_bank_is_said_to_be_none(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no bank of bif: it has no bank\.json"):
        load(tmp_path)


def test_foreign_codecs_are_refused_and_the_array_made_anew(kept: Path, trained: Counted):
    folder = kept
    place = folder / OUTCOME / "zarr.json"
    place.write_text(place.read_text().replace('"zstd"', '"evil"'))
    with pytest.raises(DamagedRun, match="codec 'evil'"):
        load(folder)
    bank(folder)
    assert not len(trained), "the chunks were whole"


def test_links_out_of_the_folder_are_refused(kept: Path, tmp_path: Path):
    folder = kept
    chunk, outside = folder / OUTCOME / "c/0/0/1/0", tmp_path / "outside"
    outside.write_text("mine")
    chunk.unlink()
    chunk.symlink_to(outside)
    with pytest.raises(DamagedRun, match="leads out"):
        bank(folder)
    assert outside.read_text() == "mine"


def test_a_full_disk_loses_nothing(folder: Path, trained: Counted, monkeypatch: pytest.MonkeyPatch):
    whole, calls = bits(in_memory()), 0
    true = store.BankPartStore.write

    def write(self: store.BankPartStore, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            monkeypatch.setattr("zarr.storage._local._put", full)
        true(self, *arguments)

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.BankPartStore, "write", write)
        import zarr.storage._local as local

        patch.setattr(local, "_put", local._put)  # put back afterwards
        with pytest.raises(OSError, match="No space left on device: .*bank.zarr/reported"):
            bank(folder)
    monkeypatch.undo()
    assert bits(bank(folder)) == whole


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[2])
import bank_cases
from bif.evaluate.retraining.trainers import RecipeTrainer
true, left = RecipeTrainer.outcomes, int(sys.argv[3])
def waits(self, networks, queries):
    global left
    if left == 0:
        print("in the next stack", flush=True)
        while True:
            time.sleep(0.01)
    left -= 1
    return true(self, networks, queries)
RecipeTrainer.outcomes = waits
bank_cases.bank(sys.argv[1])
"""


def stopped(folder: Path, after: int, number: int) -> int:
    """The exit status of a process that makes the bank and gets a signal after some stacks."""
    source = str(Path(bif.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(Path(__file__).parents[2]), str(after)],
        env={**os.environ, "PYTHONPATH": source}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"in the next stack\n"
    process.send_signal(number)
    process.communicate()
    return process.returncode


@pytest.mark.parametrize(("after", "number"), [(3, signal.SIGKILL), (2, signal.SIGTERM)])
def test_a_killed_process_loses_at_most_the_stack_in_work(
    folder: Path, trained: Counted, after: int, number: int
):
    whole = bits(in_memory())
    assert stopped(folder, after, number) != 0
    trained.subsets.clear()
    there = len(list((folder / OUTCOME).rglob("c/0/*/*/0")))
    assert bits(bank(folder)) == whole
    assert 13 - len(trained) >= (there > 0) * PER_STACK, "what was there is used"
    assert not list(folder.rglob("*.partial"))


class Calls:
    """What a function has done, which is no code of it."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.limit = 2


CALLS = Calls()


class Train:
    def __call__(self, start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
        if len(CALLS.seeds) == CALLS.limit:
            raise KeyboardInterrupt
        CALLS.seeds.append(seed)
        return network(seed=seed % 1000)


def test_a_bank_by_the_users_function_goes_on_network_by_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("test_bank_folder.CALLS", calls := Calls())
    plan = Plan(num_subsets=3, seeds=2, num_tuning_subsets=1)
    with pytest.raises(KeyboardInterrupt):
        bank(folder, how=Train(), plan=plan)
    calls.limit = 99
    found = bank(folder, how=Train(), plan=plan)
    assert len(set(calls.seeds)) == 8 and len(calls.seeds) in (8, 9), "one to compare, at most"
    assert bits(load(folder)) == bits(found)
    assert found.recipe["function"].startswith("Train")


def test_the_progress_bar_counts_networks(folder: Path, capsys: pytest.CaptureFixture[str]):
    bank(folder, show_progress=True)
    assert "13/13" in capsys.readouterr().err
