"""Test loss predicted from the draws on the train items alone, beside the loss of held-out items.

Five networks of a setting, of several numbers of train items and weight decays, on several draws of
the train items: by `bif.susceptibility.generalisation`, and by rivals: the train loss, the trace of
influence functions, the number of weights, and a held-out tenth.

    python -m benchmarks.generalisation digits --data DIR --out benchmarks/results
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

import bif
from benchmarks.common import mean_interval, parser, print_table, trust_figures, write
from bif.baselines import ExactInfluence
from bif.benchmark.tasks import digits, fashion
from bif.benchmark.tasks.files import find_path
from bif.evaluate import Recipe, train
from bif.losses import cross_entropy
from bif.susceptibility import generalisation

DAMPING = 1e-3
"""gamma/nbeta of all runs."""
CHAINS, DRAWS = 32, 110
TEMPERED = (0.25, 10.0)
"""Further temperatures, nbeta in units of the untempered one, of the first seed's sizes."""
BY_DEFAULT = "default"
"""Runs of the same at the untempered nbeta, with calibration's gamma."""
Rows = tuple[Tensor, Tensor]
"""Inputs and targets."""


class Network(NamedTuple):
    """What tells the networks of a setting apart."""

    num_train: int
    weight_decay: float


@dataclass(frozen=True)
class Setting:
    """Data, a network and how it is trained.

    Attributes:
        about: In words.
        read: Rows to train on, in an order by the seed, and held-out rows.
        layers: Makes an untrained network.
        rate: Of learning.
        sizes: Numbers of train items, rising.
        temperatures: Of the first seed's sizes, beside the untempered one.
    """

    about: str
    read: Callable[[Path, str], tuple[Rows, Rows]]
    layers: Callable[[], nn.Module]
    rate: float
    sizes: tuple[int, int, int]
    temperatures: tuple[float | str, ...] = ()

    @property
    def networks(self) -> list[Network]:
        """Return all sizes at one decay, and the middle one at two others."""
        middle = self.sizes[1]
        one = [Network(size, 5e-3) for size in self.sizes]
        return [*one, Network(middle, 2e-3), Network(middle, 2e-2)]


def read_digits(data: Path, device: str) -> tuple[Rows, Rows]:
    x, y = _tensors(digits.split(1497, seed=0, device=device)["train"])
    return (x[:900], y[:900]), (x[900:], y[900:])


def read_fashion(data: Path, device: str) -> tuple[Rows, Rows]:
    def pooled(part: str, count: int) -> Rows:
        x, y = _tensors(fashion.images(data, part, slice(0, count), device))
        return 0.25 * nn.functional.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1), y

    return pooled("train", 6000), pooled("t10k", 600)


def read_text(data: Path, device: str) -> tuple[Rows, Rows]:
    """Windows of three letters, one-hot, and the next one, of Shakespeare."""
    text = find_path(data, "tinyshakespeare/input.txt").read_text(encoding="utf-8").lower()
    letters = torch.tensor([_LETTERS.index(c) for c in re.sub("[^a-z]+", " ", text)])
    windows = letters.unfold(0, 4, 4)  # that do not overlap
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    rows = windows[order[:6800]].to(device)
    x = nn.functional.one_hot(rows[:, :3], len(_LETTERS)).flatten(1).float()
    return (x[800:], rows[800:, 3]), (x[:800], rows[:800, 3])


_LETTERS = " abcdefghijklmnopqrstuvwxyz"


def _tensors(items: bif.Items) -> Rows:
    assert isinstance(items.data, tuple)
    return items.data[0], items.data[1]


def _network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


