"""Arrays that grow by draws, and commits: what is damaged is noticed, and the rest is used."""

from __future__ import annotations

import errno
import json
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bif.store import BlockStore, Commit, DamagedRun, Folder, folder_at
from bif.store import arrays as module
from bif.store.arrays import DrawArrays
from bif.store.folder import LocalFolder

GROUP, X, Y = "traces.zarr/block-000", "train_loss-0", "query_value-0"
CHUNK, SHARD = 2, 4  # draws
PLACE = "checkpoints/block-000"


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    """Chunks of two draws and shards of four, for draws of 2 chains and 3 items in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_BYTES", CHUNK * 2 * 3 * 8)
        patch.setattr(module, "_SHARD_BYTES", SHARD * 2 * 3 * 8)
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, root: Path) -> Folder:
    return folder_at(root if request.param == "local" else f"memory://{uuid.uuid4().hex}/run")


def values(num_draws: int, *, seed: int = 0) -> np.ndarray:
    """Draws `[2, d, 3]`."""
    return np.random.default_rng(seed).normal(size=(2, num_draws, 3))


def filled(where: Path | Folder, num_draws: int = 10) -> tuple[DrawArrays, np.ndarray]:
    """An array of draws, appended three at a time, and its values."""
    arrays, x = DrawArrays(folder_at(where), GROUP), values(num_draws)
    for start in range(0, num_draws, 3):
        arrays.append({X: x[:, start : start + 3]}, start=start)
    return arrays, x


def shard(root: Path, index: int, name: str = X) -> Path:
    return root / GROUP / name / "c" / "0" / str(index) / ("0" if name == X else "0/0")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """To the last bit, NaN and minus zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << (position % 8)
    path.write_bytes(content)


class TestDraws:
    def test_whatever_was_appended_in_pieces_is_read_in_any_pieces(self, folder):
        arrays, x = filled(folder)
        assert arrays.length(X) == arrays.good_length(X, 10) == 10 and arrays.names() == [X]
        for start in range(10):
            for stop in range(start + 1, 11):
                assert same(arrays.read(X, start, stop), x[:, start:stop])

    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9), st.booleans()), max_size=7))
    @settings(max_examples=25, deadline=None)
    def test_appending_replacing_and_cutting_are_those_of_a_list(self, steps):
        arrays = DrawArrays(folder_at(f"memory://{uuid.uuid4().hex}/run"), GROUP)
        model = values(0)
        for i, (place, count, cuts) in enumerate(steps):
            start = min(place, model.shape[1])
            if cuts:
                arrays.cut(start)
                model = model[:, :start]
            else:
                new = values(count, seed=i)
                arrays.append({X: new}, start=start)
                model = np.concatenate([model[:, :start], new], axis=1)
            assert arrays.length(X) == arrays.good_length(X, 99) == model.shape[1]
            if model.shape[1]:
                assert same(arrays.read(X, 0, model.shape[1]), model)

    @pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1"])
    def test_every_bit_of_the_draws_comes_back(self, root, dtype):
        x = np.random.default_rng(0).integers(0, 256, (2, 5, 3 * int(dtype[1])), dtype="u1")
        x = x.view(dtype)
        if dtype[0] == "f":
            x[0, 0] = [np.nan, -0.0, np.inf]
        arrays = DrawArrays(LocalFolder(root), GROUP)
        arrays.append({X: x}, start=0)
        assert same(arrays.read(X, 0, 5), x)

    def test_arrays_with_an_axis_of_observables_have_shards_too(self, root):
        arrays = DrawArrays(LocalFolder(root), GROUP)
        y = values(12).reshape(2, 6, 2, 3)
        arrays.append({Y: y[:, :5]}, start=0)
        arrays.append({Y: y[:, 5:]}, start=5)
        assert same(arrays.read(Y, 0, 6), y) and shard(root, 0, Y).is_file()

    def test_a_shard_that_is_full_is_not_written_again(self, root):
        arrays, _ = filled(root)
        before = [shard(root, i).stat().st_ino for i in range(2)]
        arrays.append({X: values(5)}, start=10)
        assert [shard(root, i).stat().st_ino for i in range(2)] == before

    def test_draws_of_another_shape_are_refused(self, root):
        arrays, _ = filled(root)
        with pytest.raises(DamagedRun, match=r"has shape \(2, 10, 3\), got draws of \(2, 1, 4\)"):
            arrays.append({X: np.zeros((2, 1, 4))}, start=10)

    def test_draws_that_would_leave_a_gap_are_refused(self, root):
        arrays, x = filled(root, 5)
        with pytest.raises((DamagedRun, ValueError)):
            arrays.append({X: values(1)}, start=7)
        assert same(arrays.read(X, 0, 5), x)

    def test_draws_that_are_not_there_cannot_be_read(self, root):
        arrays, _ = filled(root)
        with pytest.raises(DamagedRun, match="holds 10 draws, expected 11"):
            arrays.read(X, 9, 11)
        with pytest.raises(FileNotFoundError, match="has no array"):
            arrays.read("train_loss-1", 0, 1)
        assert arrays.length("train_loss-1") == arrays.good_length("train_loss-1", 4) == 0


