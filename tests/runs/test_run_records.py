"""Manifest and summary read as what is written of them, whatever version wrote it."""

import pytest

from bif.runs.records import Manifest, Summary


def test_a_record_reads_as_the_mapping_that_is_written():
    summary = Summary(draws=12, others={"drift_t": 0.5})
    assert summary["draws"] == 12 and summary["drift_t"] == 0.5 and summary.get("more") is None
    assert Summary.read(dict(summary)) == summary
    assert len(list(summary)) == len(summary) == len({**summary})


def test_what_another_version_wrote_beside_stays():
    read = Summary.read({"draws": 3, "of_the_future": [1]})
    changed = read.with_entries(trusted=False, heat=0.1)
    assert (changed.trusted, changed["heat"], changed["of_the_future"]) == (False, 0.1, [1])
    assert read.trusted and "heat" not in read


def test_no_field_of_the_class_hides_behind_a_name():
    manifest = Manifest(identity={"model": "x"}, others={"token": "a"})
    with pytest.raises(KeyError):
        manifest["others"]
    assert "others" not in set(manifest) and manifest["token"] == "a"
