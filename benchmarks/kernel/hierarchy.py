"""The loss kernel of the hierarchical toy over its training: kingdoms part first, then classes.

The network of `bif stages --example hierarchy` learns eight items one level of a tree after the
other, at steps that are known.  At each checkpoint the separation of a level is the mean
correlation of two items that part one level later, less that of two that this level parts.

    python -m benchmarks.kernel.hierarchy --out DIR --seeds 5
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch

import bif
from benchmarks.common import mean_interval, parser, print_table, write
from bif import store
from bif.kernel import ItemKernel, activation_kernel, gradient_kernel
from bif.stages import hierarchy

CHAINS, DRAWS, EVERY = 32, 150, 2
"""Of a checkpoint, and which of the example's checkpoints are taken."""
_NUMBER = np.arange(len(hierarchy.ITEMS))
LEVELS = {"animals from plants": 4, "mammals from birds": 2}
"""Items of a branch below each split; the splits of the example that items lie below."""

MOMENTS = ("peak_step", "flip_step")
"""Where a separation is largest, and where it is negative for the first time after that."""


def separations(kernel: ItemKernel) -> np.ndarray:
    """Return for each level the mean correlation within its branches less that across them.

    Pairs across are those of one branch of the level above; none is of an item with itself.
    """
    block = kernel.block().double().numpy()
    found = []
    for size in LEVELS.values():
        same, above = (_NUMBER[:, None] // width == _NUMBER // width for width in (size, 2 * size))
        own = np.eye(len(block), dtype=bool)
        found.append(block[same & ~own].mean() - block[above & ~same].mean())
    return np.array(found)


def study(seed: int) -> list[dict[str, Any]]:
    """Return, for each similarity and level, the curve over the training of one network."""
    known = hierarchy.exact(seed)
    path, steps = hierarchy.train([seed]), known.steps[1::EVERY]
    weights = {step: {name: leaf[0] for name, leaf in path[step].items()} for step in steps}
    nbeta = 1e7
    settings = bif.Settings(
        estimator="covariance", nbeta=nbeta, gamma=nbeta * known.damping, chains=CHAINS,
        draws=DRAWS, seed=seed,
    )  # fmt: skip
    problem = hierarchy.pose()
    curves: dict[str, list[np.ndarray]] = {"loss": [], "activations": [], "gradients": []}
    errors, trusted = [], []
    with tempfile.TemporaryDirectory() as folder:
        series = bif.CheckpointSeries.from_weights(weights)
        bif.trajectory(problem, series, settings, out=folder)
        for place, there in zip(store.stage_runs(folder).values(), weights.values(), strict=True):
            run = bif.load(place)
            value, error = bif.loss_kernel(run).jackknife(separations)
            curves["loss"].append(value)
            errors.append(error)
            trusted.append(bool(run.summary.trusted))
            here = problem.at_weights(there)
            curves["activations"].append(separations(activation_kernel(here)))
            curves["gradients"].append(separations(gradient_kernel(here)))
    return [
        {
            "kernel": kernel, "level": level, "seed": seed, "steps": list(steps),
            "separation": [float(x[k]) for x in values],
            "standard_error": [float(x[k]) for x in errors] if kernel == "loss" else None,
            "trusted": sum(trusted), "checkpoints": len(trusted),
            **dict(zip(MOMENTS, moments(list(steps), [x[k] for x in values]), strict=True)),
            "branching_step": known.branching[level],
        }
        for kernel, values in curves.items()
        for k, level in enumerate(LEVELS)
    ]  # fmt: skip


def moments(steps: list[int], separation: list[float]) -> tuple[float, float]:
    """Return the moments of a curve; infinity where it does not turn negative."""
    peak = int(np.argmax(separation))
    after = (step for step, x in zip(steps[peak:], separation[peak:], strict=True) if x < 0)
    return float(steps[peak]), float(next(after, np.inf))


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=5)
    arguments = options.parse_args()
    curves: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        curves += study(seed)
        shown = [(c["kernel"], c["level"], c["peak_step"], c["flip_step"]) for c in curves[-6:]]
        print(f"seed {seed}: {shown}, {curves[-1]['trusted']} trusted", flush=True)
    rows = []
    for kernel, level in dict.fromkeys((c["kernel"], c["level"]) for c in curves):
        own = [c for c in curves if (c["kernel"], c["level"]) == (kernel, level)]
        row = {"kernel": kernel, "level": level}
        for moment in MOMENTS:
            found = mean_interval([c[moment] for c in own])
            row |= {moment: found["mean"], f"{moment}_low": found["ci_low"],
                    f"{moment}_high": found["ci_high"]}  # fmt: skip
        rows.append(row | {
            "branching_step": float(np.mean([c["branching_step"] for c in own])),
            "seeds": len(own), "trusted": sum(c["trusted"] for c in own),
            "checkpoints": sum(c["checkpoints"] for c in own),
        })  # fmt: skip
    print_table(rows)
    write("kernel-hierarchy", arguments, rows, curves=curves)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
