"""The commands that make runs, add to them and show them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bif import store
from bif.cli.answers import (
    pages_in_words,
    print_answer,
    print_figures,
    print_moved_labels,
    print_opening,
    say,
)
from bif.cli.exits import GOES_ON, INTERRUPTED
from bif.cli.language import Language, pose_problem
from bif.cli.loading import load_groups
from bif.cli.options import Folder, Folders, Target
from bif.runs.retention import Keep
from bif.runs.run import load
from bif.sampling.settings import Settings

if TYPE_CHECKING:
    from bif.mesh import Ranks
    from bif.results.influence import Influence

_SHOWN = 3
"""Queries that are shown where none is asked for."""
_GROW = ("draws", "chains", "solver_residual", "solver_steps")
"""Settings that `--from` may change."""


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """Join the ranks that a launcher has started with this process; None where it is alone."""
    if "MASTER_ADDR" not in os.environ:  # before torch.distributed is imported
        yield None
        return
    from bif.mesh import join, launched

    with join() if launched() else nullcontext() as ranks:
        yield ranks


@dataclass(frozen=True)
class Demo:
    """Train a small network on digits, some of them mislabelled, and find out who is to blame."""

    out: str = "bif-demo"
    """Folder for the results; a run that was cut short there goes on."""
    seed: int = 0
    """Seed of split, moved labels, training and sampling."""
    keep: Keep = "traces"
    """What is kept of the draws: all losses, sums, or all losses and weights."""
    commit_every: float = 10.0
    """Seconds from one commit to the next."""
    overwrite: bool = False
    """Replace a run that is already in the folder."""

    def run(self) -> None:
        from bif.cli.digits_demo import run_demo

        worked = run_demo(
            self.out,
            seed=self.seed,
            keep=self.keep,
            on_existing="replace" if self.overwrite else "resume",
            commit_every=self.commit_every,
        )
        _print_result(self.out, worked=worked)


@dataclass(frozen=True)
class Attribute:
    """Attribute a problem of your own, or a language model's documents.

    The problem is a Python function that returns a `bif.Problem`; or --model, --train and --query
    name a language model and its documents. With `--from`, add draws, chains, queries or
    candidates to a run that is there, or solve it further.
    """

    target: Target = None
    """FILE.py:FUNCTION, unless there is a --model."""
    out: str | None = None
    """Folder or fsspec URL for the results; a run that was cut short there goes on. With --from,
    a copy of that run is extended here, which stays as it is."""
    keep: Keep = "traces"
    """What is kept of the draws: all losses; sums, which allow no further queries; or all losses
    and the weights, with which new queries cost forward passes only."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Extend the run in this folder, of the same problem and settings."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file. With --from:
    FILE.py:FUNCTION that returns further queries, named after the function, or a mapping from names
    to queries; of a --model the files of all queries, old and new."""
    candidates: tuple[str, ...] = ()
    """The same for items that were not trained on, to be scored as well."""
    top: int | None = None
    """Keep so many of the strongest scores of every query, or query token, either way, in the place
    of all; all scores are never held at once."""
    commit_every: float = 10.0
    """Seconds from one commit to the next."""
    overwrite: bool = False
    """Replace a run that is already in the folder."""
    without_proxies: bool = False
    """Record the observables themselves, and not a loss through its margin or residual."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        with joined() as ranks:
            self._run(ranks)

    def _run(self, ranks: Ranks | None) -> None:
        if self.from_ is not None:
            if ranks is not None:
                raise ValueError("--from extends a run in one process: start it without torchrun.")
            self._extend(self.from_)
            return
        if self.out is None:
            raise ValueError("a run needs a folder: pass --out DIR.")
        if self.language.model is None and (self.query or self.candidates):
            raise ValueError(
                "--query and --candidates add to a run that is there: pass --from RUN. The queries "
                "of a new run are those of its problem."
            )
        from bif.problem.identity import identity
        from bif.runs.attribute import attribute

        problem, settings = pose_problem(
            self.target, self.language, self.settings,
            query=self.query, candidates=self.candidates, without_proxies=self.without_proxies,
        )  # fmt: skip
        asked = identity(problem, settings.as_dict())
        manifest = {"identity": asked, "keep": self.keep, "top": self.top}
        replaces = "replace" if self.overwrite else "resume"
        there = store.is_complete(self.out, manifest) and not self.overwrite
        attribute(
            problem,
            settings,
            out=self.out,
            keep=self.keep,
            top=self.top,
            on_existing=replaces,
            commit_every=self.commit_every,
            show_progress=ranks is None or ranks.is_first,
            ranks=ranks,
        )
        if ranks is None or ranks.is_first:
            _print_result(self.out, worked=not there)

    def _extend(self, run: str) -> None:
        from bif.runs.extend import extend, refuse_of_other_estimator

        if self.overwrite:
            raise ValueError("--overwrite would begin anew what --from extends: drop one of them.")
        if self.top is not None:
            raise ValueError("--from keeps the run's own --top: drop it.")
        given = {
            name: value
            for name, value in self.settings.as_dict().items()
            if value not in (getattr(Settings(), name), "response") and name not in _GROW
        }
        if given:
            raise ValueError(
                f"--from goes on with the run's own settings; {', '.join(sorted(given))} cannot be "
                "changed. Only --draws and --chains can grow; of a run that was solved, with "
                "--estimator response, --solver-steps or a smaller --solver-residual."
            )
        problem, _ = pose_problem(
            self.target, self.language, self.settings,
            query=self.query, candidates=self.candidates, without_proxies=self.without_proxies,
        )  # fmt: skip
        # Groups that an earlier, interrupted call has added already are not new.
        extended = (
            problem.extended(
                queries=load_groups(self.query), candidates=load_groups(self.candidates)
            )
            if self.language.model is None
            else problem
        )
        out = self.out or run
        grows = {name: getattr(self.settings, name) for name in _GROW}
        refuse_of_other_estimator(run, {**grows, "estimator": self.settings.estimator})
        if out != run and not store.RUN.holds(store.folder_at(out)):
            store.copy_run(run, out)
        extend(
            out,
            extended,
            **grows,
            commit_every=self.commit_every,
            show_progress=True,
        )
        _print_result(out, worked=True)


