"""The manifest says what was run, and the identity in it what must be the same for two runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses, store
from bif.problem.identity import identity
from bif.problem.provenance import hardware
from small_problems import TINY, Pairs, classification, labelled, network

pytestmark = pytest.mark.usefixtures("unchecked")


class TestManifest:
    def test_the_manifest_says_what_was_run(self):
        run = bif.attribute(classification(), TINY)
        manifest = run.manifest
        calibration = bif.calibrate(classification(), TINY)
        assert manifest["settings"] == calibration.settings.as_dict()
        assert manifest["explanations"] == list(calibration.explanations)
        assert manifest["versions"]["bif"] == bif.__version__
        assert (manifest["num_train"], manifest["num_queries"]) == (20, 5)
        assert manifest["device"] == "cpu" and manifest["num_moving_weights"] == 43
        assert manifest["hardware"] == hardware(torch.device("cpu"))
        assert manifest["keep"] == "traces" and manifest["left_out"] == []
        assert manifest["panels"] == {
            "train": (20,), "query": (5,), "num_observables": 2, "anchored": False,
        }  # fmt: skip
        assert manifest["identity"] == store.plain(identity(classification(), TINY.as_dict()))

    def test_memory_and_disk_are_forecast(self, tmp_path):
        # 4 chains · 6 draws · (20 + 2 · 5) losses · 8 bytes
        (said,) = bif.attribute(classification(), TINY).manifest["forecast"]
        scores = "17.2 KiB"  # of 10 rows and 20 items, 88 bytes a pair
        assert said == (
            f"memory of the host for what is recorded: 5.62 KiB, and for scores at the end {scores}"
        )
        bif.attribute(classification(), TINY, out=tmp_path / "r", keep="weights")
        _, said = bif.load(tmp_path / "r").manifest["forecast"]
        # 4 · 6 · 43 · 8 bytes of weights
        assert "traces 5.62 KiB, weights 8.06 KiB, checkpoints" in said

    def test_what_is_on_disk_is_what_is_in_memory(self, tmp_path):
        run = bif.attribute(classification(), TINY, out=tmp_path / "r")
        found = bif.load(tmp_path / "r").manifest
        assert {n: found[n] for n in run.manifest} == store.plain(run.manifest)


class TestIdentity:
    def test_the_identity_changes_with_everything_that_matters(self):
        plain = identity(classification(), TINY.as_dict())
        x, y = labelled(20, seed=1)
        nudged = x.clone()
        nudged.view(torch.int64)[3, 2] ^= 1
        model = network()
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1e-15
        qx, qy = labelled(5, seed=2)
        mine = [
            bif.Observable("loss", losses.cross_entropy),
            bif.Observable("margin", losses.cross_entropy),
        ]
        others = {
            "train": classification(train=(nudged, y)),
            "queries.query": classification(queries=(qx, (qy + 1) % 3)),
            "queries.other": classification(queries={"query": (qx, qy), "other": (qx, qy)}),
            "candidates.candidate": classification(candidates=(qx, qy)),
            "weights": classification(model=model),
            "model": classification(model=Wrapped(network())),
            "train_weights": classification(train_weights=[1.0] * 20),
            "loss": classification(loss=losses.margin),
            "observables.margin": classification(observables=mine),
        }
        for key, problem in others.items():
            found = store.differences(plain, identity(problem, TINY.as_dict()))
            # Wrapped, the weights have other names as well.
            assert [n for n in found if key != "model" or n != "weights"] == [key]
        assert store.differences(plain, identity(classification(), TINY.as_dict())) == []

    @pytest.mark.parametrize("name", ["seed", "draws", "gamma", "movable", "compiled", "device"])
    def test_every_setting_asked_for_counts(self, name):
        value = {"movable": ("2.*",), "compiled": True, "device": "cpu"}.get(name, 7)
        changed = identity(classification(), replace(TINY, **{name: value}).as_dict())
        plain = identity(classification(), TINY.as_dict())
        assert store.differences(store.plain(plain), store.plain(changed)) == [f"settings.{name}"]

    def test_the_identity_holds_what_was_asked_for_and_not_what_was_chosen(self):
        run = bif.attribute(classification(), replace(TINY, chunk_size=None))
        assert run.manifest["identity"]["settings"]["chunk_size"] is None
        assert run.manifest["settings"]["chunk_size"] == 20

    def test_a_dataset_has_the_fingerprint_of_its_tensors(self):
        a = identity(classification(), TINY.as_dict())["train"]
        b = identity(classification(train=Pairs(*labelled(20, seed=1))), TINY.as_dict())["train"]
        assert a == b

    def test_the_identity_is_that_of_the_problem_before_the_run(self, tmp_path):
        class Counting:
            """A loss that remembers something from call to call."""

            def __init__(self) -> None:
                self.calls = 0

            def __call__(self, model: nn.Module, batch: Any) -> Tensor:
                self.calls += 1
                return losses.cross_entropy(model, batch)

        def attribute() -> bif.Run:
            problem = classification(loss=Counting(), observables=None)
            return bif.attribute(problem, TINY, out=tmp_path / "out")

        first = attribute()
        assert attribute().manifest["identity"] == first.manifest["identity"]

    def test_functions_without_source_have_a_name_and_the_hash_of_their_code(self):
        first, second = (
            identity(classification(loss=eval(text), observables=None), TINY.as_dict())["loss"]
            for text in ("lambda m, b: m(b[0])[:, 0]", "lambda m, b: m(b[0]).sum(1)")
        )
        assert first.startswith("<lambda>@") and second.startswith("<lambda>@")
        assert first != second


class Wrapped(nn.Module):
    """The same function by another model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)
