"""The map's page: what it holds, and that it stays within its size."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bif.report.map_page import MOST_BYTES, render_map
from bif.report.map_source import Frame, ItemMap
from bif.report.markup import escape
from bif.report.palette import class_colours
from bif.report.sprites import pack_pictures

ATTACK = "</script><img src=x onerror=\"document.title='broken'\">"


def random_map(count: int = 40, *, frames: int = 1, pictures: bool = True) -> ItemMap:
    source = np.random.default_rng(0)
    near = np.argsort(source.random((count, count)), axis=1)[:, :5]
    near = np.where(near == np.arange(count)[:, None], (near + 1) % count, near)

    def frame(k: int) -> Frame:
        places = source.normal(size=(2, count, 2))
        values = np.sort(source.uniform(-1, 1, near.shape))[:, ::-1]
        loss, variance, kept = source.random((3, count))
        return Frame(
            f"step {k}" if frames > 1 else "", {"umap": places[0], "pca": places[1]}, near, values,
            loss, variance, kept, np.arange(count) % 4 > 0,
        )  # fmt: skip

    drawn = source.integers(256, size=(count, 8, 6), dtype=np.uint8)
    return ItemMap(
        [f"item-{i}" for i in range(count)], {"label": [f"class {i % 3}" for i in range(count)]},
        "label", None, drawn if pictures else None, tuple(frame(k) for k in range(frames)),
        {"pixels": near[:, ::-1]},
    )  # fmt: skip


def held(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def array(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_it_holds_places_neighbours_and_losses():
    shown = random_map()
    data, frame = held(render_map(shown)), shown.frames[0]
    (made,) = data["frames"]
    places = frame.places["pca"]
    scaled = array(made["places"][1], "<i2").reshape(-1, 2) / 32767
    wide = (places.max(axis=0) - places.min(axis=0)).max() / 2
    # Places are moved and scaled alike both ways, and rounded to 1/32767.
    np.testing.assert_allclose(np.ptp(scaled, axis=0), np.ptp(places, axis=0) / wide, atol=4e-5)
    assert np.abs(scaled).max() == 1
    np.testing.assert_array_equal(array(made["neighbours"], "<u2"), frame.neighbours.ravel())
    similarity = array(made["similarity"], "<i2") / 32767
    np.testing.assert_allclose(similarity, frame.similarity.ravel(), atol=0.5 / 32767)
    np.testing.assert_array_equal(array(made["loss"], "<f4"), frame.mean_loss.astype("f4"))
    np.testing.assert_array_equal(array(made["stable"], "u1"), frame.stable)
    (label,) = data["labels"]
    codes = array(label["codes"], "<u2")
    assert [label["names"][c] for c in codes] == list(shown.labels["label"])
    assert label["colours"] == class_colours(3) and data["by"] == 0
    assert data["others"][0]["name"] == "pixels" and data["settled"] is None


def test_positions_of_many_items_take_four_bytes():
    near, flat = np.arange(70_000)[:, None], np.zeros(70_000)
    frame = Frame("", {"pca": np.ones((70_000, 2))}, near, near * 0.0, flat, flat, flat, flat > 0)
    data = held(
        render_map(ItemMap([str(i) for i in range(70_000)], {}, None, None, None, (frame,)))
    )
    np.testing.assert_array_equal(array(data["frames"][0]["neighbours"], "<u4"), near.ravel())


def test_it_loads_nothing_and_lets_no_name_be_code():
    names = [f"{ATTACK}{i}" for i in range(40)]
    shown = replace(
        random_map(pictures=False), ids=names, labels={ATTACK: names}, by=ATTACK,
        texts=["\ud800"] * 40, failed_gates=(ATTACK,), others={ATTACK: np.zeros((40, 1), int)},
    )  # fmt: skip
    page = render_map(shown)
    assert held(page)["ids"] == names and held(page)["texts"][0] == "?"
    assert "<img" not in page
    own = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)
    assert re.findall(r"https?:|src=|@import|url\(", own.replace(escape(ATTACK), "")) == []
    assert "default-src 'none'" in page


def test_a_run_that_is_not_trusted_is_under_a_banner():
    assert "not trusted" not in render_map(random_map(pictures=False))
    page = render_map(replace(random_map(pictures=False), failed_gates=("mixing", "drift")))
    assert "This run is not trusted</strong> (mixing, drift)" in page


def test_of_several_checkpoints_each_has_a_frame():
    data = held(render_map(random_map(frames=3, pictures=False)))
    assert [frame["name"] for frame in data["frames"]] == ["step 0", "step 1", "step 2"]
    assert len(array(data["settled"], "<u2")) == 40


def test_long_texts_are_cut_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bif.report.map_page._TEXT_BYTES", 40 * 100)
    texts = ["x" * 101, *["short"] * 39]
    page = render_map(replace(random_map(pictures=False), texts=texts))
    assert held(page)["texts"][:2] == ["x" * 100 + "…", "short"]
    assert "1 text cut after 100 characters." in page


def test_pictures_shrink_or_are_left_out_within_the_size_and_the_page_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    shown = random_map()
    assert held(render_map(shown))["sprites"]["sheets"] == 1
    most = len(render_map(replace(shown, pictures=None)).encode()) + 20_000 + 400
    monkeypatch.setattr("bif.report.map_page.MOST_BYTES", most)
    page = render_map(shown)
    assert held(page)["sprites"]["sheets"] == 0
    assert "The 40 pictures are left out: they do not fit into the page." in page
    monkeypatch.setattr("bif.report.map_page.MOST_BYTES", 50_000)
    with pytest.raises(ValueError, match=r"40 items at 1 checkpoint takes 0.1 MB, above 0.1:"):
        render_map(shown)
    assert MOST_BYTES == 60_000_000


@pytest.mark.parametrize("shape", [(50, 9, 7), (50, 9, 7, 1), (50, 9, 7, 3), (50, 9, 7, 4)])
def test_small_pictures_are_kept_without_loss(shape: tuple[int, ...]):
    image = pytest.importorskip("PIL.Image", reason="the extra `maps` is not installed")
    pictures = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    packed = pack_pictures(pictures, most_bytes=10**6)
    assert packed.size == (7, 9) and packed.note == ""
    sheet = image.open(io.BytesIO(base64.b64decode(packed.sheets[0].partition(",")[2])))
    for i in (0, 31, 49):
        corner = (i % packed.columns * 7, i // packed.columns * 9)
        found = np.asarray(sheet.crop((*corner, corner[0] + 7, corner[1] + 9)))
        np.testing.assert_array_equal(found, pictures[i].reshape(found.shape))


def test_large_pictures_are_shrunk_until_they_fit():
    pytest.importorskip("PIL.Image", reason="the extra `maps` is not installed")
    source = np.random.default_rng(0)
    pictures = source.integers(256, size=(1100, 128, 64, 3), dtype=np.uint8)
    whole = pack_pictures(pictures[:20], most_bytes=10**7)
    assert whole.size == (48, 96) and whole.note == "Pictures are shrunk from 128 to 96 pixels."
    packed = pack_pictures(pictures, most_bytes=10**6)
    assert len(packed.sheets) == 2 and sum(map(len, packed.sheets)) <= 10**6
    assert packed.note.startswith("Pictures are shrunk from 128 to ")
    assert packed.sheets[0].startswith("data:image/jpeg;") and "stored with loss" in packed.note
    with pytest.raises(ValueError, match=r"pictures are float64 \(3, 4, 4\), expected uint8"):
        pack_pictures(np.ones((3, 4, 4)), most_bytes=10**6)


@pytest.mark.parametrize("count", [1, 10, 11, 200])
def test_classes_have_colours_of_their_own(count: int):
    found = class_colours(count)
    assert len(set(found)) == count and all(re.fullmatch("#[0-9a-f]{6}", c) for c in found)
