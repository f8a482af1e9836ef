"""Means over draws of the items' slopes along anchors, as many draws as their errors need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

import torch
from torch import Tensor

from bif import tensors
from bif.estimate.anchored import slope_share
from bif.estimate.diagnostics import thinned
from bif.estimate.traces import LossTraces, TraceBlock
from bif.linear_response.anchors import AnchorSlopes
from bif.types import Params

_EVERY = 4
"""Draws from one at which slopes are taken to the next, until their error is known."""
_FIRST = 8
"""Draws at which their error is judged first."""
_NEXT = 1.1
"""Draws at the next judgement, in units of those at the last one."""
_SHARE = 0.25
"""Variance of the slopes' means that is small enough, in units of that of what is sampled."""
_ROWS, _COLUMNS = 64, 256
"""Query and train columns by which it is judged, at most."""


class SlopeMeans:
    """The mean over draws of `∇l_i·v`, chain by chain.

    Slopes are taken at so many draws that the variance of their mean stays below a quarter of that
    of what is sampled, however long the chains become.

    Args:
        slopes: Takes them at one chain's weights.
    """

    def __init__(self, slopes: AnchorSlopes) -> None:
        self._slopes = slopes
        self._total: Tensor | None = None
        self.count = 0
        """Draws of each chain at which slopes were taken."""
        self._judged, self._judge, self._every = 0, _FIRST, _EVERY

    def follow(self, draw: int, params: Params, recorded: Callable[[], TraceBlock | None]) -> None:
        """Take the slopes of all chains of a block at a draw, if more are needed.

        Args:
            draw: Its index.
            params: Weights there, leaves `[C, *shape]`.
            recorded: Returns what the surviving chains have recorded before.
        """
        if draw == self._judge:
            self._plan(recorded(), draw)
        if self._every and (draw - self._judged) % self._every == 0:
            num_chains = len(next(iter(params.values())))
            rows = [self._slopes.at(tensors.chain(params, c)) for c in range(num_chains)]
            found = torch.stack(rows)
            self._total = found if self._total is None else self._total.add_(found)
            self.count += 1

    def _plan(self, block: TraceBlock | None, draw: int) -> None:
        """Spread what is missing over the draws until the next judgement."""
        self._judged, self._judge = draw, ceil(_NEXT * draw)
        if block is None or len(block.chains) < 2:
            return  # the error of one chain is not known: as often as before
        share = slope_share(thinned(LossTraces((block,)), _ROWS, _COLUMNS, seed=0))
        missing = ceil(self.count * (_NEXT * share / _SHARE - 1))
        self._every = 0 if missing <= 0 else max(1, (self._judge - draw) // missing)

    def mean(self) -> Tensor:
        """Return the means, `[C, A·Q, N]`.

        Raises:
            ValueError: No slopes were taken.
        """
        if self._total is None:
            raise ValueError("no slopes were taken: the block has no draw.")
        return self._total / self.count

    def state(self) -> dict[str, Tensor]:
        """Return sums and counts, by name; nothing before the first draw."""
        if self._total is None:
            return {}
        plan = torch.tensor([self._judged, self._judge, self._every])
        return {"total": self._total.clone(), "count": torch.tensor(self.count), "plan": plan}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        if saved:
            self._total, self.count = saved["total"].cpu().clone(), int(saved["count"])
            self._judged, self._judge, self._every = saved["plan"].tolist()
