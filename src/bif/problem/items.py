"""Items that are scored, as tensors, dicts of tensors or a `Dataset`, with their identities."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bif.problem.item_data import Collate, as_data, collate, of_loader, refuse_rows, refuse_uneven
from bif.problem.weights import widen
from bif.types import Batch

_MAX_LENGTH = 10_000
"""Characters of the longest id or label."""
_NUM_READ_TWICE = 16
"""Items of a Dataset, evenly spread, that are read twice."""
_RESERVED_NAMES = {"id", "group", "label", "image", "center", "center_loss", "mean", "mean_loss"}


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Apply a function to every tensor of a batch, keeping its structure."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_batch(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(map_batch(function, value) for value in batch)
    raise TypeError(
        "a batch must be a tensor, or a tuple, list or dict of tensors; got "
        f"{type(batch).__name__}."
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on a device."""
    return map_batch(lambda leaf: leaf.to(device), batch)


def batch_leaves(batch: Batch, path: str = "batch") -> dict[str, Tensor]:
    """Return the tensors of a batch by their path, such as `batch['x']` or `batch[0]`."""
    if isinstance(batch, Tensor):
        return {path: batch}
    leaves: dict[str, Tensor] = {}
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            leaves |= batch_leaves(value, f"{path}[{key!r}]")
    elif isinstance(batch, tuple | list):
        for position, value in enumerate(batch):
            leaves |= batch_leaves(value, f"{path}[{position}]")
    else:
        hint = ""
        if isinstance(batch, str):
            hint = " A text column is to be left out, or turned into tensors."
        elif hasattr(batch, "__array__"):
            hint = " Pass torch.as_tensor of it."
        raise TypeError(
            f"{path} must be a tensor, or a tuple, list or dict of tensors; got "
            f"{type(batch).__name__}.{hint}"
        )
    return leaves


