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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import mean_interval, parser, print_table, write
from benchmarks.induction import intervention, sweep
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
    steps=160, checkpoints=3, train=(64, 32, 32), held_out=8, scored=(4, 2, 2), window=1, subsets=6
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


FORMED = 0.3
"""Prefix-matching score at the end from which a head counts as formed."""
GAPS = (
    ("influence", "onset", "onset", "prefix_score"),
    ("influence", "onset", "onset", "in_context_drop"),
    ("influence", "onset", "onset", "gradient product"),
    ("influence", "peak", "steepest", "prefix_score"),
    ("influence", "peak", "half", "prefix_score"),
    ("influence", "peak", "steepest", "in_context_drop"),
    ("influence", "peak", "half", "in_context_drop"),
    ("influence", "peak", "peak", "gradient product"),
)
"""A quantity, its moment, and the moment of another that is taken off."""
_MOMENTS = ("onset", "half", "steepest", "peak", "before", "largest", "end", "left_at_end")
_CHANGES = ("sooner", "score", "drop", "score_after")


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over seeds with 95 % intervals: moments and gaps, settings, windows.

    Moments, and how much sooner a head forms, are of the seeds in which one does.
    """
    by = {(row["quantity"], row["seed"]): row for row in rows if row["part"] == "stages"}
    seeds = sorted({seed for _, seed in by})
    formed = [seed for seed in seeds if by["prefix_score", seed]["end"] >= FORMED]
    swept = [row for row in rows if row["part"] == "sweep" and "failed" not in row]
    changed = [row for row in rows if row["part"] == "intervention"]
    return [
        {"part": "stages", "what": "a head forms", "figure": "share of seeds",
         "mean": len(formed) / len(seeds), "seeds": len(seeds)},
        *_moments(by, formed), *_settings(swept),
        *_windows("head forms", [row for row in changed if row["seed"] in formed], _CHANGES),
        *_windows("all seeds", changed, ("score", "drop")),
    ]  # fmt: skip


def _row(part: str, what: str, figure: str, values: Sequence[float]) -> dict[str, Any]:
    return {"part": part, "what": what, "figure": figure, **mean_interval(values)}


def _moments(
    by: Mapping[tuple[str, int], Mapping[str, float]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the moments of every quantity, and the gaps between them, over seeds."""
    names = list(dict.fromkeys(name for name, _ in by))
    found = [
        _row("stages", name, figure, [by[name, seed][figure] for seed in seeds])
        for name in names for figure in _MOMENTS
        if all(figure in by[name, seed] for seed in seeds)
    ]  # fmt: skip
    for name, moment, theirs, other in GAPS:
        gaps = [by[name, seed][moment] - by[other, seed][theirs] for seed in seeds]
        found.append(_row("stages", name, f"{moment} minus {theirs} of {other}", gaps))
    return found


def _settings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the correlation with leaving halves out by setting, and less the gradient product."""
    by: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        words = [row["method"]]
        words += [f"{key} {row[key]:g}" for key in ("damping", "step_size") if key in row]
        by.setdefault(", ".join(words), {})[row["seed"]] = row
    found = []
    for what, own in by.items():
        for figure in ("lds", "lds, induction"):
            found.append(_row("sweep", what, figure, [row[figure] for row in own.values()]))
        gaps = [row["lds"] - by["gradient product"][seed]["lds"] for seed, row in own.items()]
        if what != "gradient product":
            found.append(_row("sweep", what, "lds minus gradient product", gaps))
    return found


def _windows(
    which: str, rows: Sequence[Mapping[str, Any]], figures: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what each window changes, and how much more the one inside does, paired by seed."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    seeds, found = sorted({seed for _, seed in by}), []
    part = f"intervention, {which}"
    for arm in dict.fromkeys(arm for arm, _ in by):
        for figure in figures:
            own = [by[arm, seed][figure] for seed in seeds]
            found.append(_row(part, arm, figure, own))
            if arm != "inside":
                gaps = [by["inside", seed][figure] - x for seed, x in zip(seeds, own, strict=True)]
                found.append(_row(part, f"inside minus {arm}", figure, gaps))
    return found


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--seeds", nargs="+", type=int, help="0 to 7 by default, 0 if tiny")
    made.add_argument("--sweep-seeds", type=int, default=3, help="of the seeds, the first so many")
    made.add_argument("--sampled-seeds", type=int, default=2, help="those with chains in the sweep")
    made.add_argument("--name", default="induction", help="of the JSON file")
    made.add_argument("--tiny", action="store_true", help="half a minute, on made-up words")
    return made


def main(words: Sequence[str] | None = None) -> Path:
    """Run the study, write its file after every seed, and return where."""
    a = options().parse_args(words)
    a.seeds = a.seeds or list(range(1 if a.tiny else 8))
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
