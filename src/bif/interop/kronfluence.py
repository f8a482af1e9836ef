"""Pairwise scores of kronfluence 1.0.1 (github.com/pomonam/kronfluence).

`Analyzer.compute_pairwise_scores(scores_name="x")` leaves a folder `scores_x` with

* `pairwise_scores.safetensors`: tensors [Q, N], or [Q, N, T] with `compute_per_token_scores`,
  under the name `all_modules`, or one a module with `compute_per_module_scores`, whose sum is that;
* with partitions, `pairwise_scores_data_partition{d}_module_partition{m}.safetensors` first: data
  partitions follow one another along N, module partitions add up;
* `score_arguments.json`, `query_dataset_metadata.json`, `train_dataset_metadata.json`.

Kronfluence's score is `+g_phiᵀ H⁻¹ g_i` with phi the task's measurement (Grosse et al. 2023,
arXiv 2308.03296), so that the derivative of phi with respect to the weight of the item is its
negative, whichever way phi is better. It is not divided by the number of train items.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bif.interop.scores import ImportedScores, Tokens, parent_and_name
from bif.interop.tensor_files import from_safetensors
from bif.problem.literals import require_literal
from bif.store import DamagedRun, Folder, folder_at
from bif.store.results import read_json

WHOLE = "pairwise_scores.safetensors"
PART = re.compile(r"pairwise_scores_data_partition(\d+)_module_partition(\d+)\.safetensors")


def holds_kronfluence_scores(folder: Folder) -> bool:
    """Return whether a folder has pairwise scores of kronfluence."""
    return any(name == WHOLE or PART.fullmatch(name) for name in folder.names())


def read_kronfluence_scores(
    path: str | Path, *, measurement_sign: Literal[1, -1] = 1, tokens: Tokens = "refuse"
) -> ImportedScores:
    """Read the pairwise scores of kronfluence and turn their sign.

    `scores = -measurement_sign * g_phiᵀ H⁻¹ g_i`, summed over modules and, where asked for, over
    the tokens of train items, which is exact where the loss of an item is the sum of its tokens'.

    Args:
        path: The folder `scores_NAME`, or the file `pairwise_scores.safetensors`.
        measurement_sign: -1 if the task's `compute_measurement` returns minus the observable that
            is to be predicted, as kronfluence's examples do with margins.
        tokens: "refuse" scores of single tokens, or "sum" them to their item's.

    Returns:
        Scores [Q, N]; ids are the indices in the data sets, where the folder names them. With
        `aggregate_query_gradients` the one row is of the sum of the queries' measurements.

    Raises:
        FileNotFoundError: If there are no pairwise scores.
        ValueError: If partitions are missing, scores are of tokens, train gradients were
            aggregated, or files do not fit together.
    """
    require_literal("tokens", tokens, Tokens)
    if measurement_sign not in (1, -1):
        raise ValueError(f"measurement_sign is {measurement_sign}; expected 1 or -1.")
    folder, name = folder_at(path), WHOLE
    if str(path).endswith(".safetensors"):
        folder, name = parent_and_name(path)
    if PART.fullmatch(name):
        raise ValueError(f"{path} is one partition of the scores; pass the folder, {folder}.")
    arguments = _read_if_there(folder, "score_arguments.json")
    if folder.is_file(name):
        matrix, metadata = _read_total(folder, name, tokens)
        arguments = arguments or metadata
    elif name == WHOLE and holds_kronfluence_scores(folder):
        matrix = _join_partitions(folder, arguments, tokens)
    else:
        raise FileNotFoundError(
            f"{folder} has no {name} and no partitions of it; there are {folder.names()[:10]}. "
            "Pass the folder scores_NAME that compute_pairwise_scores wrote."
        )
    if _is_set(arguments, "aggregate_train_gradients"):
        raise ValueError(
            f"{folder}: the gradients of all train items were summed (aggregate_train_gradients), "
            "so that no item has a score. Compute the scores without it."
        )
    pooled = _is_set(arguments, "aggregate_query_gradients")
    return ImportedScores(
        scores=-float(measurement_sign) * matrix,
        query_ids=None if pooled else _read_ids(folder, "query", matrix.shape[0]),
        train_ids=_read_ids(folder, "train", matrix.shape[1]),
        source=f"kronfluence's pairwise scores at {folder}, sign turned",
    )


def _read_total(folder: Folder, name: str, tokens: Tokens) -> tuple[np.ndarray, dict[str, str]]:
    """Return the sum over modules, and over tokens, of one file, [Q, N], and its metadata."""
    source = f"{folder}/{name}"
    tensors, metadata = from_safetensors(folder.read(name), source)
    shapes = {module: tensor.shape for module, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) not in (2, 3):
        raise ValueError(
            f"{source} holds tensors of shapes {shapes}; expected one shape, [Q, N] or [Q, N, T]."
        )
    total = np.sum(list(tensors.values()), axis=0)
    if total.ndim == 3:
        if tokens == "refuse":
            raise ValueError(
                f"{source} holds scores of single tokens, {total.shape}; pass tokens='sum' to "
                "add them up to scores of items."
            )
        total = total.sum(axis=2)
    return total, metadata


def _join_partitions(folder: Folder, arguments: Mapping[str, Any], tokens: Tokens) -> np.ndarray:
    """Return the scores of all partitions.

    Module partitions are summed, data partitions stand side by side.
    """
    matches = [PART.fullmatch(name) for name in folder.names()]
    there = {(int(m[1]), int(m[2])): m[0] for m in matches if m}
    num_data, num_modules = (
        _require_count(
            arguments.get(f"{kind}_partitions", 1 + max(part[axis] for part in there)), folder
        )
        for axis, kind in enumerate(("data", "module"))
    )
    inside = sum(d < num_data and m < num_modules for d, m in there)
    if inside < num_data * num_modules:
        every = ((d, m) for d in range(num_data) for m in range(num_modules))
        d, m = next(part for part in every if part not in there)
        raise ValueError(
            f"{folder}: {num_data * num_modules - inside} of {num_data * num_modules} partitions "
            f"are missing, the first is data partition {d}, module partition {m}. Compute them "
            "first."
        )
    columns = []
    for d in range(num_data):
        parts = [_read_total(folder, there[d, m], tokens)[0] for m in range(num_modules)]
        if len({part.shape for part in parts}) != 1:
            raise ValueError(
                f"{folder}: module partitions of data partition {d} have shapes "
                f"{[part.shape for part in parts]}; expected one."
            )
        columns.append(np.sum(parts, axis=0))
    if len({part.shape[0] for part in columns}) != 1:
        raise ValueError(
            f"{folder}: data partitions have {[part.shape[0] for part in columns]} queries; "
            "expected one number."
        )
    return np.concatenate(columns, axis=1)


def _read_ids(
    folder: Folder, kind: Literal["query", "train"], count: int
) -> tuple[str, ...] | None:
    """Return indices in the data set; None where the folder does not name the data set."""
    found = _read_if_there(folder, f"{kind}_dataset_metadata.json")
    if not found:
        return None
    indices = found.get("indices")
    if indices is None:
        indices = range(_require_count(found.get("dataset_size", count), folder))
    if not isinstance(indices, list | range) or len(indices) != count:
        raise ValueError(
            f"{folder}: the scores have {count} {kind} items, but {kind}_dataset_metadata.json "
            f"names {_count_text(indices)}: they do not belong together. "
            "Pass a folder whose files one call of kronfluence wrote."
        )
    return tuple(str(index) for index in indices)


def _require_count(found: Any, folder: Folder) -> int:
    if type(found) is not int or found < 1:
        raise DamagedRun(f"{folder}: a json file names {found!r} where a number from 1 on belongs.")
    return found


def _count_text(indices: Any) -> str:
    return str(len(indices)) if isinstance(indices, list | range) else "something else"


def _read_if_there(folder: Folder, name: str) -> dict[str, Any]:
    return read_json(folder, name) if folder.is_file(name) else {}


def _is_set(arguments: Mapping[str, Any], name: str) -> bool:
    return str(arguments.get(name)) == "True"
