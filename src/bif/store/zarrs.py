"""Zarr's view of a remote folder, for which a store that does not answer is not an empty one."""

from __future__ import annotations

from typing import Any

from zarr.storage import FsspecStore

from bif.store.folder import FilesFailed


class RemoteStore(FsspecStore):
    """As zarr's own, but whatever error a file system has is one of files."""

    async def get(self, *given: Any, **named: Any) -> Any:
        """The bytes of a key, or None where there are none."""
        try:
            return await super().get(*given, **named)
        except OSError:
            raise
        except Exception as error:
            raise FilesFailed(f"{self.path}: {error!r}") from error

    async def set(self, *given: Any, **named: Any) -> None:
        """Put the bytes of a key."""
        try:
            await super().set(*given, **named)
        except OSError:
            raise
        except Exception as error:
            raise FilesFailed(f"{self.path}: {error!r}") from error

    async def exists(self, key: str) -> bool:
        """Whether the key is there: by `info`, since `exists` of fsspec is False on errors."""
        try:
            await self.fs._info(f"{self.path}/{key}".rstrip("/"))
        except self.allowed_exceptions:
            return False
        return True
