"""Influence of repeated sequences while a small language model learns induction.

A network of two attention layers is trained on characters: random segments that repeat, text with
paired quotes and brackets, and plain text.  For every seed, with its own start and sequences:

* `stages`: group influence over checkpoints, beside the prefix-matching score of the heads and the
  in-context loss drop on other held-out sequences; the gradient product beside.
* `sweep`: rank correlation of scores with leaving halves of the sequences out of a window of the
  training, over damping and step size, at the last checkpoint before the peak of influence.
* `intervention`: repeated sequences counted twice between onset and peak, before it and after it.

    python -m benchmarks.induction --data DIR --out benchmarks/results
    python -m benchmarks.induction --out results --tiny
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parser, print_table, write
from benchmarks.induction import intervention, sweep
from benchmarks.induction.moments import over_seeds
from benchmarks.induction.stages import (
    Sizes,
    Trained,
    influence_over_checkpoints,
    moments_of,
    train_whole,
)
from benchmarks.induction.sweep import DAMPINGS, STEP_SIZES
from benchmarks.language.corpus import documents

PARTS = ("stages", "sweep", "intervention")
TINY = Sizes(
    steps=120, checkpoints=3, train=(64, 32, 32), held_out=8, scored=(4, 2, 2), window=1, subsets=6
)


def made_up_texts(count: int = 400) -> list[str]:
    """Return sentences of made-up words, every other with a quote: the texts of `--tiny`."""
    source = np.random.default_rng(0)
    texts = []
    for i in range(count):
        words = ["".join(source.choice(list("aeiounrst"), size=4)) for _ in range(40)]
        words[4], words[6] = (f'"{words[4]}', f'{words[6]}"') if i % 2 else (words[4], words[6])
        texts.append(" ".join(words))
    return texts


def of_seed(
    texts: Sequence[str], sizes: Sizes, seed: int, a: argparse.Namespace
) -> tuple[Trained, list[dict[str, Any]], dict[str, Any]]:
    """Return a training, the rows of its seed without the sweep, and its curves."""
    began = time.perf_counter()
    trained: Trained = train_whole(texts, sizes, seed=seed, device=a.device)
    about = {"seed": seed, "training_seconds": time.perf_counter() - began}
    curves = influence_over_checkpoints(trained)
    about["seconds"] = time.perf_counter() - began - about["training_seconds"]
    found = moments_of(curves, trained.watched)
    rows = [
        {"part": "stages", "seed": seed, "quantity": name, **values}
        for name, values in found.items()
    ]
    onset, peak = (found["influence"][key] for key in ("onset", "peak"))
    if "intervention" in a.only:
        rows += intervention.rows(trained, onset, peak)
    return trained, rows, {**about, "influence": curves, "measures": trained.watched}


def sweep_rows(
    trained: Trained, rows: Sequence[dict[str, Any]], a: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rows of the sweep, at the last checkpoint before the peak of influence."""
    own = (row for row in rows if row["part"] == "stages" and row["seed"] == trained.seed)
    peak = next(row["peak"] for row in own if row["quantity"] == "influence")
    before = [s for s in trained.states if s.step < peak]
    samples = not a.tiny and trained.seed in a.seeds[: a.sampled_seeds]
    return list(sweep.rows(
        trained, (before or trained.states)[-1], dampings=DAMPINGS[1:] if a.tiny else DAMPINGS,
        step_sizes=STEP_SIZES if samples else (),
    ))  # fmt: skip


