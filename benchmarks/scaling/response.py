"""Cost of the response by solving on a language model, and how near it is to an exact solve."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import bif
from benchmarks.common import synchronize
from benchmarks.scaling.neox import Shape, network


def response_cost(
    shape: Shape, train: Tensor, queries: Tensor, *, device: str, seed: int,
    damping: float | None, curvature_items: int | None, steps: int | None,
    exact: Literal["same", "all"] | None, exact_queries: int,
) -> dict[str, Any]:  # fmt: skip
    """Return seconds with calibration, peak memory, steps, errors, and the nearness.

    Matrices are multiplied in bfloat16.

    Args:
        damping: gamma/nbeta; calibrated if None.
        curvature_items: Train items whose curvature is taken; all if None.
        steps: Products a query; to the default residual if None.
        exact: Solve again to a residual of 1e-3, by the same items in the same precision or by all
            items in TF32, and return the smallest and the mean correlation of a query's scores.
        exact_queries: How many queries are solved again.
    """
    model = network(shape, length=train.shape[1], seed=seed, device=device, dtype=torch.float32)
    problem = bif.Problem(
        model, bif.losses.next_token,
        train={"input_ids": train.to(device)}, queries={"input_ids": queries.to(device)},
    )  # fmt: skip
    nbeta = None if damping is None else float(len(train))
    settings = bif.Settings(
        estimator="response", seed=seed, gradient_precision="bfloat16", solver_steps=steps,
        solver_items=curvature_items, nbeta=nbeta,
        gamma=None if damping is None or nbeta is None else damping * nbeta,
    )  # fmt: skip
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    synchronize(torch.device(device))
    started = time.perf_counter()
    run = bif.attribute(problem, settings)
    synchronize(torch.device(device))
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - started, "dtype": "bfloat16 compute",
        "curvature_items": curvature_items or len(train),
    }  # fmt: skip
    if on_gpu:
        row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    names = ("damping", "solver_steps", "largest_residual", "truncation", "trusted")
    row |= {name: run.summary[name] for name in names}
    row["curvature_sampling"] = run.summary.get("curvature_sampling", 0.0)
    if exact:
        at = run.manifest["settings"]
        whole = replace(
            settings, nbeta=at["nbeta"], gamma=at["gamma"], solver_steps=None, solver_residual=1e-3
        )
        if exact == "all":
            whole = replace(whole, solver_items=None, gradient_precision=None)
        few = problem.asking({"first": {"input_ids": queries[:exact_queries].to(device)}})
        started = time.perf_counter()
        reference = bif.attribute(few, whole)
        found, true = (
            r.influence.dataset["influence"].values[0][:exact_queries].astype(float)
            for r in (run, reference)
        )
        nearness = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, true, strict=True)]
        row |= {
            "exact_by": exact,
            "exact_queries": len(nearness),
            "exact_seconds": time.perf_counter() - started,
            "exact_steps": reference.summary["solver_steps"],
            "correlation_min": float(np.min(nearness)),
            "correlation_mean": float(np.mean(nearness)),
        }
    return row
