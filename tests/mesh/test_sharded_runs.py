"""A run of a split model: its numbers do not depend on the ranks, and lost ranks cost nothing."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.fsdp  # once, before ranks are forked
from torch import Tensor, nn

import bif
from bif import Settings, store
from bif.mesh import Ranks
from bif.sampling.engine import Engine
from forked_ranks import on_ranks, outcomes_on_ranks
from same_bits import assert_same_run, without_page
from small_problems import TINY, classification, filled, network

pytestmark = pytest.mark.usefixtures("no_page")

# Two chains, blocks of their own; steps 0 … 8, draws at 2, 4, 6 and 8.
SPLIT = replace(
    TINY, shards=2, nbeta=20.0, chunk_size=7, chains=2, draws=4, burn_in=2, thin=2,
    gradient="minibatch", batch_size=7,
)  # fmt: skip


def shared(out: Path, settings: Settings = SPLIT, **posed: Any) -> Any:
    """What each rank does; it returns the bytes of its scores."""

    def work(ranks: Ranks) -> bytes:
        run = bif.attribute(classification(**posed), settings, out=out, commit_every=0, ranks=ranks)
        return run.influence.dataset["influence"].values.tobytes()

    return work


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of two ranks that nothing has interrupted."""
    out = tmp_path_factory.mktemp("two")

    def work(ranks: Ranks) -> tuple[bytes, int]:
        finish, written = store.RunFolder.finish, []

        def counted(self: store.RunFolder, **given: Any) -> None:
            written.append(1)
            finish(self, **given)

        store.RunFolder.finish = counted  # type: ignore[method-assign]
        return shared(out)(ranks), len(written)

    with without_page():
        first, second = on_ranks(2, work)
    assert first[0] == second[0] and (first[1], second[1]) == (1, 0)
    return out


@pytest.fixture(scope="module")
def of_two_ranks(folder) -> bif.Run:
    return bif.load(folder)


def at_step_5(number: signal.Signals) -> None:
    """Send a signal to this process before a step of its block."""
    positions = Engine.positions

    def watched(self: Engine, *args: Any, **given: Any) -> Any:
        for position in positions(self, *args, **given):
            if position.step == 5:
                os.kill(os.getpid(), number)
            yield position

    Engine.positions = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("lost", [0, 3])
