"""Open a run's folder as its one writer: go on, begin anew, or refuse."""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from bif.store.checkpoints import BlockStore, seal_tensors, unseal_tensors
from bif.store.folder import (
    CHECKPOINTS,
    DIAGNOSTICS,
    INFLUENCE,
    LOCK,
    MANIFEST,
    OURS,
    SUMMARY,
    TRACES,
    WEIGHTS,
    DamagedRun,
    Folder,
    FolderInUse,
    folder_at,
)
from bif.store.manifests import FORMAT, RUN, differences, in_words_of_today
from bif.store.marks import mark, marked_names, remove_marked
from bif.store.results import (
    adopt,
    load_dataset,
    plain,
    read_json,
    refuse_damaged_results,
    write_results,
    write_sealed,
)

if TYPE_CHECKING:
    import xarray as xr

OnExisting = Literal["resume", "replace"]
_OF_THE_FOLDER = ("format", "token")
"""Entries that stay with a folder, whatever run from memory is written to it."""
_CENTER = f"{CHECKPOINTS}/center.safetensors"
"""File of the values at w* that a run began with."""


class RunFolder:
    """A run's folder that this process may write to.

    Attributes:
        folder: The files.
        manifest: The content of `run.json`.
        begun: Whether the run had been begun before.
        replaces: Whether another run is still there, until `begin`.
    """

    def __init__(
        self, folder: Folder, manifest: dict[str, Any], *, begun: bool, replaces: bool = False
    ) -> None:
        self.folder, self.manifest, self.begun = folder, manifest, begun
        self.replaces = replaces

    @property
    def complete(self) -> bool:
        """Return whether the run has ended and its results are whole."""
        return bool(self.manifest.get("complete"))

    def block(self, index: int, *, shard: int = 0) -> BlockStore:
        """Return the store of one block of chains, or of one shard of its state."""
        token = self.manifest.get("token", "")
        return BlockStore(self.folder, index, token=token, shard=shard)

    def begin(self) -> None:
        """Remove the run that is to be replaced: everything that could be refused has been."""
        if self.replaces:
            adopt(self.folder)
            remove_run(self.folder)
            self.replaces = False
        weights = (WEIGHTS,) if self.manifest.get("keep") == "weights" else ()
        mark(self.folder, (MANIFEST, CHECKPOINTS, TRACES, *weights))

    def update(self, entries: Mapping[str, Any]) -> None:
        """Change entries of the manifest, kept twice; begins."""
        self.begin()
        self.manifest = plain({**self.manifest, **entries})
        RUN.write(self.folder, self.manifest)

    def center_values(self) -> dict[str, Tensor]:
        """Return the values at w* that the run began with; nothing where none were kept.

        Raises:
            DamagedRun: They are gone, not what was written, or those of another run.
        """
        if self.replaces:
            return {}
        try:
            content = self.folder.read(_CENTER)
        except (FileNotFoundError, IsADirectoryError) as error:
            if not self.begun:
                return {}
            raise DamagedRun(f"{self.folder}/{_CENTER} is missing.") from error
        token = self.manifest.get("token", "")
        return unseal_tensors(content, f"{self.folder}/{_CENTER}", token=token)

    def keep_center_values(self, values: Mapping[str, Tensor]) -> None:
        """Keep the values at w* of every array of the traces."""
        self.begin()
        token = self.manifest.get("token", "")
        self.folder.write(_CENTER, *seal_tensors(values, token=token))

    def finish(
        self,
        *,
        manifest: Mapping[str, Any],
        influence: xr.Dataset,
        diagnostics: xr.Dataset,
        summary: Mapping[str, Any],
        report: str,
    ) -> None:
        """Write the results and, last, the manifest that may call the run complete.

        Raises:
            DamagedRun: Somebody has removed traces while the run wrote them.
            FolderInUse: A file of a result's name is there that bif has not made.
        """
        blocks = self.manifest.get("chains") or self.manifest.get("blocks") or []
        stores = [self.block(i) for i in range(len(blocks))]
        commits = [store.commits() for store in stores]
        draws = [c[0].draws if c else 0 for c in commits]
        for store, count in zip(stores, draws, strict=True):
            for name in self.manifest.get("arrays", []) if count else []:
                store.traces.refuse_missing(name, count)
        own = {name: self.manifest.get(name) for name in _OF_THE_FOLDER}
        self.manifest = plain({**self.manifest, **manifest, **own, "draws": draws})
        write_sealed(self.folder, RUN.spare, {**self.manifest, "complete": False})
        self.manifest = write_results(
            self.folder,
            manifest=self.manifest,
            influence=influence,
            diagnostics=diagnostics,
            summary=summary,
            report=report,
            spare=RUN.spare,
        )


class SharedRun(RunFolder):
    """A run's folder beside its writer: a rank commits its blocks, and the writer all else."""

    def update(self, entries: Mapping[str, Any]) -> None:
        """Leave the manifest to the writer."""

    def keep_center_values(self, values: Mapping[str, Tensor]) -> None:
        """Leave the values at w* to the writer."""


