r"""EVODiff as its authors released it, number for number.

With :math:`q_i = \sigma_i/\sigma_{i-1}`, :math:`\kappa = \sigma/\alpha`, :math:`h_i = 1/\kappa_i - 1/\kappa_{i-1}`,
:math:`r = (\lambda_{i-1}-\lambda_{i-2})/(\lambda_i-\lambda_{i-1})` and the Euler move :math:`E_i`, step i (from 2 on):

- :math:`D_1 = m_{i-1} - \rho_1 m_{i-2}`, probe :math:`E_i + \frac{\sigma_i h_i}{2 r_i} D_1` with
  :math:`r_i = r\,\mathrm{sigmoid}(|\rho_1| / 4)`;
- m, the prediction at the probe; :math:`D_2 = m - \rho_2 m_{i-1}`;
- :math:`B = -\frac{\eta}{r} D_1 + (1 - \eta) r D_2`, state :math:`E_i + \frac{\sigma_i h_i}{2\zeta} B`.

:math:`\rho = (1-w)\sqrt{q_i/q_{i-1}} + w\,\mathrm{proj}(\text{newer}, \text{older})` where w grows with time to 1/2,
and :math:`\eta` and :math:`\zeta` are sigmoids of projections of these differences on each other.

Reference: S. Li, W. Chen, D. Zeng, "EVODiff: entropy-aware variance optimized diffusion inference", 2025,
arXiv:2509.26096.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infotorch.generative.multistep import MultistepSolver
from infotorch.generative.schedules import NoiseGrid

__all__ = ["EVODiffOfficial", "EVODiffStep", "projection"]

# Constants of the released code.
TEMPERATURE, SHIFT, CLAMP, MANY_STEPS = 0.25, 0.5, 2.0, 20


@dataclass(frozen=True)
class EVODiffStep:
    """What one corrected step did.

    Attributes:
        i: Point of the grid.
        probe: State at which the network was asked.
        x: The corrected state there.
        weights: Weights by name, with reduced axes kept as 1. Official: ``rho1``, ``rho2``, ``r``, ``eta``,
            ``eta_star``, ``zeta``, ``zeta_star``; corrected: ``rate`` (none before the third point).
    """

    i: int
    probe: Tensor
    x: Tensor
    weights: dict[str, Tensor] = field(default_factory=dict)


def inner(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Inner product over ``dims``, which stay as 1."""
    return (a * b).sum(dims, keepdim=True)