SETTINGS = {
    "digits": Setting(
        "scikit-learn's digits, MLP 64-16-10 tanh, 1,210 weights", read_digits,
        lambda: _network(64, 16, 10), 0.2, (150, 300, 600),
        (*TEMPERED, BY_DEFAULT),
    ),
    "fashion": Setting(
        "Fashion-MNIST at 14 × 14 pixels, MLP 196-10-10 tanh, 2,080 weights", read_fashion,
        lambda: _network(196, 10, 10), 0.2, (250, 500, 1000),
    ),
    "letters": Setting(
        "the next letter of Shakespeare from three, MLP 81-10-27 tanh, 1,117 weights", read_text,
        lambda: _network(81, 10, 27), 0.2, (200, 400, 800),
    ),
}  # fmt: skip

# --- One network ----------------------------------------------------------------------------------


def trained(setting: Setting, rows: Rows, decay: float, seed: int, steps: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        layers = setting.layers().to(rows[0].device)
    recipe = Recipe(
        steps, setting.rate, momentum=0.9, weight_decay=decay, schedule="cosine"
    )  # fmt: skip
    return train(layers, cross_entropy, rows, recipe, seed=seed)


def case(
    setting: Setting, network: Network, rows: Rows, held_out: Rows, seed: int,
    temperatures: Sequence[float | str], arguments: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return what is predicted and what is so, for one network at some temperatures."""
    n, decay = network
    own = rows[0][:n], rows[1][:n]
    model = trained(setting, own, decay, seed, arguments.steps)
    problem = _posed(model, own, held_out)
    mean = float(_losses(model, own).mean())
    weights = sum(p.numel() for p in model.parameters())
    rivals = {
        "train loss": mean,
        "number of weights": mean + weights / n,
        "influence functions": mean + _trace(model, own, decay),
        "held-out tenth": _tenth(setting, own, decay, seed, arguments.steps),
    }
    found = []
    for factor in temperatures:
        nbeta = n * (1.0 if factor == BY_DEFAULT else float(factor))
        settings = bif.Settings(
            estimator="covariance", nbeta=nbeta, weight_decay=decay, seed=seed,
            gamma=None if factor == BY_DEFAULT else DAMPING * nbeta,
            chains=arguments.chains, block_size=arguments.chains, draws=arguments.draws,
        )  # fmt: skip
        began = time.perf_counter()
        run = bif.attribute(problem, settings)
        seconds = time.perf_counter() - began
        told = generalisation(run, likelihood_scale=1.0)
        found.append({
            **network._asdict(), "seed": seed, "temperature": factor, "nbeta": nbeta,
            "gamma": told.attrs["gamma"], **trust_figures(run),
            "ess_median": run.summary.ess_median, "seconds": seconds,
            "share_above_pareto_k": told.attrs["share_above_it"],
            "truth": _truth(run), "rivals": rivals,
            **{name: {str(of): told[name].sel(of=of).to_series().to_dict() for of in told.of.values}
               for name in ("loss", "chain_error", "item_error")},
        })  # fmt: skip
        shown = ("num_train", "temperature", "failed_gates", "rhat_max", "seconds")
        print({name: found[-1][name] for name in shown}, flush=True)
    return found


def _losses(model: nn.Module, rows: Rows) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model, rows).double()


def _posed(model: nn.Module, rows: Rows, queries: Rows) -> bif.Problem:
    itself = bif.Observable("loss", cross_entropy, "lower")  # not through its margin
    return bif.Problem(model, cross_entropy, train=rows, queries=queries, observables=[itself])


def _trace(model: nn.Module, rows: Rows, decay: float) -> float:
    """Return `(1/n²) Σ g_iᵀ (G + decay)⁻¹ g_i`, leaving out to first order at w*."""
    itself = _posed(model, rows, rows)
    fitted = ExactInfluence.fit(itself, curvature="gauss_newton")
    return -float(fitted.scores(itself, damping=decay).diagonal().mean()) / len(rows[0])


def _tenth(setting: Setting, rows: Rows, decay: float, seed: int, steps: int) -> float:
    kept = len(rows[0]) - len(rows[0]) // 10
    model = trained(setting, (rows[0][:kept], rows[1][:kept]), decay, seed, steps)
    return float(_losses(model, (rows[0][kept:], rows[1][kept:])).mean())


def _truth(run: bif.Run) -> dict[str, float]:
    """Return the mean loss of the held-out rows: at w*, over draws, of the averaged likelihood."""
    draws = torch.cat([query.double() for _, _, query in run.traces.each_chain()])
    averaged = np.log(len(draws)) - torch.logsumexp(-draws, dim=0)
    return {
        "center": float(run.influence.dataset["query_center"].mean()),
        "draws": float(draws.mean()), "predictive": float(averaged.mean()),
    }  # fmt: skip


# --- All networks ---------------------------------------------------------------------------------


def summary(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how far each prediction is from what is so, by temperature: over seeds."""
    rows = []
    for temperature in dict.fromkeys(c["temperature"] for c in cases):
        own = [c for c in cases if c["temperature"] == temperature]
        rivals = own[0]["rivals"] if temperature == 1.0 else ()
        named = {("center", name): [c["rivals"][name] for c in own] for name in rivals}
        for of in own[0]["loss"]:
            named |= {(of, k): [c["loss"][of][k] for c in own] for k in own[0]["loss"][of]}
        for (of, name), predicted in named.items():
            rows.append({
                "temperature": temperature, "of": of, "by": name,
                **_figures(own, np.asarray(predicted), of),
                "trusted": f"{sum(c['trusted'] for c in own)} of {len(own)}",
            })  # fmt: skip
    return rows


def _figures(cases: Sequence[Mapping[str, Any]], told: np.ndarray, of: str) -> dict[str, Any]:
    truth = np.array([c["truth"][of] for c in cases])
    seeds = np.array([c["seed"] for c in cases])
    each = [seeds == seed for seed in np.unique(seeds)]
    off = mean_interval([float((told - truth)[one].mean()) for one in each])
    away = mean_interval([float(np.abs(told / truth - 1)[one].mean()) for one in each])
    ranks = [np.corrcoef(rankdata(told[one]), rankdata(truth[one]))[0, 1] for one in each]
    return {
        "mean_test_loss": float(truth.mean()), "mean_prediction": float(told.mean()),
        "off": off["mean"], "off_low": off["ci_low"], "off_high": off["ci_high"],
        "relative": away["mean"], "relative_low": away["ci_low"],
        "relative_high": away["ci_high"], "rank_correlation": float(np.mean(ranks)),
        "networks": len(cases), "seeds": len(each),
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("setting", choices=SETTINGS)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--chains", type=int, default=CHAINS)
    options.add_argument("--draws", type=int, default=DRAWS)
    options.add_argument("--steps", type=int, default=1500, help="of training")
    options.add_argument("--tiny", action="store_true", help="the small networks of one seed")
    arguments = options.parse_args()
    if arguments.data is None:
        options.error("--data is needed: the folder with the standard data files.")
    setting = SETTINGS[arguments.setting]
    pool, held_out = setting.read(arguments.data, arguments.device)
    cases = []
    for seed in range(1 if arguments.tiny else arguments.seeds):
        order = torch.randperm(len(pool[0]), generator=torch.Generator().manual_seed(seed))
        rows = pool[0][order], pool[1][order]
        for place, network in enumerate(setting.networks[: 2 if arguments.tiny else None]):
            further = seed == 0 and place < len(setting.sizes)
            temperatures = [1.0, *setting.temperatures] if further else [1.0]
            cases += case(setting, network, rows, held_out, seed, temperatures, arguments)
    rows = summary(cases)
    print_table(rows)
    plan = {"chains": arguments.chains, "draws": arguments.draws, "steps": arguments.steps}
    write(
        f"generalisation-{arguments.setting}", arguments, rows, about=setting.about,
        damping=DAMPING, plan=plan, held_out=len(held_out[0]), cases=cases,
    )  # fmt: skip


if __name__ == "__main__":
    main()
