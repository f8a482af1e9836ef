"""A folder, here or at any fsspec URL: whole files in, whole files out, one writer at a time.

A file is either there as it was written or not there at all: locally it is written beside its
place, synchronised and renamed; object stores put whole objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zarr.abc.store import Store

Buffer = bytes | memoryview

MANIFEST, SUMMARY, REPORT = "run.json", "summary.json", "report.html"
INFLUENCE, DIAGNOSTICS = "influence.zarr", "diagnostics.zarr"
SCORES, CALIBRATION = "scores.json", "calibration.json"
TRACES, WEIGHTS, CHECKPOINTS = "traces.zarr", "weights.zarr", "checkpoints"
OURS = (MANIFEST, SUMMARY, REPORT, INFLUENCE, DIAGNOSTICS, TRACES, WEIGHTS, CHECKPOINTS)
LOCK = ".lock"
PARTIAL = ".partial"
"""Ends the names of what is being written."""
_LEASE_SECONDS = 600.0
_SYNCHRONISE_AT_ONCE = 8


class FolderInUse(FileExistsError):
    """The output folder holds another run, or something that is no run, or has another writer."""


class DamagedRun(ValueError):
    """A run's files are not what was written."""


class Folder(Protocol):
    """Where a run lives.  Names are relative, with "/" between parts, and stay inside."""

    def __str__(self) -> str: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, *parts: Buffer) -> None: ...
    def size(self, name: str) -> int: ...
    def is_file(self, name: str) -> bool: ...
    def is_folder(self, name: str) -> bool: ...
    def names(self, name: str = "") -> list[str]: ...
    def remove(self, name: str) -> None: ...
    def move(self, name: str, to: str) -> None: ...
    def zarr(self, name: str, *, read_only: bool = False) -> Store: ...
    def synchronise(self, names: list[str]) -> None: ...
    def free_bytes(self) -> int | None: ...
    def locked(self) -> contextlib.AbstractContextManager[None]: ...
    def renew(self) -> None: ...


def folder_at(where: str | Path | Folder) -> Folder:
    """The folder at a path or an fsspec URL such as `s3://bucket/run`; need not exist."""
    if not isinstance(where, str | Path):
        return where
    text = str(where)
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    return RemoteFolder(text) if "://" in text else LocalFolder(Path(where))


def is_ours(name: str) -> bool:
    """Whether a file or folder of this name, whole or half-written, is one that runs have."""
    return any(
        name == ours or (name.startswith(f"{ours}.") and name.endswith(PARTIAL)) for ours in OURS
    )