def projection(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    r""":math:`\mathrm{clamp}(\langle a, b\rangle / \langle b, b\rangle, -2, 2)` over ``dims``; 0 where b is 0.

    >>> projection(torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]]), (1,))
    tensor([[0.5000],
            [0.0000]])
    """
    length = inner(b, b, dims).clamp(min=torch.finfo(b.dtype).tiny)
    return (inner(a, b, dims) / length).clamp(-CLAMP, CLAMP)


class ProjectingSolver(MultistepSolver):
    """A solver with weights from inner products over ``reduce_dims``, which reports its steps."""

    def __init__(
        self,
        grid: Tensor | Sequence[float] | NoiseGrid,
        *,
        reduce_dims: Sequence[int] | None = None,
        on_step: Callable[[EVODiffStep], None] | None = None,
        keep: int = 2,
    ) -> None:
        super().__init__(grid, keep=keep)
        self.reduce_dims = None if reduce_dims is None else tuple(reduce_dims)
        self.on_step = on_step

    def dims(self, x: Tensor) -> tuple[int, ...]:
        """Axes that inner products run over: by default all behind the channels; of ``(B, D)`` the last."""
        if self.reduce_dims is None:
            return tuple(range(2, x.ndim)) if x.ndim > 2 else (1,)
        found = {d % x.ndim for d in self.reduce_dims if -x.ndim <= d < x.ndim}
        if len(found) < len(self.reduce_dims) or not found or 0 in found:
            raise ValueError(
                f"reduce_dims: expected distinct axes of a state of shape {tuple(x.shape)}, without the batch axis 0, "
                f"got {self.reduce_dims}"
            )
        return tuple(sorted(found))

    def step(self, m: Tensor, x: Tensor) -> Tensor:
        """As of every solver; looks at ``reduce_dims`` first."""
        if self.i == 0:
            self.dims(x)
        return super().step(m, x)

    def report(self, probe: Tensor, x: Tensor, **weights: Tensor) -> None:
        """Tell ``on_step`` about the step to point i."""
        if self.on_step is not None:
            self.on_step(EVODiffStep(self.i, probe, x, weights))


class EVODiffOfficial(ProjectingSolver):
    r"""The released sampler; formula and reference at the top of this module.

    It is not of second order: D1 and D2 are no differences where :math:`\rho \ne 1`; the weights
    :math:`(-\eta, 1-\eta)/\zeta` do not meet the conditions of order 2; the special last step adds a term that does not
    vanish with the step. Finer grids do not bring it to the solution of the ODE; :class:`~infotorch.generative.EVODiff`
    does get there.

    Args:
        grid: A `NoiseGrid`, or noise levels of the EDM form.
        lower_order_final: Take the special last step. Otherwise the last step is one as any other, at the price of one
            more call.
        reduce_dims: Axes of the inner products. By default all behind the channels (one weight per sample and channel,
            as in the released code), and the last one of ``(B, D)``.
        on_step: Called with an `EVODiffStep` for every corrected step.

    Raises:
        ValueError: At the first step, where ``reduce_dims`` are no axes of the state.

    Deviations from the released code, none of which changes a finite result of it: inner products of 0 give weight 0
    instead of NaN; where :math:`\sigma_{N-1}\sigma_N \ge 1` the special last step, which would flip the sign of the
    state, is an Euler step; orders other than 2, of which 1 fails there and 3 leaves out most steps, do not exist.

    Reference: S. Li, W. Chen, D. Zeng, 2025, arXiv:2509.26096.

    >>> solver = EVODiffOfficial([80.0, 1.0, 0.002])
    >>> x = solver.step(torch.zeros(1, 2), torch.full((1, 2), 80.0))
    >>> x
    tensor([[1., 1.]])
    >>> solver.step(x, x)  # the special last step overshoots: Euler's answer is 0.998
    tensor([[1.4543, 1.4543]])
    """

    def __init__(
        self,
        grid: Tensor | Sequence[float] | NoiseGrid,
        *,
        lower_order_final: bool = True,
        reduce_dims: Sequence[int] | None = None,
        on_step: Callable[[EVODiffStep], None] | None = None,
    ) -> None:
        super().__init__(grid, reduce_dims=reduce_dims, on_step=on_step)
        self.lower_order_final = lower_order_final
        assert self.grid.shares is not None
        self._shares = list(zip((1 - self.grid.shares).tolist(), self.grid.shares.tolist(), strict=True))
        self._gaps = (self.grid.alphas / self.grid.sigmas).diff().tolist()

    @property
    def calls(self) -> int:
        """N, and one more without the special last step."""
        return self.grid.steps + (not self.lower_order_final)

    def predict(self) -> Tensor:
        """The probe, or the last state."""
        assert self.base is not None
        i, base = self.i, self.base
        if i == 1:
            return base
        older, newer = self.outputs
        q, gain = self.move(i)
        if i == self.grid.steps and self.lower_order_final:
            product = float(self.grid.sigmas[i] * self.grid.sigmas[i - 1])
            if product >= 1:
                return base
            kept = 1 - 0.5 * math.sqrt(q if q < 0.5 else q - 0.5)
            return (1 - math.sqrt(product)) * base + 0.5 * gain * (newer - kept * older)
        self.rho1 = self._rho(newer, older)
        self.d1 = newer - self.rho1 * older
        self.r = torch.sigmoid(TEMPERATURE * self.rho1.abs()) * (self.log_step(i - 1) / self.log_step(i))
        return base + 0.5 * gain / self.r * self.d1

    def correct(self, x: Tensor, m: Tensor) -> Tensor:
        """The state that follows from the prediction at the probe."""
        i, base = self.i, self.base
        if i == 1:
            return x
        assert base is not None
        older, newer = self.outputs
        dims = self.dims(x)
        q, gain = self.move(i)
        h = self._gaps[i - 1]
        r, d1 = self.log_step(i - 1) / self.log_step(i), self.d1
        rho2 = self._rho(m, newer)
        d2 = m - rho2 * newer
        before, after = d1 / (r * h), d2 * (r / h)
        eta_star = 0.5 * projection(after + before, after - before, dims)
        eta = 0.5 * eta_star.abs().sigmoid()
        slope = (1 - eta) * r * d2 - eta / r * d1
        zeta_star = projection(x - base - 0.5 * gain / self.r * slope, d1, dims) / gain
        argument = zeta_star.abs() - SHIFT
        if self.grid.steps > MANY_STEPS:
            argument = -argument * torch.sigmoid(projection(newer, (newer - older) / h, dims) * (2 - q * q))
        zeta = argument.sigmoid()
        corrected = base + 0.5 * gain / zeta * slope
        self.report(
            x, corrected, rho1=self.rho1, rho2=rho2, r=self.r,
            eta=eta, eta_star=eta_star, zeta=zeta, zeta_star=zeta_star,
        )  # fmt: skip
        return corrected

    def _rho(self, newer: Tensor, older: Tensor) -> Tensor:
        """How much of the older prediction the newer one keeps: a part measured, a part from the schedule."""
        scheduled, share = self._shares[self.i]
        still = math.sqrt(self.move(self.i)[0] / self.move(self.i - 1)[0])
        return scheduled * still + share * projection(newer, older, self.dims(newer))
