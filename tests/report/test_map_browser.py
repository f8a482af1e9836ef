"""The map's page in headless Chromium: what pointer and keys do, and that it can be read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.map_frames import ask_browser
from bif.report.map_source import ItemMap
from report.test_map_page import ATTACK, random_map
from report.test_report_browser import MEASURE, SCHEMES

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium"),
]

PROBE = """<!doctype html><html style="color-scheme: light dark"><body>
<iframe id="f" style="border:0;width:%dpx;height:900px" src="/page"></iframe><script>
%s
const f = document.getElementById("f"), out = {};
const later = (ms) => new Promise((done) => setTimeout(done, ms));
const frame = () => new Promise((done) => f.contentWindow.requestAnimationFrame(done));
const drawn = async () => { await frame(); await frame(); };
f.onload = async () => {
  try {
    const d = f.contentDocument, w = f.contentWindow, get = (id) => d.getElementById(id);
    w.addEventListener("error", (event) => { out.error = event.message; });
    await later(300);
    const over = get("over"), all = (some) => [...d.querySelectorAll(some)];
    const words = (some) => all(some).map((e) => e.textContent);
    const box = () => over.getBoundingClientRect();
    // Where an item is on the screen: the page shows the whole map, 92 %% of the shorter side.
    const at = (x, y) => {
      const {left, top, width, height} = box(), half = 0.46 * Math.min(width, height);
      return {clientX: left + width / 2 + x * half, clientY: top + height / 2 - y * half};
    };
    const point = (type, x, y, more = {}) => over.dispatchEvent(
      new w.PointerEvent(type, {...at(x, y), pointerId: 1, bubbles: true, ...more}));
    const press = (x, y) => { point("pointerdown", x, y); point("pointerup", x, y); };
    const key = (name, on = over) => on.dispatchEvent(
      new w.KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
    const change = (id, value, kind = "change") => {
      get(id).value = value;
      get(id).dispatchEvent(new w.Event(kind, {bubbles: true}));
    };
    const pixels = (canvas, x, y, wide, high) => [
      ...canvas.getContext("2d").getImageData(x, y, wide, high).data];
    // The colour that is drawn at an item.
    const colour = (x, y) => {
      const {left, top, width} = box(), to = at(x, y), r = get("points").width / width;
      const [px, py] = [(to.clientX - left) * r, (to.clientY - top) * r];
      return pixels(get("points"), px, py, 1, 1).slice(0, 3);
    };
    %s
    out.measured = measure(f);
  } catch (problem) { out.error = String(problem.stack); }
  await fetch("/found", {method: "POST", body: JSON.stringify(out)});
};
</script>"""


def on_a_grid(count: int = 25, **changed: Any) -> ItemMap:
    """Items in a square grid from -1 to 1, the first at the lower left, row by row."""
    shown = random_map(count)
    side = round(count**0.5)
    rows, columns = np.divmod(np.arange(count), side)
    grid = 2 * np.stack([columns, rows], axis=1) / (side - 1) - 1.0
    frames = tuple(replace(f, places={"umap": grid, "pca": -grid}) for f in shown.frames)
    return replace(shown, frames=frames, **changed)


def look(shown: ItemMap, act: str, *, width: int = 1200, scheme: str = "light") -> dict[str, Any]:
    """Return what a script finds in the page's `out`."""
    found = ask_browser(
        {"/page": shown.page(), "/probe": PROBE % (width, MEASURE, act)},
        flags=[
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            "--window-size=1700,1000",
        ],
    )
    assert "error" not in found, found["error"]
    return found


@pytest.fixture(scope="module")
def shown() -> ItemMap:
    return on_a_grid()


def test_pointing_tells_what_an_item_is_and_pressing_lists_its_neighbours(shown: ItemMap):
    act = """
    point("pointermove", 0, 0);  // item 12, in the middle
    out.tip = get("tip").textContent;
    out.shown = !get("tip").hidden && get("tip").querySelectorAll("canvas").length;
    press(0.5, 0);  // item 13
    out.card = words(".card h2")[0];
    out.titles = words("#panel h3");
    const items = (list) => [...list.querySelectorAll("button")].map((b) => Number(b.dataset.item));
    out.lists = all("#panel ol").map(items);
    out.values = words("#panel ol:first-of-type .tile > i").slice(0, 5);
    const picture = d.querySelector(".card canvas");
    const seen = () => pixels(picture, 0, 0, picture.width, picture.height);
    for (let n = 0; n < 100 && !seen()[3]; n++) await frame();
    out.picture = seen().filter((_, k) => k % 4 === 0);
    all("#panel ol button")[1].click();
    out.next = words(".card h2")[0];
    const asked = w.performance.getEntriesByType("resource").map((entry) => entry.name);
    out.loaded = asked.filter((name) => !name.startsWith("data:"));
    press(0.25, 0.25);  // between items
    out.none = words("#panel h2")[0];
    """
    found, frame = look(shown, act), shown.frames[0]
    assert "class 0" in found["tip"] and "item-12" in found["tip"] and found["shown"] == 1
    assert "mean loss" in found["tip"] and "no stable neighbours" in found["tip"]
    assert found["card"] == "item-13"
    assert found["titles"][0].startswith("Nearest by kernel")
    assert found["lists"] == [frame.neighbours[13].tolist(), shown.others["pixels"][13].tolist()]
    for text, value in zip(found["values"], frame.similarity[13], strict=True):
        assert float(text.replace("−", "-")) == pytest.approx(value, abs=6e-4)
    assert shown.pictures is not None
    assert found["picture"] == shown.pictures[13].ravel().tolist()
    assert found["next"] == f"item-{frame.neighbours[13, 1]}"
    assert found["none"] == "No item is chosen"
    assert found["loaded"] == []


def test_items_have_the_colour_of_their_class_and_those_of_noise_are_grey(shown: ItemMap):
    act = """
    out.kinds = [...get("colour").options].map((o) => o.text);
    out.stable = colour(0.5, 0);  // item 13, of class 1
    out.grey = colour(0, 0);  // item 12
    get("grey").click();
    await drawn();
    out.coloured = colour(0, 0);
    get("legend").querySelectorAll("ul button")[0].click();  // class 0 alone
    await drawn();
    out.dimmed = colour(0.5, 0);
    change("colour", 1);  // mean loss
    await drawn();
    out.ramp = colour(0.5, 0);
    out.legend = get("legend").textContent;
    get("layouts").children[1].click();  // PCA: all places the other way round
    await drawn();
    out.turned = colour(-0.5, 0);
    """
    found = look(shown, act)
    assert found["kinds"][0] == "label" and "mean loss" in found["kinds"]
    assert any("self-influence" in kind for kind in found["kinds"])

    def near(colour: list[int], of: str, share: float) -> bool:
        channels = [int(of[k : k + 2], 16) for k in (1, 3, 5)]
        mixed = [255 + share * (c - 255) for c in channels]
        return all(abs(a - b) <= 4 for a, b in zip(colour, mixed, strict=True))

    assert near(found["stable"], "#efb118", 240 / 256)
    assert near(found["grey"], "#9aa0a6", 150 / 256)
    assert near(found["coloured"], "#4269d0", 240 / 256)
    assert near(found["dimmed"], "#efb118", 30 / 256)
    assert not near(found["ramp"], "#efb118", 240 / 256) and "By rank" in found["legend"]
    assert found["turned"] == found["ramp"]


def test_finding_and_the_lasso_list_items_and_their_ids(shown: ItemMap):
    act = """
    change("find", "ITEM-2", "input");
    await later(300);
    out.found = words("#panel h2")[0];
    out.first = get("ids").value.split("\\n")[0];
    change("find", "class 1", "input");
    await later(300);
    out.of_class = get("ids").value.split("\\n");
    key("Escape", d.body);
    out.cleared = words("#panel h2")[0] + get("find").value;
    get("lasso").click();
    point("pointerdown", -1.1, -1.1);
    for (const [x, y] of [[-0.2, -1.1], [-0.2, -0.2], [-1.1, -0.2]]) point("pointermove", x, y);
    point("pointerup", -1.1, -0.2);
    out.lasso = get("ids").value.split("\\n").sort();
    out.said = get("said").textContent;
    const clipboard = {writeText: async (text) => { out.copied = text; }};
    Object.defineProperty(w.navigator, "clipboard", {value: clipboard});
    get("copy").click();
    await later(50);
    out.button = get("copy").textContent;
    """
    found = look(shown, act)
    assert found["found"] == "6 items match “ITEM-2”" and found["first"] == "item-2"
    assert found["cleared"] == "No item is chosen"
    loss = shown.frames[0].mean_loss
    of_class = sorted(range(1, 25, 3), key=lambda i: -loss[i])
    assert found["of_class"] == [f"item-{i}" for i in of_class]
    assert found["lasso"] == sorted(["item-0", "item-1", "item-5", "item-6"])
    assert found["said"] == "4 items in the lasso." and found["button"] == "Copied"
    assert sorted(found["copied"].split("\n")) == found["lasso"]


def test_dragging_the_wheel_and_keys_move_the_map(shown: ItemMap):
    act = """
    const under = (x, y) => {
      point("pointermove", x, y);
      return get("tip").textContent.match(/item-\\d+/)?.[0];
    };
    point("pointerdown", 0, 0);
    point("pointermove", 0.25, 0);
    point("pointermove", 0.5, 0);
    point("pointerup", 0.5, 0);
    out.dragged = under(0.5, 0);
    key("0");
    out.fitted = under(0, 0);
    const deltaY = -400 * Math.log(2);
    over.dispatchEvent(new w.WheelEvent("wheel", {...at(0.5, 0.5), deltaY, cancelable: true}));
    out.zoomed = [under(0.5, 0.5), under(-0.5, 0.5)];  // twice as far from item 18 as before
    key("0");
    for (let k = 0; k < 2; k++) key("ArrowRight");
    key("Enter");
    out.right = words(".card h2")[0];
    key("l", d.body);
    out.lasso = get("lasso").getAttribute("aria-pressed");
    key("/", d.body);
    out.focus = d.activeElement.id;
    """
    found = look(shown, act)
    assert found["dragged"] == "item-12" and found["fitted"] == "item-12"
    assert found["zoomed"] == ["item-18", "item-17"]
    # Two keys are 120 pixels, and items lie 0.23 of the 580 pixels of height apart.
    assert found["right"] == "item-13"
    assert found["lasso"] == "true" and found["focus"] == "find"


def test_the_slider_goes_through_the_checkpoints():
    one = on_a_grid()
    first = replace(one.frames[0], name="step 0", mean_loss=one.frames[0].mean_loss + 5)
    series = replace(one, frames=(first, replace(one.frames[0], name="step 9")))
    act = """
    out.last = get("at-name").textContent;
    press(0, 0);
    change("at", 0, "input");
    out.first = get("at-name").textContent;
    out.facts = words(".card dd");
    change("colour", 4);
    out.legend = get("legend").textContent;
    """
    found = look(series, act)
    assert found["last"] == "step 9" and found["first"] == "step 0"
    assert float(found["facts"][1]) == pytest.approx(first.mean_loss[12], rel=1e-2)
    assert "checkpoint since which neighbours stay" in found["legend"]


def test_few_items_in_view_are_drawn_as_their_pictures(shown: ItemMap):
    act = """
    const framed = (x, y) => {  // what is drawn above the points, half a picture to the left
      const {left, top, width} = box(), to = at(x, y), r = over.width / width;
      const [px, py] = [(to.clientX - left - 15.3) * r, (to.clientY - top) * r];
      return pixels(over, px, py, 1, 1);
    };
    for (let n = 0; n < 100 && !framed(0.5, 0)[3]; n++) await frame();
    out.few = framed(0.5, 0);
    """
    # Pictures of 6 by 8 pixels are 28.5 by 38 here, in a frame of 2.
    assert look(shown, act)["few"] == [0xEF, 0xB1, 0x18, 255]
    many = on_a_grid(1600, pictures=np.zeros((1600, 8, 6), np.uint8))
    assert look(many, act)["few"][3] == 0


def test_more_classes_than_colours_have_names_without_them():
    names = [f"kind {i}" for i in range(400)]
    act = """
    press(-1, -1);
    out.kinds = [...get("colour").options].map((o) => o.text);
    out.card = words(".card dd")[0];
    """
    found = look(on_a_grid(400, labels={"label": names}, pictures=None), act)
    assert found["kinds"][0] == "mean loss" and found["card"] == "kind 0"


def test_names_that_are_code_and_words_from_right_to_left_stay_words():
    labels = {
        "label": ["שלום עולם", ATTACK, "c"] * 8 + ["c"],
        ATTACK: [f"{ATTACK}{i}" for i in range(25)],
    }
    hostile = on_a_grid(
        ids=[f"{ATTACK}{i}" for i in range(25)], labels=labels, pictures=None,
        texts=[f"{ATTACK} text {i}" for i in range(25)], failed_gates=(ATTACK,),
        others={ATTACK: np.ones((25, 2), int)},
    )  # fmt: skip
    act = """
    point("pointermove", 0, 0);
    press(0, 0);
    change("find", "text 12", "input");
    await later(300);
    out.card = words(".card h2")[0];
    out.warning = words(".warnings").join(" ");
    """
    found = look(hostile, act)
    assert found["measured"]["title"] == "Map of the loss kernel"
    assert found["card"] == f"{ATTACK}12" and "not trusted" in found["warning"]


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_it_fits_the_screen_and_can_be_read(shown: ItemMap, width: int, scheme: str):
    long = replace(shown, ids=[f"{i}-{'long' * 40}" for i in range(25)])
    act = """
    press(0, 0);
    change("find", "long", "input");
    await later(300);
    all("#panel ol button")[0].click();
    const {height} = box();
    out.ends = box().top + w.scrollY + height;
    """
    found = look(long, act, width=width, scheme=scheme)
    seen, ends = found["measured"], found["ends"]
    assert seen["inner"] == width and seen["scroll"] <= width and seen["wide"] == []
    assert seen["broken"] == [] and (width < 1000 or ends <= 900)  # above the fold
    assert seen["faintest"][0] >= 4.5, seen["faintest"]  # WCAG 2.1, level AA
