"""The report is tested with its plots."""

from collections.abc import Iterator

import pytest

from bif.report import plots

_DRAWN = plots._svg


@pytest.fixture(scope="module", autouse=True)
def _drawn_plots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_svg", _DRAWN)
        yield
