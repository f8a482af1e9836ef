"""Series of checkpoints: their order, and what is wrong with some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif.language import LanguageModel, revisions
from bif.problem.series import stage_problem, step_of
from small_problems import TINY, classification, network


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {n: torch.randn_like(x) for n, x in network().state_dict().items()}


def folder_of(tmp_path: Path, **files: Any) -> Path:
    for name, held in files.items():
        torch.save(held, tmp_path / f"{name.replace('_', '-')}.pt")
    return tmp_path


class TestOrder:
    @pytest.mark.parametrize(
        ("name", "step"),
        [("step-10", 10), ("checkpoint-200", 200), ("epoch=3-step=120", 120), ("step000123", 123),
         ("v2_ckpt_7", 7), ("final", None)],
    )  # fmt: skip
    def test_the_step_is_the_number_after_step_or_the_last_one(self, name, step):
        assert step_of(name) == step

    def test_checkpoints_are_in_the_order_of_their_steps(self, tmp_path: Path):
        folder = folder_of(tmp_path, step_10=weights(1), step_9=weights(2), step_100=weights(3))
        (tmp_path / "log.txt").write_text("no checkpoint")
        series = bif.CheckpointSeries.from_folder(folder)
        assert [stage.step for stage in series] == [9, 10, 100]
        assert len(series) == 3 and not series.unusable

    def test_weights_of_a_file_are_those_of_the_problem(self, tmp_path: Path):
        held = {"epoch": 3, "state_dict": weights(1)}
        series = bif.CheckpointSeries.from_folder(folder_of(tmp_path, step_1=held))
        at = stage_problem(classification(), next(iter(series)))
        for name, leaf in at.model.state_dict().items():
            torch.testing.assert_close(leaf, weights(1)[name])

    def test_folders_as_transformers_saves_are_read_whole(self, tmp_path: Path):
        save_file = pytest.importorskip("safetensors.torch").save_file
        names = list(weights(1))
        for step in (2, 11):
            (tmp_path / f"checkpoint-{step}").mkdir()
            for k, part in enumerate((names[:1], names[1:])):  # in two files, as large models are
                path = tmp_path / f"checkpoint-{step}" / f"model-0000{k}.safetensors"
                save_file({n: weights(step)[n] for n in part}, path)
        series = bif.CheckpointSeries.from_folder(tmp_path)
        assert [s.step for s in series] == [2, 11]
        assert set(next(iter(series)).read()) == set(names)
        assert len(series.usable(classification())) == 2

    def test_revisions_of_a_language_model_are_read_one_by_one(self, monkeypatch):
        asked = []

        def load_model(name: str, *, task: Any, revision: str) -> Any:
            asked.append((name, task, revision))
            return LanguageModel(network(), None, "causal")

        monkeypatch.setattr("bif.language.hub_revisions.load_model", load_model)
        series = revisions("someone/some-model", ["step20", "step3", "main"], task="causal")
        assert [stage.name for stage in series] == ["step3", "step20"] and not asked
        assert "no number of steps" in series.unusable["main"]
        assert next(iter(series)).read().keys() == network().state_dict().keys()
        assert asked == [("someone/some-model", "causal", "step3")]


class TestBadInput:
    def test_each_bad_checkpoint_is_named_and_the_rest_goes_on(self, tmp_path: Path):
        good, missing, more, nan, other = (weights(k) for k in range(5))
        missing.pop("0.weight")
        more["extra"] = torch.zeros(1)
        nan["0.bias"][0] = float("nan")
        other["0.weight"] = torch.zeros(2, 2)
        folder = folder_of(
            tmp_path, step_1=good, step_2=missing, step_3=more, step_4=nan, step_5=other,
            step_6=weights(6), final=good, step_7=[1, 2],
        )  # fmt: skip
        (folder / "step-8.pt").write_bytes(b"half a file")
        torch.save(good, folder / "again-step-1.pt")
        found = bif.CheckpointSeries.from_folder(folder).usable(classification())
        assert [stage.step for stage in found] == [1, 6]
        reasons = {name: reason.split("\n")[0] for name, reason in found.unusable.items()}
        assert "lacks 0.weight" in reasons["step-2.pt"]
        assert "unknown extra" in reasons["step-3.pt"]
        assert "NaN or infinite in 0.bias" in reasons["step-4.pt"]
        assert "other shapes: 0.weight" in reasons["step-5.pt"]
        assert "no number of steps" in reasons["final.pt"]
        assert "no state dict" in reasons["step-7.pt"]
        assert reasons["step-8.pt"]
        assert "step 1 is that of 'again-step-1.pt' too" in reasons["step-1.pt"]

    def test_a_series_of_one_is_refused_with_what_is_wrong_with_the_others(self):
        series = bif.CheckpointSeries.from_weights({0: weights(1), 5: {}})
        with pytest.raises(ValueError, match="two checkpoints .* and has 1. step-5: .*lacks"):
            bif.trajectory(classification(), series)

    def test_a_folder_without_checkpoints_is_refused(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"holds no checkpoint .* such as step-100\.pt"):
            bif.CheckpointSeries.from_folder(tmp_path)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            bif.CheckpointSeries.from_folder(tmp_path / "none")

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path):
        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"0.weight": Evil()}, tmp_path / "step-1.pt")
        torch.save(weights(1), tmp_path / "step-2.pt")
        with pytest.raises(ValueError, match="has 1. step-1.pt"):
            bif.CheckpointSeries.from_folder(tmp_path).usable(classification())
        assert not (tmp_path / "ran").exists()


class TestSaving:
    def test_steps_are_at_equal_ratios_with_both_ends(self):
        steps = bif.log_spaced_steps(1000, count=10)
        assert steps[0] == 0 and steps[1] == 1 and steps[-1] == 1000 and len(steps) <= 11
        ratios = [b / a for a, b in zip(steps[4:], steps[5:], strict=False)]
        assert max(ratios) / min(ratios) < 1.2
        with pytest.raises(ValueError, match="expected at least 1"):
            bif.log_spaced_steps(0)

    def test_a_plain_loop_saves_what_the_model_is_at_each_step(self, tmp_path: Path):
        model, save = nn.Linear(2, 1), bif.SaveCheckpoints(tmp_path, [0, 3])
        for step in range(4):
            with torch.no_grad():
                model.weight.fill_(step)
            save(step, model)
        series = bif.CheckpointSeries.from_folder(tmp_path)
        assert [(s.step, float(s.read()["weight"][0, 0])) for s in series] == [(0, 0), (3, 3)]
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "step-00000000.pt",
            "step-00000003.pt",
        ]

    def test_the_trainer_of_transformers_saves_too(self, tmp_path: Path):
        transformers = pytest.importorskip("transformers", reason="the extra `lm` is not installed")
        callback: Any = bif.SaveCheckpoints(tmp_path, [0, 2]).for_trainer()
        assert isinstance(callback, transformers.TrainerCallback)
        state, model = transformers.TrainerState(), nn.Linear(2, 1)
        callback.on_train_begin(None, state, None, model=model)
        for state.global_step in (1, 2, 3):
            callback.on_step_end(None, state, None, model=model)
        assert [s.step for s in bif.CheckpointSeries.from_folder(tmp_path)] == [0, 2]

    def test_lightning_saves_too_and_is_imported_only_then(self, tmp_path: Path, monkeypatch):
        import sys
        from types import ModuleType, SimpleNamespace

        module: Any = ModuleType("lightning.pytorch")
        module.Callback = type("Callback", (), {})
        monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
        monkeypatch.setitem(sys.modules, "lightning.pytorch", module)
        callback: Any = bif.SaveCheckpoints(tmp_path, [0, 1]).for_lightning()
        assert module.Callback in type(callback).__mro__
        callback.on_train_start(SimpleNamespace(global_step=0), nn.Linear(2, 1))
        callback.on_train_batch_end(SimpleNamespace(global_step=1), nn.Linear(2, 1), None, {}, 0)
        assert [s.step for s in bif.CheckpointSeries.from_folder(tmp_path)] == [0, 1]


@pytest.mark.usefixtures("unchecked")
def test_one_checkpoint_is_attributed_as_its_model_is(tmp_path: Path):
    save = bif.SaveCheckpoints(tmp_path, [0, 1])
    for step, seed in enumerate((3, 4)):
        model = network()
        model.load_state_dict(weights(seed))
        save(step, model)
    series, expected = bif.CheckpointSeries.from_folder(tmp_path), network()
    expected.load_state_dict(weights(3))
    runs = [
        bif.attribute(problem, TINY).influence.dataset["influence"].values
        for problem in (
            classification().at_weights(series.stages[0].read()),
            classification().with_model(expected),
        )
    ]
    assert (runs[0] == runs[1]).all() and runs[0].any()
