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
from bif import Settings, cli, store
from bif.runs import block_run
from broken_runs import assert_same

pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
demo = importlib.import_module("bif.cli.digits_demo")

TINY = Settings(
    nbeta=1000.0, chains=4, draws=20, burn_in=30, thin=2, gamma=300.0, step_size=0.02, friction=20.0
)  # fmt: skip


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
            assert demo.run_demo(out, seed=0, settings=TINY) is True
        return out

    def test_all_files_are_there(self, folder):
        assert sorted(p.name for p in folder.iterdir()) == [
            ".bif", ".lock", "checkpoints", "diagnostics.zarr", "influence.zarr", "report.html",
            "run.json", "summary.json", "traces.zarr",
        ]  # fmt: skip

    def test_the_summary_holds_the_promised_figures(self, folder):
        summary = store.read_run(folder)["summary"]
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

        summary = store.read_run(folder)["summary"]
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
        assert demo.run_demo(folder, seed=0, settings=TINY) is False
        with pytest.raises(store.FolderInUse, match="settings.draws"):
            demo.run_demo(folder, seed=0, settings=replace(TINY, draws=21))

    def test_the_demo_goes_on_where_it_was_cut_short_to_the_last_bit(
        self, folder, quick, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(demo, "digits", quick)
        monkeypatch.setattr(block_run, "_COMMIT_SHARE", 0)
        commit, out = store.BlockStore.commit, tmp_path / "out"

        def full(self: store.BlockStore, which: store.Commit, **given: Any) -> None:
            if which.step > 40:  # past burn-in, some draws committed
                raise OSError("disk full")
            commit(self, which, **given)

        with monkeypatch.context() as patch:
            patch.setattr(store.BlockStore, "commit", full)
            with pytest.raises(OSError, match="disk full"):
                demo.run_demo(out, seed=0, settings=TINY, commit_every=0.0)
        assert 0 < store.BlockStore(store.folder_at(out), 0).commits()[0].draws < 20
        assert demo.run_demo(out, seed=0, settings=TINY) is True
        assert_same(bif.load(out), bif.load(folder))

    def test_only_sums_may_be_kept(self, folder, quick, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "digits", quick)
        out = tmp_path / "out"
        assert demo.run_demo(out, seed=0, settings=TINY, keep="sums") is True
        sums, traces = bif.load(out), bif.load(folder)
        assert sums.manifest["keep"] == "sums" and sums.influence.traces is None
        scores, expected = (r.influence.dataset["influence"].values for r in (sums, traces))
        # Both are sums in float64, stored as float32: at most one unit in the last place apart.
        rounding = {"rtol": 2**-23, "atol": 2**-40 * np.abs(expected).max()}
        np.testing.assert_allclose(scores, expected, **rounding)

    def test_the_command_makes_the_same_run(self, folder, quick, monkeypatch, capsys):
        calls = []

        def recorded(out: Any, **given: Any) -> bool:
            calls.append((out, given))
            return len(calls) == 1

        monkeypatch.setattr(demo, "run_demo", recorded)
        command = ["bif", "demo", "--out", str(folder), "--seed", "3"]
        monkeypatch.setattr(sys, "argv", command)
        cli.main()
        given = {"seed": 3, "keep": "traces", "on_existing": "resume", "commit_every": 10.0}
        assert calls == [(str(folder), given)]
        said = capsys.readouterr().out
        assert "50 of 1,000 labels were made wrong on purpose" in said
        assert "the right label, for" in said and "nothing to do" not in said
        flags = ["--keep", "sums", "--overwrite", "--commit-every", "2"]
        monkeypatch.setattr(sys, "argv", [*command, *flags])
        cli.main()
        given = {"seed": 3, "keep": "sums", "on_existing": "replace", "commit_every": 2.0}
        assert calls[1] == (str(folder), given)
        assert "already holds this run, complete: nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_over_five_seeds_the_moved_labels_are_found_and_scores_are_reliable():
    figures, reliabilities = [], []
    for seed in range(5):
        made = demo.digits(seed)
        run = bif.attribute(made.problem, Settings(seed=seed))
        found = demo.mislabel_aurocs(run, made)
        figures.append(found["mislabel_auroc"])
        reliabilities.append(run.summary["reliability"])
        print(seed, found, {k: run.summary[k] for k in ("reliability", "rhat_max", "seconds")})
    assert np.median(figures) >= 0.95
    assert min(reliabilities) >= 0.8
