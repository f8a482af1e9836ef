"""Kernels of Fashion-MNIST and of CIFAR-10, beside other similarities, for maps and hierarchies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import bif
from benchmarks.kernel import images
from benchmarks.kernel.plan import NBETA, NEIGHBOURS, SENSITIVITY, Plan, settings
from benchmarks.kernel.sampling import Sampled, alignments, controls, posed, sample, with_steps
from benchmarks.kernel.stored import Bundle, rows_of_map, stored
from bif.kernel import neighbour_stability, squared_kernel

_SHARE_PUBLISHED = 4
"""Of the images, one in so many is in U around the published network, whose gradient takes long."""


class Case(NamedTuple):
    """A network whose kernel is asked for.

    Attributes:
        name: Of the network.
        seed: Of training or of sampling.
        problem: With the network.
        settings: Of the chains.
        accuracy: Of the network on the items, as a share.
    """

    name: str
    seed: int
    problem: bif.Problem
    settings: bif.Settings
    accuracy: float


def fashion(bundle: Bundle, data: Path, plan: Plan, device: str) -> None:
    """Record the test images of Fashion-MNIST by a CNN of each training seed."""
    for case in _fashion(data, plan, device):
        _record(bundle, case, plan)
        if case.seed == 0 and plan.sensitivity:
            _vary(bundle, case, plan)


def cifar(bundle: Bundle, data: Path, plan: Plan, device: str) -> None:
    """Record the images of CIFAR-10 by ResNet-20 and by ResNet-9."""
    for case in _cifar(data, plan, device):
        _record(bundle, case, plan)


def _fashion(data: Path, plan: Plan, device: str) -> Iterator[Case]:
    train, others = images.read(data, "fashion", plan.train, plan.items, device)
    assert others is not None
    decay = images.WEIGHT_DECAY["fashion"]
    known: bif.Settings | None = None
    for seed in range(plan.seeds):
        model = images.trained("fashion", train, epochs=plan.epochs, seed=seed, device=device)
        problem = posed(model, train, others)
        known = with_steps(problem, settings(plan, seed=seed, weight_decay=decay), known)
        yield Case("CNN", seed, problem, known, images.accuracy(model, others))


def _cifar(data: Path, plan: Plan, device: str) -> Iterator[Case]:
    published, items = images.published(data, plan.train, device)
    few = replace(plan, train=plan.train // _SHARE_PUBLISHED)
    problem = posed(published, images.published(data, few.train, device)[1], items)
    known: bif.Settings | None = None
    for seed in range(plan.seeds):
        chosen = settings(few, seed=seed, weight_decay=1e-4)
        known = with_steps(problem, chosen, known)
        yield Case("ResNet-20", seed, problem, known, images.accuracy(published, items))
    train = images.read(data, "cifar", plan.train, 0, device).train
    decay = images.WEIGHT_DECAY["cifar"]
    known = None
    for seed in range(plan.seeds):
        model = images.trained("cifar", train, epochs=plan.epochs, seed=seed, device=device)
        problem = posed(model, train, None)
        known = with_steps(problem, settings(plan, seed=seed, weight_decay=decay), known)
        yield Case("ResNet-9", seed, problem, known, images.accuracy(model, train))


def _record(bundle: Bundle, case: Case, plan: Plan) -> None:
    name = f"{case.name}, seed {case.seed}"
    if bundle.has(f"{name}, loss"):
        return
    sampled = sample(case.problem, case.settings)
    beside = controls(sampled, case.seed)
    about = {"network": case.name, "seed": case.seed, "accuracy": case.accuracy}
    squares = {
        f"{kind}, squared": squared_kernel(kernel)
        for kind, kernel in {"loss": sampled.kernel, **beside}.items()
    }
    for kind, kernel in {**beside, **squares}.items():
        row = {"name": f"{name}, {kind}", "kernel": kind, **about}
        bundle.add(row, stored(kernel, pairs=plan.pairs))
    arrays = stored(sampled.kernel, pairs=plan.pairs)
    if case.seed == 0:
        arrays |= _of_map(sampled) | _neighbours(beside)
    row = {
        "name": f"{name}, loss", "kernel": "loss", **about, **sampled.figures,
        "alignment": alignments(sampled.kernel, beside),
    }  # fmt: skip
    bundle.add(row, arrays)


def _of_map(sampled: Sampled) -> dict[str, Any]:
    kernel = sampled.kernel
    places, values = kernel.nearest(min(NEIGHBOURS, len(kernel) - 1))
    return {
        **rows_of_map(kernel), "neighbour": places.astype("int16"), "correlation": values,
        "kept": neighbour_stability(kernel, places.shape[1]).kept.astype("float32"),
        "center_loss": sampled.center.astype("float32"),
        "mean_loss_gain": sampled.mean_loss_gain.astype("float32"),
        "loss_variance": kernel.variance.numpy().astype("float32"),
    }  # fmt: skip


def _neighbours(beside: dict[str, Any]) -> dict[str, Any]:
    """Return the nearest items by the other similarities."""
    return {
        f"neighbour by {kind}": kernel.nearest(min(NEIGHBOURS, len(kernel) - 1))[0].astype("int16")
        for kind, kernel in beside.items()
    }


def _vary(bundle: Bundle, case: Case, plan: Plan) -> None:
    """Record the kernel at other nbeta and gamma."""
    for of_nbeta, of_gamma in SENSITIVITY:
        kind = f"nbeta x {of_nbeta:g}, gamma x {of_gamma:g}"
        name = f"{case.name}, seed {case.seed}, {kind}"
        if bundle.has(name):
            continue
        asked = case.settings
        assert asked.gamma is not None
        nbeta, gamma = of_nbeta * NBETA * plan.train, of_gamma * asked.gamma
        try:
            sampled = sample(
                case.problem,
                asked.reopened(nbeta=nbeta, gamma=gamma, step_size=None, friction=None),
            )
        except RuntimeError as error:  # chains that diverge
            bundle.add({"name": name, "kernel": kind, "failed": str(error)[:300]}, {})
            continue
        row = {
            "name": name, "kernel": kind, "network": case.name, "seed": case.seed,
            **sampled.figures,
        }  # fmt: skip
        bundle.add(row, stored(sampled.kernel, pairs=plan.pairs))
