"""Throughput with one and several devices of a host, and whether the numbers are the same.

`sampling`: draws a second of one run whose blocks of chains are dealt among the ranks, and the
share of linear that this is.  `solving`: queries a second.  `lost`: a rank is killed in the middle
and the ranks are started again; the run is that of one rank.  Every run with several ranks has the
same blocks as that with one, and its traces are compared to the last bit.  `sharded`: peak memory
of a GPU and seconds a draw of one model that all ranks hold, with float32 weights, beside those of
one GPU with `memory="lean"`.  On GPUs a rank each; on CPUs by gloo, a thread each, without peaks.

    python -m benchmarks.devices --device cuda --data DIR --out DIR --problems fashion
    python -m benchmarks.devices --device cuda --out DIR --problems 160M
    python -m benchmarks.devices --device cuda --out DIR --problems 12B --kinds sharded \\
        --chains 2 --draws 10
    python -m benchmarks.devices --out DIR --problems digits
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bif
from benchmarks import throughput
from benchmarks.common import parser, print_table, write
from bif.mesh import join, launched
from bif.sampling.engine import Engine

KINDS = ("sampling", "solving", "lost")
SHARDED = "sharded"


def posed(arguments: argparse.Namespace, num_ranks: int) -> bif.Problem:
    """Return the problem on this rank's device; on the host where its model is to be split."""
    if arguments.problem == "digits":
        from bif.cli.digits_demo import digits

        return digits(arguments.seed).problem
    if arguments.problem == "fashion":
        return throughput.fashion(arguments)
    from benchmarks.scaling.neox import SHAPES, network, sequences
    from bif.language.linear_loss import chunked_next_token

    shape, length, device = SHAPES[arguments.problem], arguments.length, arguments.device
    dtype = torch.float32
    if arguments.kind == SHARDED:
        device, dtype = ("cpu", dtype) if num_ranks > 1 else (device, torch.bfloat16)
    model = network(shape, length=length, seed=arguments.seed, device=device, dtype=dtype)
    if arguments.kind == SHARDED:
        model.gradient_checkpointing_enable()
    ids = sequences(shape, 128 + 16, length=length, seed=arguments.seed).to(device)
    train, queries = {"input_ids": ids[:128]}, {"input_ids": ids[128:]}
    return bif.Problem(model, chunked_next_token, train=train, queries=queries)


