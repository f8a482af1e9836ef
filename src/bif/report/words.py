"""The words that a page may use beyond plain English, one line each, shown where they occur."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bif.report.markup import escape

WORDS = {
    "influence": "how a query's loss (or another quantity) changes as an item's weight does",
    "query": "an example whose prediction is to be explained",
    "observable": "a quantity of a query that is explained, such as its loss or its margin",
    "margin": "how much the model prefers the label to all other classes; higher is better",
    "draw": "a slightly changed copy of the trained weights at which all losses are recorded",
    "chain": "a sequence of draws, each a few steps after the one before, from the trained weights",
    "burn-in": "the first steps of a chain, which are not recorded",
    "thin": "steps of a chain from one draw to the next",
    "gate": "a figure with a limit; a run is trusted if none exceeds its own",
    "mixing": "whether the chains have come to the same; judged by R-hat",
    "reliability": "agreement of the scores of two halves of the run; 1 is the best",
    "R-hat": "spread between chains relative to that within them; 1 if the chains agree",
    "effective sample size": "the number of independent draws that would tell as much",
    "ESS": "effective sample size: the number of independent draws that would tell as much",
    "nbeta": "how strongly draws follow the training data, counted in items",
    "gamma": "how strongly draws are held near the trained weights",
    "damping": "what is added to the curvature of the loss, gamma/nbeta, so that it has an inverse",
    "local posterior": "the distribution of the draws: low loss, and near the trained weights",
    "linear part": "the influence if losses were linear in the weights; solved for, not sampled",
    "self-influence": "the influence of an item on its own loss; far from 0 if it is fitted alone",
    "gradient product": "product of the gradients of an item and a query: no curvature at all",
    "residual": "what is left unsolved of a query's equations; 0 is the best",
    "first order": "a prediction as if the change were linear in the weights of the items",
    "second order": "the same with the curvature of the change",
    "re-weighted draws": "a prediction of all orders, from the same draws counted by new weights",
    "loss kernel": "correlations of the items' losses over the draws",
    "UMAP": "a way to place items in a plane that keeps neighbours, not distances",
    "PCA": "a way to place items in a plane: the two directions in which they differ most",
    "R²": "share of what retraining changed that a prediction explains; 1 is the best",
    "Bonferroni": "a correction for looking at many pairs: fewer than 5 % of pages err at all",
}  # fmt: skip
"""In plain English; `docs/glossary.md` has each with its formula."""


def words_section(parts: Iterable[str]) -> str:
    """Return the words that occur in some parts of a page, folded; empty if none does."""
    text = " ".join(
        re.sub(r"<script.*?</script>|<[^>]*>", " ", part, flags=re.DOTALL) for part in parts
    )
    rows = "".join(
        f"<div><dt>{escape(word)}</dt><dd>{escape(meaning)}</dd></div>"
        for word, meaning in WORDS.items()
        if re.search(rf"\b{re.escape(word)}", text, flags=re.IGNORECASE if word.islower() else 0)
    )
    if not rows:
        return ""
    return (
        '<details class="words-used"><summary>Words</summary>'
        f'<dl class="notes">{rows}</dl></details>'
    )
