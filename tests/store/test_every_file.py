"""Every kind of file, damaged in every way: what comes of it is right, or refused, or said.

The number of cases is in the table of docs/runs-on-disk.md.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bif
from bank_cases import PLAN, bank, bits
from bif.bank import load as load_bank
from bif.store import DamagedRun, FolderInUse, read_scores, write_scores
from broken_runs import (
    SETTINGS,
    assert_same,
    attribute,
    draws_of,
)

EVERY = pytest.mark.parametrize("step", [19, pytest.param(1, marks=pytest.mark.slow)])
"""A ninth of the cases, or all of them."""
REFUSED = (DamagedRun, FolderInUse, FileNotFoundError)
TABLE = Path(__file__).parents[2] / "docs/runs-on-disk.md"


pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another seed, complete."""
    folder = tmp_path_factory.mktemp("other") / "run"
    attribute(folder, settings=replace(SETTINGS, seed=1))
    return folder


def kind(name: str) -> str:
    """Of a file, by its name without numbers."""
    return re.sub(r"\d+", "0", re.sub(r"/c/.*|/c$", "/c", name))


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[round(share * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def edit_number(path: Path) -> None:
    """Another digit in a file of text, which stays well-formed: the last number of all."""
    text = path.read_text()
    places = [m.start() for m in re.finditer(r"(?<=[ \[:,])\d", text)]
    if not places:
        pytest.skip("no number")
    at = places[len(places) // 2]
    path.write_text(text[:at] + str((int(text[at]) + 1) % 9 + 1) + text[at + 1 :])


def damages(folder: Path, foreign: Path) -> Iterator[tuple[str, str, Callable[[Path], Any]]]:
    """What is done, the file, and how: for one file of every kind, the first and the last."""
    names = sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*")
        if p.is_file() and p.name not in (".lock", ".bif")
    )  # fmt: skip
    of_kind: dict[str, list[str]] = {}
    for name in names:
        of_kind.setdefault(kind(name), []).append(name)
    for same in of_kind.values():
        for name in dict.fromkeys((same[0], same[-1])):
            for share in (0.1, 0.5, 0.9):
                yield "flip", name, lambda f, n=name, s=share: flip(f / n, s)
            yield (
                "truncation",
                name,
                lambda f, n=name: (f / n).write_bytes(
                    (f / n).read_bytes()[: (f / n).stat().st_size // 2]
                ),
            )
            yield "deletion", name, lambda f, n=name: (f / n).unlink()
            if name.endswith(".json"):
                yield "edited metadata", name, lambda f, n=name: edit_number(f / n)
            if (foreign / name).is_file() and name not in ("run.json", "checkpoints/run.json"):
                yield "foreign part", name, lambda f, n=name: shutil.copy(foreign / n, f / n)
        if len(same) > 1:
            yield "swap", same[0], lambda f, a=same[0], b=same[-1]: swap(f / a, f / b)
    folders = [
        name for name in ("traces.zarr", "influence.zarr", "diagnostics.zarr", "checkpoints")
        if (folder / name).is_dir()
    ]  # fmt: skip
    for name in folders:
        yield "deletion", name, lambda f, n=name: shutil.rmtree(f / n)
    for name in folders[:-1]:
        yield "foreign part", name, lambda f, n=name: (
            shutil.rmtree(f / n), shutil.copytree(foreign / n, f / n)
        )  # fmt: skip
    blocks = sorted(str(p.relative_to(folder)) for p in folder.glob("*/block-*"))
    for name in (n for n in blocks if n.endswith("0")):
        for array in ("", *sorted(p.name for p in (folder / name).iterdir() if p.is_dir())):
            there = f"{name[:-1]}1/{array}".rstrip("/")
            yield "swap", name, lambda f, a=f"{name}/{array}", b=there: swap(f / a, f / b)


def swap(a: Path, b: Path) -> None:
    beside = a.with_name(f"{a.name}-beside")
    a.rename(beside)
    b.rename(a)
    beside.rename(b)


def counted(found: Counter[str], what: str) -> None:
    """The number of cases is what the documentation says."""
    said = ", ".join(f"{name} {found[name]}" for name in sorted(found))
    assert f"{what}: {said}" in TABLE.read_text().replace("\n", " "), f"{what}: {said}"


@EVERY
def test_a_run_that_was_cut_short_ends_equal_or_is_refused(whole, cut_short, other, tmp_path, step):
    found: Counter[str] = Counter()
    for i, (how, name, damage) in islice(enumerate(damages(cut_short, other)), 0, None, step):
        folder = shutil.copytree(cut_short, tmp_path / str(i))
        damage(folder)
        try:
            assert_same(attribute(folder, commit_every=60), whole.run)
            assert_same(bif.load(folder), whole.run)
        except REFUSED:
            pass
        except AssertionError as error:
            raise AssertionError(f"{how} of {name} is silent") from error
        found[how] += 1
        shutil.rmtree(folder)
    if step == 1:
        counted(found, "a run that was cut short")


@EVERY
def test_a_complete_run_is_read_as_it_was_or_refused_or_says_so(whole, other, tmp_path, step):
    found: Counter[str] = Counter()
    for i, (how, name, damage) in islice(enumerate(damages(whole.folder, other)), 0, None, step):
        folder = shutil.copytree(whole.folder, tmp_path / str(i))
        damage(folder)
        found[how] += 1
        try:
            read = bif.load(folder)
        except REFUSED:
            read = None
        try:
            if read is not None:
                same_scores(read, whole.run)
                if read.manifest["warnings"] == whole.run.manifest["warnings"]:
                    assert_same_traces(read, whole.run)
            again = attribute(folder, commit_every=60)
            same_scores(again, whole.run)
            said = again.manifest["warnings"] != whole.run.manifest["warnings"]
            if not said:
                assert_same_traces(again, whole.run)
        except REFUSED:
            pass
        except AssertionError as error:
            raise AssertionError(f"{how} of {name} is silent") from error
        shutil.rmtree(folder)
    if step == 1:
        counted(found, "a complete run")


def same_scores(run: bif.Run, expected: bif.Run) -> None:
    for read, then in (
        (run.influence.dataset, expected.influence.dataset),
        (run.diagnostics, expected.diagnostics),
    ):
        for name, values in then.variables.items():
            np.testing.assert_array_equal(read[name].values, values.values)
    then = {n: v for n, v in expected.summary.items() if "second" not in n and n != "complete"}
    np.testing.assert_equal({n: run.summary[n] for n in then}, then)


def assert_same_traces(run: bif.Run, expected: bif.Run) -> None:
    for a, b in zip(run.traces.blocks, expected.traces.blocks, strict=True):
        np.testing.assert_array_equal(a.train.numpy(), b.train.numpy())
        np.testing.assert_array_equal(a.query.numpy(), b.query.numpy())


@EVERY
def test_a_bank_is_read_as_it_was_or_refused_and_mended(tmp_path, step):
    there, foreign = tmp_path / "bank", tmp_path / "foreign"
    expected = bits(bank(there))
    bank(foreign, plan=replace(PLAN, mask_seed=9))
    found: Counter[str] = Counter()
    for i, (how, name, damage) in islice(enumerate(damages(there, foreign)), 0, None, step):
        if name.endswith(("bank.json", "bank.spare.json")) and how == "foreign part":
            continue
        folder = shutil.copytree(there, tmp_path / str(i))
        damage(folder)
        found[how] += 1
        try:
            assert bits(load_bank(folder)) == expected, f"{how} of {name} is silent"
        except REFUSED:
            pass
        try:
            again = bits(bank(folder))
        except REFUSED:
            continue
        for part, values in again.items():
            np.testing.assert_allclose(
                np.frombuffer(values, dtype=bool if "masks" in part else float),
                np.frombuffer(expected[part], dtype=bool if "masks" in part else float),
                rtol=1e-9, err_msg=f"{how} of {name} is silent",
            )  # fmt: skip
        shutil.rmtree(folder)
    if step == 1:
        counted(found, "a bank")


@EVERY
def test_scores_are_read_as_they_were_or_refused(whole, other, tmp_path, step):
    places = {name: tmp_path / name for name in ("whole", "foreign")}
    for name, run in (("whole", whole.run), ("foreign", bif.load(other))):
        write_scores(
            places[name], influence=run.influence.dataset, about={"settings": {"draws": 5}},
            overwrite=False,
        )  # fmt: skip
    expected, about = read_scores(places["whole"])
    found: Counter[str] = Counter()
    for i, (how, name, damage) in islice(
        enumerate(damages(places["whole"], places["foreign"])), 0, None, step
    ):
        folder = shutil.copytree(places["whole"], tmp_path / str(i))
        damage(folder)
        found[how] += 1
        try:
            scores, said = read_scores(folder)
        except REFUSED:
            continue
        for variable, values in expected.variables.items():
            np.testing.assert_array_equal(scores[variable].values, values.values)
        assert json.dumps(said) == json.dumps(about), f"{how} of {name} is silent"
    if step == 1:
        counted(found, "scores")
    assert draws_of(whole.folder) == [6, 6]
