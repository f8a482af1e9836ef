"""Twenty problems with nothing wrong, none of which the gates may refuse.

Small models of many kinds, trained to a minimum of what the library is told of, attributed with
default settings.  A row says what was refused and by which gate.

    python -m benchmarks.converged.healthy --out benchmarks/results
    python -m benchmarks.converged.healthy --problems "an LSTM" --seeds 5 --out DIR
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bif
from benchmarks.common import minimise_, parser, print_table, side_by_side, standard_normal, write
from bif.types import Batch

Loss = Callable[[nn.Module, Batch], Tensor]

DECAY = 1e-3
FIGURES = ("trusted", "rhat_max", "reliability", "ess_median", "virial", "virial_error",
           "step_share")  # fmt: skip


@dataclass(frozen=True)
class HealthyProblem:
    """A model to be trained, its items, queries, loss and settings.

    Attributes:
        model: The untrained model.
        train: The train items.
        queries: The queries, or groups of them.
        loss: The loss of items.
        settings: The settings that a user would give.
        weights: Weights of the items in training.
    """

    model: nn.Module
    train: tuple[Tensor, ...]
    queries: Any
    loss: Loss = bif.losses.cross_entropy
    settings: bif.Settings = field(default_factory=lambda: bif.Settings(weight_decay=DECAY))
    weights: Tensor | None = None

    def problem(self) -> bif.Problem:
        """Return the problem after training."""
        _train(self)
        return bif.Problem(
            self.model, self.loss, train=self.train, queries=self.queries,
            train_weights=self.weights,
        )  # fmt: skip


def _train(asked: HealthyProblem, *, warm_up: int = 200) -> None:
    """Train by Adam on all items, then by L-BFGS to a minimum of mean loss and weight decay."""
    model, decay = asked.model.eval(), asked.settings.weight_decay
    weights = torch.ones(len(asked.train[0])) if asked.weights is None else asked.weights

    def objective() -> Tensor:
        mean = (weights * asked.loss(model, asked.train)).mean()
        return mean + 0.5 * decay * sum(p.square().sum() for p in model.parameters())

    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(warm_up):
        adam.zero_grad()
        objective().backward()
        adam.step()
    minimise_(model.parameters(), objective, max_iter=400, history_size=20)


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared error, summed over outputs."""
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(dim=1)


