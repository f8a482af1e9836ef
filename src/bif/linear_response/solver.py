"""Linear systems of queries: the response at temperature 0 by solving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif.curvature.derivatives import Derivatives
from bif.curvature.products import CurvatureProduct, split_rows
from bif.curvature.solve import NegativeCurvature, Solution, conjugate_gradients
from bif.linear_response.column_gradients import (
    products_with_gradients,
    query_gradients,
    train_gradients,
)
from bif.linear_response.vectors import Vectors
from bif.problem.problem import Problem
from bif.sampling.factory import make_posterior, run_device
from bif.sampling.item_gradients import NotVmapped
from bif.sampling.observer import Observer
from bif.sampling.oracles import SequentialOracle
from bif.sampling.oracles.precision import matmul_precision
from bif.sampling.settings import Settings

RESIDUAL = 0.05
"""Residual relative to a query's gradient at which a system counts as solved."""
MOST_STEPS = 200
"""Products of a query where a residual is aimed at."""
_GROUPS = 4
"""Groups of items that the jackknife leaves out in turn."""
_SPREAD_COLUMNS = 4
"""Columns that it is applied to: the relative error is much alike for all."""
_FEW_COLUMNS, _LARGE = 2, 10**9
"""Columns of these for a model of so many weights, of which memory holds a few rows."""
_SPREAD_RESIDUAL = 0.5
"""Residual of its systems, relative to what a group's curvature changes: errors need no more."""
_MANY_ROWS = 4
"""Solutions from which a gradient of each item is cheaper than a derivative along each."""
_LESS = 0.1
"""Part of the damping with which a response is compared, to say what the damping does."""


Block = tuple[int, range]
"""An observable's position and a range of query columns; or the number of observables and a range
of train columns, whose self-influence is solved for."""


@dataclass(frozen=True)
class _Solved:
    """Some columns, before the items are scored.

    Attributes:
        rows: Solutions, the earlier ones, and the changes without each group of items; of train
            columns, their scores on themselves.
        shrinkage: Which part of the error of the earlier ones is left, `[K]`.
        facts: What else is known, `[K]`.
        some: Positions of the columns that have changes.
        left_out: Part of the items whose curvature is not taken.
    """

    rows: list[Tensor]
    shrinkage: Tensor
    facts: dict[str, Tensor]
    some: Tensor | None
    left_out: float

    def scored(self, found: list[Tensor]) -> dict[str, Tensor]:
        """Return what the columns have with the scores of the rows."""
        scores, earlier, *moved = found
        left = self.shrinkage.to(scores).view(-1, *[1] * (scores.dim() - 1))
        change = (scores - earlier).abs() * left
        return {"scores": scores, "change": change, **self.facts, **self._spread(scores, moved)}

    def _spread(self, scores: Tensor, moved: list[Tensor]) -> dict[str, Tensor]:
        """Return the standard errors for the items whose curvature is not taken, by a jackknife.

        Columns without changes have NaN.
        """
        if self.some is None:
            return {}
        errors = torch.full_like(scores, math.nan)
        if moved:
            variance = torch.stack(moved).double().var(dim=0, correction=0) * (len(moved) - 1)
            errors[self.some] = (variance * self.left_out).sqrt().to(errors)
        return {"sampling": errors}