class TestDamage:
    """Of the second of three shards: draws 4 to 7 of 10."""

    @pytest.fixture
    def made(self, root: Path) -> tuple[DrawArrays, np.ndarray]:
        return filled(root)

    def remains(self, arrays: DrawArrays, x: np.ndarray, good: int) -> None:
        assert arrays.good_length(X, 10) == good
        assert same(arrays.read(X, 0, good), x[:, :good])
        with pytest.raises(DamagedRun):
            arrays.read(X, 0, good + 1)
        assert same(arrays.read(X, 8, 10), x[:, 8:])  # the next shard is as good as ever
        arrays.cut(good)
        assert arrays.length(X) == good
        arrays.append({X: x[:, good:]}, start=good)
        assert same(arrays.read(X, 0, 10), x)

    def test_a_missing_shard_is_no_shard_of_nan(self, root, made):
        shard(root, 1).unlink()
        self.remains(*made, good=4)

    @pytest.mark.parametrize("left", [0, 1, 40, -1])
    def test_a_truncated_shard_is_noticed(self, root, made, left):
        shard(root, 1).write_bytes(shard(root, 1).read_bytes()[:left])
        self.remains(*made, good=4)

    def test_a_folder_in_the_place_of_a_shard_is_noticed(self, root, made):
        shard(root, 1).unlink()
        shard(root, 1).mkdir()
        self.remains(*made, good=4)

    def test_one_bit_anywhere_in_a_shard_is_noticed(self, root, made):
        arrays, x = made
        size, whole = shard(root, 1).stat().st_size, shard(root, 1).read_bytes()
        for position in [*range(0, size, 11), *range(size - 4, size)]:
            flip(shard(root, 1), position)
            assert arrays.good_length(X, 10) in (4, 6)  # the first or the second chunk
            shard(root, 1).write_bytes(whole)
        flip(shard(root, 1), 0)
        self.remains(arrays, x, good=4)

    @pytest.mark.parametrize(
        "change",
        [b"", b"{", b"[]", b"\xff\xfe", b'{"zarr_format": 2}', {"shape": [2, 10]},
         {"codecs": []}, {"data_type": "string"}, {"node_type": "group"}, {"shape": "many"}],
    )  # fmt: skip
    def test_damaged_metadata_is_noticed_and_cut_away(self, root, made, change):
        arrays, x = made
        path = root / GROUP / X / "zarr.json"
        if isinstance(change, dict):
            change = json.dumps({**json.loads(path.read_text()), **change}).encode()
        path.write_bytes(change)
        assert arrays.length(X) == arrays.good_length(X, 10) == 0
        with pytest.raises(DamagedRun):
            arrays.read(X, 0, 1)
        arrays.cut(0)
        arrays.append({X: x}, start=0)
        assert same(arrays.read(X, 0, 10), x)

    def test_a_length_that_is_too_long_is_noticed(self, root, made):
        path = root / GROUP / X / "zarr.json"
        path.write_text(path.read_text().replace("10,", "99,", 1))
        assert made[0].length(X) == 99 and made[0].good_length(X, 99) <= 12


def committed(where: Path | Folder, *draws: int) -> tuple[BlockStore, np.ndarray]:
    """A block with one commit after each of these numbers of draws."""
    block, x = BlockStore(folder_at(where), 0), values(max(draws))
    before = 0
    for serial, count in enumerate(draws, start=1):
        block.commit(
            Commit(serial, step=10 * count, draws=count, diverged={1: 0}, seconds=0.5),
            traces={X: x[:, before:count]} if count > before else {},
            weights={"weight-0": x[:, before:count]} if count > before else {},
            state={"w": torch.full((3,), float(count))},
        )
        before = count
    return block, x


class TestCommits:
    def test_the_newest_comes_first_and_two_are_kept(self, folder):
        block, _ = committed(folder, 2, 5, 5, 9)
        commits = block.commits()
        assert [(c.serial, c.draws, c.step) for c in commits] == [(4, 9, 90), (3, 5, 50)]
        assert commits[0].diverged == {1: 0} and commits[0].seconds == 0.5
        assert len(folder.names(PLACE)) == 4
        found = block.usable([X])
        assert found is not None and found[0] == commits[0]
        assert found[1]["w"].tolist() == [9.0] * 3

    def test_an_empty_block_has_no_commits(self, folder):
        block = BlockStore(folder, 0)
        assert block.commits() == [] and block.usable([X]) is None and block.good_draws([X]) == 0

    def test_a_commit_renews_the_lease(self, folder, monkeypatch):
        renewed = []
        monkeypatch.setattr(type(folder), "renew", lambda self: renewed.append(1))
        committed(folder, 2, 5)
        assert len(renewed) == 2


