"""Convolutional networks of the settings, whose weights all lie in Conv2d and Linear layers.

Normalisations carry no weights here: EK-FAC then knows every weight, so that all methods speak of
the same ones.  BatchNorm with running statistics is absent: they are no parameters, so neither
posterior nor subset determines them, and networks cannot be retrained with them from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 4


class ResNet9(nn.Module):
    """Eight convolutions, two residual blocks among them, and a linear layer of 10 outputs.

    Args:
        widths: Channels of the four stages; multiples of 4, the groups of GroupNorm.

    Raises:
        ValueError: Not four widths, or one that is no multiple of 4.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        if len(widths) != 4 or any(width < 1 or width % _GROUPS for width in widths):
            raise ValueError(
                f"widths are {tuple(widths)}; expected four multiples of {_GROUPS}, the groups of "
                "GroupNorm."
            )
        first, second, third, last = widths
        self.stages = nn.Sequential(
            _conv_norm_relu(3, first),
            _conv_norm_relu(first, second, stride=2),
            _Residual(second),
            _conv_norm_relu(second, third, stride=2),
            _Residual(third),
            _conv_norm_relu(third, last),
        )
        self.linear = nn.Linear(last, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, 10]` of images `[B, 3, rows, columns]`."""
        # Maxima: means say little, those of a group of channels are all 0 behind GroupNorm.
        return self.linear(self.stages(images).amax(dim=(-2, -1)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_conv_norm_relu(width, width), _conv_norm_relu(width, width))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.inner(images)


def _conv_norm_relu(width_in: int, width: int, *, stride: int = 1) -> nn.Sequential:
    """Return a 3×3 convolution with bias, GroupNorm without weights, and ReLU."""
    convolution = nn.Conv2d(width_in, width, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, width, affine=False), nn.ReLU())


class FrozenBatchNorm(nn.Module):
    """BatchNorm of a finished network: statistics, scale and shift are constants.

    `(x - running_mean) / sqrt(running_var + 1e-5) * weight + bias`, a channel at a time: what
    `nn.BatchNorm2d` computes in evaluation mode, of whose state it takes the names.

    Args:
        width: Channels.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(width))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(width))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images `[B, width, rows, columns]`."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return images * scale[:, None, None] + shift[:, None, None]


class ResNet20(nn.Module):
    """ResNet-20 for 32×32 images, shortcuts without weights (option A), BatchNorm frozen.

    Source: He et al. 2015 (arXiv 1512.03385), section 4.2.  Names of the weights as in
    akamaster/pytorch_resnet_cifar10.

    Args:
        num_classes: Outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = _plain_convolution(3, 16, 1), FrozenBatchNorm(16)
        self.layer1 = _stage(16, 16, 1)
        self.layer2 = _stage(16, 32, 2)
        self.layer3 = _stage(32, 64, 2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, num_classes]` of images `[B, 3, 32, 32]`."""
        values = F.relu(self.bn1(self.conv1(images)))
        values = self.layer3(self.layer2(self.layer1(values)))
        return self.linear(values.mean(dim=(-2, -1)))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ResNet20:
        """Return the network of a state dict, whose names may start with `module.`.

        Raises:
            ValueError: Names or shapes of another network.
        """
        named = {
            name.removeprefix("module."): value
            for name, value in state.items()
            if not name.endswith("num_batches_tracked")
        }
        head = named.get("linear.weight")
        with torch.random.fork_rng(devices=[]):  # weights that are replaced at once
            made = cls(10 if head is None else len(head))
        try:
            made.load_state_dict(named)
        except RuntimeError as error:
            raise ValueError(
                f"no ResNet-20 for CIFAR: {error} Expected the state dict of "
                "akamaster/pytorch_resnet_cifar10's resnet20."
            ) from error
        return made


class _BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _plain_convolution(width_in, width, stride), FrozenBatchNorm(width)
        self.conv2, self.bn2 = _plain_convolution(width, width, 1), FrozenBatchNorm(width)
        self._stride, self._added = stride, width - width_in

    def forward(self, images: Tensor) -> Tensor:
        values = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(values + self._shortcut(images))

    def _shortcut(self, images: Tensor) -> Tensor:
        """Return every other pixel, with channels of 0 added, half of them in front."""
        if not self._added:
            return images
        thinned = images[..., :: self._stride, :: self._stride]
        return F.pad(thinned, (0, 0, 0, 0, self._added // 2, self._added - self._added // 2))


def _stage(width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(width_in, width, stride),
        _BasicBlock(width, width, 1),
        _BasicBlock(width, width, 1),
    )


def _plain_convolution(width_in: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
