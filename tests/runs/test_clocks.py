"""A clock that jumps changes no run: no decision but a budget's depends on the time of day."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

import bif
from bif import store
from same_bits import assert_same_run
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked", "no_page")
DAY = 86_400.0
SHORT = replace(TINY, chains=4, block_size=2, draws=4)


@pytest.mark.parametrize("jump", [-DAY, DAY], ids=["back", "ahead"])
@pytest.mark.parametrize("remote", [False, True], ids=["on a disk", "at a URL"])
def test_a_clock_that_jumps_at_every_look_changes_no_bit(tmp_path, monkeypatch, jump, remote):
    import fsspec

    expected = bif.attribute(classification(), SHORT)
    now, looks = time.time(), list[float]()

    def jumping() -> float:
        looks.append(now + jump * len(looks))
        return looks[-1]

    monkeypatch.setattr(time, "time", jumping)
    out = f"memory://{tmp_path.name}/run" if remote else tmp_path
    try:
        got = bif.attribute(classification(), SHORT, out=out, commit_every=0)
        assert_same_run(got, expected)
        assert_same_run(bif.load(out), expected)
        assert len(looks) > 4 or not remote  # the lease is what looks at the time of day
    finally:
        if remote:
            fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_a_lease_of_tomorrow_keeps_others_out_and_can_be_removed(tmp_path, monkeypatch):
    """A holder whose clock is ahead: the folder stays its own until somebody removes the lock."""
    import fsspec

    url, files = f"memory://{tmp_path.name}/run", fsspec.filesystem("memory")
    here = time.time
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: here() + DAY)
        holder = store.folder_at(url).locked()
        holder.__enter__()
    try:
        with pytest.raises(store.FolderInUse, match="remove .lock if it is gone"):
            bif.attribute(classification(), SHORT, out=url)
        files.rm(f"/{tmp_path.name}/run/.lock")
        assert bif.attribute(classification(), SHORT, out=url).summary.complete
    finally:
        files.rm(f"/{tmp_path.name}", recursive=True)
