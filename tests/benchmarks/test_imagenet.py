"""The recipe for ImageNet runs on a folder of the same form, with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.imagenet import __main__ as imagenet
from benchmarks.imagenet.folder import class_names, read_images
from benchmarks.imagenet.googlenet import GoogLeNet, read_googlenet

pytest.importorskip("networkx")

CLASSES = ("n01", "n02", "n03", "n04")
"""In two pairs of the tree."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout with four classes of smooth pictures, a tree, and weights of a network."""
    made = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for side, count in (("train", 4), ("val", 1)):
        for number, name in enumerate(CLASSES):
            (made / side / name).mkdir(parents=True)
            for i in range(count):
                rough = random.integers(0, 60, (5, 5, 3)) + 45 * number
                picture = Image.fromarray(rough.astype(np.uint8)).resize((44 + i, 40))
                picture.save(made / side / name / f"{side}-{i}.JPEG", format="JPEG")
    links = [("root", "a"), ("root", "b"), ("a", "n01"), ("a", "n02"), ("b", "n03"), ("b", "n04")]
    tree = {
        "directed": True, "multigraph": False, "graph": {},
        "nodes": [{"id": x} for x in dict.fromkeys(end for link in links for end in link)],
        "links": [{"source": a, "target": b} for a, b in links],
    }  # fmt: skip
    (made / "tree.json").write_text(json.dumps(tree))
    torch.manual_seed(0)
    model = GoogLeNet(len(CLASSES), narrower=8).train()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0  # or signals die out in a network that was never trained
    model(torch.randint(256, (64, 3, 64, 64), dtype=torch.uint8))
    state = model.state_dict()
    auxiliary = {"aux1.fc1.weight": torch.zeros(2, 2), "aux2.conv.conv.weight": torch.zeros(1)}
    torch.save(state | auxiliary, made / "googlenet.pth")
    return made


def run(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *further: str) -> None:
    given = ["--data", folder, "--weights", folder / "googlenet.pth", "--out", out]
    sizes = ["--size", "32", "--queries", "2", "--chains", "2", "--draws", "8"]
    chosen = [
        "--nbeta",
        "16",
        "--gamma",
        "1e4",
        "--step-size",
        "1e-5",
        "--burn-in",
        "0",
        "--sampler",
        "sgld",
    ]
    monkeypatch.setattr(sys, "argv", ["imagenet", *map(str, given), *sizes, *chosen, *further])
    imagenet.main()


def test_the_network_has_the_weights_of_torchvisions():
    model = GoogLeNet()
    assert sum(p.numel() for p in model.parameters()) == 6_624_904  # without auxiliary classifiers
    names = set(model.state_dict())
    assert {
        "conv1.conv.weight", "conv3.bn.running_var", "inception3a.branch1.conv.weight",
        "inception4c.branch2.1.bn.weight", "inception5b.branch3.0.conv.weight",
        "inception5b.branch4.1.bn.num_batches_tracked", "fc.bias",
    } <= names  # fmt: skip
    shapes = [tuple(model.state_dict()[f"inception5b.branch3.{i}.conv.weight"].shape) for i in "01"]
    assert shapes == [(48, 832, 1, 1), (128, 48, 3, 3)]
    assert model.eval()(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape == (2, 1000)


def test_images_are_the_middles_of_their_files(tmp_path: Path):
    (tmp_path / "a").mkdir()
    left, right = np.zeros((80, 160, 3), np.uint8), np.full((80, 160, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([left, right], axis=1)).save(tmp_path / "a" / "wide.png")
    found = read_images(tmp_path, ["other", "a"], chosen=["a"], per_class=3, size=70)
    assert found.pixels.shape == (1, 3, 70, 70) and found.targets.tolist() == [1]
    assert (found.pixels[..., :34] == 0).all() and (found.pixels[..., 36:] == 255).all()
    assert found.ids == ("a/wide",) and found.pictures.shape == (1, 48, 48, 3)


@pytest.mark.slow  # convolutions of many chains
def test_map_agreement_and_images_beside_ekfac_are_written(folder, tmp_path, monkeypatch):
    run(folder, tmp_path, monkeypatch, "--hierarchy", str(folder / "tree.json"))
    found = json.loads(next(tmp_path.glob("imagenet-*.json")).read_text())
    assert [row["query"] for row in found["rows"]] == ["n01/val-0", "n03/val-0"]
    assert found["num_train"] == 16 and not found["trusted"]
    for row in found["rows"]:
        assert -1 <= row["rank_correlation"] <= 1 and row["bif_helps"][0].startswith("n0")
    figures = json.loads((tmp_path / "kernel" / "summary.json").read_text())
    assert "rank_correlation" in figures["hierarchy"]["figures"]
    assert (tmp_path / "influential.png").stat().st_size > 1000


def test_what_is_missing_or_does_not_fit_is_said(folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folders of classes in .*: expected .*CLASS"):
        class_names(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights at .*torchvision's googlenet"):
        read_googlenet(tmp_path / "none.pth")
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has no fc.weight: .* got layer.weight and so on"):
        read_googlenet(tmp_path / "other.pth")
    torch.save({"fc.weight": torch.zeros(4, 1024)}, tmp_path / "fewer.pth")
    with pytest.raises(ValueError, match="weights of another network than GoogLeNet"):
        read_googlenet(tmp_path / "fewer.pth")
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*a: expected \.jpeg"):
        read_images(tmp_path, ["a"], chosen=["a"], per_class=1)
    (tmp_path / "a" / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match="text.jpg is no image that Pillow reads"):
        read_images(tmp_path, ["a"], chosen=["a"], per_class=1)
    (tmp_path / "names.txt").write_text("n01 n02")
    with pytest.raises(ValueError, match="2 classes, and the network tells 4 apart: .*--wnids"):
        run(folder, tmp_path, monkeypatch, "--wnids", str(tmp_path / "names.txt"))
