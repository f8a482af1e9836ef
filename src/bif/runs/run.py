"""Hold what attribution leaves behind, in memory or read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bif import store
from bif.estimate.top_k import Strongest, strongest_influences
from bif.estimate.traces import LossTraces, TraceBlock
from bif.problem.array_layout import Panels, join_panels
from bif.problem.problem import observable_position
from bif.results.excerpt import excerpt
from bif.results.group_sums import source_text
from bif.results.indexes import without_id_indexes
from bif.results.influence import Influence
from bif.results.ranking import Listed, Ranking, ranked
from bif.results.suspects import Suspects
from bif.results.tables import html_folded, html_line
from bif.runs.records import NAN, Manifest, Summary, is_solved
from bif.runs.retention import subset_of
from bif.sampling.settings import without_unused

if TYPE_CHECKING:
    import xarray as xr

_SLOPES = "recorder/slopes/"
"""Beginning of the names of a block's slopes along anchors, in what a commit has of its state."""
_MOST_SEARCHED = 5000
"""Train items at most among which a page looks for suspects: the time goes with their square."""
_SHOWN_SUSPECTS = 24
"""Suspects of each kind on a page."""


@dataclass(frozen=True)
class Run:
    """The scores, diagnostics, figures and traces of a run.

    Attributes:
        influence: The scores, with their errors; the strongest of every query where the run was
            made with `top`.
        traces: The losses of all surviving chains at all draws; of 256 train items and 64 query
            columns where the run kept sums.
        diagnostics: Mean-loss traces, reliability, effective sample size, R-hat.
        summary: The figures of `summary.json`.
        manifest: Settings, versions, fingerprints, choices and warnings, as in `run.json`.
    """

    influence: Influence
    traces: LossTraces
    diagnostics: xr.Dataset
    summary: Summary
    manifest: Manifest

    def __post_init__(self) -> None:
        """Mark the scores of an untrusted run, which have no certain sign."""
        trusted = int(bool(self.summary.trusted))
        if self.influence.dataset.attrs.get("trusted") != trusted:
            dataset = self.influence.dataset.assign_attrs(trusted=trusted)
            object.__setattr__(self, "influence", Influence(dataset, self.influence.traces))

    @property
    def failed_gates(self) -> list[str]:
        """Return the names of the gates that failed, none of a run that is trusted."""
        return [gate["name"] for gate in self.manifest.gates if gate["failed"]]

    def top_k(
        self, k: int = 10, *, observable: str | None = None, unresolved: bool = False
    ) -> list[Ranking]:
        """Return the k most positive and negative train items, or tokens, of every query (token).

        From the traces, some train columns at a time: what `influence.top` says of one query, for
        all of them and without holding their scores; equal scores are in the order of the columns.

        Args:
            k: Items on either side.
            observable: The first one by default.
            unresolved: List the strongest items whether their sign is certain or not; without it,
                a run that is not trusted lists none.

        Raises:
            KeyError: No such observable.
            ValueError: The run keeps sums, not traces.
        """
        dataset = self.influence.dataset
        if self.manifest.keep == "sums" or not self.traces.blocks:
            raise ValueError(
                "the run keeps sums: top_k needs the traces of all items. Attribute with "
                "keep='traces'."
            )
        names = [str(name) for name in dataset["observable"].values]
        position = observable_position(names, observable)
        first = position * dataset.sizes["query"]
        rows = np.arange(first, first + dataset.sizes["query"])
        columns = np.arange(self.traces.blocks[0].train.shape[2])
        found = strongest_influences(self.traces.selected(train=columns, query=rows), k)
        return [
            ranked(
                dataset, query, names[position],
                certain=[_row(side, query) for side in found.certain],
                strongest=[_row(side, query) for side in found.strongest],
                unresolved=unresolved,
            )
            for query in range(dataset.sizes["query"])
        ]  # fmt: skip

    def suspects(self, k: int = 10) -> Suspects:
        """Return the train items that may be mislabelled, duplicated or out of place, k of each.

        Scores are larger for what is more suspicious.  A run that was solved, or keeps sums, tells
        of wrong labels by the loss at w* alone, and of nothing that is out of place.

        Raises:
            ValueError: `k` below 1; tokens' scores whose traces are not at hand.
        """
        from bif.runs.suspects import suspects_of  # which takes a Run

        return suspects_of(self, k)

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a run that is in memory to a folder: traces, results and report.

        A run made with `attribute(…, out=…)` is in its folder already, and can go on from there;
        one saved from memory cannot.

        Args:
            folder: A path or fsspec URL; made if need be.
            overwrite: Replace a run that is in the folder; anything else is never replaced.
            extra: Further entries for `summary.json`.

        Raises:
            FolderInUse: There is a run already, or something else.
        """
        place = store.folder_at(folder)
        store.refuse_occupied(place, overwrite=overwrite)
        manifest = {
            "identity": self.manifest.identity,
            "keep": self.manifest.keep,
            "top": self.manifest.top,
        }
        with store.open_run(place, manifest, on_existing="replace") as opened:
            opened.begin()
            panels = Panels(**self.manifest.panels)
            if self.manifest.keep == "sums":
                first = self.traces.blocks[0]
                panels = Panels((first.train.shape[2],), (first.query.shape[2],), 1)
            for index, block in enumerate(self.traces.blocks):
                opened.block(index).commit(
                    store.Commit(serial=1, step=0, draws=block.num_draws),
                    traces=panels.split(block.train, block.with_anchors),
                    weights={},
                    state={} if block.slope is None else {
                        f"{_SLOPES}total": block.slope, f"{_SLOPES}count": torch.tensor(1),
                    },
                )  # fmt: skip
            chains = [list(block.chains) for block in self.traces.blocks]
            opened.update({"chains": chains, "arrays": panels.names, "resumable": False})
            self.write(opened, extra=extra)
        return Path(folder)

    def write(self, folder: store.RunFolder, *, extra: Mapping[str, Any] | None = None) -> None:
        """Write results and report into an open folder; its manifest may then call it complete.

        Args:
            extra: Further entries for `summary.json`.
        """
        summary = {**self.summary, **(extra or {})}
        folder.finish(
            manifest=self.manifest,
            influence=without_id_indexes(self.influence.dataset),
            diagnostics=self.diagnostics,
            summary=summary,
            report=self._report(summary),
        )

    def _report(self, summary: Mapping[str, Any]) -> str:
        """Return the page of items, or where tokens have columns that of tokens."""
        from bif.report import render_report, render_token_report

        scores, manifest = self.influence, _shown(self.manifest)
        if scores.kept is not None:
            scores = excerpt(scores)
        dataset = scores.dataset
        if not {"train_item", "query_item"} & set(dataset.coords):
            return render_report(
                dataset, diagnostics=self.diagnostics, summary=summary, manifest=manifest,
                suspects=self._shown_suspects(),
            )  # fmt: skip
        on_queries = scores.by_item("query")
        summed = {
            "query": on_queries.dataset,
            "train": scores.by_item("train").dataset,
            "both": on_queries.by_item("train").dataset,
        }
        sources = source_text(dataset)
        if sources is not None:
            summed["sources"] = on_queries.by_group(sources).dataset
        return render_token_report(
            dataset, summed=summed, diagnostics=self.diagnostics, summary=summary, manifest=manifest
        )

    def _shown_suspects(self) -> Suspects | None:
        """Return suspects for the page; None where there are too few draws, or too many items."""
        count = int(self.influence.dataset.attrs["num_train"])
        few = count < 2 or not (self.summary.solved or self.summary.chains > 1)
        if few or count > _MOST_SEARCHED:
            return None
        try:
            return self.suspects(_SHOWN_SUSPECTS)
        except ValueError:  # losses that are not finite: a page is written all the same
            return None

    def __repr__(self) -> str:
        s, m = self.summary, self.manifest
        trusted = "trusted\n" if s.trusted else "NOT TRUSTED, see the warnings\n"
        moved = ""
        if m.num_weights:  # earlier versions did not say
            moved = (
                f"{m.num_moving_weights:,} of {m.num_weights:,} weights move, held in "
                f"{' and '.join(m.weight_types)}\n"
            )
        warnings = "".join(f"\nwarning: {warning}" for warning in m.warnings)
        if s.solved:
            return (
                f"{trusted}{self.influence!r}\n{moved}solved in {s['solver_steps']} steps and "
                f"{s.seconds:.1f} s, largest residual {s['largest_residual']:.2g}, at damping "
                f"{s['damping']:.3g}, which leaves about {s['damping_keeps']:.0%} of what a tenth "
                f"of it does{warnings}"
            )
        anchors = ""
        if s.others.get("estimator") == "anchored":
            anchors = (
                f"\nthe linear part is solved for, which leaves {s['variance_left']:.0%} of the "
                f"observables' variance to the draws: they are worth {s['effective_draws']:,.0f} "
                "(median)"
            )
        return (
            f"{trusted}{self.influence!r}\n{moved}{s.draws} draws of {s.chains} chains in "
            f"{s.seconds:.1f} s; reliability {s.reliability:.3f}, R-hat at most "
            f"{s.rhat_max:.3f}, effective sample size {s.ess_median:.0f} (median)"
            f"{anchors}{warnings}"
        )

    def _repr_html_(self) -> str:
        """Return the answer, and figures and warnings folded below it."""
        about = "".join(map(html_line, repr(self).split("\n")))
        return self.influence._repr_html_() + html_folded("figures and warnings of the run", about)


def load(folder: str | Path) -> Run:
    """Read a run's folder: scores, diagnostics and, where they were kept, traces.

    Traces whose tail is damaged are read up to there, with a warning in the manifest.

    Args:
        folder: A path or fsspec URL.

    Raises:
        FileNotFoundError: There is no run, or one without results yet.
        DamagedRun: Results or manifest are not what was written.
    """
    place = store.folder_at(folder)
    found = store.read_run(place)
    if "identity" not in found["manifest"]:
        raise store.DamagedRun(f"the manifest in {place} is damaged: it has no identity.")
    manifest = Manifest.read(found["manifest"])
    traces, damage = _traces(place, manifest)
    manifest = replace(manifest, warnings=[*manifest.warnings, *damage])
    whole = manifest.keep != "sums" and bool(traces.blocks)
    influence = Influence(found["influence"], traces if whole else None)
    summary = Summary.read({n: NAN if v is None else v for n, v in found["summary"].items()})
    return Run(influence, traces, found["diagnostics"], summary, manifest)


def _shown(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest for the page: of a run that was solved, without what is of chains."""
    found = dict(manifest)
    if not is_solved(manifest):
        return found
    of_chains = ("keep", "top", "forecast", "left_out")
    asked = without_unused(manifest.identity["settings"])
    return {
        **{name: value for name, value in found.items() if name not in of_chains},
        "settings": without_unused(manifest.settings),
        "identity": {**manifest.identity, "settings": asked},
    }


