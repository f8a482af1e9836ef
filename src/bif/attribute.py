"""The composer: from a problem to traces to influence."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bif import __version__, store, tensors
from bif.calibrate import (
    Calibration,
    calibrate,
    item_weights,
    make_oracle,
    make_posterior,
    make_sampler,
    run_device,
)
from bif.chains import run_chains
from bif.estimate.diagnostics import diagnose, reliability
from bif.estimate.influence import estimate_influence
from bif.gradients import ControlVariateGradient, FullGradient, MiniBatchGradient
from bif.influence import Influence
from bif.items import Items
from bif.observe import observe
from bif.oracles import LiveOracle
from bif.problem import Problem
from bif.progress import ProgressBar
from bif.record import BlockRecorder
from bif.rng import BlockNoise, ShuffledOrder, generator
from bif.settings import Settings
from bif.traces import LossTraces
from bif.types import Gradient, Params

if TYPE_CHECKING:
    import xarray as xr

_EXACTNESS = {"bfloat16": 0, "tf32": 1, "float32": 2}


@dataclass(frozen=True)
class Run:
    """What a run leaves behind.

    Attributes:
        influence: The scores, with their errors.
        traces: The losses of all surviving chains at all draws.
        diagnostics: Mean-loss traces, reliability, effective sample size, R-hat.
        summary: The figures of `summary.json`.
        manifest: Settings, versions, fingerprints, choices and warnings, as in `run.json`.
    """

    influence: Influence
    traces: LossTraces
    diagnostics: xr.Dataset
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]

    def save(self, folder: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
        """Write the run's folder, report included.

        Args:
            folder: Replaced if there is a run in it: see `store.check_folder`.
            extra: Further entries for `summary.json`.
        """
        from bif.report import render_report

        summary = {**self.summary, **(extra or {})}
        report = render_report(
            self.influence.dataset,
            diagnostics=self.diagnostics,
            summary=summary,
            manifest=dict(self.manifest),
        )
        return store.write_run(
            folder,
            manifest=self.manifest,
            influence=self.influence.dataset,
            diagnostics=self.diagnostics,
            summary=summary,
            report=report,
        )

    def __repr__(self) -> str:
        s = self.summary
        return (
            f"{self.influence!r}\n{s['draws']} draws of {s['chains']} chains in "
            f"{s['seconds']:.1f} s; reliability {s['reliability']:.3f}, R-hat at most "
            f"{s['rhat_max']:.3f}, effective sample size {s['ess_median']:.0f} (median)"
        )


def attribute(
    problem: Problem, settings: Settings | None = None, *, show_progress: bool = False
) -> Run:
    """Sample around the trained weights and estimate every query's influences.

    Ctrl-C ends the sampling and keeps what there is, marked as incomplete.

    Args:
        problem: Model, loss, items, queries and observables.
        settings: What to sample and how; the library chooses whatever is None.
        show_progress: Draw a progress bar on the terminal.

    Returns:
        The scores with their errors and everything that stands behind them.

    Raises:
        ValueError: Losses that are NaN or infinite at w*; settings that contradict each other.
        RuntimeError: Fewer than two chains survive.
    """
    started = time.perf_counter()
    requested = settings or Settings()
    calibration = calibrate(problem, requested)
    sampling = _Sampling(problem, calibration.settings)
    sampling.record(show_progress=show_progress)
    return _finish(problem, requested, calibration, sampling, started)


@dataclass
class _Sampling:
    """One run's machinery and what it has recorded so far."""

    problem: Problem
    settings: Settings
    recorders: list[BlockRecorder] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        problem, settings = self.problem, self.settings
        self.device = run_device(problem, settings)
        self.posterior = make_posterior(problem, settings)
        self.oracle = make_oracle(problem, settings, list(self.posterior.center))
        self.sampler = make_sampler(settings)
        self.train = problem.train.to(self.device)
        self.queries = [items.to(self.device) for items in problem.query_groups.values()]
        first = next(iter(self.posterior.center.values()))
        self.weights = item_weights(problem, first)
        alone = self._start(1)
        self.train_center = self._observe_train(alone)[0].cpu()
        self.query_center = self._observe_queries(alone)[0].cpu()
        self._refuse_bad_losses()

    def record(self, *, show_progress: bool) -> None:
        """Run every block of chains; Ctrl-C stops and keeps what there is."""
        s = self.settings
        assert s.chains is not None
        bar = ProgressBar(
            s.chains * s.draws, reliability=self.current_reliability, shown=show_progress
        )
        with bar:
            try:
                for block, chains in enumerate(self._blocks()):
                    self._record_block(block, chains, bar)
            except KeyboardInterrupt:
                self.interrupted = True
        for recorder in self.recorders:
            recorder.flush()

    def traces(self) -> LossTraces:
        """What has been recorded by chains that are alive and have two draws."""
        blocks = [recorder.block() for recorder in self.recorders]
        return LossTraces(tuple(b for b in blocks if b is not None and b.num_draws >= 2))

    def current_reliability(self) -> float:
        """Reliability of what has reached the host."""
        traces = self.traces()
        if traces.num_chains < 2:
            return float("nan")
        return reliability(traces, num_queries=16, num_train=256)

    @property
    def diverged(self) -> dict[int, int]:
        """Chains that were left out, and the draw by which they had diverged."""
        return {c: d for recorder in self.recorders for c, d in recorder.diverged.items()}

    def _blocks(self) -> Iterator[range]:
        chains, size = self.settings.chains, self.settings.block_size
        assert chains is not None and size is not None
        for start in range(0, chains, size):
            yield range(start, min(start + size, chains))

    def _record_block(self, block: int, chains: range, bar: ProgressBar) -> None:
        s, posterior = self.settings, self.posterior
        assert s.burn_in is not None and s.thin is not None
        # Under the posterior |w - w*|² is about (moving weights)/gamma at most: far above, a
        # chain has left; without gamma only NaN and infinity tell.
        limit = 100 * (posterior.num_moving + 25) / s.gamma if s.gamma else math.inf
        recorder = BlockRecorder(chains, num_draws=s.draws, distance_limit=limit)
        self.recorders.append(recorder)
        noise = BlockNoise(generator(s.seed, block, "noise", device=self.device), posterior.masks)
        draws = run_chains(
            self.sampler,
            posterior,
            gradient=self._gradient(block, len(chains)),
            params=self._start(len(chains)),
            noise=noise,
            num_draws=s.draws,
            burn_in=s.burn_in,
            thin=s.thin,
        )
        reuse = _EXACTNESS[s.gradient_precision] >= _EXACTNESS[s.loss_precision]
        for draw in draws:
            losses = draw.losses if reuse else None
            recorder.add(
                self._observe_train(draw.params) if losses is None else losses,
                self._observe_queries(draw.params),
                posterior.distance_squared(draw.params),
            )
            bar.advance(len(chains))
            if recorder.all_diverged:
                break

    def _start(self, num_chains: int) -> Params:
        """Fresh chains at w*."""
        center = self.posterior.center
        if isinstance(self.oracle, LiveOracle):
            live = self.oracle.live_params()
            for name, leaf in live.items():
                leaf.copy_(center[name].unsqueeze(0))
            return live
        return tensors.stacked(center, num_chains)

    def _gradient(self, block: int, num_chains: int) -> Gradient:
        s = self.settings
        assert s.chunk_size is not None
        chunk = self.problem.num_train if s.oracle == "live" else s.chunk_size
        full = FullGradient(self.oracle, self.train, chunk_size=chunk, train_weights=self.weights)
        if s.gradient == "full":
            return full
        assert s.batch_size is not None
        order = ShuffledOrder(
            self.problem.num_train, s.batch_size, num_chains=num_chains, seed=s.seed,
            block=block, device=self.device,
        )  # fmt: skip
        if s.gradient == "minibatch":
            return MiniBatchGradient(
                self.oracle, self.train, order=order, train_weights=self.weights
            )
        center_gradient = full(tensors.stacked(self.posterior.center, 1), 0).gradient
        return ControlVariateGradient(
            self.oracle,
            self.train,
            order=order,
            train_weights=self.weights,
            center=tensors.stacked(self.posterior.center, num_chains),
            center_gradient=center_gradient,
        )

    def _observe_train(self, params: Params) -> Tensor:
        return self._observe(self.problem.loss, params, self.train)

    def _observe_queries(self, params: Params) -> Tensor:
        """`[C, A·Q]`, observable-major."""
        return torch.cat(
            [
                self._observe(observable.function, params, items)
                for observable in self.problem.observables
                for items in self.queries
            ],
            dim=1,
        )

    def _observe(self, function: Any, params: Params, items: Items) -> Tensor:
        assert self.settings.chunk_size is not None
        return observe(self.oracle, function, params, items, chunk_size=self.settings.chunk_size)

    def _refuse_bad_losses(self) -> None:
        bad = (~self.train_center.isfinite()).nonzero().flatten().tolist()
        if bad:
            ids = [str(self.problem.train.ids[i]) for i in bad[:5]]
            raise ValueError(
                f"the loss is NaN or infinite at w* for {len(bad)} train items, such as {ids}: "
                "mend the model, the data or the loss before sampling."
            )
        if not self.query_center.isfinite().all():
            columns = (~self.query_center.isfinite()).nonzero().flatten()
            ids = [str(self.problem.query_ids[int(c) % self.problem.num_queries])
                   for c in columns[:5]]  # fmt: skip
            raise ValueError(
                f"an observable is NaN or infinite at w* for queries such as {ids}: mend the "
                "model, the data or the observable before sampling."
            )


