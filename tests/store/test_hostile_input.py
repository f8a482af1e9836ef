"""Sizes, names, places and terminals that a run must not be brought down by."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bif
from bif.runs import retention
from bif.store import FilesFailed, folder_at
from bif.store.folder import LocalFolder
from bif.terminal import escape_controls
from command_line import TINY_FLAGS, failed
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked", "no_page")


class TestTerminals:
    EVIL = "\x1b]0;mine\x07\x1b[2J\x9b31m\x08\r\u202eeno"

    def test_control_characters_are_written_out_and_no_others(self):
        assert escape_controls("a\tb\nü 👩‍🔬 ß") == "a\tb\nü 👩‍🔬 ß"
        assert escape_controls(self.EVIL) == (r"\x1b]0;mine\x07\x1b[2J\x9b31m\x08\r\u202eeno")

    def test_what_a_folder_holds_is_shown_without_them(self, tmp_path, call):
        made = classification()
        train = bif.Items(made.train.data, ids=[f"{self.EVIL}{i}" for i in range(len(made.train))])
        queries = bif.Items(
            next(iter(made.query_groups.values())).data, ids=[f"{self.EVIL}{i}" for i in range(5)]
        )
        run = bif.attribute(classification(train=train, queries=queries), TINY)
        run.manifest["warnings"].append(self.EVIL)
        run.save(tmp_path / "run", extra={self.EVIL: self.EVIL})
        code, out, said = call("show", tmp_path / "run")
        assert code == 0 and r"\x1b]0;mine" in out
        assert not {c for c in out + said if not c.isprintable()} - {"\n", "\t"}
        refused = failed(call("show", tmp_path / self.EVIL))
        assert not {c for c in refused if not c.isprintable()} - {"\n"}


class TestSizes:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [(replace(TINY, chains=10**9), "1,000,000,000 chains"),
         (replace(TINY, draws=10**12), "1,000,000,000,000 draws")],
        ids=["chains", "draws"],
    )  # fmt: skip
    def test_absurd_ones_are_refused_before_anything_is_evaluated(self, settings, named, tmp_path):
        def loss(model: torch.nn.Module, batch: object) -> torch.Tensor:
            raise AssertionError("the loss was evaluated")

        made = classification()
        made.loss = loss
        for out in (None, tmp_path / "run"):
            with pytest.raises(ValueError, match=f"{named}.* would take .*this machine has"):
                bif.attribute(made, settings, out=out)
        assert not (tmp_path / "run").exists()

    def test_so_are_more_scores_than_the_machine_can_hold(self, monkeypatch):
        made = classification()
        monkeypatch.setattr(
            retention, "memory_of_host", lambda: 56 * 20 * 5 * len(made.observables) - 1
        )
        with pytest.raises(ValueError, match=r"scores of 20 train items .*machine has.*--top 10"):
            bif.attribute(made, TINY)

    @pytest.mark.parametrize("name", ["ids", "labels"])
    def test_a_long_name_among_others_is_refused(self, name):
        names = ["x" * 10**7, *(f"{i}" for i in range(199))]
        with pytest.raises(ValueError, match=f"{name} has an entry of 10,000,000 characters"):
            bif.Items(torch.zeros(200, 2), **{name: names})  # type: ignore[arg-type]


class TestPlaces:
    def test_home_is_expanded_and_local_urls_are_paths(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        places = ["~/run", Path("~/run"), f"local://{tmp_path}/run", f"file://{tmp_path}/run"]
        for place in places:
            found = folder_at(place)
            assert isinstance(found, LocalFolder) and found.root == tmp_path / "run"

    @pytest.mark.parametrize(
        ("place", "said"),
        [("simplecache::memory://x/run", "chain of URLs"), ("zip://a::file:///b.zip", "chain of"),
         (Path("memory://x/run"), "pathlib has made a path of")],
    )  # fmt: skip
    def test_chains_of_urls_and_broken_ones_are_refused_by_name(self, place, said):
        with pytest.raises(ValueError, match=said):
            bif.attribute(classification(), TINY, out=place)

    def test_a_path_with_colons_is_a_path(self, tmp_path):
        assert isinstance(folder_at(f"{tmp_path}/a::b"), LocalFolder)


class TestFailures:
    def test_a_full_disk_is_reported_with_the_file(self, tmp_path, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(FilesFailed, match=r"No space left on device: '.*/run/x'"):
            LocalFolder(tmp_path / "run").write("x", b"x")

    @pytest.mark.parametrize(
        ("error", "status", "said"),
        [(FilesFailed(errno.ENOSPC, "No space", "/a/b"), 74, "disk is full .*'/a/b'.*make room"),
         (FilesFailed("s3://b: no answer"), 74, "neither read nor written .s3://b: no answer"),
         (OSError("Could not open parquet"), 2, "Could not open parquet"),
         (OSError(errno.EMFILE, "Too many open files"), 2, "Too many open files")],
        ids=["full", "remote", "a reader's", "other"],
    )  # fmt: skip
    def test_every_one_is_called_what_it_is(
        self, file, call, tmp_path, monkeypatch, error, status, said
    ):
        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(sys.modules["bif.runs.attribute"], "attribute", fails)
        code, _, text = call("attribute", f"{file}:problem", "--out", tmp_path / "x", *TINY_FLAGS)
        assert code == status and re.search(said, text.replace("\n", " "))
        assert ("disk is full" in text) == (getattr(error, "errno", None) == errno.ENOSPC)

    def test_a_reader_that_has_gone_is_no_fault(self, tmp_path):
        out = tmp_path / "run"
        bif.attribute(classification(), TINY, out=out)
        code = (
            "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
            f"sys.argv = ['bif', 'show', {str(out)!r}]; from bif import cli; cli.main()"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(bif.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert done.returncode in (1, 141) and done.stderr == b""  # rich leaves with 1
