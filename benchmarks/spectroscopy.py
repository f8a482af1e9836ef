"""Clusters of tokens by the susceptibilities of heads and MLPs of stories260K, beside nulls.

Each component has runs of its own, of several seeds of the sampler.  Are the clusters of tokens the
same for other seeds, and are they more than what the token is?

    python -m benchmarks.spectroscopy --data DIR --out benchmarks/results
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

import bif
from benchmarks.common import parser, print_table, write
from bif.benchmark.tasks import stories
from bif.estimate.partitions import adjusted_rand_index
from bif.language import movable_weights
from bif.susceptibility import (
    SusceptibilityMatrix,
    component_runs,
    context_clusters,
    principal_directions,
    susceptibility_matrix,
)

LAYERS, HEADS, MLPS = (0, 2, 4), (0, 4), (0, 4)
START, LENGTH = 40, 24
"""Tokens of a story that are taken: all begin alike."""
GAMMA, STEP, FRICTION, THIN, BURN_IN = 1000.0, 0.02, 63.0, 3, 15
"""At which a draw of a component is worth about .7 independent ones."""
CHANCE = 1000
"""Shuffles of labels for the agreement by chance."""
FEWEST = 4
"""Contexts with a token from which its mean is taken off."""


def components(model: nn.Module) -> dict[str, Sequence[str]]:
    """Return the weights of some heads and MLPs."""
    found: dict[str, Sequence[str]] = {
        f"head {layer}.{head}": movable_weights(model, heads=[(layer, head)])
        for layer in LAYERS
        for head in HEADS
    }
    return found | {f"MLP {layer}": (f"model.layers.{layer}.mlp.*",) for layer in MLPS}


def cut(items: bif.Items, count: int) -> bif.Items:
    """Return the middle of the first stories that are long enough."""
    assert isinstance(items.data, dict)
    ids, labels = (items.data[name] for name in ("input_ids", "labels"))
    long = (labels[:, START + LENGTH - 1] != -100).nonzero()[:count, 0]
    window = ids[long, START : START + LENGTH]
    known = window.clone()
    known[:, 0] = -100  # nothing is in front of it
    return bif.Items({"input_ids": window, "labels": known}, token_mask=known != -100)


def next_tokens(matrix: SusceptibilityMatrix, queries: bif.Items) -> np.ndarray:
    """Return the token of every context, by its name `ITEM[t]`."""
    assert isinstance(queries.data, dict)
    rows = {str(name): row for row, name in enumerate(queries.ids)}
    found = []
    for name in matrix.contexts:
        item, _, place = name.rpartition("[")
        row = rows[item.split("/")[-1]]
        found.append(int(queries.data["input_ids"][row, int(place[:-1])]))
    return np.asarray(found)


def without_tokens(matrix: SusceptibilityMatrix, tokens: np.ndarray) -> SusceptibilityMatrix:
    """Return the matrix of contexts whose token is frequent, less each token's mean."""
    names, counts = np.unique(tokens, return_counts=True)
    kept = np.isin(tokens, names[counts >= FEWEST])
    groups = [np.flatnonzero(tokens[kept] == name) for name in np.unique(tokens[kept])]

    def less(x: np.ndarray) -> np.ndarray:
        y = x[..., kept].copy()
        for places in groups:
            y[..., places] -= y[..., places].mean(axis=-1, keepdims=True)
        return y

    contexts = tuple(np.asarray(matrix.contexts)[kept].tolist())
    return replace(
        matrix, contexts=contexts, value=less(matrix.value), noise=less(matrix.noise),
        halves=less(matrix.halves),
    )  # fmt: skip


def chance(first: np.ndarray, second: np.ndarray, seed: int) -> float:
    """Return the 97.5 % quantile of the index of labels that are shuffled."""
    rng = np.random.default_rng(seed)
    found = [adjusted_rand_index(first, rng.permutation(second)) for _ in range(CHANCE)]
    return float(np.quantile(found, 0.975))


