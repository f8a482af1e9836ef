import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bif
from bif.interop import ImportedScores, read_scores, write_bergson_scores
from small_problems import TINY, classification

SCORES = np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -4.0]])
QUERIES, TRAIN = ("q0", "q1"), ("a", "b", "c")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run with two observables and its folder; nbeta is not n, so scales differ."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return bif.attribute(classification(), replace(TINY, nbeta=50.0), out=folder), folder


def write_csv(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_signs_are_turned_where_helpful_is_positive_and_the_observable_better_low(tmp_path):
    np.save(tmp_path / "s.npy", SCORES)
    read = lambda **given: read_scores(tmp_path / "s.npy", **given).scores  # noqa: E731
    assert np.array_equal(read(sign="loss"), SCORES)
    assert np.array_equal(read(sign="loss", better="higher"), SCORES)
    assert np.array_equal(read(sign="helpful"), -SCORES)
    assert np.array_equal(read(sign="helpful", better="higher"), SCORES)


def test_a_plain_file_needs_a_sign_and_a_known_one(tmp_path):
    np.save(tmp_path / "s.npy", SCORES)
    with pytest.raises(ValueError, match="does not say how it is signed; pass sign='loss'"):
        read_scores(tmp_path / "s.npy")
    with pytest.raises(ValueError, match="sign is 'up'; expected 'loss'"):
        read_scores(tmp_path / "s.npy", sign="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="better is None"):
        read_scores(tmp_path / "s.npy", sign="loss", better=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_numbers_of_any_kind_come_in_float64(tmp_path, dtype):
    np.save(tmp_path / "s.npy", (4 * SCORES).astype(dtype))
    found = read_scores(tmp_path / "s.npy", sign="loss").scores
    assert found.dtype == np.float64 and np.array_equal(found, 4 * SCORES)


def test_one_query_may_be_a_vector(tmp_path):
    np.save(tmp_path / "s.npy", SCORES[0])
    assert np.array_equal(read_scores(tmp_path / "s.npy", sign="loss").scores, SCORES[:1])


def test_npz_and_safetensors_carry_names(tmp_path):
    np.savez(tmp_path / "s.npz", scores=SCORES, other=SCORES, query_ids=QUERIES, train_ids=TRAIN)
    save_file(
        {"anything": torch.tensor(SCORES)},
        tmp_path / "s.safetensors",
        metadata={"query_ids": json.dumps(QUERIES), "train_ids": json.dumps(TRAIN)},
    )
    for name in ("s.npz", "s.safetensors"):
        found = read_scores(tmp_path / name, sign="loss")
        assert np.array_equal(found.scores, SCORES)
        assert (found.query_ids, found.train_ids) == (QUERIES, TRAIN)


def test_files_without_names_have_none(tmp_path):
    np.savez(tmp_path / "s.npz", SCORES)
    found = read_scores(tmp_path / "s.npz", sign="loss")
    assert found.query_ids is None and found.train_ids is None


def test_csv_is_read_with_and_without_names(tmp_path):
    numbers = ["1.0,-2.0,0.5", "3.0,0.25,-4.0"]
    bare = read_scores(write_csv(tmp_path / "a.csv", *numbers), sign="loss")
    train = read_scores(write_csv(tmp_path / "b.csv", "a,b,c", *numbers), sign="loss")
    named = [f"{q},{line}" for q, line in zip(QUERIES, numbers, strict=True)]
    both = read_scores(write_csv(tmp_path / "c.csv", "query_id,a,b,c", *named), sign="loss")
    pandas = read_scores(write_csv(tmp_path / "d.csv", ",a,b,c", *named), sign="loss")
    for found in (bare, train, both, pandas):
        assert np.array_equal(found.scores, SCORES)
    assert [x.train_ids for x in (bare, train, both, pandas)] == [None, TRAIN, TRAIN, TRAIN]
    assert [x.query_ids for x in (bare, train, both, pandas)] == [None, None, QUERIES, QUERIES]


def test_a_run_gives_the_derivative_of_its_observable_with_names(run):
    result, folder = run
    for path in (folder, str(folder), folder / "influence.zarr"):
        found = read_scores(path, observable="margin")
        expected = result.influence.dataset["derivative"].sel(observable="margin").values
        assert np.array_equal(found.scores, expected)
        assert found.train_ids == tuple(str(i) for i in range(20))
        assert found.query_ids == tuple(str(i) for i in range(5))


def test_an_influence_that_was_saved_on_its_own_is_read(run, tmp_path):
    run[0].influence.save(tmp_path / "mine.zarr")
    found = read_scores(tmp_path / "mine.zarr", observable="loss").scores
    assert np.array_equal(found, read_scores(run[1], observable="loss").scores)


def test_a_run_with_several_observables_wants_to_know_which(run):
    with pytest.raises(ValueError, match=r"several observables: pass observable= one of \['loss'"):
        read_scores(run[1])
    with pytest.raises(ValueError, match="has no observable 'accuracy'"):
        read_scores(run[1], observable="accuracy")
    with pytest.raises(ValueError, match="our own runs are signed as the BIF and need none"):
        read_scores(run[1], observable="loss", sign="helpful")


def test_a_zarr_that_is_no_influence_is_refused(run):
    with pytest.raises(ValueError, match="holds no influence dataset: it lacks"):
        read_scores(run[1] / "diagnostics.zarr")


def test_folders_of_other_libraries_are_recognised(tmp_path):
    write_bergson_scores(tmp_path / "bergson", SCORES)
    assert np.array_equal(read_scores(tmp_path / "bergson").scores, SCORES)
    assert np.array_equal(read_scores(tmp_path / "bergson", sign="helpful").scores, -SCORES)
    (tmp_path / "scores_x").mkdir()
    file = tmp_path / "scores_x" / "pairwise_scores.safetensors"
    save_file({"all_modules": torch.tensor(SCORES)}, file)
    for path in (tmp_path / "scores_x", file):
        assert np.array_equal(read_scores(path).scores, -SCORES)
        with pytest.raises(ValueError, match="kronfluence's scores are signed as"):
            read_scores(path, sign="loss")


def test_pickled_objects_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "exploded", "boom"))

    np.save(tmp_path / "s.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "s.npz", scores=np.array([[Bomb()]], dtype=object))
    for name in ("s.npy", "s.npz"):
        with pytest.raises(ValueError, match="is no numpy file that can be read without pickle"):
            read_scores(tmp_path / name, sign="loss")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["s.npy", "s.npz", "s.safetensors", "s.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00junk", b"PK\x03\x04", b"\x93NUMPY"])
def test_bytes_that_are_no_such_file_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.[a-z]+ "):
        read_scores(tmp_path / name, sign="loss")


def test_arrays_that_are_no_matrix_are_refused(tmp_path):
    def saved(**arrays):
        np.savez(tmp_path / "s.npz", **arrays)
        return read_scores(tmp_path / "s.npz", sign="loss")

    with pytest.raises(ValueError, match="expected one matrix"):
        saved(a=SCORES, b=SCORES)
    with pytest.raises(ValueError, match=r"scores have shape \(1, 2, 3\)"):
        saved(scores=SCORES[None])
    with pytest.raises(ValueError, match=r"scores have shape \(0, 3\)"):
        saved(scores=SCORES[:0])
    with pytest.raises(ValueError, match="holds complex128; expected real numbers"):
        saved(scores=SCORES + 1j)
    with pytest.raises(ValueError, match="2 of 6 scores are NaN or infinite.*query 0, item 1"):
        saved(scores=np.where(np.abs(SCORES) == 2, np.nan, np.where(SCORES > 2, np.inf, SCORES)))
    with pytest.raises(ValueError, match="3 train ids, 2 of them different, for 3 train items"):
        saved(scores=SCORES, train_ids=["a", "a", "b"])
    with pytest.raises(ValueError, match="1 query ids"):
        saved(scores=SCORES, query_ids=["a"])


def test_csv_files_that_are_no_matrix_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lines of \[2, 3\] cells; expected one width"):
        read_scores(write_csv(tmp_path / "a.csv", "1,2,3", "1,2"), sign="loss")
    with pytest.raises(ValueError, match="a cell that is no number"):
        read_scores(write_csv(tmp_path / "b.csv", "1,2", "1,x"), sign="loss")
    with pytest.raises(ValueError, match="is empty"):
        read_scores(write_csv(tmp_path / "c.csv", ""), sign="loss")
    with pytest.raises(ValueError, match=r"holds no line of numbers, only \['a', 'b'\]"):
        read_scores(write_csv(tmp_path / "d.csv", "a,b"), sign="loss")


def test_metadata_that_are_no_names_are_refused(tmp_path):
    for text in ("{", '"abc"'):
        save_file({"s": torch.tensor(SCORES)}, tmp_path / "s.safetensors", {"train_ids": text})
        with pytest.raises(ValueError, match="train_ids in the metadata is no JSON list"):
            read_scores(tmp_path / "s.safetensors", sign="loss")


def test_what_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scores at"):
        read_scores(tmp_path / "nothing", sign="loss")
    (tmp_path / "s.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="ends in none of .npy"):
        read_scores(tmp_path / "s.pt", sign="loss")


def test_paths_may_be_relative_or_have_a_slash_at_the_end(tmp_path, monkeypatch):
    np.save(tmp_path / "s.npy", SCORES)
    write_bergson_scores(tmp_path / "folder", SCORES)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_scores("s.npy", sign="loss").scores, SCORES)
    assert np.array_equal(read_scores(f"{tmp_path}/folder/").scores, SCORES)
    shutil.move("s.npy", "folder/s.npy")
    assert np.array_equal(read_scores("folder/s.npy", sign="loss").scores, SCORES)


def test_scores_are_put_in_the_order_of_names_or_positions():
    named = ImportedScores(SCORES, QUERIES, TRAIN, "a file")
    found = named.aligned(query_ids=["q1"], train_ids=["c", "a"])
    assert found.tolist() == [[-4.0, 3.0]]
    bare = ImportedScores(SCORES, None, None, "a file")
    assert np.array_equal(bare.aligned(query_ids=["x", "y"], train_ids=["1", "2", "3"]), SCORES)
    with pytest.raises(ValueError, match="no scores for 1 of 2 train items, the first is 'z'"):
        named.aligned(query_ids=["q1"], train_ids=["a", "z"])
    with pytest.raises(ValueError, match="a file: 3 train items without ids, but 2 are wanted"):
        bare.aligned(query_ids=["x", "y"], train_ids=["1", "2"])
