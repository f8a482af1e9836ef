"""Sequences: evaluated by length, in results the items' own order."""

from __future__ import annotations

import pytest
import torch

import bif
from bif.language import Sequences
from bif.sampling.gradients import FullGradient
from bif.sampling.observe import observe
from bif.sampling.oracles import LiveOracle, SequentialOracle, StackedOracle
from small_problems import filled, integers, normal

LENGTHS = [3, 17, 1, 30, 9, 9, 2, 25, 31, 4]


class Words(torch.nn.Module):
    """A running sum of embeddings, then logits: what comes before a token decides its loss."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(11, 4), torch.nn.Linear(4, 11)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens).cumsum(dim=-2)))


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        return filled(Words()).eval()


def rows(lengths=LENGTHS, width=32):
    tokens = integers(11, len(lengths), width, seed=1)
    padding = torch.arange(width) >= torch.tensor(lengths)[:, None]
    return {"input_ids": tokens, "labels": tokens.masked_fill(padding, -100)}


def sequences(lengths=LENGTHS):
    return Sequences(rows(lengths), lengths=lengths, ids=[f"s{i}" for i in range(len(lengths))])


def chains(model):
    return {
        n: torch.stack([p.detach() + 0.1 * normal(*p.shape, seed=c) for c in range(3)])
        for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
def test_values_are_those_of_padded_items_in_the_same_order(model, size):
    oracle, params = StackedOracle(model, bif.losses.next_token), chains(model)
    padded = observe(oracle, bif.losses.next_token, params, bif.Items(rows()), chunk_size=10)
    got = observe(oracle, bif.losses.next_token, params, sequences(), chunk_size=size)
    torch.testing.assert_close(got, padded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [StackedOracle, SequentialOracle])
def test_gradients_and_their_losses_are_those_of_padded_items(model, kind):
    oracle, params = kind(model, bif.losses.next_token), chains(model)
    weights = torch.linspace(0.1, 2, len(LENGTHS), dtype=torch.float64)
    expected, got = (
        FullGradient(oracle, items, chunk_size=size, train_weights=weights)(params, 0)
        for items, size in ((bif.Items(rows()), 10), (sequences(), 3))
    )
    for name, leaf in expected.gradient.items():
        torch.testing.assert_close(got.gradient[name], leaf, rtol=0, atol=1e-12)
    assert expected.losses is not None and got.losses is not None
    torch.testing.assert_close(got.losses, expected.losses, rtol=0, atol=1e-12)


def test_the_live_oracle_gives_the_same_gradient(model):
    names = [name for name, _ in model.named_parameters()]
    oracle = LiveOracle(model, bif.losses.next_token, names=names, micro_batch=3)
    weights = torch.ones(len(LENGTHS), dtype=torch.float64)
    expected, got = (
        FullGradient(oracle, items, chunk_size=10, train_weights=weights)(oracle.live_params(), 0)
        for items in (bif.Items(rows()), sequences())
    )
    for name, leaf in expected.gradient.items():
        torch.testing.assert_close(got.gradient[name], leaf, rtol=0, atol=1e-12)


def test_batches_hold_every_item_once_and_little_padding():
    items, seen, cells = sequences(), [], 0
    for positions, batch in items.batches(3):
        assert isinstance(positions, torch.Tensor)
        seen += positions.tolist()
        cells += batch["input_ids"].numel()
        longest = int(items.lengths[positions].max())
        assert longest <= batch["input_ids"].shape[1] < longest + 8
    assert sorted(seen) == list(range(len(LENGTHS)))
    assert items.lengths[seen].tolist() == sorted(LENGTHS, reverse=True)
    assert cells == 3 * 32 + 3 * 24 + 3 * 8 + 1 * 8


def test_chunks_and_minibatches_are_cut_and_the_first_items_are_not():
    items = sequences()
    assert [b["labels"].shape[1] for _, b in items.chunks(4)] == [32, 32, 32]
    assert [b["labels"].shape[1] for _, b in items.chunks(1)][:4] == [8, 24, 8, 32]
    one = items.take(torch.tensor([[0, 2], [4, 5]]))["input_ids"]
    assert one.shape == (2, 2, 16)
    assert torch.equal(one[1, 0, :9], rows()["input_ids"][4, :9])
    assert items.first(2)["input_ids"].shape == (2, 32)


def test_a_run_of_sequences_is_the_run_of_padded_items(model):
    settings = bif.Settings(
        chains=2, draws=4, burn_in=2, thin=1, step_size=0.01, friction=2.0, gamma=5.0, chunk_size=4
    )
    runs = [
        bif.attribute(
            bif.Problem(model, bif.losses.next_token, train=train, queries=query), settings
        )
        for train, query in ((rows(), rows(LENGTHS[:4])), (sequences(), sequences(LENGTHS[:4])))
    ]
    expected, got = (run.influence.dataset["influence"].values for run in runs)
    # The order of sums differs, and seven steps hardly multiply the last bit.
    assert abs(got - expected).max() < 1e-12
    assert runs[1].influence.dataset["train_id"].values.tolist()[:2] == ["s0", "s1"]


def test_it_moves_as_what_it_is():
    moved = sequences().to(torch.device("cpu"))
    assert isinstance(moved, Sequences) and len(moved.lengths) == len(LENGTHS)


@pytest.mark.parametrize("lengths", [[3, 4], [0, *LENGTHS[1:]], [33, *LENGTHS[1:]]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be 10 numbers from 1 to 32.*; got"):
        Sequences(rows(), lengths=lengths)


def test_padding_that_counts_is_refused(model):
    data = rows()
    bare = Sequences({"input_ids": data["input_ids"]}, lengths=LENGTHS)
    with pytest.raises(ValueError, match="alone and .* its padding on train.*'labels' of -100"):
        bif.Problem(model, bif.losses.next_token, train=bare, queries=bare)


def test_what_is_known_of_items_is_kept_with_the_scores(model):
    data, about = rows(), {"source": list("abcdefghij")}
    train = Sequences(data, lengths=LENGTHS, about=about)
    settings = bif.Settings(
        chains=2, draws=2, burn_in=0, thin=1, step_size=0.01, friction=2.0, gamma=5.0
    )
    problem = bif.Problem(model, bif.losses.next_token, train=train, queries=sequences())
    dataset = bif.attribute(problem, settings).influence.dataset
    assert dataset["train_source"].values.tolist() == list("abcdefghij")
    assert "query_source" not in dataset