def _finish(
    problem: Problem,
    requested: Settings,
    calibration: Calibration,
    sampling: _Sampling,
    started: float,
) -> Run:
    traces, settings = sampling.traces(), calibration.settings
    warnings = _warnings(sampling, settings)
    if traces.num_chains < 2:
        cause = "; ".join(warnings) or "interrupted too early"
        raise RuntimeError(
            f"only {traces.num_chains} of {settings.chains} chains survived, and a covariance "
            f"with errors needs two: {cause}. Lower step_size (it was "
            f"{settings.step_size:.4g}; try half), raise gamma, or lower nbeta."
        )
    assert settings.nbeta is not None
    dataset = estimate_influence(
        traces,
        nbeta=settings.nbeta,
        observables={o.name: o.better for o in problem.observables},
        query_ids=problem.query_ids,
        query_groups=problem.query_group_names,
        train_ids=problem.train.ids,
        device=sampling.device,
    )
    dataset = _described(dataset, problem, sampling).assign_attrs(
        gamma=settings.gamma, complete=int(not sampling.interrupted)
    )
    diagnostics = diagnose(
        traces,
        center_mean_loss=float(sampling.train_center.double().mean()),
        diverged=sorted(sampling.diverged),
    )
    rhat, ess = diagnostics["rhat"].values, diagnostics["ess"].values
    seconds = time.perf_counter() - started
    summary = {
        "draws": traces.total_draws,
        "chains": traces.num_chains,
        "seconds": seconds,
        "draws_per_second": traces.total_draws / seconds,
        "ess_median": _or_nan(np.nanmedian, ess),
        "rhat_max": _or_nan(np.nanmax, rhat),
        "reliability": reliability(traces),
        "complete": not sampling.interrupted,
        "diverged_chains": sorted(sampling.diverged),
    }
    if not summary["rhat_max"] <= 1.05:
        warnings.append(
            f"R-hat is {summary['rhat_max']:.3f} for some item losses: the chains have not mixed, "
            "and drift looks like influence. Raise burn_in and draws, or raise gamma."
        )
    manifest = {
        **identity(problem, requested),
        "settings": settings.as_dict(),
        "explanations": list(calibration.explanations),
        "warnings": warnings,
        "complete": not sampling.interrupted,
        "versions": {"bif": __version__, **store.versions()},
        "device": str(sampling.device),
        "num_train": problem.num_train,
        "num_queries": problem.num_queries,
        "num_moving_weights": sampling.posterior.num_moving,
    }
    return Run(Influence(dataset, traces), traces, diagnostics, summary, manifest)


