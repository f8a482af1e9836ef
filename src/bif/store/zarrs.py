"""Zarr's view of a remote folder, for which a store that does not answer is not an empty one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

from bif.store.folder import FilesFailed


def remote_store(url: str, *, read_only: bool) -> Any:
    """Zarr's own store at an fsspec URL, but whatever error the file system has is one of files."""
    return _store_class().from_url(url, read_only=read_only)


@functools.cache
def _store_class() -> Any:
    from zarr.storage import FsspecStore

    class RemoteStore(FsspecStore):
        async def get(self, *given: Any, **named: Any) -> Any:
            with _answers(self.path):
                return await super().get(*given, **named)

        async def set(self, *given: Any, **named: Any) -> None:
            with _answers(self.path):
                await super().set(*given, **named)

        async def delete(self, key: str) -> None:
            with _answers(self.path):
                await super().delete(key)

        async def exists(self, key: str) -> bool:
            """By `info`: for `exists` of fsspec, what does not answer is not there."""
            with _answers(self.path):
                try:
                    await self.fs._info(f"{self.path}/{key}".rstrip("/"))
                except self.allowed_exceptions:
                    return False
            return True

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            with _answers(self.path):
                async for name in super().list_dir(prefix):
                    yield name

    return RemoteStore


@contextlib.contextmanager
def _answers(place: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise FilesFailed(f"{place}: {error!r}") from error
