"""Folders and names made by somebody else: nothing in them runs, and nothing leads outside."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr.registry
from torch import nn

import bif
from bif.report import page
from bif.store import DamagedRun, load_dataset
from broken_runs import (
    OWN_ERRORS,
    SETTINGS,
    USES,
    Whole,
    assert_same,
    attribute,
    crashed,
    newest,
    problem,
    with_its_hash,
)
from small_problems import classification, filled, labelled

pytestmark = pytest.mark.usefixtures("small_shards")


def everything(root: Path) -> dict[str, str]:
    """Files and links below a folder by their content."""
    return {
        str(p.relative_to(root)): (
            str(p.readlink()) if p.is_symlink() else hashlib.sha256(p.read_bytes()).hexdigest()
        )
        for p in root.rglob("*")
        if p.is_symlink() or p.is_file()
    }


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.marker,)  # type: ignore[return-value]


class TestPickles:
    @pytest.fixture
    def marker(self, tmp_path: Path) -> Iterator[Path]:
        marker = tmp_path / "the pickle was loaded"
        pickle.loads(pickle.dumps(Trap(marker)))
        assert marker.exists()  # it would have been noticed
        marker.unlink()
        yield marker
        assert not marker.exists()

    def refused(self, folder: Path) -> None:
        for use in ("load", "attribute"):
            with contextlib.suppress(*OWN_ERRORS):
                USES[use](folder)

    @pytest.mark.parametrize(
        "name", ["run.json", "summary.json", "checkpoints/center.safetensors",
                 "checkpoints/block-001/NEWEST.safetensors", "checkpoints/block-001/NEWEST.json",
                 "traces.zarr/block-001/train_loss-0/c/0/0/0", "checkpoints/run.json"],
    )  # fmt: skip
    def test_a_pickle_in_the_place_of_a_file_is_refused(self, cut_short, tmp_path, marker, name):
        folder = shutil.copytree(cut_short, tmp_path / "run")
        path = folder / newest(folder, name)
        if name.endswith("NEWEST.safetensors"):
            with_its_hash(path, pickle.dumps(Trap(marker)))
        else:
            path.write_bytes(pickle.dumps(Trap(marker)))
        self.refused(folder)

    @pytest.mark.parametrize("group", ["influence.zarr", "traces.zarr/block-000", "weights.zarr"])
    def test_a_pickle_in_an_array_of_zarrs_second_format_is_refused(
        self, whole, tmp_path, marker, group
    ):
        folder = shutil.copytree(whole.folder, tmp_path / "run")
        array = folder / group / "influence"
        shutil.rmtree(array, ignore_errors=True)
        array.mkdir(parents=True)
        metadata = {
            "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None,
            "fill_value": None, "filters": [{"id": "pickle"}], "order": "C",
        }  # fmt: skip
        (array / ".zarray").write_text(json.dumps(metadata))
        (array / "0").write_bytes(pickle.dumps(np.array([Trap(marker)], dtype=object)))
        if group == "influence.zarr":
            with pytest.raises(DamagedRun):
                bif.load(folder)
        self.refused(folder)

    @pytest.mark.parametrize(
        "codecs",
        [
            [{"name": "numcodecs.pickle"}],
            [{"name": "pickle", "configuration": {}}],
            ["numcodecs.pickle"],
            [{"name": "sharding_indexed", "configuration": {
                "chunk_shape": [1], "codecs": [{"name": "numcodecs.pickle"}],
                "index_codecs": [{"name": "bytes"}]}}],
            [{"name": "evil"}, {"name": "bytes"}],
        ],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "array", ["influence.zarr/influence", "traces.zarr/block-000/train_loss-0"]
    )
    def test_codecs_of_others_are_not_even_searched_for(
        self, whole, tmp_path, marker, monkeypatch, array, codecs
    ):

        folder = shutil.copytree(whole.folder, tmp_path / "run")
        path = folder / array / "zarr.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "codecs": codecs}))
        looked_up: list[str] = []
        found = zarr.registry.get_codec_class

        def spying(name: str, *given: Any, **more: Any) -> Any:
            looked_up.append(name)
            return found(name, *given, **more)

        for module in [m for n, m in sys.modules.items() if n.startswith("zarr")]:
            if getattr(module, "get_codec_class", None) is found:
                monkeypatch.setattr(module, "get_codec_class", spying)
        bif.load(whole.folder)
        assert {"bytes", "zstd", "blosc"} <= set(looked_up)
        if array.startswith("influence"):
            with pytest.raises(DamagedRun, match="zarr.json is damaged: it is not what was"):
                bif.load(folder)
            with pytest.raises(DamagedRun, match="asks for the codec '.*', which bif never"):
                load_dataset(folder, name="influence.zarr")
        else:
            assert any("damaged" in w for w in bif.load(folder).manifest["warnings"])
        self.refused(folder)
        assert not {"numcodecs.pickle", "pickle", "evil"} & set(looked_up)


NAMES = [
    "../../x",
    "/etc/x",
    "a/b",
    "<script>alert(1)</script>",
    "</script><script>alert(2)//",
    "x" * 3000,
    "nul\0in it",
    "\N{GRINNING FACE}",
    "\u202eevil",
    "con",
    "a\\b",
    "\n",
    "'\"&",
]


class Oddly(nn.Module):
    """A linear model, the mean of some whose weights have names of their own."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(3, 4)))
        filled(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.stack(list(self.parameters())).mean(0).T


class TestNames:
    @pytest.mark.parametrize("keep", ["weights", "sums"])
    def test_odd_names_lead_nowhere_and_come_back(self, tmp_path, keep):
        ids = [f"{name}{i}" for i in ("", 1) for name in NAMES][:20]
        groups = {name: bif.Items(labelled(1, seed=9)) for name in NAMES}
        made = classification(
            train=bif.Items(labelled(20, seed=1), ids=ids, labels=ids),
            queries={**groups, "q": bif.Items(labelled(5, seed=2), ids=NAMES[:5])},
            candidates=groups,
            observables=[bif.Observable(name, bif.losses.margin) for name in NAMES],
        )
        folder = tmp_path / "home" / "run"
        attribute(folder, made=made, keep=keep, commit_every=60)
        assert [p.name for p in tmp_path.iterdir()] == ["home"]
        assert [p.name for p in (tmp_path / "home").iterdir()] == ["run"]
        assert not [p for p in folder.rglob("*") if len(p.name) > 60 or "<" in p.name]
        got = bif.load(folder).influence.dataset
        assert got["train_id"].values.tolist()[:20] == ids
        assert got["observable"].values.tolist() == NAMES
        assert list(dict.fromkeys(got["query_group"].values.tolist())) == [*NAMES, "q"]

    def test_odd_names_of_parameters_lead_nowhere_and_go_on(self, whole, tmp_path):
        made = problem(model=Oddly([name for name in NAMES if "." not in name]))
        home = tmp_path / "home"
        crashed(home / "run", whole, made=made, keep="weights")
        run = attribute(home / "run", made=made, keep="weights", commit_every=60)
        assert [p.name for p in home.iterdir()] == ["run"]
        assert_same(run, bif.attribute(made, SETTINGS))

    def test_the_report_escapes_names(self, tmp_path, monkeypatch):
        real = importlib.reload(page).render_report  # not the fixture's
        monkeypatch.setattr("bif.report.render_report", real)
        one, two = (n for n in NAMES if "script" in n)
        train = bif.Items(
            labelled(20, seed=1), ids=[f"{one}{i}" for i in range(20)], labels=[two] * 20
        )
        queries = bif.Items(
            labelled(5, seed=2), ids=[f"{two}{i}" for i in range(5)], labels=[one] * 5
        )
        made = classification(
            train=train,
            queries={one: queries},
            observables=[bif.Observable(two, bif.losses.margin, "higher")],
        )
        attribute(tmp_path / "run", made=made, commit_every=60)
        text = (tmp_path / "run/report.html").read_text()
        assert "alert(1)" in text and "alert(2)" in text
        assert "<script>alert" not in text and "</script><script>" not in text


LINKS = """traces.zarr traces.zarr/block-001 traces.zarr/block-001/train_loss-0
traces.zarr/block-001/train_loss-0/c traces.zarr/block-001/train_loss-0/zarr.json
weights.zarr weights.zarr/block-001/weight-0 weights.zarr/block-001/weight-0/c
checkpoints checkpoints/block-001 run.json .lock report.html summary.json
influence.zarr influence.zarr.partial""".split()


class TestLinks:
    @pytest.fixture(scope="class")
    @classmethod
    def kept(cls, whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """As `cut_short`, with weights."""
        return crashed(tmp_path_factory.mktemp("kept") / "run", whole, keep="weights")

    @pytest.mark.parametrize(
        ("name", "on_existing"),
        [*((name, "resume") for name in LINKS), *((n, "replace") for n in LINKS if "/" not in n)],
    )
    def test_what_lies_behind_them_is_not_touched(self, kept, tmp_path, name, on_existing):
        """What was there is moved elsewhere, or something else is there, and a link leads to it."""
        folder = shutil.copytree(kept, tmp_path / "run")
        path, target = folder / name, tmp_path / "outside" / "target"
        target.parent.mkdir()
        if path.exists() and name != ".lock":
            path.rename(target)
        elif name.endswith((".json", ".html", ".lock")):
            target.write_text("mine")
        else:
            (target / "inner").mkdir(parents=True)
            (target / "inner/file").write_text("mine")
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        before = everything(target.parent)
        with contextlib.suppress(*OWN_ERRORS, PermissionError):
            attribute(folder, keep="weights", commit_every=60, on_existing=on_existing)
        assert everything(target.parent) == before

    @pytest.mark.parametrize("name", ["run.json", "checkpoints", "traces.zarr", "report.html"])
    def test_links_in_a_loop_are_refused(self, kept, tmp_path, name):
        folder = shutil.copytree(kept, tmp_path / "run")
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(path)
        for use in ("load", "attribute"):
            with contextlib.suppress(*OWN_ERRORS):
                USES[use](folder)
