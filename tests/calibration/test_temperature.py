"""The default of nbeta: the number of log-likelihoods that the train items' losses stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bif
from bif import losses
from bif.calibration.temperature import FAR, default_nbeta, distance_from_minimum, untempered
from bif.language.losses import CHUNKED, MEANS, SUMS
from bif.losses import per_item
from bif.problem.items import Items
from bif.types import Batch, ItemLoss
from small_problems import TINY, classification, integers, normal
from token_problems import VOCABULARY, bigrams, texts

PLAIN = bif.Settings(mass="identity")
"""No mass is measured, which takes longer than all else."""
X = torch.randn(512, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
Y = X.sum(dim=1) + torch.randn(512, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


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
    monkeypatch.setattr("bif.calibration.temperature._AT_ONCE", 2)
    problem = language(losses.next_token_mean, lengths=(2, 3, 6, 4, 2))
    assert untempered(problem)[0] == 1 + 2 + 5 + 3 + 1


@pytest.mark.parametrize("loss", [MEANS["causal"], MEANS["masked"], CHUNKED["mean"]])
def test_every_mean_of_the_library_says_of_how_many(loss):
    assert loss.averages(  # type: ignore[attr-defined]
        {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, 2, 3]])}
    ).tolist() == [2]


@pytest.mark.parametrize("loss", [*SUMS.values(), CHUNKED["sum"], losses.cross_entropy])
def test_no_other_loss_has_averages(loss):
    assert not hasattr(loss, "averages")


class TestSquaredErrors:
    def test_they_count_in_units_of_the_variance_of_targets(self):
        x, y = normal(40, 3, seed=0), normal(40, seed=1)
        model = torch.nn.Linear(3, 1).double()
        plain, scaled = (
            bif.Problem(model, losses.squared_error, train=(x, t), queries=(x[:2], t[:2]))
            for t in (y, 1000 * y + 1e6)
        )
        variance = float(y.var(correction=0))
        assert untempered(plain)[0] == pytest.approx(40 / variance, rel=1e-12)
        assert untempered(scaled)[0] == pytest.approx(40 / variance / 1e6, rel=1e-6)

    def test_targets_that_are_all_the_same_set_no_unit(self):
        x, y = normal(10, 3, seed=0), torch.ones(10).double()
        problem = bif.Problem(
            torch.nn.Linear(3, 1).double(), losses.squared_error, train=(x, y), queries=(x, y)
        )
        assert untempered(problem)[0] == 10


class TestCalibration:
    def test_takes_ten_times_that_at_a_minimum_and_says_so(self, monkeypatch):
        monkeypatch.setattr("bif.calibration.temperature.distance_from_minimum", lambda *_: 0.3)
        found = bif.calibrate(language(losses.next_token_mean), PLAIN)
        assert found.settings.nbeta == 160
        (line,) = [line for line in found.explanations if line.startswith("nbeta = ")]
        assert line.startswith("nbeta = 160: 10 times the 16 tokens") and "at a minimum" in line

    def test_calibration_takes_the_untempered_nbeta_where_training_stopped_short(self, monkeypatch):
        monkeypatch.setattr("bif.calibration.temperature.distance_from_minimum", lambda *_: 4.0)
        found = bif.calibrate(language(losses.next_token_mean), PLAIN)
        assert found.settings.nbeta == 16
        assert any("stopped short of a minimum" in line for line in found.explanations)

    def test_what_a_run_calls_no_minimum_is_not_called_one(self, monkeypatch):
        monkeypatch.setattr("bif.calibration.temperature.distance_from_minimum", lambda *_: 1.5)
        said = bif.calibrate(classification(), PLAIN).explanations
        assert any("stopped near a minimum (squared gradient 1.5" in line for line in said)

    def test_means_have_the_posterior_of_their_sums_where_lengths_are_equal(self):
        means, sums = (
            bif.calibrate(language(f), PLAIN).settings
            for f in (losses.next_token_mean, losses.next_token)
        )
        assert means.nbeta == 4 * sums.nbeta  # type: ignore[operator]
        assert means.gamma == pytest.approx(sums.gamma, rel=1e-3)  # by finite differences

    def test_calibration_leaves_a_given_nbeta(self):
        found = bif.calibrate(language(losses.next_token_mean), replace(PLAIN, nbeta=3.0))
        assert found.settings.nbeta == 3

    def test_takes_the_word_of_a_loss_of_ones_own(self):
        @losses.averages(lambda batch: torch.full((len(batch["input_ids"]),), 2))
        def halves(model: torch.nn.Module, batch: Batch) -> Tensor:
            return 0.5 * per_item(losses.next_token(model, batch))

        assert untempered(language(halves))[0] == 8


class TestDistanceFromAMinimum:
    """Of a linear regression, whose minimum is known."""

    def distance(self, weight: Tensor, *, decay: float = 0.0, rho: Tensor | None = None) -> float:
        model = torch.nn.Linear(3, 1, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(weight)
        problem = bif.Problem(
            model, losses.squared_error, train=(X, Y), queries=(X[:2], Y[:2]), train_weights=rho
        )
        return distance_from_minimum(
            problem, replace(PLAIN, oracle="stacked", chunk_size=64, weight_decay=decay)
        )

    @pytest.mark.parametrize("decay", [0.0, 0.5])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_it_is_none_at_the_minimum_and_grows_with_the_square_of_the_way(self, decay, weighted):
        rho = normal(len(X), seed=5).square() if weighted else torch.ones(len(X)).double()
        gram = (X * rho[:, None]).T @ X / len(X) + decay * torch.eye(3).double()
        best = torch.linalg.solve(gram, (X * rho[:, None]).T @ Y / len(X))
        given = {"decay": decay, "rho": rho if weighted else None}
        assert self.distance(best, **given) < 1e-3  # eight parts leave out n mod 8 items
        assert self.distance(best + 0.4, **given) > FAR
        # The gradient is linear in the way; the noise changes too, by a share of a small way.
        near, far = (self.distance(best + step, **given) for step in (0.01, 0.02))
        assert far / near == pytest.approx(4, rel=0.05)

    def test_of_some_of_many_items_it_is_that_of_all(self, monkeypatch):
        away = torch.full((3,), 3.0).double()
        # eight tell the noise within a third
        monkeypatch.setattr("bif.sampling.center_gradient._PARTS", 32)
        whole = self.distance(away)
        monkeypatch.setattr("bif.calibration.temperature._AT_ONCE", 128)
        assert whole > 10 * FAR and 0.5 < self.distance(away) / whole < 2


class TestRetraining:
    @pytest.mark.parametrize(
        ("where", "away", "nbeta"),
        [("scratch", 4.0, 5.0), ("scratch", 0.3, 200.0), ("checkpoint", 4.0, 800.0),
         ("checkpoint", 0.3, 800.0)],
    )  # fmt: skip
    def test_what_is_to_be_predicted_chooses_nbeta(self, monkeypatch, where, away, nbeta):
        monkeypatch.setattr("bif.calibration.temperature.distance_from_minimum", lambda *_: away)
        asked = replace(PLAIN, retrained_from=where, oracle="stacked", chunk_size=20)
        found, why = default_nbeta(classification(), asked)
        assert (found.nbeta, found.retrained_from) == (nbeta, None)
        assert why.endswith(f"for networks retrained from {where}")

    def test_calibration_takes_where_networks_are_retrained_from(self):
        found = bif.calibrate(classification(), replace(PLAIN, retrained_from="checkpoint"))
        assert found.settings.nbeta == 800 and found.settings.retrained_from is None

    def test_of_it_and_nbeta_one_is_given(self):
        with pytest.raises(ValueError, match="'scratch' chooses nbeta, and nbeta=3 is given"):
            bif.Settings(retrained_from="scratch", nbeta=3.0)

    def test_other_places_are_refused(self):
        with pytest.raises(ValueError, match="retrained_from is 'w0': expected one of scratch, ch"):
            bif.Settings(retrained_from="w0")  # type: ignore[arg-type]

    def test_a_run_keeps_the_reason(self):
        run = bif.attribute(classification(), replace(TINY, nbeta=None, retrained_from="scratch"))
        assert any("retrained from scratch" in line for line in run.manifest["explanations"])
