"""Maps of a kernel's items: what they hold, in Python and from the command line."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import bif
from bif import store
from bif.cli.kernel_map import MapOptions
from bif.estimate.neighbours import kept_share
from bif.kernel import ItemMap, describe, item_map, map_series, pictures_of
from bif.kernel.layout import nearest_in_plane
from command_line import failed
from same_bits import without_page
from small_problems import TINY, classification, labelled, network, normal


def pixels(count: int, side: int = 4) -> np.ndarray:
    return np.random.default_rng(count).integers(256, size=(count, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def run() -> bif.Run:
    (x, y), (a, b) = labelled(20, seed=1), labelled(5, seed=2)
    train = bif.Items((x, y), labels=[f"class {int(c)}" for c in y], images=pixels(20))
    queries = bif.Items((a, b), labels=[f"class {int(c)}" for c in b], images=pixels(5))
    return bif.attribute(classification(train=train, queries=queries), TINY)


@pytest.fixture(scope="module")
def kernel(run: bif.Run) -> bif.LossKernel:
    return bif.loss_kernel(run)


@pytest.fixture(scope="module")
def plain(kernel: bif.LossKernel) -> ItemMap:
    return item_map(kernel, layouts=("pca",))


def test_a_map_holds_what_the_kernel_says(kernel: bif.LossKernel, plain: ItemMap):
    (frame,) = plain.frames
    described, _ = describe(kernel)
    np.testing.assert_array_equal(frame.neighbours, described["neighbour"])
    np.testing.assert_array_equal(frame.similarity, described["correlation"])
    np.testing.assert_array_equal(frame.kept, described["kept"])
    np.testing.assert_allclose(frame.mean_loss, kernel.losses.mean(dim=1), rtol=1e-12)
    np.testing.assert_array_equal(frame.loss_variance, kernel.variance)
    assert plain.by == "label" and plain.classes == kernel.labels["label"]
    shown = kept_share(frame.neighbours, nearest_in_plane(frame.places["pca"], 15)).mean()
    assert plain.figures == {"pca_shows_neighbours": pytest.approx(shown)}
    assert frame.by_chance == pytest.approx(15 / 19)


def test_items_that_keep_their_neighbours_are_stable_and_those_of_noise_are_not():
    source = np.random.default_rng(0)
    noise = source.normal(size=(300, 64))
    moving = noise + 3 * np.repeat(source.normal(size=(15, 64)), 20, axis=0)
    for losses, low, high in ((moving, 0.99, 1.0), (noise, 0.0, 0.01 + 5 * (0.01 / 300) ** 0.5)):
        some = bif.LossKernel(
            torch.from_numpy(losses), torch.arange(64) % 4, tuple(map(str, range(300))), {}
        )
        stable = item_map(some, layouts=("pca",)).frames[0].stable
        assert low <= stable.mean() <= high


def test_pictures_are_those_of_the_items(run: bif.Run):
    np.testing.assert_array_equal(pictures_of(run), pixels(20))
    np.testing.assert_array_equal(pictures_of(run, "both"), np.r_[pixels(20), pixels(5)])
    assert pictures_of(bif.attribute(classification(), TINY)) is None


def test_texts_are_joined_from_their_pieces(kernel: bif.LossKernel):
    pieces = tuple(json.dumps(["a", f" {i}"]) for i in range(20))
    spoken = bif.LossKernel(kernel.losses, kernel.chains, kernel.ids, {"tokens": pieces})
    shown = item_map(spoken, layouts=("pca",))
    assert shown.texts is not None and shown.texts[3] == "a 3"
    assert not shown.labels and shown.by is None and shown.classes is None


@pytest.mark.parametrize("text", ["no JSON", "7", '["a", 1]', "{}"])
def test_a_label_named_tokens_that_is_no_list_of_pieces_is_a_text(kernel: bif.LossKernel, text):
    spoken = bif.LossKernel(kernel.losses, kernel.chains, kernel.ids, {"tokens": (text,) * 20})
    assert item_map(spoken, layouts=("pca",)).texts == [text] * 20


def test_texts_can_be_classes_too(kernel: bif.LossKernel):
    spoken = {"text": tuple(f"text {i % 2}" for i in range(20))}
    named = bif.LossKernel(kernel.losses, kernel.chains, kernel.ids, spoken)
    shown = item_map(named, layouts=("pca",), label="text")
    assert shown.classes == spoken["text"] == tuple(shown.texts or ())


def test_a_series_turns_each_layout_to_the_one_before(plain: ItemMap):
    frame = plain.frames[0]
    turn = np.array([[0.0, -1], [1, 0]])
    places = {"pca": (frame.places["pca"] @ turn + 7) * [1, -1]}
    other = replace(plain, frames=(replace(frame, places=places),), failed_gates=("mixing",))
    series = map_series({"step 0": plain, "step 9": other})
    assert [f.name for f in series.frames] == ["step 0", "step 9"]
    assert series.failed_gates == ("mixing",)
    np.testing.assert_allclose(series.frames[1].places["pca"], frame.places["pca"], atol=1e-5)


def test_an_item_settles_where_it_has_half_of_its_last_neighbours_for_good(
    plain: ItemMap,
):
    last = plain.frames[0]
    near = np.tile(np.arange(10, 14), (20, 1))
    share = {0: near + 5, 1: near + 2, 2: near + 3, 3: near}  # 0, half, a quarter, all of the last
    frames = [replace(last, neighbours=n, similarity=near * 0.0) for n in share.values()]
    assert (replace(plain, frames=tuple(frames)).settled() == 3).all()
    assert (replace(plain, frames=(frames[0], frames[1], frames[3])).settled() == 1).all()
    assert (replace(plain, frames=(frames[1], frames[3])).settled() == 0).all()


def test_what_does_not_fit_is_refused(kernel: bif.LossKernel, plain: ItemMap):
    with pytest.raises(KeyError, match="no label 'species': they have label"):
        item_map(kernel, layouts=("pca",), label="species")
    with pytest.raises(ValueError, match="0 seeds and 1 layouts, expected one or more"):
        item_map(kernel, layouts=("pca",), num_seeds=0)
    with pytest.raises(ValueError, match="pictures: 3, expected one for each of 20 items"):
        item_map(kernel, layouts=("pca",), pictures=pixels(3))
    with pytest.raises(ValueError, match="neighbours by pixels are 0 to 20, expected positions"):
        item_map(kernel, layouts=("pca",), others={"pixels": np.tile([0, 20], (20, 1))})
    with pytest.raises(ValueError, match=r"neighbours by pixels are float64 \(20, 2\), expected"):
        item_map(kernel, layouts=("pca",), others={"pixels": np.ones((20, 2))})
    few = bif.LossKernel(kernel.losses[:5], kernel.chains, kernel.ids[:5], {})
    with pytest.raises(ValueError, match="other items are described: expected those of the kernel"):
        item_map(few, layouts=("pca",), described=describe(kernel)[0])
    with pytest.raises(ValueError, match="the map before is of other items"):
        item_map(few, layouts=("pca",), after=plain)
    with pytest.raises(ValueError, match="2 maps, expected one or more of the same items"):
        map_series({"a": plain, "b": item_map(few, layouts=("pca",))})
    with pytest.raises(ValueError, match="0 maps, expected one or more"):
        map_series({})
    with pytest.raises(ValueError, match="expected one or more frames, all of the same layouts"):
        replace(plain, frames=())
    with pytest.raises(ValueError, match="the items have no label 'kind': they have label"):
        replace(plain, by="kind")
    frame = plain.frames[0]
    fewer = replace(frame, neighbours=frame.neighbours[:, :4], similarity=frame.similarity[:, :4])
    with pytest.raises(ValueError, match=r"neighbours are \(20, 4\) .* expected \(20, 15\), as of"):
        replace(plain, frames=(frame, fewer))
    nowhere = replace(frame, places={"pca": np.full((20, 2), np.nan)})
    with pytest.raises(
        ValueError, match=r"layout pca is \(20, 2\), or not finite: expected \[20, 2"
    ):
        replace(plain, frames=(nowhere,))


def test_the_table_has_the_columns_of_embedding_atlas(plain: ItemMap):
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra `maps` is not installed")
    named = {**plain.labels, "x": ["\ud800"] * 20}
    table = pq.read_table(io.BytesIO(replace(plain, labels=named, texts=["t"] * 20).table()))
    frame = plain.frames[0]
    assert table.column("id").to_pylist() == list(plain.ids)
    places = np.c_[table.column("x").to_numpy(), table.column("y").to_numpy()]
    np.testing.assert_array_equal(places, frame.places["pca"])
    first = table.column("neighbors")[0].as_py()
    assert first["ids"] == frame.neighbours[0].tolist()
    np.testing.assert_allclose(first["distances"], 1 - frame.similarity[0], rtol=1e-6)
    np.testing.assert_array_equal(table.column("mean_loss"), frame.mean_loss)
    assert table.column("stable").to_pylist() == frame.stable.tolist()
    assert table.column("label").to_pylist() == list(plain.labels["label"])
    assert (
        table.column("label_x")[0].as_py() == "\\ud800" and table.column("text")[0].as_py() == "t"
    )
    assert table.schema.metadata[b"trusted"] == b"true"


def test_no_column_of_the_table_is_lost_to_a_label_of_its_name(plain: ItemMap):
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra `maps` is not installed")
    places = {"umap": plain.frames[0].places["pca"], "pca": plain.frames[0].places["pca"]}
    frames = (replace(plain.frames[0], places=places),)
    named = {name: [name] * 20 for name in ("x_pca", "id", "label_id", "neighbors")}
    shown = replace(plain, frames=frames, labels=named, by=None)
    table = pq.read_table(io.BytesIO(shown.table()))
    np.testing.assert_array_equal(table.column("x_pca"), places["pca"][:, 0])
    found = {name: table.column(name)[0].as_py() for name in table.column_names if "label" in name}
    assert found == {
        "label_x_pca": "x_pca", "label_id": "id", "label_label_id": "label_id",
        "label_neighbors": "neighbors",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["\x00", "\x1b[31m", "\ud800", "\ufffe", "two\nlines", "x" * 10_000]
)
def test_a_figure_is_whole_whatever_its_classes_are_called(plain: ItemMap, name: str):
    pytest.importorskip("matplotlib", reason="the extra `maps` is not installed")
    shown = replace(plain, labels={"label": [name, "other"] * 10})
    drawn = ElementTree.fromstring(shown.figure("svg"))
    words = [text.text or "" for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "other" in words and max(map(len, words)) < 80


def test_figures_say_what_they_are_and_that_a_run_is_not_trusted(plain: ItemMap):
    pytest.importorskip("matplotlib", reason="the extra `maps` is not installed")
    hostile = {"label": ["<b>$x^{&" if i % 2 else "שלום" for i in range(20)]}
    shown = replace(plain, labels=hostile, failed_gates=("mixing",))
    text = shown.figure("svg").decode()
    assert "PCA of the loss kernel, 20 items" in text and "NOT TRUSTED: mixing" in text
    assert "&lt;b&gt;$x^{&amp;" in text
    assert text == shown.figure("svg").decode()
    assert "NOT TRUSTED" not in plain.figure("svg").decode()
    assert shown.figure("png").startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no picture of kind 'pdf': expected 'svg' or 'png'"):
        shown.figure("pdf")  # type: ignore[arg-type]


def test_the_map_of_a_run_has_the_nearest_by_pixels_beside_those_of_the_kernel(run, kernel):
    shown = MapOptions("pca", 1, "train", None, 0).draw(run, kernel, describe(kernel)[0], None)
    x = pixels(20).reshape(20, -1).astype(float)
    x = x - x.mean(axis=0)
    cosine = x @ x.T / np.outer(*2 * [np.linalg.norm(x, axis=1)])
    np.fill_diagonal(cosine, -2)
    expected = np.argsort(-cosine, axis=1)[:, :15]
    assert shown is not None
    np.testing.assert_array_equal(shown.others["pixels"], expected)


class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder of a run, which no command changes."""
        pytest.importorskip("matplotlib", reason="the extra `maps` is not installed")
        place = tmp_path_factory.mktemp("made") / "run"
        with without_page():
            bif.attribute(classification(), TINY, out=place)
        return place

    def test_it_writes_the_map_as_page_picture_and_table(self, call, made: Path, tmp_path: Path):
        out = tmp_path / "k"
        code, printed, _ = call("kernel", made, "--out", out, "--layout", "pca")
        assert code == 0 and "pca_shows_neighbours:" in printed
        for name in ("map.html", "map.png", "map.svg", "map.parquet"):
            assert (out / name).stat().st_size > 1000
        assert "pca_shows_neighbours" in json.loads((out / store.SUMMARY).read_text())
        assert "This run is not trusted" in (out / "map.html").read_text()

    def test_without_a_map_or_what_draws_it_the_figures_are_written(
        self, call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        out = tmp_path / "k"
        code, _, said = call("kernel", made, "--out", out, "--layout", "none")
        assert code == 0 and not (out / "map.html").exists() and "no map" not in said
        monkeypatch.setitem(sys.modules, "umap", None)
        code, _, said = call("kernel", made, "--out", out)
        assert code == 0 and (out / store.SUMMARY).exists() and not (out / "map.html").exists()
        assert "no map: UMAP needs umap-learn: pip install 'bayesian-influence[maps]'." in said

    def test_a_folder_of_checkpoints_has_a_map_that_goes_through_them(
        self, call, tmp_path: Path, no_page: None
    ):
        weights = [network(seed=seed).state_dict() for seed in (0, 1)]
        series = bif.CheckpointSeries.from_weights(dict(zip((0, 9), weights, strict=True)))
        sampled = replace(TINY, estimator="covariance", nbeta=20.0)
        bif.trajectory(classification(), series, sampled, out=tmp_path / "stages")
        out = tmp_path / "k"
        code, _, said = call("kernel", tmp_path / "stages", "--out", out, "--layout", "pca")
        assert code == 0, said
        found = json.loads((out / store.SUMMARY).read_text())
        assert list(found["checkpoints"]) == ["step-0", "step-9"]
        last = bif.loss_kernel(bif.load(tmp_path / "stages" / "checkpoints" / "step-9"))
        described, figures = describe(last)
        assert found["neighbours_kept"] == pytest.approx(figures["neighbours_kept"])
        assert found["checkpoints"]["step-9"]["neighbours_kept"] == found["neighbours_kept"]
        saved = store.load_dataset(out, name="kernel.zarr")
        np.testing.assert_array_equal(saved["neighbour"], described["neighbour"])
        assert "2 checkpoints of a training" in (out / "map.html").read_text()
        shutil.rmtree(tmp_path / "stages" / store.TRAJECTORY)
        refused = failed(call("kernel", tmp_path / "stages", "--out", out))
        assert "is unfinished: give the same `bif stages` again first" in refused
        with pytest.raises(FileNotFoundError, match="holds no series of checkpoints"):
            store.stage_runs(tmp_path)

    def test_two_items_have_no_map(
        self, call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        two = bif.LossKernel(normal(2, 8, seed=0), torch.arange(8) % 4, ("a", "b"), {})
        monkeypatch.setattr("bif.kernel.loss_kernel", lambda *_, **__: two)
        code, _, said = call("kernel", made, "--out", tmp_path / "k")
        assert code == 0 and "no map: it needs three items, and there are 2." in said
