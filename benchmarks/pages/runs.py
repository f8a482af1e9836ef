"""Committed runs, read and joined for the pages."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.common import RESULTS, all_runs, newest_run
from bif.benchmark import SETTINGS
from bif.benchmark.judge import names_at_edge

Run = dict[str, Any]
_CURRENT_SCRIPTS = {
    "small": "calibration.small", "tuning": "calibration.ways",
    "elsewhere": "calibration.ways --elsewhere", "coverage": "converged.coverage",
    "healthy": "converged.healthy", "remedies": "converged.remedies",
    "converged": "converged.traces", "draws": "throughput draws",
}  # fmt: skip
"""Names of today for scripts of earlier versions."""


def describe_run(run: Mapping[str, Any]) -> str:
    """Return command, machine and versions of a run in a sentence."""
    versions = run["versions"]
    return (
        f"`{current_command(run['command'])}` on {machine(run)}, {run['date']}, "
        f"PyTorch {versions['torch']}, "
        f"Python {versions['python']}, seed {run['seed']}."
    )


def current_command(command: str) -> str:
    """Return a command as it is spelled today."""
    return re.sub(
        r"python (?:benchmarks/)?(\w+)\.py",
        lambda script: f"python -m benchmarks.{_CURRENT_SCRIPTS.get(script[1], script[1])}",
        command,
    )


def machine(run: Mapping[str, Any]) -> str:
    """Return the GPU of a run, or its number of CPU cores."""
    hardware = run["hardware"]
    return hardware.get("gpu") or f"{hardware['cores']} CPU cores ({hardware['machine']})"


def newest_of_sizes(name: str) -> list[Run]:
    """Read the newest run of a benchmark, and of each size that has files `NAME-SIZE-DATE.json`."""
    found = (re.fullmatch(r"-(\d+)-\d{4}(-\d\d){2}", file.stem.removeprefix(name))
             for file in RESULTS.glob(f"{name}-*.json"))  # fmt: skip
    sizes = sorted({int(match[1]) for match in found if match})
    runs = [newest_run(name), *(newest_run(f"{name}-{size}") for size in sizes)]
    return [run for run in runs if run is not None]


def newest_of_settings() -> dict[str, Run]:
    """Read the newest run of `benchmarks.lds` for every setting that has one."""
    found = {setting: newest_run(f"lds-{setting}") for setting in SETTINGS}
    return {
        setting: add_default_rows(add_edges(run), newest_run(f"lds-{setting}-default"))
        for setting, run in found.items()
        if run is not None
    }


def language_runs() -> list[Run]:
    """Read the runs of `benchmarks.language`, which divide its parts among them."""
    large = functools.reduce(
        join_runs, [*all_runs("language-lds"), *all_runs("language-lds-solver")]
    )
    small = join_runs(all_runs("language-lds-small")[-1], all_runs("language-lds-response")[-1])
    solved = all_runs("language-lds-solver-small")[-1]
    return [all_runs("language")[-1], all_runs("language-planted")[-1], large, small, solved]


def add_edges(run: Run) -> Run:
    """Add to rows of earlier versions where tuning ended at the edge of its grid."""
    tuned = {(t["method"], t["observable"]): t["tuned"] for t in run.get("tuned", ())}
    return {
        **run,
        "rows": [
            {
                "at_edge": names_at_edge(
                    r["choice"], tuned.get((r["method"], r["observable"]), ())
                ),
                **r,
            }
            for r in run["rows"]
        ],
    }


def add_default_rows(run: Run, default: Run | None) -> Run:
    """Add the rows of the BIF's defaults, where these were run on their own."""
    if default is None or any(row["method"] == "bif_default" for row in run["rows"]):
        return run
    own = [row for row in default["rows"] if row["method"] == "bif_default"]
    return {**run, "rows": [*run["rows"], *own], "default": default}


def add_own_size(run: Run, whole: Run) -> Run:
    """Add to a run over sizes the rows of the setting's own size, if on the same hardware."""
    size, known = whole["about"]["num_train"], {row["method"] for row in run["rows"]}
    other_card = whole["hardware"].get("gpu") != run["hardware"].get("gpu")
    if other_card or size in {row["num_train"] for row in run["rows"]}:
        return run
    own = [{**row, "num_train": size} for row in whole["rows"] if row["method"] in known]
    return {**run, "rows": [*run["rows"], *own]}


def join_runs(run: Run, later: Run) -> Run:
    """Add to a later run the rows of an earlier one on the same networks.

    Raises:
        ValueError: The networks are others.
    """
    for name in ("seed", "sizes"):
        if run[name] != later[name]:
            raise ValueError(f"the runs differ in {name!r}: their networks are not the same.")
    known = {row["method"] for row in run["rows"]}
    rows = [*run["rows"], *(row for row in later["rows"] if row["method"] not in known)]
    earlier = [*run.get("earlier_commands", []), run["command"]]
    return {**later, "about": run["about"], "rows": rows, "earlier_commands": earlier}
