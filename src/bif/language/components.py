"""Components: the weights of some layers, attention heads or an adapter, by name.

`bif.Settings(movable=…)` takes what `movable_weights` returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, cast

from torch import nn

from bif.problem.weights import trainable

Kind = Literal["q", "k", "v", "qkv", "o"]

# The attention projections of a layer by the end of their name: what they make, and whether one
# matrix makes queries, keys and values, head by head ("by_head") or one after another ("by_kind").
_PROJECTIONS: dict[str, tuple[Kind, str]] = {
    "q_proj": ("q", ""),
    "k_proj": ("k", ""),
    "v_proj": ("v", ""),
    "o_proj": ("o", ""),
    "self_attn.out_proj": ("o", ""),
    "attn.attention.out_proj": ("o", ""),
    "attention.self.query": ("q", ""),
    "attention.self.key": ("k", ""),
    "attention.self.value": ("v", ""),
    "attention.output.dense": ("o", ""),
    "attn.c_attn": ("qkv", "by_kind"),
    "attn.c_proj": ("o", ""),
    "attention.query_key_value": ("qkv", "by_head"),
    "attention.dense": ("o", ""),
}


class Head(NamedTuple):
    """An attention head, written `LAYER.HEAD`, both from 0."""

    layer: int
    head: int


def movable_weights(
    model: nn.Module,
    *,
    names: Sequence[str] | None = None,
    layers: Iterable[int] = (),
    heads: Iterable[Head | tuple[int, int]] = (),
) -> tuple[str, ...]:
    """Return names and slices of the weights that may move, for `Settings.movable`.

    Of a model with an adapter only the adapter's weights.  A head has the rows of the query, key
    and value projections that make it (the key and value rows that several query heads share
    belong to each of them), their biases, and the columns of the output projection that read it.

    Args:
        model: A model of transformers or peft.
        names: Globs of parameters; others stay.  By default all that the model does not freeze.
        layers: Only these layers' weights; all, embeddings included, by default.
        heads: Only these heads' weights; not together with `layers`.

    Returns:
        `("*",)` where nothing is left out.

    Raises:
        ValueError: A glob that matches nothing; an unknown layer or head; heads of a model whose
            attention is not known, or of an adapter.
    """
    layers, named_heads = sorted(set(layers)), sorted({Head(*head) for head in heads})
    if layers and named_heads:
        raise ValueError(
            "layers and heads go one at a time: a head is LAYER.HEAD already. Drop one."
        )
    parameters, trained = dict(model.named_parameters()), set(trainable(model))
    is_adapter = hasattr(model, "peft_config")
    if named_heads and is_adapter:
        raise ValueError("heads of an adapter cannot be told apart: use layers.")
    for pattern in names or ():
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(
                f"the pattern {pattern!r} matches no parameter of the model: name some of "
                "model.named_parameters()."
            )
    chosen = [
        name
        for name in parameters
        if (name in trained if names is None else any(fnmatchcase(name, g) for g in names))
        and (name in trained or not is_adapter)
    ]
    if named_heads:
        regions = [region for head in named_heads for region in _head_slices(model, head)]
        found = [r for r in regions if r.partition("[")[0] in chosen]
    elif layers:
        prefixes = tuple(f"{_layer_name(model, layer)}." for layer in layers)
        found = [name for name in chosen if name.startswith(prefixes)]
    else:
        found = chosen
    if not found:
        raise ValueError("names, layers and heads leave no weight to move: widen one of them.")
    return (
        ("*",) if len(found) == len(parameters) and not named_heads else tuple(dict.fromkeys(found))
    )


def parse_layers(words: Iterable[str]) -> list[int]:
    """Return the layers that words such as `0` and `3-5` name.

    Raises:
        ValueError: Anything else.
    """
    found: list[int] = []
    for word in words:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{word!r} is no layer: expected a number, or a range such as 3-5.")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def parse_heads(words: Iterable[str]) -> list[Head]:
    """Return the heads that words such as `3.0`, layer 3's first, name.

    Raises:
        ValueError: Anything else.
    """
    found = []
    for word in words:
        match = re.fullmatch(r"(\d+)\.(\d+)", word)
        if match is None:
            raise ValueError(f"{word!r} is no head: expected LAYER.HEAD, such as 3.0.")
        found.append(Head(int(match[1]), int(match[2])))
    return found


def _layer_name(model: nn.Module, layer: int) -> str:
    """Return the name of a layer, an entry of the module list with as many entries as layers."""
    number = int(_config(model).num_hidden_layers)
    if not 0 <= layer < number:
        raise ValueError(f"there is no layer {layer}: the model has layers 0 to {number - 1}.")
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    ]
    if not stacks:
        raise ValueError(
            f"no stack of {number} layers was found in the model: name weights by movable globs."
        )
    return f"{stacks[0]}.{layer}"


def _head_slices(model: nn.Module, head: Head) -> list[str]:
    """Return slices of the weights of one head."""
    prefix, config = _layer_name(model, head.layer), _config(model)
    number = int(config.num_attention_heads)
    if not 0 <= head.head < number:
        raise ValueError(
            f"there is no head {head.head} in layer {head.layer}: it has heads 0 to {number - 1}."
        )
    size = int(getattr(config, "head_dim", None) or config.hidden_size // number)
    num_kv = int(getattr(config, "num_key_value_heads", None) or number)
    regions: list[str] = []
    for end, (kind, layout) in _PROJECTIONS.items():
        for name, module in model.named_modules():
            if name.startswith(f"{prefix}.") and name.endswith(f".{end}"):
                mine = head.head * num_kv // number if kind in ("k", "v") else head.head
                places = _output_ranges(mine, size, number, layout)
                regions += _projection_slices(name, module, kind, places)
    if not regions:
        raise ValueError(
            f"the attention of {type(model).__name__} is not known: name its weights by movable "
            "globs with slices, such as '*.layers.3.*.q_proj.weight[0:64]'."
        )
    return regions


def _output_ranges(head: int, size: int, number: int, layout: str) -> list[tuple[int, int]]:
    """Return where a head's outputs are among those of a projection."""
    if layout == "by_head":
        return [(3 * head * size, 3 * (head + 1) * size)]
    copies = 3 if layout == "by_kind" else 1
    return [((c * number + head) * size, (c * number + head + 1) * size) for c in range(copies)]


def _projection_slices(
    name: str, module: nn.Module, kind: Kind, places: list[tuple[int, int]]
) -> list[str]:
    # transformers' Conv1D keeps [inputs, outputs], torch's Linear [outputs, inputs].
    columns = (type(module).__name__ == "Conv1D") != (kind == "o")
    spans = [f":,{a}:{b}" if columns else f"{a}:{b}" for a, b in places]
    weights = [f"{name}.weight[{span}]" for span in spans]
    if kind == "o" or getattr(module, "bias", None) is None:
        return weights  # the bias of the output belongs to no head
    return weights + [f"{name}.bias[{a}:{b}]" for a, b in places]


def _config(model: nn.Module) -> Any:
    return cast(Any, model).config.get_text_config()