def identity(problem: Problem, settings: Settings) -> dict[str, Any]:
    """What makes two runs the same run: requested settings, weights, data and functions."""
    groups = {f"queries.{n}": _items_fingerprint(i) for n, i in problem.query_groups.items()}
    weights = problem.train_weights
    return {
        "identity": {
            "settings": settings.as_dict(),
            "model": store.fingerprint(dict(problem.model.state_dict())),
            "train": _items_fingerprint(problem.train),
            "train_weights": None if weights is None else store.fingerprint(weights),
            **groups,
            "loss": _code(problem.loss),
            **{f"observable.{o.name}": _code(o.function) for o in problem.observables},
        }
    }


def _items_fingerprint(items: Items) -> str:
    parts = [store.fingerprint(batch) for _, batch in items.chunks(4096)]
    return (
        parts[0]
        if len(parts) == 1
        else store.fingerprint(
            torch.frombuffer(bytearray("".join(parts).encode()), dtype=torch.uint8)
        )
    )


def _code(function: Any) -> str:
    """A function's name and the hash of its source, where it has one."""
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return name
    digest = store.fingerprint(torch.frombuffer(bytearray(source.encode()), dtype=torch.uint8))
    return f"{name}@{digest[:16]}"


def _warnings(sampling: _Sampling, settings: Settings) -> list[str]:
    assert settings.burn_in is not None and settings.thin is not None
    said = [
        f"chain {chain} diverged by step {settings.burn_in + (draw - 1) * settings.thin} with "
        f"step_size={settings.step_size:.4g} and was left out: lower step_size (try half) or "
        "raise gamma"
        for chain, draw in sorted(sampling.diverged.items())
    ]
    if sampling.interrupted:
        done = sum(r.recorded * len(r.chains) for r in sampling.recorders)
        total = (settings.chains or 0) * settings.draws
        said.append(f"interrupted after {done:,} of {total:,} draws: the result is partial")
    return said


