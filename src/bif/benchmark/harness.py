"""One task from end to end: banks, methods, rows, table and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bif import store
from bif.benchmark import judge
from bif.benchmark.measure import measure_cost
from bif.benchmark.methods import Judge, Scored, Unsuited, all_methods
from bif.benchmark.plots import plots
from bif.benchmark.task import Task
from bif.calibration.calibrate import refuse_unusable
from bif.evaluate import Recipe
from bif.evaluate.retraining import Bank, Plan, retrained
from bif.problem.provenance import hardware, versions
from bif.terminal import say

_RESULT_FILES = RESULTS, ABOUT, TABLE = "results.json", "task.json", "table.md"
_LONG_SECONDS = 5.0
"""Seconds of a method after which results are handed out: nobody wants to lose them."""


@dataclass(frozen=True)
class Results:
    """The rows, curves and facts of a benchmark.

    Attributes:
        task: The task's name.
        rows: One row a method, target and outcome.
        curves: LDS after less work, and by fraction of the train items.
        unsuited: Method -> why the task does not allow it.
        about: Versions, hardware, plan, seconds of the banks.
        scored: The score matrices.
    """

    task: str
    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    unsuited: dict[str, str]
    about: dict[str, Any]
    scored: list[Scored]

    @property
    def tuned(self) -> list[dict[str, Any]]:
        """The candidates of each choice, and how well each did on the tuning part."""
        return [
            {"method": s.method, "observable": s.outcome, "tuned": [dict(t) for t in s.tuned]}
            | ({} if s.target is None else {"target": s.target})
            for s in self.scored
            if len(s.tuned) > 1
        ]


def benchmark(
    task: Task,
    *,
    out: str | Path | None = None,
    methods: Sequence[str] | None = None,
    fractions: Sequence[float] = (),
    after_each: Callable[[Results], object] | None = None,
    show_progress: bool = False,
) -> Results:
    """Judge methods by retraining.

    Every method is tuned on the tuning part of the banks and judged on the reported part: other
    subsets, other queries.  Its seconds hold set-up, tuning and scoring.

    Args:
        task: Model, data, training, plan.
        out: Folder for banks and results; banks that are there are used, and go on where they
            were cut short.  Results are written after every method that took 5 s or more, too.  In
            memory only if None.
        methods: Names of methods; the task's by default.
        fractions: Further fractions of the train items to retrain on, for a plot.
        after_each: Called with the results so far, curves left out, after every method that took
            5 s or more and after the last one: what a run that is cut short leaves behind.
        show_progress: Say what is done, and draw bars.

    Raises:
        ValueError: Unknown methods; whatever does not fit in the task, its settings included,
            before anything is trained.
        FolderInUse: `out` holds banks of another task, or results that bif has not made.
    """
    chosen = _choose_methods(task, methods)
    if out is not None:
        _refuse_foreign(store.folder_at(out))
    if any(name.startswith("bif") for name in chosen):
        for settings in task.settings:
            refuse_unusable(task.problem, settings)
    banks, seconds = retrain_banks(task, out, show_progress=show_progress)
    tuning = Judge([bank.tuning for bank in banks if bank.tuning is not None])
    found: list[Scored] = []
    unsuited: dict[str, str] = {}

    def results() -> Results:
        about = {**_task_facts(task, seconds), "unsuited": unsuited}
        return Results(task.name, judge.rows(found, banks), [], unsuited, about, found)

    for name in chosen:
        _log(show_progress, f"{name} …")
        try:
            found += all_methods()[name].run(task, tuning, found)
        except Unsuited as reason:
            unsuited[name] = str(reason)
            _log(show_progress, f"{name}: not here. {reason}")
            continue
        for scored in found:
            if scored.method == name:
                edges = ", ".join(judge.names_at_edge(scored.choice, scored.tuned))
                said = f"; tuned to the edge of its grid: {edges}" if edges else ""
                _log(show_progress, f"{name}, {scored.outcome}: {scored.cost.seconds:.1f} s{said}")
        took = sum(scored.cost.seconds for scored in found if scored.method == name)
        if took >= _LONG_SECONDS and name != chosen[-1]:
            so_far = results()
            if out is not None:
                write(so_far, out)
            if after_each is not None:
                after_each(so_far)
    whole = results()
    if after_each is not None:
        after_each(whole)
    curves = judge.curves(found, banks)
    for fraction in fractions:
        curves += _curve_points(task, fraction, found, out, show_progress=show_progress)
    whole = replace(whole, curves=curves)
    if out is not None:
        write(whole, out)
    return whole


def retrain_banks(
    task: Task, out: str | Path | None = None, *, show_progress: bool = False
) -> tuple[list[Bank], dict[str, float]]:
    """Return the banks that judge a task, one a target, and the seconds of each.

    Args:
        task: Model, data, training, plan.
        out: As for `benchmark`.
        show_progress: As for `benchmark`.

    Raises:
        FolderInUse: `out` holds banks of another task.
    """
    banks, seconds = [], {}
    for target in task.targets:
        with measure_cost(task.problem.device) as cost:
            banks.append(_retrain_bank(task, task.plan, target, out, show_progress=show_progress))
        seconds[target] = cost.seconds
        _log(show_progress, f"bank {target}: {banks[-1].num_networks} networks, "
             f"{cost.seconds:.1f} s")  # fmt: skip
    return banks, seconds


def benchmark_sizes(
    make: Callable[[int], Task],
    sizes: Sequence[int],
    *,
    out: str | Path,
    methods: Sequence[str] | None = None,
    fractions: Sequence[float] = (),
    show_progress: bool = False,
) -> Results:
    """Run the benchmark for several numbers of train items, each in its own folder.

    Args:
        make: A function from a number of train items to the task.
        sizes: Numbers of train items.
        out: Folder; what belongs to a size is in `out/SIZE`.
        methods: As for `benchmark`.
        fractions: As for `benchmark`.
        show_progress: As for `benchmark`.

    Returns:
        All rows, with `num_train`, and them again as curves over it.

    Raises: as `benchmark`.
    """
    _refuse_foreign(store.folder_at(out))
    rows: list[dict[str, Any]] = []
    abouts: dict[str, Any] = {}
    name = ""
    for size in sizes:
        _log(show_progress, f"{size:,} train items")
        one = benchmark(
            make(size), out=f"{str(out).rstrip('/')}/{size}", methods=methods,
            fractions=fractions, show_progress=show_progress,
        )  # fmt: skip
        rows += [{**row, "num_train": size} for row in one.rows]
        abouts[str(size)] = one.about
        name = name or one.task.partition("-")[0]
    whole = Results(name, rows, [*rows], {}, abouts, [])
    write(whole, out)
    return whole


def write(results: Results, out: str | Path) -> None:
    """Write `results.json`, `task.json`, `table.md` and the plots into a folder."""
    folder = store.folder_at(out)
    _refuse_foreign(folder)
    pictures = plots(results.rows, results.curves, title=results.task)
    names = [*_RESULT_FILES, *(f"{name}.png" for name in pictures)]
    _refuse_foreign(folder, names)
    store.mark(folder, names)
    folder.write(RESULTS, _encode_json(results.rows))
    about = {**results.about, "curves": results.curves, "tuned": results.tuned}
    folder.write(ABOUT, _encode_json(about))
    folder.write(TABLE, judge.table(results.rows).encode())
    for name, picture in pictures.items():
        folder.write(f"{name}.png", picture)


def _refuse_foreign(folder: store.Folder, names: Sequence[str] = _RESULT_FILES) -> None:
    """Raise where there are results that no benchmark has written, before anything is trained."""
    if not store.marked_names(folder) and folder.is_file(ABOUT):
        try:  # of a version that made no marks
            about = json.loads(folder.read(ABOUT))
        except ValueError:
            about = None
        if isinstance(about, dict) and {"task", "bank_seconds", "versions"} <= set(about):
            return
    store.refuse_foreign(folder, names)


def _task_facts(task: Task, bank_seconds: dict[str, float]) -> dict[str, Any]:
    return {
        "task": task.name,
        "about": task.about,
        "in_sample": task.in_sample,
        "num_train": task.problem.num_train,
        "num_queries": task.problem.num_queries,
        "num_tuning_queries": len(task.tuning_queries),
        "plan": task.plan.as_dict(),
        "bank_seconds": bank_seconds,
        "settings": [settings.as_dict() for settings in task.settings],
        "versions": versions(),
        "hardware": hardware(task.problem.device),
    }


def _retrain_bank(
    task: Task, plan: Plan, target: Any, out: str | Path | None, *, show_progress: bool
) -> Bank:
    name = f"bank-{target}" if plan == task.plan else f"bank-{target}-{plan.fraction:g}"
    how = task.retraining
    if target == "checkpoint" and isinstance(how, Recipe) and how.batch_size is None:
        # Whole batches from one start: seeds would all be the same.
        assert isinstance(plan.seeds, tuple) and isinstance(plan.tuning_seeds, tuple)
        plan = replace(plan, seeds=plan.seeds[:1], tuning_seeds=plan.tuning_seeds[:1])
    return retrained(
        task.problem,
        task.tuning_queries if plan.num_tuning_subsets else None,
        how,
        plan,
        target=target,
        out=None if out is None else f"{str(out).rstrip('/')}/{name}",
        networks_per_stack=task.networks_per_stack,
        precision=task.retraining_precision,  # type: ignore[arg-type]
        show_progress=show_progress,
    )


def _curve_points(
    task: Task, fraction: float, found: Sequence[Scored], out: str | Path | None,
    *, show_progress: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the LDS of the same scores on another fraction of the items."""
    plan = replace(task.plan, fraction=fraction, num_removed=None, num_tuning_subsets=0)
    banks = [_retrain_bank(task, plan, t, out, show_progress=show_progress) for t in task.targets]
    names = ("method", "target", "observable", "lds", "ci_low", "ci_high", "ceiling")
    return [
        {**{name: row[name] for name in names}, "fraction": fraction}
        for row in judge.rows(found, banks)
    ]


def _choose_methods(task: Task, methods: Sequence[str] | None) -> list[str]:
    known = list(all_methods())
    chosen = list(methods or task.methods or known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"no methods {unknown}; there are {known}: name some of these.")
    return chosen


def _log(shown: bool, line: str) -> None:
    if shown:
        say([line])


def _encode_json(content: Any) -> bytes:
    return (json.dumps(store.plain(content), indent=1) + "\n").encode()
