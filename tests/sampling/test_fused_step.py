"""Steps inside the backward pass: the numbers of ordinary steps, without the gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_cuda import no_waiting
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bif
from bif import Settings, losses
from bif.calibration.peak_memory import PeakBytes
from bif.problem.items import Items
from bif.runs.block_recorder import BlockRecorder
from bif.samplers import SGLD, SGNHT
from bif.sampling import fused_step
from bif.sampling.chain import Position, trajectory
from bif.sampling.engine import Engine
from bif.sampling.fused_step import StreamedGradient, fused_trajectory
from bif.sampling.oracles import LiveOracle
from bif.sampling.oracles.activation_checkpointing import keep_less_
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import LeafNoise
from bif.sampling.settings import RunSettings
from bif.tensors import copied
from same_bits import assert_same_run, preempted, without_page
from small_problems import (
    TINY,
    assert_same_state,
    classification,
    filled,
    integers,
    labelled,
    network,
    normal,
    state_of,
)

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
CPU = torch.device("cpu")
LIVE = replace(
    TINY, oracle="live", sampler="sgld", friction=None, step_size=1e-3, chains=2, chunk_size=6,
    gradient="minibatch", batch_size=5, memory="fused",
)  # fmt: skip
SAMPLERS: dict[str, dict[str, Any]] = {
    "sgld": {},
    "baoab": {"sampler": "baoab", "friction": 2.0, "step_size": 0.02},
    "rmsprop_sgld": {"sampler": "rmsprop_sgld", "step_size": 1e-4},
    "rmsprop_sgld_frozen": {"sampler": "rmsprop_sgld_frozen", "step_size": 1e-4},
}
STEPS = 20


class Odd(nn.Module):
    """A scalar, a parameter without effect, and two whose gradients are one place in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale, self.unused = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(2, 3))
        self.twin = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.shared.weight + self.twin.view(4, 4), self.shared.bias
        for _ in range(2):
            x = torch.tanh(nn.functional.linear(x, weight, bias))
        return self.head(x * self.scale)


def odd() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return filled(Odd())


def settings_of(problem: bif.Problem, **changed: Any) -> RunSettings:
    return bif.calibrate(problem, replace(LIVE, **changed)).settings


def history(positions: Iterator[Position[Any]]) -> list[dict[str, Tensor]]:
    """Copies of the weights at every position."""
    return [copied(position.state.params) for position in positions]


def both_ways(problem: bif.Problem, s: RunSettings) -> tuple[list[Any], list[Any]]:
    """Weights of fused and of ordinary steps with the same numbers."""
    engine = Engine(problem, s)
    fused_steps = history(engine.positions(0, 1, engine.start(0, 1), last_step=STEPS))
    start = engine.start(0, 1)
    ordinary = trajectory(
        engine.sampler, engine.posterior, gradient=engine.gradient(0, 1), state=start.state,
        noise=start.noise, first_step=0, last_step=STEPS,
    )  # fmt: skip
    return fused_steps, history(ordinary)


def assert_equal_trajectories(got: list[Any], expected: list[Any], *, still: str = "") -> None:
    assert len(got) == len(expected) == STEPS + 1
    for here, there in zip(got, expected, strict=True):
        assert list(here) == list(there)
        for name in there:
            torch.testing.assert_close(here[name], there[name], msg=name, **EXACT)
    moved = {n for n, leaf in expected[-1].items() if (leaf - expected[0][n]).abs().max() > 1e-4}
    assert moved == expected[0].keys() - {still}