def of_one_seed(matrix: SusceptibilityMatrix, tokens: np.ndarray, what: str) -> dict[str, Any]:
    """Return the clusters of one seed's matrix."""
    found, directions = context_clusters(matrix), principal_directions(matrix)
    names = np.unique(tokens, return_inverse=True)[1]
    return {
        "what": what, "contexts": len(matrix.contexts), "count": found.count,
        "agreement": found.agreement, "separation": found.separation, **found.nulls,
        "above_nulls": found.above_nulls, "directions": directions.num_kept,
        "token_agreement": adjusted_rand_index(found.labels, names),
        "token_chance": chance(found.labels, names, 0),
        "reliability": dict(zip(matrix.components, matrix.reliability().tolist(), strict=True)),
        "failed_gates": dict(matrix.failed_gates),
    }  # fmt: skip


def over_seeds(matrices: Sequence[SusceptibilityMatrix], count: int, what: str) -> dict[str, Any]:
    """Return how far clusters of other seeds are the same, and their directions."""
    labels = [context_clusters(one, count, num_shuffles=20).labels for one in matrices]
    pairs = list(combinations(range(len(labels)), 2))
    values = [adjusted_rand_index(labels[a], labels[b]) for a, b in pairs]
    same = [
        np.corrcoef(matrices[a].standardised().ravel(), matrices[b].standardised().ravel())[0, 1]
        for a, b in pairs
    ]
    return {
        "what": what, "count": count, "agreement": float(np.mean(values)),
        "agreements": values, "agreement_by_chance": float(
            np.mean([chance(labels[a], labels[b], a) for a, b in pairs])
        ),
        "correlation_of_matrices": float(np.mean(same)),
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--stories", type=int, default=16, help="train items, and queries")
    options.add_argument("--chains", type=int, default=4)
    options.add_argument("--draws", type=int, default=32)
    arguments = options.parse_args()
    if arguments.data is None:
        options.error("--data is needed: the folder with the standard data files.")
    model = stories.published_model(arguments.data).to(arguments.device)
    parts = stories.split(arguments.data, size=128, seed=0, device=arguments.device)
    train, queries = (cut(parts[name], arguments.stories) for name in ("train", "queries"))
    problem = bif.Problem(
        model, bif.losses.next_token, train=train, queries=queries, tokens="query",
        tied_weights="share",
    )  # fmt: skip
    matrices, seconds = [], []
    for seed in range(arguments.seeds):
        settings = bif.Settings(
            nbeta=float(len(train)), gamma=GAMMA, mass="identity", step_size=STEP,
            friction=FRICTION, thin=THIN, burn_in=BURN_IN, chains=arguments.chains,
            block_size=arguments.chains, draws=arguments.draws, seed=1000 * seed,
        )  # fmt: skip
        began = time.perf_counter()
        runs = component_runs(problem, components(model), settings)
        seconds.append(time.perf_counter() - began)
        matrices.append(susceptibility_matrix(runs, contexts="query"))
        print(seed, seconds[-1], matrices[-1].reliability().round(2), flush=True)
    tokens = next_tokens(matrices[0], queries)
    names, counts = np.unique(tokens, return_counts=True)
    frequent = tokens[np.isin(tokens, names[counts >= FEWEST])]
    less = [without_tokens(one, tokens) for one in matrices]
    rows = []
    for ones, own, what in ((matrices, tokens, "tokens"), (less, frequent, "less token means")):
        found = [of_one_seed(one, own, what) | {"seed": k} for k, one in enumerate(ones)]
        rows += [*found, over_seeds(ones, found[0]["count"], f"{what}, over seeds")]
    print_table([{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows])
    plan = {name: getattr(arguments, name) for name in ("stories", "chains", "draws", "seeds")}
    write(
        "spectroscopy", arguments, rows, plan=plan, nbeta=float(len(train)), gamma=GAMMA,
        seconds=seconds, components=list(components(model)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