@contextlib.contextmanager
def share_run(where: str | Path | Folder, token: str) -> Iterator[SharedRun]:
    """Hold a run's folder beside the process that has it open.

    Args:
        where: A path or fsspec URL.
        token: That of the run.

    Raises:
        FolderInUse: It holds another run, or none: the folder is not shared.
        DamagedRun: The manifest cannot be read.
    """
    folder = folder_at(where)
    found = RUN.read(folder) if RUN.holds(folder) else {}
    if found.get("token") != token:
        raise FolderInUse(
            f"{folder} on {socket.gethostname()} is not the folder that rank 0 writes to: pass an "
            "--out that all ranks share, such as a network file system or a URL."
        )
    with folder.shared():
        yield SharedRun(folder, found, begun=True)


@contextlib.contextmanager
def open_run(
    where: str | Path | Folder, manifest: Mapping[str, Any], *, on_existing: OnExisting = "resume"
) -> Iterator[RunFolder]:
    """Hold a run's folder as its only writer.

    Args:
        where: A path or fsspec URL; made if need be.
        manifest: Manifest with `identity`, `keep` and `top` of the run that is asked for.
        on_existing: "resume" goes on with this very run and refuses another; "replace" removes
            whatever run is there as soon as the new one has something to write.

    Raises:
        FolderInUse: Another run, other files, or another writer.
        DamagedRun: The manifest cannot be read.
    """
    folder = folder_at(where)
    RUN.holds(folder)  # before anything is made there
    with folder.locked():
        there = RUN.holds(folder) or folder.is_file(RUN.spare)  # lost, or not yet copied
        replaces = there and on_existing == "replace"
        found = RUN.read(folder) if there and not replaces else {}
        expected = plain({"format": FORMAT, **manifest})
        if found:
            _refuse_another(folder, found, expected)
            adopt(folder)
            folder.sweep(marked_names(folder))
            whole = found.get("complete") and _has_results(folder)
            yield RunFolder(folder, {**found, "complete": bool(whole)}, begun=True)
            return
        expected["token"] = uuid.uuid4().hex
        run = RunFolder(folder, {**expected, "complete": False}, begun=False, replaces=replaces)
        if not there:
            remove_run(folder)  # leftovers of a process that was killed
            run.update({})
        try:
            yield run
        except BaseException:
            with contextlib.suppress(OSError):  # what cannot be read stays
                if not run.replaces and not _has_commits(folder):
                    remove_run(folder)
            raise


@contextlib.contextmanager
def reopen_run(where: str | Path | Folder) -> Iterator[RunFolder]:
    """Hold the folder of a run that is there, whatever run it is.

    Raises:
        FileNotFoundError: There is none.
        FolderInUse: Other files, or another writer.
        DamagedRun: The manifest cannot be read.
    """
    folder = folder_at(where)
    if not RUN.holds(folder):
        raise RUN.none_in(folder)
    with folder.locked():
        found = RUN.read(folder)
        RUN.refuse_format(folder, found)
        adopt(folder)
        folder.sweep(marked_names(folder))
        yield RunFolder(folder, found, begun=True)


def refuse_occupied(folder: Folder, *, overwrite: bool) -> None:
    """Raise unless a run may be written to `folder`.

    Raises:
        FolderInUse: There is a run and `overwrite` is False, or something that is no run.
    """
    if RUN.holds(folder) and not overwrite:
        raise FolderInUse(
            f"{folder} holds a run already: choose another folder, or pass overwrite=True."
        )


def is_complete(where: str | Path | Folder, manifest: Mapping[str, Any]) -> bool:
    """Return whether `where` holds this very run, complete, with results that can be read.

    Nothing is locked, made or refused.
    """
    folder = folder_at(where)
    if not folder.is_file(MANIFEST):
        return False
    with contextlib.suppress(DamagedRun):
        found = RUN.read_in(folder, MANIFEST)
        expected = plain({"format": FORMAT, **manifest})
        same = not differences({n: found.get(n) for n in expected}, expected)
        return bool(found.get("complete")) and same and _has_results(folder)
    return False


def read_run(where: str | Path | Folder) -> dict[str, Any]:
    """Return `manifest`, `summary` (dicts), `influence` and `diagnostics` (datasets) of a folder.

    Raises:
        FileNotFoundError: The folder holds no run, or one without results yet.
        DamagedRun: A file is not what was written.
    """
    folder = folder_at(where)
    if not folder.is_file(MANIFEST):
        raise RUN.none_in(folder)
    manifest = RUN.read(folder)
    unfinished = manifest.get("format") == FORMAT and "results" not in manifest
    if unfinished or not folder.is_file(SUMMARY):
        raise FileNotFoundError(
            f"{folder} holds a run without results yet: run the command that began it once more, "
            "and it will go on from there."
        )
    try:
        refuse_damaged_results(folder, manifest)
    except DamagedRun as error:
        raise DamagedRun(
            f"{error} Run the command that made the run once more: results are made anew from "
            "what is whole of the traces."
        ) from error
    return {
        "manifest": manifest,
        "summary": read_json(folder, SUMMARY),
        "influence": load_dataset(folder, name=INFLUENCE),
        "diagnostics": load_dataset(folder, name=DIAGNOSTICS),
    }


