"""The loss kernel of handwritten digits: held-out chains, flipped labels, and its linear part.

A network of 4,810 weights learns 1,000 digits.  Neighbours by a quarter of the chains are held
against those of the others, as sampled and cleaned; flipped labels are sought by the scores of
`bif.kernel.suspects`; and the sampled kernel is held against its linear part.

    python -m benchmarks.kernel.digits --out benchmarks/results
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bif
from benchmarks.common import mean_interval, parser, print_table, trust_figures, write
from benchmarks.kernel.noise import COUNT, ESTIMATES
from bif.estimate.partitions import adjusted_rand_index
from bif.evaluate import auroc
from bif.kernel import clusters, linear_kernel, linear_share, shared_neighbours, suspects

ITEMS, CHAINS, DRAWS, DAMPING = 1000, 16, 250, 0.2
SCORES = {"class_margin": -1, "loss_variance": 1, "mean_loss": 1, "label_disagreement": 1,
          "opposition": 1}  # fmt: skip
"""Scores of suspects, and the sign with which they are large for flipped labels."""


def data(seed: int, flipped: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels, given labels and true labels of all digits."""
    from sklearn.datasets import load_digits

    pixels, true = load_digits(return_X_y=True)
    source = np.random.default_rng(seed)
    order = source.permutation(len(true))
    given = true[order].copy()
    some = source.choice(ITEMS, round(flipped * ITEMS), replace=False)
    given[some] = (given[some] + source.integers(1, 10, len(some))) % 10
    x = torch.tensor(pixels[order] / 16).float()
    return x, torch.tensor(given), torch.tensor(true[order])


def sampled(
    seed: int, *, flipped: float = 0.0, colder: float = 1.0
) -> tuple[bif.Problem, bif.Run, Tensor]:
    """Return the problem of a trained network, its run, and the true labels of the items."""
    x, given, true = data(seed, flipped)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(60):
        for batch in torch.randperm(ITEMS).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), given[batch]).backward()
            optimizer.step()
    items = bif.Items((x[:ITEMS], given[:ITEMS]), labels=[str(int(k)) for k in given[:ITEMS]])
    problem = bif.Problem(
        model, bif.losses.cross_entropy, train=items, queries=(x[ITEMS:], given[ITEMS:])
    )
    nbeta = colder * ITEMS
    settings = bif.Settings(
        estimator="covariance", chains=CHAINS, draws=DRAWS, nbeta=nbeta, gamma=DAMPING * nbeta,
        seed=seed,
    )  # fmt: skip
    return problem, bif.attribute(problem, settings), true[:ITEMS]


def held_out(run: bif.Run) -> list[dict[str, Any]]:
    """Return the share of the long chains' neighbours that a few other chains find."""
    kernel = bif.loss_kernel(run)
    chains = torch.arange(CHAINS)
    few, others = (kernel.of_chains(part) for part in chains.split([CHAINS // 4, 3 * CHAINS // 4]))
    return [
        {"kernel": name, "found": float(shared_neighbours([made(few), others], COUNT).mean())}
        for name, made in ESTIMATES.items()
    ]


def flipped_labels(run: bif.Run, true: Tensor) -> list[dict[str, Any]]:
    """Return the AUROC of each score, and how often the true class is that it moves against."""
    kernel = bif.loss_kernel(run)
    found = suspects(kernel)
    wrong = np.array(kernel.labels["label"]).astype(int) != true.numpy()
    rows: list[dict[str, Any]] = [
        {"score": name, "found": auroc(np.nan_to_num(sign * found[name].values), wrong)}
        for name, sign in SCORES.items()
    ]
    for name in ("moves_against", "moves_with"):
        hits = found[name].values[wrong].astype(int) == true.numpy()[wrong]
        rows.append({"score": f"{name} the true class", "found": float(hits.mean())})
    groups = clusters(kernel)
    rows.append({"score": "clusters", "found": float(groups.count)})
    rows.append({"score": "clusters agree between halves", "found": groups.agreement})
    index = adjusted_rand_index(groups.labels, true.numpy())
    rows.append({"score": "clusters agree with true classes", "found": index})
    return rows


def linear_part(problem: bif.Problem, run: bif.Run) -> list[dict[str, Any]]:
    """Return the share of correlations of different items that is linear."""
    kernel, settings = bif.loss_kernel(run), run.manifest["settings"]
    linear = linear_kernel(problem, kernel, nbeta=settings["nbeta"], gamma=settings["gamma"])
    share = linear_share(kernel, linear)
    return [
        {"score": "correlation with the linear part", "found": share.correlation},
        {"score": "its square", "found": share.share},
        {"score": "slope", "found": share.slope},
        {"score": "variance, linear over sampled", "found": share.variance_share},
    ]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=3)
    arguments = options.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    trusted: dict[str, list[bool]] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for flipped, colder in ((0.0, 1.0), (0.05, 1.0), (0.2, 1.0), (0.0, 100.0)):
            problem, run, true = sampled(seed, flipped=flipped, colder=colder)
            setting = f"{flipped:.0%} flipped, nbeta {colder:g} n"
            trusted.setdefault(setting, []).append(bool(trust_figures(run)["trusted"]))
            rows = flipped_labels(run, true) if flipped else linear_part(problem, run)
            rows += held_out(run) if not flipped and colder == 1 else []
            for row in rows:
                name = row.get("score") or f"15 nearest of other chains, {row['kernel']}"
                found.setdefault((setting, name), []).append(row["found"])
            print(f"seed {seed}, {setting}")
    table = [
        {"setting": setting, "figure": name, **mean_interval(values),
         "trusted": sum(trusted[setting])}
        for (setting, name), values in found.items()
    ]  # fmt: skip
    print_table(table)
    print(write("kernel-digits", arguments, table))


if __name__ == "__main__":
    main()
