"""What a run cannot be grown into is refused by name, and its folder stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import bif
from bif import Problem, losses, store
from bif.types import Batch
from growing_runs import BASE, EXTRA, MORE, OWN, THIRD, problem
from same_bits import files, without_page
from small_problems import labelled, network

pytestmark = pytest.mark.usefixtures("no_page")


def in_float32(num_items: int, *, seed: int) -> tuple[Tensor, Tensor]:
    x, y = labelled(num_items, seed=seed)
    return x.float(), y


SINGLE: dict[str, Any] = {
    "model": network().float(),
    "train": in_float32(20, seed=1),
    "queries": {"own": in_float32(5, seed=2), "more": in_float32(3, seed=5)},
    "candidates": {"extra": in_float32(4, seed=7)},
}


def another_loss(model: nn.Module, batch: Batch) -> Tensor:
    return 2 * losses.cross_entropy(model, batch)


class TestRefusals:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("base") / "run"
        with without_page():
            bif.attribute(problem(queries={**OWN, **MORE}, candidates=EXTRA), BASE, out=out)
        return out

    @pytest.mark.parametrize(
        ("growth", "message"),
        [({"draws": 3}, "has 4 draws already: 3 would be fewer"),
         ({"chains": 2}, "has 4 chains already: 2 would be fewer")],
    )  # fmt: skip
    def test_fewer_draws_or_chains_are_refused(self, folder, growth, message):
        self.refused(folder, problem(queries={**OWN, **MORE}, candidates=EXTRA), message, **growth)

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"model": network(seed=4)}, "another weights"),
            ({"model": nn.Sequential(network(), nn.Identity())}, "another model"),
            (SINGLE, "another candidates.extra, queries.more, queries.own, train, weights"),
            ({"train": labelled(20, seed=8)}, "another train"),
            ({"train_weights": [2.0] * 20}, "another train_weights"),
            ({"loss": another_loss}, "another loss"),
            ({"observables": [bif.MARGIN]}, "another observables.loss"),
            ({"queries": {"own": MORE["more"], "more": OWN["own"]}},
             "another queries.more, queries.own"),
            ({"queries": {**MORE, **OWN}}, "has the queries .'own', 'more'., the problem .'more'"),
            ({"queries": OWN}, "keep the run's own first"),
            ({"queries": {**OWN, **THIRD, **MORE}}, "keep the run's own first"),
            ({"candidates": None}, "has the candidates .'extra'., the problem .."),
        ],
        ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
    )  # fmt: skip
    def test_another_problem_is_refused(self, folder, changed, named):
        given = {"queries": {**OWN, **MORE}, "candidates": EXTRA, **changed}
        self.refused(folder, problem(**given), named, error=store.FolderInUse, draws=9)

    def test_a_run_that_keeps_sums_is_given_neither_queries_nor_chains(self, tmp_path):
        bif.attribute(problem(), BASE, out=tmp_path, keep="sums")
        for further in ({"queries": MORE}, {"candidates": EXTRA}):
            self.refused(tmp_path, problem().extended(**further), "keeps sums, not traces")
        self.refused(tmp_path, problem(), "neither further queries or candidates", chains=6)

    def test_a_run_that_was_saved_from_memory_is_refused(self, tmp_path):
        out = bif.attribute(problem(), BASE).save(tmp_path / "saved")
        self.refused(out, problem(), "was saved from memory", draws=6)
        self.refused(out, problem().extended(queries=MORE), "was saved from memory")

    def test_a_folder_without_a_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no run of bif"):
            bif.extend(tmp_path / "nothing", problem(), draws=6)
        assert not (tmp_path / "nothing").exists()

    @staticmethod
    def refused(
        folder: Path, asked: Problem, message: str, *,
        error: type[Exception] = ValueError, **growth: Any,
    ) -> None:  # fmt: skip
        """By an error that says so, and nothing of the folder is changed."""
        before = files(folder)
        with pytest.raises(error, match=message):
            bif.extend(folder, asked, **growth)
        assert files(folder) == before
