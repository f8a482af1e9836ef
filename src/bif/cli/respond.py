"""The command that scores by pairs of chains around each query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bif import store
from bif.cli.language import Language, pose_problem
from bif.cli.options import Target
from bif.sampling.settings import Settings
from bif.terminal import escape_controls


@dataclass(frozen=True, kw_only=True)
class Respond:
    """Attribute by the response estimator: perturb the potential by each query, see the items move.

    Cheaper than `bif attribute` for a few queries, and at temperature 0 the classical influence
    function without a Hessian.
    """

    target: Target = None
    """FILE.py:FUNCTION, unless there is a --model."""
    out: str
    """Folder or fsspec URL for influence.zarr and scores.json."""
    observable: str | None = None
    """The observable of the queries; the problem's first by default."""
    temperature: float = 1.0
    """Temperature: 1, the local posterior, or 0, its minimum."""
    curvature: Literal["hessian", "gauss_newton", "bregman"] = "hessian"
    """At temperature 0: "gauss_newton" has the Gauss-Newton matrix in the Hessian's place; earlier
    versions called it "bregman"."""
    h: float | None = None
    """Size of the perturbation; chosen by a pilot if left out."""
    steps: int | None = None
    """Recorded steps of each chain; at temperature 0 the most steps of a descent."""
    replicates: int = 1
    """Replicates of each query at temperature 1, with noise of their own."""
    without_proxies: bool = False
    """Record the observables themselves, and not a loss through its margin or residual."""
    overwrite: bool = False
    """Replace scores that are already in the folder, whole or not."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.curvature.products import require_curvature
        from bif.linear_response.request import Request
        from bif.problem.identity import identity
        from bif.runs.respond import run_response

        store.holds_scores(store.folder_at(self.out))  # before a model is loaded
        problem, settings = pose_problem(
            self.target, self.language, self.settings, query=self.query,
            without_proxies=self.without_proxies,
        )  # fmt: skip
        asked: dict[str, Any] = {
            "temperature": self.temperature,
            "curvature": require_curvature(self.curvature),
            "h": self.h,
            "steps": self.steps,
            "replicates": self.replicates,
        }
        request = Request(settings, **asked)
        with store.open_scores(
            self.out,
            {
                **identity(problem, settings.as_dict()),
                "response": {"observable": self.observable, **asked},
            },
            on_existing="replace" if self.overwrite else "resume",
        ) as folder:
            if folder.complete:
                print(f"{self.out} already holds these scores, complete: nothing to do.")
                about = folder.about
            else:
                response = run_response(
                    problem, request, observable=self.observable, folder=folder, show_progress=True
                )
                about = response.about()
                folder.finish(response.influence.dataset, about)
        for warning in about["warnings"]:
            print(f"warning: {escape_controls(warning)}")
        print(f"{about['num_steps']} steps, {about['seconds']:.1f} s; bif show {self.out}")
