"""What anchors save: errors of scores by draws alone, by a solve alone, and by both.

Small sets (`SETS` of benchmarks.calibration.small) at temperatures from n to 100 n, at the default
damping and at a larger one.  The reference is a run of another seed with eight times the draws of a
chain, by plain covariances; its own errors are taken off the mean squares.

    python -m benchmarks.anchored --out benchmarks/results
    python -m benchmarks.anchored --sets wine --nbeta 1 10 --draws 50 --out DIR
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

import bif
from benchmarks.calibration.small import small_task
from benchmarks.common import parser, print_table, write

SETS = ("wine", "cancer", "diabetes", "digits")
_SHOWN = (
    "set", "nbeta/n", "gamma/nbeta", "covariance_error", "response_error", "anchored_error",
    "variance_left", "worth", "kappa",
)  # fmt: skip
_REFERENCE = 8
"""Draws of the reference, in units of a run's."""


def measure(
    name: str, times_n: float, damping: float | None, *, draws: int, device: str, seed: int
) -> dict[str, Any]:
    """Return relative errors of the three estimators at one posterior, and what they cost."""
    task = small_task(name, device=device, seed=seed)
    problem, decay = task.problem, task.settings[0].weight_decay
    nbeta = times_n * problem.num_train
    settings = bif.Settings(
        nbeta=nbeta, gamma=damping and damping * nbeta, weight_decay=decay, chains=16, draws=draws,
        seed=seed,
    )  # fmt: skip
    runs = {"covariance": bif.attribute(problem, replace(settings, estimator="covariance"))}
    chosen = runs["covariance"].manifest.settings
    settings = replace(settings, gamma=chosen["gamma"])
    runs["anchored"] = bif.attribute(problem, replace(settings, estimator="anchored"))
    longer = replace(settings, estimator="covariance", draws=_REFERENCE * draws, seed=seed + 1)
    reference = bif.attribute(problem, longer)
    of_chains = ("chains", "draws")
    solved = settings.reopened(estimator="response", **dict.fromkeys(of_chains))
    runs["response"] = bif.attribute(problem, solved)
    known = reference.influence.dataset
    row = {
        "set": name, "items": problem.num_train, "queries": problem.num_queries,
        "nbeta/n": times_n, "gamma/nbeta": chosen["gamma"] / chosen["nbeta"], "draws": draws * 16,
        "reference_trusted": reference.summary.trusted,
        "reference_failed": reference.failed_gates,
        "reference_error": _relative(known["standard_error"], known["influence"]),
        **{f"{n}_error": _relative_error(r, reference) for n, r in runs.items()},
        **{f"{n}_seconds": r.summary.seconds for n, r in runs.items()},
        **{f"{n}_trusted": r.summary.trusted for n, r in runs.items()},
        **{n: runs["anchored"].summary[n] for n in ("variance_left", "effective_draws", "slopes")},
    }  # fmt: skip
    row["worth"] = row["effective_draws"] / row["draws"]
    row["kappa"] = float(runs["anchored"].influence.shrunk_to_linear().dataset["kappa"].median())
    return row


def _relative(part: Any, whole: Any) -> float:
    return float(np.sqrt((part.values**2).mean() / (whole.values**2).mean()))


def _relative_error(run: bif.Run, reference: bif.Run) -> float:
    """Return the root mean square error of scores against the reference, in units of these."""
    found, known = (r.influence.dataset for r in (run, reference))
    squares = ((found["influence"] - known["influence"]).values ** 2).mean()
    squares -= (known["standard_error"].values ** 2).mean()
    return float(np.sqrt(max(squares, 0.0) / (known["influence"].values ** 2).mean()))


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sets", nargs="+", default=list(SETS))
    options.add_argument("--nbeta", nargs="+", type=float, default=[1, 10, 100])
    options.add_argument("--dampings", nargs="+", type=float, default=[0, 0.1], help="0: default")
    options.add_argument("--draws", type=int, default=200, help="of each of 16 chains")
    arguments = options.parse_args()
    rows = []
    for name, damping, times_n in product(arguments.sets, arguments.dampings, arguments.nbeta):
        rows.append(
            measure(name, times_n, damping or None, draws=arguments.draws,
                    device=arguments.device, seed=arguments.seed)
        )  # fmt: skip
        print({n: rows[-1][n] for n in _SHOWN}, flush=True)
    write("anchored", arguments, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
