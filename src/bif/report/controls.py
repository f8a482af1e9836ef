"""The section of controls: how far the scores agree with what knows nothing of the posterior."""

from __future__ import annotations

import numpy as np

from bif.report.markup import MISSING, escape, number
from bif.report.source import Source

CONTROLS = {
    "nbeta_0": ("a Gaussian ball, nbeta = 0", "draws that know nothing of the data"),
    "gradient_product": ("gradient product", "the limit of large gamma"),
    "shuffled": ("chains shuffled", "no influence at all, the errors of the run"),
}


def controls_section(source: Source) -> str:
    """Return how the scores agree with each control; empty where there are none."""
    rows = "".join(
        f'<tr><th scope="row">{title} <small>{meaning}</small></th>'
        + "".join(f"<td>{cell}</td>" for cell in _agreements(source, name))
        + "</tr>"
        for name, (title, meaning) in CONTROLS.items()
        if name in source.controls
    )
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in source.observables)
    return (
        '<section aria-labelledby="controls"><h2 id="controls">Beside the controls</h2>'
        "<p>Rank correlation of the scores with each control over the training items, median over "
        "queries. What agrees with the first two is there without the posterior; agreement with "
        "shuffled chains should be 0.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Controls">'
        f'<table class="signs"><thead><tr><th scope="col">Control</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _agreements(source: Source, name: str) -> list[str]:
    return [
        _cell(agreement(source.score[o], source.controls[name][o]))
        for o in range(len(source.observables))
    ]


def agreement(score_QN: np.ndarray, control_QN: np.ndarray) -> float:
    """Return Spearman's correlation over items, median over queries; NaN where there is none."""
    from scipy.stats import spearmanr

    found = []
    for score, control in zip(score_QN, control_QN, strict=True):
        known = np.isfinite(score) & np.isfinite(control)
        own, other = score[known], control[known]
        if known.sum() > 2 and np.ptp(own) > 0 and np.ptp(other) > 0:
            found.append(spearmanr(own, other)[0])
    return float(np.median(found)) if found else float("nan")


def _cell(value: float) -> str:
    return number(value, digits=2) if np.isfinite(value) else MISSING
