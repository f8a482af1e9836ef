"""The composer: from a problem to responses to influence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bif import store
from bif.calibration.calibrate import Calibration
from bif.calibration.paired_chains import calibrate_pairs
from bif.calibration.remedies import Remedies
from bif.estimate.covariance import Covariance
from bif.estimate.dataset import influence_dataset
from bif.estimate.response import Perturbation, Rung, student_factor
from bif.linear_response.estimates import Clock, common_minimum, sampled, settled
from bif.linear_response.pairs import Pairs, blocks_of_queries
from bif.linear_response.perturbation import bounded, pilot, sizes_of_h
from bif.linear_response.request import Request, of_observable
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.problem.provenance import hardware, versions
from bif.results.influence import Influence
from bif.runs.block_recorder import with_prefix
from bif.runs.item_metadata import describe_items, score_axes
from bif.runs.response_stages import Stages
from bif.runs.resumption import chosen_before, refuse_other_losses
from bif.sampling.settings import RunSettings, Settings, as_settings
from bif.terminal import say
from bif.types import Params

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Response:
    """Influence by the response estimator, and what stands behind it.

    Attributes:
        influence: The scores, in the layout of `bif.attribute`'s, with one observable.
        perturbation: Its size, its bias relative to the scores, and the pilot's ladder.
        num_steps: Of every chain, the pilot's not counted.
        seconds: Of everything, calibration and pilot included.
        sampling_seconds: Of the final run's chains alone.
        settings: Complete.
        explanations: A line for each choice.
        warnings: What speaks against the result.
    """

    influence: Influence
    perturbation: Perturbation
    num_steps: int
    seconds: float
    sampling_seconds: float
    settings: RunSettings
    explanations: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def h(self) -> np.ndarray:
        """`[Q]`, of every query: its chains sample `U ± h·phi`."""
        return self.influence.dataset["h"].values[0]

    @property
    def bias(self) -> float:
        """Of finite h, relative to a query's root mean square score; NaN if h was given."""
        return self.perturbation.bias

    @property
    def scores(self) -> np.ndarray:
        """`[Q, N]`, signed like the BIF."""
        return self.influence.dataset["influence"].values[0]

    @property
    def standard_error(self) -> np.ndarray:
        """`[Q, N]`, without the bias."""
        return self.influence.dataset["standard_error"].values[0]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `influence.zarr` and `scores.json`, which has everything but the scores.

        Args:
            folder: A path or fsspec URL.
            overwrite: Replace scores that are there.

        Raises:
            FolderInUse: There are scores already, or other files.
        """
        store.write_scores(
            folder, influence=self.influence.dataset, about=self.about(), overwrite=overwrite
        )
        return Path(folder)

    def about(self) -> dict[str, Any]:
        """Everything but the scores, for `scores.json`."""
        return {
            "estimator": "response",
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "sampling_seconds": self.sampling_seconds,
            "bias": self.bias,
            "perturbation": str(self.perturbation),
            "warnings": self.warnings,
            "settings": self.settings.as_dict(),
            "explanations": self.explanations,
            "versions": versions(),
        }


def respond(
    problem: Problem,
    settings: Settings | None = None,
    *,
    observable: str | None = None,
    temperature: float = 1.0,
    curvature: str = "hessian",
    h: float | None = None,
    steps: int | None = None,
    replicates: int = 1,
    show_progress: bool = False,
) -> Response:
    """Influence by its definition: perturb the potential by a query and see the items move.

    `-Cov(l_i, phi) = (E₊[l_i] - E₋[l_i]) / (2h)` as h → 0, where the two chains of a pair sample
    `U + h·phi` and `U - h·phi` with the same random numbers.  The error of finite h is
    `-(h²/6)·κ₄(l_i, phi, phi, phi)`.  At temperature 0 the means are values at the two minima and
    the score is `-g_iᵀ (nbeta·H + gamma)⁻¹ g_phi` to leading order, at the minimum of U and without
    any Hessian.

    Args:
        problem: Model, loss, items, queries and observables.
        settings: As for `attribute`; `chains` and `draws` follow from the queries and `steps`.
        observable: The name of phi; the problem's first by default.
        temperature: 1.0, the local posterior, or 0.0, its minimum.
        curvature: "hessian" or, at temperature 0, "gauss_newton", which replaces L in U by its
            Bregman divergence at w*: the Gauss-Newton matrix then stands in the place of H, for
            losses of `bif.losses`.
        h: Of all queries, in U.  If None, `size·sqrt(k)/|∇phi|` of each query, which moves the law
            by about `size` standard deviations, with a size that a pilot chooses.
        steps: Recorded steps of each chain at temperature 1, `draws · thin` by default; at
            temperature 0 the most steps of a descent, 80 relaxation times by default.
        replicates: Of each query at temperature 1: pairs with noise of their own and their mirror
            images, whose noise has the opposite sign; four chains each.
        show_progress: Print choices and progress on the terminal.

    Returns:
        Scores with their errors; `.influence` has the same methods as a run's.

    Raises:
        ValueError: Arguments that contradict each other; a model or loss that cannot be taken; a
            loss or observable that is NaN or infinite at w*.
        KeyError: No such observable.
        RuntimeError: All pairs diverged.

    Source: theory of linear response; at temperature 0 with curvature="gauss_newton" Bae et al.
    2022 (arXiv 2209.05364).
    """
    request = Request(as_settings(settings), temperature, curvature, h, steps, replicates)
    return run_response(problem, request, observable=observable, show_progress=show_progress)


def run_response(
    problem: Problem,
    request: Request,
    *,
    observable: str | None = None,
    folder: store.ScoresFolder | None = None,
    show_progress: bool = False,
) -> Response:
    """Respond, into an open folder if there is one, block by block; scores are not written.

    Args:
        problem: As for `respond`.
        request: As it was asked for.
        observable: As for `respond`.
        folder: One of scores that are not complete.
        show_progress: As for `respond`.

    Raises: as `respond`, and
        FolderInUse: What the folder holds was begun with other losses at w*.
        DamagedRun: The settings that it was begun with cannot be read.
    """
    started = time.perf_counter()
    alone, run = of_observable(problem, observable), folder.run if folder else None
    begun = chosen_before(run, RunSettings)
    calibration = Calibration(*begun) if begun else calibrate_pairs(alone, request)
    s = calibration.settings
    pairs = Pairs(
        alone, s, curvature=request.curvature, num_replicates=request.replicates,
        num_mirrors=request.num_mirrors,
    )  # fmt: skip
    blocks = list(blocks_of_queries(pairs.queries, s.block_size // pairs.chains_per_pair))
    stages = Stages(run, pairs.device, since=started)
    if folder and run:
        stages.notes += refuse_other_losses(run, pairs.engine)
        folder.begin()
        run.update({
            "settings": s.as_dict(),
            "explanations": list(calibration.explanations),
            "blocks": [[rows.start, rows.stop] for _, _, rows in blocks],
            "hardware": hardware(pairs.device),
        })  # fmt: skip
    clock = Clock.of(pairs, burn_in=s.burn_in, steps=request.steps or s.draws * s.thin)
    prepared = stages.get(len(blocks), lambda: _prepared(pairs, request, clock))
    perturbation, h_Q = _perturbation_in(prepared), prepared["h"]
    start = {n: x.to(pairs.device) for n, x in with_prefix(prepared, "start/").items()}
    if show_progress:
        say([*calibration.explanations, str(perturbation)])
    gathered = _Gathered(alone.num_queries, len(alone.scored_ids))
    before_blocks = stages.seconds
    for index, (items, indices, rows) in enumerate(blocks):
        h_K = h_Q[rows].to(pairs.device)
        make = partial(_block, pairs, items, indices, h_K, clock, start, request.steps)
        gathered.put(rows, stages.get(index, make))
        if show_progress:
            say([f"queries to {rows.stop} of {alone.num_queries}: {stages.seconds:.1f} s"])
    warnings = gathered.warnings(alone, s, perturbation) + stages.notes
    dataset = gathered.dataset(pairs, calibrated=s).assign_attrs(
        estimator="response", temperature=request.temperature, curvature=request.curvature,
        bias=perturbation.bias, gamma=s.gamma, num_steps=gathered.num_steps,
    )  # fmt: skip
    dataset = dataset.assign(h=(("observable", "query"), h_Q[None].numpy()))
    return Response(
        Influence(dataset),
        perturbation,
        gathered.num_steps,
        stages.seconds,
        stages.seconds - before_blocks,  # every block has reached the host
        s,
        (*calibration.explanations, str(perturbation)),
        tuple(warnings),
    )


def _prepared(pairs: Pairs, request: Request, clock: Clock) -> dict[str, Tensor]:
    """Where descents start, every query's h `[Q]` and the pilot's ladder, on the host."""
    start = common_minimum(pairs) if request.cold else None
    perturbation, h_Q = _perturbation(pairs, request.h, clock, start)
    p, ladder = perturbation, [list(vars(rung).values()) for rung in perturbation.ladder]
    return {
        **{f"start/{n}": x.cpu() for n, x in (start or {}).items()},
        "h": h_Q.cpu(),
        "perturbation": torch.tensor([p.size, p.bias, p.accepted], dtype=torch.float64),
        "ladder": torch.tensor(ladder, dtype=torch.float64),
    }


def _perturbation_in(prepared: Mapping[str, Tensor]) -> Perturbation:
    size, bias, accepted = prepared["perturbation"].tolist()
    ladder = tuple(Rung(*row) for row in prepared["ladder"].tolist())
    return Perturbation(size, bias, bool(accepted), ladder)


def _perturbation(
    pairs: Pairs, h: float | None, clock: Clock, start: Params | None
) -> tuple[Perturbation, Tensor]:
    """As given, or as a pilot chooses; and every query's h `[Q]`."""
    groups, values_Q = pairs.queries, pairs.engine.observer.query_center
    if h is not None:
        given = torch.full((len(values_Q),), h, dtype=torch.float64)
        return Perturbation(h, float("nan"), True, ()), given
    unit_Q = sizes_of_h(pairs, groups)
    advice = _advice(pairs.settings)
    found = pilot(pairs, groups, values_Q, unit_Q, clock=clock, start=start, advice=advice)
    return found, bounded(found.size * unit_Q, pairs)


