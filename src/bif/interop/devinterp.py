"""Chains that devinterp has saved: a run with errors, R-hat, reliability and gates from its losses.

Written for devinterp 2.0.1, whose `sample(…, output_path=…)` writes the losses of every observable
at every draw, `loss_NAME` `[chain, draw, item, token]`, to a zarr folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bif.estimate.dataset import ScoreAxes, estimate_influence
from bif.estimate.diagnostics import diagnose
from bif.estimate.traces import LossTraces, TraceBlock
from bif.problem.array_layout import Panels
from bif.results.influence import Influence
from bif.runs.records import Manifest
from bif.runs.run import Run
from bif.runs.summary import figures_of, judge
from bif.store import folder_at, load_dataset

if TYPE_CHECKING:
    import xarray as xr

_LOSS, _TOKENS = "loss_", "input_ids_"


def read_devinterp_run(
    path: str | Path,
    *,
    train: str,
    queries: Sequence[str] | None = None,
    num_train: int | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> Run:
    """Return a run from the losses that devinterp's `sample` has saved.

    An item's loss is the mean over its tokens, of which devinterp's U is `n_beta` times the mean.
    `influence` is `-Cov` within chains; devinterp's own covariance pools the chains, and so counts
    how far their means are apart, which is not influence but chains that have not mixed.
    Chains with losses that are not finite are left out and counted.  Nothing is known of w*, so
    what compares with it is missing, and dropout that was on while losses were recorded does not
    show.

    Args:
        path: The zarr folder, or its URL.
        train: The observable whose items are those of training.
        queries: The observables whose items are asked about; by default all others, or the train
            items themselves where there is none.
        num_train: Items of the data that were sampled on, for the derivatives; by default those of
            `train`, which may be a part of them.
        decode: Makes a text of token ids, such as `tokenizer.decode`; then items have texts.

    Returns:
        A run in memory; items are named by their place in the observable, which devinterp has
        shuffled, queries as "NAME/place".  `save` writes it.

    Raises:
        FileNotFoundError: No zarr folder.
        DamagedRun: It cannot be read.
        KeyError: No such observable.
        ValueError: No folder of devinterp; fewer than two chains that are whole.

    Source: devinterp 2.0.1, `devinterp/slt/sampling.py`.
    """
    folder = folder_at(path)
    dataset = load_dataset(folder, name="samples.zarr")
    sampler = _sampler_of(dataset, str(folder))
    names = sorted(n.removeprefix(_LOSS) for n in map(str, dataset) if n.startswith(_LOSS))
    asked = list(queries) if queries is not None else [n for n in names if n != train] or [train]
    for name in (train, *asked):
        if name not in names:
            raise KeyError(f"{folder} has no observable {name!r}: there are {names}; name one.")
    losses = {n: _losses(dataset, n) for n in {train, *asked}}
    traces, lost = _traces(losses[train], [losses[n] for n in asked], str(folder))
    axes = ScoreAxes(
        observables={"loss": "lower"},
        query_ids=[f"{n}/{i}" for n in asked for i in range(losses[n].shape[2])],
        query_groups=[n for n in asked for _ in range(losses[n].shape[2])],
        train_ids=[str(i) for i in range(losses[train].shape[2])],
        nbeta=float(sampler["n_beta"]),
        num_train=num_train,
    )
    complete = dataset.attrs.get("completed") == 1
    scores = estimate_influence(traces, axes).assign_attrs(
        gamma=float(sampler["localization"]), complete=int(complete)
    )
    if decode is not None:
        texts = {"train": [train], "query": asked}
        scores = scores.assign_coords(
            {f"{side}_text": (side, _texts(dataset, n, decode)) for side, n in texts.items()}
        )
    return _judged(scores, traces, sampler, source=str(folder), lost=lost, complete=complete)


def _sampler_of(dataset: xr.Dataset, source: str) -> dict[str, Any]:
    """Return devinterp's settings of the sampler."""
    found = dataset.attrs
    for name in ("metadata", "config", "sampler"):
        found = found.get(name, {}) if isinstance(found, dict) else {}
    missing = {"n_beta", "localization", "num_steps_bw_draws"} - set(found)
    if missing:
        raise ValueError(
            f"{source} is no folder of devinterp's sample: its metadata lack {sorted(missing)}. "
            "Pass the output_path of devinterp 2."
        )
    return dict(found)


