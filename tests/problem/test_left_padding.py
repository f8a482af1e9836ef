"""Rows padded on the left have the losses of their texts alone, or are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bif.language.linear_loss import chunked_next_token, chunked_next_token_mean
from bif.losses import counted_tokens, next_token, next_token_mean, per_item
from small_problems import TINY, filled, integers

pytest.importorskip("transformers", reason="the extra `lm` is not installed")
from language_cases import model

LENGTHS = (3, 6, 4, 6)
TEXTS = [integers(300, n, seed=n + i) + 10 for i, n in enumerate(LENGTHS)]
CAUSAL = ("gpt2", "llama", "neox")
LOSSES = {
    "sum": next_token,
    "mean": next_token_mean,
    "chunked": chunked_next_token,
    "chunked mean": chunked_next_token_mean,
}


def padded(side, **more):
    """The texts as rows [4, 7], each padded with token 0; the second on both sides."""
    ids, mask = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 7, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        start = 7 - len(text) if side == "left" else 0
        ids[row, start : start + len(text)], mask[row, start : start + len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask, **more}


def alone(made, text, loss):
    return per_item(loss(made, {"input_ids": text[None]}))[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_each_text_is_that_of_the_text_alone(side, kind, name):
    made, loss = model(kind), LOSSES[name]
    with torch.no_grad():
        found = per_item(loss(made, padded(side)))
        expected = torch.stack([alone(made, text, loss) for text in TEXTS])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # its softmax is float32
    assert counted_tokens(padded(side)).tolist() == [n - 1 for n in LENGTHS]


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize(
    ("oracle", "gradient"),
    [  # transformers looks at masks, which vmap over mini-batches cannot
        ("stacked", "full"),
        *((oracle, g) for oracle in ("sequential", "live") for g in ("full", "minibatch")),
    ],
)
def test_scores_are_those_of_rows_padded_on_the_right(kind, oracle, gradient):
    size = None if gradient == "full" else 2
    settings = replace(TINY, oracle=oracle, gradient=gradient, batch_size=size, gamma=50.0,
                       step_size=0.005)  # fmt: skip
    left, right = (
        bif.attribute(
            bif.Problem(model(kind), next_token, train=padded(side), queries=padded(side),
                        tied_weights="share"),
            settings,
        ).influence.dataset["influence"].values
        for side in ("left", "right")
    )  # fmt: skip
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-6 * np.abs(right).max())


def test_models_that_count_positions_from_the_padding_token_keep_their_own():
    from transformers import RobertaConfig, RobertaForCausalLM

    made = filled(
        RobertaForCausalLM(
            RobertaConfig(
                vocab_size=330, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
                intermediate_size=32, max_position_embeddings=24, pad_token_id=0, is_decoder=True,
            )
        ).eval(),
        scale=0.3,
    )  # fmt: skip
    with torch.no_grad():
        for side in ("left", "right"):
            found = next_token(made, padded(side)).sum(1)
            expected = torch.stack([alone(made, text, next_token) for text in TEXTS])
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Absolute(nn.Module):
    """Counts positions from the first column, and has no argument for others."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(320, 8), nn.Embedding(7, 8)
        self.map = nn.Linear(8, 320)

    def forward(self, input_ids, attention_mask=None):
        places = self.places(torch.arange(input_ids.shape[1]))
        return self.map(self.words(input_ids) + places)


@pytest.mark.parametrize("where", ["train", "queries", "candidates"])
def test_a_model_that_counts_columns_is_refused_left_padding(where):
    given = {"train": padded("right"), "queries": {"q": padded("right")}}
    bif.Problem(filled(Absolute()), next_token, **given)
    left = padded("left") if where == "train" else {"q": padded("left")}
    with pytest.raises(ValueError, match="padded on the left, .* item '0' is .*Pad on the right"):
        bif.Problem(filled(Absolute()), next_token, **{**given, where: left})


def test_a_loss_that_reads_padding_otherwise_is_left_alone():
    def last_token(model, batch):
        return model(batch["input_ids"])[:, -1, 0]

    data = padded("left")
    bif.Problem(filled(Absolute()), last_token, train=data, queries=data)


def test_masked_models_are_refused_left_padding_that_shifts_their_positions():
    from bif.language import masked_token

    made: Any = model("bert")
    data = padded("left")
    with torch.no_grad():
        made.bert.embeddings.position_embeddings.weight.mul_(30)
    labels = data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)
    with pytest.raises(ValueError, match="padded on the left"):
        bif.Problem(
            made, masked_token, train={**data, "labels": labels},
            queries={**data, "labels": labels}, tied_weights="share",
        )  # fmt: skip
