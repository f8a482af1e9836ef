"""Score folders of bergson 0.26 (github.com/EleutherAI/bergson).

A folder holds

* `info.json`: `num_items`, `num_rows`, `num_scores`, `attribute_tokens`, and `dtype`, the names,
  formats, offsets and itemsize of a numpy structure;
* `scores.bin`: `num_rows` such structures, one a train item, with `score_q` and `written_q` for
  each query q;
* for scores of single tokens `offsets.npy` [N + 1]: item i has the rows `offsets[i]` to
  `offsets[i + 1]`;
* from `bergson score`, `config.yaml`, in which `score_cfg` has `higher_is_better`.

`higher_is_better: true` says that helpful items are positive (gradient products, influence);
`false`, or no `score_cfg` at all, that helpful items are negative, as here (unrolling): so reads
bergson's own `load_scores_loss_signed`. Observables are losses of queries.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bif.interop.scores import ImportedScores, Sign, Tokens, as_signed
from bif.interop.tensor_files import from_numpy
from bif.problem.literals import require_literal
from bif.store import DamagedRun, Folder, folder_at
from bif.store.results import read_json

INFO, SCORES, OFFSETS, CONFIG = "info.json", "scores.bin", "offsets.npy", "config.yaml"
Precision = Literal["float32", "float64"]
_FORMATS = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}

# So read both bergson's `load_scores_loss_signed` and its `recall`: without a config the second
# would take helpful items for positive ones.
_CONFIG_TEXT = b"steps:\n- score:\n    score_cfg:\n      higher_is_better: false\n"


def holds_bergson_scores(folder: Folder) -> bool:
    """Return whether a folder has scores of bergson."""
    return folder.is_file(SCORES) and folder.is_file(INFO)


def read_bergson_scores(
    path: str | Path, *, sign: Sign | None = None, tokens: Tokens = "refuse"
) -> ImportedScores:
    """Read a score folder of bergson, signed as the BIF of a loss.

    Args:
        path: The folder with `scores.bin` and `info.json`.
        sign: How the file is signed; by default what its `config.yaml` says, by bergson's rules.
        tokens: "refuse" scores of single tokens, or "sum" them to their item's.

    Returns:
        Scores [Q, N] without ids: rows and columns are positions in bergson's data sets. With
        `score: nearest` or aggregated queries there is one row for all queries.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If files do not fit together, scores are unfinished or of tokens, or the sign
            cannot be told.
    """
    require_literal("tokens", tokens, Tokens)
    folder = folder_at(path)
    if not holds_bergson_scores(folder):
        raise FileNotFoundError(f"{folder} has no {SCORES} and {INFO}; pass a score folder.")
    info = read_json(folder, INFO)
    per_token = bool(info.get("attribute_tokens", folder.is_file(OFFSETS)))
    if per_token and tokens == "refuse":
        raise ValueError(
            f"{folder} holds scores of single tokens; pass tokens='sum' to add them up to scores "
            "of items."
        )
    rows = _read_rows(folder, info)
    if per_token:
        rows = _sum_tokens(folder, rows)
    sign = sign or _recorded_sign(folder, info)
    return ImportedScores(
        scores=as_signed(rows.T, sign, "lower"),
        query_ids=None,
        train_ids=None,
        source=f"bergson's scores at {folder}, read as {sign!r}",
    )


def write_bergson_scores(
    path: str | Path, scores: Any, *, precision: Precision = "float32"
) -> None:
    """Write scores as a folder that bergson's `validate` and `recall` read.

    They are written as they are, helpful items negative, and the folder says so. Bergson takes
    them for scores of losses: hand over those of an observable that is better low.

    Args:
        path: A new folder.
        scores: [Q, N], signed as the BIF.
        precision: Precision of the numbers in the file; bergson's default is float32.

    Raises:
        FileExistsError: If there is something already.
        ValueError: If scores are not finite, also after rounding, or not [Q, N].
    """
    require_literal("precision", precision, Precision)
    folder = folder_at(path)
    if folder.names():
        raise FileExistsError(f"{folder} holds files: choose another folder, or empty it first.")
    with np.errstate(over="ignore"):
        rounded = np.asarray(scores, dtype=np.float64).astype(precision)
    values = ImportedScores(rounded, None, None, "the scores to be written").scores
    num_queries, num_items = values.shape
    layout: Any = _layout(num_queries, precision)
    rows = np.zeros(num_items, dtype=np.dtype(layout))
    for q, row in enumerate(values):
        rows[f"score_{q}"] = row
        rows[f"written_{q}"] = True
    info = {
        "attribute_tokens": False,
        "num_items": num_items,
        "num_rows": num_items,
        "num_scores": num_queries,
        "dtype": layout,
    }
    folder.write(SCORES, rows.tobytes())
    folder.write(CONFIG, _CONFIG_TEXT)
    folder.write(INFO, json.dumps(info, indent=2).encode())


def _layout(num_queries: int, precision: str) -> dict[str, Any]:
    """Return bergson's structure: pairs of score and flag, 8 bytes each, 16 for float64."""
    size = np.dtype(precision).itemsize
    pair = 2 * size  # bergson pads size + 1 to a power of 2, and all of them to 8 bytes
    queries = range(num_queries)
    return {
        "names": [name for q in queries for name in (f"score_{q}", f"written_{q}")],
        "formats": [name for _ in queries for name in (precision, "bool")],
        "offsets": [place for q in queries for place in (q * pair, q * pair + size)],
        "itemsize": num_queries * pair,
    }


