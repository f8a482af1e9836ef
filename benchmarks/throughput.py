"""How fast draws are made on the Fashion-MNIST network, and what a gradient costs by each oracle.

`draws`: draws a second with 6,000 items, 200 queries, loss and margin.  SGLD takes two steps of
batch 512 a chain before every draw; BAOAB takes 15 steps with the full gradient.  Every draw
records the losses of all items and both observables of all queries.  Each sampler is timed three
ways in one run: as the library does it (bf16 compute in the steps, losses by a more exact forward
pass, compiled), stacked by plain vmap in TF32, and as a plain loop with one module a chain.
Recorded losses are in TF32 for SGLD and in float32 for BAOAB, where they cost little beside the
steps; they are compared with float32 at the same weights, and the mean loss of the stationary
chains with that of float32 steps.

`oracles`: gradients and values of the networks of `--settings`, stacked by vmap or one chain after
another, by precision and items at once.  A stack of convolutions is one convolution of as many
groups as chains, which libraries of kernels do badly; a single chain may be too little work for a
GPU.

    python -m benchmarks.throughput draws --data DIR --out benchmarks/results --device cuda
    python -m benchmarks.throughput oracles --data DIR --out benchmarks/results --device cuda
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, product
from math import exp, sqrt
from time import perf_counter
from typing import Any

import numpy as np
import torch

import bif
from benchmarks.common import parser, print_table, synchronize, write
from bif import tensors
from bif.benchmark import named_task
from bif.calibration.calibrate import calibrate
from bif.runs.block_recorder import BlockRecorder
from bif.sampling.engine import Engine
from bif.sampling.oracles import SequentialOracle, StackedOracle
from bif.sampling.settings import RunSettings

PEAK_BF16, PEAK_TF32 = 989e12, 494e12
"""FLOP/s of an H100 SXM without sparsity, by its data sheet."""
LARGEST_CURVATURE = 4.4
"""Largest curvature of the mean loss by the first probes; fixed here so that runs compare."""
STEPS_A_DRAW = {"sgld": 2, "baoab": 15}
BATCH = 512
ORACLES = ("stacked", "sequential", "stacked compiled", "sequential compiled")


def seconds_of(
    run: Callable[[], object], device: torch.device | str, *, count: int, warm_up: int
) -> float:
    """Return the seconds of `count` calls, after some that are not counted."""
    for _ in range(warm_up):
        run()
    synchronize(device)
    started = perf_counter()
    for _ in range(count):
        run()
    synchronize(device)
    return perf_counter() - started


# --- Draws ----------------------------------------------------------------------------------------


def fashion(arguments: argparse.Namespace) -> bif.Problem:
    """Return the trained network, the first train images and 200 test images."""
    return named_task(
        "fashion", arguments.data, device=arguments.device, seed=arguments.seed,
        size=arguments.num_train,
    ).problem  # fmt: skip


def settings(
    sampler: str, num_train: int, *, chains: int, draws: int, fast: bool, device: str
) -> bif.Settings:
    """Return settings whose steps are the same in every run."""
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


def library_speed(made: bif.Problem, chosen: RunSettings) -> tuple[float, float]:
    """Return draws a second, and peak memory in GiB."""
    device = chosen.device or "cpu"
    engine = Engine(made, chosen)
    recorder = BlockRecorder(
        range(chosen.chains), num_draws=chosen.draws, distance_limit=float("inf")
    )
    draws = engine.observed_draws(0, chosen.chains)

    def record() -> None:
        draw, train, query = next(draws)
        recorder.add(train, query, engine.distance_squared(draw.params))

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    count = chosen.draws - 3
    seconds = seconds_of(record, device, count=count, warm_up=3)
    recorder.flush()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else float("nan")
    return chosen.chains * count / seconds, peak


def plain_loop_speed(made: bif.Problem, chosen: RunSettings, *, draws: int) -> float:
    """Return draws a second of one module a chain, float32 with TF32 products, two in turn."""
    device, n = chosen.device or "cpu", made.num_train
    models = [copy.deepcopy(made.model).to(device) for _ in range(2)]
    center = [p.detach().clone() for p in made.model.parameters()]
    x, y = made.train.data
    qx, qy = next(iter(made.query_groups.values())).data
    assert chosen.friction is not None
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

    chains = cycle(zip(models, velocities, strict=True))

    def draw() -> None:
        model, velocity = next(chains)
        for _ in range(chosen.thin or 1):
            advance(model, velocity)
        with torch.no_grad():
            bif.losses.cross_entropy(model, (x, y))
            bif.losses.cross_entropy(model, (qx, qy))
            bif.losses.margin(model, (qx, qy))

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return draws / seconds_of(draw, device, count=draws, warm_up=3)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def loss_deviation(made: bif.Problem, chosen: RunSettings) -> dict[str, float]:
    """Compare recorded losses with float32 at the same weights, at a draw well away from w*."""
    few = replace(chosen, draws=6, thin=20)
    recorded = Engine(made, few)
    exact = Engine(made, replace(few, gradient_precision="float32", loss_precision="float32",
                                   compiled=False))  # fmt: skip
    *_, (draw, train, query) = recorded.observed_draws(0, chosen.chains)
    got = torch.cat([train, query], dim=1)
    want = torch.cat(
        [exact.observer.train(draw.params), exact.observer.queries(draw.params)], dim=1
    )
    error = (got - want).double()
    return {
        "loss_error_max": float(error.abs().max()),
        "loss_error_rms": float(error.square().mean().sqrt()),
        "loss_error_relative": float(error.norm() / want.double().norm()),
        "loss_error_q99": float(error.abs().flatten().kthvalue(int(0.99 * error.numel())).values),
        "loss_error_max_scaled": float((error.abs() / (1 + want.double().abs())).max()),
    }


def stationary_mean(made: bif.Problem, chosen: RunSettings) -> tuple[float, float]:
    """Return the mean train loss of the stationary chains, and its standard error between them."""
    long = replace(chosen, draws=chosen.draws + 40)
    engine, means = Engine(made, long), []
    for draw, train, _ in engine.observed_draws(0, chosen.chains):
        if draw.index >= 40:
            means.append(train.double().mean(dim=1))
    chain_means = torch.stack(means).mean(dim=0).cpu().numpy()
    return float(chain_means.mean()), float(chain_means.std(ddof=1) / np.sqrt(len(chain_means)))


def accuracy(made: bif.Problem, chosen: RunSettings) -> dict[str, float]:
    """Compare recorded losses, and the chains' mean loss, with those in float32."""
    exact = replace(
        chosen, gradient_precision="float32", loss_precision="float32", compiled=False, seed=1
    )
    mean, error = stationary_mean(made, chosen)
    reference, reference_error = stationary_mean(made, exact)
    return {
        **loss_deviation(made, chosen), "mean_loss": mean, "mean_loss_error": error,
        "mean_loss_float32": reference, "mean_loss_float32_error": reference_error,
    }  # fmt: skip


