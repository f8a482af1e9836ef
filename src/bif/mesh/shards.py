"""Split one model's weights over consecutive ranks, by FSDP2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bif.mesh.connections import WAITING, named
from bif.types import Batch, T

if TYPE_CHECKING:
    from bif.mesh.ranks import Ranks


class ModelShards:
    """The ranks that hold one copy of a model, as `bif.types.Shards` describes them.

    Ranks `g·K … g·K + K - 1` are group g.  A leaf is split by its first axis, as `torch.chunk`
    does.  Before a block of the model works its weights are gathered, and forgotten after it; the
    gradients of all shards' items are summed, and each shard gets its rows of the sum.

    Args:
        ranks: All of them make this call.
        count: Ranks of a group, K.

    Raises:
        ValueError: Ranks that are no whole groups.

    Source: torch.distributed.fsdp.fully_shard; Zhao et al. 2023 (arXiv 2304.11277).
    """

    def __init__(self, ranks: Ranks, count: int) -> None:
        if ranks.size % count:
            raise ValueError(
                f"shards={count}, and {ranks.size} ranks are no whole groups of {count}: start a "
                f"multiple of {count} ranks."
            )
        self.count, self.index = count, ranks.rank % count
        self.group, self.num_groups = ranks.rank // count, ranks.size // count
        self._rank = ranks.rank
        for group in range(self.num_groups):  # every rank makes all groups, in one order
            members = list(range(group * count, (group + 1) * count))
            of_device = dist.new_group(members)
            of_host = dist.new_group(members, backend="gloo", timeout=WAITING)
            if group == self.group:
                self._of_device: Any = of_device
                self._of_host: Any = of_host

    def local(self, leaf: Tensor) -> Tensor:
        if not leaf.dim():
            return leaf  # `place` refuses it by name
        parts = leaf.chunk(self.count)
        return parts[self.index] if self.index < len(parts) else leaf[:0]

    def place(
        self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | None
    ) -> Callable[[Callable[[Batch], Tensor], Batch], Tensor]:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        _refuse_unsharded(model, blocks)
        home = device or next(model.parameters()).device
        mesh = DeviceMesh.from_group(self._of_device, home.type)
        root = _Root(model)
        for module in (*blocks, root):
            # The root too: what it gathered would be read again after the weights have moved.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for module in root.modules():
            if isinstance(module, FSDPModule):  # sums of items, where training takes means
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return root

    def view(self, parameter: Tensor) -> Tensor:
        rows: Any = parameter.detach()  # a DTensor
        return rows.to_local()

    def rows(self, count: int) -> range:
        length = -(-count // self.count)
        return range(self.index * length, (self.index + 1) * length)

    def joined(self, values: Tensor, count: int) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous(), group=self._of_device)
        of_items = torch.cat(parts).view(self.count * len(self.rows(count)), -1)
        return of_items[:count].flatten()

    def total(self, x: Tensor) -> Tensor:
        found = x.clone()
        dist.all_reduce(found, group=self._of_device)
        return found

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with named(self._rank, "another rank has ended"):
            dist.all_gather_object(found, value, group=self._of_host)
        return found

    def of_first(self, value: T) -> T:
        held: list[Any] = [value if self.index == 0 else None]
        with named(self._rank, "another rank has ended"):
            first = self.group * self.count
            dist.broadcast_object_list(held, src=first, group=self._of_host)
        return held[0]


class _Root(nn.Module):
    """A module around a model: while it runs a function, all that is in no block is gathered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        return function(batch)


def _refuse_unsharded(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raise where weights cannot be split.

    Raises:
        ValueError: A scalar, or a weight that a block shares with another place.
    """
    homes: dict[int, set[int]] = {}
    inside = {id(m): i for i, block in enumerate(blocks) for m in block.modules()}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            homes.setdefault(id(parameter), set()).add(inside.get(id(module), -1))
    for name, parameter in model.named_parameters():
        if not parameter.dim():
            raise ValueError(
                f"{name!r} is a scalar, which has no rows to split among shards: give it the shape "
                "[1] in the model."
            )
        if len(homes[id(parameter)]) > 1:
            raise ValueError(
                f"{name!r} is shared between blocks of the model, which are gathered one at a "
                "time: untie it, or use memory='lean' on one GPU."
            )