def test_a_killed_shard_loses_nothing_that_was_committed(tmp_path, monkeypatch, of_two_ranks, lost):
    monkeypatch.setattr("bif.runs.block_run._COMMIT_SHARE", 0)

    def work(ranks: Ranks) -> bytes:
        if ranks.rank == lost:
            at_step_5(signal.SIGKILL)
        return shared(tmp_path)(ranks)

    found = outcomes_on_ranks(4, work)
    assert found[lost] == ("killed", -signal.SIGKILL)
    others = [name for rank, (name, _) in enumerate(found) if rank != lost]
    assert others == ["RankFailed"] * 3
    # One shard of the other model is a commit behind, as if it had been killed while it wrote.
    place = tmp_path / "checkpoints" / f"block-{1 - lost // 2:03d}-shard-001"
    newest = max(place.glob("*.json"))
    assert len(list(place.glob("*.json"))) == 2
    newest.unlink()
    begun = store.BlockStore(store.folder_at(tmp_path), lost // 2).commits()[0]
    assert begun.step >= 3 and begun.draws >= 1
    on_ranks(4, shared(tmp_path))
    assert_same_run(bif.load(tmp_path), of_two_ranks)


def test_a_shard_that_is_to_stop_stops_its_model_and_the_next_start_goes_on(tmp_path, of_two_ranks):
    def work(ranks: Ranks) -> bytes:
        if ranks.rank == 2:
            at_step_5(signal.SIGTERM)
        return shared(tmp_path)(ranks)

    names = [name for name, _ in outcomes_on_ranks(4, work)]
    assert names[2:] == ["Preempted"] * 2 and set(names[:2]) == {"RankFailed"}
    on_ranks(2, shared(tmp_path))
    got = bif.load(tmp_path)
    assert_same_run(got, of_two_ranks)
    assert any("begun by 4 ranks and goes on with 2" in w for w in got.manifest.warnings)


def test_a_run_has_all_figures_of_its_sampler(of_two_ranks):
    found = of_two_ranks.summary.others
    names = ("virial", "kinetic", "dilation", "curvature", "step_share", "heat", "randomness")
    assert all(np.isfinite(found[name]) for name in names), found
    assert found["randomness"] == 0
    assert of_two_ranks.manifest.settings["oracle"] == "live"
    assert of_two_ranks.manifest.num_moving_weights == 43


WHOLE_ONLY: dict[str, dict[str, Any]] = {
    "oracle='sequential'": {"oracle": "sequential"},
    "memory='fused'": {"oracle": "live", "memory": "fused"},
    "compiled=True": {"compiled": True},
    "mass='kronecker'": {"mass": "kronecker"},
    "controls=True": {"controls": True},
    "reliability=0.9": {"reliability": 0.9},
    "budget=60.0": {"budget": "1m"},
    "estimator='anchored'": {"estimator": "anchored"},
    "estimator='response'": {"estimator": "response"},
    "solver_steps=3": {"solver_steps": 3},
    "sampler='sgnht'": {"sampler": "sgnht"},
}


@pytest.mark.parametrize("named", WHOLE_ONLY)
def test_what_needs_a_whole_model_is_refused_by_name(named):
    with pytest.raises(ValueError, match=r"shards=2") as refused:
        Settings(shards=2, **WHOLE_ONLY[named])
    assert named in str(refused.value)


def test_shards_of_older_settings_are_one_and_are_not_written():
    assert "shards" not in Settings().as_dict()
    assert Settings.from_dict(SPLIT.as_dict()) == replace(SPLIT, oracle="live")
    with pytest.raises(ValueError, match="shards must be at least 1"):
        Settings(shards=0)


def refused(settings: Settings = SPLIT, **given: Any) -> str:
    """Return what `bif.attribute` says before it looks at a rank."""
    three = SimpleNamespace(size=3)
    with pytest.raises(ValueError) as error:
        bif.attribute(classification(), settings, out="unused", **{"ranks": three, **given})
    return str(error.value)


def test_ranks_that_hold_no_whole_models_are_refused(tmp_path):
    assert "shards=2 split a model among as many ranks, and there are no ranks" in refused(
        ranks=None
    )
    assert "3 ranks are no whole groups: start a multiple of 2" in refused()
    assert "keep='weights' keeps whole weights" in refused(replace(SPLIT, shards=3), keep="weights")
    left = refused(replace(SPLIT, shards=3, gamma=None, chunk_size=None, friction=None))
    assert "gamma, chunk_size, friction would be measured by chains of a whole model" in left
    with pytest.raises(ValueError, match="nbeta would be measured"):
        bif.calibrate(classification(), replace(SPLIT, nbeta=None))


def test_a_split_run_is_extended_by_nobody(folder):
    with pytest.raises(ValueError, match="shards=2, and the model is in 1"):
        bif.extend(folder, classification(), draws=6)
    assert bif.load(folder).summary.complete


class Scaled(nn.Module):
    """A network and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = network(), nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


class Tied(nn.Module):
    """Blocks of which one is used outside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(filled(nn.Linear(4, 4)) for _ in range(2))
        self.last = filled(nn.Linear(4, 4))
        self.last.weight = self.blocks[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks[1](self.blocks[0](x)))[:, :3]


def test_weights_that_cannot_be_split_are_named_on_all_ranks(tmp_path):
    def work(ranks: Ranks) -> list[str]:
        said = []
        tied = {"model": Tied(), "tied_weights": "share"}
        for posed, movable in (({}, ("2.bias[0:1]",)), ({"model": Scaled()}, None), (tied, None)):
            with pytest.raises(ValueError) as error:
                shared(tmp_path, replace(SPLIT, movable=movable), **posed)(ranks)
            said.append(str(error.value))
            ranks.gather(None)
        return said

    for alone, scalar, tied in on_ranks(2, work):
        assert "leaves a shard without any weight that moves" in alone
        assert "'scale' is a scalar, which has no rows to split" in scalar
        assert "'blocks.0.weight' is shared between blocks" in tied
