"""Real text: a small GPT trained and attributed in one seeded call, and what its scores are worth.

A BPE and a GPT are trained on WikiText-2 and TinyStories. Then, with error bars and controls:

* `tokens`: token influence links the same word, its variants, and paired tokens (quotes and
  brackets, names that come again) more than pairs matched by frequency within the same text.
* `planted`: a passage copied into the training text, looked for by its paraphrase.
* `lds`: fine-tuning on half-subsets, predicted by the BIF, the response estimator and EK-FAC.

    python -m benchmarks.language --data DIR --out benchmarks/results --device cuda
    python -m benchmarks.language --data DIR --out results --tiny
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

import bif
from benchmarks.common import parser, print_table, trust_figures, write
from benchmarks.language.corpus import (
    documents,
    loss_a_token,
    sample_evenly,
    train_,
    train_tokenizer,
)
from benchmarks.language.fine_tuning import BATCH, METHODS, lds_rows
from benchmarks.language.paraphrases import paraphrase, ranks, shared_words
from benchmarks.language.word_pairs import CLASSES, bootstrap, matched_pairs, p_value, tokens_of
from benchmarks.scaling.neox import Shape, network
from bif import baselines
from bif.curvature.products import require_curvature
from bif.language import Document, language_problem

PARTS = ("tokens", "planted", "lds")


def settings(a: argparse.Namespace) -> bif.Settings:
    """Return settings of BAOAB with full gradients, one live chain after another."""
    fast = a.device.startswith("cuda")
    precision = "bfloat16" if fast else "float32"
    return bif.Settings(
        chains=a.chains, draws=a.draws, oracle="live", compiled=fast, chunk_size=a.chunk,
        gradient_precision=precision, loss_precision=precision, device=a.device, seed=a.seed,
    )  # fmt: skip


def pair_settings(s: bif.Settings, a: argparse.Namespace) -> bif.Settings:
    """Return the settings for pairs of chains, which need copies of the weights."""
    # Curvatures span a factor of 50 by the default of gamma: a mass would not pay.
    return replace(
        s, oracle="stacked", compiled=False, block_size=a.response_block, mass="identity",
        gradient_precision=None, loss_precision=None,
    )  # fmt: skip


class Text:
    """The documents, the tokenizer and the sizes of the benchmark."""

    def __init__(self, a: argparse.Namespace) -> None:
        found = documents(a.data)[: a.documents]
        self.held_out = found[::20]
        self.train = [d for i, d in enumerate(found) if i % 20]
        self.planted = sample_evenly(self.held_out, a.planted, seed=a.seed)
        planted = {d.id for d in self.planted}
        self.queries = [d for d in self.held_out if d.id not in planted]
        self.tokenizer = train_tokenizer((d.text for d in self.train), pieces=a.pieces)
        self.arguments = a

    @property
    def nbeta(self) -> float:
        """nbeta of the untempered posterior of all train documents, some of which are scored."""
        return float(len(self.train) + len(self.planted))

    def problem(self, model: nn.Module, train: Sequence[Document], queries: Any,
                **given: Any) -> bif.Problem:  # fmt: skip
        return language_problem(
            model, self.tokenizer, train=train, queries=queries,
            max_length=given.pop("length", self.arguments.length), loss=bif.losses.next_token,
            **given,
        )  # fmt: skip

    def model(self) -> tuple[nn.Module, dict[str, Any]]:
        """Train a GPT on the train documents and the planted ones, all of their text.

        Returns:
            The model, and how it went; a thousand items measure the train loss.
        """
        a = self.arguments
        shape = Shape("GPT", a.layers, a.width, max(1, a.width // 32), len(self.tokenizer))
        made = network(shape, length=a.length, seed=a.seed, device="cpu", dtype=torch.float32)
        model = made.to(a.device)
        whole = self.problem(model, [*self.train, *self.planted], self.queries, long="split")
        items, others = (
            group.to(torch.device(a.device)) for group in (whole.train, whole.query_groups["query"])
        )
        started = time.perf_counter()
        train_(
            model, items.first(len(items)), steps=a.steps, batch_size=64, rate=a.rate, seed=a.seed
        )
        seconds = time.perf_counter() - started
        train_loss = loss_a_token(model, items.first(min(1000, len(items))))
        held_out_loss = loss_a_token(model, others.first(len(others)))
        return model, {
            "weights": sum(p.numel() for p in model.parameters()), "documents": len(self.train),
            "held_out": len(self.held_out), "training_steps": a.steps, "training_seconds": seconds,
            "train_loss": train_loss, "held_out_loss": held_out_loss,
            "gap": held_out_loss - train_loss,
        }  # fmt: skip


def token_rows(text: Text, model: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Yield correlations of token losses over draws: belonging pairs minus matched ones."""
    a = text.arguments
    train = sample_evenly(text.train, a.token_items, seed=a.seed)
    queries = sample_evenly(text.queries, a.token_queries, seed=a.seed)
    problem = text.problem(model, train, queries, tokens="both")
    run = bif.attribute(problem, replace(settings(a), nbeta=text.nbeta), show_progress=True)
    similar = -run.influence.dataset["correlation"].values[0]
    of_train = [token for found in _tokens_by_item(problem.train) for token in found]
    pairs = [
        matched_pairs(found, of_train, most=a.pairs, seed=a.seed + i)
        for i, found in enumerate(_tokens_by_item(problem.query_groups["query"]))
    ]
    source = np.random.default_rng(a.seed)
    orders = [source.permutation(similar.shape[1]) for _ in range(a.permutations)]
    rows = []
    for name in CLASSES:
        own = [np.array(found[name]) for found in pairs if found[name]]
        if not own:
            continue
        about = {"part": "tokens", "pairs": name, "num_pairs": sum(map(len, own))}
        found = bootstrap([_difference(similar, p) for p in own], seed=a.seed)
        shuffled = [
            float(np.mean([_difference(similar, p, order) for p in own])) for order in orders
        ]
        low, high = np.percentile(shuffled, [2.5, 97.5])
        rows += [
            {
                **about, "columns": "scores",
                "correlation": float(np.mean([similar[p[:, 0], p[:, 1]].mean() for p in own])),
                "minus_matched": found.mean, "ci_low": found.ci_low, "ci_high": found.ci_high,
                "p_value": p_value(found.mean, shuffled), "texts": found.texts,
            },
            {
                **about, "columns": "shuffled", "minus_matched": float(np.mean(shuffled)),
                "ci_low": float(low), "ci_high": float(high), "permutations": len(orders),
            },
        ]  # fmt: skip
    yield [{**row, **_run_figures(run)} for row in rows]