class TestFallingBack:
    """Commits after 5 and after 9 draws; the newest is damaged."""

    @pytest.fixture
    def made(self, root: Path) -> tuple[BlockStore, np.ndarray]:
        return committed(root, 2, 5, 9)

    def falls_back(self, block: BlockStore, x: np.ndarray) -> None:
        found = block.usable([X])
        assert found is not None and found[0].draws == 5
        assert found[1]["w"].tolist() == [5.0] * 3
        for arrays, name in ((block.traces, X), (block.weights, "weight-0")):
            assert arrays.length(name) == 5 and same(arrays.read(name, 0, 5), x[:, :5])
        again = replace(found[0], serial=found[0].serial + 1, draws=9)
        block.commit(again, traces={X: x[:, 5:]}, weights={"weight-0": x[:, 5:]}, state={})
        assert same(block.traces.read(X, 0, 9), x)
        assert [c.draws for c in block.commits()] == [9, 5]

    def test_a_state_that_is_not_as_it_was_written_falls_back(self, root, made):
        flip(root / PLACE / "00000003.safetensors", -3)
        self.falls_back(*made)

    def test_a_state_that_is_cut_short_falls_back(self, root, made):
        path = root / PLACE / "00000003.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        self.falls_back(*made)

    def test_a_state_that_is_gone_falls_back(self, root, made):
        (root / PLACE / "00000003.safetensors").unlink()
        self.falls_back(*made)

    def test_a_shard_that_is_gone_falls_back(self, root, made):
        shard(root, 2).unlink()
        self.falls_back(*made)

    @pytest.mark.parametrize("left", [0, 1, 50, -1])
    def test_a_torn_record_falls_back_to_the_commit_before(self, root, made, left):
        path = root / PLACE / "00000003.json"
        path.write_bytes(path.read_bytes()[:left])
        assert [c.serial for c in made[0].commits()] == [2]
        # Of the draws after it nothing is known: they are written anew.
        found = made[0].usable([X])
        assert found is not None and found[0].draws == 5

    @pytest.mark.parametrize("change", [{"step": 91}, {"step": 80}, {"draws": 8},
                                        {"diverged": {}}, {"diverged": {"0": 1}}])  # fmt: skip
    def test_a_record_that_is_not_as_it_was_written_falls_back(self, root, made, change):
        path = root / PLACE / "00000003.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        found = made[0].usable([X])
        assert found is not None and found[0].serial == 2

    def test_records_in_the_wrong_place_and_rubbish_are_no_commits(self, root, made):
        record = (root / PLACE / "00000003.json").read_bytes()
        (root / PLACE / "00000007.json").write_bytes(record)
        (root / PLACE / "notes.json").write_bytes(b"{}")
        (root / PLACE / "00000008.json").write_bytes(b"[" * 10**5)
        (root / PLACE / "00000009.json").mkdir()
        assert [c.serial for c in made[0].commits()] == [3, 2]

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_damaged_weights_beside_a_damaged_state_fall_back_too(self, root, made, index):
        flip(root / PLACE / "00000003.safetensors", -1)
        flip(root / "weights.zarr/block-000/weight-0/c/0" / str(index) / "0", 3)
        found = made[0].usable([X])
        assert found is None or found[0].serial < 3

    def test_with_nothing_usable_the_block_begins_anew(self, root, made):
        for path in (root / PLACE).glob("*.safetensors"):
            flip(path, -1)
        assert made[0].usable([X]) is None
        assert made[0].commits() == [] and made[0].traces.names() == made[0].weights.names() == []

    def test_with_the_first_shard_gone_the_block_begins_anew(self, root, made):
        shard(root, 0).unlink()
        assert made[0].usable([X]) is None and made[0].commits() == []

    def test_a_state_with_the_right_hash_that_is_no_state_is_refused(self, root, made):
        path = root / PLACE / "00000003"
        path.with_suffix(".safetensors").write_bytes(b"not tensors")
        forged = replace(made[0].commits()[0], state_check=zlib.crc32(b"not tensors"))
        path.with_suffix(".json").write_bytes(forged.as_bytes())
        with pytest.raises(DamagedRun):
            made[0].state(made[0].commits()[0])


@pytest.mark.parametrize("count", range(5))
def test_a_commit_that_fails_half_way_leaves_the_one_before(root, monkeypatch, count):
    block, x = committed(root, 2, 5)
    before = block.commits()
    left = count

    def failing(original: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "full")
            return original(self, *args)

        return call

    with monkeypatch.context() as patch:
        from zarr.storage import LocalStore

        patch.setattr(LocalFolder, "write", failing(LocalFolder.write))
        patch.setattr(LocalStore, "set", failing(LocalStore.set))
        with pytest.raises(OSError, match="full"):
            block.commit(Commit(3, 90, 9), traces={X: x_more()}, weights={}, state={})
    assert block.commits() == before
    found = block.usable([X])
    assert found is not None and found[0] == before[0]
    assert same(block.traces.read(X, 0, 5), x)
    block.commit(Commit(3, 90, 9), traces={X: x_more()}, weights={}, state={})
    assert same(block.traces.read(X, 0, 9), np.concatenate([x, x_more()], axis=1))


def x_more() -> np.ndarray:
    return values(4, seed=7)