class TestTheSameNumbers:
    @pytest.mark.parametrize("gradient", ["minibatch", "full"])
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_fused_steps_are_the_ordinary_ones(self, sampler, gradient):
        problem = classification(model=odd())
        changed = SAMPLERS[sampler] | {"gradient": gradient, "weight_decay": 0.01}
        if gradient == "full":
            changed["batch_size"] = None
        assert_equal_trajectories(*both_ways(problem, settings_of(problem, **changed)))

    def test_train_weights_and_parts_of_the_model_that_do_not_move(self):
        problem = classification(model=odd(), train_weights=normal(20, seed=3).exp())
        s = settings_of(problem, movable=("head.*", "scale"))
        got, expected = both_ways(problem, s)
        assert sorted(got[0]) == ["head.bias", "head.weight", "scale"]
        assert_equal_trajectories(got, expected)

    def test_masked_weights_stay_as_they_are(self):
        mask = torch.zeros(5, 4, dtype=torch.bool)
        mask[3:, 1] = True
        posterior = LocalPosterior(
            dict(network().named_parameters()), 20.0, 5.0, {"0.weight": mask, "2.bias": True}
        )
        steps = trajectory_by_hand(network, posterior, SGLD(1e-3), masks=posterior.masks)
        moved = (steps[-1]["0.weight"] - steps[0]["0.weight"])[0] != 0
        assert torch.equal(moved, mask)

    def test_a_language_model_with_tied_embeddings_moves_alike(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            model = filled(transformers.GPT2LMHeadModel(config), scale=0.3)
        problem = bif.Problem(
            model, losses.next_token, tied_weights="share",
            train={"input_ids": integers(11, 12, 6, seed=1)},
            queries={"input_ids": integers(11, 2, 6, seed=2)},
        )  # fmt: skip
        assert_equal_trajectories(*both_ways(problem, settings_of(problem)))

    def test_rows_that_move_apart_move_as_one_leaf(self, monkeypatch):
        problem = classification(model=odd())
        for place in (
            "bif.sampling.fused_step.BlockNoise.normal",
            "bif.sampling.rng.BlockNoise.normal",
        ):
            monkeypatch.setattr(place, no_noise)
        s = settings_of(problem)
        whole, ordinary = both_ways(problem, s)
        monkeypatch.setattr(fused_step, "ROWS_OF", 4)
        rows, _ = both_ways(problem, s)
        assert_equal_trajectories(whole, ordinary, still="unused")
        assert_equal_trajectories(rows, ordinary, still="unused")

    def test_rows_have_numbers_of_their_own(self, monkeypatch):
        monkeypatch.setattr(fused_step, "ROWS_OF", 4)
        posterior = LocalPosterior({"w": torch.zeros(50, 4)}, 0.0, 1.0)
        steps = trajectory_by_hand(lambda: Still(50, 4), posterior, SGLD(0.1))
        rows = steps[1]["w"][0]
        assert len(rows.unique()) == rows.numel()
        assert abs(float(rows.var()) / 0.1 - 1) < 5 * (2 / 200) ** 0.5


def no_noise(self: object, like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(leaf) for name, leaf in like.items()}


class Still(nn.Module):
    """Weights that no loss depends on."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))


def trajectory_by_hand(
    make: Callable[[], nn.Module],
    posterior: LocalPosterior,
    sampler: Any,
    *,
    loss: Any = None,
    masks: dict[str, Tensor] | None = None,
    steps: int = 2,
) -> list[dict[str, Tensor]]:
    """Weights at every position of a fused trajectory with full gradients of 20 items."""
    module = make().eval().requires_grad_(False)
    first = next(iter(posterior.center.values()))
    loss = loss or (losses.cross_entropy if len(list(module.children())) else constant)
    oracle = LiveOracle(module, loss, names=list(posterior.center), micro_batch=20)
    x, y = labelled(20, seed=1)
    gradient = StreamedGradient(
        oracle, Items((x.to(first.dtype), y)), order=None,
        train_weights=torch.ones(20, dtype=first.dtype),
    )  # fmt: skip
    noise = LeafNoise(posterior.center, seed=0, block=0, device=CPU, masks=masks)
    state = sampler.init(oracle.live_params(), noise)
    return history(
        fused_trajectory(
            sampler, posterior, gradient=gradient, state=state, noise=noise, first_step=0,
            last_step=steps,
        )
    )  # fmt: skip


def constant(model: nn.Module, batch: Any) -> Tensor:
    # On a parameter's graph, without a gradient for it.
    return batch[0].sum(dim=1).requires_grad_()


class TestNumbersOfALeaf:
    def test_they_do_not_depend_on_the_order_of_the_leaves(self):
        like = {"a": torch.zeros(1, 3), "b": torch.zeros(1, 2, 2)}

        def fresh() -> LeafNoise:
            return LeafNoise(like, seed=7, block=2, device=CPU)

        whole, one = fresh().normal(like), fresh()
        backwards = {n: one.normal({n: like[n]})[n] for n in reversed(like)}
        for name in like:
            assert torch.equal(whole[name], backwards[name])
        assert not torch.equal(whole["a"].flatten(), whole["b"].flatten()[:3])

    def test_they_go_on_where_a_saved_state_was(self):
        like = {"a": torch.zeros(1, 30), "b": torch.zeros(1, 5)}
        noise = LeafNoise(like, seed=7, block=2, device=CPU)
        noise.normal({"b": like["b"]})
        state = noise.state()
        expected = noise.normal(like)
        other = LeafNoise(like, seed=0, block=0, device=CPU)
        other.restore(state)
        assert all(torch.equal(expected[n], x) for n, x in other.normal(like).items())


class TestMemory:
    @staticmethod
    def wide() -> nn.Module:
        """Eight equal matrices, 512 KiB each in float64."""
        with torch.random.fork_rng(devices=[]):
            layers = [nn.Linear(256, 256, bias=False) for _ in range(8)]
            return filled(nn.Sequential(*layers, nn.Linear(256, 3)), scale=0.05)

    def peak(self, memory: str) -> int:
        x, y = normal(4, 256, seed=1), integers(3, 4, seed=2)
        problem = bif.Problem(self.wide(), losses.cross_entropy, train=(x, y), queries=(x, y))
        s = settings_of(problem, batch_size=2, chunk_size=4, memory=memory)
        engine = Engine(problem, s)
        start = engine.start(0, 1)
        with PeakBytes() as count:
            for _ in engine.positions(0, 1, start, last_step=3):
                pass
        return count.peak

    def test_the_gradient_of_the_whole_model_never_exists(self):
        leaf = 256 * 256 * 8
        plain, lean = self.peak("plain"), self.peak("fused")
        assert plain > 8 * leaf  # the measure sees it
        # One leaf's gradient, w - w*, noise, and the gradient that the engine makes next.
        assert lean < 5 * leaf

    def test_no_gradient_outlives_its_step(self):
        module = odd().eval()
        names = [n for n, _ in module.named_parameters()]
        oracle = LiveOracle(module, losses.cross_entropy, names=names, micro_batch=9)
        seen: list[str] = []

        def take(name: str, gradient: Tensor) -> None:
            assert all(p.grad is None for p in module.parameters())
            assert gradient.shape == (1, *dict(module.named_parameters())[name].shape)
            seen.append(name)

        oracle.stream(labelled(6, seed=1), torch.ones(6, dtype=torch.float64), take)
        assert sorted(seen) == sorted(names)
        assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in
                   module.parameters())  # fmt: skip


class TestRuns:
    @pytest.mark.parametrize("sampler", ["sgld", "baoab"])
    @pytest.mark.usefixtures("unchecked")
    def test_a_run_that_was_cut_short_goes_on_to_the_last_bit(self, tmp_path, sampler):
        s, problem = replace(LIVE, **SAMPLERS[sampler]), classification(model=odd())
        with without_page():
            whole = bif.attribute(problem, s)
            with preempted(block=1, step=7):
                bif.attribute(problem, s, out=tmp_path)
            run = bif.attribute(problem, s, out=tmp_path)
        assert_same_run(run, whole)
        assert run.manifest["warnings"] == whole.manifest["warnings"]

    def test_the_users_model_is_left_as_it_was_and_w_star_is_not_copied(self):
        model = odd()
        before = state_of(model)
        problem = classification(model=model)
        s = settings_of(problem)
        engine = Engine(problem, s)
        for name, p in model.named_parameters():
            assert engine.posterior.center[name].data_ptr() == p.data_ptr()
        run = bif.attribute(problem, s)
        assert run.traces.num_chains == 2
        assert_same_state(model, before)

    def test_nothing_is_piloted_where_sgld_has_all_it_needs(self):
        said = bif.calibrate(classification(), LIVE).explanations
        assert not any("pilot" in line or "friction" in line for line in said)

    def test_items_of_a_step_and_of_an_evaluation_are_chosen_apart(self):
        sizes: list[tuple[bool, int]] = []

        def loss(model: nn.Module, batch: Any) -> Tensor:
            sizes.append((torch.is_grad_enabled(), len(batch[1])))
            return losses.cross_entropy(model, batch)

        s = replace(LIVE, memory="plain", micro_batch=2, chunk_size=10)
        problem = classification(loss=loss, observables=None)
        engine = Engine(problem, settings_of(problem, memory="plain", micro_batch=2,
                                                 chunk_size=10))  # fmt: skip
        sizes.clear()
        next(engine.observed_draws(0, 1))
        assert s.pass_size == 2 and replace(s, micro_batch=None).pass_size == 10
        assert {size for graph, size in sizes if graph} == {2, 1}  # of mini-batches of 5
        assert {size for graph, size in sizes if not graph} == {10, 5}  # of 20 items, 5 queries


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stacked": ({"oracle": "stacked"}, r"moves a live module.*oracle='live', got 'stacked'"),
    "no oracle": ({"oracle": None}, r"oracle='live', got None"),
    "thermostat": ({"sampler": "sgnht"}, r"sampler='sgnht'.*baoab, sgld"),
    "control variate": ({"gradient": "control_variate"}, r"holds the one at w\*"),
    "accumulation": ({"micro_batch": 4}, r"one backward pass.*micro_batch=4.*batch_size=5"),
    "full": (
        {"micro_batch": 4, "gradient": "full", "batch_size": None},
        r"micro_batch=4 with gradient='full'",
    ),
    "unknown": ({"memory": "slim"}, r"memory is 'slim': expected one of plain, fused, lean"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_settings_that_contradict_a_fused_step_are_refused(self, case):
        changed, said = REFUSED[case]
        with pytest.raises(ValueError, match=f"(?s){said}"):
            replace(LIVE, **changed)

    def test_a_compiled_model_without_blocks_of_its_own_is_refused(self):
        with pytest.raises(ValueError, match=r"no repeated blocks.*returns all gradients at once"):
            bif.attribute(classification(), replace(LIVE, compiled=True))

    def test_micro_batches_of_other_oracles_are_refused(self):
        with pytest.raises(ValueError, match=r"micro_batch=2 is for oracle='live'"):
            Settings(micro_batch=2)

    def test_a_state_that_all_leaves_share_is_refused(self):
        posterior = LocalPosterior(dict(network().named_parameters()), 20.0, 5.0)
        with pytest.raises(TypeError, match=r"SGNHTState\.friction is one tensor for all leaves"):
            trajectory_by_hand(network, posterior, SGNHT(0.01, 1.0))

    def test_gradients_that_come_in_parts_are_refused(self):
        class Reentrant(Odd):
            def forward(self, x: Tensor) -> Tensor:
                def half(h: Tensor) -> Tensor:
                    return torch.tanh(self.shared(h))

                h = x.requires_grad_()
                for _ in range(2):
                    h = checkpoint(half, h, use_reentrant=True)
                return self.head(h * self.scale)

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = classification(model=filled(Reentrant()))
            engine = Engine(problem, settings_of(problem))
            with pytest.raises(RuntimeError, match=r"'shared.*' came in several parts"):
                for _ in engine.positions(0, 1, engine.start(0, 1)):
                    pass

    def test_a_weight_that_moves_while_the_graph_still_needs_it_is_noticed(self):
        def loss(model: Any, batch: Any) -> Tensor:
            detached = model[0].weight.detach().square().sum() * model[2].bias.sum()
            late = model[2].weight.sum() * model[0].weight.detach().sum()
            # Backwards the sum of 0.weight comes first, and moves what `early` needs.
            early = (model[2].bias.sum() * model[0].weight.detach()).sum()
            return (detached + late + early + model[0].weight.sum()).expand(len(batch[1]))

        posterior = LocalPosterior(dict(network().named_parameters()), 20.0, 5.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            trajectory_by_hand(network, posterior, SGLD(1e-3), loss=loss)


def ask(model: Any) -> None:
    """For recomputed activations, by the name of old and of new versions."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)()


class TestRecomputedActivations:
    @staticmethod
    def model() -> Any:
        transformers = pytest.importorskip("transformers")
        config = transformers.GPTNeoXConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=8, hidden_dropout=0.5,
            attention_dropout=0.5, bos_token_id=0, eos_token_id=0, use_cache=True,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            return filled(transformers.GPTNeoXForCausalLM(config), scale=0.3).eval()

    def test_they_are_honoured_in_evaluation_mode_and_change_nothing(self):
        plain, asked = self.model(), self.model()
        ask(asked)
        batch = {"input_ids": integers(11, 4, 6, seed=1)}
        weights, gradients, calls = normal(4, seed=2), [], []
        for model in (plain, asked):
            keep_less_(model)
            names = [n for n, _ in model.named_parameters()]
            oracle = LiveOracle(model, losses.next_token, names=names, micro_batch=4)
            times: list[int] = []
            model.gpt_neox.layers[0].attention.register_forward_hook(
                lambda *_, times=times: times.append(1)
            )
            gradient, _ = oracle.gradient(oracle.live_params(), batch, weights, per_chain=False)
            calls.append(len(times))
            oracle.values(losses.next_token, oracle.live_params(), batch)
            assert len(times) == calls[-1] + 1
            gradients.append(gradient)
        assert calls == [1, 2]
        for name, leaf in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], leaf, **EXACT)

    def test_fused_steps_with_them_are_the_ordinary_ones(self):
        model = self.model()
        ask(model)
        problem = bif.Problem(
            model, losses.next_token, train={"input_ids": integers(11, 12, 6, seed=1)},
            queries={"input_ids": integers(11, 2, 6, seed=2)},
        )  # fmt: skip
        assert model.config.use_cache
        assert_equal_trajectories(*both_ways(problem, settings_of(problem)))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
