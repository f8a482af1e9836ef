"""The forecast of a live run: its bytes are those that are then counted, its seconds add up."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import bif
from bif import losses
from bif.calibration.memory_plan import (
    Pass,
    Plan,
    WeightBytes,
    forecast_live,
    plan,
    refuse_overflow,
    refuse_unfit,
    weight_bytes,
)
from bif.calibration.peak_memory import PeakBytes
from bif.language.linear_loss import chunked_next_token
from bif.sampling.engine import Engine
from command_line import TINY_FLAGS
from small_problems import TINY, assert_same_state, classification, filled, integers, state_of

V, LENGTH = 500, 32
LIVE = replace(
    TINY, oracle="live", sampler="sgld", friction=None, step_size=1e-4, chains=2, chunk_size=8,
    gradient="minibatch", batch_size=4, draws=3, burn_in=2,
)  # fmt: skip
LEAN: dict[str, Any] = {
    "memory": "lean", "gradient_precision": "bfloat16", "loss_precision": "bfloat16",
}  # fmt: skip
MEMORIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "velocities": {"sampler": "baoab", "friction": 1.0},
    "micro-batches": {"micro_batch": 1},
    "fused": {"memory": "fused"},
    "autocast": {"memory": "fused", "gradient_precision": "bfloat16"},
    "lean": LEAN,
}


def language_problem(*, recomputes: bool = False, device: str = "cpu", width: int = 64,
                     loss: Any = losses.next_token) -> bif.Problem:  # fmt: skip
    """A GPT-NeoX of 260,000 float32 weights, 16 sequences of 32 tokens and 4 queries."""
    transformers = pytest.importorskip("transformers", reason="the extra `lm` is not installed")
    config = transformers.GPTNeoXConfig(
        vocab_size=V, hidden_size=width, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=LENGTH, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = filled(transformers.GPTNeoXForCausalLM(config), scale=0.1).float().eval()
    if recomputes:
        new: Any = getattr(model, "activation_checkpointing_enable", None)
        (new or getattr(model, "gradient_checkpointing_enable"))()  # noqa: B009
    return bif.Problem(
        model.to(device), loss,
        train={"input_ids": integers(V, 16, LENGTH, seed=1).to(device)},
        queries={"input_ids": integers(V, 4, LENGTH, seed=2).to(device)},
    )  # fmt: skip


def sample(engine: Engine) -> None:
    """One chain, with its draws observed."""
    for position in engine.positions(0, 1, engine.start(0, 1)):
        if engine.draw_at(position.step) is not None:
            engine.observed(position)


class TestMemory:
    @pytest.mark.parametrize(
        ("memory", "recomputes"),
        [*((memory, False) for memory in MEMORIES), ("plain", True), ("lean", True)],
    )
    def test_the_peak_is_the_counted_one_within_a_fifth(self, memory, recomputes):
        problem = language_problem(recomputes=recomputes)
        brief = replace(LIVE, chains=2, draws=2, burn_in=0, **MEMORIES[memory])
        settings = bif.calibrate(problem, brief).settings
        found = forecast_live(Engine(problem, settings))
        with PeakBytes() as counter:
            engine = Engine(problem, settings)
            counter.peak = counter.now
            sample(engine)
        assert abs(found.peak / counter.peak - 1) < 0.2
        assert found.backward.item > 0 and found.forward.item > 0

    def test_the_peak_of_chunked_losses_is_forecast_too(self):
        problem = language_problem(loss=chunked_next_token)
        settings = bif.calibrate(problem, replace(LIVE, memory="fused")).settings
        found = forecast_live(Engine(problem, settings))
        with PeakBytes() as counter:
            sample(Engine(problem, settings))
        assert abs(found.peak / counter.peak - 1) < 0.2

    def test_bytes_a_weight_are_those_counted_by_hand(self):
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).float()
        problem = classification(
            model=model, train=(torch.ones(20, 4), torch.ones(20).long()),
            queries=(torch.ones(2, 4), torch.ones(2).long()),
        )  # fmt: skip
        matrices, vectors = 20 + 15, 5 + 3
        n = matrices + vectors
        assert weight_bytes(problem, LIVE) == WeightBytes(4 * n, 4 * n, 0, 12 * n)
        fused = weight_bytes(problem, replace(LIVE, memory="fused"))
        assert fused == WeightBytes(4 * n, 0, 0, 3 * 4 * 20)  # the caller's model is w*
        velocity = replace(LIVE, memory="fused", sampler="baoab", friction=1.0)
        assert weight_bytes(problem, velocity).state == 4 * n
        lean = weight_bytes(problem, replace(LIVE, **LEAN))
        narrow = 2 * matrices + 4 * vectors
        # Vectors are the caller's own, and matrices are narrowed: w* is another copy of these.
        assert lean == WeightBytes(narrow, 2 * matrices, 0, int(4.25 * 4 * 20))
        some = weight_bytes(problem, replace(LIVE, memory="fused", movable=("0.bias",)))
        assert some == WeightBytes(4 * n, 0, 0, 3 * 4 * 5)


def by_hand(**changed: Any) -> Plan:
    settings = replace(LIVE, chains=3, burn_in=10, thin=4, draws=6)
    given: dict[str, Any] = {
        "weights": WeightBytes(100, 90, 0, 300), "items": 7, "backward": Pass(20, 50),
        "forward": Pass(10, 30), "settings": replace(settings, **changed), "num_train": 16,
        "warm_up": 5.0, "step": 0.1, "record": 2.0,
    }  # fmt: skip
    return Plan(**given)


class TestSums:
    def test_seconds_are_those_of_all_chains_and_of_the_warm_up(self):
        assert by_hand().seconds == pytest.approx(5 + 3 * ((10 + 5 * 4) * 0.1 + 6 * 2.0))

    def test_the_peak_is_that_of_the_largest_moment(self):
        there = 100 + 90 + 7
        # The old gradient of 100, and activations as the new one comes.
        assert by_hand().peak == there + 100 + max(20 + 4 * 50, 100, 10 + 8 * 30)
        assert by_hand(chunk_size=4).peak == there + 100 + 220
        # Of two micro-batches the later one adds to a gradient that is there.
        assert by_hand(chunk_size=4, micro_batch=2).peak == there + 100 + 120 + 100
        assert by_hand(chunk_size=1).peak == there + 300  # the step itself
        assert by_hand(memory="fused").peak == there + 300
        assert by_hand(memory="fused", batch_size=16).peak == there + 20 + 16 * 50

    def test_graphs_hold_all_their_passes_at_once_and_a_reserve(self):
        found = replace(by_hand(), replays=True)
        held = 100 + 90 + 7 + (100 + 220) + (100 + 250) + 300
        assert found.peak - held == 460 * 2**20

    def test_words_name_parts_and_seconds(self):
        memory, seconds = by_hand(memory="fused").in_words()
        for part in ("weights 100 B", "w* 90 B", "step (fused) 300 B"):
            assert part in memory
        assert "backward pass of 4 items 220 B, forward pass of 8 items 250 B" in memory
        assert "50 s, at 0.1 s a step and 2 s a draw, after 5.0 s of warm-up" in seconds

    def test_measured_seconds_are_those_of_a_run(self):
        found = plan(classification(), replace(LIVE, memory="fused"))
        assert 0 < found.step < 1 and 0 < found.record < 1 and found.warm_up >= 0
        assert found.seconds > 2 * 3 * found.record


class TestRuns:
    def test_a_live_run_says_its_forecast_and_is_not_changed_by_it(self, monkeypatch):
        problem = classification()
        before = state_of(problem.model)
        run = bif.attribute(problem, replace(LIVE, memory="fused"))
        memory, seconds = run.manifest["forecast"][-2:]
        assert memory.startswith("memory of the device at its peak: ")
        assert seconds.startswith("sampling: ")
        assert_same_state(problem.model, before)
        module = sys.modules["bif.runs.attribute"]  # `bif.attribute` is the function
        monkeypatch.setattr(module, "forecast_live", lambda engine: by_hand())
        blind = bif.attribute(problem, replace(LIVE, memory="fused"))
        for a, b in zip(run.traces.blocks, blind.traces.blocks, strict=True):
            assert torch.equal(a.train, b.train)

    def test_stacked_chains_have_no_forecast_of_the_device(self):
        run = bif.attribute(classification(), TINY)
        assert not any("device at its peak" in line for line in run.manifest["forecast"])
        with pytest.raises(ValueError, match="only live modules are planned, got oracle='stacked'"):
            weight_bytes(classification(), replace(TINY, oracle="stacked"))


class TestCommand:
    def test_the_command_prints_the_forecast(self, call, file):
        flags = [x for x in TINY_FLAGS if x not in ("--friction", "2.0")]
        code, out, _ = call(
            "plan", f"{file}:problem", *flags, "--oracle", "live",
            "--sampler", "sgld", "--memory", "fused",
        )  # fmt: skip
        memory, seconds, host, disk = out.strip().splitlines()
        assert code == 0 and "at its peak" in memory and seconds.startswith("sampling: ")
        assert "for what is recorded" in host and "for scores at the end" in host
        assert disk.startswith("on disk, before compression: traces ") and "results" in disk

    def test_stacked_chains_end_with_one_sentence(self, call, file):
        code, _, error = call("plan", f"{file}:problem", *TINY_FLAGS)
        assert code == 2 and "only live modules are planned, got oracle='stacked'" in error


class TestRefusals:
    @pytest.mark.parametrize(
        ("memory", "way_out"), [("plain", "memory='fused'"), ("fused", "memory='lean'")]
    )
    def test_weights_that_exceed_the_device_are_refused(self, memory, way_out, monkeypatch):
        monkeypatch.setattr(
            "bif.calibration.memory_plan.run_device", lambda problem, s: torch.device("cuda", 0)
        )
        monkeypatch.setattr("bif.calibration.memory_plan.free_bytes", lambda device: 100)
        with pytest.raises(
            ValueError, match=rf"for weights .* 100 B are free on cuda:0.*{way_out}"
        ):
            refuse_unfit(classification(), replace(LIVE, memory=memory))

    def test_a_peak_that_exceeds_the_device_is_refused(self, monkeypatch):
        engine: Any = SimpleNamespace(device=torch.device("cuda", 0))
        found = by_hand(memory="fused")
        monkeypatch.setattr("bif.calibration.memory_plan.free_bytes", lambda device: 299)
        with pytest.raises(ValueError, match=r"needs 300 B besides.*299 B are free.*chunk_size"):
            refuse_overflow(found, engine)
        monkeypatch.setattr("bif.calibration.memory_plan.free_bytes", lambda device: 300)
        refuse_overflow(found, engine)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("memory", MEMORIES)
def test_on_a_gpu_the_peak_is_the_allocators_within_a_fifth(memory):
    # Large enough that the allocator's blocks and cuBLAS's workspace are small beside it.
    problem = language_problem(recomputes=True, device="cuda", width=1024)
    settings = bif.calibrate(problem, replace(LIVE, **MEMORIES[memory])).settings
    sample(Engine(problem, settings))  # workspaces of libraries
    found = forecast_live(Engine(problem, settings))
    gc.collect()  # copies of the model hold themselves in cycles
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = Engine(problem, settings)
    torch.cuda.reset_peak_memory_stats()
    sample(engine)
    measured = torch.cuda.max_memory_allocated() - before
    assert abs((found.peak - found.items) / measured - 1) < 0.2
