"""Items of a DataLoader, and of a Dataset with a collate function of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bif
from small_problems import TINY, classification, labelled

LENGTHS = (3, 5, 2, 4, 5, 3, 1, 4)


class Sequences(Dataset[Any]):
    """Sequences of different lengths with their class."""

    def __init__(self, first: int = 0) -> None:
        make = torch.Generator().manual_seed(first)
        self.rows = [(torch.randn(n, 2, generator=make), i % 2) for i, n in enumerate(LENGTHS)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.rows[position]


def padded(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A batch as wide as its longest sequence."""
    return {
        "x": pad_sequence([x for x, _ in rows], batch_first=True),
        "length": torch.tensor([len(x) for x, _ in rows]),
        "y": torch.tensor([y for _, y in rows]),
    }


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        last = (length - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return self.head(states.gather(1, last)[:, 0])


def loss(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch["x"], batch["length"])
    return nn.functional.cross_entropy(logits, batch["y"], reduction="none")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrent()


@pytest.mark.filterwarnings("error:.*batching rule", "error:RNN module weights")
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("chunk_size", [8, 3])
def test_an_lstm_with_its_own_collate_function_has_the_scores_of_one_padded_batch(
    model, chunk_size
):
    """Whatever width the passes have; and torch says nothing that a user could not act upon."""
    data, queries = Sequences(), Sequences(1)
    settings = bif.Settings(**{**TINY.as_dict(), "chunk_size": chunk_size})
    whole = bif.Problem(model, loss, train=padded(data.rows), queries=padded(queries.rows))
    loader = DataLoader(data, batch_size=2, shuffle=True, collate_fn=padded)
    by_rows = bif.Problem(
        model, loss, train=loader, queries=bif.Items(queries, collate_fn=padded)
    )  # fmt: skip
    found, expected = (
        bif.attribute(p, settings).influence.dataset["influence"].values for p in (by_rows, whole)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_loader_is_read_in_the_order_of_its_dataset():
    x, y = labelled(20, seed=1)
    loader = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True, drop_last=True)
    torch.testing.assert_close(bif.Items(loader).take(torch.arange(20)), (x, y))
    assert classification(train=loader).num_train == 20


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda rows: pad_sequence([x for x, _ in rows]),
            r"made batch with shape \(5, 8, 2\) of 8",
        ),
        (lambda rows: {"y": [y for _, y in rows]}, r"batch\['y'\] with <class 'list'>"),
    ],
)
def test_a_batch_without_an_entry_for_each_item_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        bif.Items(Sequences(), collate_fn=function)


def test_a_collate_function_of_tensors_is_refused():
    with pytest.raises(TypeError, match="data is a Tensor, which is a batch already"):
        bif.Items(torch.zeros(3, 2), collate_fn=padded)
