"""What it costs that nothing is lost: a run on disk with all traces, beside the same in memory.

The baseline keeps sums in memory alone.  Both end with the same results written as a run's folder,
report included: the baseline's in memory, the other's on disk.  Runs take turns, so that ratios
are paired; after each the traces on disk are read back and give the same scores.  One overhead is
of the whole run; one leaves out what a run of four draws takes, mostly compiling.

    python -m benchmarks.durability --out benchmarks/results
    python -m benchmarks.durability --data DIR --out benchmarks/results --device cuda
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bif
from benchmarks import throughput
from benchmarks.common import parser, print_table, write
from bif import store
from bif.cli.digits_demo import RECIPE, digits
from bif.estimate import estimate_covariance
from bif.problem.identity import identity
from bif.runs.attribute import run_attribution
from bif.runs.retention import Keep
from bif.runs.run import Run


def demo(arguments: Any) -> tuple[bif.Problem, bif.Settings]:
    """Return the problem and settings of `bif demo`."""
    chosen = bif.Settings(seed=arguments.seed, weight_decay=RECIPE.weight_decay)
    return digits(arguments.seed).problem, chosen


def fashion(arguments: Any) -> tuple[bif.Problem, bif.Settings]:
    """Return BAOAB on the Fashion-MNIST network, as `throughput` has it."""
    chosen = throughput.settings(
        "baoab", arguments.num_train, chains=arguments.chains, draws=arguments.draws, fast=True,
        device=arguments.device,
    )  # fmt: skip
    return throughput.fashion(arguments), chosen


def time_run(
    made: bif.Problem, chosen: bif.Settings, keep: Keep, folder: Path | None
) -> tuple[Run, dict[str, float]]:
    """Run from settings to a folder of results, and return the run and its seconds."""
    manifest = {"identity": identity(made, chosen.as_dict()), "keep": keep}
    started = time.perf_counter()
    with store.open_run(folder or "memory://baseline", manifest, on_existing="replace") as opened:
        run = run_attribution(made, chosen, folder=opened if folder else None, keep=keep)
        scored = time.perf_counter()
        run.write(opened)
    ended = time.perf_counter()
    return run, {"to_scores": scored - started, "seconds": ended - started}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--pairs", type=int, default=4)
    options.add_argument("--chains", type=int, default=128)
    options.add_argument("--draws", type=int, default=200, help="of each chain, Fashion-MNIST")
    options.add_argument("--num-train", type=int, default=6000)
    arguments = options.parse_args()
    name = "fashion" if arguments.data else "demo"
    made, chosen = (fashion if arguments.data else demo)(arguments)
    place = Path(tempfile.mkdtemp(prefix="bif-durability-"))
    few = replace(chosen, draws=4)
    time_run(made, few, "sums", None)  # warm: kernels are in the compiler's cache, files in memory
    setup = time_run(made, few, "sums", None)[1]["seconds"]
    rows = []
    for pair in range(arguments.pairs):
        seconds = {}
        for kind in ("memory", "disk") if pair % 2 == 0 else ("disk", "memory"):
            folder = place / str(pair) if kind == "disk" else None
            run, seconds[kind] = time_run(
                made, chosen, "sums" if folder is None else "traces", folder
            )
            if folder is not None:
                again = estimate_covariance(bif.load(folder).traces).value
                shape = run.influence.dataset["influence"].shape
                np.testing.assert_allclose(
                    -again.reshape(shape), run.influence.dataset["influence"], rtol=1e-5, atol=1e-9
                )
                size = sum(f.stat().st_size for f in (folder / "traces.zarr").rglob("*"))
                shutil.rmtree(folder)
        row = {
            "run": name, "pair": pair, "draws": run.summary["draws"],
            "seconds_memory": seconds["memory"]["seconds"],
            "seconds_disk": seconds["disk"]["seconds"],
            "overhead": seconds["disk"]["seconds"] / seconds["memory"]["seconds"] - 1,
            "overhead_to_scores": seconds["disk"]["to_scores"] / seconds["memory"]["to_scores"] - 1,
            "overhead_without_setup": (seconds["disk"]["seconds"] - seconds["memory"]["seconds"])
            / (seconds["memory"]["seconds"] - setup),
            "traces_mib": size / 2**20,
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    mean: dict[str, Any] = {"run": name, "pair": "mean", "draws": rows[0]["draws"]}
    for key in ("seconds_memory", "seconds_disk", "overhead", "overhead_to_scores",
                "overhead_without_setup", "traces_mib"):  # fmt: skip
        mean[key] = float(np.mean([row[key] for row in rows]))
    spread = np.std([row["overhead"] for row in rows], ddof=1) if len(rows) > 1 else np.nan
    mean["overhead_error"] = float(spread / np.sqrt(len(rows)))
    rows.append(mean)
    shutil.rmtree(place)
    print_table(rows)
    if torch.cuda.is_available() and arguments.device.startswith("cuda"):
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    print(write(f"durability-{name}", arguments, rows))


if __name__ == "__main__":
    main()