def _row(side: Strongest, row: int) -> Listed:
    parts = (side.column, side.influence, side.standard_error)
    return Listed(*(part[row].numpy() for part in parts))


def _traces(folder: store.Folder, manifest: Mapping[str, Any]) -> tuple[LossTraces, list[str]]:
    names = manifest.get("arrays", [])
    left_out = set(manifest.get("left_out", []))
    explicit = manifest.get("chains")
    dealt = explicit or [list(range(*edges)) for edges in manifest.get("blocks", [])]
    expected = manifest.get("draws", [])
    blocks, damage = [], []
    for index, chains in enumerate(dealt):
        block = store.BlockStore(folder, index, token=manifest.get("token", ""))
        draws = block.good_draws(names)
        if index < len(expected) and draws < expected[index]:
            damage.append(
                f"the traces of chains {chains[0]} to {chains[-1]} are damaged from draw {draws} "
                f"of {expected[index]} on: the rest is used"
            )
        try:
            recorded = _read_block(block, draws, manifest)
            whole = TraceBlock.joined(tuple(chains), *recorded) if recorded else None
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise store.DamagedRun(f"{folder}: the traces do not fit together: {error}") from error
        if whole is None or whole.num_draws < 2:
            continue
        keep = [i for i, chain in enumerate(chains) if explicit or chain not in left_out]
        if keep:
            blocks.append(whole.only(keep) if len(keep) < len(chains) else whole)
    return LossTraces(tuple(blocks)), damage


def _read_block(
    block: store.BlockStore, draws: int, manifest: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return the traces of a block and its slopes along anchors, if it has some.

    Where sums are kept, traces are with those of the open buffer.
    """
    names = manifest.get("arrays", [])
    parts = [join_panels({n: block.traces.read(n, 0, draws) for n in names})] if draws else []
    commits = block.commits()
    if manifest["keep"] == "sums" and commits and commits[0].draws == draws:
        state = block.state(commits[0])
        if "recorder/pending/train" in state:
            subset = subset_of(Panels(**manifest["panels"]))
            train, query = (state[f"recorder/pending/{kind}"] for kind in ("train", "query"))
            parts.append((train[..., subset.train], query[..., subset.query]))
    if not parts:
        return None
    train, query = zip(*parts, strict=True)
    slope = None
    if manifest.get("panels", {}).get("anchored"):
        state = block.state(commits[0])
        slope = state[f"{_SLOPES}total"] / int(state[f"{_SLOPES}count"])
    return torch.cat(train, dim=1), torch.cat(query, dim=1), slope
