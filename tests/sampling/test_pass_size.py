"""Out of memory: passes halve and the run goes on, with the same results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import bif
from bif.problem.items import batch_leaves
from bif.sampling.oracles import SequentialOracle, StackedOracle
from bif.sampling.oracles.live import LiveOracle
from bif.sampling.pass_size import PassSize
from small_problems import TINY, classification

SHORT = replace(TINY, chunk_size=20, draws=12, gradient="minibatch", batch_size=6)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """No memory for passes of more than 6 items, once 40 passes have been made; their sizes."""
    sizes: list[int] = []

    def limited(method: Any) -> Any:
        def called(self: Any, *args: Any, **given: Any) -> Any:
            batch = next(a for a in args if isinstance(a, tuple | dict) and "0.weight" not in a)
            leaf = next(iter(batch_leaves(batch).values()))
            count = leaf.shape[1 if given.get("per_chain") else 0]
            sizes.append(count)
            if len(sizes) > 40 and count > 6:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
            return method(self, *args, **given)

        return called

    for oracle in (StackedOracle, SequentialOracle, LiveOracle):
        for name in ("values", "gradient"):
            monkeypatch.setattr(oracle, name, limited(getattr(oracle, name)))
    yield sizes


def test_a_size_halves_until_it_fits_and_stays():
    sizes = list[int]()

    def passes(size: int) -> str:
        sizes.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("no room")
        return "made"

    size = PassSize(20)
    assert size.run(passes) == size.run(passes) == "made"
    assert sizes == [20, 10, 5, 3, 3] and size.halved
    assert "evaluations of 20 items: from then on they had 3" in size.in_words("evaluations")
    sizes.clear()
    with pytest.raises(torch.OutOfMemoryError):  # others make the pass together with this one
        PassSize(20, halves=False).run(passes)
    assert sizes == [20]


def test_what_does_not_fit_one_by_one_is_raised():
    def passes(size: int) -> None:
        raise torch.OutOfMemoryError(f"no room for {size}")

    with pytest.raises(torch.OutOfMemoryError, match="no room for 1$"):
        PassSize(8).run(passes)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("changed", [
    {}, {"gradient": "full", "batch_size": None}, {"oracle": "sequential"},
    {"oracle": "live", "sampler": "sgld", "friction": None, "step_size": 0.01},
])  # fmt: skip
def test_a_run_whose_memory_falls_short_goes_on_with_the_same_results(request, changed):
    settings = replace(SHORT, **changed)
    problem = classification()
    expected = bif.attribute(problem, settings)
    sizes = request.getfixturevalue("little_memory")
    got = bif.attribute(problem, settings)
    assert {20, 10, 5} <= set(sizes[40:])  # it was tried, halved, and halved again
    assert sizes[40:].count(20) <= 2  # a gradient's and an evaluation's
    for name in ("influence", "standard_error"):
        # Float64: passes of other sizes round otherwise, and 26 steps amplify that little.
        np.testing.assert_allclose(
            got.influence.dataset[name], expected.influence.dataset[name], rtol=1e-6, atol=1e-9
        )
    what = "gradients" if settings.gradient == "full" else "evaluations"
    (note,) = (w for w in got.manifest.warnings if "no memory left" in w)
    assert f"{what} of 20 items: from then on they had 5" in note
    assert not any("no memory left" in w for w in expected.manifest.warnings)
