"""The report in headless Chromium: it fits the screen, can be read, and runs only its own script.

The page is put into a frame of the wanted width, since the window itself cannot be made as narrow
as a phone; the page around it measures the frame from outside, so the report stays as delivered.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from bif.report import render_report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
SCHEMES = {"dark": 0, "light": 1}
ATTACK = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"

MEASURE = """
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) =>
    v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const measure = (frame) => {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const style = (element) => view.getComputedStyle(element);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(style(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  let faintest = [99, ""];
  for (const element of page.querySelectorAll("body *:not(svg *):not(script)")) {
    if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [parse(style(element).color), behind(element)]
      .map((c) => luminance(c.slice(0, 3)) + 0.05);
    const ratio = Math.max(a, b) / Math.min(a, b);
    if (ratio < faintest[0]) faintest = [ratio, element.outerHTML.slice(0, 120)];
  }
  const scrolls = (element) => element.closest(".scroll");
  const wide = [...page.querySelectorAll("body *")].filter((e) =>
    !scrolls(e) && e.getBoundingClientRect().right > view.innerWidth + 0.5);
  // Words of up to 20 letters that stand on several lines, and would fit on one.
  const broken = [];
  for (const element of page.querySelectorAll("body *:not(svg *):not(script)")) {
    for (const node of element.childNodes) {
      if (node.nodeType !== 3 || scrolls(element) || element.closest(".text")) continue;
      const words = /(?<![^\\s-])[\\p{L}\\p{N}]{2,20}(?![^\\s.,:;)-])/gu;
      for (const word of node.data.matchAll(words)) {
        const range = page.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        const parts = [...range.getClientRects()].filter((r) => r.width);
        if (!parts.length || parts.every((r) => Math.abs(r.top - parts[0].top) < 3)) continue;
        let block = element;
        while (style(block).display === "inline") block = block.parentElement;
        if (/table/.test(style(block).display)) block = block.closest("table").parentElement;
        const width = parts.reduce((sum, r) => sum + r.width, 0);
        if (width < Math.max(64, block.clientWidth)) broken.push(word[0]);
      }
    }
  }
  const seen = (selector) =>
    [...page.querySelectorAll(selector)].filter((e) => e.getClientRects().length);
  return {
    title: page.title,
    inner: view.innerWidth,
    scroll: root.scrollWidth,
    wide: wide.slice(0, 3).map((e) => e.outerHTML.slice(0, 120)),
    background: style(page.body).backgroundColor,
    faintest,
    broken,
    queries: seen(".query").map((e) => e.id),
    observables: seen("[data-observable]").length,
    toolbar: seen(".toolbar").length,
  };
};
"""


def make_page() -> str:
    rng = np.random.default_rng(0)
    num_query, num_train = 10, 60
    dims = ("observable", "query", "train")
    score = rng.normal(size=(2, num_query, num_train))
    influence = xr.Dataset(
        {
            "influence": (dims, score),
            "standard_error": (dims, 0.4 * np.abs(rng.normal(size=score.shape))),
            "query_center": (dims[:2], rng.random((2, num_query))),
            "query_mean": (dims[:2], rng.random((2, num_query))),
            "suspicion": ("train", rng.random(num_train)),
            "relabelled": ("train", rng.random(num_train) < 0.3),
            "train_image": (
                ("train", "row", "column"),
                rng.integers(0, 256, (num_train, 8, 8), dtype=np.uint8),
            ),
        },
        coords={
            "observable": ["loss", "a-margin-with-a-rather-long-name"],
            "better": ("observable", ["lower", "higher"]),
            "train_id": ("train", [f"{i}-{'long' * 30}" for i in range(num_train)]),
            "query_id": ("query", [f"{i}{ATTACK}" for i in range(num_query)]),
            "query_group": ("query", [ATTACK] * num_query),
            "train_label": ("train", [ATTACK] * num_train),
            "query_label": ("query", ["7"] * num_query),
            "original_label": ("train", ["3"] * num_train),
        },
        attrs={"nbeta": 60.0, "gamma": 1.0, "num_train": num_train, "sign": ATTACK},
    )
    diagnostics = xr.Dataset(
        {
            "mean_loss": (("chain", "draw"), rng.normal(1, 0.1, (4, 60))),
            "reliability": ("prefix", np.array([0.3, 0.6, 0.9])),
            "reliability_draws": ("prefix", np.array([400, 1000, 4000])),
            "ess": ("item", rng.uniform(50, 1500, num_train)),
            "rhat": ("item", rng.uniform(1, 1.2, num_train)),
        },
        coords={"chain": np.arange(4), "draw": np.arange(60)},
    )
    return render_report(
        influence,
        diagnostics=diagnostics,
        summary={"reliability": 0.6, "rhat_max": 1.2, "ess_median": 90, "diverged_chains": [3]},
        manifest={
            "settings": {"fingerprint": "f" * 200, ATTACK: ATTACK},
            "warnings": [ATTACK],
            "explanations": ["w" * 300],
        },
    )


@pytest.fixture(scope="module")
def page() -> str:
    return make_page().replace("<details", "<details open")


def look(
    page: str,
    folder: Path,
    *,
    width: int = 1000,
    scheme: str = "light",
    sandbox: str = "",
    act: str = "",
) -> dict:
    """Load the page in a frame, run `act` on its document, and return what is measured."""
    outside = (
        f'<!doctype html><html style="color-scheme: light dark"><body><pre id="out"></pre>'
        f'<iframe {sandbox} style="border:0;width:{width}px;height:900px" '
        f'srcdoc="{html.escape(page)}"></iframe><script>{MEASURE}'
        'const frame = document.querySelector("iframe");'
        f"frame.onload = async () => {{ const page = frame.contentDocument; {act};"
        "await new Promise((done) => setTimeout(done, 300));"
        'document.getElementById("out").textContent = JSON.stringify(measure(frame)); };'
        "</script></body></html>"
    )
    file = folder / "outside.html"
    file.write_text(outside, encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            "--window-size=1700,1000",
            "--virtual-time-budget=3000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, flags=re.S)
    assert found and found.group(1), done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))


def without_policy(page: str) -> str:
    bare, number = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert number == 1
    return bare


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 700, 1100, 1600])
def test_page_fits_the_screen_and_can_be_read(page: str, tmp_path: Path, width: int, scheme: str):
    # All queries and observables at once, so that every part is laid out.
    show = 'page.querySelectorAll(".off").forEach((e) => e.classList.remove("off"))'
    seen = look(page, tmp_path, width=width, scheme=scheme, act=show)
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["wide"] == [] and seen["broken"] == []
    assert seen["faintest"][0] >= 4.5, seen["faintest"]  # WCAG 2.1, level AA


def test_schemes_differ(page: str, tmp_path: Path):
    backgrounds = {s: look(page, tmp_path, scheme=s)["background"] for s in ("light", "dark")}
    light, dark = (
        sum(int(v) for v in re.findall(r"\d+", backgrounds[s])[:3]) for s in ("light", "dark")
    )
    assert light > 3 * 200 and dark < 3 * 60


def test_too_wide_and_too_faint_content_would_be_noticed(page: str, tmp_path: Path):
    bad = page.replace("</main>", '<p style="width:2000px;color:#ddd">x</p></main>')
    seen = look(bad, tmp_path, width=360)
    assert seen["scroll"] > 360 and seen["wide"] and seen["faintest"][0] < 4.5


def test_script_in_a_label_does_not_run(page: str, tmp_path: Path):
    assert look(without_policy(page), tmp_path)["title"] == "Influence report"


def test_content_policy_stops_a_foreign_script(page: str, tmp_path: Path):
    attacked = page.replace("</main>", f"{ATTACK}</main>")
    assert look(attacked, tmp_path)["title"] == "Influence report"
    assert look(without_policy(attacked), tmp_path)["title"] == "broken"


def test_chooser_shows_one_query_and_one_observable(page: str, tmp_path: Path):
    links = re.findall(r'<a href="#(query-\d+)"', page)
    first = look(page, tmp_path)
    assert first["queries"] == links[:1]
    assert first["observables"] == 1 and first["toolbar"] == 1
    click = 'page.querySelectorAll(".chooser a")[2].click()'
    assert look(page, tmp_path, act=click)["queries"] == links[2:3]


PRESS = 'page.body.dispatchEvent(new KeyboardEvent("keydown", {key: "%s", bubbles: true}))'


@pytest.mark.parametrize(
    ("act", "place"),
    [
        ('page.querySelector(".next").click()', 1),
        ('page.querySelector(".previous").click()', -1),
        (PRESS % "ArrowRight", 1),
        (PRESS % "ArrowLeft", -1),
        (
            'const list = page.querySelector(".step select"); list.selectedIndex = 8;'
            'list.dispatchEvent(new Event("change"))',
            8,
        ),
    ],
)
def test_the_switch_goes_through_all_queries(page: str, tmp_path: Path, act: str, place: int):
    every = re.findall(r'<option value="(query-\d+)"', page)
    assert len(every) == 10 and len(re.findall(r'<a href="#(query-\d+)"', page)) == 8
    seen = look(page, tmp_path, act=act)
    assert seen["queries"] == [every[place]] and seen["observables"] == 1


def test_an_unpacked_query_has_its_pictures_and_runs_no_script(page: str, tmp_path: Path):
    act = (
        'page.querySelector(".previous").click(); await new Promise((r) => setTimeout(r, 500));'
        'page.title += [...page.querySelectorAll(".query:not(.off) img")].filter('
        "(i) => i.naturalWidth).length"
    )
    title = look(without_policy(page), tmp_path, act=act)["title"]
    found = re.fullmatch(r"Influence report(\d+)", title)
    assert found and int(found[1]) > 4


def test_everything_is_there_without_scripts(page: str, tmp_path: Path):
    seen = look(page, tmp_path, sandbox='sandbox="allow-same-origin"')
    assert seen["queries"] == re.findall(r'<a href="#(query-\d+)"', page)
    assert seen["observables"] == 2 * len(seen["queries"]) and seen["toolbar"] == 0
