"""A run that nothing disturbed and one that was cut short; tests work on copies of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broken_runs import Whole, crashed, small_shards_and_no_pictures, undisturbed


@pytest.fixture(scope="module")
def small_shards() -> Iterator[None]:
    with small_shards_and_no_pictures():
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    with small_shards_and_no_pictures():
        return undisturbed(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="session")
def cut_short(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with small_shards_and_no_pictures():
        return crashed(tmp_path_factory.mktemp("cut_short") / "run", whole)
