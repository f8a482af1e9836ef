"""Follow identities that the posterior fulfils, whatever its shape, draw by draw.

By integration by parts `E[F·∇U] = E[div F]` for any smooth vector field F.  With `F = w - w*` it is
the virial theorem, `E[(w - w*)·∇U] = d`; with `F = (L - E[L])·(w - w*)` it says that the covariance
of the mean loss L with the virial is `Cov(L, (w - w*)·∇U) = E[(w - w*)·∇L]`.  Both cost nothing:
the step has the gradients already.  On a quadratic BAOAB keeps both at any stable step; where U is
none, a step that is too long breaks the second long before the first, as it does the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bif import tensors
from bif.sampling.posterior import LocalPosterior
from bif.types import HasParams, Params

_SUMS = ("draws", "virial", "loss", "loss_virial", "dilation", "kinetic")


class IdentitySums:
    """Sums over the draws of every chain, from which both sides of the identities follow.

    Args:
        num_chains: Number of the run's chains.
        center_loss: Mean loss at w*, which losses are taken from: their offset costs no digits.
    """

    def __init__(self, num_chains: int, *, center_loss: float) -> None:
        self._sums = torch.zeros(num_chains, len(_SUMS), dtype=torch.float64)
        self._center_loss = center_loss
        self._pending: list[tuple[int, Tensor]] = []

    def add(
        self,
        first_chain: int,
        posterior: LocalPosterior,
        *,
        state: HasParams,
        gradient: Params,
        force: Params,
        mean_loss: Tensor | None,
    ) -> None:
        """Take in one draw of a block of chains, without waiting for the device.

        Args:
            first_chain: Index of the block's first chain.
            posterior: Whose potential is U.
            state: The sampler's at the draw.
            gradient: Gradient of the mean loss there, or an unbiased estimate.
            force: That of the potential, from it.
            mean_loss: Mean loss of the train items there, `[C]`; None where it is not known.
        """
        away = posterior.displacement(state.params)
        dilation = posterior.inner(away, gradient)
        virial = posterior.inner(away, force) / posterior.num_moving
        one, nothing = torch.ones_like(virial), torch.full_like(virial, math.nan)
        loss = nothing if mean_loss is None else mean_loss.double() - self._center_loss
        velocity: Params | None = getattr(state, "velocity", None)
        kinetic = nothing if velocity is None else (
            posterior.total(tensors.squared_norm(velocity)) / posterior.num_moving
        )  # fmt: skip
        row = [one, virial, loss, loss * virial, dilation / posterior.num_moving, kinetic]
        self._pending.append((first_chain, torch.stack(row, dim=1)))
        if len(self._pending) >= 32:
            self.settle()

    def settle(self) -> None:
        """Bring what is on the device to the host."""
        for first, rows in self._pending:
            self._sums[first : first + len(rows)] += rows.cpu()
        self._pending.clear()

    def state(self, chains: range) -> Tensor:
        """Return the sums of some chains, `[C, 6]`."""
        self.settle()
        return self._sums[chains.start : chains.stop].clone()

    def restore(self, chains: range, saved: Tensor | None) -> None:
        """Go on from what `state` returned; from nothing where a run of old kept none."""
        if saved is not None and saved.shape == (len(chains), len(_SUMS)):
            self._sums[chains.start : chains.stop] = saved

    def figures(self, lost: Mapping[int, int]) -> dict[str, float]:
        """Return both sides' ratios and their errors; nothing where no draw was taken in.

        `virial` and `kinetic` are 1 a weight, `dilation` is
        `Cov(L, (w - w*)·∇U) / E[(w - w*)·∇L]`, 1 as well; the errors are a jackknife's over chains.

        Args:
            lost: Chains that diverged, which are left out.
        """
        self.settle()
        kept = [c for c in range(len(self._sums)) if c not in lost and self._sums[c, 0] > 0]
        rows = self._sums[kept]
        if not len(rows):
            return {}
        found = _ratios(rows.sum(dim=0))
        if len(rows) < 2:
            errors = torch.full_like(found, math.nan)
        else:
            without = torch.stack([_ratios(rows.sum(dim=0) - row) for row in rows])
            spread = (without - without.mean(dim=0)).square().mean(dim=0)
            errors = ((len(rows) - 1) * spread).sqrt()
        named: dict[str, float] = {}
        for name, value, error in zip(
            ("virial", "kinetic", "dilation"), found.tolist(), errors.tolist(), strict=True
        ):
            named |= {name: value, f"{name}_error": error}
        return named


def _ratios(total: Tensor) -> Tensor:
    draws, virial, loss, loss_virial, dilation, kinetic = total
    covariance = loss_virial / draws - (loss / draws) * (virial / draws)
    return torch.stack([virial / draws, kinetic / draws, covariance / (dilation / draws)])
