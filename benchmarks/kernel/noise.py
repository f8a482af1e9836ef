"""Whether cleaning a loss kernel helps, where the true kernel is known.

Losses are linear in Gaussian weights, so the correlations of 1,000 items are the cosines of their
gradients.  From a few draws: the root mean square error of correlations of different items, and the
share of an item's true 15 nearest that are found.

    python -m benchmarks.kernel.noise --out benchmarks/results
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import mean_interval, parser, print_table, standard_normal, write
from bif.estimate.item_kernel import FeatureKernel, ItemKernel
from bif.estimate.loss_kernel import LossKernel
from bif.estimate.neighbours import kept_share
from bif.kernel import cleaned

ITEMS, COUNT, CHAINS = 1000, 15, 16
SPECTRA = {"flat, 200 weights": (200, 0.0), "falling, 2,000 weights": (2000, 1.0)}
"""Number of weights, and the power of their number by which their variances fall."""
DRAWS = (128, 512, 2048)


def gradients(num_weights: int, power: float, seed: int) -> Tensor:
    """Return gradients of items in 20 groups."""
    groups = standard_normal(20, num_weights, seed=2 * seed)[torch.arange(ITEMS) % 20]
    rows = 0.7 * groups + 0.7 * standard_normal(ITEMS, num_weights, seed=2 * seed + 1)
    return (rows * torch.arange(1.0, num_weights + 1) ** (-power / 2)).double()


def kernel_of(losses: Tensor) -> LossKernel:
    """Return the kernel of losses `[N, M]`, whose draws are taken as 16 chains."""
    chains = torch.arange(losses.shape[1]) * CHAINS // losses.shape[1]
    return LossKernel(losses, chains, tuple(map(str, range(len(losses)))), {})


def principal(kernel: LossKernel, count: int) -> FeatureKernel:
    """Return the kernel of the largest principal components."""
    u, s, _ = torch.linalg.svd(kernel.embedding().double(), full_matrices=False)
    return FeatureKernel(u[:, :count] * s[:count], kernel.ids, kernel.labels)


def marchenko_pastur(kernel: LossKernel) -> FeatureKernel:
    """Return the kernel of the components above the edge that independent losses have."""
    edge = (1 + (len(kernel) / len(kernel.chains)) ** 0.5) ** 2
    sizes = torch.linalg.svdvals(kernel.embedding().double()).square()
    return principal(kernel, max(1, int((sizes > edge).sum())))


def ledoit_wolf(kernel: LossKernel) -> FeatureKernel:
    """Return correlations shrunk towards the identity, which leaves their order as it is."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    x = kernel.embedding().double()
    shrunk = ledoit_wolf_shrinkage(x.T.numpy() * x.shape[1] ** 0.5, assume_centered=True)
    own = shrunk**0.5 * torch.eye(len(x), dtype=torch.float64)
    return FeatureKernel(torch.cat([(1 - shrunk) ** 0.5 * x, own], dim=1), kernel.ids, {})


ESTIMATES: dict[str, Callable[[LossKernel], ItemKernel]] = {
    "as sampled": lambda kernel: kernel,
    "cleaned by held-out chains": cleaned,
    "Ledoit-Wolf": ledoit_wolf,
    "Marchenko-Pastur": marchenko_pastur,
    "50 principal components": lambda kernel: principal(kernel, 50),
}


def judge(found: ItemKernel, true: ItemKernel) -> dict[str, float]:
    """Return the error of correlations, and the share of neighbours that are true ones."""
    off = ~np.eye(len(true), dtype=bool)
    error = (found.block().double() - true.block().double()).numpy()[off]
    shared = kept_share(found.nearest(COUNT)[0], true.nearest(COUNT)[0])
    return {"error": float((error**2).mean() ** 0.5), "neighbours": float(shared.mean())}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=5)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    for spectrum, (num_weights, power) in SPECTRA.items():
        for draws in DRAWS:
            judged: dict[str, list[dict[str, float]]] = {name: [] for name in ESTIMATES}
            for seed in range(arguments.seed, arguments.seed + arguments.seeds):
                g = gradients(num_weights, power, seed)
                true = FeatureKernel(nn.functional.normalize(g), tuple(map(str, range(ITEMS))), {})
                kernel = kernel_of(g @ standard_normal(num_weights, draws, seed=seed + 99).double())
                for name, estimate in ESTIMATES.items():
                    judged[name].append(judge(estimate(kernel), true))
            rows += [
                {"spectrum": spectrum, "draws": draws, "kernel": name, **_means(found)}
                for name, found in judged.items()
            ]
            print_table(rows[-len(ESTIMATES) :])
    print(write("kernel-noise", arguments, rows))


def _means(found: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in found[0]:
        interval = mean_interval([one[name] for one in found])
        row |= {name: interval["mean"], f"{name}_low": interval["ci_low"]}
        row[f"{name}_high"] = interval["ci_high"]
    return {**row, "seeds": len(found)}


if __name__ == "__main__":
    main()