def contained(name: str) -> str:
    """`name` itself if it stays inside a folder.

    Raises:
        DamagedRun: It is absolute or climbs out.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DamagedRun(f"the name {name!r} leads out of the run's folder: refused.")
    return name


class LocalFolder:
    """A folder of this machine's file system."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where `name` is; links that lead out of the folder are refused."""
        path = self.root / contained(name)
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError) as error:  # a link to itself
            raise DamagedRun(f"{path} cannot be followed: {error}.") from error
        if not inside:
            raise DamagedRun(f"{path} is a link that leads out of the run's folder: refused.")
        return path

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def write(self, name: str, *parts: Buffer) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with fresh.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        _synchronise(path.parent)

    def size(self, name: str) -> int:
        path = self.path(name)
        return path.stat().st_size if path.is_file() else 0

    def is_file(self, name: str) -> bool:
        return self.path(name).is_file()

    def is_folder(self, name: str) -> bool:
        return self.path(name).is_dir()

    def names(self, name: str = "") -> list[str]:
        path = self.path(name)
        return sorted(p.name for p in path.iterdir()) if path.is_dir() else []

    def remove(self, name: str) -> None:
        folder, _, last = name.rpartition("/")
        path = self.path(folder) / contained(last)  # a link itself is removed, not what it names
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def move(self, name: str, to: str) -> None:
        source, target = self.path(name), self.path(to)
        self.remove(to)
        source.replace(target)
        _synchronise(target.parent)

    def zarr(self, name: str, *, read_only: bool = False) -> Store:
        from zarr.storage import LocalStore

        return LocalStore(self.path(name), read_only=read_only)

    def synchronise(self, names: list[str]) -> None:
        paths = [self.path(name) for name in names]
        with ThreadPoolExecutor(_SYNCHRONISE_AT_ONCE) as threads:
            for waited in (paths, {path.parent for path in paths}):
                list(threads.map(_synchronise, waited))

    def free_bytes(self) -> int | None:
        there = next(p for p in (self.root, *self.root.parents) if p.exists())
        return shutil.disk_usage(there).free

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder as its only writer; the system lets go when the process ends.

        A folder that was made here and is left empty is removed.
        """
        import fcntl

        made = not self.root.exists()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            file = os.fdopen(os.open(self.root / LOCK, flags, 0o666), "r+")
        except OSError as error:
            raise PermissionError(
                f"{self.root} cannot be written to ({error.strerror}): choose another folder."
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise FolderInUse(
                    f"{self.root} is being written by another process ({file.read().strip()}): "
                    "wait for it, or choose another folder."
                ) from None
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            self._sweep()
            try:
                yield
            finally:
                if made and self.names() == [LOCK]:
                    shutil.rmtree(self.root)

    def renew(self) -> None:
        """Nothing to do: the lock lives as long as the process."""

    def _sweep(self) -> None:
        """Remove what a killed writer left half-written, among our own names only."""
        for top in (self.root / name for name in self.names()):
            mine = is_ours(top.name)
            found = [top] if mine and top.name.endswith(PARTIAL) else []
            if mine and not found and top.is_dir() and not top.is_symlink():
                found = list(top.rglob(f"*{PARTIAL}"))
            for path in found:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


class RemoteFolder:
    """A folder of any fsspec file system.

    The lock is a lease, good for ten minutes and renewed at every commit: a writer that was killed
    keeps others out until it has run out.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._files, self._root = fsspec.core.url_to_fs(self.url)
        self._owner = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex[:8]}"

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{contained(name)}" if name else self._root

    def read(self, name: str) -> bytes:
        return self._files.cat_file(self._path(name))

    def write(self, name: str, *parts: Buffer) -> None:
        path = self._path(name)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, b"".join(parts))

    def size(self, name: str) -> int:
        path = self._path(name)
        return int(self._files.size(path) or 0) if self._files.isfile(path) else 0

    def is_file(self, name: str) -> bool:
        return self._files.isfile(self._path(name))

    def is_folder(self, name: str) -> bool:
        return self._files.isdir(self._path(name))

    def names(self, name: str = "") -> list[str]:
        path = self._path(name)
        if not self._files.isdir(path):
            return []
        self._files.invalidate_cache(path)
        return sorted(p.rstrip("/").rpartition("/")[2] for p in self._files.ls(path, detail=False))

    def remove(self, name: str) -> None:
        if self._files.exists(self._path(name)):
            self._files.rm(self._path(name), recursive=True)

    def move(self, name: str, to: str) -> None:
        source, target = self._path(name), self._path(to)
        self.remove(to)
        self._files.mv(source, target, recursive=True)

    def zarr(self, name: str, *, read_only: bool = False) -> Store:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(f"{self.url}/{contained(name)}", read_only=read_only)

    def synchronise(self, names: list[str]) -> None:
        """Nothing to do: a put is durable when it returns."""

    def free_bytes(self) -> int | None:
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder by a lease."""
        owner, fresh = self._holder()
        if fresh:
            raise FolderInUse(
                f"{self.url} is being written by another process ({owner}), or was within the "
                f"last {_LEASE_SECONDS / 60:.0f} minutes: wait for it, remove {LOCK} if it is "
                "gone, or choose another folder."
            )
        self.renew()
        if self._holder()[0] != self._owner:
            raise FolderInUse(f"{self.url} was taken by another process at the same moment.")
        try:
            yield
        finally:
            if self._holder()[0] == self._owner:
                self.remove(LOCK)

    def renew(self) -> None:
        """Extend the lease.

        Raises:
            FolderInUse: Another process has taken it.
        """
        owner, fresh = self._holder()
        if fresh and owner != self._owner:
            raise FolderInUse(f"{self.url} was taken by another process ({owner}).")
        record = {"owner": self._owner, "renewed": time.time()}
        self.write(LOCK, json.dumps(record).encode())

    def _holder(self) -> tuple[str, bool]:
        """Who holds the lease, and whether it has not run out; "" for nobody."""
        if not self.is_file(LOCK):
            return "", False
        try:
            found = json.loads(self.read(LOCK))
            return str(found["owner"]), time.time() - float(found["renewed"]) < _LEASE_SECONDS
        except (ValueError, TypeError, KeyError, OSError, RecursionError):
            return "", False


def _synchronise(path: Path) -> None:
    """Ask the system to put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot synchronise folders
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
