"""Scores from any file, judged by a bank on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bif.benchmark.judge import rows
from bif.benchmark.measure import Cost
from bif.benchmark.methods import Scored
from bif.evaluate.retraining import load
from bif.interop import read_scores
from bif.interop.scores import Sign


def judge_file(
    scores: str | Path,
    bank: str | Path,
    *,
    sign: Sign | None = None,
    observable: str | None = None,
) -> dict[str, Any]:
    """Return the row of a file of scores: its LDS on the reported part of a bank.

    Rows and columns are put in the bank's order where the file names them; else they must be in
    it.  Which queries the scores were tuned on, a file cannot tell: they should not be these.

    Args:
        scores: What `bif.interop.read_scores` reads.
        bank: A bank's folder.
        sign: "loss": positive scores mean that the outcome rises with the item; "helpful": that it
            helps.
        observable: Which outcome is predicted; the bank's first by default.

    Raises:
        ValueError: Another shape or other ids than the bank's, an unknown outcome, a file whose
            sign is not known.
        FileNotFoundError: Neither file nor bank.
    """
    judged = load(bank)
    outcomes = judged.reported.outcomes
    outcome = next(iter(outcomes)) if observable is None else observable
    if outcome not in outcomes:
        raise ValueError(
            f"the bank has no outcome {outcome!r}; there are {list(outcomes)}: name one."
        )
    found = read_scores(scores, sign=sign, observable=outcome)
    part = judged.reported
    matrix = found.aligned(query_ids=part.query_ids.tolist(), train_ids=part.train_ids.tolist())
    name = Path(str(scores).rstrip("/")).name
    unknown = Cost(float("nan"), float("nan"))
    return rows([Scored(name, outcome, matrix, unknown)], [judged])[0]