class Solver:
    """The linear systems of a problem's queries.

    Args:
        problem: What is to be attributed.
        settings: Of a response by solving, complete.
        num_together: Directions that pass through the model together.
        vectors: Queries that are solved together, and where their vectors are.

    Attributes:
        damping: Weight decay and gamma/nbeta together.
        vectors: As given.
    """

    def __init__(
        self, problem: Problem, settings: Settings, *, num_together: int, vectors: Vectors
    ) -> None:
        s = settings
        assert s.nbeta is not None and s.gamma is not None and s.solver_curvature is not None
        self.problem, self.settings, self.nbeta = problem, s, s.nbeta
        self.device, self.damping = run_device(problem, s), s.weight_decay + s.gamma / s.nbeta
        plain = sampling_settings(s)
        self.posterior = make_posterior(problem, plain, copies_center=False)
        self._narrow = narrow = torch.bfloat16 if s.precisions[0] == "bfloat16" else None
        self._items = _some_items(problem, s)
        self._product = CurvatureProduct(
            problem, s.solver_curvature, names=tuple(self.posterior.center),
            chunk_size=s.chunk_size or 256, num_together=num_together, items=self._items,
            compute_dtype=narrow,
        )  # fmt: skip
        model = self._product.model  # one copy for all: it may be as large as what is solved for
        self._derivatives = Derivatives(
            problem, num_together=num_together, compute_dtype=narrow, model=model
        )
        oracle = SequentialOracle(
            model, problem.loss, gradient_precision=s.precisions[0],
            value_precision=s.precisions[1],
        )  # fmt: skip
        center = {name: leaf.unsqueeze(0) for name, leaf in self.posterior.center.items()}
        self.observer = Observer(problem, plain, oracle, center)
        self._mask = self._flat_mask()
        self.vectors, self._together = vectors, num_together
        self._home = torch.device("cpu") if vectors.on_host else self.device

    def blocks(self, there: Sequence[Block] = ()) -> list[Block]:
        """Return the blocks of a run: those that are there, then of what they leave out."""
        counts = [self.problem.num_queries] * len(self.problem.observables)
        counts += [self.problem.num_scored] if self.settings.self_influence else []
        found = list(there)
        for kind, count in enumerate(counts):
            first = max((columns.stop for k, columns in there if k == kind), default=0)
            waiting = self.vectors.num_scored if kind < len(self.problem.observables) else 0
            size = max(waiting, self.vectors.num_rows)
            starts = range(first, count, size)
            found += [(kind, range(i, min(i + size, count))) for i in starts]
        return found

    def solve(self, kind: int, columns: range) -> dict[str, Tensor]:
        """Return what a block has, on the host: means where the problem has a path.

        Of queries scores `[K, N]`, of train columns their scores on themselves `[K]`; how far these
        may still move, residuals and steps `[K]`, and which part the damping leaves.
        """
        size = self.vectors.num_rows
        parts = [columns[start : start + size] for start in range(0, len(columns), size)]
        with matmul_precision(self.settings.precisions[0]):
            solved = [self._solve(kind, part) for part in parts]
            rows = [x for one in solved for x in one.rows]
            scores = iter(self.scores(*rows) if kind < len(self.problem.observables) else rows)
        found = [one.scored([next(scores) for _ in one.rows]) for one in solved]
        places = [{name: torch.cat([part[name] for part in found]) for name in found[0]}]
        for number, weights in enumerate(self.problem.path):
            problem = self.problem.at_weights(weights).with_path(())
            try:
                there = Solver(
                    problem, self.settings, num_together=self._together, vectors=self.vectors
                )
                places.append(there.solve(kind, columns))
            except ValueError as error:
                raise ValueError(f"path, number {number}, there: {error}") from error
        return _mean(places)

    def _solve(self, kind: int, columns: range) -> _Solved:
        """Solve what fits together; what is still to be scored waits in few bytes."""
        of_queries = kind < len(self.problem.observables)
        rows = self.gradients(kind, columns).to(self._home)

        def asked(found: Tensor, of: Tensor = rows) -> Tensor:
            """Return what scores are made of: the solutions, or those of train columns' own."""
            if of_queries:
                return found.to(self._narrow or found.dtype)
            own = (of * found).sum(dim=1, dtype=torch.float64)
            return (-own / self.nbeta).float().cpu()

        found = self.solve_rows(rows)
        earlier = asked(found.earlier)
        found = replace(found, earlier=rows[:0])  # memory that the jackknife needs
        some = self._jackknifed(kind, columns)
        changes = [] if some is None else self._changes(rows, found.value, some, asked)
        value = asked(found.value)
        facts = {
            "kept": found.kept((_LESS - 1) * self.damping).cpu(),
            "residual": found.residuals.cpu(), "steps": found.steps,
        }  # fmt: skip
        taken = self.problem.num_train if self._items is None else len(self._items)
        left_out = 1 - taken / self.problem.num_train
        return _Solved(
            [value, earlier, *changes], found.shrinkage.clamp(max=1).cpu(), facts, some, left_out
        )

    def solve_rows(self, rows: Tensor, *, keeps_earlier: bool = True) -> Solution:
        """Return the solutions `x (C + damping) = rows`, to the settings' residual or steps.

        Args:
            rows: `[K, P]`, where the vectors of a step are to be.
            keeps_earlier: Whether an earlier solution is kept beside.

        Raises:
            ValueError: Negative curvature beyond the damping.
        """
        s = self.settings
        try:
            return conjugate_gradients(
                self.times,
                rows,
                damping=self.damping,
                tolerance=0.0 if s.solver_steps else s.solver_residual or RESIDUAL,
                max_steps=s.solver_steps or MOST_STEPS,
                device=self.device,
                keeps_earlier=keeps_earlier,
            )
        except NegativeCurvature as error:
            needed = self.nbeta * (self.damping - error.lowest)
            raise ValueError(
                f"U curves downwards: a direction has {error.lowest:.3g} in units of the mean "
                f"loss, with gamma/nbeta and weight decay. Set gamma above {needed:.3g}, "
                "perhaps further, or use solver_curvature='gauss_newton'."
            ) from error

    def _jackknifed(self, kind: int, columns: range) -> Tensor | None:
        """Return which of some columns are solved again without groups of items.

        A few, spread over all; none where the curvature is that of all items.
        """
        if self._items is None:
            return None
        of_queries = kind < len(self.problem.observables)
        count = self.problem.num_queries if of_queries else self.problem.num_scored
        most = _FEW_COLUMNS if self.vectors.num_weights > _LARGE else _SPREAD_COLUMNS
        every = -(-count // most)
        return torch.tensor([k for k, c in enumerate(columns) if c % every == 0], dtype=torch.long)

    def _changes(
        self, rows: Tensor, solutions: Tensor, some: Tensor, asked: Callable[..., Tensor]
    ) -> list[Tensor]:
        """Return, for each group of the items that is left out, how the solutions of some change.

        Args:
            rows: Right-hand sides.
            solutions: With all items that are taken.
            some: Positions of these columns.
            asked: What is kept of a change, beside its right-hand sides.
        """
        assert self._items is not None
        if not len(some):
            return []
        if len(some) < len(rows):  # else no copies
            rows, solutions = rows[some], solutions[some]
        weights, moved = _without_a_group(len(self._items), self.device), []
        together = max(1, self.vectors.num_rows // (2 * len(some)))  # half: solutions wait, too
        for some_weights in weights.split(together):
            factors = some_weights.repeat_interleave(len(some), dim=0)
            right_of, at = (
                _repeated(x, len(some_weights)) for x in (rows, solutions.to(self.device))
            )
            right = self.times(at, factors).add_(at, alpha=self.damping).neg_()
            right = right.add_(right_of.to(at))
            del at
            changes = conjugate_gradients(
                self.times, right.to(self._home), damping=self.damping, row_factors=factors,
                tolerance=_SPREAD_RESIDUAL, max_steps=self.settings.solver_steps or MOST_STEPS,
                device=self.device, keeps_earlier=False,
            ).value  # fmt: skip
            moved += asked(changes, right_of).split(len(some))
        return moved

    def in_words(self, kind: int, columns: range) -> str:
        """Return how far a run is at the end of a block."""
        if kind < len(self.problem.observables):
            name, count = self.problem.observables[kind].name, self.problem.num_queries
            return f"{name}: {columns.stop:,} of {count:,} query columns solved"
        return (
            f"self-influence: {columns.stop:,} of {self.problem.num_scored:,} train columns solved"
        )

    def gradients(self, kind: int, columns: range) -> Tensor:
        """Return the gradients of a block's columns, rows `[K, P]`.

        Raises:
            ValueError: One that is not finite.
        """
        problem = self.problem
        if kind < len(problem.observables):
            phi, ids, which = problem.observables[kind], problem.query_ids, "queries"
            what = f"observable {phi.name!r}"
            rows = query_gradients(problem, phi, columns, self.posterior)
        else:
            what, ids, which = "loss", problem.scored_ids, "train items"
            rows = train_gradients(problem, columns, self.posterior)
        bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"the gradient of the {what} is NaN or infinite at w* for {len(bad)} {which}, such "
                f"as {[str(ids[columns.start + i]) for i in bad[:5]]}: mend it, or leave these out."
            )
        return rows

    def times(self, rows: Tensor, item_weights: Tensor | None = None) -> Tensor:
        """Return the products of rows with the curvature of the mean loss."""
        found = self._product(rows, item_weights)
        return found if self._mask is None else found.mul_(self._mask)

    def scores(self, *solutions: Tensor) -> list[Tensor]:
        """Return `-g_i · x / nbeta` of solutions x, each `[K, N]` float32 on the host.

        Many are multiplied with the items' gradients; a few, or those of tokens, pass through the
        model as directions of derivatives, which takes less memory.
        """
        many = sum(len(rows) for rows in solutions) >= _MANY_ROWS
        if many and self._home == self.device and not self.problem.train_by_token:
            size = self._together * (self.settings.chunk_size or 1)
            with suppress(NotVmapped, torch.OutOfMemoryError):
                found = products_with_gradients(
                    self.problem, solutions, self.posterior, chunk_size=size,
                    compute_dtype=self._narrow,
                )  # fmt: skip
                return [(-x / self.nbeta).float().cpu() for x in found]
        return [self._along(rows) for rows in solutions]

    def _along(self, rows: Tensor) -> Tensor:
        directions = split_rows(rows.to(self.device), self.posterior.center)
        found = self.observer.train(directions, oracle=self._derivatives)
        return (-found / self.nbeta).detach().cpu()

    def _flat_mask(self) -> Tensor | None:
        if not self.posterior.masks:
            return None
        center, masks = self.posterior.center, self.posterior.masks
        parts = [masks.get(n, torch.ones_like(x)).to(x).flatten() for n, x in center.items()]
        return torch.cat(parts)


def _mean(places: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean over places, and the largest residuals and steps; errors may be as one."""
    stacked = {name: torch.stack([place[name] for place in places]) for name in places[0]}
    return {
        name: values.amax(dim=0) if name in ("residual", "steps") else values.mean(dim=0)
        for name, values in stacked.items()
    }


def _repeated(rows: Tensor, times: int) -> Tensor:
    """Return rows `[times·K, P]`, the same ones if they come once."""
    return rows if times == 1 else rows.repeat(times, 1)


def _without_a_group(count: int, device: torch.device) -> Tensor:
    """Return weights `[G, count]` of items that leave out each of G groups in turn."""
    groups = torch.arange(count, device=device) * _GROUPS // count
    kept = groups != torch.arange(_GROUPS, device=device)[:, None]
    return kept * (count / kept.sum(dim=1, keepdim=True))


def _some_items(problem: Problem, settings: Settings) -> Tensor | None:
    """Return the positions of the train items whose curvature is taken; None for all."""
    if settings.solver_items is None or settings.solver_items >= problem.num_train:
        return None
    source = torch.Generator().manual_seed(settings.seed)
    return torch.randperm(problem.num_train, generator=source)[: settings.solver_items]


def sampling_settings(settings: Settings) -> Settings:
    """Return the same settings for what evaluates items at one chain's weights."""
    return settings.reopened(
        estimator=None, solver_curvature=None, solver_steps=None, solver_residual=None,
        solver_items=None, self_influence=False, oracle="sequential", gradient="full", chains=2,
        block_size=1,
    )  # fmt: skip
