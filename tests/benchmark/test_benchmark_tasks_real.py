"""Settings on CIFAR-10, a ResNet-20 and TinyStories, from tiny files in the same formats."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bif
from bif.bank import Plan, retrained
from bif.benchmark import Task, named_task
from bif.benchmark.methods import Judge, all_methods
from bif.benchmark.networks import FrozenBatchNorm, ResNet9, ResNet20
from bif.benchmark.tasks import cifar, resnet20, stories
from llama2c_files import HEADER, arrays_of, write_checkpoint, write_tokenizer
from small_problems import normal

pytest.importorskip("PIL", reason="the extra `report` is not installed")
pytest.importorskip("transformers", reason="the extra `lm` is not installed")

NUM_IMAGES, NUM_STORIES, SIZE = 60, 100, 24


def plain_resnet20() -> nn.Module:
    """The published network with PyTorch's own BatchNorm and random statistics."""

    class Block(nn.Module):
        def __init__(self, width_in, width):
            super().__init__()
            stride = 1 if width == width_in else 2
            self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.added = (width - width_in) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.added:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
            return F.relu(x + y)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1, self.layer2, self.layer3 = (
                nn.Sequential(Block(first, width), Block(width, width), Block(width, width))
                for first, width in ((16, 16), (16, 32), (32, 64))
            )
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(F.avg_pool2d(x, 8).flatten(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                state = module.state_dict()
                for name in ("weight", "running_var"):
                    state[name].uniform_(0.5, 1.5)
                for name in ("bias", "running_mean"):
                    state[name].normal_(std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files of the three settings, tiny and random."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    for name in ("cifar10", "resnet-cifar10", "stories260K", "tinystories"):
        (folder / name).mkdir()
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (NUM_IMAGES, 1024, 3), dtype=np.uint8)
    for i, rows in enumerate(np.split(pixels, 2)):
        Image.fromarray(rows).save(folder / "cifar10" / f"cifar10_batch_{i}.png")
    np.save(folder / "cifar10" / "pixels.npy", pixels.reshape(-1, 32, 32, 3))
    labels = generator.integers(0, 10, NUM_IMAGES, dtype=np.uint8)
    np.save(folder / "cifar10" / "labels_first4000_train.npy", labels)
    (folder / "cifar10" / "class_names.txt").write_text("\n".join(f"class-{i}" for i in range(10)))
    state = {f"module.{n}": value for n, value in plain_resnet20().state_dict().items()}
    torch.save(
        {"state_dict": state, "best_prec1": 10.0}, folder / "resnet-cifar10" / resnet20.CHECKPOINT
    )
    header = HEADER._replace(signed_vocabulary=290, max_tokens=stories.NUM_TOKENS)
    write_checkpoint(folder / "stories260K" / "stories260K.bin", header, arrays_of(header))
    merged = [("a", -20.0), ("b", -21.0), (" ", -22.0), (" a", -1.0), ("ab", -2.0), ("ba", -3.0)]
    write_tokenizer(folder / "stories260K" / "tok512.bin", merged)
    texts = ["".join(generator.choice(list("aabb ."), 40 + 8 * i)) for i in range(NUM_STORIES)]
    whole = f"\n{stories.SEPARATOR}\n".join([*texts, texts[0], "a story that is cut o"])
    (folder / "tinystories" / "tinystories_sample.txt").write_text(whole)
    return folder


@pytest.fixture(scope="module")
def tasks(data: Path) -> dict[str, Task]:
    """The three settings at their smallest, trained once."""
    make = {"cifar": cifar.task, "resnet20": resnet20.task, "stories": stories.task}
    small = {"cifar": {"widths": (4, 4, 8, 8)}, "resnet20": {}, "stories": {}}
    return {
        name: function(data, device="cpu", seed=0, size=SIZE, **small[name])
        for name, function in make.items()
    }


NAMES = ("cifar", "resnet20", "stories")
each_task = pytest.mark.parametrize("name", NAMES)


class TestATask:
    @each_task
    def test_no_item_is_in_two_parts(self, tasks, name):
        task = tasks[name]
        parts = [task.problem.train.ids, task.problem.query_ids, task.tuning_queries.ids]
        together = np.concatenate(parts).tolist()
        assert len(set(together)) == len(together)
        assert task.name == name and task.problem.num_train == SIZE

    @each_task
    def test_retraining_in_a_stack_gives_finite_outcomes_of_both_parts(self, tasks, name):
        task = tasks[name]
        assert isinstance(task.retraining, bif.evaluate.Recipe)
        bank = retrained(
            task.problem,
            task.tuning_queries,
            replace(task.retraining, steps=2),
            Plan(num_subsets=2, num_tuning_subsets=1, tuning_seeds=1),
            target=task.targets[0],
            networks_per_stack=2,
        )
        for outcome in task.problem.observables:
            reported, tuning = bank.reported, bank.tuning
            assert reported is not None and tuning is not None
            values = reported.outcomes[outcome.name]
            assert values.shape == (1, 2, task.problem.num_queries) and np.isfinite(values).all()
            assert np.ptp(values, axis=1).max() > 0  # the subset matters
            assert tuning.outcomes[outcome.name].shape == (1, 1, len(task.tuning_queries))

    @each_task
    def test_the_recipe_fits_a_half_subset_and_the_plan_its_size(self, tasks, name):
        task = tasks[name]
        assert isinstance(task.retraining, bif.evaluate.Recipe)
        assert 1 <= (task.retraining.batch_size or 1) <= SIZE // 2
        assert task.plan.masks(SIZE).shape == (100, SIZE)
        assert task.plan.tuning_masks(SIZE).shape == (24, SIZE)

    @each_task
    @pytest.mark.usefixtures("unchecked")
    def test_a_run_of_a_few_draws_scores_every_query(self, tasks, name):
        task = tasks[name]
        settings = replace(
            task.settings[0], chains=2, draws=4, burn_in=0, thin=1, step_size=1e-3, friction=1.0,
            block_size=2,
        )  # fmt: skip
        influence = bif.attribute(task.problem, settings).influence.dataset.influence
        expected = (len(task.problem.observables), task.problem.num_queries, SIZE)
        assert influence.shape == expected and np.isfinite(influence.values).all()
        assert influence.values.std() > 0

    @each_task
    @pytest.mark.parametrize("method", ["tracin", "source"])
    def test_methods_along_the_path_score_every_query(self, tasks, name, method):
        if method == "source":
            if name == "resnet20":
                pytest.skip("16 s: the convolutions of the CIFAR task are the same code")
            pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")
        task = tasks[name]
        assert isinstance(task.retraining, bif.evaluate.Recipe)
        short = replace(task, retraining=replace(task.retraining, steps=2))
        of_path: Any = all_methods()[method]
        assert method in task.methods
        first = replace(of_path, candidates=lambda *given: of_path.candidates(*given)[-1:])
        found = first.run(short, Judge([]), [])
        assert [s.outcome for s in found] == [o.name for o in task.problem.observables]
        for scored in found:
            assert scored.scores.shape == (task.problem.num_queries, SIZE)
            assert np.isfinite(scored.scores).all() and scored.scores.std() > 0

    @each_task
    def test_the_model_is_in_evaluation_mode_where_modes_differ(self, tasks, name):
        modules = tasks[name].problem.model.modules()
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)

    def test_only_the_published_classifier_is_in_sample(self, tasks):
        assert {name: task.in_sample for name, task in tasks.items()} == {
            "cifar": False, "resnet20": True, "stories": False,
        }  # fmt: skip
        assert "In-sample" in tasks["resnet20"].about
        assert "may have seen" in tasks["stories"].about
        assert tasks["cifar"].targets == ("scratch",)
        assert tasks["resnet20"].targets == tasks["stories"].targets == ("checkpoint",)

    def test_settings_are_found_by_name(self, data):
        task = named_task("resnet20", data, device="cpu", seed=1, size=SIZE)
        assert task.name == "resnet20"

    def test_global_randomness_is_left_alone(self, data):
        before = torch.get_rng_state()
        resnet20.task(data, device="cpu", seed=0, size=SIZE)
        stories.published_model(data)
        with torch.random.fork_rng(devices=[]):
            ResNet9()  # as any module, it draws its weights from there; the task puts it back
        assert torch.equal(before, torch.get_rng_state())


class TestImages:
    def test_inputs_are_the_pictures_normalised_by_channel(self, data, tasks):
        pictures = np.load(data / "cifar10" / "pixels.npy")
        labels = np.load(data / "cifar10" / "labels_first4000_train.npy")
        for name, of in (("cifar", cifar), ("resnet20", resnet20)):
            items = tasks[name].problem.train
            places = [int(i.removeprefix("image-")) for i in items.ids]
            assert isinstance(items.data, tuple) and items.images is not None
            inputs, targets = items.data
            mean, spread = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (of.MEAN, of.SPREAD))
            back = (inputs * spread + mean).movedim(1, -1).mul(255).round().byte().numpy()
            assert np.array_equal(back, pictures[places])
            assert np.array_equal(items.images, pictures[places])
            assert targets.tolist() == labels[places].tolist()
            assert items.labels is not None
            assert items.labels.tolist() == [f"class-{label}" for label in labels[places]]

    def test_a_seed_is_a_split(self, data):
        def ids(seed: int) -> list[str]:
            parts = cifar.split(
                data, size=SIZE, seed=seed, device="cpu", mean=cifar.MEAN, spread=cifar.SPREAD
            )
            return parts["train"].ids.tolist()

        assert ids(0) == ids(0) != ids(1)

    def test_too_few_pictures_are_refused(self, data):
        with pytest.raises(ValueError, match="holds 60 images, but 60 train items, 12 queries"):
            cifar.task(data, device="cpu", seed=0, size=60)

    @pytest.mark.parametrize(
        "name", ["labels_first4000_train.npy", "class_names.txt", "cifar10_batch_0.png"]
    )
    def test_a_missing_file_is_named_with_its_folder(self, data, tmp_path, name):
        copy = shutil.copytree(data / "cifar10", tmp_path / "cifar10")
        for path in copy.glob("*.png") if name.endswith("png") else [copy / name]:
            path.unlink()
        with pytest.raises(FileNotFoundError, match=f"no file {name} in .*cifar10"):
            cifar.task(tmp_path, device="cpu", seed=0, size=SIZE)

    def test_a_missing_sheet_is_noticed(self, data, tmp_path):
        copy = shutil.copytree(data / "cifar10", tmp_path / "cifar10")
        (copy / "cifar10_batch_1.png").unlink()
        with pytest.raises(ValueError, match="30 images in 1 sheets, but 60 labels"):
            cifar.task(tmp_path, device="cpu", seed=0, size=SIZE)

    def test_a_sheet_of_another_width_is_refused(self, data, tmp_path):
        from PIL import Image

        copy = shutil.copytree(data / "cifar10", tmp_path / "cifar10")
        Image.fromarray(np.zeros((60, 784, 3), np.uint8)).save(copy / "cifar10_batch_0.png")
        with pytest.raises(ValueError, match="784 pixels a row; expected 1,024"):
            cifar.task(tmp_path, device="cpu", seed=0, size=SIZE)

    @pytest.mark.parametrize("spoil", [lambda c: c[: len(c) // 2], lambda c: b"no picture"])
    def test_a_broken_sheet_is_named(self, data, tmp_path, spoil):
        copy = shutil.copytree(data / "cifar10", tmp_path / "cifar10")
        sheet = copy / "cifar10_batch_1.png"
        sheet.write_bytes(spoil(sheet.read_bytes()))
        with pytest.raises(ValueError, match="cifar10_batch_1.png is no whole picture"):
            cifar.task(tmp_path, device="cpu", seed=0, size=SIZE)

    def test_without_pillow_the_extra_is_named(self, data, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(ImportError, match=r"bayesian-influence\[report\]"):
            cifar.task(data, device="cpu", seed=0, size=SIZE)


class TestCheckpoint:
    def test_logits_are_those_of_the_published_architecture(self, data):
        # Weights are float32 in both, so both are the same function in float64, up to rounding.
        x = normal(3, 3, 32, 32, seed=1)
        expected = plain_resnet20().double()(x)
        got = resnet20.checkpoint(data).double()(x)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)

    def test_shortcuts_that_pad_behind_are_noticed(self, data):
        x = normal(3, 3, 32, 32, seed=1)
        network = resnet20.checkpoint(data).double()
        block: Any = network.layer2[0]
        block._shortcut = lambda images: F.pad(images[..., ::2, ::2], (0, 0, 0, 0, 0, 16))
        assert (network(x) - plain_resnet20().double()(x)).abs().max() > 1e-3

    def test_only_convolutions_and_the_linear_layer_have_weights(self, data):
        network = resnet20.checkpoint(data)
        assert sum(p.numel() for p in network.parameters()) == 268_346
        assert not network.training

    def test_a_missing_file_is_named_with_its_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{resnet20.CHECKPOINT} in"):
            resnet20.checkpoint(tmp_path)

    def test_another_content_is_refused(self, tmp_path):
        torch.save({"weights": torch.zeros(1)}, tmp_path / resnet20.CHECKPOINT)
        with pytest.raises(ValueError, match="holds no 'state_dict'"):
            resnet20.checkpoint(tmp_path)

    def test_a_broken_file_is_named(self, tmp_path):
        (tmp_path / resnet20.CHECKPOINT).write_bytes(b"no pickle")
        with pytest.raises(ValueError, match=f"{resnet20.CHECKPOINT} is no checkpoint of PyTorch"):
            resnet20.checkpoint(tmp_path)

    def test_another_network_is_refused(self):
        with pytest.raises(ValueError, match="no ResNet-20 for CIFAR"):
            ResNet20.from_state(nn.Linear(2, 2).state_dict())


class TestStories:
    def test_what_is_behind_the_end_counts_for_nothing(self, tasks):
        items = tasks["stories"].problem.train.data
        assert isinstance(items, dict)
        behind = items["labels"] == -100
        assert behind.any() and not behind.all(dim=1).any()
        changed = {**items, "input_ids": items["input_ids"].masked_fill(behind, 5)}
        model = tasks["stories"].problem.model
        with torch.no_grad():
            same = bif.losses.next_token_mean(model, items)
            assert torch.equal(same, bif.losses.next_token_mean(model, changed))

    def test_tokens_begin_with_the_mark_and_are_what_they_are_labelled(self, tasks):
        items = tasks["stories"].problem.train.data
        assert isinstance(items, dict)
        tokens, labels = items["input_ids"], items["labels"]
        assert tokens.shape == (SIZE, stories.NUM_TOKENS) and (tokens[:, 0] == 1).all()
        assert torch.equal(tokens[labels != -100], labels[labels != -100])

    def test_embedding_and_output_are_sampled_as_one_matrix(self, tasks):
        problem = tasks["stories"].problem
        assert "lm_head.weight" not in problem.center()
        assert "model.embed_tokens.weight" in problem.center()

    def test_stories_that_are_cut_off_or_told_twice_are_left_out(self, data):
        with pytest.raises(ValueError, match=f"holds {NUM_STORIES} different whole stories"):
            stories.task(data, device="cpu", seed=0, size=NUM_STORIES)

    def test_fine_tuning_lowers_the_loss_of_the_train_items(self, data, tasks):
        problem = tasks["stories"].problem
        with torch.no_grad():
            before = problem.loss(stories.published_model(data), problem.train.data).mean()
            after = problem.loss(problem.model, problem.train.data).mean()
        assert after < before

    @pytest.mark.parametrize(
        ("folder", "name"),
        [
            ("stories260K", "stories260K.bin"),
            ("stories260K", "tok512.bin"),
            ("tinystories", "tinystories_sample.txt"),
        ],
    )
    def test_a_missing_file_is_named_with_its_folder(self, data, tmp_path, folder, name):
        for part in ("stories260K", "tinystories"):
            shutil.copytree(data / part, tmp_path / part)
        (tmp_path / folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"no file {name} in .*{folder}"):
            stories.task(tmp_path, device="cpu", seed=0, size=SIZE)


class TestNetworks:
    def test_frozen_batch_norm_is_batch_norm_in_evaluation_mode(self):
        plain, frozen = nn.BatchNorm2d(4).double().eval(), FrozenBatchNorm(4).double()
        state: dict[str, Tensor] = {
            name: normal(4, seed=i).abs() + 0.1
            for i, name in enumerate(("weight", "bias", "running_mean", "running_var"))
        }
        plain.load_state_dict(state, strict=False)
        frozen.load_state_dict(state)
        x = normal(2, 4, 3, 3, seed=9)
        torch.testing.assert_close(frozen(x), plain(x), rtol=1e-12, atol=1e-12)
        assert not list(frozen.parameters())

    def test_all_weights_are_those_of_convolutions_and_linear_layers(self):
        with torch.random.fork_rng(devices=[]):
            network = ResNet9((4, 4, 8, 8))
        owners = {
            type(module) for module in network.modules() if list(module.parameters(recurse=False))
        }
        assert owners <= {nn.Conv2d, nn.Linear}
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == 9
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)

    @pytest.mark.parametrize("widths", [(4, 4, 8), (4, 6, 8, 8), (0, 4, 8, 8)])
    def test_other_widths_are_refused(self, widths):
        with pytest.raises(ValueError, match="expected four multiples of 4"):
            ResNet9(widths)
