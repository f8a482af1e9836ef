"""The page of a trajectory: what it holds, and that it works in a browser."""

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

import bif
from bif.report.trajectory_page import MOST_ITEMS, MOST_QUERIES

CHROMIUM = shutil.which("chromium")
ATTACK = "</script><img src=x onerror=\"document.title='broken'\">"


def trajectory(*, train: int = 4, query: int = 3, name: str = "item") -> bif.Trajectory:
    steps = np.array([0, 10, 20, 40])
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4, 1, query, train))
    scores[:, 0, 0, 0] = [-5, 0, 5, 1]
    dims = ("checkpoint", "observable", "query", "train")
    dataset = xr.Dataset(
        {
            "influence": (dims, scores),
            "standard_error": (dims, np.full_like(scores, 0.1)),
            "train_center_loss": (("checkpoint", "train"), rng.random((4, train))),
            "query_center": (("checkpoint", "observable", "query"), rng.random((4, 1, query))),
        },
        coords={
            "step": ("checkpoint", steps), "name": ("checkpoint", [f"step-{s}" for s in steps]),
            "trusted": ("checkpoint", [True, False, True, True]),
            "error_quantile": ("checkpoint", np.full(4, 1.96)), "observable": ["loss"],
            "query_id": ("query", [f"q{k}" for k in range(query)]),
            "train_id": ("train", [f"{name}{k}" for k in range(train)]),
        },
        attrs={"nbeta": 100.0, "gamma": 2.0, "estimator": "response"},
    )  # fmt: skip
    return bif.Trajectory(dataset, ("a note <b>",))


def held(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="trajectory">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_it_holds_the_curves_with_intervals_the_losses_and_the_events():
    page = trajectory().render()
    data = held(page)
    assert data["steps"] == [0, 10, 20, 40] and data["trusted"] == [True, False, True, True]
    row = data["rows"][0]
    item = next(one for one in row["items"] if one["name"] == "item0")
    assert row["query"] == "q0" and item["score"] == [-5, 0, 5, 1]
    np.testing.assert_allclose(item["error"], 0.196, rtol=1e-3)
    assert "<td>flip</td>" in page and "item0 on q0" in page
    assert "3 of 4" in page and "Not trusted:</strong> step-10" in page
    assert "a note &lt;b&gt;" in page


def test_of_many_queries_and_items_the_strongest_are_shown():
    data = held(trajectory(train=60, query=70).render())
    assert MOST_QUERIES <= len(data["rows"]) <= 70
    assert MOST_ITEMS <= len(data["rows"][0]["items"]) < 60


def test_without_events_it_says_so_and_missing_numbers_are_none():
    quiet = trajectory()
    quiet.dataset["standard_error"][:] = 100.0
    quiet.dataset["influence"][1] = np.nan
    page = quiet.render()
    assert "None is certain at 95 %" in page
    assert held(page)["rows"][0]["items"][0]["score"][1] is None


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_it_draws_chooses_and_saves_in_a_browser(tmp_path: Path, width: int):
    page = trajectory(name=ATTACK).render()
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    probe = """<body><iframe id=f style="width:%dpx;height:900px"></iframe><script>
    const f = document.getElementById("f");
    f.onload = () => {
      const d = f.contentDocument, w = f.contentWindow, out = {};
      out.wide = d.documentElement.scrollWidth;
      out.points = d.querySelectorAll("#chart circle").length;
      out.rows = d.querySelectorAll("#heat tbody tr").length;
      out.axis = [...d.querySelectorAll("#heat thead th")].map((e) => e.textContent);
      const list = d.getElementById("query"), all = [...list.options];
      out.every = all.map((option, k) => {
        list.selectedIndex = k;
        list.dispatchEvent(new w.Event("change"));
        return d.getElementById("chart").getAttribute("aria-label").split(" on ").pop();
      });
      d.querySelector("#events button").click();
      out.chosen = d.getElementById("query").value;
      const slider = d.getElementById("at");
      slider.value = 2;
      slider.dispatchEvent(new w.Event("input"));
      out.step = d.getElementById("at-step").textContent;
      const made = [];
      w.HTMLAnchorElement.prototype.click = function () { made.push([this.download, this.href]); };
      d.getElementById("save-svg").click();
      d.getElementById("save-png").click();
      setTimeout(() => {
        out.saved = made.map(([name, address]) => [name.slice(-4), address.slice(0, 14)]);
        out.title = d.title;
        document.body.textContent = JSON.stringify(out);
      }, 400);
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
    assert found["points"] == 4 and found["rows"] == 4
    assert found["chosen"] == "q0" and found["step"] == "step 20"
    assert found["axis"] == ["step", "0", "10", "20", "40"]
    assert sorted(found["every"]) == [f"q{q} over training" for q in range(3)]
    assert found["saved"] == [[".svg", "data:image/svg"], [".png", "data:image/png"]]
    assert found["title"] == "Influence over training"
