"""Where numbers come from: fingerprints of tensors, items and code, versions, the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.problem import provenance
from bif.problem.code import code_fingerprint, model_code
from bif.problem.items import as_items
from bif.problem.provenance import fingerprint, hardware, items_fingerprint, versions
from small_problems import Pairs, integers, labelled, network, normal


class TestFingerprints:
    BATCH = {"x": normal(3, 2, seed=0), "y": (integers(9, 3, seed=1), torch.ones(3).bfloat16())}

    def test_fingerprints_depend_on_nothing_but_content(self):
        again = {
            "y": tuple(t.clone() for t in self.BATCH["y"]), "x": self.BATCH["x"].T.contiguous().T
        }  # fmt: skip
        assert not again["x"].is_contiguous()
        assert fingerprint(again) == fingerprint(self.BATCH)

    @pytest.mark.parametrize("bit", [0, 17, 51, 63])
    def test_one_bit_changes_a_fingerprint(self, bit):
        x = self.BATCH["x"].clone()
        x.view(torch.int64)[2, 1] ^= torch.tensor(1, dtype=torch.int64) << bit
        assert fingerprint({**self.BATCH, "x": x}) != fingerprint(self.BATCH)

    def test_minus_zero_is_not_zero(self):
        assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))

    def test_names_types_and_shapes_count(self):
        x = torch.zeros(4, dtype=torch.int32)
        others = [x.reshape(2, 2), x.view(torch.float32), (x,), {"a": x}, {"b": x}]
        found = {fingerprint(o) for o in (x, *others)}
        assert len(found) == 6

    def test_scalars_and_empty_tensors_have_a_fingerprint(self):
        assert fingerprint({"steps": torch.tensor(3)}) != fingerprint({"steps": torch.tensor(4)})
        assert fingerprint(torch.empty(0, 3)) != fingerprint(torch.empty(3, 0))


class TestItems:
    def test_a_dataset_has_the_fingerprint_of_its_tensors(self):
        tensors = labelled(20, seed=1)
        assert items_fingerprint(bif.Items(tensors)) == items_fingerprint(as_items(Pairs(*tensors)))

    def test_ids_count_and_cannot_be_shifted_into_each_other(self):
        x = normal(2, 4, seed=0)
        found = {
            items_fingerprint(bif.Items(x, ids=ids))
            for ids in (["ab", "c"], ["a", "bc"], ["c", "ab"])
        }
        assert len(found) == 3


def scaled(factor: Any) -> Callable[[nn.Module, Any], Tensor]:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return factor * bif.losses.cross_entropy(model, batch)

    return loss


def with_default(factor: Any) -> Callable[..., Tensor]:
    def loss(model: nn.Module, batch: Any, factor: Any = factor) -> Tensor:
        return factor * bif.losses.cross_entropy(model, batch)

    return loss


def with_keyword(factor: Any) -> Callable[..., Tensor]:
    def loss(model: nn.Module, batch: Any, *, factor: Any = factor) -> Tensor:
        return factor * bif.losses.cross_entropy(model, batch)

    return loss


def weighted(model: nn.Module, batch: Any, factor: Any) -> Tensor:
    return factor * bif.losses.cross_entropy(model, batch)


def as_partial(factor: Any) -> Callable[..., Tensor]:
    return functools.partial(weighted, factor=factor)


def around(factor: Any) -> Callable[..., Tensor]:
    inner = scaled(factor)

    def outer(model: nn.Module, batch: Any) -> Tensor:
        return inner(model, batch)

    return outer


class Scaled:
    """A loss that is an object."""

    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.factor * bif.losses.cross_entropy(model, batch)

    def method(self, model: nn.Module, batch: Any) -> Tensor:
        return self(model, batch)


def bound(factor: Any) -> Callable[..., Tensor]:
    return Scaled(factor).method


MAKERS = [scaled, with_default, with_keyword, as_partial, around, Scaled, bound]


class TestCode:
    @pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
    @pytest.mark.parametrize(
        ("value", "other"),
        [
            (1.0, 1.5),
            (True, None),
            (torch.ones(2), torch.tensor([1.0, 2.0])),
            (np.zeros(2), np.zeros(2, np.float32)),
            (np.float32(1), np.float32(2)),
            ([1, 2], [1, 3]),
            ({"a": 1.0}, {"b": 1.0}),
        ],
        ids=["number", "constant", "tensor", "array", "scalar", "list", "dict"],
    )
    def test_values_that_a_function_carries_along_count(self, make, value, other):
        assert code_fingerprint(make(value)) == code_fingerprint(make(value))
        assert code_fingerprint(make(value)) != code_fingerprint(make(other))

    def test_the_order_in_which_a_set_was_filled_does_not_count(self):
        one, other = {0, 8}, {8, 0}
        assert list(one) != list(other)  # as sets of strings differ between two processes
        assert code_fingerprint(scaled(one)) == code_fingerprint(scaled(other))

    def test_weights_of_a_model_in_a_closure_count(self):
        found = {code_fingerprint(scaled(network(seed=seed))) for seed in (0, 0, 1)}
        assert len(found) == 2

    def test_what_a_function_does_counts_not_only_its_name(self):
        first, second = (eval(f"lambda m, b: m(b[0]).{n}()") for n in ("sum", "mean"))
        assert first.__qualname__ == second.__qualname__
        assert code_fingerprint(first) != code_fingerprint(second)

    def test_constants_of_code_without_source_count(self):
        first, second = (eval(f"lambda m, b: m(b[0])[:, {i}]") for i in (1, 2))
        assert code_fingerprint(first) != code_fingerprint(second)

    def test_the_name_is_readable(self):
        assert code_fingerprint(bif.losses.cross_entropy).startswith("cross_entropy@")

    def test_a_function_that_holds_itself_has_a_fingerprint(self):
        def recursive(model: nn.Module, batch: Any) -> Tensor:
            return recursive(model, batch)

        assert code_fingerprint(recursive) == code_fingerprint(recursive)

    def test_a_variable_that_is_not_filled_yet_is_passed_over(self):
        def make() -> tuple[str, str]:
            def loss(model: nn.Module, batch: Any) -> Tensor:
                return factor * model(batch)

            before = code_fingerprint(loss)
            factor = 2.0
            return before, code_fingerprint(loss)

        before, after = make()
        assert before != after


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class TestModels:
    def test_structure_and_the_users_own_classes_count(self):
        models = [
            nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
            nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
            nn.Sequential(nn.Linear(4, 3)),
            Doubled(4, 3),
            nn.Linear(4, 3),
        ]
        assert len({model_code(m) for m in models}) == 5

    def test_weights_do_not_count(self):
        assert model_code(network(seed=0)) == model_code(network(seed=1))


class TestSurroundings:
    def test_versions_name_what_numbers_depend_on(self):
        found = versions()
        assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert {"python", "numpy", "xarray", "zarr", "arviz-stats"} <= set(found)

    def test_packages_that_are_not_installed_say_so(self, monkeypatch):
        def missing(name: str) -> str:
            raise provenance.PackageNotFoundError(name)

        monkeypatch.setattr(provenance, "version", missing)
        monkeypatch.setattr(provenance, "_version", provenance._version.__wrapped__)
        assert versions()["bayesian-influence"] == "not installed"

    def test_hardware_names_device_threads_and_torch(self):
        found = hardware(torch.device("cpu"))
        assert found["device"].startswith("cpu (") and found["torch"] == torch.__version__
        assert found["threads"] == str(torch.get_num_threads())
