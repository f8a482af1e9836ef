"""The default of nbeta: the number of log-likelihoods that the train items' losses stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bif
from bif import losses
from bif.items import Items
from bif.language.losses import CHUNKED, MEANS, SUMS
from bif.losses import per_item
from bif.temperature import untempered
from bif.types import Batch, ItemLoss
from small_problems import TINY, classification, integers
from token_problems import VOCABULARY, bigrams, texts

PLAIN = bif.Settings(mass="identity")
"""No mass is measured, which takes longer than all else."""


def language(loss: ItemLoss, *, lengths: tuple[int, ...] = (5, 5, 5, 5)) -> bif.Problem:
    """Texts of so many tokens, the first of which does not count."""
    ids = integers(VOCABULARY, len(lengths), max(lengths), seed=3)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    items = Items({"input_ids": ids, "attention_mask": mask})
    return bif.Problem(
        bigrams(), loss, train=items, queries=texts(3, seed=5),
        observables=[bif.Observable("loss", loss, "lower")],
    )  # fmt: skip


def test_items_whose_loss_is_their_own_log_likelihood_count_once():
    nbeta, why = untempered(classification())
    assert nbeta == 20 and why.startswith("the number of train items")
    assert untempered(language(losses.next_token))[0] == 4


def test_it_makes_the_mean_of_means_the_log_likelihood_of_all_tokens():
    means, sums = (language(f) for f in (losses.next_token_mean, losses.next_token))
    nbeta, why = untempered(means)
    mean_loss = means.loss(means.model, means.train.first(4)).mean().detach()
    whole = per_item(sums.loss(sums.model, sums.train.first(4))).sum().detach()
    assert nbeta == 16 and "16 tokens" in why
    assert float(nbeta * mean_loss) == pytest.approx(float(whole), rel=1e-12)


def test_tokens_that_do_not_count_are_not_counted_and_chunks_add_up(monkeypatch):
    monkeypatch.setattr("bif.temperature._AT_ONCE", 2)
    problem = language(losses.next_token_mean, lengths=(2, 3, 6, 4, 2))
    assert untempered(problem)[0] == 1 + 2 + 5 + 3 + 1


@pytest.mark.parametrize("loss", [MEANS["causal"], MEANS["masked"], CHUNKED["mean"]])
def test_every_mean_of_the_library_says_of_how_many(loss):
    assert loss.averages(  # type: ignore[attr-defined]
        {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, 2, 3]])}
    ).tolist() == [2]


@pytest.mark.parametrize("loss", [*SUMS.values(), CHUNKED["sum"], losses.cross_entropy])
def test_and_no_other_loss_does(loss):
    assert not hasattr(loss, "averages")


class TestCalibration:
    def test_takes_it_and_says_so(self):
        found = bif.calibrate(language(losses.next_token_mean), PLAIN)
        assert found.settings.nbeta == 16
        assert any(line.startswith("nbeta = 16: the 16 tokens") for line in found.explanations)

    def test_means_have_the_posterior_of_their_sums_where_lengths_are_equal(self):
        means, sums = (
            bif.calibrate(language(f), PLAIN).settings
            for f in (losses.next_token_mean, losses.next_token)
        )
        assert means.nbeta == 4 * sums.nbeta  # type: ignore[operator]
        assert means.gamma == pytest.approx(sums.gamma, rel=1e-3)  # by finite differences

    def test_leaves_what_is_given(self):
        found = bif.calibrate(language(losses.next_token_mean), replace(PLAIN, nbeta=3.0))
        assert found.settings.nbeta == 3

    def test_takes_the_word_of_a_loss_of_ones_own(self):
        @losses.averages(lambda batch: torch.full((len(batch["input_ids"]),), 2))
        def halves(model: torch.nn.Module, batch: Batch) -> Tensor:
            return 0.5 * per_item(losses.next_token(model, batch))

        assert bif.calibrate(language(halves), PLAIN).settings.nbeta == 8


class TestRetraining:
    @pytest.mark.parametrize(("where", "nbeta"), [("scratch", 5.0), ("checkpoint", 80.0)])
    @pytest.mark.parametrize("budget", [None, 20.0])
    def test_what_is_to_be_predicted_chooses_nbeta(self, where, nbeta, budget):
        asked = replace(PLAIN, retrained_from=where, budget=budget)
        found = bif.calibrate(classification(), asked)
        assert found.settings.nbeta == nbeta and found.settings.retrained_from is None
        (line,) = [line for line in found.explanations if line.startswith("nbeta = ")]
        assert line.endswith(f"for networks retrained from {where}")

    def test_warmer_is_a_wider_ball_and_colder_the_same(self):
        usual, warm, cold = (
            bif.calibrate(classification(), replace(PLAIN, retrained_from=where)).settings
            for where in (None, "scratch", "checkpoint")
        )
        assert usual.gamma is not None
        assert warm.gamma == pytest.approx(usual.gamma / 4, rel=1e-12)
        assert cold.gamma == pytest.approx(usual.gamma, rel=1e-12)

    def test_it_counts_from_the_tokens_of_means(self):
        asked = replace(PLAIN, retrained_from="checkpoint")
        assert bif.calibrate(language(losses.next_token_mean), asked).settings.nbeta == 64

    def test_of_it_and_nbeta_one_is_given(self):
        with pytest.raises(ValueError, match="'scratch' chooses nbeta, and nbeta=3 is given"):
            bif.Settings(retrained_from="scratch", nbeta=3.0)

    def test_other_places_are_refused(self):
        with pytest.raises(ValueError, match="retrained_from is 'w0': expected one of scratch, ch"):
            bif.Settings(retrained_from="w0")  # type: ignore[arg-type]

    def test_a_run_keeps_the_reason(self):
        run = bif.attribute(classification(), replace(TINY, nbeta=None, retrained_from="scratch"))
        assert any("retrained from scratch" in line for line in run.manifest["explanations"])