def speeds(
    made: bif.Problem, sampler: str, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield draws a second of each way to make them."""
    device, n = arguments.device, made.num_train
    for chains, fast in product(arguments.chains, (True, False)):
        asked = settings(sampler, n, chains=chains, draws=arguments.draws, fast=fast, device=device)
        chosen = calibrate(made, asked).settings
        speed, peak = library_speed(made, chosen)
        row = {"sampler": sampler, "how": "library" if fast else "plain vmap", "chains": chains,
               "draws_per_second": speed, "peak_memory_gib": peak}  # fmt: skip
        first = fast and chains == arguments.chains[0]
        yield row | accuracy(made, chosen) if first else row
    loop = plain_loop_speed(made, chosen, draws=6)
    yield {"sampler": sampler, "how": "plain loop", "chains": 2, "draws_per_second": loop}


def measure_draws(arguments: argparse.Namespace) -> None:
    made, rows = fashion(arguments), []
    weights = sum(p.numel() for p in made.model.parameters())
    scored, n = made.num_train + made.num_queries, made.num_train
    for sampler, items in (("sgld", min(BATCH, n)), ("baoab", n)):
        flop = weights * (6 * items * STEPS_A_DRAW[sampler] + 2 * scored)
        for row in speeds(made, sampler, arguments):
            speed = flop * row["draws_per_second"]
            row |= {"tflops": speed / 1e12, "share_of_bf16_peak": speed / PEAK_BF16,
                    "share_of_tf32_peak": speed / PEAK_TF32}  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    print_table(rows)
    print(write("draws", arguments, rows, gflop_a_draw={"sgld": 9.9, "baoab": 295}))


# --- Oracles --------------------------------------------------------------------------------------


def cost_of(
    problem: bif.Problem, kind: str, precision: Any, *, chains: int, items: int
) -> dict[str, Any]:
    """Return milliseconds of one gradient and of one pass of values, and the peak memory."""
    device = problem.device
    model = problem.evaluation_copy(device)
    batch = problem.train.to(device).first(items)
    weights = torch.full((items,), 1 / items, device=device)
    params = tensors.stacked({n: p.to(device) for n, p in problem.center().items()}, chains)
    make: Any = StackedOracle if kind.startswith("stacked") else SequentialOracle
    more = {"use_compile": True} if kind.endswith("compiled") else {}
    oracle = make(
        model, problem.loss, gradient_precision=precision, value_precision=precision, **more
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = {
        "gradient_ms": lambda: oracle.gradient(params, batch, weights, per_chain=False),
        "values_ms": lambda: oracle.values(problem.loss, params, batch),
    }
    row = {
        name: seconds_of(run, device, count=3, warm_up=1) / 3 * 1e3 for name, run in runs.items()
    }
    row["gradient_ns_an_item"] = row["gradient_ms"] * 1e6 / chains / items
    if device.type == "cuda":
        row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def measure_oracles(arguments: argparse.Namespace) -> None:
    rows = []
    precisions = ("tf32", "bfloat16") if arguments.device.startswith("cuda") else ("float32",)
    (chains,) = arguments.chains
    for setting in arguments.settings:
        problem = named_task(
            setting, arguments.data, device=arguments.device, seed=arguments.seed,
            size=max(64, *arguments.items),
        ).problem  # fmt: skip
        for kind, precision, items in product(arguments.oracles, precisions, arguments.items):
            row = {"setting": setting, "oracle": kind, "precision": precision, "items": items,
                   "chains": chains}  # fmt: skip
            try:
                row |= cost_of(problem, kind, precision, chains=chains, items=items)
            except Exception as error:  # out of memory, a compiler's: the other rows stand
                row["reason"] = f"{type(error).__name__}: {str(error)[:150]}"
            rows.append(row)
            print_table([row])
        write("oracles", arguments, rows)
    print_table(rows)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("what", choices=("draws", "oracles"))
    options.add_argument("--chains", type=int, nargs="+", help="64 for draws, 16 for oracles")
    options.add_argument("--draws", type=int, default=60, help="draws of each chain that are timed")
    options.add_argument("--num-train", type=int, default=6000, help="of draws")
    options.add_argument("--settings", nargs="+", help="of oracles",
                         default=["fashion", "cifar", "resnet20", "stories"])  # fmt: skip
    options.add_argument("--oracles", nargs="+", choices=ORACLES, default=ORACLES[:2])
    options.add_argument("--items", type=int, nargs="+", default=[250, 1000], help="of oracles")
    arguments = options.parse_args()
    arguments.chains = arguments.chains or [64 if arguments.what == "draws" else 16]
    (measure_draws if arguments.what == "draws" else measure_oracles)(arguments)


if __name__ == "__main__":
    main()
