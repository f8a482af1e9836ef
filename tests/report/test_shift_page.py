"""The pages of shifts and of steering: what they say, and that they draw in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bif.report.shift_page import MOST_SHIFTS, render_shift
from bif.report.steering_page import render_steering
from report.test_report_browser import look

CHROMIUM = shutil.which("chromium")
ATTACK = "</script><img src=x onerror=\"document.title='broken'\">"
SIZES = [-1.0, -0.1, 0.1, 1.0]


def shifts(*names: str, seeds: int = 0, draws: float = 900.0) -> xr.Dataset:
    """Changes that grow with the size and with the place of the group."""
    axes = ("observable", "query", "shift", "size")
    first = np.ones((1, 2, len(names), 1)) * np.arange(1, len(names) + 1)[:, None] * SIZES
    dataset = xr.Dataset(
        {
            **{name: (axes, factor * first)
               for name, factor in (("first", 1.0), ("second", 1.1), ("reweighted", 1.2))},
            **{f"{name}_error": (axes, np.full_like(first, 0.01))
               for name in ("first", "second", "reweighted")},
            "effective_draws": (("shift", "size"), np.full((len(names), 4), draws)),
        },
        coords={"observable": ["loss"], "query": ["all queries", ATTACK], "shift": list(names),
                "size": SIZES},
        attrs={"nbeta": 100.0, "num_train": 50, "error_quantile": 2.0,
               "total_weight": "preserved"},
    )  # fmt: skip
    if seeds:
        values = 1.3 * first[..., None] + 0.01 * np.arange(seeds)
        dataset["retrained"] = ((*axes, "seed"), values)
    return dataset


def steering(*, hold: list[str], names: tuple[str, ...] = ("cats", "dogs")) -> xr.Dataset:
    rng = np.random.default_rng(0)
    change = rng.standard_normal(60)
    values = np.linspace(-0.2, 0.1, len(names))
    return xr.Dataset(
        {
            "change": ("train", change), "weight": ("train", 1 + change),
            "predicted": ("query", values), "predicted_error": ("query", np.full(len(names), 0.01)),
            "second": ("query", 1.2 * values),
        },
        coords={"query": list(names), "observable": "loss",
                "train_id": ("train", [f"{ATTACK}{i}" for i in range(60)]),
                "train_label": ("train", [ATTACK] * 60)},
        attrs={"target": f"loss of {names[0]}", "intended": -0.2, "asked": -0.4, "trusted": 1,
               "predicted": -0.2, "predicted_error": 0.01, "error_quantile": 2.0, "hold": hold},
    )  # fmt: skip


def held(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="shifts">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_a_prediction_is_the_answer_and_called_unverified():
    page = render_shift(shifts("few", "most"), groups="label", notes=["a <note>"])
    assert "Removing label most is predicted to lower the mean loss of all queries most" in page
    assert "most: by 2.200 ± 0.020</h1>" in page
    assert "A prediction, unverified: no network was retrained." in page
    assert "a &lt;note&gt;" in page and "Not trusted" not in page
    data = held(page)
    assert data["shifts"] == ["most", "few"]  # by what they move
    assert data["values"]["first"][0][0][0] == [-2, -0.2, 0.2, 2]
    assert (
        data["values"]["second_half"][0][0][0] == [0.02] * 4 and "retrained" not in data["values"]
    )


def test_what_retraining_made_of_it_is_the_answer_where_there_is_any():
    fit = {n: {"r2": 0.95, "slope": 1.05, "r2_by_size": [0.5, 0.99, 0.95, 0.9]}
           for n in ("first", "second")}  # fmt: skip
    page = render_shift(shifts("a", "b", seeds=3), groups="label", fit=fit, failed_gates=["mixing"])
    assert (
        "Removing label b lowers the mean loss of all queries most: by 2.59, where −2.20 was"
        in page
    )
    assert "unverified" not in page and "failed mixing" in page
    assert "<dd>27</dd>" in page and "<dd>0.950</dd>" in page and "<dd>−0.1 to 1</dd>" in page
    row = held(page)["values"]
    assert row["low"][0][0][0][0] == -2.6 and row["high"][0][0][0][0] == -2.58
    worthless = {n: {**f, "r2_by_size": [0.5] * 4} for n, f in fit.items()}
    assert "at no size" in render_shift(shifts("a", seeds=3), groups="label", fit=worthless)


def test_the_answer_is_of_a_size_for_which_there_are_draws():
    dataset = shifts("a", "b")
    dataset["effective_draws"][:, [0, 3]] = 10.0
    page = render_shift(dataset, groups="label")
    assert "Weighting label b by 0.9 is predicted to" in page
    assert "Larger sizes are beyond what this run can tell." in page
    assert held(page)["few"] == 45


def test_noise_is_called_noise_and_many_groups_are_said_to_be_more():
    dataset = shifts(*(f"group {i}" for i in range(30)))
    dataset["second_error"][:] = 1e3
    dataset["second"][:, :, :, 1] = np.nan
    page = render_shift(dataset, groups="label")
    assert "No group moves the mean loss of all queries beyond the noise of this run" in page
    assert f"The {MOST_SHIFTS} groups of 30 that move it most" in page
    data = held(page)
    assert len(data["shifts"]) == 30 and data["values"]["second"][0][0][0][1] is None


def test_a_steering_says_what_was_intended_predicted_and_achieved():
    page = render_steering(
        steering(hold=["dogs"]), queries="cats", is_reached=False, share_moved=0.034
    )
    assert "predicted to lower the mean loss of cats by 0.200 ± 0.020 (95 % interval)</h1>" in page
    assert "Intended: −0.200. With what is not linear, −0.240." in page
    assert "−0.400 was asked for; −0.200 is the nearest that can be reached" in page
    assert "no network was retrained" in page and "<small>held</small>" in page
    assert "3.4 %" in page and "weights.csv has all" in page and ATTACK not in page
    seeds = {"cats": [-0.15, -0.17], "dogs": [0.0, 0.02]}
    page = render_steering(
        steering(hold=[]), queries="cats", is_reached=True, share_moved=0.034, achieved=seeds
    )
    assert "Meant to move the mean loss of cats by −0.200, these weights moved it by −0.160" in page
    assert page.count('<circle class="retrained"') == 4 and "unverified" not in page
    assert "−0.170 to −0.150" in page


def test_steered_items_are_told_by_what_they_are():
    dataset = steering(hold=[]).assign_coords(
        train_id=("train", [str(i) for i in range(60)]),
        train_text=("train", [f"a long text {i}" for i in range(60)]),
        train_label=("train", ["a long"] * 60), train_target=("train", ["1.5"] * 60),
    )  # fmt: skip
    page = render_steering(dataset, queries="cats", is_reached=True, share_moved=0.1)
    told = r"item (\d+)<small>target 1\.5</small><small>a long text (\d+)</small>"
    found = re.findall(told, page)
    assert len(found) == 40 and all(name == text for name, text in found)
    assert "labelled" not in page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium")
def test_all_columns_of_a_steering_are_on_the_screen_of_a_phone(tmp_path: Path):
    names = ("cats", "dogs with a long name")
    page = render_steering(
        steering(hold=[], names=names), queries="cats", is_reached=True, share_moved=0.1,
        achieved={name: [0.1, 0.2] for name in names},
    )  # fmt: skip
    act = """
    const cells = [...page.querySelectorAll(".moves td")];
    page.title = Math.max(...cells.map((e) => e.getBoundingClientRect().right));"""
    seen = look(page, tmp_path, width=400, act=act)
    assert 100 < float(seen["title"]) <= 400
    assert seen["scroll"] <= 400 and seen["wide"] == [] and seen["broken"] == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_shifts_are_drawn_and_chosen_in_a_browser(tmp_path: Path, width: int):
    page = render_shift(shifts(ATTACK, "other", seeds=2), groups="label", fit=None)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    probe = """<body><iframe id=f style="width:%dpx;height:900px"></iframe><script>
    const f = document.getElementById("f");
    f.onload = () => {
      const d = f.contentDocument, w = f.contentWindow, out = {};
      out.wide = d.documentElement.scrollWidth;
      out.charts = d.querySelectorAll("#grid figure").length;
      out.points = d.querySelectorAll("#grid .retrained path").length;
      out.cells = d.querySelector("#rows tbody tr").cells.length;
      const words = [...d.querySelectorAll("#grid figure:first-child text")];
      out.axes = words.map((e) => e.textContent).filter((text) => /[a-z]/.test(text));
      const list = d.getElementById("queries"), drawn = [];
      for (let k = 0; k < list.options.length; k++) {
        list.selectedIndex = k;
        list.dispatchEvent(new w.Event("change"));
        drawn.push(d.querySelectorAll("#grid figure").length);
      }
      out.drawn = drawn;
      const upTo = d.getElementById("up-to");
      upTo.value = "0.1";
      upTo.dispatchEvent(new w.Event("change"));
      out.near = d.querySelectorAll("#grid .retrained path").length;
      out.title = d.title;
      document.body.textContent = JSON.stringify(out);
    };
    f.src = "page.html";
    </script>"""
    (tmp_path / "probe.html").write_text(probe % width, encoding="utf-8")
    assert CHROMIUM
    said = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--virtual-time-budget=4000", "--dump-dom", f"--window-size={width + 40},1000",
         (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    found = json.loads(re.search(r"<body>(\{.*\})</body>", said, re.S)[1])  # type: ignore[index]
    assert found["wide"] <= width
    assert found["charts"] == 2 and found["points"] == 8 and found["near"] == 4
    assert found["axes"] == ["size of the shift", "change of the mean loss"]
    assert found["drawn"] == [2, 2]
    assert found["cells"] == 7 and found["title"] == "Shifts of the training data"
