"""Inception-v1 (GoogLeNet), under the names that torchvision gives its weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_AUXILIARY = ("aux1.", "aux2.")
"""Classifiers that only training uses."""
_BLOCKS = {
    "inception3a": (192, 64, 96, 128, 16, 32, 32),
    "inception3b": (256, 128, 128, 192, 32, 96, 64),
    "inception4a": (480, 192, 96, 208, 16, 48, 64),
    "inception4b": (512, 160, 112, 224, 24, 64, 64),
    "inception4c": (512, 128, 128, 256, 24, 64, 64),
    "inception4d": (512, 112, 144, 288, 32, 64, 64),
    "inception4e": (528, 256, 160, 320, 32, 128, 128),
    "inception5a": (832, 256, 160, 320, 32, 128, 128),
    "inception5b": (832, 384, 192, 384, 48, 128, 128),
}
"""Widths of each block: input, branch 1, branches 2 and 3 narrow and wide, branch 4."""


class _Convolution(nn.Module):
    """Convolution, batch normalisation, rectifier."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1) -> None:
        super().__init__()
        padding = size // 2
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Inception(nn.Module):
    """Four branches side by side; the third is 3 wide in torchvision's weights, not 5."""

    def __init__(self, inputs: int, one: int, *widths: int) -> None:
        super().__init__()
        narrow2, wide2, narrow3, wide3, pooled = widths
        self.branch1 = _Convolution(inputs, one, 1)
        self.branch2 = nn.Sequential(
            _Convolution(inputs, narrow2, 1), _Convolution(narrow2, wide2, 3)
        )
        self.branch3 = nn.Sequential(
            _Convolution(inputs, narrow3, 1), _Convolution(narrow3, wide3, 3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), _Convolution(inputs, pooled, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Logits of images `[B, 3, H, W]`, uint8.

    Pixels are scaled to -1 … 1, which is what torchvision's own normalisation and
    `transform_input` come to.

    Args:
        num_classes: Logits.
        narrower: What all widths are divided by, 1, 2, 4 or 8: to try something out.
    """

    def __init__(self, num_classes: int = 1000, narrower: int = 1) -> None:
        super().__init__()
        blocks = {
            name: _Inception(*(width // narrower for width in widths))
            for name, widths in _BLOCKS.items()
        }
        stem, last = 64 // narrower, 1024 // narrower
        pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.layers = [
            "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b",
            "maxpool3", *list(blocks)[2:7], "maxpool4", *list(blocks)[7:],
        ]  # fmt: skip
        parts = OrderedDict(
            conv1=_Convolution(3, stem, 7, stride=2), maxpool1=pool,
            conv2=_Convolution(stem, stem, 1),
            conv3=_Convolution(stem, 3 * stem, 3), maxpool2=pool, maxpool3=pool,
            maxpool4=nn.MaxPool2d(2, stride=2, ceil_mode=True), **blocks,
        )  # fmt: skip
        for name, part in parts.items():
            self.add_module(name, part)
        self.fc = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images / 127.5 - 1
        for name in self.layers:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean(dim=(2, 3)))


def read_googlenet(file: Path) -> GoogLeNet:
    """Return the network with the weights of a state dict of torchvision's GoogLeNet.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Weights of another network.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"no weights at {file}: pass the state dict of torchvision's googlenet, a .pth file."
        )
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = {name: x for name, x in state.items() if not name.startswith(_AUXILIARY)}
    if "fc.weight" not in state:
        raise ValueError(
            f"{file} has no fc.weight: expected the state dict of torchvision's googlenet, got "
            f"{', '.join(list(state)[:3])} and so on."
        )
    num_classes, width = state["fc.weight"].shape
    model = GoogLeNet(num_classes, max(1, 1024 // max(1, width)))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} has weights of another network than GoogLeNet: {error}") from None
    return model.eval()