class TestOnAGPU:
    @staticmethod
    def problem() -> bif.Problem:
        (x, y), (qx, qy) = labelled(20, seed=1), labelled(5, seed=2)
        return classification(
            model=network().float(), train=(x.float(), y), queries=(qx.float(), qy)
        )

    @pytest.mark.parametrize("memory", ["plain", "fused", "lean"])
    def test_steps_observation_and_recording_never_wait_for_the_device(self, memory):
        narrow: dict[str, Any] = {}
        if memory == "lean":
            narrow = {"gradient_precision": "bfloat16", "loss_precision": "bfloat16"}
        s = settings_of(self.problem(), memory=memory, device="cuda", draws=20, **narrow)
        engine = Engine(self.problem(), s)
        recorder = BlockRecorder(range(1), num_draws=20, distance_limit=1e6)
        draws = engine.observed_draws(0, 1)
        first, train, query = next(draws)  # the first step may set up libraries
        recorder.add(train, query, engine.distance_squared(first.params))
        with no_waiting():
            for draw, train, query in draws:
                recorder.add(train, query, engine.distance_squared(draw.params))
        block = recorder.block()
        assert block is not None and block.num_draws == 20 and block.train.isfinite().all()

    def test_the_gradient_of_the_whole_model_never_exists(self):
        peaks = {}
        leaf = 2048 * 2048 * 4
        for memory in ("plain", "fused"):
            with torch.random.fork_rng():
                layers = [nn.Linear(2048, 2048, bias=False) for _ in range(12)]
                model = nn.Sequential(*layers).cuda()
            x, y = normal(4, 2048, seed=1).float(), integers(3, 4, seed=2)
            problem = bif.Problem(model, losses.cross_entropy, train=(x, y), queries=(x, y))
            s = settings_of(problem, batch_size=2, chunk_size=4, memory=memory)
            engine = Engine(problem, s)
            start = engine.start(0, 1)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            for _ in engine.positions(0, 1, start, last_step=3):
                pass
            peaks[memory] = torch.cuda.max_memory_allocated() - before
            del engine, start, problem, model, layers
        assert peaks["plain"] > 12 * leaf
        assert peaks["fused"] < 5 * leaf
