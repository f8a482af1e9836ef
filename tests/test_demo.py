"""The demo: its data, its files, and (slow) that it finds the moved labels."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import bif
from bif import Settings, store

pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
demo = importlib.import_module("bif.demo")

TINY = Settings(chains=4, draws=20, burn_in=30, thin=2, gamma=300.0, step_size=0.02, friction=20.0)


@pytest.fixture(scope="module")
def made() -> Any:
    return demo.digits(0)


@pytest.fixture(scope="module")
def quick(made: Any) -> Any:
    """`digits` without its training, for what does not need it twice."""

    def digits(seed: int = 0) -> Any:
        assert seed == 0
        return made

    return digits


class TestData:
    def test_a_twentieth_of_the_labels_is_moved_and_no_query_is(self, made):
        labels = np.asarray(made.problem.train.data[1])
        assert made.problem.num_train == 1000 and made.problem.num_queries == 200
        assert made.moved.sum() == 50
        assert np.array_equal(labels != made.original_labels, made.moved)
        (queries,) = made.problem.query_groups.values()
        both = np.concatenate([made.problem.train.images, queries.images]).reshape(1200, -1)
        # No picture is in both parts, but for twins in the data set itself.
        assert len(np.unique(both, axis=0)) >= 1190

    def test_labels_belong_to_their_pictures(self, made):
        from sklearn.datasets import load_digits

        bundle: Any = load_digits()
        known = {p.tobytes(): int(t) for p, t in zip(bundle.data, bundle.target, strict=True)}
        inputs = (made.problem.train.data[0].numpy() * 16).round().astype(np.float64)
        found = [known[row.tobytes()] for row in inputs]
        assert found == made.original_labels.tolist()

    def test_the_same_seed_gives_the_same_network_and_global_randomness_is_untouched(self, made):
        before = torch.get_rng_state()
        again = demo.digits(0)
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(again.moved, made.moved)
        for a, b in zip(
            again.problem.model.parameters(), made.problem.model.parameters(), strict=True
        ):
            assert torch.equal(a, b)

    def test_the_network_is_trained(self, made):
        (queries,) = made.problem.query_groups.values()
        inputs, targets = queries.data
        correct = made.problem.model(inputs).argmax(dim=1) == targets
        assert correct.float().mean() > 0.85

    def test_without_scikit_learn_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(ImportError, match=r"pip install 'bayesian-influence\[demo\]'"):
            demo.digits(0)


class TestRun:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, quick: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "digits", quick)
            out = tmp_path_factory.mktemp("demo") / "out"
            assert demo.run_demo(out, seed=0, overwrite=False, settings=TINY) == out
        return out

    def test_all_files_are_there(self, folder):
        assert sorted(p.name for p in folder.iterdir()) == [
            "diagnostics.zarr", "influence.zarr", "report.html", "run.json", "summary.json",
        ]  # fmt: skip

    def test_the_summary_holds_the_promised_figures(self, folder):
        summary = store.read_json(folder / "summary.json")
        names = {
            "draws", "chains", "seconds", "ess_median", "rhat_max", "reliability",
            "mislabel_auroc", "mislabel_auroc_loss_only", "mislabel_auroc_gradient_product",
            "complete", "diverged_chains",
        }  # fmt: skip
        assert names <= set(summary)
        assert summary["draws"] == 80 and summary["chains"] == 4
        assert all(0 <= summary[n] <= 1 for n in names if n.startswith("mislabel"))

    def test_the_dataset_holds_the_known_truth_pictures_and_suspicion(self, folder, made):
        dataset = bif.Influence.load(folder).dataset
        assert dataset["influence"].shape == (2, 200, 1000)
        assert dataset["observable"].values.tolist() == ["loss", "margin"]
        assert np.array_equal(dataset["relabelled"], made.moved)
        assert dataset["train_image"].shape == (1000, 8, 8)
        np.testing.assert_array_equal(dataset["suspicion"], -dataset["self_influence"])
        moved = np.flatnonzero(made.moved)[0]
        assert dataset["original_label"].values[moved] != dataset["train_label"].values[moved]

    def test_the_figures_are_those_of_the_dataset(self, folder, made):
        from sklearn.metrics import roc_auc_score

        summary = store.read_json(folder / "summary.json")
        dataset = bif.Influence.load(folder).dataset
        assert summary["mislabel_auroc"] == pytest.approx(
            roc_auc_score(made.moved, dataset["suspicion"]), abs=1e-12
        )
        loss = bif.losses.cross_entropy(made.problem.model, made.problem.train.data).detach()
        assert summary["mislabel_auroc_loss_only"] == pytest.approx(
            roc_auc_score(made.moved, loss.numpy()), abs=1e-6
        )

    def test_the_same_run_is_not_done_twice_and_another_is_refused(
        self, folder, quick, monkeypatch
    ):
        monkeypatch.setattr(demo, "digits", quick)
        assert demo.run_demo(folder, seed=0, overwrite=False, settings=TINY) is None
        with pytest.raises(store.FolderInUse, match="settings.draws"):
            demo.run_demo(folder, seed=0, overwrite=False, settings=replace(TINY, draws=21))

    def test_the_command_goes_the_same_way(self, folder, quick, monkeypatch, capsys):
        from bif import cli

        calls = []

        def recorded(out: Any, **given: Any) -> Any:
            calls.append((out, given))
            return folder

        monkeypatch.setattr(demo, "run_demo", recorded)
        monkeypatch.setattr(sys, "argv", ["bif", "demo", "--out", str(folder), "--seed", "3"])
        cli.main()
        assert calls == [(folder, {"seed": 3, "overwrite": False})]
        assert "mislabel auroc" in capsys.readouterr().out


@pytest.mark.slow
def test_over_five_seeds_the_moved_labels_are_found_and_scores_are_reliable():
    figures, reliabilities = [], []
    for seed in range(5):
        made = demo.digits(seed)
        run = bif.attribute(made.problem, Settings(seed=seed))
        found = demo.mislabel_figures(run, made)
        figures.append(found["mislabel_auroc"])
        reliabilities.append(run.summary["reliability"])
        print(seed, found, {k: run.summary[k] for k in ("reliability", "rhat_max", "seconds")})
    assert np.median(figures) >= 0.95
    assert min(reliabilities) >= 0.8
