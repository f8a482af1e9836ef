"""Tokens as columns of their own: names, sums that agree, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import bif
from bif.estimate import estimate_covariance
from bif.estimate.covariance import Covariance
from bif.language.sequences import Sequences
from bif.problem.items import map_batch
from bif.store import FolderInUse
from small_problems import nothing_measured
from token_problems import TINY, WIDTH, bigrams, problem, sums_of, texts

pytestmark = pytest.mark.usefixtures("unchecked")
SIDES = ["train", "query", "both"]


@pytest.fixture(scope="module")
def runs() -> dict[Any, bif.Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bif.runs.block_run.check", nothing_measured)
        return {tokens: bif.attribute(problem(tokens), TINY) for tokens in (None, *SIDES)}


def covariance_of(run: bif.Run, **rows: Any) -> Covariance:
    return estimate_covariance(run.traces, **rows)


class TestColumns:
    def test_a_token_is_named_after_its_item_and_its_place(self, runs):
        dataset = runs["both"].influence.dataset
        for side, items in (("train", texts(6, seed=1)), ("query", texts(3, seed=5))):
            assert items.token_mask is not None and items.tokens is not None
            row, token = np.nonzero(items.token_mask)
            assert dataset[f"{side}_id"].values.tolist() == [
                f"t{i}[{t}]" for i, t in zip(row, token, strict=True)
            ]
            assert dataset[f"{side}_item"].values.tolist() == [f"t{i}" for i in row]
            assert dataset[f"{side}_token"].values.tolist() == token.tolist()
            assert dataset[f"{side}_text"].values.tolist() == [
                items.tokens[i][t] for i, t in zip(row, token, strict=True)
            ]

    @pytest.mark.parametrize("tokens", ["train", "query"])
    def test_the_other_side_keeps_whole_items(self, runs, tokens):
        dataset = runs[tokens].influence.dataset
        whole = {"train": "query", "query": "train"}[tokens]
        same = runs[None].influence.dataset[f"{whole}_id"].values.tolist()
        assert dataset[f"{whole}_id"].values.tolist() == same
        assert f"{whole}_token" not in dataset.coords

    def test_the_values_are_those_of_the_loss(self, runs):
        items = texts(6, seed=1)
        losses = bif.losses.next_token(bigrams(), items.data)
        got = runs["both"].influence.dataset["train_center_loss"].values
        expected = losses.detach().numpy()[np.asarray(items.token_mask)[:, 1:]]
        np.testing.assert_allclose(got, expected, rtol=1e-12)

    def test_a_loss_of_every_token_has_no_shift(self):
        def embedding_size(model: Any, batch: Any) -> torch.Tensor:
            return model.embed(batch["input_ids"]).square().sum(dim=-1)

        found = bif.Problem(
            bigrams(), embedding_size, train=texts(6, seed=1), queries=texts(3, seed=5),
            tokens="train",
        )  # fmt: skip
        scores = bif.attribute(found, TINY).influence.dataset
        items = texts(6, seed=1)
        expected = embedding_size(bigrams(), items.data).detach().numpy()[items.token_mask]
        np.testing.assert_allclose(scores["train_center_loss"], expected, rtol=1e-12)

    def test_candidates_have_tokens_too(self):
        found = problem("train", candidates={"new": texts(2, seed=9)})
        dataset = bif.attribute(found, TINY).influence.dataset
        new = dataset["train_group"].values == "new"
        assert new.sum() == np.asarray(texts(2, seed=9).token_mask).sum()
        assert all(str(i).startswith("new/t") for i in dataset["train_item"].values[new])

    @pytest.mark.parametrize("chunk_size", [1, 2, 4])
    def test_chunks_by_length_give_the_same_columns(self, runs, chunk_size):
        def by_length(items: bif.Items) -> Sequences:
            lengths = [len(pieces) for pieces in items.tokens or []]
            data: Any = items.data
            made = Sequences(data, lengths=lengths, ids=items.ids.tolist())
            made.tokens, made.token_mask = items.tokens, items.token_mask
            return made

        found = problem(
            "both", train=by_length(texts(6, seed=1)), queries=by_length(texts(3, seed=5))
        )
        got = bif.attribute(found, replace(TINY, chunk_size=chunk_size))
        for name in ("train", "query"):
            a, b = (getattr(run.traces.blocks[0], name) for run in (got, runs["both"]))
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


class TestSums:
    @pytest.mark.parametrize("tokens", SIDES)
    def test_token_traces_sum_to_those_of_items(self, runs, tokens):
        run, whole = runs[tokens], runs[None].traces.blocks[0]
        block = run.traces.blocks[0]
        for side, kept in (("train", whole.train), ("query", whole.query)):
            values = getattr(block, side).numpy()
            if tokens in (side, "both"):
                values = sums_of(values, run.influence.dataset[f"{side}_item"].values, axis=2)
            np.testing.assert_allclose(values, kept, rtol=0, atol=1e-12)

    def test_covariances_of_tokens_sum_to_those_of_items(self, runs):
        dataset = runs["both"].influence.dataset
        value = covariance_of(runs["both"]).value.numpy()
        rows = sums_of(value, dataset["query_item"].values, axis=0)
        both = sums_of(rows, dataset["train_item"].values, axis=1)
        assert np.abs(both - covariance_of(runs[None]).value.numpy()).max() < 1e-10

    @pytest.mark.parametrize("tokens", SIDES)
    @pytest.mark.parametrize(
        "name", ["influence", "derivative", "correlation", "standard_error", "self_influence",
                 "self_influence_standard_error", "train_mean_loss", "query_mean", "query_center",
                 "train_center_loss"],
    )  # fmt: skip
    def test_by_item_is_the_run_without_tokens(self, runs, tokens, name):
        got, expected = (
            influence.dataset[name]
            for influence in (runs[tokens].influence.by_item(), runs[None].influence)
        )
        assert got.dims == expected.dims
        # Stored in float32, where the two may round to neighbours.
        np.testing.assert_allclose(got, expected, rtol=2**-22, atol=1e-12)

    def test_by_item_keeps_what_is_known_of_the_items(self, runs):
        got = runs["both"].influence.by_item().dataset
        expected = runs[None].influence.dataset
        for name in ("train_id", "train_label", "query_id", "query_group"):
            assert got[name].values.tolist() == expected[name].values.tolist()
        assert not {"train_parent", "query_parent"} & set(got.dims)

    def test_one_side_may_be_summed(self, runs):
        got = runs["both"].influence.by_item("train").dataset
        expected = runs["query"].influence.dataset
        assert got["query_id"].values.tolist() == expected["query_id"].values.tolist()
        np.testing.assert_allclose(got["influence"], expected["influence"], rtol=2**-22, atol=1e-12)
        got = runs["both"].influence.by_item("query").dataset
        expected = runs["train"].influence.dataset
        assert got["train_token"].values.tolist() == expected["train_token"].values.tolist()
        np.testing.assert_allclose(got["influence"], expected["influence"], rtol=2**-22, atol=1e-12)

    def test_errors_are_not_those_of_independent_tokens(self, runs):
        dataset = runs["both"].influence.dataset
        squares = np.square(dataset["standard_error"].values[0].astype(float))
        rows = sums_of(squares, dataset["query_item"].values, axis=0)
        added = np.sqrt(sums_of(rows, dataset["train_item"].values, axis=1))
        true = runs["both"].influence.by_item().dataset["standard_error"].values[0]
        assert np.abs(added / true - 1).max() > 0.2

    def test_items_without_tokens_on_either_side_stay_as_they_are(self, runs):
        influence = runs[None].influence
        assert influence.by_item() is influence

    def test_without_traces_the_sums_are_the_same_and_errors_are_nan(self, runs):
        with_traces = runs["both"].influence.by_item().dataset
        without = bif.Influence(runs["both"].influence.dataset).by_item().dataset
        scale = float(np.abs(runs["both"].influence.dataset["influence"]).max())
        atol = 50 * 2**-24 * scale  # of at most 50 summed tokens
        np.testing.assert_allclose(without["influence"], with_traces["influence"], atol=atol)
        np.testing.assert_allclose(without["query_center"], with_traces["query_center"])
        assert np.isnan(without["standard_error"]).all()
        assert without["query_id"].values.tolist() == with_traces["query_id"].values.tolist()
        assert without["train_label"].values.tolist() == with_traces["train_label"].values.tolist()

    @pytest.mark.parametrize("tokens", [None, *SIDES])
    def test_sources_are_sums_of_their_items(self, runs, tokens):
        named = runs[tokens].influence.by_group("label").by_item().dataset
        listed = runs[tokens].influence.by_group(["a", "b", "a", "c", "b", "a"]).by_item().dataset
        expected = runs[None].influence.sum_over(["a", "b", "a", "c", "b", "a"]).dataset
        assert named["train_id"].values.tolist() == ["a", "b", "c"]
        for name in ("influence", "standard_error"):
            np.testing.assert_allclose(named[name], expected[name], rtol=2**-22, atol=1e-12)
            np.testing.assert_array_equal(named[name], listed[name])

    def test_a_source_that_is_unknown_is_refused_with_those_that_are_known(self, runs):
        with pytest.raises(KeyError, match=r"no 'source' to be summed by; they have \['label'"):
            runs["both"].influence.by_group("source")

    def test_sources_that_are_empty_are_refused(self):
        train = texts(6, seed=1, about={"source": [""] * 6})
        run = bif.attribute(problem(train=train), TINY)
        with pytest.raises(KeyError, match="the 'source' of every train item is empty"):
            run.influence.by_group("source")


class TestRuns:
    def test_rankings_show_the_tokens(self, runs):
        ranking = runs["both"].influence.top("t1[2]", 3, unresolved=True)
        dataset = runs["both"].influence.dataset
        for score in (*ranking.positive, *ranking.negative):
            place = dataset["train_id"].values.tolist().index(score.train_id)
            assert score.label == dataset["train_text"].values[place]

    def test_a_run_on_disk_is_resumed_and_read_with_its_tokens(self, tmp_path: Path, runs):
        kept = bif.attribute(problem(), TINY, out=tmp_path / "run")
        again = bif.attribute(problem(), TINY, out=tmp_path / "run")
        loaded = bif.load(tmp_path / "run")
        for run in (kept, again, loaded):
            np.testing.assert_array_equal(
                run.influence.dataset["influence"], runs["both"].influence.dataset["influence"]
            )
        xr.testing.assert_allclose(
            loaded.influence.by_item().dataset["standard_error"],
            runs["both"].influence.by_item().dataset["standard_error"],
        )
        assert loaded.influence.dataset["train_text"].values.tolist() == (
            runs["both"].influence.dataset["train_text"].values.tolist()
        )

    def test_another_mask_or_granularity_is_another_run(self, tmp_path: Path):
        bif.attribute(problem("train"), TINY, out=tmp_path / "run")
        with pytest.raises(FolderInUse, match="tokens"):
            bif.attribute(problem("both"), TINY, out=tmp_path / "run")
        items = texts(6, seed=1)
        items.token_mask = np.array(items.token_mask)
        items.token_mask[0, 1] = False
        with pytest.raises(FolderInUse, match="train"):
            bif.attribute(problem("train", train=items), TINY, out=tmp_path / "run")

    def test_sums_are_kept_of_tokens_too(self, runs):
        kept = bif.attribute(problem(), TINY, keep="sums")
        for name in ("influence", "standard_error"):
            np.testing.assert_allclose(
                kept.influence.dataset[name], runs["both"].influence.dataset[name], rtol=1e-5
            )
        assert np.isnan(kept.influence.by_item().dataset["standard_error"]).all()

    def test_queries_of_tokens_are_added_to_a_run(self, tmp_path: Path):
        bif.attribute(problem(), TINY, out=tmp_path / "run")
        wider = problem().extended(queries={"more": texts(2, seed=20)})
        bif.extend(tmp_path / "run", wider)
        dataset = bif.load(tmp_path / "run").influence.dataset
        assert "more/t1[1]" in dataset["query_id"].values.tolist()

    def test_runs_of_tokens_are_merged(self, tmp_path: Path):
        for seed in (0, 1):
            bif.attribute(problem(), replace(TINY, seed=seed), out=tmp_path / str(seed))
        merged = bif.merge([tmp_path / "0", tmp_path / "1"])
        assert merged.influence.by_item().dataset.sizes["train"] == 6
        assert merged.influence.dataset["train_text"].values.tolist()[0].startswith("w")

    def test_controls_are_of_tokens_where_they_can_be(self):
        run = bif.attribute(problem(), replace(TINY, controls=True))
        shape = run.influence.dataset["influence"].shape
        assert run.influence.dataset["control_nbeta_0"].shape == shape
        assert run.influence.dataset["control_shuffled"].shape == shape
        assert any("gradient_product: it knows whole items" in w for w in run.manifest["warnings"])

    def test_float32_sums_agree_to_its_rounding(self):
        def single(tokens: Any) -> bif.Run:
            made = problem(tokens)
            return bif.attribute(
                bif.Problem(
                    bigrams().float(), bif.losses.next_token, train=made.train,
                    queries=texts(3, seed=5), tokens=tokens,
                ),
                replace(TINY, gradient="full"),
            )  # fmt: skip

        tokens, whole = single("both"), single(None)
        block = tokens.traces.blocks[0]
        sums = sums_of(
            block.train.double().numpy(), tokens.influence.dataset["train_item"].values, 2
        )
        # Each of at most 5 tokens is rounded once, the item's sum up to 5 times.
        largest = float(block.train.max())
        assert np.abs(sums - whole.traces.blocks[0].train.numpy()).max() < 50 * 2**-24 * largest


class TestRefusals:
    def test_tokens_without_a_mask_are_refused(self):
        with pytest.raises(ValueError, match=r"nothing says which tokens count: pass Items"):
            problem("train", train=texts(6, seed=1, token_mask=None))

    def test_a_loss_that_sums_tokens_is_refused(self):
        with pytest.raises(ValueError, match=r"returned shape \(3,\): expected one value a token"):
            bif.Problem(
                bigrams(), bif.losses.next_token_mean, train=texts(6, seed=1),
                queries=texts(3, seed=5), tokens="train",
            )  # fmt: skip

    def test_the_first_token_of_next_token_losses_is_refused(self):
        with pytest.raises(ValueError, match=r"set token_mask\[:, 0\] = False"):
            problem("train", train=texts(6, seed=1, token_mask=np.ones((6, WIDTH), bool)))

    def test_observables_of_different_tokens_are_refused(self):
        def every_token(model: Any, batch: Any) -> torch.Tensor:
            return model.embed(batch["input_ids"]).sum(dim=-1)

        observables = [
            bif.Observable("loss", bif.losses.next_token, "lower"),
            bif.Observable("size", every_token),
        ]
        mask = np.asarray(texts(3, seed=5).token_mask)
        with pytest.raises(ValueError, match="some observables have values of every token, others"):
            problem("query", queries=texts(3, seed=5, token_mask=mask), observables=observables)

    def test_an_unknown_side_is_refused(self):
        with pytest.raises(ValueError, match="tokens is 'all': expected one of train, query, both"):
            problem("all")

    @pytest.mark.parametrize(
        "mask", [np.ones((6, 3)), np.ones((5, 3), bool), np.zeros((6, 3), bool)]
    )
    def test_masks_of_another_shape_or_without_tokens_are_refused(self, mask):
        with pytest.raises(ValueError, match=r"token_mask must be bool \[6, T\] with at least one"):
            texts(6, seed=1, token_mask=mask)

    @pytest.mark.parametrize("pieces", [[["a"]] * 5, ["abc"] * 6])
    def test_pieces_that_are_no_lists_of_strings_are_refused(self, pieces):
        with pytest.raises(ValueError, match="tokens must be 6 lists of strings"):
            texts(6, seed=1, tokens=pieces)

    def test_a_mask_wider_than_its_batch_is_refused(self):
        class Cut(bif.Items):
            def batches(self, size: int) -> Any:
                for part, batch in self.chunks(size):
                    yield part, map_batch(lambda leaf: leaf[:, :4], batch)

        last = np.arange(WIDTH)[None].repeat(6, axis=0) == WIDTH - 1
        data: Any = texts(6, seed=1).data
        cut = Cut(data, token_mask=last)
        with pytest.raises(ValueError, match="a mask may hold tokens with a loss only"):
            bif.attribute(problem("train", train=cut), TINY)

    def test_more_scores_than_there_is_room_for(self, monkeypatch):
        monkeypatch.setattr("bif.runs.retention.MOST_SCORE_BYTES", 1000)
        message = (
            r"23 train tokens on 7 rows of queries would take 8.8 KiB, above 1e\+03 B: keep the "
            "strongest"
        )
        with pytest.raises(ValueError, match=message):
            bif.attribute(problem(), TINY)
        with pytest.raises(ValueError, match="would take 28.9 KiB"):
            bif.attribute(problem(), TINY, keep="sums")
        bif.attribute(problem(None), TINY)

    def test_responses_and_cross_checks_of_tokens_are_refused(self, runs):
        with pytest.raises(ValueError, match="a response knows whole items only.*by_item"):
            bif.respond(problem())
        with pytest.raises(ValueError, match="a cross-check knows whole items only"):
            bif.cross_check(problem(), runs["both"])
        assert problem().by_item().num_scored == 6


def test_items_on_another_device_keep_mask_and_text():
    items = texts(3, seed=5).to(torch.device("meta"))
    assert items.tokens is not None and items.token_mask is not None
    assert map_batch(lambda leaf: leaf, items.data)["input_ids"].device.type == "meta"