def chosen(arguments: argparse.Namespace, num_ranks: int) -> bif.Settings:
    """Return settings whose blocks do not depend on the ranks."""
    if arguments.kind == "solving":
        return bif.Settings(
            estimator="response", nbeta=100.0, gamma=100.0, solver_steps=arguments.steps,
            seed=arguments.seed,
        )  # fmt: skip
    shared: dict[str, Any] = {
        "chains": arguments.chains, "draws": arguments.draws, "burn_in": 2, "thin": 1,
        "nbeta": 100.0, "gamma": 100.0, "sampler": "sgld", "step_size": 1e-5,
        "estimator": "covariance", "seed": arguments.seed, "gradient": "minibatch",
        "batch_size": 16,
    }  # fmt: skip
    if arguments.problem in ("digits", "fashion"):
        return bif.Settings(block_size=arguments.chains // max(arguments.ranks), **shared)
    if arguments.kind == SHARDED:
        layout: dict[str, Any] = {"shards": num_ranks} if num_ranks > 1 else {"memory": "lean"}
        return bif.Settings(
            oracle="live", device=arguments.device, chunk_size=16, gradient_precision="bfloat16",
            loss_precision="bfloat16", **layout, **shared,
        )  # fmt: skip
    return bif.Settings(
        oracle="live", memory="fused", compiled=arguments.device != "cpu", chunk_size=16,
        gradient_precision="bfloat16", loss_precision="bfloat16", **shared,
    )  # fmt: skip


def work(arguments: argparse.Namespace) -> None:
    """Make the run as one of the ranks; rank 0 writes what it found beside the run."""
    with join() if launched() else nullcontext() as ranks:
        if arguments.kill_at is not None and ranks is not None and ranks.rank == 1:
            _kill_at(arguments.kill_at)
        num_ranks = ranks.size if ranks else 1
        problem, settings = posed(arguments, num_ranks), chosen(arguments, num_ranks)
        started = time.perf_counter()
        run = bif.attribute(problem, settings, out=arguments.out / "run", ranks=ranks)
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() if arguments.device != "cpu" else 0
        peaks = ranks.gather(peak) if ranks else [peak]
        if ranks is None or ranks.is_first:
            scores = run.influence.dataset["influence"].values
            digest = hashlib.sha256(np.ascontiguousarray(scores).tobytes())
            for block in run.traces.blocks:
                digest.update(block.train.numpy().tobytes() + block.query.numpy().tobytes())
            sampling = run.summary.sampling_seconds
            found = {
                "wall_seconds": seconds, "peaks": peaks, "digest": digest.hexdigest(),
                "items": scores.shape[-1],
                "seconds": run.summary.seconds if run.summary.solved else sampling,
                "count": scores.shape[0] * scores.shape[1] if run.summary.solved
                else run.summary.draws,
            }  # fmt: skip
            np.save(arguments.out / "scores.npy", scores)
            (arguments.out / "found.json").write_text(json.dumps(found))


def _kill_at(step: int) -> None:
    """Kill this rank before a step of its first block."""
    positions = Engine.positions

    def watched(self: Engine, *args: Any, **given: Any) -> Any:
        for position in positions(self, *args, **given):
            if position.step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            yield position

    Engine.positions = watched  # type: ignore[method-assign]


def start(
    arguments: argparse.Namespace, *, kind: str, problem: str, ranks: int, out: Path,
    kill_at: int | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Start ranks, wait, and return what rank 0 found; None where they ended early."""
    module = ["-m", "benchmarks.devices", "--as-rank"]
    for name in ("data", "device", "seed", "chains", "draws", "steps", "length", "num_train"):
        value = getattr(arguments, name)
        module += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    module += ["--kind", kind, "--problem", problem, "--out", str(out)]
    module += ["--ranks", *map(str, arguments.ranks)]
    module += [] if kill_at is None else ["--kill-at", str(kill_at)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(launcher if ranks > 1 else []), *module]
    threads = {} if arguments.device != "cpu" else {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    if done.returncode:
        if kill_at is None:
            raise RuntimeError(f"the ranks ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return None
    return json.loads((out / "found.json").read_text())


def compare(arguments: argparse.Namespace, problem: str, kind: str) -> list[dict[str, Any]]:
    """Return a row for each number of ranks."""
    rows, alone, scores = list[dict[str, Any]](), None, None
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, *(r for r in arguments.ranks if r > 1)):
            out = Path(folder) / str(ranks)
            out.mkdir()
            if kind == "lost" and ranks > 1:
                kill_at = 2 + arguments.draws // 2
                lost = start(
                    arguments, kind=kind, problem=problem, ranks=ranks, out=out, kill_at=kill_at
                )
                if lost is not None:
                    raise RuntimeError("the rank that was to be killed ended by itself")
            found = start(arguments, kind=kind, problem=problem, ranks=ranks, out=out)
            assert found is not None
            got = np.load(out / "scores.npy")
            alone, scores = alone or found, got if scores is None else scores
            rate = found["count"] / found["seconds"]
            rows.append({
                "problem": problem, "kind": kind, "ranks": ranks, "seconds": found["seconds"],
                "wall_seconds": found["wall_seconds"], "a_second": rate,
                "share_of_linear": rate / (ranks * alone["count"] / alone["seconds"]),
                "same_bits": found["digest"] == alone["digest"],
                "largest_difference": float(np.abs(got - scores).max() / np.abs(scores).max()),
            })  # fmt: skip
    return rows


def compare_split(arguments: argparse.Namespace, problem: str) -> list[dict[str, Any]]:
    """Return a row for one rank with the least memory, and for each number that hold one model."""
    rows = []
    for ranks in (1, *(r for r in arguments.ranks if r > 1)):
        with tempfile.TemporaryDirectory() as folder:
            found = start(arguments, kind=SHARDED, problem=problem, ranks=ranks, out=Path(folder))
        assert found is not None
        rows.append({
            "problem": problem, "kind": SHARDED, "ranks": ranks,
            "weights": "float32, split" if ranks > 1 else "bfloat16, lean",
            "peak_gib_a_gpu": max(found["peaks"]) / 2**30,
            "seconds_a_draw": found["seconds"] / found["count"],
            "wall_seconds": found["wall_seconds"],
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and write."""
    given = parser(__doc__ or "")
    given.add_argument("--problems", nargs="+", default=["digits"], help="digits, fashion, 160M …")
    given.add_argument("--kinds", nargs="+", default=list(KINDS), choices=(*KINDS, SHARDED))
    given.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    given.add_argument("--chains", type=int, default=16)
    given.add_argument("--draws", type=int, default=200)
    given.add_argument("--steps", type=int, default=10, help="products of a query, of solving")
    given.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    given.add_argument("--num-train", type=int, default=6_000, help="items of fashion")
    given.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    given.add_argument("--kind", help=argparse.SUPPRESS)
    given.add_argument("--problem", help=argparse.SUPPRESS)
    given.add_argument("--kill-at", type=int, help=argparse.SUPPRESS)
    arguments = given.parse_args()
    if arguments.as_rank:
        work(arguments)
        return
    rows = [
        row
        for problem in arguments.problems
        for kind in arguments.kinds
        for row in (
            compare_split(arguments, problem)
            if kind == SHARDED
            else compare(arguments, problem, kind)
        )
    ]
    print_table(rows)
    write("devices", arguments, rows)


if __name__ == "__main__":
    main()
