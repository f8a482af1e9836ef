"""How many effective draws a setting needs: from gradients alone, and as runs had it.

Noise in a covariance of N independent draws has variance `Var(l_i)·Var(phi) / N`.  With
`K = g_iᵀ (H + gamma/nbeta)⁻¹ g_j` for the covariances, as EK-FAC has H, the signal of a draw is

    s = Var_i(K_ij) / (mean_i K_ii · K_jj),    reliability of N draws: N·s / (1 + N·s).

So 1/s effective draws have a reliability of one half.  Items whose whitened gradients are nearly
orthogonal need many, whatever the sampler.  Beside it the same figure as the newest run of `lds.py`
had it, from its reliability and its effective draws: `N·(1 - R) / R`.

    python benchmarks/alignment.py digits concrete --data DIR --out benchmarks/results
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from common import newest, parser, print_table, write

from bif.baselines import EKFAC
from bif.benchmark import SETTINGS, Task, named_task
from bif.problem.items import Items
from bif.problem.problem import Observable

MOST_ITEMS = 200
"""Train items that stand for queries: to first order a margin's row is its loss's times a number.
"""


def signal(task: Task) -> float:
    """Of one independent draw, the median over train items in the place of queries."""
    problem, settings = task.problem, task.settings[0]
    assert settings.nbeta is not None and settings.gamma is not None
    order = torch.randperm(problem.num_train, generator=torch.Generator().manual_seed(0))
    chosen = order[:MOST_ITEMS].sort().values
    asked = problem.asking(
        {"train": Items(problem.train.take(chosen))},
        observables=[Observable("loss", problem.loss, "lower")],
    )
    damping = settings.gamma / settings.nbeta + settings.weight_decay
    fitted = EKFAC.fit(asked, other_layers="leave_out", fisher_type=task_fisher(task))
    products = -fitted.scores(asked, damping=damping)  # [J, N]
    own = products[torch.arange(len(chosen)), chosen]
    others = torch.ones_like(products, dtype=torch.bool)
    others[torch.arange(len(chosen)), chosen] = False
    spread = torch.stack([row[keep].var() for row, keep in zip(products, others, strict=True)])
    return float((spread / (own.mean() * own)).median())


def task_fisher(task: Task) -> Any:
    """The exact Gauss-Newton matrix; sampled for language models, whose outputs are too many."""
    items = task.problem.train.first(1)
    return "mc" if isinstance(items, Mapping) and "input_ids" in items else "type-2"


def of_the_run(setting: str) -> dict[str, Any]:
    """Effective draws and reliability of the newest committed run."""
    run = newest(f"lds-{setting}")
    rows = run["rows"] if run else []
    own = [r for r in rows if r["method"] == "bif" and r.get("reliability") and r.get("ess_median")]
    if run is None or not own:
        return {}
    ess, reliability = own[0]["ess_median"], own[0]["reliability"]
    return {
        "run": f"lds-{setting}-{run['date']}.json",
        "effective_draws": ess,
        "reliability": reliability,
        "draws_for_half_in_the_run": ess * (1 - reliability) / reliability,
    }


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("settings", nargs="+", choices=SETTINGS)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in arguments.settings:
        task = named_task(setting, arguments.data, device=arguments.device, seed=arguments.seed)
        started = time.perf_counter()
        found = signal(task)
        rows.append({
            "setting": setting, "draws_for_half": 1 / found, **of_the_run(setting),
            "seconds": time.perf_counter() - started,
        })  # fmt: skip
        print(rows[-1], flush=True)
        write("alignment", arguments, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