@dataclass(frozen=True)
class Check:
    """Cross-check a run's sampler by chains of its own: at half the step, and by the response.

    Takes about as long as the run; its figures and gates join the run's results.
    """

    folder: Folder
    """A complete run that keeps traces."""
    target: Target = None
    """FILE.py:FUNCTION, the run's problem, unless there is a --model."""
    query: tuple[str, ...] = ()
    """With --model: the run's files of queries."""
    candidates: tuple[str, ...] = ()
    """With --model: the run's files of documents that were not trained on."""
    without_proxies: bool = False
    """Whether the run records the observables themselves."""
    language: Language = field(default_factory=Language)

    def run(self) -> None:
        from bif.runs.cross_check import check_on_disk

        problem, _ = pose_problem(
            self.target, self.language, Settings(), query=self.query,
            candidates=self.candidates, without_proxies=self.without_proxies,
        )  # fmt: skip
        check_on_disk(self.folder, problem)
        _print_result(self.folder, worked=True)


@dataclass(frozen=True)
class Merge:
    """Put the chains of several runs of one problem, with seeds of their own, into one run."""

    folders: Folders
    """Complete runs that keep traces, two or more."""
    out: str
    """Folder or fsspec URL for the merged run."""
    overwrite: bool = False
    """Replace a run that is already in the folder."""

    def run(self) -> None:
        from bif.runs.merge import merge

        store.refuse_occupied(store.folder_at(self.out), overwrite=self.overwrite)
        merge(self.folders).save(self.out, overwrite=self.overwrite)
        _print_result(self.out, worked=True)


@dataclass(frozen=True)
class Show:
    """Print what a run found: which items moved a query, whether to trust it, items to look at."""

    folder: Folder
    """A run's folder, or its URL."""
    query: tuple[str, ...] = ()
    """Ids of queries, whose items are listed with their scores; the three on which the model does
    worst, without scores, by default."""
    observable: str | None = None
    """The first one by default."""
    top: int = 5
    """Items on either side, or of each list of suspects."""
    suspects: bool = False
    """List train items that may be mislabelled, duplicated or out of place."""
    verbose: bool = False
    """Print all figures, and every score with its error."""

    def run(self) -> None:
        from bif.results.influence import Influence

        folder = store.folder_at(self.folder)
        if folder.is_file(store.SCORES):
            dataset, about = store.read_scores(folder)
            named = ("estimator", "num_steps", "seconds", "bias")
            self._print(Influence(dataset), {name: about.get(name) for name in named}, about)
            return
        unfinished = store.unfinished(folder)
        folder = unfinished if unfinished.is_file(store.MANIFEST) else folder
        if folder.is_file(store.MANIFEST) and not folder.is_file(store.SUMMARY):
            print(f"no results yet: {store.progress(folder)}; the command that began the run goes "
                  "on from there.")  # fmt: skip
            return
        run = store.read_run(folder)
        # Results of earlier versions say so in the summary alone.
        trusted = int(bool(run["summary"].get("trusted", True)))
        influence = Influence(run["influence"].assign_attrs(trusted=trusted))
        self._print(influence, run["summary"], run["manifest"])

    def _print(
        self, influence: Influence, summary: dict[str, Any], manifest: dict[str, Any]
    ) -> None:
        print_opening(influence, summary, manifest)
        if self.suspects or "relabelled" in influence.dataset:
            found = load(self.folder).suspects(self.top)
            print()
            if self.suspects:
                say(found)
            else:
                print_moved_labels(found, influence.dataset)
        if self.suspects:
            return
        ids = self.query or influence.hardest(_SHOWN, observable=self.observable)
        if self.query or self.verbose:
            for query in ids:
                print()
                kept = influence.dataset.sizes.get("rank", self.top)
                # What is not trusted is shown all the same, and the ranking says so.
                say(influence.top(
                    query, min(self.top, kept), observable=self.observable,
                    unresolved=not influence.trusted,
                ))  # fmt: skip
        else:
            print_answer(influence, ids, self.top, observable=self.observable)
        if self.verbose:
            print()
            say(influence)
            print_figures(summary)


def _print_result(out: str, *, worked: bool) -> None:
    if not worked:
        print(f"{out} already holds this run, complete: nothing to do.")
    Show(out).run()
    print()
    print(pages_in_words(out))
    if not store.RUN.read(store.folder_at(out))["complete"]:
        print(f"bif: interrupted. {GOES_ON}", file=sys.stderr)
        sys.exit(INTERRUPTED)
