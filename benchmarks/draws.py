"""Draws a second on the Fashion-MNIST network: 6,000 items, 200 queries, loss and margin.

SGLD takes two steps of batch 512 a chain before every draw; BAOAB takes 15 steps with the full
gradient.  Every draw records the losses of all items and both observables of all queries.  Each
sampler is timed three ways in one run: as the library does it (bf16 compute in the steps, losses
by a more exact forward pass, compiled), stacked by plain vmap in TF32, and as a plain loop with
one module a chain.  Recorded losses are in TF32 for SGLD and in
float32 for BAOAB, where they cost little beside the steps; they are compared with float32 at
the same weights, and the mean loss of the stationary chains with that of float32 steps.

    python benchmarks/draws.py --data DIR --out benchmarks/results --device cuda
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from math import exp, sqrt
from typing import Any

import numpy as np
import torch
from common import parser, print_table, write
from fashion import LARGEST_CURVATURE, problem

import bif
from bif.calibration.calibrate import calibrate
from bif.runs.block_recorder import BlockRecorder
from bif.sampling.engine import Engine

PEAK_BF16, PEAK_TF32 = 989e12, 494e12
"""FLOP/s of an H100 SXM without sparsity, by its data sheet."""
STEPS_A_DRAW = {"sgld": 2, "baoab": 15}
BATCH = 512


def settings(
    sampler: str, num_train: int, *, chains: int, draws: int, fast: bool, device: str
) -> bif.Settings:
    nbeta, gamma = float(num_train), 0.1 * num_train
    k_max = nbeta * LARGEST_CURVATURE + gamma
    base = bif.Settings(
        nbeta=nbeta, gamma=gamma, chains=chains, draws=draws, burn_in=0, block_size=chains,
        gradient_precision="bfloat16" if fast else "tf32", loss_precision="tf32",
        compiled=fast and device.startswith("cuda"), device=device, chunk_size=num_train,
    )  # fmt: skip
    if sampler == "sgld":
        return replace(
            base, sampler="sgld", gradient="minibatch", batch_size=min(BATCH, num_train),
            step_size=0.5 / k_max, thin=2, friction=1.0,
        )  # fmt: skip
    return replace(
        base, sampler="baoab", step_size=0.7 / sqrt(k_max), friction=2 * sqrt(gamma), thin=15,
        loss_precision="float32" if fast else "tf32",
    )  # fmt: skip


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(draws: Iterator[Any], count: int, device: str, use: Callable[[Any], None]) -> float:
    """Seconds for `count` draws after three that warm up."""
    for item in islice(draws, 3):
        use(item)
    wait(device)
    started = time.perf_counter()
    for item in islice(draws, count):
        use(item)
    wait(device)
    return time.perf_counter() - started


def library_speed(made: bif.Problem, chosen: bif.Settings) -> tuple[float, float]:
    """Draws a second, and peak memory in GiB."""
    device = chosen.device or "cpu"
    engine = Engine(made, chosen)
    assert chosen.chains is not None and chosen.draws is not None
    recorder = BlockRecorder(
        range(chosen.chains), num_draws=chosen.draws, distance_limit=float("inf")
    )

    def record(observed: Any) -> None:
        draw, train, query = observed
        recorder.add(train, query, engine.distance_squared(draw.params))

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    count = chosen.draws - 3
    seconds = timed(engine.observed_draws(0, chosen.chains), count, device, record)
    recorder.flush()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else float("nan")
    return chosen.chains * count / seconds, peak


def plain_loop_speed(made: bif.Problem, chosen: bif.Settings, *, draws: int) -> float:
    """Draws a second of one module a chain, float32 with TF32 products, two chains in turn."""
    device, n = chosen.device or "cpu", made.num_train
    models = [copy.deepcopy(made.model).to(device) for _ in range(2)]
    center = [p.detach().clone() for p in made.model.parameters()]
    x, y = made.train.data
    qx, qy = next(iter(made.query_groups.values())).data
    assert chosen.step_size and chosen.friction and chosen.thin
    assert chosen.nbeta is not None and chosen.gamma is not None
    step, nbeta, gamma = chosen.step_size, chosen.nbeta, chosen.gamma
    kept = exp(-chosen.friction * step)
    velocities = [[torch.randn_like(p) for p in m.parameters()] for m in models]

    def advance(model: torch.nn.Module, velocity: list[torch.Tensor]) -> None:
        if chosen.gradient == "full":
            batch = (x, y)
        else:
            index = torch.randint(n, (chosen.batch_size or n,), device=device)
            batch = (x[index], y[index])
        loss = bif.losses.cross_entropy(model, batch).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g, c, v in zip(model.parameters(), gradients, center, velocity, strict=True):
                force = nbeta * g + gamma * (p - c)
                if chosen.sampler == "sgld":
                    p.add_(force, alpha=-step / 2).add_(torch.randn_like(p), alpha=sqrt(step))
                    continue
                v.add_(force, alpha=-step)
                p.add_(v, alpha=step / 2)
                v.mul_(kept).add_(torch.randn_like(v), alpha=sqrt(1 - kept**2))
                p.add_(v, alpha=step / 2)

    def draws_of_all() -> Iterator[None]:
        while True:
            for model, velocity in zip(models, velocities, strict=True):
                for _ in range(chosen.thin or 1):
                    advance(model, velocity)
                with torch.no_grad():
                    bif.losses.cross_entropy(model, (x, y))
                    bif.losses.cross_entropy(model, (qx, qy))
                    bif.losses.margin(model, (qx, qy))
                yield None

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return draws / timed(draws_of_all(), draws, device, lambda _: None)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def loss_deviation(made: bif.Problem, chosen: bif.Settings) -> dict[str, float]:
    """Recorded losses against float32 at the same weights, at a draw well away from w*."""
    assert chosen.chains is not None
    few = replace(chosen, draws=6, thin=20)
    recorded = Engine(made, few)
    exact = Engine(made, replace(few, gradient_precision="float32", loss_precision="float32",
                                   compiled=False))  # fmt: skip
    *_, (draw, train, query) = recorded.observed_draws(0, chosen.chains)
    got = torch.cat([train, query], dim=1)
    want = torch.cat([exact.observe_train(draw.params), exact.observe_queries(draw.params)], dim=1)
    error = (got - want).double()
    return {
        "loss_error_max": float(error.abs().max()),
        "loss_error_rms": float(error.square().mean().sqrt()),
        "loss_error_relative": float(error.norm() / want.double().norm()),
        "loss_error_q99": float(error.abs().flatten().kthvalue(int(0.99 * error.numel())).values),
        "loss_error_max_scaled": float((error.abs() / (1 + want.double().abs())).max()),
    }


def stationary_mean(made: bif.Problem, chosen: bif.Settings) -> tuple[float, float]:
    """Mean train loss of the stationary chains, with its standard error between chains."""
    assert chosen.chains is not None and chosen.draws is not None
    long = replace(chosen, draws=chosen.draws + 40)
    engine, means = Engine(made, long), []
    for draw, train, _ in engine.observed_draws(0, chosen.chains):
        if draw.index >= 40:
            means.append(train.double().mean(dim=1))
    chain_means = torch.stack(means).mean(dim=0).cpu().numpy()
    return float(chain_means.mean()), float(chain_means.std(ddof=1) / np.sqrt(len(chain_means)))


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--chains", type=int, nargs="+", default=[64])
    options.add_argument("--draws", type=int, default=60, help="draws of each chain that are timed")
    options.add_argument("--num-train", type=int, default=6000)
    arguments = options.parse_args()
    device = arguments.device
    made = problem(
        arguments.data, num_train=arguments.num_train, num_queries=200, device=device,
        seed=arguments.seed,
    )  # fmt: skip
    weights = sum(p.numel() for p in made.model.parameters())
    scored = made.num_train + made.num_queries
    rows = []
    for sampler in ("sgld", "baoab"):
        per_step = made.num_train if sampler == "baoab" else min(BATCH, made.num_train)
        flop = weights * (6 * per_step * STEPS_A_DRAW[sampler] + 2 * scored)
        for chains in arguments.chains:
            for fast in (True, False):
                chosen = calibrate(
                    made,
                    settings(sampler, made.num_train, chains=chains, draws=arguments.draws,
                             fast=fast, device=device),
                ).settings  # fmt: skip
                speed, peak = library_speed(made, chosen)
                row: dict[str, Any] = {
                    "sampler": sampler,
                    "how": "library" if fast else "plain vmap",
                    "chains": chains,
                    "draws_per_second": speed,
                    "tflops": flop * speed / 1e12,
                    "share_of_bf16_peak": flop * speed / PEAK_BF16,
                    "share_of_tf32_peak": flop * speed / PEAK_TF32,
                    "peak_memory_gib": peak,
                }
                if fast and chains == arguments.chains[0]:
                    row |= loss_deviation(made, chosen)
                    exact = replace(chosen, gradient_precision="float32",
                                    loss_precision="float32", compiled=False, seed=1)  # fmt: skip
                    mean, error = stationary_mean(made, chosen)
                    reference, reference_error = stationary_mean(made, exact)
                    row |= {
                        "mean_loss": mean,
                        "mean_loss_error": error,
                        "mean_loss_float32": reference,
                        "mean_loss_float32_error": reference_error,
                    }
                rows.append(row)
                print(row, flush=True)
        loop = plain_loop_speed(made, chosen, draws=6)
        rows.append(
            {
                "sampler": sampler, "how": "plain loop", "chains": 2, "draws_per_second": loop,
                "tflops": flop * loop / 1e12, "share_of_bf16_peak": flop * loop / PEAK_BF16,
                "share_of_tf32_peak": flop * loop / PEAK_TF32,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    print_table(rows)
    print(write("draws", arguments, rows, gflop_a_draw={"sgld": 9.9, "baoab": 295}))


if __name__ == "__main__":
    main()