def progress(where: str | Path | Folder) -> str:
    """Return how far the run in a folder has come, in words.

    Raises:
        FileNotFoundError: There is no run.
        DamagedRun: The manifest cannot be read.
    """
    folder = folder_at(where)
    if not folder.is_file(MANIFEST):
        raise RUN.none_in(folder)
    manifest = RUN.read(folder)
    blocks = manifest.get("blocks", [])
    token = manifest.get("token", "")
    done = [BlockStore(folder, i, token=token).commits() for i in range(len(blocks))]
    draws = sum((b[1] - b[0]) * c[0].draws for b, c in zip(blocks, done, strict=True) if c)
    if solved := manifest.get("query_blocks"):  # what is solved for, and a range of columns
        commits = [BlockStore(folder, i, token=token).commits() for i in range(len(solved))]
        serial = manifest.get("solve_serial", 1)  # earlier ones are solved anew
        count = [b[2] - b[1] for b in solved]
        whole = sum(n for n, c in zip(count, commits, strict=True) if c and c[0].serial >= serial)
        return f"{whole:,} of {sum(count):,} linear systems committed"
    if "response" in manifest["identity"]:  # blocks of queries
        whole = sum(b[1] - b[0] for b, c in zip(blocks, done, strict=True) if c)
        return f"{whole:,} of {blocks[-1][1] if blocks else 0:,} queries committed"
    settings = manifest.get("settings") or {}
    total = (settings.get("chains") or 0) * (settings.get("draws") or 0)
    return f"{draws:,} of {total:,} draws committed" if total else "not yet sampling"


def remove_run(folder: Folder) -> None:
    """Remove what bif has made of a run, the manifest last, and nothing else."""
    remove_marked(folder, (*(n for n in OURS if n != MANIFEST), MANIFEST))


def copy_run(where: str | Path | Folder, to: str | Path | Folder) -> None:
    """Copy a complete run's files to a folder that holds nothing, the manifest last.

    Raises:
        FolderInUse: There is something in it, or the run is not complete.
    """
    source, target = folder_at(where), folder_at(to)
    if not RUN.holds(source):
        raise RUN.none_in(source)
    found = RUN.read(source)
    RUN.refuse_format(source, found)
    if not found.get("complete"):
        raise FolderInUse(f"{source} is not complete: let it end before it is copied.")
    if RUN.holds(target):
        raise FolderInUse(f"{target} holds a run already: choose another --out.")
    ours = marked_names(source) or set(OURS)
    names = [name for name in source.names() if name in ours and name not in (LOCK, MANIFEST)]
    mark(target, (*names, MANIFEST))
    for name in (*names, MANIFEST):
        _copy(source, target, name)


def in_words(names: Sequence[str]) -> str:
    """Return the names that `differences` found, with what to do about those that need it."""
    listed = ", ".join(names)
    if any(name.partition(".")[0] == "through" for name in names):
        listed += (
            " (what stands in for an observable: --without-proxies, or the problem's observables=, "
            "must be as when the run was begun)"
        )
    return listed


def _has_results(folder: Folder) -> bool:
    """Return whether the results can be read; else they are made anew from the traces."""
    try:
        refuse_damaged_results(folder, read_run(folder)["manifest"], report=True)
    except (DamagedRun, FileNotFoundError):
        return False
    return True


def _has_commits(folder: Folder) -> bool:
    """Return whether any block has a record, whether it can be read or not."""
    return any(
        name.endswith(".json")
        for block in folder.names(CHECKPOINTS)
        if block.startswith("block-")
        for name in folder.names(f"{CHECKPOINTS}/{block}")
    )


def _copy(source: Folder, target: Folder, name: str) -> None:
    if source.is_folder(name):
        for inner in source.names(name):
            _copy(source, target, f"{name}/{inner}")
    else:
        target.write(name, source.read(name))


def _refuse_another(folder: Folder, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    RUN.refuse_format(folder, found)
    there = in_words_of_today(found.get("identity", {}))
    named = differences(there, expected.get("identity", {}))
    if "keep" in expected and found.get("keep") != expected["keep"]:
        named.append(f"keep (it keeps {found.get('keep')})")
    if "top" in expected and found.get("top") != expected["top"]:
        there = found.get("top")
        named.append(
            f"top (it keeps {'all' if there is None else f'the {there} strongest'} scores)"
        )
    if named:
        longer = {"settings.draws", "settings.chains"} & set(named)
        growing = "response" not in found.get("identity", {}) and all(
            n in longer or n.startswith(("queries.", "candidates.")) for n in named
        )
        hint = " To lengthen it or to add to it, pass --from with its folder." if growing else ""
        raise FolderInUse(
            f"{folder} holds another run, with another {in_words(named)}.{hint} Choose another "
            "--out, or pass --overwrite to replace it."
        )
