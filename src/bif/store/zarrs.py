"""Give zarr a remote folder whose missing answer is not taken for an empty store."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

from bif.store.folder import name_all_failures


def remote_store(url: str, *, read_only: bool) -> Any:
    """Return zarr's own store at an fsspec URL, with all its errors as errors of files."""
    return _store_class().from_url(url, read_only=read_only)


@functools.cache
def _store_class() -> Any:
    from zarr.storage import FsspecStore

    class RemoteStore(FsspecStore):
        async def get(self, *given: Any, **named: Any) -> Any:
            with name_all_failures(self.path):
                return await super().get(*given, **named)

        async def set(self, *given: Any, **named: Any) -> None:
            with name_all_failures(self.path):
                await super().set(*given, **named)

        async def delete(self, key: str) -> None:
            with name_all_failures(self.path):
                await super().delete(key)

        async def exists(self, key: str) -> bool:
            """By `info`: for `exists` of fsspec, what does not answer is not there."""
            with name_all_failures(self.path):
                try:
                    self.fs.invalidate_cache(f"{self.path}/{key}".rstrip("/"))
                    await self.fs._info(f"{self.path}/{key}".rstrip("/"))
                except self.allowed_exceptions:
                    return False
            return True

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            with name_all_failures(self.path):
                self.fs.invalidate_cache(f"{self.path}/{prefix}".rstrip("/"))
                async for name in super().list_dir(prefix):
                    yield name

    return RemoteStore