def shape_of(value: Any) -> Hashable:
    """Shapes and types of all tensors in a structure."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Mapping):
        return tuple((key, shape_of(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(shape_of, value))
    return None


class Items:
    """Items with their identities; the order is the caller's and never changes.

    Args:
        data: A tensor `[N, …]`, a tuple, list or dict of such tensors, or a Dataset whose items
            collate to one of these: of torch, or anything with `__len__` and `__getitem__`, such as
            a `datasets.Dataset` in torch's format.  It is read item by item when needed, and must
            return the same item every time (no augmentation).  Of a DataLoader its dataset is
            taken, in the dataset's own order, and its `collate_fn`.
        collate_fn: Makes a batch of a list of a Dataset's items, as a DataLoader's does: tensors
            whose first axis is the items.
        ids: N names, kept with every score; "0", "1", … by default.
        labels: N labels to show, for example class names.
        about: Further texts kept with the scores, N each by name: `about={"source": […]}` is
            found as `train_source` and `query_source` there.
        images: Pictures to show, uint8 `[N, rows, columns]` or `[N, rows, columns, 3]`.
        tokens: Texts to show, as the pieces that the tokens stand for, one list an item.
        token_mask: Which tokens count, bool `[N, T]`; a token that does gets a column of its own
            where `Problem(tokens=…)` asks for it.

    Raises:
        TypeError: `data` is none of the above.
        ValueError: No items, leading axes that differ, ids that repeat, labels, texts or images of
            another length, a Dataset that augments at random.
    """

    def __init__(
        self,
        data: Batch | Dataset[Any] | DataLoader[Any],
        *,
        collate_fn: Collate | None = None,
        ids: Sequence[str] | None = None,
        labels: Sequence[Any] | Tensor | None = None,
        about: Mapping[str, Sequence[str]] | None = None,
        images: np.ndarray | None = None,
        tokens: Sequence[Sequence[str]] | None = None,
        token_mask: np.ndarray | Tensor | None = None,
    ) -> None:
        if isinstance(data, DataLoader):
            data, own = of_loader(data)
            collate_fn = collate_fn or own
        data = as_data(data)
        if collate_fn is not None and not isinstance(data, Dataset):
            raise TypeError(
                f"collate_fn makes batches of a Dataset's items, and data is a "
                f"{type(data).__name__}, which is a batch already: leave it out."
            )
        self._collate = collate_fn
        if not isinstance(data, Dataset):
            batch_leaves(data)  # whose error has the path
        self.data = data if isinstance(data, Dataset) else map_batch(torch.Tensor.detach, data)
        self._device = torch.device("cpu")  # where batches of a Dataset go
        self._widens = False  # batches of a Dataset
        self._num = self._count()
        if self._num == 0:
            raise ValueError("there are no items: expected at least one.")
        self.ids = _text(range(self._num) if ids is None else ids, "ids", self._num)
        if len(set(self.ids.tolist())) != self._num:
            raise ValueError("ids repeat: every item needs a name of its own.")
        self.labels = None if labels is None else _text(labels, "labels", self._num)
        taken = sorted(_RESERVED_NAMES & set(about or {}))
        if taken:
            raise ValueError(f"about names {taken}, which results have already: choose others.")
        # Long texts: an array of fixed-width strings would be as wide as the longest everywhere.
        self.about = {
            name: _text(values, f"about[{name!r}]", self._num, kind=object)
            for name, values in (about or {}).items()
        }
        self.images = None if images is None else _pictures(images, self._num)
        self.tokens = None if tokens is None else _pieces(tokens, self._num)
        self.token_mask = None if token_mask is None else _mask(token_mask, self._num)
        if isinstance(data, Dataset):
            self._refuse_augmentation()

    def __len__(self) -> int:
        return self._num

    def take(self, indices: Tensor) -> Batch:
        """Return the items at `indices` `[B]` or `[C, B]`, with those axes in front."""
        if not isinstance(self.data, Dataset):
            return map_batch(lambda leaf: leaf[indices], self.data)
        positions = indices.flatten().tolist()
        rows = [self.data[int(i)] for i in positions]
        batch = collate(rows, [str(self.ids[i]) for i in positions], self._collate)
        batch = map_batch(widen, batch) if self._widens else batch
        return map_batch(
            lambda leaf: leaf.reshape(*indices.shape, *leaf.shape[1:]).to(self._device), batch
        )

    def chunks(self, size: int) -> Iterator[tuple[slice, Batch]]:
        """Yield all items in order, at most `size` at a time: `(slice, batch [B, …])`."""
        for start in range(0, self._num, size):
            part = slice(start, min(start + size, self._num))
            if isinstance(self.data, Dataset):
                yield part, self.take(torch.arange(part.start, part.stop))
            else:
                yield part, map_batch(lambda leaf, part=part: leaf[part], self.data)

    def batches(self, size: int) -> Iterator[tuple[slice | Tensor, Batch]]:
        """Yield all items, at most `size` at a time, in the cheapest order.

        Yields:
            The items' positions, a slice or `[B]`, and their batch `[B, …]`.
        """
        return self.chunks(size)

    def in_order(self, values: Tensor) -> Tensor:
        """Return values `[C, N]`, given in the order of `batches`, in the items' own order."""
        return values

    def first(self, count: int) -> Batch:
        """Return the first `count` items as a batch."""
        return next(self.chunks(min(count, self._num)))[1]

    def to(self, device: torch.device) -> Items:
        """Return the same items with tensors on `device`.

        Batches of a Dataset are moved one by one.
        """
        moved = object.__new__(type(self))
        moved.__dict__.update(self.__dict__)
        moved._device = device
        if not isinstance(self.data, Dataset):
            moved.data = to_device(self.data, device)
        return moved

    def widened(self) -> Items:
        """Return the same items with float16 and bfloat16 tensors in float32."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._widens = True
        if not isinstance(self.data, Dataset):
            other.data = map_batch(widen, self.data)
        return other

    def _count(self) -> int:
        if isinstance(self.data, Dataset):
            try:
                return len(self.data)  # type: ignore[arg-type]
            except TypeError:
                raise TypeError(
                    "an iterable Dataset has no length and no order to score by: wrap it in a "
                    "Dataset with __len__ and __getitem__."
                ) from None
        leaves = batch_leaves(self.data)
        refuse_uneven(leaves)
        return len(next(iter(leaves.values())))

    def _refuse_augmentation(self) -> None:
        """Read some items twice; rarer changes show as losses, once there is a model."""
        positions = torch.linspace(0, self._num - 1, min(self._num, _NUM_READ_TWICE)).long()
        with preserve_randomness():
            if self._collate is None:
                rows = [self.data[i] for i in positions.tolist()]
                refuse_rows(rows, self.ids[positions].tolist())
            once, again = self.take(positions), self.take(positions)
        pairs = zip(batch_leaves(once).items(), batch_leaves(again).values(), strict=True)
        for (path, a), b in pairs:
            for position, one, other in zip(positions.tolist(), a, b, strict=True):
                if not torch.equal(one.nan_to_num(), other.nan_to_num()):
                    raise ValueError(
                        f"the Dataset returned two different versions of item "
                        f"{str(self.ids[position])!r} ({path}): its random transform would enter "
                        "every covariance. Pass the Dataset without augmentation."
                    )


def as_items(data: Items | Batch | Dataset[Any] | DataLoader[Any]) -> Items:
    """Return `data` itself if it is `Items`, else `Items(data)`."""
    return data if isinstance(data, Items) else Items(data)


@contextmanager
def preserve_randomness(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Restore the global random states of the CPU, and of these GPUs, whatever is drawn."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def _text(
    values: Sequence[Any] | Tensor, name: str, expected: int, *, kind: type = str
) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.tolist()
    texts = [_storable(value) for value in values]
    longest = max(map(len, texts), default=0)
    if kind is str and longest > _MAX_LENGTH:  # every entry takes as much as the longest
        raise ValueError(
            f"{name} has an entry of {longest:,} characters: expected at most {_MAX_LENGTH:,}, a "
            "name. Long texts are kept beside the scores with about={…}."
        )
    array = np.asarray(texts, dtype=kind)
    if len(array) != expected:
        raise ValueError(
            f"{name} has {len(array)} entries for {expected} items: give one for each."
        )
    return array


def _pieces(tokens: Sequence[Sequence[str]], expected: int) -> list[list[str]]:
    if len(tokens) != expected or any(isinstance(pieces, str) for pieces in tokens):
        raise ValueError(
            f"tokens must be {expected} lists of strings, one an item, each the pieces of its "
            f"text; got {len(tokens)} entries."
        )
    return [[_storable(piece) for piece in pieces] for pieces in tokens]


def _storable(value: object) -> str:
    """Return a text in which halves of surrogate pairs are written out.

    They come from JSON and from names of files, and would stop the run when it is saved.
    """
    return str(value).encode("utf-8", "backslashreplace").decode()


def _mask(mask: np.ndarray | Tensor, expected: int) -> np.ndarray:
    array = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if array.dtype != np.bool_ or array.ndim != 2 or len(array) != expected or not array.any():
        raise ValueError(
            f"token_mask must be bool [{expected}, T] with at least one True; got {array.dtype} "
            f"{array.shape}."
        )
    return array


def _pictures(images: np.ndarray, expected: int) -> np.ndarray:
    images = np.asarray(images)
    colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour) or len(images) != expected:
        raise ValueError(
            f"images must be uint8 [{expected}, rows, columns] or [{expected}, rows, columns, 3]; "
            f"got {images.dtype} {images.shape}."
        )
    return images
