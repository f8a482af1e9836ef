"""Leases on folders at URLs: who holds one, until when, and whether those processes still live."""

from __future__ import annotations

import functools
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

LEASE_SECONDS = 600.0
"""Seconds after which a lease that nobody renews has run out."""
HELD = list[str]()
"""Owner of each lease under which this process writes."""


@dataclass(frozen=True)
class Lease:
    """A lease as its file has it; by default that of nobody.

    Attributes:
        owner: The process that took it, in words.
        renewed: Seconds since 1970 at which it was last renewed.
        writers: Machine and process id of all that write under it; none of earlier versions.
    """

    owner: str = ""
    renewed: float = -math.inf
    writers: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, content: bytes) -> Lease:
        """Return the lease of a file's bytes; that of nobody where they are damaged."""
        try:
            found = json.loads(content)
            writers = tuple((str(m), int(pid)) for m, pid in found.get("writers", ()))
            return cls(str(found["owner"]), float(found["renewed"]), writers)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls()

    def renewed_by(self, owner: str, now: float) -> Lease:
        """Return the lease of `owner` from now on, with this process among those that write."""
        others = self.writers if self.owner == owner else ()
        mine = (_machine(), os.getpid())
        return replace(Lease(owner, now), writers=tuple(sorted({*others, mine})))

    def as_bytes(self) -> bytes:
        """Return a file that `parse` reads."""
        return json.dumps(asdict(self)).encode()

    def is_held(self, now: float) -> bool:
        """Return whether the time has not run out, and a process may still write."""
        return now - self.renewed < LEASE_SECONDS and not self._is_abandoned()

    def _is_abandoned(self) -> bool:
        """Return whether all that wrote were processes of this machine, and have ended."""
        here = _machine()
        return bool(here and self.writers) and all(
            machine == here and (self.owner not in HELD if pid == os.getpid() else _has_ended(pid))
            for machine, pid in self.writers
        )


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False


@functools.cache
def _machine() -> str:
    """Return what tells the process ids of this machine from those of others; "" where unknown.

    That is the boot of its kernel and, in a container, the namespace of its process ids.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