def _described(dataset: xr.Dataset, problem: Problem, sampling: _Sampling) -> xr.Dataset:
    """Add values at w*, labels and pictures."""
    shape = (len(problem.observables), problem.num_queries)
    dataset = dataset.assign(
        train_center_loss=("train", sampling.train_center.numpy()),
        query_center=(("observable", "query"), sampling.query_center.reshape(shape).numpy()),
    )
    axes = ("row", "column", "channel")
    groups = list(problem.query_groups.values())
    if problem.train.labels is not None:
        dataset = dataset.assign_coords(train_label=("train", problem.train.labels))
    if all(items.labels is not None for items in groups):
        labels = np.concatenate([np.asarray(items.labels) for items in groups])
        dataset = dataset.assign_coords(query_label=("query", labels))
    if problem.train.images is not None:
        images = problem.train.images
        dataset = dataset.assign(train_image=(("train", *axes[: images.ndim - 1]), images))
        if all(i.images is not None and i.images.shape[1:] == images.shape[1:] for i in groups):
            pictures = np.concatenate([np.asarray(items.images) for items in groups])
            dataset = dataset.assign(query_image=(("query", *axes[: images.ndim - 1]), pictures))
    return dataset


def _or_nan(function: Any, values: np.ndarray) -> float:
    return float(function(values)) if np.isfinite(values).any() else float("nan")