def poisson(model: nn.Module, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of counts."""
    x, y = batch
    return F.poisson_nll_loss(model(x)[:, 0], y, reduction="none")


def huber(model: nn.Module, batch: Batch) -> Tensor:
    """Return the Huber loss: the distance counts, not its square, for residuals beyond 1."""
    x, y = batch
    return F.huber_loss(model(x), y, reduction="none").sum(dim=1)


class LSTMClassifier(nn.Module):
    """A classifier by the last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of sequences `[B, T, 3]`."""
        return self.head(self.lstm(x)[0][:, -1])


class AttentionClassifier(nn.Module):
    """A classifier by one layer of attention over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.places = nn.Parameter(0.1 * torch.randn(6, 8))
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of tokens `[B, 6]`."""
        h = self.embed(tokens) + self.places
        q, k, v = self.qkv(self.norm(h)).chunk(3, dim=-1)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head(h.mean(dim=1))


class ResidualClassifier(nn.Module):
    """A classifier of two normalised layers beside a skip."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.start, self.norm = nn.Linear(inputs, 10), nn.LayerNorm(10)
        self.inner, self.head = nn.Linear(10, 10), nn.Linear(10, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        h = self.start(x)
        return self.head(h + F.silu(self.inner(self.norm(h))))


def _mlp(inputs: int, hidden: int, outputs: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), activation, nn.Linear(hidden, outputs))


def _set(name: str, count: int, queries: int = 20) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return standardised items and queries of one of scikit-learn's sets, in random order."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(0).permutation(len(found.data))
    x = found.data[order]
    x = (x - x[:count].mean(0)) / (x[:count].std(0) + 1e-6)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(found.target[order])
    if not y.dtype == torch.long:
        y = ((y - y.mean()) / y.std()).float().unsqueeze(1)
    return (x[:count], y[:count]), (x[count : count + queries], y[count : count + queries])


def _digits(count: int, *, pictures: bool = False) -> tuple[tuple[Tensor, Tensor], ...]:
    train, queries = _set("digits", count)
    if pictures:
        return tuple((x.reshape(-1, 1, 8, 8), y) for x, y in (train, queries))
    return train, queries


def _linear_targets(count: int, inputs: int, outputs: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return targets with noise of variance 1, so that a squared error is a log-likelihood."""
    x = standard_normal(count + 20, inputs, seed=1)
    y = 2 * x @ standard_normal(inputs, outputs, seed=2) + standard_normal(
        count + 20, outputs, seed=3
    )
    return (x[:count], y[:count]), (x[count:], y[count:])


def _classes(count: int, inputs: int, classes: int, *, flipped: float = 0.0, seed: int = 0):
    """Return classes by the largest of noisy linear functions."""
    x = standard_normal(count + 20, inputs, seed=seed)
    scores = 1.5 * x @ standard_normal(inputs, classes, seed=seed + 1)
    y = (scores + standard_normal(count + 20, classes, seed=seed + 2)).argmax(dim=1)
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(seed)) < flipped
    y = torch.where(wrong, (y + 1) % classes, y)
    return (x[:count], y[:count]), (x[count:], y[count:])


def _iris(settings: bif.Settings) -> HealthyProblem:
    train, queries = _set("iris", 120)
    return HealthyProblem(nn.Linear(4, 3), train, queries, settings=settings)


def _iris_network() -> HealthyProblem:
    train, queries = _set("iris", 120)
    settings = bif.Settings(weight_decay=DECAY, retrained_from="checkpoint")
    return HealthyProblem(_mlp(4, 8, 3, nn.Tanh()), train, queries, settings=settings)


def _wine() -> HealthyProblem:
    train, queries = _set("wine", 140)
    return HealthyProblem(_mlp(13, 10, 3, nn.GELU()), train, queries)


def _convolution() -> HealthyProblem:
    train, queries = _digits(200, pictures=True)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 10))
    return HealthyProblem(model, train, queries)


def _linear() -> HealthyProblem:
    train, queries = _linear_targets(200, 6, 1)
    return HealthyProblem(nn.Linear(6, 1), train, queries, squared, bif.Settings())


def _ridge() -> HealthyProblem:
    train, queries = _set("diabetes", 250)
    return HealthyProblem(
        nn.Linear(10, 1), train, queries, squared, bif.Settings(weight_decay=0.05)
    )


def _counts() -> HealthyProblem:
    x = standard_normal(320, 3, seed=5)
    rate = (x @ torch.tensor([0.5, -0.4, 0.2]) + 0.6).exp()
    y = torch.poisson(rate, generator=torch.Generator().manual_seed(6))
    return HealthyProblem(
        nn.Linear(3, 1), (x[:300], y[:300]), (x[300:], y[300:]), poisson, bif.Settings()
    )


def _curve() -> HealthyProblem:
    x = torch.linspace(-2, 2, 160).unsqueeze(1)
    y = (2 * x).sin() / 0.3 + standard_normal(160, 1, seed=4)
    asked = slice(None, None, 16)
    return HealthyProblem(_mlp(1, 8, 1, nn.Tanh()), (x, y), (x[asked], y[asked]), squared)


def _cancer() -> HealthyProblem:
    train, queries = _set("breast_cancer", 300)
    return HealthyProblem(_mlp(30, 6, 2, nn.ReLU()), train, queries)


def _digits_silu() -> HealthyProblem:
    train, queries = _digits(300)
    return HealthyProblem(_mlp(64, 8, 10, nn.SiLU()), train, queries)


def _sequences() -> HealthyProblem:
    x = standard_normal(220, 7, 3, seed=8)
    y = (x.cumsum(1)[:, -1, 0] + 0.5 * standard_normal(220, seed=9) > 0).long()
    return HealthyProblem(LSTMClassifier(), (x[:200], y[:200]), (x[200:], y[200:]))


def _tokens() -> HealthyProblem:
    tokens = torch.randint(0, 12, (148, 6), generator=torch.Generator().manual_seed(3))
    y = (tokens < 4).sum(dim=1).clamp(1, 3) - 1
    return HealthyProblem(AttentionClassifier(), (tokens[:128], y[:128]), (tokens[128:], y[128:]))


def _bags() -> HealthyProblem:
    words = torch.randint(0, 30, (420, 8), generator=torch.Generator().manual_seed(2))
    y = ((words < 15).float().mean(1) + 0.15 * standard_normal(420, seed=7) > 0.5).long()
    model = nn.Sequential(nn.EmbeddingBag(30, 4), nn.Linear(4, 2))
    return HealthyProblem(model, (words[:400], y[:400]), (words[400:], y[400:]))


def _normalised() -> HealthyProblem:
    train, queries = _classes(300, 8, 3)
    norm = nn.BatchNorm1d(10)
    norm(standard_normal(300, 10, seed=3))  # running figures of something
    return HealthyProblem(
        nn.Sequential(nn.Linear(8, 10), norm, nn.Tanh(), nn.Linear(10, 3)), train, queries
    )


def _several_outputs() -> HealthyProblem:
    train, queries = _linear_targets(120, 5, 3)
    return HealthyProblem(_mlp(5, 6, 3, nn.Tanh()), train, queries, squared)


def _weighted() -> HealthyProblem:
    train, queries = _classes(200, 5, 2, seed=11)
    weights = 0.5 + 2 * torch.rand(200, generator=torch.Generator().manual_seed(1))
    return HealthyProblem(nn.Linear(5, 2), train, queries, weights=weights)


def _groups() -> HealthyProblem:
    train, queries = _classes(400, 6, 3, seed=21)
    parts = {"first": tuple(q[:8] for q in queries), "second": tuple(q[8:] for q in queries)}
    return HealthyProblem(_mlp(6, 6, 3, nn.Softplus()), train, parts)


def _many() -> HealthyProblem:
    train, queries = _classes(1500, 6, 2, seed=31)
    return HealthyProblem(_mlp(6, 6, 2, nn.ELU()), train, queries)


def _few() -> HealthyProblem:
    train, queries = _classes(40, 2, 2, seed=41)
    return HealthyProblem(_mlp(2, 4, 2, nn.Tanh()), train, queries)


def _flipped() -> HealthyProblem:
    train, queries = _classes(350, 5, 3, flipped=0.15, seed=51)
    return HealthyProblem(ResidualClassifier(5, 3), train, queries)


def _outliers() -> HealthyProblem:
    train, queries = _linear_targets(150, 4, 1)
    train[1][::10] += 8
    return HealthyProblem(nn.Linear(4, 1), train, queries, huber, bif.Settings())


PROBLEMS: dict[str, Callable[[], HealthyProblem]] = {
    "iris, softmax": lambda: _iris(bif.Settings(weight_decay=DECAY)),
    "wine, GELU": _wine,
    "digits, a convolution": _convolution,
    "iris, from the checkpoint": _iris_network,
    "linear regression": _linear,
    "diabetes, ridge": _ridge,
    "Poisson regression": _counts,
    "a curve, tanh": _curve,
    "breast cancer, ReLU": _cancer,
    "digits, SiLU": _digits_silu,
    "an LSTM": _sequences,
    "attention over tokens": _tokens,
    "an embedding bag": _bags,
    "BatchNorm in evaluation mode": _normalised,
    "three outputs": _several_outputs,
    "weighted items": _weighted,
    "two groups of queries, Softplus": _groups,
    "1,500 items, ELU": _many,
    "40 items, tanh": _few,
    "flipped labels, a residual block": _flipped,
    "outliers, Huber": _outliers,
}


def row(name: str, made: HealthyProblem, seed: int) -> dict[str, Any]:
    """Return the figures of one run, and the gates that failed."""
    started = time.perf_counter()
    about = {"problem": name, "items": len(made.train[0]), "seed": seed}
    problem = made.problem()
    about["weights"] = sum(p.numel() for p in made.model.parameters())
    try:
        run = bif.attribute(problem, replace(made.settings, seed=seed, estimator="covariance"))
    except (ValueError, RuntimeError) as error:
        return {**about, "trusted": False, "failed": f"{type(error).__name__}: {error}"}
    settings, gates = run.manifest["settings"], run.manifest["gates"]
    return {
        **about,
        **{figure: run.summary[figure] for figure in FIGURES},
        "failed": ", ".join(gate["name"] for gate in gates if gate["failed"]) or "none",
        "reasons": [gate["reason"] for gate in gates if gate["failed"]],
        **{name: settings[name] for name in ("nbeta", "gamma", "mass", "step_size", "thin")},
        "lost": len(run.summary["diverged_chains"]),
        "seconds": time.perf_counter() - started,
    }


def healthy_run(asked: tuple[str, int]) -> dict[str, Any]:
    """Return a problem's row with a seed of sampling; its network is always the same."""
    name, seed = asked
    torch.manual_seed(0)
    return row(name, PROBLEMS[name](), seed)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    options.add_argument("--seeds", type=int, default=1, help="runs a problem")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = options.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    asked = [(name, seed) for name in arguments.problems for seed in seeds]
    rows: list[dict[str, Any]] = []
    for found in side_by_side(healthy_run, asked, arguments.jobs):
        rows.append(found)
        print({k: v for k, v in found.items() if k != "reasons"}, flush=True)
        write("healthy", arguments, rows)
    print_table([{k: v for k, v in row.items() if k != "reasons"} for row in rows])
    refused = sum(not row["trusted"] for row in rows)
    print(f"{refused} of {len(rows)} refused")


if __name__ == "__main__":
    main()
