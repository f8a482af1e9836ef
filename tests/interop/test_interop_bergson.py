import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.recfunctions import structured_to_unstructured

from bif.interop import read_bergson_scores, write_bergson_scores
from bif.interop.bergson import higher_is_better
from bif.store import DamagedRun

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bergson"
IN_FILE = np.array([[0.5, 2.0, -4.0], [-1.25, 3.0, 0.0]])  # [Q, N], helpful = positive there


@pytest.fixture
def sequences(tmp_path):
    """A copy of the stored folder that may be changed."""
    return Path(shutil.copytree(FIXTURES / "sequences", tmp_path / "sequences"))


def edit_info(folder, **changed):
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps({**info, **changed}))


def as_bergson_reads(folder):
    """What bergson's `load_scores` makes of a folder: [N, Q], and whether all is written."""
    info = json.loads((folder / "info.json").read_text())
    rows: Any = np.memmap(
        folder / "scores.bin", dtype=info["dtype"], mode="r", shape=(info["num_rows"],)
    )
    queries = range(info["num_scores"])
    values = structured_to_unstructured(rows[[f"score_{q}" for q in queries]])
    return np.asarray(values), all(rows[f"written_{q}"].all() for q in queries)


def test_the_stored_folder_is_read_with_its_sign_turned():
    found = read_bergson_scores(FIXTURES / "sequences")
    assert np.array_equal(found.scores, -IN_FILE) and found.scores.dtype == np.float64
    assert found.query_ids is None and found.train_ids is None
    assert "read as 'helpful'" in found.source


def test_a_sign_that_is_given_goes_before_the_recorded_one():
    found = read_bergson_scores(FIXTURES / "sequences", sign="loss")
    assert np.array_equal(found.scores, IN_FILE)


def test_scores_of_tokens_are_refused_or_summed_items_without_tokens_being_zero():
    with pytest.raises(ValueError, match="scores of single tokens.*tokens='sum'"):
        read_bergson_scores(FIXTURES / "tokens")
    found = read_bergson_scores(FIXTURES / "tokens", tokens="sum")
    assert np.array_equal(found.scores, [[1, 0, 14], [10, 0, 140]])


def test_without_a_config_helpful_items_are_negative_as_bergson_takes_it(sequences):
    (sequences / "config.yaml").unlink()
    assert np.array_equal(read_bergson_scores(sequences).scores, IN_FILE)


def test_a_folder_of_an_older_version_without_a_config_does_not_tell_its_sign(sequences):
    (sequences / "config.yaml").unlink()
    info = json.loads((sequences / "info.json").read_text())
    del info["num_rows"], info["attribute_tokens"]
    (sequences / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="does not say how its scores are signed.*pass sign="):
        read_bergson_scores(sequences)
    assert np.array_equal(read_bergson_scores(sequences, sign="helpful").scores, -IN_FILE)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("steps:\n- score:\n    score_cfg:\n      higher_is_better: true\n", True),
        ("steps:\n- score:\n    score_cfg:\n      higher_is_better: false\n", False),
        (
            "steps:\n- score:\n    score_cfg:\n      modules:\n      - a\n      score: nearest\n",
            True,
        ),
        (
            "steps:\n- build:\n    x: 1\n- score:\n    score_cfg:\n      higher_is_better: false",
            False,
        ),
        ("steps:\n- recall:\n    recall_cfg:\n      higher_is_better: false\n", None),
        ("steps:\n- score:\n    score_cfg: {higher_is_better: false}\n", None),
        ("steps:\n- score:\n    score_cfg:\n      higher_is_better: maybe\n", None),
        ("steps:\n- score:\n    score_cfg:\n    higher_is_better: false\n", None),
        ("", None),
    ],
)
def test_the_sign_is_found_in_a_config_or_not_at_all(config, expected):
    assert higher_is_better(config) is expected


def test_a_config_that_cannot_be_understood_is_no_licence_to_guess(sequences):
    (sequences / "config.yaml").write_text("score_cfg: {higher_is_better: true}")
    with pytest.raises(ValueError, match="does not say how its scores are signed"):
        read_bergson_scores(sequences)


@pytest.mark.parametrize("num_queries", [1, 2, 3])
@pytest.mark.parametrize(("precision", "digits"), [("float32", 24), ("float64", 53)])
def test_what_is_written_is_read_back_with_its_sign(tmp_path, num_queries, precision, digits):
    scores = np.random.default_rng(0).normal(size=(num_queries, 7))
    write_bergson_scores(tmp_path / "out", scores, precision=precision)
    found = read_bergson_scores(tmp_path / "out").scores
    assert (np.abs(found - scores) <= np.abs(scores) * 2.0**-digits).all()
    values, written = as_bergson_reads(tmp_path / "out")
    assert written and np.array_equal(values.T, found)


