"""The local posterior: its algebra, which weights move, and its refusals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bif import tensors
from bif.sampling.posterior import LocalPosterior
from bif.types import Params

NUM_CHAINS = 3
SHAPES: dict[str, tuple[int, ...]] = {
    "layers.0.weight": (2, 3),
    "layers.0.bias": (2,),
    "layers.1.weight": (4, 2),
    "scale": (),
}


def leaves(seed: int, *chain_axis: int) -> Params:
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((*chain_axis, *shape), generator=source, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


CENTER = leaves(0)
WEIGHT_MASK = torch.tensor([[True, False, True], [False, False, True]])


def mean_loss(params: Params) -> Tensor:
    """A smooth loss `[C]` that couples all weights of a chain."""
    total = sum(leaf.reshape(len(leaf), -1).sin().sum(dim=1) for leaf in params.values())
    assert isinstance(total, Tensor)
    return total**2 + total


def movable_only(posterior: LocalPosterior, params: Params) -> Params:
    return {name: params[name] for name in posterior.center}


def by_hand(posterior: LocalPosterior, loss_C: Tensor, params: Params) -> Tensor:
    """U, spelled out weight by weight."""
    value = posterior.nbeta * loss_C
    for name, center in posterior.center.items():
        moving = posterior.masks.get(name, torch.ones_like(center, dtype=torch.bool))
        for c in range(NUM_CHAINS):
            w, w0 = params[name][c][moving], center[moving]
            value[c] += posterior.gamma / 2 * ((w - w0) ** 2).sum()
            value[c] += posterior.nbeta * posterior.weight_decay / 2 * (w**2).sum()
    return value


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(
    "movable", [("*",), ("layers.0.*",), {"layers.0.weight": WEIGHT_MASK, "scale": True}]
)
def test_potential_gradient_is_the_gradient_of_the_potential(
    movable: Sequence[str] | Mapping[str, bool | Tensor], weight_decay: float
):
    posterior = LocalPosterior(CENTER, 7.0, 2.5, movable=movable, weight_decay=weight_decay)
    params = movable_only(posterior, leaves(1, NUM_CHAINS))
    for leaf in params.values():
        leaf.requires_grad_()
    loss = mean_loss(params)
    loss_gradient = torch.autograd.grad(loss.sum(), list(params.values()), retain_graph=True)
    reference = torch.autograd.grad(
        by_hand(posterior, loss.clone(), params).sum(), list(params.values())
    )
    gradient = posterior.potential_gradient_(
        dict(zip(params, (g.clone() for g in loss_gradient), strict=True)),
        {name: leaf.detach() for name, leaf in params.items()},
    )
    for (name, got), expected in zip(gradient.items(), reference, strict=True):
        mask = posterior.masks.get(name, torch.ones_like(posterior.center[name], dtype=torch.bool))
        torch.testing.assert_close(got, expected * mask, rtol=0, atol=1e-10, msg=name)


def test_potential_gradient_is_exactly_zero_where_nothing_may_move():
    posterior = LocalPosterior(
        CENTER, 7.0, 2.5, movable={"layers.0.weight": WEIGHT_MASK}, weight_decay=0.3
    )
    params = movable_only(posterior, leaves(1, NUM_CHAINS))
    gradient = posterior.potential_gradient_(tensors.copied(params), params)["layers.0.weight"]
    assert torch.equal(gradient != 0, WEIGHT_MASK.expand(NUM_CHAINS, 2, 3))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_potential_is_the_formula(weight_decay: float):
    posterior = LocalPosterior(CENTER, 7.0, 2.5, weight_decay=weight_decay)
    params = leaves(1, NUM_CHAINS)
    loss = mean_loss(params)
    expected = by_hand(posterior, loss.clone(), params)
    torch.testing.assert_close(posterior.potential(loss, params), expected, rtol=0, atol=1e-10)
    flipped = LocalPosterior(CENTER, 7.0, 0.0, weight_decay=weight_decay)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(flipped.potential(loss, params), expected, rtol=0, atol=1e-10)


def test_weights_that_may_not_move_do_not_enter_the_decay():
    name, decay = "layers.0.weight", 0.3
    posterior = LocalPosterior(CENTER, 7.0, 2.5, movable={name: WEIGHT_MASK}, weight_decay=decay)
    params = {name: torch.where(WEIGHT_MASK, leaves(1, NUM_CHAINS)[name], CENTER[name])}
    loss = torch.zeros(NUM_CHAINS, dtype=torch.float64)
    moving = (params[name][:, WEIGHT_MASK] ** 2).sum(dim=1)
    away = ((params[name] - CENTER[name])[:, WEIGHT_MASK] ** 2).sum(dim=1)
    expected = 0.5 * 2.5 * away + 0.5 * 7.0 * decay * moving
    torch.testing.assert_close(posterior.potential(loss, params), expected, rtol=0, atol=1e-10)


def test_potential_of_float32_losses_is_float64():
    posterior = LocalPosterior({"w": torch.zeros(2)}, 1e6, 1.0)
    params = {"w": torch.ones(NUM_CHAINS, 2)}
    assert posterior.potential(torch.ones(NUM_CHAINS), params).dtype == torch.float64


def test_displacement_and_distance_are_taken_from_the_center():
    posterior = LocalPosterior(CENTER, 1.0, 1.0)
    params = {name: leaf.unsqueeze(0).repeat_interleave(2, 0) for name, leaf in CENTER.items()}
    params["scale"] = params["scale"] + torch.tensor([0.0, 3.0], dtype=torch.float64)
    distance = posterior.distance_squared(params)
    torch.testing.assert_close(
        distance, torch.tensor([0.0, 9.0], dtype=torch.float64), rtol=0, atol=1e-10
    )


def test_everything_moves_by_default():
    posterior = LocalPosterior(CENTER, 1.0, 1.0)
    assert list(posterior.center) == list(SHAPES)
    assert posterior.masks == {}
    assert posterior.num_moving == 6 + 2 + 8 + 1


@pytest.mark.parametrize(
    ("movable", "names"),
    [
        (("layers.0.*",), ["layers.0.weight", "layers.0.bias"]),
        ("*.weight", ["layers.0.weight", "layers.1.weight"]),
        (("scale", "layers.1.*"), ["layers.1.weight", "scale"]),
        ({"scale": True, "layers.0.bias": False}, ["scale"]),
    ],
)
def test_globs_and_mappings_choose_names_in_the_models_order(movable: Any, names: list[str]):
    posterior = LocalPosterior(CENTER, 1.0, 1.0, movable=movable)
    assert list(posterior.center) == names
    assert posterior.num_moving == sum(CENTER[name].numel() for name in names)


def test_a_mask_counts_its_true_entries_and_an_empty_one_drops_its_leaf():
    posterior = LocalPosterior(
        CENTER,
        1.0,
        1.0,
        movable={
            "layers.0.weight": WEIGHT_MASK,
            "layers.0.bias": torch.zeros(2, dtype=torch.bool),
            "scale": True,
        },
    )
    assert list(posterior.center) == ["layers.0.weight", "scale"]
    assert posterior.num_moving == 3 + 1
    assert torch.equal(posterior.masks["layers.0.weight"], WEIGHT_MASK)


def test_the_center_needs_no_gradient():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not LocalPosterior({"w": parameter}, 1.0, 1.0).center["w"].requires_grad


def test_the_center_stays_when_the_live_module_moves():
    parameter = torch.nn.Parameter(torch.ones(4))
    posterior = LocalPosterior({"w": parameter}, 1.0, 1.0)
    live = {"w": parameter.data.unsqueeze(0)}
    live["w"] += 2
    assert posterior.distance_squared(live).item() == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nbeta": -1.0}, "nbeta must be a finite number ≥ 0, got -1.0."),
        ({"nbeta": float("nan")}, "nbeta must be a finite number ≥ 0, got nan."),
        ({"gamma": -0.5}, "gamma must be a finite number ≥ 0, got -0.5."),
        ({"gamma": float("inf")}, "gamma must be a finite number ≥ 0, got inf."),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number ≥ 0, got -0.1."),
        ({"nbeta": 0.0, "gamma": 0.0}, "nbeta and gamma are both 0: the posterior is flat"),
        (
            {"movable": ("layers.7.*",)},
            "movable pattern 'layers.7.*' matches no parameter. The model has: layers.0.weight,",
        ),
        (
            {"movable": {"bias": True}},
            "movable names unknown parameters ['bias']. The model has: layers.0.weight,",
        ),
        (
            {"movable": {"layers.0.bias": torch.ones(3, dtype=torch.bool)}},
            "the mask of 'layers.0.bias' must be bool (2,), got torch.bool (3,).",
        ),
        (
            {"movable": {"layers.0.bias": torch.ones(2)}},
            "the mask of 'layers.0.bias' must be bool (2,), got torch.float32 (2,).",
        ),
        ({"movable": ()}, "no movable parameter: movable=() leaves nothing to sample."),
        ({"movable": {"scale": False}}, "no movable parameter"),
        ({"movable": {"scale": torch.tensor(False)}}, "no movable parameter"),
        (
            {"center": {**CENTER, "steps": torch.zeros(2, dtype=torch.long)}},
            "parameter 'steps' is torch.int64, which cannot be sampled.",
        ),
    ],
)
def test_refusals_say_what_was_wrong(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        LocalPosterior(**{"center": CENTER, "nbeta": 1.0, "gamma": 1.0, **arguments})


class TestSlices:
    @pytest.mark.parametrize(
        ("movable", "name", "expected"),
        [
            (["layers.0.weight[0:1]"], "layers.0.weight", [[1, 1, 1], [0, 0, 0]]),
            (["layers.0.weight[:,1:3]"], "layers.0.weight", [[0, 1, 1], [0, 1, 1]]),
            (["layers.0.weight[1:, :2]"], "layers.0.weight", [[0, 0, 0], [1, 1, 0]]),
            (["*.0.weight[:1]", "*.0.weight[1:2,2:]"], "layers.0.weight", [[1, 1, 1], [0, 0, 1]]),
            (["layers.[01].bias[1:2]"], "layers.0.bias", [0, 1]),
        ],
    )
    def test_they_are_the_mask_of_the_same_weights(self, movable, name, expected):
        posterior = LocalPosterior(CENTER, 1.0, 1.0, movable=movable)
        assert posterior.masks[name].int().tolist() == expected
        assert posterior.num_moving == int(torch.tensor(expected).sum())

    def test_a_leaf_named_whole_as_well_moves_whole(self):
        for movable in (["layers.0.*", "*.bias[0:1]"], ["*.bias[0:1]", "layers.0.*"]):
            assert LocalPosterior(CENTER, 1.0, 1.0, movable=movable).masks == {}

    @pytest.mark.parametrize(
        "region", ["0:3", "2:2", "3:", ":,:,0:1", "1,0:1"], ids=lambda r: f"[{r}]"
    )
    def test_regions_that_do_not_fit_are_refused(self, region):
        with pytest.raises(ValueError, match=r"does not fit 'layers.0.weight' \(2, 3\)"):
            LocalPosterior(CENTER, 1.0, 1.0, movable=[f"layers.0.weight[{region}]"])

    def test_a_character_class_stays_one(self):
        assert set(LocalPosterior(CENTER, 1.0, 1.0, movable=["layers.?.weigh[a-t]"]).center) == {
            "layers.0.weight",
            "layers.1.weight",
        }


def test_a_parameter_that_is_not_floating_point_may_stay_out():
    center = {**CENTER, "steps": torch.zeros(2, dtype=torch.long)}
    posterior = LocalPosterior(center, 1.0, 1.0, movable=("layers.*", "scale"))
    assert "steps" not in posterior.center


def test_one_of_nbeta_and_gamma_may_be_zero():
    params = leaves(1, NUM_CHAINS)
    ball = LocalPosterior(CENTER, 0.0, 4.0)
    flat = ball.potential_gradient_(tensors.copied(params), params)
    for name, leaf in flat.items():
        torch.testing.assert_close(leaf, 4.0 * (params[name] - CENTER[name]), rtol=0, atol=1e-10)
    free = LocalPosterior(CENTER, 4.0, 0.0)
    scaled = free.potential_gradient_(tensors.copied(params), params)
    for name, leaf in scaled.items():
        torch.testing.assert_close(leaf, 4.0 * params[name], rtol=0, atol=1e-10)
