"""The notebooks in `examples/` run, tell what they promise, and fit on a narrow screen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
BRIEF = "draws=30, mass='identity'"
"""A quarter of the draws, and no mass measured: enough for suspects and texts, not for events."""


def cells_of(notebook: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    return [cell for cell in found["cells"] if cell["cell_type"] == kind]


def printed_by(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, folder: Path, *, settings: str = ""
) -> str:
    """What the cells of a notebook print, run in order in one namespace.

    Args:
        settings: In the place of `draws` as the notebook has them.
    """
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells_of(EXAMPLES / f"{name}.ipynb", "code")):
        source = "".join(cell["source"])
        source = re.sub(r"draws=\d+", settings, source) if settings else source
        exec(compile(source, f"{name}.ipynb, cell {number}", "exec"), space)
    return capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_fits_on_a_phone_and_shows_what_came_out(notebook):
    cells = [*cells_of(notebook, "markdown"), *cells_of(notebook, "code")]
    lines = [line.rstrip("\n") for cell in cells for line in cell["source"]]
    assert [line for line in lines if len(line) > 60] == []
    last = cells_of(notebook, "code")[-1]["outputs"]
    assert last and "".join(last[0]["text"]).strip()
    titles = [c for c in cells_of(notebook, "markdown") if c["source"][0].startswith("# ")]
    assert len(titles) == 1


def test_there_is_a_notebook_for_each_door():
    assert [path.stem for path in NOTEBOOKS] == ["classifier", "language_model", "stages"]


def test_the_classifiers_wrong_labels_are_listed(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    said = printed_by("classifier", monkeypatch, capsys, tmp_path, settings=BRIEF)
    (found,) = re.findall(r"(\d+) of 10 were made wrong", said)
    assert int(found) >= 7  # of 10 items drawn at random, one in twenty


def test_the_language_models_own_text_helps_and_the_mistake_harms(monkeypatch, capsys, tmp_path):
    said = printed_by("language_model", monkeypatch, capsys, tmp_path, settings=BRIEF).splitlines()
    against = said.index("and against:")
    assert said[against - 4].endswith("the wall in Ulm is red") and said[against - 4][0] == "-"
    assert said[against + 1].endswith("the wall in Ulm is blue") and said[against + 1][0] == "+"


def test_stages_have_events_that_are_certain(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    said = printed_by("stages", monkeypatch, capsys, tmp_path)
    (count,) = re.findall(r"(\d+) events are certain", said)
    assert int(count) > 0 and len(re.findall(r"^ *\d+: [+-]", said, re.M)) == 5
