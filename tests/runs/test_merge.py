"""Merging runs that were made side by side, each with a seed of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bif
from bif import cli, losses
from bif.store import FolderInUse
from small_problems import TINY, classification, labelled

pytestmark = pytest.mark.usefixtures("unchecked")

SETTINGS = replace(TINY, draws=20)


def made(
    folder: Path, *, seed: int, problem: bif.Problem | None = None, **settings: object
) -> Path:
    chosen = replace(SETTINGS, seed=seed, **settings)  # type: ignore[arg-type]
    bif.attribute(problem or classification(), chosen, out=folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("runs")
    return [made(base / str(seed), seed=seed, draws=20 + seed) for seed in (0, 1, 2)]


class TestMerged:
    def test_it_has_the_chains_of_all_runs_counted_through(self, folders):
        merged = bif.merge(folders)
        assert [c for block in merged.traces.blocks for c in block.chains] == list(range(12))
        for block, folder in zip(merged.traces.blocks, folders, strict=True):
            (own,) = bif.load(folder).traces.blocks
            assert torch.equal(block.train, own.train) and torch.equal(block.query, own.query)
        assert merged.summary["draws"] == 4 * (20 + 21 + 22)
        assert merged.summary["merged_runs"] == 3
        assert merged.manifest["settings"]["seed"] == [0, 1, 2]

    def test_its_scores_are_those_of_all_traces_together(self, folders):
        merged = bif.merge(folders)
        covariance = bif.estimate.estimate_covariance(merged.traces)
        dataset = merged.influence.dataset
        np.testing.assert_allclose(
            dataset["influence"].values.reshape(10, 20), -covariance.value, rtol=1e-6
        )
        np.testing.assert_allclose(
            dataset["standard_error"].values.reshape(10, 20), covariance.standard_error, rtol=1e-6
        )
        first = bif.load(folders[0]).influence.dataset
        for name in ("train_id", "query_id", "observable", "train_center_loss", "query_center"):
            assert (dataset[name].values == first[name].values).all()
        assert dataset["better"].values.tolist() == ["lower", "higher"]
        assert dataset.attrs["num_train"] == 20 and dataset.attrs["gamma"] == 5.0

    def test_the_order_changes_no_score_beyond_rounding(self, folders):
        # Groups of chains differ with the order, so only the value is compared.
        a, b = (bif.merge(list(order)) for order in (folders[:2], folders[1::-1]))
        scale = np.abs(a.influence.dataset["influence"]).max()
        np.testing.assert_allclose(
            a.influence.dataset["influence"], b.influence.dataset["influence"],
            rtol=0, atol=1e-6 * float(scale),
        )  # fmt: skip

    def test_it_is_saved_and_loaded_and_cannot_be_merged_or_extended_unnoticed(
        self, folders, tmp_path
    ):
        merged = bif.merge(folders[:2])
        folder = merged.save(tmp_path / "merged")
        loaded = bif.load(folder)
        assert loaded.traces.num_chains == 8
        np.testing.assert_array_equal(
            loaded.influence.dataset["influence"], merged.influence.dataset["influence"]
        )
        with pytest.raises(ValueError, match="saved from memory"):
            bif.extend(folder, classification(), draws=50)


class TestRefused:
    def test_one_run_alone_is_refused(self, folders):
        with pytest.raises(ValueError, match="takes two runs or more, got 1"):
            bif.merge(folders[:1])

    def test_runs_of_equal_seeds_are_refused(self, folders):
        with pytest.raises(ValueError, match=r"seeds \[0, 0\]: equal seeds give the same draws"):
            bif.merge([folders[0], folders[0]])

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"gamma": 6.0}, "settings.gamma"),
            ({"thin": 3}, "settings.thin"),
            ({"problem": classification(train_weights=[1.0] * 20)}, "train_weights"),
            ({"problem": classification(train=labelled(20, seed=5))}, "train"),
            ({"problem": classification(loss=losses.margin)}, "loss"),
        ],
    )
    def test_runs_of_another_problem_or_posterior(self, folders, tmp_path, change, name):
        other = made(tmp_path / "other", seed=9, **change)
        with pytest.raises(FolderInUse, match=rf"is another run than .*another {name}"):
            bif.merge([folders[0], other])

    def test_runs_that_keep_sums_are_refused(self, folders, tmp_path):
        bif.attribute(
            classification(), replace(SETTINGS, seed=9), out=tmp_path / "sums", keep="sums"
        )
        with pytest.raises(ValueError, match="keeps sums: merging needs traces"):
            bif.merge([folders[0], tmp_path / "sums"])

    def test_a_folder_without_a_run(self, folders, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no run of bif"):
            bif.merge([folders[0], tmp_path])


def test_the_command_merges_and_refuses_an_occupied_folder(folders, tmp_path, monkeypatch, capsys):
    command = ["bif", "merge", *map(str, folders), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", command)
    cli.main()
    assert f"report: {tmp_path / 'out'}" in capsys.readouterr().out
    assert bif.load(tmp_path / "out").traces.num_chains == 12
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "holds a run already" in capsys.readouterr().err
