"""Do tokens move their translations?  A small corpus in two made-up languages.

Words stand for concepts of three kinds: actors, deeds and things, in a few topics that go together.
Each concept has a word in either language, and the languages order a sentence differently.  Most
texts are in one language; some give a sentence in both, which is all that ties the words together.
A GPT is trained on all; train items are sentences of one language, queries of the other.

The correlation of a query word's loss with that of its translation is compared with its correlation
with other words of the same kind and topic, which are equally frequent; columns are permuted as a
control, and words of the same topic are compared with those of others.  The correlations are those
of the posterior at low temperature, solved for: draws drown in noise here.

    python -m benchmarks.language.translations --out benchmarks/results
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bif
from benchmarks.common import parser, print_table, write
from benchmarks.language.corpus import loss_a_token, train_
from benchmarks.language.word_pairs import bootstrap, p_value
from benchmarks.scaling.neox import Shape, network

TOPICS, WORDS = 6, 3
"""Topics, and the concepts of each kind in a topic."""
KINDS = 3
"""Actor, deed, thing."""
CONCEPTS = TOPICS * WORDS * KINDS
END, JOIN = 2 * CONCEPTS, 2 * CONCEPTS + 1
"""Tokens behind the words of both languages: the end of a sentence, and "in the other language"."""
LENGTH = 10
ORDERS = ((0, 1, 2), (2, 0, 1))
"""The order of the kinds in either language."""


@dataclass(frozen=True)
class Sentence:
    """Concepts of one sentence, one of each kind.

    Attributes:
        concepts: Their numbers, by kind.
    """

    concepts: tuple[int, ...]

    @classmethod
    def draw(cls, source: np.random.Generator) -> Sentence:
        topic = source.integers(TOPICS)
        words = source.integers(WORDS, size=KINDS)
        return cls(tuple(int((topic * KINDS + k) * WORDS + w) for k, w in enumerate(words)))

    def tokens(self, language: int) -> list[int]:
        """Return its words in a language, in that language's order."""
        return [self.concepts[kind] + language * CONCEPTS for kind in ORDERS[language]] + [END]


def text(source: np.random.Generator, *, parallel: float) -> list[int]:
    """Return a text of training: a sentence in both languages, or two sentences of one."""
    first = Sentence.draw(source)
    language = int(source.integers(2))
    if source.random() < parallel:
        return [*first.tokens(language)[:-1], JOIN, *first.tokens(1 - language)]
    return [*first.tokens(language), *Sentence.draw(source).tokens(language)]


