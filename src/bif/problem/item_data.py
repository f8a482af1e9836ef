"""Checks of data that are handed over as items, with what to pass instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from bif.types import Batch

Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of items."""
_MAX_SHOWN = 3
"""Shapes that a message lists."""


class MapStyle(Dataset[Any]):
    """A `Dataset` around what has a length and items, such as a `datasets.Dataset`."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> Any:
        return self.source[position]


def as_data(data: Any) -> Batch | Dataset[Any]:
    """Return the data themselves, or a `Dataset` around what has a length and items.

    Raises:
        TypeError: None of what items may be, with what to pass instead.
    """
    if isinstance(data, Dataset | Tensor | Mapping | tuple | list):
        return data
    kind = f"{type(data).__module__.partition('.')[0]}.{type(data).__name__}"
    if isinstance(data, str | bytes | Path):
        raise TypeError(
            f"items are a {type(data).__name__}, {str(data)[:60]!r}: read them, and pass tensors "
            "or a Dataset. Texts for a language model: bif.language.read_documents."
        )
    if isinstance(data, np.ndarray) or hasattr(data, "iloc"):
        columns = "x" if isinstance(data, np.ndarray) else "frame[columns].to_numpy()"
        raise TypeError(
            f"items are a {kind}: pass tensors, torch.as_tensor({columns}), as a tuple or dict "
            "where there are inputs and targets."
        )
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return MapStyle(data)
    if hasattr(data, "__iter__"):
        raise TypeError(
            f"items are a {kind}, an iterable Dataset or iterator, which has no length and no "
            "order to score by: wrap it in a Dataset with __len__ and __getitem__."
        )
    raise TypeError(
        "a batch must be a tensor, or a tuple, list or dict of tensors, or a Dataset with __len__ "
        f"and __getitem__; got {kind}."
    )


def of_loader(loader: DataLoader[Any]) -> tuple[Dataset[Any], Collate | None]:
    """Return the dataset of a loader, in its own order, and its function that collates, if any.

    Batches, shuffling and workers are left behind.

    Raises:
        TypeError: The loader draws some items only, or some more often: the items are not all of
            the dataset's then.
    """
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler)
        and len(sampler) == len(loader.dataset)  # pyright: ignore[reportArgumentType]
    )
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        sampler, whole = loader.batch_sampler, False
    if not whole and not isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"items are a DataLoader with a {type(sampler).__name__}, which may draw some items "
            "only, or some more often: pass the items that training saw, such as "
            "torch.utils.data.Subset(loader.dataset, indices)."
        )
    own = loader.collate_fn is not default_collate and loader.batch_size is not None
    return loader.dataset, loader.collate_fn if own else None


def collate(rows: Sequence[Any], names: Sequence[str], function: Collate | None = None) -> Batch:
    """Return items of a Dataset as a batch.

    Args:
        rows: The items.
        names: Their ids.
        function: That collates; torch's own by default.

    Raises:
        TypeError, ValueError: Items that are no tensors or cannot be stacked, by name; a batch of
            `function` that has not one entry an item.
    """
    if function is not None:
        return _collated(rows, function)
    try:
        return default_collate(list(rows))
    except (TypeError, ValueError, RuntimeError, KeyError):
        refuse_rows(rows, names)
        raise


def _collated(rows: Sequence[Any], function: Collate) -> Batch:
    batch = function(list(rows))
    for path, value in _fields(batch):
        if not isinstance(value, Tensor) or value.shape[:1] != (len(rows),):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value)
            raise ValueError(
                f"collate_fn made {path} with {got} of {len(rows)} items: expected tensors whose "
                "first axis is the items, in a tuple or dict (batch_first=True where sequences are "
                "padded)."
            )
    return batch


def refuse_rows(rows: Sequence[Any], names: Sequence[str]) -> None:
    """Raise unless items are tensors, arrays or numbers of one structure and shape."""
    first: dict[str, tuple[int, ...]] = {}
    for row, name in zip(rows, names, strict=True):
        shapes = {path: _shape(value, path, name) for path, value in _fields(row)}
        first = first or shapes
        if shapes.keys() != first.keys():
            raise ValueError(
                f"items {names[0]!r} and {name!r} have other fields: {', '.join(first)}, and "
                f"{', '.join(shapes) or 'none'}. Every item needs the same."
            )
        for path, shape in shapes.items():
            if shape != first[path]:
                raise ValueError(
                    f"items {names[0]!r} and {name!r} have other shapes in {path}: {first[path]} "
                    f"and {shape}. Pad them to one, with an attention_mask that the loss reads; "
                    "texts: bif.language.Sequences, or bif.language.language_problem."
                )


def refuse_uneven(leaves: Mapping[str, Tensor]) -> None:
    """Raise unless every tensor has the same leading axis, one entry an item."""
    sizes = {path: tuple(leaf.shape[:1]) for path, leaf in leaves.items()}
    if len(set(sizes.values())) == 1 and next(iter(sizes.values())):
        return
    shown = [f"{path}: {tuple(leaves[path].shape)}" for path in list(sizes)[:_MAX_SHOWN]]
    more = f" and {len(sizes) - _MAX_SHOWN:,} more" if len(sizes) > _MAX_SHOWN else ""
    hint = ""
    if len(sizes) > _MAX_SHOWN:
        hint = (
            " A list of items one by one becomes a batch by torch.utils.data.default_collate, "
            "where their shapes are the same; pad them else."
        )
    raise ValueError(
        "every tensor needs the same leading axis, one entry an item; got "
        f"{', '.join(shown) or 'none'}{more}.{hint}"
    )


def _fields(row: Any, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """Yield the parts of an item with their paths in batches."""
    if isinstance(row, Mapping):
        for key, value in row.items():
            yield from _fields(value, f"{path}[{key!r}]")
    elif isinstance(row, tuple) or (isinstance(row, list) and not _is_numbers(row)):
        for position, value in enumerate(row):
            yield from _fields(value, f"{path}[{position}]")
    else:
        yield path, row


def _is_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, Number | list) for value in values)


def _shape(value: Any, path: str, name: str) -> tuple[int, ...]:
    """Return the shape of a field of an item.

    Raises:
        TypeError: It is no tensor, array or number.
    """
    if isinstance(value, Tensor | np.ndarray):
        if isinstance(value, Tensor) or value.dtype.kind in "biufc":
            return tuple(value.shape)
    elif isinstance(value, Number | np.generic):
        return ()
    what = f"{path} of item {name!r} is"
    if isinstance(value, str | bytes | np.ndarray):
        raise TypeError(
            f"{what} text: items are tensors. Leave the column out (of a datasets.Dataset "
            "remove_columns does), or turn it into tensors; Items keeps texts to show by "
            "about={name: texts}."
        )
    if isinstance(value, list):
        raise TypeError(
            f"{what} a list of numbers: return a tensor. A datasets.Dataset does so by "
            "dataset.with_format('torch')."
        )
    raise TypeError(
        f"{what} a {type(value).__name__}: expected a tensor, an array or a number. Convert it in "
        "the Dataset's __getitem__, or by its transform."
    )
