"""Read and write folders, here or at any fsspec URL: whole files, one writer at a time.

A file is either there as it was written or not there at all: locally it is written beside its
place, synchronised and renamed; object stores put whole objects.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from bif.store.leases import HELD, LEASE_SECONDS, Lease

if TYPE_CHECKING:
    from zarr.abc.store import Store

Buffer = bytes | memoryview

MANIFEST, SUMMARY, REPORT = "run.json", "summary.json", "report.html"
INFLUENCE, DIAGNOSTICS = "influence.zarr", "diagnostics.zarr"
SCORES, CALIBRATION = "scores.json", "calibration.json"
TRACES, WEIGHTS, CHECKPOINTS = "traces.zarr", "weights.zarr", "checkpoints"
OURS = (MANIFEST, SUMMARY, REPORT, INFLUENCE, DIAGNOSTICS, TRACES, WEIGHTS, CHECKPOINTS)
LOCK, MARK = ".lock", ".bif"
RANKS_LOCK = f"{CHECKPOINTS}/ranks.lock"
"""File that ranks hold which write beside the folder's one writer."""
PARTIAL = ".partial"
"""Ending of the names of what is being written."""
PARTIAL_FILE = re.compile(r"(?P<name>.+)\.[0-9a-f]{32}\.partial")
"""Names of files that are being written."""
_SYNCHRONISE_AT_ONCE = 8
"""Files that are synchronised at a time, each on a thread of its own."""


class FolderInUse(FileExistsError):
    """Raised when a folder holds another run or something else, or has another writer."""


class DamagedRun(ValueError):
    """Raised when a run's files are not what was written."""


def discard_output() -> None:
    """Send what standard output still holds nowhere, where its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class FilesFailed(OSError):
    """Raised when files can be neither read nor written now, as on a full disk.

    It says nothing about what is there: "cannot tell" is never "empty" and never "damaged".
    """


_SPEAKING = (
    FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError,
    FilesFailed,
)  # fmt: skip
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@contextlib.contextmanager
def name_failures(place: object) -> Iterator[None]:
    """Name the file in errors of a system or store.

    Raises:
        FilesFailed: An error that does not say whether the file is there.
    """
    try:
        yield
    except _SPEAKING:
        raise
    except OSError as error:
        said = (error.errno, error.strerror or str(error), str(place)) if error.errno else None
        raise FilesFailed(*(said or (f"{place}: {str(error) or repr(error)}",))) from error


@contextlib.contextmanager
def name_all_failures(place: object) -> Iterator[None]:
    """Raise any error of a store that does not answer as one of files.

    Raises:
        FilesFailed: An error that does not say whether the file is there.
        PermissionError: The store refuses; stores say no more than "Forbidden".
    """
    try:
        with name_failures(place):
            yield
    except PermissionError as error:
        raise PermissionError(
            f"{place} cannot be read or written ({error}): check credentials and rights."
        ) from error
    except (OSError, DamagedRun):
        raise
    except Exception as error:
        raise FilesFailed(f"{place}: {error!r}") from error


@contextlib.contextmanager
def name_damage(place: object) -> Iterator[None]:
    """Raise `DamagedRun` for a reader's error about bytes, but not where it got none.

    Raises:
        DamagedRun: Any error but those of the system, the store or memory.
    """
    try:
        yield
    except (MemoryError, DamagedRun):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, ABSENT):
            raise
        raise DamagedRun(f"{place} is damaged: {error}") from error


class Folder(Protocol):
    """A place for a run.  Names are relative, with "/" between parts, and stay inside."""

    def __str__(self) -> str: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, *parts: Buffer) -> None: ...
    def size(self, name: str) -> int: ...
    def is_file(self, name: str) -> bool: ...
    def is_folder(self, name: str) -> bool: ...
    def names(self, name: str = "") -> list[str]: ...
    def files(self, name: str) -> list[str]: ...
    def remove(self, name: str) -> None: ...
    def replacing(self, name: str) -> contextlib.AbstractContextManager[str]: ...
    def zarr(self, name: str, *, read_only: bool = False) -> Store: ...
    def synchronise(self, names: list[str]) -> None: ...
    def free_bytes(self) -> int | None: ...
    def locked(self) -> contextlib.AbstractContextManager[None]: ...
    def shared(self) -> contextlib.AbstractContextManager[None]: ...
    def renew(self) -> None: ...
    def sweep(self, names: Iterable[str]) -> None: ...


def folder_at(where: str | Path | Folder) -> Folder:
    """Return the folder at a path or an fsspec URL such as `s3://bucket/run`; need not exist.

    Raises:
        ValueError: A chain of URLs, or a URL that pathlib has made a path of.
    """
    if not isinstance(where, str | Path):
        return where
    text = str(where)
    if "://" in text and "::" in text:
        raise ValueError(
            f"{text!r} is a chain of URLs, which a folder of results cannot be: pass the URL of "
            "the files themselves, such as s3://bucket/run."
        )
    if isinstance(where, Path) and re.match(r"[a-z][a-z0-9+.-]+:/", text):
        raise ValueError(
            f"{text!r} is a URL that pathlib has made a path of: pass it as a string, with //."
        )
    for scheme in ("file://", "local://"):
        if text.startswith(scheme):
            text = text.removeprefix(scheme)
            return LocalFolder(Path(text))
    return RemoteFolder(text) if "://" in text else LocalFolder(Path(text).expanduser())


def refuse_outside(name: str) -> str:
    """Return `name` if it stays inside a folder, else raise.

    Raises:
        DamagedRun: It is absolute or climbs out.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DamagedRun(f"the name {name!r} leads out of the run's folder: refused.")
    return name


