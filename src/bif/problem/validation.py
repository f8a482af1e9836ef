"""Checks of a user's function on a few items, so that mistakes show before any long work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bif.problem.columns import token_shift
from bif.problem.items import Items, batch_leaves, map_batch
from bif.problem.losses import per_item
from bif.problem.proxy import Proxy
from bif.types import Batch, ItemLoss

_NUM_CHECKED = 16
"""Items of a Dataset that are checked."""


def check_item_values(
    function: Callable[[nn.Module, Batch], Tensor],
    model: nn.Module,
    batch: Batch,
    what: str,
    where: str,
    ids: Sequence[str] | np.ndarray = (),
) -> None:
    """Raise unless `function(model, batch)` is finite, floating and `[B]` or `[B, T]`."""
    expected = next(iter(batch_leaves(batch).values())).shape[0]
    values = _call(function, model, batch, what, where)
    if not isinstance(values, Tensor):
        raise TypeError(f"the {what} must return a tensor, got {type(values).__name__} on {where}.")
    if values.dim() == 0:
        raise ValueError(
            f"the {what} returned a scalar on {where}: one value an item is needed, "
            f"[{expected}]. Use reduction='none'."
        )
    if values.dim() > 2 or values.shape[0] != expected:
        raise ValueError(
            f"the {what} returned shape {tuple(values.shape)} for {expected} items on {where}: "
            f"expected [{expected}] or [{expected}, T]."
        )
    if not values.is_floating_point():
        raise TypeError(f"the {what} returned {values.dtype} on {where}: expected floating point.")
    bad = (~per_item(values).isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the {what} is NaN or infinite at w* on {where}, items "
            f"{[str(ids[i]) for i in bad] if len(ids) else bad}: mend the model, the data or the "
            "loss before sampling."
        )
    again = per_item(_call(function, model, batch, what, where))
    if not torch.allclose(again, per_item(values), rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"the {what} changes from one evaluation to the next on {where}: {_head(values)}, then "
            f"{_head(again)}. Its noise would enter every covariance. Dropout or another random "
            "layer is on although the model is in evaluation mode: switch it off; or the loss "
            "draws noise, as of diffusion models: draw it once and put it into the batch."
        )
    if expected > 1:
        fewer = map_batch(lambda leaf: leaf[:-1], batch)
        found = _call(function, model, fewer, what, where)
        alone, together = per_item(found), per_item(values)[:-1]
        # Sums over a second axis may agree by chance; its length tells that it is of the items.
        if found.shape != values[:-1].shape or not torch.allclose(
            alone.double(), together.double(), rtol=1e-2, atol=1e-3
        ):
            raise ValueError(
                f"the {what} of an item changes with the other items of the batch on {where}: "
                f"{_head(together)} among {expected} items, {_head(alone)} among {expected - 1}. "
                "Each item's value must be its own. The usual cause is a shape: [B, 1] - [B] "
                "broadcasts to [B, B]; squeeze the model's output."
            )


def check_proxy(
    proxy: Proxy, function: ItemLoss, model: nn.Module, batch: Batch, what: str, where: str
) -> None:
    """Raise unless a proxy and its slope are values of items that fit each other and phi."""
    name = f"proxy {proxy.name!r} of the {what}"
    parts = {"": function, name: proxy.function, f"slope of the {name}": proxy.slope}
    widths = {}
    for part, one in parts.items():
        if part:
            check_item_values(one, model, batch, part, where)
        values = _call(one, model, batch, part or what, where)
        widths[part] = values.reshape(len(values), -1).shape[1]
    of_function, of_proxy, of_slope = widths.values()
    if of_slope != of_proxy or of_function not in (1, of_proxy):
        raise ValueError(
            f"the {what} has {of_function} values an item on {where}, the proxy {proxy.name!r} "
            f"{of_proxy} and its slope {of_slope}: expected a slope for every value of the proxy, "
            "[B] or [B, K], and one value of the observable for all of them, or one for each."
        )


def check_left_padding(
    function: ItemLoss,
    model: nn.Module,
    items: Items,
    what: str,
    where: str,
    *,
    device: torch.device,
) -> None:
    """Raise unless rows padded on the left have the values of the same rows padded on the right.

    Looked at are losses that read `attention_mask`, on the first such rows.

    Raises:
        ValueError: They have others, as where a model counts positions from the first column.
    """
    if not getattr(function, "reads_masks", False):
        return
    batch = items.data if isinstance(items.data, Mapping) else items.first(_NUM_CHECKED)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or mask.dim() != 2:
        return
    padded = ((mask[:, 0] == 0) & (mask != 0).any(dim=1)).nonzero().flatten()[:2]
    if not len(padded):
        return
    rows = map_batch(lambda leaf: leaf[padded].to(device), batch)
    length = mask.shape[1]
    start = (rows["attention_mask"] != 0).int().argmax(dim=1, keepdim=True)
    places = (torch.arange(length, device=start.device) + start) % length
    right = map_batch(
        lambda leaf: leaf.gather(1, places) if leaf.shape == places.shape else leaf, rows
    )
    left_values = per_item(_call(function, model, rows, what, where))
    right_values = per_item(_call(function, model, right, what, where))
    if not torch.allclose(left_values, right_values, rtol=1e-4, atol=1e-4):
        raise ValueError(
            f"{where} are padded on the left, and the {what} of item "
            f"{str(items.ids[int(padded[0])])!r} is {_head(left_values)[0]} there, "
            f"{_head(right_values)[0]} padded on the right: the model counts positions from the "
            "first column. Pad on the right (tokenizer.padding_side = 'right')."
        )


def check_right_padding(
    function: ItemLoss,
    model: nn.Module,
    items: Items,
    what: str,
    where: str,
    *,
    device: torch.device,
) -> None:
    """Raise where the value of a row changes with the padding behind it.

    Looked at is the shortest row of two tokens or more, of items that know their lengths.

    Raises:
        ValueError: It does: the padding counts, or the model looks at it.
    """
    lengths = getattr(items, "lengths", None)
    if lengths is None or not isinstance(items.data, Mapping):
        return
    row = int(lengths.masked_fill(lengths < 2, lengths.max() + 1).argmin())
    longest, length = items.data["input_ids"].shape[1], int(lengths[row])
    if not 2 <= length < longest:
        return
    padded = map_batch(lambda leaf: leaf[row : row + 1].to(device), items.data)
    alone = {
        name: leaf[:, :length] if leaf.shape[1:] == (longest,) else leaf
        for name, leaf in padded.items()
    }
    values = [float(per_item(_call(function, model, b, what, where))) for b in (alone, padded)]
    if not np.allclose(*values, rtol=1e-4, atol=1e-4):
        raise ValueError(
            f"the {what} of item {str(items.ids[row])!r} is {values[0]:.4g} alone and "
            f"{values[1]:.4g} with its padding on {where}, so it would change with the other items "
            "of a batch: say what is padding, by 'labels' of -100 there or by an 'attention_mask' "
            "of 0."
        )


def probe_shift(
    function: ItemLoss, model: nn.Module, batch: Batch, items: Items, *, what: str, where: str
) -> int:
    """Return the `token_shift` of a function on the first items.

    Raises:
        ValueError: As `token_shift`.
    """
    values = _call(function, model, batch, what, where)
    return token_shift(values, batch, items, what=what, where=where)


def _call(
    function: Callable[[nn.Module, Batch], Tensor],
    model: nn.Module,
    batch: Batch,
    what: str,
    where: str,
) -> Tensor:
    """Return the function's values, or raise an error that says whose failure it is."""
    try:
        with torch.no_grad():
            return function(model, batch)
    except Exception as error:
        shapes = ", ".join(
            f"{path} {tuple(leaf.shape)} {leaf.dtype}".replace("torch.", "")
            for path, leaf in batch_leaves(batch).items()
        )
        # Torch's own words for labels of another type, shape or range; others are no matter of it.
        of_torch = isinstance(error, RuntimeError | IndexError | ValueError)
        labels = of_torch and not isinstance(batch, Mapping)
        raise ValueError(
            f"the {what} failed on {where} with {type(error).__name__}: {error}. The batch was "
            f"{shapes}.{' Labels of classes must be int64 [B].' if labels else ''}"
        ) from error


def _head(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values[:3].tolist()]