def _losses(dataset: xr.Dataset, name: str) -> torch.Tensor:
    """Return the losses of an observable's items, the mean over their tokens, `[C, D, N]`."""
    found = dataset[f"{_LOSS}{name}"].transpose("chain", "draw", f"batch_{name}", "token_pos")
    return torch.from_numpy(found.values).mean(dim=3)


def _traces(
    train: torch.Tensor, queries: list[torch.Tensor], source: str
) -> tuple[LossTraces, list[int]]:
    """Return the traces of the chains that are whole, and which are not."""
    query = torch.cat(queries, dim=2)
    whole = train.isfinite().all(dim=(1, 2)) & query.isfinite().all(dim=(1, 2))
    kept, lost = whole.nonzero()[:, 0].tolist(), (~whole).nonzero()[:, 0].tolist()
    if len(kept) < 2:
        raise ValueError(
            f"{source} has {len(kept)} whole chains of {len(whole)}: expected two or more, for "
            "errors come from chains. Those with NaN diverged, or were not written to their end."
        )
    block = TraceBlock(tuple(range(len(whole))), train, query)
    return LossTraces((block.only(kept),)), lost


def _texts(dataset: xr.Dataset, names: list[str], decode: Callable[[list[int]], str]) -> np.ndarray:
    rows = [row for name in names for row in dataset[f"{_TOKENS}{name}"].values.tolist()]
    return np.asarray([decode(row) for row in rows], object)


def _judged(
    scores: xr.Dataset, traces: LossTraces, sampler: dict[str, Any], *,
    source: str, lost: list[int], complete: bool,
) -> Run:  # fmt: skip
    diagnostics = diagnose(traces, center_mean_loss=float("nan"), diverged=lost)
    thin = int(sampler["num_steps_bw_draws"])
    figures = figures_of(traces, diagnostics, thin=thin, seconds=float("nan"))
    judged = judge(traces, figures, diverged=len(lost))
    summary = replace(
        figures, trusted=judged.trusted, complete=complete, diverged_chains=lost,
        others=judged.figures,
    )  # fmt: skip
    num_train, num_queries = scores.sizes["train"], scores.sizes["query"]
    manifest = Manifest(
        identity={"devinterp": sampler, "settings": {}, "queries": {}, "candidates": {}},
        settings={"nbeta": scores.attrs["nbeta"], "gamma": scores.attrs["gamma"], "thin": thin,
                  "chains": traces.num_chains, "seed": sampler.get("init_seed")},
        explanations=[f"read from {source}, sampled by devinterp"],
        gates=[gate.as_dict() for gate in judged.gates],
        warnings=[*judged.reasons, *judged.warnings, *_remarks(sampler)],
        complete=complete, num_train=int(scores.attrs["num_train"]), num_queries=num_queries,
        panels=asdict(Panels((num_train,), (num_queries,), 1)), left_out=lost,
    )  # fmt: skip
    return Run(Influence(scores, traces), traces, diagnostics, summary, manifest)


def _remarks(sampler: dict[str, Any]) -> list[str]:
    """Return what in devinterp's settings makes the chains' law another, or errors too small."""
    found = []
    if sampler.get("match_sampling_input_ids_across_chains", False):
        found.append(
            "all chains were given the same mini-batches, so they are not independent, and errors "
            "are too small: sample with match_sampling_input_ids_across_chains=False"
        )
    if sampler.get("noise_level", 1.0) != 1.0:
        found.append(
            f"noise_level is {sampler['noise_level']}: the draws are of no posterior; sample with 1"
        )
    found.append(
        "the sampler itself was not checked: step size and noise of the gradients are unknown here"
    )
    return found
