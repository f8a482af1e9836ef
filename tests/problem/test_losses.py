"""Per-item losses against closed forms, and language models from transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses
from bif.losses import at_least_float32, per_item
from bif.sampling.factory import make_oracle
from small_problems import TINY, filled, integers, labelled, network, normal

V, T = 11, 7


class Bigram(nn.Module):
    """Next-token logits from a table; returns logits, or an object with `.logits`."""

    def __init__(self, *, wrapped: bool = False) -> None:
        super().__init__()
        self.table = nn.Parameter(normal(V, V, seed=0))
        self.wrapped = wrapped

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        logits = self.table[ids]
        return type("Output", (), {"logits": logits})() if self.wrapped else logits


def token_batch() -> dict[str, Tensor]:
    """Four sequences of lengths 7, 5, 2 and 1, two of their labels masked."""
    ids = integers(V, 4, T, seed=1)
    mask = torch.zeros(4, T, dtype=torch.long)
    for row, length in enumerate((7, 5, 2, 1)):
        mask[row, :length] = 1
    labels = ids.clone()
    labels[0, 3] = -100
    labels[1, 1] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def counted_losses(table: Tensor, batch: dict[str, Tensor]) -> list[list[float]]:
    """Losses of the counted tokens of each sequence, one by one."""
    found: list[list[float]] = []
    for row in range(len(batch["input_ids"])):
        found.append([])
        for t in range(1, T):
            masked = batch["attention_mask"][row, t] == 0 if "attention_mask" in batch else False
            label = int(batch.get("labels", batch["input_ids"])[row, t])
            if masked or label == -100:
                continue
            logits = table[batch["input_ids"][row, t - 1]].tolist()
            found[-1].append(math.log(sum(math.exp(z) for z in logits)) - logits[label])
    return found


class TestClassification:
    def test_cross_entropy_is_minus_the_log_probability_of_the_label(self):
        model, (x, y) = network(), labelled(9, seed=5)
        p = model(x).exp() / model(x).exp().sum(dim=1, keepdim=True)
        expected = -p[torch.arange(9), y].log()
        torch.testing.assert_close(
            losses.cross_entropy(model, (x, y)), expected, rtol=0, atol=1e-12
        )

    def test_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes(self):
        zeros = nn.Linear(4, 3).double()
        nn.init.zeros_(zeros.weight)
        nn.init.zeros_(zeros.bias)
        got = losses.cross_entropy(zeros, labelled(6, seed=5))
        torch.testing.assert_close(got, torch.full_like(got, math.log(3)), rtol=0, atol=1e-14)

    def test_margin_is_the_log_odds_of_the_label(self):
        model, (x, y) = network(), labelled(9, seed=5)
        p = model(x).softmax(dim=1)[torch.arange(9), y]
        expected = (p / (1 - p)).log()
        torch.testing.assert_close(losses.margin(model, (x, y)), expected, rtol=0, atol=1e-12)

    def test_margin_of_two_classes_is_the_difference_of_logits(self):
        model, x = filled(nn.Linear(4, 2)), normal(5, 4, seed=3)
        logits = model(x)
        got = losses.margin(model, (x, torch.zeros(5, dtype=torch.long)))
        torch.testing.assert_close(got, logits[:, 0] - logits[:, 1], rtol=0, atol=1e-14)

    def test_margin_of_a_certain_label_stays_exact_where_the_probability_rounds_to_one(self):
        logits = torch.tensor([[50.0, 0.0, 0.0]], dtype=torch.float64)
        got = losses.margin(nn.Identity(), (logits, torch.tensor([0])))
        assert got.item() == pytest.approx(50 - math.log(2), abs=1e-12)


class TestSquaredError:
    def test_single_output_is_half_the_squared_residual(self):
        model, x, y = filled(nn.Linear(4, 1)), normal(6, 4, seed=0), normal(6, seed=1)
        expected = torch.stack([0.5 * (y[i] - model(x[i])[0]) ** 2 for i in range(6)])
        got = losses.squared_error(model, (x, y))
        assert got.shape == (6,)  # outputs [6, 1] against targets [6] must not broadcast
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)

    def test_several_outputs_are_summed(self):
        model, x, y = filled(nn.Linear(4, 3)), normal(6, 4, seed=0), normal(6, 3, seed=1)
        expected = 0.5 * ((y - model(x)) ** 2).sum(dim=1)
        torch.testing.assert_close(
            losses.squared_error(model, (x, y)), expected, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("wrapped", [False, True], ids=["logits", "output object"])
class TestNextToken:
    @pytest.mark.parametrize("keys", ["", "attention_mask", "labels", "attention_mask labels"])
    def test_tokens_equal_a_loop_over_sequences(self, keys, wrapped):
        full = token_batch()
        batch = {k: full[k] for k in ("input_ids", *keys.split())}
        model = Bigram(wrapped=wrapped)
        expected = counted_losses(model.table.detach(), batch)
        got = losses.next_token(model, batch)
        assert got.shape == (4, T - 1)
        for row, tokens in enumerate(expected):
            assert sorted(got[row][got[row] != 0].tolist()) == pytest.approx(
                sorted(tokens), abs=1e-12
            )
        sums = [sum(tokens) for tokens in expected]
        assert per_item(got).tolist() == pytest.approx(sums, abs=1e-12)

    def test_the_mean_is_over_counted_tokens_and_0_without_any(self, wrapped):
        batch, model = token_batch(), Bigram(wrapped=wrapped)
        expected = [
            sum(t) / len(t) if t else 0.0 for t in counted_losses(model.table.detach(), batch)
        ]
        assert losses.next_token_mean(model, batch).tolist() == pytest.approx(expected, abs=1e-12)
        assert expected[3] == 0.0


def test_token_losses_are_summed_and_item_losses_kept():
    tokens = normal(3, 4, seed=0)
    assert torch.equal(per_item(tokens), tokens.sum(dim=1))
    assert torch.equal(per_item(tokens[:, 0]), tokens[:, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_widened_to_float32_and_never_narrowed(dtype):
    wide = at_least_float32(torch.zeros(2, dtype=dtype)).dtype
    assert wide == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_presets_keep_float64_and_widen_bfloat16():
    x, y = labelled(4, seed=0)
    ids = {"input_ids": integers(V, 2, 3, seed=0)}
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        model, table = network().to(dtype), Bigram().to(dtype)
        for loss in (losses.cross_entropy, losses.margin):
            assert loss(model, (x.to(dtype), y)).dtype == expected
        assert losses.next_token(table, ids).dtype == expected


class TestTransformers:
    """A tiny GPT-2 from its configuration: nothing is downloaded."""

    @pytest.fixture
    def model(self) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=V, n_positions=16, n_embd=8, n_layer=1, n_head=2,
            resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return filled(transformers.GPT2LMHeadModel(config), scale=0.3)

    def problem(self, model: nn.Module, **given: Any) -> bif.Problem:
        batch = token_batch()
        first = {k: v[:2] for k, v in batch.items()}
        return bif.Problem(
            model, losses.next_token, train=batch, queries={"all": batch, "two": first}, **given
        )

    def test_tied_embeddings_are_refused_by_default(self, model):
        with pytest.raises(ValueError, match=r"tied weights: 'lm_head.weight' and 'transformer"):
            self.problem(model)

    @pytest.mark.parametrize("named", [losses.next_token, losses.next_token_mean])
    @pytest.mark.parametrize("kind", ["tensor", "pair", "dict"])
    def test_another_batch_than_texts_is_told_what_they_are(self, model, named, kind):
        ids = integers(V, 3, 5, seed=0)
        data = {"tensor": ids, "pair": (ids, ids[:, 0]), "dict": {"tokens": ids}}[kind]
        with pytest.raises(ValueError, match="read token ids.*'input_ids'.*Sequences") as raised:
            bif.Problem(model, named, train=data, queries=data, tied_weights="share")
        assert "Labels of classes" not in str(raised.value)

    @pytest.mark.parametrize("named", [losses.cross_entropy, losses.margin, losses.squared_error])
    def test_texts_for_a_loss_of_pairs_are_told_so(self, model, named):
        with pytest.raises(ValueError, match=r"reads \(inputs, targets\).*a dict of 'input_ids'"):
            bif.Problem(
                model, named, train=token_batch(), queries={"all": token_batch()},
                tied_weights="share",
            )  # fmt: skip

    @pytest.mark.parametrize("named", [losses.cross_entropy, losses.margin, losses.squared_error])
    def test_a_model_that_returns_no_tensor_is_told_what_to_write(self, model, named):
        pair = (integers(V, 3, 5, seed=0), integers(V, 3, seed=1))
        with pytest.raises(ValueError, match=r"returns a CausalLM.* with logits.*loss of your own"):
            bif.Problem(model, named, train=pair, queries=pair, tied_weights="share")

    def test_labels_out_of_range_are_still_told_what_labels_are(self):
        x, y = labelled(4, seed=0)
        with pytest.raises(ValueError, match="Labels of classes must be int64"):
            bif.Problem(network(), losses.cross_entropy, train=(x, y.float()), queries=(x, y))

    def test_padding_does_not_change_an_items_loss(self, model):
        model = model.eval()
        batch = token_batch()
        whole = per_item(losses.next_token(model, batch))
        for row, length in enumerate((7, 5, 2)):
            alone = {k: v[row : row + 1, :length] for k, v in batch.items()}
            single = per_item(losses.next_token(model, alone))
            torch.testing.assert_close(single[0], whole[row], rtol=0, atol=1e-10)
        assert whole[3] == 0  # one token: nothing to predict

    def test_shared_weights_move_as_one_and_get_both_gradients(self, model):
        problem = self.problem(model, tied_weights="share")
        names = list(problem.center())
        assert "lm_head.weight" not in names and "transformer.wte.weight" in names
        oracle = make_oracle(problem, bif.Settings(oracle="sequential", chunk_size=4), names)
        params = {n: p[None] for n, p in problem.center().items()}
        gradient, _ = oracle.gradient(
            params, token_batch(), torch.ones(4, dtype=torch.float64), per_chain=False
        )
        plain = problem.evaluation_copy(torch.device("cpu")).requires_grad_()
        losses.next_token(plain, token_batch()).sum().backward()
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(gradient[name][0], parameter.grad, rtol=1e-10, atol=1e-12)

    def test_a_run_of_transformers_goes_from_end_to_end(self, model):
        settings = bif.Settings(**{**TINY.as_dict(), "gamma": 500.0, "chains": 2})  # type: ignore[arg-type]
        run = bif.attribute(self.problem(model, tied_weights="share"), settings)
        assert run.influence.dataset["influence"].shape == (1, 6, 4)
        assert run.influence.dataset["query_id"].values[-1] == "two/1"
        # The item without a token to predict has a constant loss: exactly no influence.
        assert (run.influence.dataset["influence"].values[:, :, 3] == 0).all()
        assert (run.influence.dataset["correlation"].values[:, :, 3] == 0).all()