def _read_rows(folder: Folder, info: dict[str, Any]) -> np.ndarray:
    """Return the scores of all rows, float64 [rows, Q]."""
    try:
        num_queries, layout = int(info["num_scores"]), info["dtype"]
        num_rows = int(info.get("num_rows", info["num_items"]))
        fields = dict(zip(layout["names"], zip(layout["formats"], layout["offsets"], strict=True),
                          strict=True))  # fmt: skip
        scores = [fields[f"score_{q}"] for q in range(num_queries)]
        flags = [fields[f"written_{q}"] for q in range(num_queries)]
        structure = np.dtype({
            "names": [f"{kind}_{q}" for kind in ("score", "written") for q in range(num_queries)],
            "formats": [_FORMATS[f] for f, _ in scores] + ["?"] * num_queries,
            "offsets": [int(place) for _, place in scores + flags],
            "itemsize": int(layout["itemsize"]),
        })  # fmt: skip
        content = np.frombuffer(folder.read(SCORES), dtype=structure)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedRun(
            f"{folder}/{INFO} does not describe {SCORES} as bergson does: {error!r}."
        ) from error
    if len(content) != num_rows or num_queries < 1:
        raise DamagedRun(
            f"{folder}/{SCORES} holds {len(content)} rows, but {INFO} names {num_rows} rows and "
            f"{num_queries} scores: it was cut off, or they do not belong together."
        )
    unwritten = sum(int((~content[f"written_{q}"]).sum()) for q in range(num_queries))
    if unwritten:
        raise ValueError(
            f"{folder}: {unwritten} of {num_rows * num_queries} scores are not written yet. "
            "Let bergson finish first."
        )
    brain = {q for q, (name, _) in enumerate(scores) if name == "bfloat16"}
    columns = [_as_float(content[f"score_{q}"], q in brain) for q in range(num_queries)]
    return np.stack(columns, axis=1)


def _as_float(column: np.ndarray, is_bfloat16: bool) -> np.ndarray:
    if is_bfloat16:  # the upper half of a float32
        column = (column.astype(np.uint32) << 16).view(np.float32)
    return column.astype(np.float64)


def _sum_tokens(folder: Folder, rows: np.ndarray) -> np.ndarray:
    """Return sums of the tokens' rows, [N, Q]."""
    offsets = from_numpy(folder.read(OFFSETS), f"{folder}/{OFFSETS}")["scores"]
    rising = offsets.ndim == 1 and len(offsets) > 1 and bool((np.diff(offsets) >= 0).all())
    if offsets.dtype.kind != "i" or not rising or (offsets[0], offsets[-1]) != (0, len(rows)):
        raise DamagedRun(
            f"{folder}/{OFFSETS} does not divide {len(rows)} rows into items: expected rising "
            "numbers from 0 to that."
        )
    totals = np.zeros((len(offsets) - 1, rows.shape[1]))
    np.add.at(totals, np.repeat(np.arange(len(totals)), np.diff(offsets)), rows)
    return totals


def _recorded_sign(folder: Folder, info: dict[str, Any]) -> Sign:
    """Return the sign that the folder records, by the rules of `load_scores_loss_signed`."""
    text = folder.read(CONFIG).decode("utf-8", "replace") if folder.is_file(CONFIG) else ""
    higher = higher_is_better(text)
    if higher is not None:
        return "helpful" if higher else "loss"
    if "score_cfg" in text or "num_rows" not in info:
        raise ValueError(
            f"{folder} does not say how its scores are signed (no config.yaml that can be read, or "
            "an older bergson): pass sign='helpful' for gradient products and influence, "
            "sign='loss' where negative items help."
        )
    return "loss"


def higher_is_better(config: str) -> bool | None:
    """Return `higher_is_better` of the first `score_cfg` in a `config.yaml`, or None.

    Bergson dumps its config in block style, one key a line, and takes a missing key for true.
    """
    lines = [line for line in config.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        head = re.fullmatch(r"((?: |- )*)score_cfg:\s*", line)
        if head is None:
            continue
        inner: list[str] = []
        for other in lines[number + 1 :]:
            if len(other) - len(other.lstrip(" ")) <= len(head[1]):
                break
            inner.append(other.strip())
        found = [m[1] for m in (re.fullmatch(r"higher_is_better:\s*(\w+)", i) for i in inner) if m]
        if not inner or (found and found[0] not in ("true", "false")):
            return None
        return not found or found[0] == "true"
    return None