def test_what_is_written_has_the_bytes_of_the_stored_folder(tmp_path):
    write_bergson_scores(tmp_path / "out", IN_FILE)
    for name in ("scores.bin", "info.json"):
        written, stored = (f / name for f in (tmp_path / "out", FIXTURES / "sequences"))
        assert written.read_bytes() == stored.read_bytes()
    assert higher_is_better((tmp_path / "out" / "config.yaml").read_text()) is False


def test_bfloat16_is_read(sequences):
    info = json.loads((sequences / "info.json").read_text())["dtype"]
    layout = {**info, "formats": ["bfloat16", "bool"] * 2, "offsets": [0, 2, 4, 6], "itemsize": 8}
    numpy_layout: Any = {**layout, "formats": ["uint16", "bool"] * 2}
    rows = np.zeros(3, dtype=np.dtype(numpy_layout))
    for q, row in enumerate(IN_FILE):  # exact in 8 bits of mantissa
        rows[f"score_{q}"] = row.astype(np.float32).view(np.uint32) >> 16
        rows[f"written_{q}"] = True
    (sequences / "scores.bin").write_bytes(rows.tobytes())
    edit_info(sequences, dtype=layout)
    assert np.array_equal(read_bergson_scores(sequences).scores, -IN_FILE)


def test_unfinished_scores_are_refused(sequences):
    content = bytearray((sequences / "scores.bin").read_bytes())
    content[4] = 0
    (sequences / "scores.bin").write_bytes(content)
    with pytest.raises(ValueError, match="1 of 6 scores are not written yet"):
        read_bergson_scores(sequences)


def test_files_that_do_not_fit_together_are_refused(sequences):
    whole = (sequences / "scores.bin").read_bytes()
    (sequences / "scores.bin").write_bytes(whole[:32])
    with pytest.raises(DamagedRun, match="holds 2 rows, but info.json names 3 rows"):
        read_bergson_scores(sequences)
    (sequences / "scores.bin").write_bytes(whole[:30])
    with pytest.raises(DamagedRun, match="does not describe scores.bin"):
        read_bergson_scores(sequences)
    (sequences / "scores.bin").write_bytes(whole)
    edit_info(sequences, num_scores=3)
    with pytest.raises(DamagedRun, match="does not describe scores.bin"):
        read_bergson_scores(sequences)


@pytest.mark.parametrize(
    "layout",
    [
        {"formats": ["object", "bool", "object", "bool"]},
        {"offsets": [0, 4, 8, 400]},
        {"offsets": [0, 4, -8, 12]},
        {"itemsize": 0},
        {"names": ["a"]},
        {"names": 3},
    ],
)
def test_hostile_layouts_are_refused(sequences, layout):
    info = json.loads((sequences / "info.json").read_text())
    edit_info(sequences, dtype={**info["dtype"], **layout})
    with pytest.raises(DamagedRun):
        read_bergson_scores(sequences)


@pytest.mark.parametrize("offsets", [[0, 1, 3], [0, 2, 1, 4], [1, 2, 3, 4], [0.0, 1.0, 4.0], [4]])
def test_offsets_that_do_not_divide_the_tokens_are_refused(tmp_path, offsets):
    folder = shutil.copytree(FIXTURES / "tokens", tmp_path / "tokens")
    np.save(folder / "offsets.npy", np.array(offsets))
    with pytest.raises(DamagedRun, match="does not divide 4 rows into items"):
        read_bergson_scores(folder, tokens="sum")


def test_folders_without_scores_and_folders_that_are_taken_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no scores.bin and info.json"):
        read_bergson_scores(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_bergson_scores(tmp_path, IN_FILE)


def test_scores_that_no_file_can_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the scores to be written: 1 of 2 scores are NaN"):
        write_bergson_scores(tmp_path / "a", [[1.0, 1e300]])
    with pytest.raises(ValueError, match=r"scores have shape \(3,\)"):
        write_bergson_scores(tmp_path / "a", np.zeros(3))
    with pytest.raises(ValueError, match="precision is 'half'"):
        write_bergson_scores(tmp_path / "a", IN_FILE, precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens is 'mean'"):
        read_bergson_scores(tmp_path, tokens="mean")  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
