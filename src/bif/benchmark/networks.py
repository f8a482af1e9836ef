"""Convolutional networks of the settings, whose weights all lie in Conv2d and Linear layers.

Normalisations carry no weights here: EK-FAC then knows every weight, so that all methods speak of
the same ones.  BatchNorm with running statistics is absent: they are no parameters, so neither
posterior nor subset determines them, and networks cannot be retrained with them from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 4

Convolution = Callable[[int, int, int], nn.Module]
"""`(channels in, channels out, stride) -> module` of a 3×3 convolution with bias, padded by 1."""


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A `Conv2d`; a stack of them by vmap is one convolution with as many groups as networks."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1)


class PatchLinear(nn.Module):
    """The same map as `convolution`, as one Linear layer on every 3×3 patch.

    A stack of them by vmap is a batched matrix product, for 9 times the memory of the inputs.

    Args:
        channels_in: Of the images.
        channels_out: Of the result.
        stride: Pixels from one patch to the next.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(9 * channels_in, channels_out)
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, channels_in, rows, columns]` to `[B, channels_out, …]`."""
        patches = F.unfold(images, 3, padding=1, stride=self.stride)  # [B, 9 in, places]
        values = self.linear(patches.transpose(1, 2)).transpose(1, 2)
        rows, columns = ((length - 1) // self.stride + 1 for length in images.shape[-2:])
        return values.reshape(len(images), -1, rows, columns)


class ResNet9(nn.Module):
    """Eight convolutions, two residual blocks among them, and a linear layer; GroupNorm.

    Args:
        widths: Channels of the four stages; multiples of 4.
        num_classes: Outputs.
        layer: How a convolution is computed.

    Raises:
        ValueError: Not four widths, or one that is no multiple of 4.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        *,
        num_classes: int = 10,
        layer: Convolution = convolution,
    ) -> None:
        super().__init__()
        if len(widths) != 4 or any(width < 1 or width % _GROUPS for width in widths):
            raise ValueError(
                f"widths are {tuple(widths)}; expected four multiples of {_GROUPS}, the groups of "
                "GroupNorm."
            )
        first, second, third, last = widths
        self.stages = nn.Sequential(
            _normalised(layer(3, first, 1), first),
            _normalised(layer(first, second, 2), second),
            _Residual(second, layer),
            _normalised(layer(second, third, 2), third),
            _Residual(third, layer),
            _normalised(layer(third, last, 1), last),
        )
        self.linear = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, 3, rows, columns]` to logits `[B, num_classes]`."""
        # Maxima: means say little, those of a group of channels are all 0 behind GroupNorm.
        return self.linear(self.stages(images).amax(dim=(-2, -1)))


class _Residual(nn.Module):
    def __init__(self, width: int, layer: Convolution) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _normalised(layer(width, width, 1), width), _normalised(layer(width, width, 1), width)
        )

    def forward(self, images: Tensor) -> Tensor:
        return images + self.inner(images)


def _normalised(layer: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.GroupNorm(_GROUPS, width, affine=False), nn.ReLU())


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
        """Images `[B, width, rows, columns]`, normalised."""
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
        """Images `[B, 3, 32, 32]` to logits `[B, num_classes]`."""
        values = F.relu(self.bn1(self.conv1(images)))
        values = self.layer3(self.layer2(self.layer1(values)))
        return self.linear(values.mean(dim=(-2, -1)))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ResNet20:
        """The network of a state dict, whose names may start with `module.`.

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
        """Every other pixel, and new channels that are 0, half of them in front."""
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