def _difference(similar: np.ndarray, pairs: np.ndarray, order: np.ndarray | None = None) -> float:
    """Return the mean difference over one text's pairs `[P, 3]`, columns permuted if asked for."""
    query, own, control = pairs.T
    if order is not None:
        own, control = order[own], order[control]
    return float((similar[query, own] - similar[query, control]).mean())


def _tokens_by_item(items: bif.Items) -> list[list[Any]]:
    """Return tokens of every item, with their columns."""
    assert items.tokens is not None and items.token_mask is not None
    mask = items.token_mask
    columns = np.where(mask, np.cumsum(mask).reshape(mask.shape) - 1, -1)
    return [
        tokens_of(pieces, columns[i][: len(pieces)].tolist(), i)
        for i, pieces in enumerate(items.tokens)
    ]


def planted_rows(text: Text, model: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Yield ranks of planted passages for their paraphrases, and for others' as a control."""
    a = text.arguments
    others = sample_evenly(text.train, a.passages - len(text.planted), seed=a.seed)
    train = [*text.planted, *others]
    asked = [replace(d, text=paraphrase(d.text), id=f"like-{d.id}") for d in text.planted]
    problem = text.problem(model, train, asked)
    run = bif.attribute(problem, replace(settings(a), nbeta=text.nbeta), show_progress=True)
    scored = {"bif": run.influence.dataset["influence"].values[0],
              "bif, correlation": run.influence.dataset["correlation"].values[0]}  # fmt: skip
    started = time.perf_counter()
    scored["gradient_product"] = baselines.gradient_product(problem).numpy()
    scored["gradient_cosine"] = baselines.gradient_cosine(problem).numpy()
    gradient_seconds = time.perf_counter() - started
    own = np.arange(len(asked))
    shared = [shared_words(d.text, q.text) for d, q in zip(text.planted, asked, strict=True)]
    rows = []
    for method, scores in scored.items():
        for query, places in (("paraphrase", own), ("another passage's", np.roll(own, 1))):
            rank = ranks(scores, places.tolist())
            first = int((rank == 1).sum())
            low, high = binomtest(first, len(rank)).proportion_ci(method="wilson")
            rows.append(
                {
                    "part": "planted", "method": method, "query": query,
                    "first": first / len(rank), "ci_low": low, "ci_high": high,
                    "median_rank": float(np.median(rank)), "worst_rank": float(rank.max()),
                    "planted": len(rank), "passages": len(train),
                    "shared_runs": float(np.mean(shared)),
                }
            )  # fmt: skip
            ours = method.startswith("bif")
            rows[-1] |= _run_figures(run) if ours else {"seconds": gradient_seconds}
    yield rows


def fine_tuning_rows(text: Text, model: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Yield the LDS of fine-tuning the GPT on half of a few passages that it has not seen."""
    a = text.arguments
    count = a.lds_items + a.lds_queries + a.lds_tuning_queries
    found = sample_evenly(text.queries, count, seed=a.seed + 1)
    order = np.random.default_rng(a.seed).permutation(len(found))
    own, asked, tuning = (
        [found[i] for i in part]
        for part in np.split(order, [a.lds_items, a.lds_items + a.lds_queries])
    )
    fine_tune = functools.partial(_fine_tune, model, a.lds_steps, a.lds_rate)

    def train(start: nn.Module | None, items: Any, seed: int) -> nn.Module:
        return fine_tune(items, seed)[0]

    draft = text.problem(model, own, asked, length=a.lds_length)
    items = draft.train.to(torch.device(a.device))
    tuned, path = fine_tune(items.first(len(items)), a.seed)
    groups = {"query": asked, "tuning": tuning}
    problem = text.problem(tuned, own, groups, length=a.lds_length)
    own_settings = replace(settings(a), draws=a.lds_draws)
    yield from lds_rows(
        problem, train, own_settings, arguments=a, pairs=pair_settings(own_settings, a), path=path
    )


def _fine_tune(
    base: nn.Module, steps: int, rate: float, items: Any, seed: int
) -> tuple[nn.Module, list[nn.Module]]:
    """Return the fine-tuned model, and the models on the way to it, the first one among them."""
    model = copy.deepcopy(base)
    path = train_(
        model, items, steps=steps, batch_size=BATCH, rate=rate, seed=seed,
        keep_every=max(1, steps // 4),
    )  # fmt: skip
    return model, path


def _run_figures(run: bif.Run) -> dict[str, Any]:
    """Return draws, seconds and trust of a run."""
    return {
        "draws": run.traces.total_draws, "seconds": float(run.summary["seconds"]),
        **trust_figures(run),
    }  # fmt: skip


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--methods", nargs="+", choices=METHODS, help="of `lds`, in their order")
    made.add_argument("--tiny", action="store_true", help="sizes for a minute on a CPU")
    made.add_argument("--name", default="language", help="of the JSON file")
    made.add_argument(
        "--response-dampings", nargs="+", type=float, default=[0.3, 1.0, 3.0],
        help="of the response estimator at temperature 0, in units of that at temperature 1",
    )  # fmt: skip
    made.add_argument(
        "--response-curvatures", nargs="+", type=require_curvature, default=["hessian"]
    )
    for name, value in DEFAULTS.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=None)
    return made


DEFAULTS: Mapping[str, Any] = {
    "documents": 100_000, "pieces": 3000, "width": 192, "layers": 6, "length": 128,
    "steps": 1500, "rate": 2e-3, "chains": 8, "chunk": 128, "draws": 500,
    "token_items": 128, "token_queries": 32, "pairs": 500, "permutations": 200,
    "planted": 16, "passages": 256,
    "lds_items": 64, "lds_queries": 32, "lds_tuning_queries": 16, "lds_length": 64,
    "lds_subsets": 40, "lds_seeds": 2, "lds_steps": 40, "lds_rate": 5e-4,
    "lds_draws": 1000, "response_steps": 60, "response_block": 32,
}  # fmt: skip
TINY: Mapping[str, Any] = {
    "documents": 400, "pieces": 400, "width": 32, "layers": 2, "length": 32,
    "steps": 60, "chains": 2, "draws": 40,
    "token_items": 12, "token_queries": 4, "pairs": 50, "permutations": 20,
    "planted": 4, "passages": 24,
    "lds_items": 8, "lds_queries": 4, "lds_tuning_queries": 2, "lds_length": 16,
    "lds_subsets": 10, "lds_seeds": 2, "lds_steps": 6,
    "lds_draws": 40, "response_steps": 6, "response_block": 4,
}  # fmt: skip


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, each with its default or that of `--tiny`."""
    a = options().parse_args(words)
    for name, value in DEFAULTS.items():
        if getattr(a, name) is None:
            setattr(a, name, TINY.get(name, value) if a.tiny else value)
    if a.data is None:
        raise SystemExit("--data: the folder with wikitext-2 and tinystories is needed")
    return a


def main() -> None:
    a = parse_arguments()
    text = Text(a)
    model, about = text.model()
    print_table([about])
    sizes = {name: getattr(a, name) for name in DEFAULTS}
    makers = {"tokens": token_rows, "planted": planted_rows, "lds": fine_tuning_rows}
    rows: list[dict[str, Any]] = []
    for part in a.only:
        started = time.perf_counter()
        made: list[dict[str, Any]] = []
        for made in makers[part](text, model):  # all of the part so far: a run may be cut off
            write(a.name, a, rows + made, about=about, sizes=sizes, tiny=a.tiny)
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        print_table([{k: v for k, v in row.items() if k != "tuned"} for row in made])
        rows += made


if __name__ == "__main__":
    main()
