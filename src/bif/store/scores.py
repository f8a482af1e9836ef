"""Keep scores that come from no run of chains, such as responses.

While they are being made, what there is of them is a run's folder inside theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bif.store.folder import (
    INFLUENCE,
    LOCK,
    SCORES,
    DamagedRun,
    Folder,
    FolderInUse,
    folder_at,
)
from bif.store.manifests import differences, in_words_of_today
from bif.store.marks import mark, marked_names, remove_marked, split_by_maker
from bif.store.results import load_dataset, plain, read_json, save_dataset, write_sealed
from bif.store.run import OnExisting, RunFolder, open_run, remove_run
from bif.store.seals import files_digests, refuse_other_files, unseal

if TYPE_CHECKING:
    import xarray as xr

UNFINISHED = "unfinished"
"""Folder of a run, inside that of the scores, while these are being made."""
_OURS = (INFLUENCE, SCORES, UNFINISHED)


class ScoresFolder:
    """A folder of scores that this process may write to.

    Attributes:
        folder: The files.
        about: Content of `scores.json`, empty unless the scores that were asked for are complete.
        run: Folder of what has been made of them so far; None where they are complete.
    """

    def __init__(
        self,
        folder: Folder,
        identity: Mapping[str, Any],
        *,
        about: Mapping[str, Any] | None = None,
        run: RunFolder | None = None,
    ) -> None:
        self.folder, self.run, self._identity = folder, run, identity
        self.about = dict(about or {})

    @property
    def complete(self) -> bool:
        """Return whether these very scores are there."""
        return bool(self.about)

    def begin(self) -> None:
        """Remove scores that are to be replaced: everything that could be refused has been."""
        for name in (SCORES, INFLUENCE):
            self.folder.remove(name)

    def finish(self, influence: xr.Dataset, about: Mapping[str, Any]) -> None:
        """Write or replace the scores and, last, what is said of them."""
        mark(self.folder, (INFLUENCE, SCORES))
        self.folder.remove(SCORES)
        with self.folder.replacing(INFLUENCE) as fresh:
            save_dataset(influence, self.folder, name=fresh)
        table = files_digests(self.folder, INFLUENCE)
        said = {**about, "identity": self._identity, "results": table}
        write_sealed(self.folder, SCORES, said)
        _discard_unfinished(self.folder)


@contextlib.contextmanager
def open_scores(
    where: str | Path | Folder,
    identity: Mapping[str, Any],
    *,
    on_existing: OnExisting = "resume",
) -> Iterator[ScoresFolder]:
    """Hold a folder of scores as its only writer, before they are made.

    Args:
        where: A path or fsspec URL; made if need be.
        identity: Identity of the scores that are asked for.
        on_existing: "resume" takes these very scores, or goes on with them, and refuses others;
            "replace" makes them anew.

    Raises:
        FolderInUse: Other scores, other files, or another writer.
        DamagedRun: The scores are not what was written.
    """
    folder = folder_at(where)
    holds_scores(folder)  # before anything is made there
    with folder.locked():
        there = holds_scores(folder)
        if there and on_existing == "resume":
            about = read_scores(folder)[1]
            named = differences(in_words_of_today(about.get("identity") or {}), plain(identity))
            if named:
                which = f", with another {', '.join(named)}" if about.get("identity") else ""
                raise FolderInUse(
                    f"{folder} holds scores already{which}: choose another --out, or pass "
                    "--overwrite."
                )
            _discard_unfinished(folder)
            yield ScoresFolder(folder, identity, about=about)
            return
        mark(folder, _OURS if there else (UNFINISHED,))
        manifest = {"identity": identity, "keep": "traces", "top": None}
        try:
            with open_run(unfinished(folder), manifest, on_existing=on_existing) as run:
                yield ScoresFolder(folder, identity, run=run)
        finally:
            with contextlib.suppress(OSError):
                _unmark_unfinished(folder)


def unfinished(folder: Folder) -> Folder:
    """Return where a run's folder is while scores are being made."""
    return folder_at(f"{folder}/{UNFINISHED}")


def _discard_unfinished(folder: Folder) -> None:
    """Remove what bif has made on the way to scores that are whole."""
    remove_run(unfinished(folder))
    if set(folder.names(UNFINISHED)) <= {LOCK}:
        folder.remove(UNFINISHED)
    _unmark_unfinished(folder)


def _unmark_unfinished(folder: Folder) -> None:
    if UNFINISHED in marked_names(folder) and not folder.is_folder(UNFINISHED):
        remove_marked(folder, (UNFINISHED,))


def write_scores(
    where: str | Path | Folder, *, influence: xr.Dataset, about: Mapping[str, Any], overwrite: bool
) -> None:
    """Write scores that have been made already.

    Raises:
        FolderInUse: There are scores, whole or not, and `overwrite` is False, something else,
            another writer.
    """
    folder = folder_at(where)
    if (holds_scores(folder) or folder.is_folder(UNFINISHED)) and not overwrite:
        raise FolderInUse(
            f"{folder} holds scores already: choose another folder, or pass overwrite=True."
        )
    with folder.locked():
        holds_scores(folder)  # by somebody else, since
        ScoresFolder(folder, {}).finish(influence, about)


def read_scores(where: str | Path | Folder) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return scores, and what is said of them.

    Raises:
        FileNotFoundError: There are no scores.
        DamagedRun: They are not what was written.
    """
    folder = folder_at(where)
    if not folder.is_file(SCORES):
        raise FileNotFoundError(f"no {SCORES} at {folder}: expected scores written by bif.")
    about = unseal(read_json(folder, SCORES), f"{folder}/{SCORES}")
    if "results" in about:
        refuse_other_files(folder, about["results"], INFLUENCE)
    return load_dataset(folder, name=INFLUENCE), about


def holds_scores(folder: Folder) -> bool:
    """Return whether there are scores that are no run.

    Raises:
        FolderInUse: There is something, and it is no scores of bif.
    """
    there, others = split_by_maker(folder, _OURS)
    if SCORES in there and not marked_names(folder) and _are_scores(folder):  # made without a mark
        others -= set(_OURS)
    if others or folder.is_file(""):
        raise FolderInUse(
            f"{folder} exists and holds other files than scores of bif: choose another folder."
        )
    return SCORES in there


def _are_scores(folder: Folder) -> bool:
    try:
        return {"estimator", "settings"} <= set(read_json(folder, SCORES))
    except DamagedRun:
        return False