def short(found: Any) -> Any:
    """Return curves with five digits."""
    if isinstance(found, dict):
        return {key: short(value) for key, value in found.items()}
    if isinstance(found, list):
        return [short(value) for value in found]
    return float(f"{found:.5g}") if isinstance(found, float) else found


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over seeds with 95 % intervals: moments and gaps, settings, windows."""
    made = []

    def add(part: str, what: str, figure: str, values: Sequence[float]) -> None:
        made.append({"part": f"{part}, mean", "what": what, "figure": figure, **over_seeds(values)})

    stages = [row for row in rows if row["part"] == "stages"]
    by = {(row["quantity"], row["seed"]): row for row in stages}
    seeds = sorted({row["seed"] for row in stages})
    for name in dict.fromkeys(row["quantity"] for row in stages):
        for figure in ("onset", "half", "steepest", "peak", "before", "largest", "left_at_end"):
            if figure in by[name, seeds[0]]:
                add("stages", name, figure, [by[name, seed][figure] for seed in seeds])
    for name, ours, theirs in GAPS:
        for measure in ("prefix_score", "in_context_drop"):
            gaps = [by[name, seed][ours] - by[measure, seed][theirs] for seed in seeds]
            add("stages", name, f"{ours} minus {theirs} of {measure}", gaps)
    for part, keys, figures in (
        ("sweep", ("method", "damping", "step_size"), ("lds", "lds, induction")),
        ("intervention", ("arm",), ("sooner", "score", "drop", "score_after")),
    ):
        own = [row for row in rows if row["part"] == part and "failed" not in row]
        for what in dict.fromkeys(tuple(row.get(key) for key in keys) for row in own):
            same = [row for row in own if tuple(row.get(key) for key in keys) == what]
            words = ", ".join(f"{x:g}" if isinstance(x, float) else x for x in what if x)
            for figure in figures:
                add(part, words, figure, [row[figure] for row in same])
    return made + _against_inside([row for row in rows if row["part"] == "intervention"])


GAPS = (
    ("influence", "onset", "onset"), ("influence", "peak", "steepest"),
    ("influence", "peak", "half"), ("gradient product", "peak", "half"),
)  # fmt: skip
"""A quantity, its moment, and the moment of a measure of induction that is taken off."""


def _against_inside(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how much more the window inside changes than each other arm, paired by seed."""
    made = []
    values = {(row["arm"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != "inside"):
        for figure in ("sooner", "score", "drop", "score_after"):
            gaps = [values["inside", s][figure] - values[arm, s][figure] for s in seeds]
            made.append({"part": "intervention, inside minus", "what": arm, "figure": figure,
                         **over_seeds(gaps)})  # fmt: skip
    return made


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--seeds", nargs="+", type=int, help="0 to 7 by default, 0 and 1 if tiny")
    made.add_argument("--sweep-seeds", type=int, default=3, help="of the seeds, the first so many")
    made.add_argument("--sampled-seeds", type=int, default=2, help="those with chains in the sweep")
    made.add_argument("--name", default="induction", help="of the JSON file")
    made.add_argument("--tiny", action="store_true", help="a few seconds, on made-up words")
    return made


def main(words: Sequence[str] | None = None) -> Path:
    """Run the study, write its file after every seed, and return where."""
    a = options().parse_args(words)
    a.seeds = a.seeds or list(range(2 if a.tiny else 8))
    sizes = TINY if a.tiny else Sizes()
    if a.tiny:
        texts = made_up_texts()
    elif a.data is None:
        raise SystemExit("--data: the folder with wikitext-2 and tinystories is needed")
    else:
        texts = [d.text for d in documents(a.data)]
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    swept: list[Trained] = []

    def save() -> Path:
        return write(
            a.name, a, summary(rows), sizes=asdict(sizes), tiny=a.tiny, by_seed=rows, curves=curves
        )

    for seed in a.seeds:
        began = time.perf_counter()
        trained, more, own = of_seed(texts, sizes, seed, a)
        rows += more
        curves.append(short(own))
        swept += [trained] * ("sweep" in a.only and seed in a.seeds[: a.sweep_seeds])
        save()
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    for trained in swept:
        rows += sweep_rows(trained, rows, a)
        print(f"seed {trained.seed}: swept", flush=True)
        save()
    print_table(summary(rows))
    return save()


if __name__ == "__main__":
    main()