def _block(
    pairs: Pairs,
    items: Items,
    indices: Tensor,
    h_K: Tensor,
    clock: Clock,
    start: Params,
    steps: int | None,
) -> dict[str, Tensor]:
    """The rows of a block, on the host; a query whose pair diverged has NaN."""
    if start:
        found = settled(pairs, items, indices, h_K, start=start, max_steps=steps)
    else:
        found = sampled(pairs, items, indices, h_K, clock=clock)
        factor = student_factor(clock.times * pairs.num_replicates)
        found = found._replace(standard_error=factor * found.standard_error)
    fine = found.response.isfinite().all(dim=1, keepdim=True)
    nothing = float("nan")
    rows = {
        "response": found.response.where(fine, nothing),
        "standard_error": found.standard_error.where(fine, nothing),
        "unsettled": found.unsettled,
        "num_steps": torch.tensor(found.num_steps),
    }
    if found.moments is not None:
        rows["num_records"] = torch.tensor(found.moments.count)
        rows["query"] = torch.stack(found.moments.mean_and_variance("observable"))
        rows["items"] = torch.stack(found.moments.mean_and_variance("losses"))
    return {name: x.cpu() for name, x in rows.items()}


class _Gathered:
    """The rows of the result as their blocks come in."""

    def __init__(self, num_queries: int, num_items: int) -> None:
        shape = (num_queries, num_items)
        self.response = torch.full(shape, float("nan"), dtype=torch.float64)
        self.standard_error = self.response.clone()
        self.unsettled = torch.zeros(num_queries, dtype=torch.bool)
        self.query = torch.full((2, num_queries), float("nan"), dtype=torch.float64)
        self.items = torch.zeros(2, num_items, dtype=torch.float64)
        self.num_steps = self._num_blocks = 0
        self._records = 1

    def put(self, rows: slice, block: Mapping[str, Tensor]) -> None:
        """Take in what `_block` gave."""
        self.response[rows] = block["response"]
        self.standard_error[rows] = block["standard_error"]
        self.unsettled[rows] = block["unsettled"]
        self.num_steps = max(self.num_steps, int(block["num_steps"]))
        if "items" in block:
            self._records = int(block["num_records"])
            self.query[:, rows] = block["query"]
            self._num_blocks += 1
            self.items += (block["items"] - self.items) / self._num_blocks

    def warnings(self, problem: Problem, s: RunSettings, perturbation: Perturbation) -> list[str]:
        """What speaks against the result.

        Raises:
            RuntimeError: All pairs diverged.
        """
        lost = self.response.isnan().all(dim=1)
        advice = f"{_advice(s)}, or give a smaller h"
        if lost.all():
            raise RuntimeError(
                f"the chains of all {problem.num_queries} queries diverged ({perturbation}): "
                f"{advice}."
            )
        found = []
        if not perturbation.accepted:
            found.append(
                f"finite h may bias the scores: {perturbation}. Run longer, or raise gamma"
            )
        if lost.any():
            found.append(
                f"chains of {_names(problem, lost)} diverged; their rows are NaN: {advice}"
            )
        if self.unsettled.any():
            found.append(
                f"the minima for {_names(problem, self.unsettled)} were not reached to 1 % in "
                f"{self.num_steps} steps: raise steps, or gamma"
            )
        return found

    def dataset(self, pairs: Pairs, *, calibrated: RunSettings) -> xr.Dataset:
        """The result as users see it."""
        problem, cold = pairs.engine.problem, not self._num_blocks
        if cold:
            self.items[0], self.items[1] = pairs.engine.observer.train_center, float("nan")
            self.query[0] = pairs.engine.observer.query_center
        covariance = Covariance(
            value=-self.response,
            standard_error=self.standard_error,
            row_variance=self.query[1],
            row_mean=self.query[0],
            column_variance=self.items[1],
            column_variance_error=torch.full_like(self.items[1], float("nan")),
            column_mean=self.items[0],
            num_groups=pairs.num_replicates,
        )
        num_chains = problem.num_queries * pairs.chains_per_pair
        axes, num_draws = score_axes(problem, calibrated.nbeta), num_chains * self._records
        dataset = influence_dataset(covariance, axes, num_chains=num_chains, num_draws=num_draws)
        # Its errors have been widened already: two of them hold 95 %.
        dataset.attrs["error_quantile"] = 2.0
        if cold:  # without a spread there is no correlation
            dataset["correlation"] = dataset["correlation"] * np.nan
        return describe_items(dataset, problem, pairs.engine.observer)


def _advice(settings: RunSettings) -> str:
    """Return what to change where pairs diverge."""
    fix = Remedies(settings)
    return f"{fix.smaller_step()}, or {fix.tighter_ball()}"


def _names(problem: Problem, which: Tensor) -> str:
    """A few queries by name."""
    ids = [str(problem.query_ids[int(q)]) for q in which.nonzero().flatten()]
    return f"{len(ids)} queries, such as {', '.join(ids[:5])}"
