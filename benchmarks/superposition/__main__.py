"""Does influence show the stages of a toy of superposition before the loss does?

Five sparse features come into two dimensions one after another.  A stage is past when a feature's
loss has fallen by half for good.  When a curve has risen is the step from which on it has gone a
tenth of the way from its start to its peak (the loss: to its end).  Then for each stage each
feature's items get half their weight in a window before it, and its delay is set beside what
influence at the begin of the window says.  Definitions were chosen on seeds from 100 on.

    python -m benchmarks.superposition --out benchmarks/results
    python -m benchmarks.superposition --out DIR --tiny
"""

from __future__ import annotations

from typing import Any

import torch

import bif
from benchmarks.common import parser, print_table, write
from benchmarks.superposition.figures import summary
from benchmarks.superposition.reweighting import (
    WEIGHT,
    delays,
    effects,
    orders_changed,
    reweight,
)
from benchmarks.superposition.scores import help_by_ways, trajectory
from benchmarks.superposition.stages import (
    certain_events,
    find_stages,
    polygons,
    signs_between_features,
    timings,
)
from benchmarks.superposition.toy import train

STEPS, CHECKPOINTS = 3000, 130
"""Of each training; neighbouring checkpoints lie 6 % of their step apart."""
TINY = 500, 12
"""The same with `--tiny`."""


def study(seed: int, steps: int, num_checkpoints: int, device: str) -> dict[str, Any]:
    """Return the stages of one training, when curves tell of them, and what re-weighting does."""
    path = train(seed, steps, device)
    stages = find_stages(path)
    at = bif.log_spaced_steps(steps, count=num_checkpoints)
    found = trajectory(path, at, device)
    helps = help_by_ways(path, found)
    changed = reweight(seed, steps, device, stages)
    moved, reordered = delays(changed, stages), orders_changed(changed, path, stages)
    return {
        "seed": seed, "polygons": polygons(path), "notes": list(found.notes),
        "trusted_checkpoints": int(found.dataset["trusted"].sum()), "checkpoints": len(at),
        "events": certain_events(found, stages),
        "signs_between_features": signs_between_features(found, stages),
        "stages": [
            {
                "loss_half": stage.loss_half, "loss_risen": stage.loss_risen,
                "size_half": stage.size_half, "timings": timings(stage, at, helps),
                **effects(stage, moved[s], reordered[s], at, helps),
            }
            for s, stage in enumerate(stages)
        ],
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=10, help="trainings, from --seed on")
    options.add_argument("--tiny", action="store_true", help="sizes for a few seconds")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    steps, checkpoints = TINY if arguments.tiny else (STEPS, CHECKPOINTS)
    studies = []
    for seed in range(arguments.seed, arguments.seed + (1 if arguments.tiny else arguments.seeds)):
        studies.append(study(seed, steps, checkpoints, arguments.device))
        print(f"seed {seed}: corners {studies[-1]['polygons']}", flush=True)
    rows = summary(studies)
    print_table(rows)
    write("superposition", arguments, rows, steps=steps, weight=WEIGHT, studies=studies)


if __name__ == "__main__":
    main()
