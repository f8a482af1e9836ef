"""Runs: their warnings and printing, saving and loading, and what is refused before sampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bif
from bif import store
from bif.store.folder import LocalFolder
from broken_runs import assert_same
from small_problems import TINY, classification


class TestWarnings:
    def test_chains_that_have_not_mixed_are_warned_of(self):
        # One long slide from w*: far from level, and every chain on its own way.
        settings = replace(TINY, draws=40, burn_in=0, thin=1, step_size=1e-3, gamma=0.01)
        run = bif.attribute(classification(), settings)
        assert run.summary["rhat_max"] > 1.05
        assert any("the chains have not mixed" in w for w in run.manifest["warnings"])

    def test_the_progress_bar_writes_to_the_terminal_only_where_asked_for(self, capsys):
        bif.attribute(classification(), TINY)
        assert capsys.readouterr() == ("", "")
        bif.attribute(classification(), TINY, show_progress=True)
        out, err = capsys.readouterr()
        assert out == "" and "24/24 draws" in err and "reliability" in err


def test_a_saved_run_holds_everything(tmp_path):
    run = bif.attribute(classification(), TINY)
    folder = run.save(tmp_path / "out", extra={"mine": 3})
    got = store.read_run(folder)
    assert got["summary"]["mine"] == 3 and got["summary"]["draws"] == 24
    assert got["manifest"]["identity"] == store.plain(run.manifest["identity"])
    np.testing.assert_array_equal(got["influence"]["influence"], run.influence.dataset["influence"])
    assert "<html" in (folder / "report.html").read_text()
    assert_same(bif.load(folder), run)
    loaded = bif.Influence.load(folder)
    assert str(loaded.top("3", 2)) == str(run.influence.top("3", 2))
    assert str(loaded.top(0, 2, observable="margin")) == str(
        run.influence.top(0, 2, observable="margin")
    )


def test_weights_need_a_folder_to_be_kept_in():
    with pytest.raises(ValueError, match="keep='weights' needs a folder"):
        bif.attribute(classification(), TINY, keep="weights")


@pytest.mark.parametrize(
    ("given", "message"),
    [({"keep": "all"}, "keep is 'all': expected one of traces, sums, weights"),
     ({"commit_every": -1.0}, "commit_every is -1.0 seconds"),
     ({"commit_every": float("nan")}, "commit_every is nan seconds")],
)  # fmt: skip
def test_what_cannot_be_kept_or_committed_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        bif.attribute(classification(), TINY, **given)


def test_a_run_that_does_not_fit_on_the_disk_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalFolder, "free_bytes", lambda self: 4000)
    with pytest.raises(ValueError, match=r"needs up to .* KiB on the disk .*3.91 KiB are free"):
        bif.attribute(classification(), TINY, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_saved_run_is_replaced_only_where_asked_for(tmp_path):
    run = bif.attribute(classification(), TINY)
    run.save(tmp_path / "run")
    with pytest.raises(store.FolderInUse, match="holds a run already.*overwrite=True"):
        run.save(tmp_path / "run")
    run.save(tmp_path / "run", overwrite=True)


def test_warnings_are_printed_with_the_run():
    run = bif.attribute(classification(), TINY)
    warned = replace(run, manifest=replace(run.manifest, warnings=["mind the gap"]))
    assert repr(warned).endswith("\nwarning: mind the gap")
