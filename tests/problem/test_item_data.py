"""Items as users have them: taken where they can be, else refused with what to pass instead."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import bif
from small_problems import TINY, integers, labelled, network

IDS = integers(20, 12, 5, seed=1)


class Rows:
    """A dataset by duck typing alone."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, position):
        return self.rows[position]


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 20)

    def forward(self, input_ids, attention_mask=None):
        return self.words(input_ids)


def shown(message):
    assert len(message) < 500, message
    return message


def test_a_dataset_by_duck_typing_gives_the_scores_of_its_tensors():
    x, y = labelled(20, seed=1)
    rows = Rows([(x[i], int(y[i])) for i in range(20)])
    queries = labelled(4, seed=2)
    runs = [
        bif.attribute(
            bif.Problem(network(), bif.losses.cross_entropy, train=train, queries=queries), TINY
        )
        for train in (rows, (x, y))
    ]
    np.testing.assert_array_equal(
        *(run.influence.dataset["influence"].values for run in runs)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("columns", [["input_ids"], ["input_ids", "attention_mask"]])
def test_data_sets_of_hugging_face_are_items_in_torch_format(columns):
    datasets = pytest.importorskip("datasets", reason="the extra `lm` is not installed")
    plain = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    made = datasets.Dataset.from_dict({name: plain[name].tolist() for name in columns})
    problem = bif.Problem(
        Words(),
        bif.losses.next_token,
        train=made.with_format("torch"),
        queries=UserDict({name: plain[name][:2] for name in columns}),  # as a BatchEncoding
    )
    for name in columns:
        assert torch.equal(problem.train.take(torch.arange(12))[name], plain[name])
    with pytest.raises(TypeError, match=r"'input_ids'\] of item '0' is a list.*with_format"):
        bif.Items(made)
    with pytest.raises(TypeError, match=r"'text'\] of item '0' is text.*column.*remove_columns"):
        bif.Items(made.add_column("text", ["t"] * 12).with_format("torch"))


def test_queries_of_a_dataset_of_dicts_may_be_one_dict_of_tensors():
    train = Rows([{"input_ids": row} for row in IDS])
    problem = bif.Problem(
        Words(), bif.losses.next_token, train=train, queries={"input_ids": IDS[:2]}
    )
    assert list(problem.query_groups) == ["query"]


X, Y = labelled(8, seed=1)
REFUSED = {
    "loader of some": (DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([1, 2])),
                       "DataLoader with a SubsetRandomSampler.*pass the items that training saw"),
    "loader of some twice": (
        DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 8, 8)),
        "DataLoader with a WeightedRandomSampler",
    ),
    "path": (Path("train.pt"), "items are a PosixPath, 'train.pt': read them"),
    "text": ("train.jsonl", "items are a str, 'train.jsonl': read them"),
    "array": (X.numpy(), r"numpy.ndarray: pass tensors, torch.as_tensor\(x\)"),
    "arrays": ((X.numpy(), Y), r"batch\[0\] must be a tensor.*torch.as_tensor of it"),
    "text column": ({"x": X, "text": ["a"] * 8}, r"batch\['text'\]\[0\] must.*text column is to"),
    "generator": ((x for x in X), "no length and no order"),
    "number": (3, "got builtins.int"),
    "ragged list": ([X[:n] for n in range(1, 61)],
                    r"same leading axis.*\[2\]: \(3, 4\) and 57 more.*default_collate"),
    "pairs": ([(x, y) for x, y in zip(X, Y, strict=True)], "default_collate"),
    "ragged rows": (Rows([torch.zeros(n) for n in (3, 3, 5)]),
                    r"items '0' and '2' have other shapes in batch: \(3,\) and \(5,\). Pad"),
    "other fields": (Rows([{"x": X[0]}, {"x": X[0], "y": Y[0]}]), "'0' and '1' have other fields"),
    "text rows": (Rows([{"x": X[0], "text": "t"}]), r"batch\['text'\] of item '0' is text"),
    "lists": (Rows([([1, 2, 3], 0)]), r"batch\[0\] of item '0' is a list of numbers"),
    "nothing": (Rows([(X[0], None)]), r"batch\[1\] of item '0' is a NoneType: expected a tensor"),
    "objects": (Rows([(object(), 1)]), r"batch\[0\] of item '0' is a object: expected a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_in_few_words_that_say_what_to_pass(name):
    data, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        bif.Items(data)
    shown(str(caught.value))


def test_ragged_items_far_from_the_first_are_named_before_anything_is_chosen():
    rows = Rows([{"input_ids": IDS[0]}] * 200 + [{"input_ids": IDS[0, :3]}])
    read = [int(i) for i in torch.linspace(0, 200, 16)]
    rows.rows[200], rows.rows[199] = rows.rows[199], rows.rows[200]
    assert 199 not in read
    problem = bif.Problem(
        Words(), bif.losses.next_token, train=rows, queries={"input_ids": IDS[:2]}
    )
    with pytest.raises(ValueError, match=r"and '199' have other shapes in batch\['input_ids'\]"):
        bif.attribute(problem, bif.Settings(chains=2, draws=4, chunk_size=50))


def test_items_of_images_say_where_to_convert_them():
    image = pytest.importorskip("PIL.Image").new("L", (4, 4))
    with pytest.raises(TypeError, match="a Image: .*Convert it in the Dataset's __getitem__"):
        bif.Items(Rows([(image, 1)]))
