"""The commands that average scores: over trained models, or over draws of the posterior."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bif import store
from bif.cli.answers import print_figures
from bif.cli.language import Language, pose_problem
from bif.cli.options import Folders, Target
from bif.results.indexes import without_id_indexes
from bif.sampling.settings import Settings

if TYPE_CHECKING:
    from bif.results.influence import Influence


@dataclass(frozen=True)
class Average:
    """Average the scores of runs of several trained models, about the same items and queries."""

    folders: Folders
    """Complete runs, one a model, two or more."""
    out: str
    """Folder for influence.zarr and summary.json."""

    def run(self) -> None:
        from bif.results.averages import average
        from bif.runs.run import load

        write_scores(average([load(folder).influence for folder in self.folders]), self.out)


@dataclass(frozen=True, kw_only=True)
class AverageOverDraws:
    """Solve for influence at a few draws of the local posterior, and average it."""

    target: Target = None
    """FILE.py:FUNCTION, unless there is a --model."""
    out: str
    """Folder for influence.zarr and summary.json."""
    num_draws: int = 8
    """Draws, each the last one of a chain of its own."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.runs.average_over_draws import average_over_draws

        problem, settings = pose_problem(
            self.target, self.language, self.settings, query=self.query
        )
        found = average_over_draws(problem, settings, num_draws=self.num_draws, show_progress=True)
        write_scores(found, self.out)


def write_scores(found: Influence, out: str) -> None:
    """Write scores of no folder of a run, with their figures, and print these."""
    attrs = found.dataset.attrs
    error, score = (found.dataset[n].values for n in ("standard_error", "influence"))
    counted = "num_models" if "num_models" in attrs else "num_draws"
    figures = {
        counted: attrs[counted], "trusted": bool(attrs["trusted"]),
        "spread": float((error**2).mean() ** 0.5 / (score**2).mean() ** 0.5),
    }  # fmt: skip
    plain = without_id_indexes(found.dataset)
    store.write_summary(out, figures, datasets={"influence.zarr": plain})
    print_figures(figures)
    print(f"written: {out}")
