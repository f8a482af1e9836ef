"""Chains saved by devinterp 2.0.1, against its own covariances of them.

`fixtures/devinterp.tar.xz` was made by devinterp itself: a small next-token model, 12 train and 4
other sequences, 4 chains of 40 draws, and what `compute_bif(compute_covariance=True)` says.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import bif
from bif.interop import read_devinterp_run

FIXTURE = Path(__file__).parents[1] / "fixtures" / "devinterp.tar.xz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def samples(folder: Path) -> Path:
    return folder / "samples.zarr"


def change_settings(samples: Path, **changed: Any) -> None:
    about = json.loads((samples / "zarr.json").read_text())
    about["attributes"]["metadata"]["config"]["sampler"] |= changed
    (samples / "zarr.json").write_text(json.dumps(about))


def change_losses(samples: Path, chain: int, value: float) -> None:
    zarr.open_array(samples / "loss_train", mode="r+")[chain, 30:] = value


def test_the_losses_are_devinterps_and_the_scores_their_covariances_within_chains(folder, samples):
    run = read_devinterp_run(samples, train="train")
    block = run.traces.blocks[0]
    query, train = (x.double().numpy() for x in (block.query, block.train))
    # Of all sequences: the 4 of "probe" go before the 12 of "train".
    theirs = np.load(folder / "covariance.npy")[:4, 4:]
    every = [x.reshape(160, -1) - x.mean(axis=(0, 1)) for x in (query, train)]
    # Losses are float32, in whose unit the largest covariance, .1, is 1e-8.
    np.testing.assert_allclose(every[0].T @ every[1] / 159, theirs, rtol=0, atol=1e-6)
    own = [x - x.mean(axis=1, keepdims=True) for x in (query, train)]
    within = np.einsum("cdq,cdn->qn", *own) / (4 * 39)
    data = run.influence.dataset
    np.testing.assert_allclose(data["influence"][0], -within, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(data["derivative"], 30 / 12 * data["influence"], rtol=1e-5)
    assert (data["standard_error"] > 0).all() and data.attrs["gamma"] == 5.0


def test_the_run_is_judged_and_can_be_saved_and_asked_as_any_other(samples, tmp_path):
    run = read_devinterp_run(samples, train="train", decode=lambda ids: " ".join(map(str, ids)))
    assert np.isfinite([run.summary.rhat_max, run.summary.reliability]).all()
    assert {"mixing", "drift", "independence"} <= {gate["name"] for gate in run.manifest.gates}
    assert str(run.influence.dataset["query_text"].values[0]).count(" ") == 3  # four tokens
    assert run.suspects(2).scores.sizes["train"] == 12
    again = bif.load(run.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.influence.dataset["influence"],
                                  run.influence.dataset["influence"])  # fmt: skip
    assert again.top_k(2, unresolved=True)[0].query_id == "probe/0"
    assert again.summary.trusted == run.summary.trusted


def test_number_of_train_items_and_queries_may_be_given(samples):
    both = read_devinterp_run(samples, train="train", queries=["train"], num_train=600)
    data = both.influence.dataset
    assert data["query_id"].values.tolist() == [f"train/{i}" for i in range(12)]
    np.testing.assert_allclose(data["derivative"], 30 / 600 * data["influence"], rtol=1e-5)
    np.testing.assert_allclose(np.diag(data["influence"][0]), data["self_influence"], rtol=1e-4)


def test_a_chain_that_is_not_whole_is_left_out_and_counted(samples):
    change_losses(samples, 1, np.nan)
    run = read_devinterp_run(samples, train="train")
    assert run.summary.chains == 3 and list(run.summary.diverged_chains) == [1]
    for chain in (0, 2):
        change_losses(samples, chain, np.inf)
    with pytest.raises(ValueError, match="has 1 whole chains of 4: expected two or more"):
        read_devinterp_run(samples, train="train")


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({"match_sampling_input_ids_across_chains": True}, "were given the same mini-batches"),
        ({"noise_level": 0.5}, "noise_level is 0.5: the draws are of no posterior"),
    ],
)
def test_settings_that_change_the_law_are_remarked_upon(samples, changed, remark):
    plain = " ".join(read_devinterp_run(samples, train="train").manifest.warnings)
    change_settings(samples, **changed)
    told = " ".join(read_devinterp_run(samples, train="train").manifest.warnings)
    assert remark in told and remark not in plain


def test_what_is_not_devinterps_is_refused(samples, tmp_path):
    with pytest.raises(KeyError, match=r"no observable 'test': there are \['probe', 'train'\]"):
        read_devinterp_run(samples, train="test")
    with pytest.raises(FileNotFoundError):
        read_devinterp_run(tmp_path / "nowhere", train="train")
    (samples / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
    )
    with pytest.raises(ValueError, match="no folder of devinterp's sample: its metadata lack"):
        read_devinterp_run(samples, train="train")