class LocalFolder:
    """A folder of this machine's file system.

    It is one class because `Folder` is one protocol: all its methods share one check of names.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Return where `name` is; links that lead out of the folder are refused."""
        path = self.root / refuse_outside(name)
        if not self._has_links(name):  # to resolve a path takes several times as long
            return path
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError) as error:  # a link to itself
            raise DamagedRun(f"{path} cannot be followed: {error}.") from error
        if not inside:
            raise DamagedRun(f"{path} is a link that leads out of the run's folder: refused.")
        return path

    def _has_links(self, name: str) -> bool:
        """Return whether a part of the path below the folder is a link."""
        place = str(self.root)
        parts = PurePosixPath(name).parts
        return any(os.path.islink(place := f"{place}/{part}") for part in parts)

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def write(self, name: str, *parts: Buffer) -> None:
        path = self.path(name)
        fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        with name_failures(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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
        found = _status(self.path(name))
        return found.st_size if found and stat.S_ISREG(found.st_mode) else 0

    def is_file(self, name: str) -> bool:
        found = _status(self.path(name))
        return bool(found) and stat.S_ISREG(found.st_mode)

    def is_folder(self, name: str) -> bool:
        found = _status(self.path(name))
        return bool(found) and stat.S_ISDIR(found.st_mode)

    def names(self, name: str = "") -> list[str]:
        with name_failures(self.path(name)):
            return sorted(p.name for p in self.path(name).iterdir()) if self.is_folder(name) else []

    def files(self, name: str) -> list[str]:
        """Return the names of all files below a folder, or of a file itself."""
        if self.is_folder(name):
            return [f for inner in self.names(name) for f in self.files(f"{name}/{inner}")]
        return [name] if self.is_file(name) else []

    def remove(self, name: str) -> None:
        folder, _, last = name.rpartition("/")
        path = self.path(folder) / refuse_outside(
            last
        )  # a link itself is removed, not what it names
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[str]:
        """Yield where to write a folder that takes the place of `name` when it is whole."""
        target, fresh = self.path(name), f"{name}{PARTIAL}"
        self.remove(fresh)
        yield fresh
        self.remove(name)
        self.path(fresh).replace(target)
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
            self._refuse_foreign_lock()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            file = os.fdopen(os.open(self.root / LOCK, flags, 0o666), "r+")
        except FolderInUse:
            raise
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
            self._refuse_other_ranks()
            try:
                yield
            finally:
                if made and self.names() == [LOCK]:
                    shutil.rmtree(self.root)

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Write beside the folder's one writer; until the process ends, no other writer comes."""
        import fcntl

        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with name_failures(self.path(RANKS_LOCK)):
            (self.root / RANKS_LOCK).parent.mkdir(exist_ok=True)
            file = os.fdopen(os.open(self.path(RANKS_LOCK), flags, 0o666), "r+")
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def _refuse_other_ranks(self) -> None:
        """Raise where ranks of a run whose writer has ended are still writing."""
        import fcntl

        if not self.is_file(RANKS_LOCK):
            return
        with self.path(RANKS_LOCK).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FolderInUse(
                    f"{self.root} is still being written by ranks of a run whose rank 0 has ended: "
                    "end them, or wait for them."
                ) from None

    def renew(self) -> None:
        """Do nothing: the lock lives as long as the process."""

    def sweep(self, names: Iterable[str]) -> None:
        """Remove what a killed writer left half-written inside these files and folders.

        Raises:
            DamagedRun: A link in them leads out of the folder.
        """
        ours = set(names)
        for top in (self.root / name for name in self.names()):
            match = PARTIAL_FILE.fullmatch(top.name)
            if match and match["name"] in ours:
                self.remove(top.name)
            elif top.name in {f"{name}{PARTIAL}" for name in ours}:
                self.remove(top.name)
            elif top.name in ours and top.is_dir() and not top.is_symlink():
                for path in top.rglob("*"):
                    if PARTIAL_FILE.fullmatch(path.name) and not path.is_dir():
                        path.unlink(missing_ok=True)
                    elif path.is_symlink():
                        self.path(str(path.relative_to(self.root)))

    def _refuse_foreign_lock(self) -> None:
        """Raise where the file of the lock's name is somebody else's."""
        lock = self.root / LOCK
        if lock.is_symlink() or not lock.is_file():
            return
        with lock.open("rb") as file:
            content = file.read(8)
        if content and content != b"process ":
            raise FolderInUse(
                f"{self.root} holds a {LOCK} that bif has not made: choose another folder, or move "
                "it away."
            )


class RemoteFolder:
    """A folder of any fsspec file system.

    It is one class because `Folder` is one protocol: all its methods share one file system.
    The lock is a lease, good for ten minutes and renewed at every commit.  A writer that was killed
    keeps processes of other machines out until that time is up.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._files, self._root = fsspec.core.url_to_fs(self.url)
        self._owner = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex[:8]}"

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{refuse_outside(name)}" if name else self._root

    def _kind(self, name: str) -> dict[str, Any]:
        """Return what the store says of a file or folder; nothing where there is none.

        `isfile`, `isdir` and `exists` would call a store that does not answer empty.
        """
        path = self._path(name)
        with name_all_failures(path):
            self._files.invalidate_cache(path)
            try:
                return self._files.info(path)
            except (FileNotFoundError, NotADirectoryError):
                return {}

    def read(self, name: str) -> bytes:
        with name_all_failures(self._path(name)):
            return self._files.cat_file(self._path(name))

    def write(self, name: str, *parts: Buffer) -> None:
        path, content = self._path(name), b"".join(parts)
        with name_all_failures(path):
            try:
                self._files.pipe_file(path, content)
            except FileNotFoundError as error:
                if not path.startswith("/"):  # of an object store, where only buckets are made
                    raise FileNotFoundError(
                        f"{self.url} cannot be written to ({error}): choose a bucket that exists."
                    ) from error
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(path, content)

    def size(self, name: str) -> int:
        found = self._kind(name)
        return int(found.get("size") or 0) if found.get("type") == "file" else 0

    def is_file(self, name: str) -> bool:
        return self._kind(name).get("type") == "file"

    def is_folder(self, name: str) -> bool:
        return self._kind(name).get("type") == "directory"

    def names(self, name: str = "") -> list[str]:
        path = self._path(name)
        with name_all_failures(path):
            self._files.invalidate_cache(path)
            try:
                found = self._files.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        inner = (place.rstrip("/") for place in found)
        return sorted(place.rpartition("/")[2] for place in inner if place != path)

    def files(self, name: str) -> list[str]:
        """Return the names of all files below a folder, or of a file itself."""
        path = self._path(name)
        with name_all_failures(path):
            self._files.invalidate_cache()
            try:  # `find` would leave out folders of which a store says nothing
                found = self._files.walk(path, on_error="raise")
                places = [f"{top}/{n}".rstrip("/") for top, _, names in found for n in names]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(place.removeprefix(f"{self._root}/") for place in places)

    def remove(self, name: str) -> None:
        if self._kind(name):
            with name_all_failures(self._path(name)), contextlib.suppress(FileNotFoundError):
                self._files.rm(self._path(name), recursive=True)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[str]:
        """Yield `name`, of which nothing is left: stores can move a folder only file by file."""
        self.remove(name)
        yield name

    def zarr(self, name: str, *, read_only: bool = False) -> Store:
        from bif.store.zarrs import remote_store

        return remote_store(f"{self.url}/{refuse_outside(name)}", read_only=read_only)

    def synchronise(self, names: list[str]) -> None:
        """Do nothing: a put is durable when it returns."""

    def free_bytes(self) -> int | None:
        return None

    def sweep(self, names: Iterable[str]) -> None:
        """Do nothing: an object is put whole."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder by a lease."""
        there = self._lease()
        if there.is_held(time.time()):
            raise FolderInUse(
                f"{self.url} is being written by another process ({there.owner}), or was within "
                f"the last {LEASE_SECONDS / 60:.0f} minutes: wait for it, remove {LOCK} if it is "
                "gone, or choose another folder."
            )
        with self._writing():
            self.renew()
            if self._lease().owner != self._owner:
                raise FolderInUse(
                    f"{self.url} was taken by another process at the same moment: let that one "
                    "end, or choose another folder."
                )
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # then it ends with this process, or its time
                    if self._lease().owner == self._owner:
                        self.remove(LOCK)

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Write beside the holder of the lease, and renew it too."""
        self._owner = self._lease().owner or self._owner
        with self._writing():
            self.renew()
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        HELD.append(self._owner)
        try:
            yield
        finally:
            HELD.remove(self._owner)

    def renew(self) -> None:
        """Extend the lease.

        Raises:
            FolderInUse: Another process has taken it.
        """
        there, now = self._lease(), time.time()
        if there.owner != self._owner and there.is_held(now):
            raise FolderInUse(
                f"{self.url} was taken by another process ({there.owner}): let that one end, or "
                "choose another folder."
            )
        self.write(LOCK, there.renewed_by(self._owner, now).as_bytes())

    def _lease(self) -> Lease:
        try:
            return Lease.parse(self.read(LOCK))
        except ABSENT:
            return Lease()


def _status(path: Path) -> os.stat_result | None:
    """Return the system's status of a file; None where there is none."""
    with name_failures(path):
        try:
            return path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None


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
