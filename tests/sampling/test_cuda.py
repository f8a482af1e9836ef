"""On a GPU: nothing waits for the device inside the step loop, and the law is the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import bif
from bif import Settings, losses
from bif.curvature.products import CurvatureProduct
from bif.problem.cuda_graphs import Replayed, SharedMemory, _Graph
from bif.runs import block_run
from bif.runs.block_recorder import BlockRecorder
from bif.sampling.engine import Engine
from bif.store import BlockStore, Commit
from broken_runs import assert_same
from small_problems import (
    TINY,
    Pairs,
    assert_same_state,
    classification,
    labelled,
    network,
    state_of,
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

STEPS = {"baoab": 0.02, "sgld": 1e-3, "rmsprop_sgld": 1e-4, "rmsprop_sgld_frozen": 1e-4,
         "sgnht": 0.02}  # fmt: skip


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise wherever the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_guard_notices_waiting():
    x = torch.ones(1, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        x.item()


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("gradient", ["full", "minibatch", "control_variate"])
@pytest.mark.parametrize("sampler", STEPS)
def test_steps_observation_and_recording_never_wait_for_the_device(sampler, gradient, precision):
    settings = replace(
        TINY, sampler=sampler, gradient=gradient, device="cuda", step_size=STEPS[sampler],
        batch_size=None if gradient == "full" else 5, draws=20, gradient_precision=precision,
        friction=2.0 if sampler in ("baoab", "sgnht") else None,
    )  # fmt: skip
    x, y = labelled(20, seed=1)
    qx, qy = labelled(5, seed=2)
    problem = classification(
        model=network().float(), train=(x.float(), y), queries=(qx.float(), qy)
    )
    engine = Engine(problem, bif.calibrate(problem, settings).settings)
    recorder = BlockRecorder(range(4), num_draws=20, distance_limit=1e6)
    draws = engine.observed_draws(0, 4)
    for _ in range(3):  # libraries are set up, and passes recorded
        draw, train, query = next(draws)
        recorder.add(train, query, engine.distance_squared(draw.params))
    with no_waiting():
        for draw, train, query in draws:
            recorder.add(train, query, engine.distance_squared(draw.params))
    block = recorder.block()
    assert block is not None and block.num_draws == 20
    assert block.train.device.type == "cpu" and block.train.isfinite().all()


def test_values_at_the_center_are_the_cpus_to_float64_precision():
    on_cpu = bif.attribute(classification(), TINY).influence.dataset
    on_gpu = bif.attribute(classification(), replace(TINY, device="cuda")).influence.dataset
    for name in ("train_center_loss", "query_center"):
        np.testing.assert_allclose(on_gpu[name], on_cpu[name], rtol=0, atol=1e-12)


def test_influences_are_those_of_the_cpu_within_their_errors():
    # Devices differ in their random numbers, not in their law.  Calibrated once: the pilot's
    # numbers differ too, and with them gamma.
    settings = bif.calibrate(classification(), Settings(chains=128, draws=100)).settings
    cpu = bif.attribute(classification(), settings)
    gpu = bif.attribute(classification(), replace(settings, device="cuda"))
    a, b = cpu.influence.dataset, gpu.influence.dataset
    error = np.hypot(a["standard_error"], b["standard_error"])
    gap = np.abs(a["influence"] - b["influence"]) / error
    # 200 differences of estimates with 15 degrees of freedom each: beyond 6 with chance 1e-3.
    assert float(gap.max()) < 6
    scale = float(np.sqrt((a["influence"] ** 2).mean()))
    assert float(np.sqrt((error**2).mean())) < 0.2 * scale


@pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
def test_every_oracle_runs_and_leaves_the_model_where_it_was(oracle):
    model = network().cuda()
    before = state_of(model)
    run = bif.attribute(classification(model=model), replace(TINY, oracle=oracle))
    assert run.manifest["device"] == "cuda:0"
    assert np.isfinite(run.influence.dataset["influence"]).all()
    assert_same_state(model, before)


def test_the_same_seed_gives_the_same_bits():
    settings = replace(TINY, device="cuda", block_size=2)
    first, again = (bif.attribute(classification(), settings) for _ in range(2))
    for a, b in zip(first.traces.blocks, again.traces.blocks, strict=True):
        assert torch.equal(a.train, b.train) and torch.equal(a.query, b.query)


@pytest.mark.parametrize("keep", ["traces", "sums", "weights"])
def test_a_run_that_was_cut_short_goes_on_to_the_last_bit(tmp_path, monkeypatch, keep):
    settings = replace(TINY, device="cuda", block_size=2, draws=80)
    commit, limit = BlockStore.commit, 40

    def full(self: BlockStore, which: Commit, **given: Any) -> None:
        if which.step > limit:
            raise OSError("disk full")
        commit(self, which, **given)

    whole = bif.attribute(classification(), settings, out=tmp_path / "whole", keep=keep)
    with monkeypatch.context() as patch:
        patch.setattr(block_run, "_COMMIT_SHARE", 0)
        patch.setattr(BlockStore, "commit", full)
        with pytest.raises(OSError, match="disk full"):
            bif.attribute(
                classification(), settings, out=tmp_path / "r", keep=keep, commit_every=0.0
            )
    run = bif.attribute(classification(), settings, out=tmp_path / "r", keep=keep)
    assert_same(run, whole)
    assert run.manifest["warnings"] == whole.manifest["warnings"]


def test_items_of_a_dataset_reach_the_device():
    train, queries = Pairs(*labelled(20, seed=1)), Pairs(*labelled(5, seed=2))
    settings = replace(TINY, device="cuda", gradient="minibatch", batch_size=5)
    itemwise = bif.attribute(classification(train=train, queries=queries), settings)
    whole = bif.attribute(classification(), settings)
    assert torch.equal(itemwise.traces.blocks[0].train, whole.traces.blocks[0].train)


def test_compiled_chains_are_the_plain_ones_to_rounding():
    plain = bif.attribute(classification(), replace(TINY, device="cuda"))
    fused = bif.attribute(classification(), replace(TINY, device="cuda", compiled=True))
    torch.testing.assert_close(
        fused.traces.blocks[0].train, plain.traces.blocks[0].train, rtol=0, atol=1e-9
    )


def test_recurrent_layers_of_cudnn_in_one_buffer_are_not_taken_for_tied_weights():
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = torch.nn.GRU(2, 4, batch_first=True), torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.gru(x.unflatten(1, (2, 2)))[0][:, -1])

    model = Recurrent().double().cuda()
    storages = {p.untyped_storage().data_ptr() for p in model.gru.parameters()}
    assert len(storages) == 1
    problem = classification(model=model)
    assert problem.observables[0].function is losses.cross_entropy


class TestReplay:
    """Passes of a small live module, and of stacks, recorded as CUDA graphs."""

    LIVE = replace(TINY, device="cuda", oracle="live", chunk_size=20, compiled=True)

    def test_draws_are_those_of_the_eager_run(self):
        settings = replace(self.LIVE, draws=12)
        eager = bif.attribute(classification(), replace(settings, compiled=False))
        replayed = bif.attribute(classification(), settings)
        for a, b in zip(replayed.traces.blocks, eager.traces.blocks, strict=True):
            torch.testing.assert_close(a.train, b.train, rtol=0, atol=1e-9)
            torch.testing.assert_close(a.query, b.query, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("oracle", ["stacked", "sequential"])
    @pytest.mark.parametrize("gradient", ["full", "minibatch", "control_variate"])
    def test_draws_of_copied_weights_are_those_of_the_eager_run(
        self, monkeypatch, gradient, oracle
    ):
        batch_size = None if gradient == "full" else 5
        settings = replace(
            TINY, device="cuda", draws=12, oracle=oracle, gradient=gradient, batch_size=batch_size
        )
        replays, replay = [], _Graph.__call__

        def counted(graph: _Graph, batch: Any) -> Any:
            replays.append(graph)
            return replay(graph, batch)

        monkeypatch.setattr(_Graph, "__call__", counted)
        replayed = bif.attribute(classification(), settings)
        assert len(replays) > 12  # beside one check each
        monkeypatch.setattr(Replayed, "_record", lambda *arguments: None)
        eager = bif.attribute(classification(), settings)
        for a, b in zip(replayed.traces.blocks, eager.traces.blocks, strict=True):
            torch.testing.assert_close(a.train, b.train, rtol=0, atol=1e-9)
            torch.testing.assert_close(a.query, b.query, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
    def test_products_with_the_curvature_are_those_of_eager_passes(self, monkeypatch, curvature):
        problem = classification(model=network().cuda())
        num_weights = sum(x.numel() for x in problem.center().values())
        rows = torch.randn(7, num_weights, device="cuda", dtype=torch.float64)
        weights = torch.rand(7, problem.num_train, device="cuda")

        def products() -> tuple[CurvatureProduct, list[torch.Tensor]]:
            product = CurvatureProduct(problem, curvature, chunk_size=4)
            return product, [product(rows, given) for given in (None, weights, None, weights)]

        product, replayed = products()
        assert len(product._pass._graphs) >= 2
        monkeypatch.setattr(Replayed, "_record", lambda *arguments: None)
        for a, b in zip(replayed, products()[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    def test_graphs_in_shared_memory_do_not_disturb_each_other(self):
        memory = SharedMemory()
        double = Replayed(lambda x: ((x + 0) * 2,), memory)
        square = Replayed(lambda x: ((x + 0) * x,), memory)
        given = []
        for k in range(6):
            given.append((double(torch.full((3,), 1.0 + k, device="cuda"))[0],
                          square(torch.full((3,), 1.0 + k, device="cuda"))[0]))  # fmt: skip
        assert double._graphs and square._graphs
        for k, (twice, squared) in enumerate(given):
            assert twice.tolist() == [2.0 * (1 + k)] * 3
            assert squared.tolist() == [(1.0 + k) ** 2] * 3

    def test_a_failed_recording_in_shared_memory_leaves_it_to_others(self):
        memory = SharedMemory()
        good = Replayed(lambda x: (x + 1,), memory)
        bad = Replayed(lambda x: (x + x.sum().item(),), memory)
        late = Replayed(lambda x: (x + 2,), memory)
        for k in range(5):
            x = torch.full((2,), float(k), device="cuda")
            assert good(x)[0].tolist() == [k + 1.0] * 2
            assert bad(x)[0].tolist() == [k + 2.0 * k] * 2
            assert late(x)[0].tolist() == [k + 2.0] * 2
        assert good._graphs and late._graphs and bad._refused

    def test_graphs_in_shared_memory_need_that_of_one(self):
        def large(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x.expand(64, -1).exp().sum(dim=0),)  # 64 MiB on the way, 1 MiB in the end

        memory, reserved = SharedMemory(), []
        for _ in range(3):
            replayed = Replayed(large, memory)
            for _ in range(3):
                replayed(torch.ones(2**18, device="cuda"))
            assert replayed._graphs
            reserved.append((torch.cuda.memory_reserved(), replayed))
        assert reserved[2][0] - reserved[0][0] < 2**26

    def test_a_replay_reads_the_weights_as_they_are_and_what_it_gives_is_kept(self):
        weight = torch.ones(3, device="cuda")
        calls = []

        def function(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            calls.append(batch)
            return (batch @ weight,)

        replayed, given = Replayed(function), []
        for k in range(6):
            weight.fill_(k)
            given.append(replayed(torch.full((2, 3), 1.0 + k, device="cuda"))[0])
        for k, values in enumerate(given):
            assert values.tolist() == [3.0 * k * (1 + k)] * 2
        assert len(calls) == 4  # two eager ones, a warm-up and the recording

    def test_what_looks_at_values_stays_eager(self):
        calls = []

        def function(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            calls.append(batch)
            return (batch * (1 if batch.sum().item() > 0 else -1),)

        replayed = Replayed(function)
        for k in range(6):
            batch = torch.full((2,), -1.0 if k % 2 else 1.0, device="cuda")
            assert replayed(batch)[0].tolist() == [1.0, 1.0]
        assert len(calls) > 6
        # Nothing of the attempt is left behind.
        assert torch.randn(3, device="cuda").isfinite().all()