def batch_of(texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return texts as padded batches; what is padded has no label."""
    ids = torch.full((len(texts), LENGTH), END)
    labels = torch.full_like(ids, -100)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = torch.tensor(tokens)
    return {"input_ids": ids, "labels": labels}


def items_of(sentences: Sequence[Sentence], language: int) -> bif.Items:
    """Return sentences as items, of which every word but the first has a column."""
    batch = batch_of([sentence.tokens(language) for sentence in sentences])
    mask = torch.zeros_like(batch["labels"], dtype=torch.bool)
    mask[:, 1:KINDS] = True
    return bif.Items(batch, token_mask=mask.numpy())


def rows(arguments: Any) -> list[dict[str, Any]]:
    """Train, attribute tokens, and compare translations with other words of kind and topic."""
    a = arguments
    source = np.random.default_rng(a.seed)
    shape = Shape("translations", a.layers, a.width, 4, 2 * CONCEPTS + 2)
    model: nn.Module = network(
        shape, length=LENGTH, seed=a.seed, device=a.device, dtype=torch.float32
    )
    texts = batch_of([text(source, parallel=a.parallel) for _ in range(a.texts)])
    texts = {name: leaf.to(a.device) for name, leaf in texts.items()}
    train_(model, texts, steps=a.steps, batch_size=64, rate=3e-3, seed=a.seed)
    train = [Sentence.draw(source) for _ in range(a.items)]
    queries = [Sentence.draw(source) for _ in range(a.queries)]
    problem = bif.Problem(
        model, bif.losses.next_token, train=items_of(train, 0), queries=items_of(queries, 1),
        candidates={"queries": items_of(queries, 1)}, tokens="both",
    )  # fmt: skip
    settings = bif.Settings(
        estimator="response", self_influence=True, nbeta=float(a.texts), seed=a.seed
    )
    run = bif.attribute(problem, settings, show_progress=True)
    dataset, columns = run.influence.dataset, KINDS - 1
    count = columns * len(train)
    spread = np.sqrt(np.abs(dataset["self_influence"].values))
    similar = -dataset["influence"].values[0][:, :count]
    similar = similar / (spread[count:, None] * spread[None, :count])
    of_query, of_train = _concepts(queries, 1), _concepts(train, 0)
    about = {
        "weights": shape.num_weights, "loss_a_token": loss_a_token(model, texts),
        "damping": run.summary["damping"], "solver_steps": run.summary["solver_steps"],
        "seconds": float(run.summary["seconds"]), "trusted": run.summary.trusted,
    }  # fmt: skip
    made = []
    for pairs, belong in (("translation", _translations), ("same topic", _same_topic)):
        found = _differences(similar, of_query, of_train, belong)
        shuffled = [
            float(np.mean(_differences(similar[:, order], of_query, of_train, belong)))
            for order in (source.permutation(similar.shape[1]) for _ in range(a.permutations))
        ]
        mean = bootstrap(found, seed=a.seed)
        low, high = np.percentile(shuffled, [2.5, 97.5])
        made += [
            {"pairs": pairs, "columns": "scores", "minus_others": mean.mean,
             "ci_low": mean.ci_low, "ci_high": mean.ci_high,
             "p_value": p_value(mean.mean, shuffled), "texts": mean.texts, **about},
            {"pairs": pairs, "columns": "shuffled", "minus_others": float(np.mean(shuffled)),
             "ci_low": float(low), "ci_high": float(high), "permutations": len(shuffled)},
        ]  # fmt: skip
    return made


def _concepts(sentences: Sequence[Sentence], language: int) -> np.ndarray:
    """Return the concept of each column, and the item that it is of, `[2, T]`."""
    columns = [
        (sentence.concepts[kind], i)
        for i, sentence in enumerate(sentences)
        for kind in ORDERS[language][1:]
    ]
    return np.array(columns).T


def _translations(concept: int, of_train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of a concept, and those of others of its kind and topic."""
    own = of_train == concept
    return own, (of_train // WORDS == concept // WORDS) & ~own


def _same_topic(concept: int, of_train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of others of its kind and topic, and those of its kind alone."""
    kind = of_train // WORDS % KINDS == concept // WORDS % KINDS
    topic = of_train // WORDS == concept // WORDS
    return topic & (of_train != concept), kind & ~topic


def _differences(
    similar: np.ndarray, of_query: np.ndarray, of_train: np.ndarray,
    belong: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[float]:  # fmt: skip
    """Return, for each query text, the mean over its words of what belongs minus what does not.

    Args:
        similar: Correlations of query and train tokens.
        of_query: Concepts and items of the query tokens, `[2, T]`.
        of_train: The same of the train tokens.
        belong: A function from a concept and those of the columns to two masks.
    """
    by_text: dict[int, list[float]] = {}
    for row, (concept, item) in enumerate(of_query.T):
        own, others = belong(int(concept), of_train[0])
        if own.any() and others.any():
            gap = similar[row, own].mean() - similar[row, others].mean()
            by_text.setdefault(int(item), []).append(float(gap))
    return [float(np.mean(gaps)) for gaps in by_text.values()]


DEFAULTS = {"layers": 2, "width": 48, "texts": 4000, "steps": 1500, "items": 128, "queries": 48,
            "permutations": 200}  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--parallel", type=float, default=0.3, help="share of texts in both")
    for name, value in DEFAULTS.items():
        options.add_argument(f"--{name}", type=int, default=value)
    arguments = options.parse_args()
    found = rows(arguments)
    print_table(found)
    print(write("translations", arguments, found))


if __name__ == "__main__":
    main()
