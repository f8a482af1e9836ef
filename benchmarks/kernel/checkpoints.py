"""The kernel over a training: when each level of the tree appears in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernel import images
from benchmarks.kernel.plan import Plan, settings
from benchmarks.kernel.sampling import posed, sample
from benchmarks.kernel.stored import Bundle, stored
from benchmarks.kernel.trees import levels
from bif.kernel import activation_kernel, gradient_kernel, squared_kernel

COUNT = 10
"""Checkpoints, the first of which is the untrained network."""


def study(bundle: Bundle, data: Path, plan: Plan, device: str) -> None:
    """Record class blocks of the kernel of test images, and of others, at each checkpoint."""
    train, others = images.read(data, "fashion", plan.train, plan.items, device)
    assert others is not None
    decay = images.WEIGHT_DECAY["fashion"]
    steps = images.recipe("fashion", plan.train, plan.epochs).steps
    at = [0, *np.unique(np.geomspace(1, steps - 1, COUNT - 1).round()).astype(int).tolist()]
    for seed in range(plan.seeds):
        model, weights = images.path(
            "fashion", train, at, epochs=plan.epochs, seed=seed, device=device
        )
        problem = posed(model, train, others)
        for step, there in weights.items():
            name = f"seed {seed}, step {step}"
            if bundle.has(name):
                continue
            posed_there = problem.at_weights(there)
            chosen = settings(plan, seed=seed, weight_decay=decay)
            row = {
                "name": name, "seed": seed, "step": step,
                "accuracy": images.accuracy(posed_there.model, others),
            }  # fmt: skip
            try:
                sampled = sample(posed_there, chosen)
            except RuntimeError as error:  # chains that diverge
                bundle.add({**row, "failed": str(error)[:300]}, {})
                continue
            kernels = {
                "loss": sampled.kernel, "loss, squared": squared_kernel(sampled.kernel),
                "activations": activation_kernel(posed_there).of_items(sampled.places),
                "gradients": gradient_kernel(posed_there, dimension=1024).of_items(sampled.places),
            }  # fmt: skip
            arrays = {
                f"blocks of {kind}": stored(kernel, pairs=plan.pairs)["blocks"]
                for kind, kernel in kernels.items()
            }
            bundle.put({"classes": np.array(sorted(set(sampled.kernel.labels_of("label"))))})
            bundle.add({**row, **sampled.figures}, arrays)


def separations(blocks: np.ndarray, classes: list[str]) -> dict[str, np.ndarray]:
    """Return mean correlations within less across, at each level of the tree, `[1 + G]` each.

    Of groups the pairs of different classes count: those of one group less those of different
    ones.  Of classes the pairs of one class less those of different ones.

    Args:
        blocks: Mean correlations of classes, `[1 + G, C, C]`.
        classes: In their order.
    """
    own = np.eye(len(classes), dtype=bool)
    found = {}
    for name, groups in levels("fashion").items():
        known = np.array([groups[c] for c in classes])
        same = known[:, None] == known
        found[name] = blocks[:, same & ~own].mean(axis=1) - blocks[:, ~same].mean(axis=1)
    found[f"{len(classes)} classes"] = blocks[:, own].mean(axis=1) - blocks[:, ~own].mean(axis=1)
    return found


def half_way(steps: list[int], values: np.ndarray) -> float:
    """Return the step at which a curve has for good gone half of the way from its first value to
    its largest, on a line in log(1 + step) between checkpoints."""
    top = int(np.argmax(values))
    level = (values[0] + values[top]) / 2
    (below,) = np.nonzero(values[: top + 1] < level)
    if not len(below):
        return float(steps[0])
    k = int(below[-1])
    share = (level - values[k]) / (values[k + 1] - values[k])
    low, high = np.log1p(steps[k]), np.log1p(steps[k + 1])
    return float(np.expm1(low + share * (high - low)))


def summary(bundle: Bundle) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return curves of each seed and kernel, and the step at half way of each level."""
    classes = bundle.arrays["classes"].tolist()
    curves, halves = [], []
    for seed in sorted({row["seed"] for row in bundle.rows}):
        rows = sorted(
            (r for r in bundle.rows if r["seed"] == seed and "failed" not in r),
            key=lambda r: r["step"],
        )
        steps = [row["step"] for row in rows]
        for kernel in ("loss", "loss, squared", "activations", "gradients"):
            found = [
                separations(bundle.of(row["name"])[f"blocks of {kernel}"].astype(float), classes)
                for row in rows
            ]
            for level in found[0]:
                values = np.array([one[level][0] for one in found])
                groups = [one[level][1:] for one in found]
                errors = [float(np.sqrt(np.var(g) * (len(g) - 1))) if len(g) else float("nan")
                          for g in groups]  # fmt: skip
                curves.append({
                    "kernel": kernel, "seed": seed, "level": level, "steps": steps,
                    "separation": values.tolist(), "standard_error": errors,
                    "z": (values / np.array(errors)).tolist(),
                    "accuracy": [row["accuracy"] for row in rows],
                    "trusted": [bool(row["trusted"]) for row in rows],
                })  # fmt: skip
                halves.append({
                    "kernel": kernel, "seed": seed, "level": level,
                    "half_way": half_way(steps, values),
                })  # fmt: skip
    return curves, halves
