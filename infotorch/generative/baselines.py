r"""Other samplers of the same diffusion ODE: DDIM, DPM-Solver++(2M), UniPC-2 and Heun.

In terms of :math:`D_1 = m_{i-1} - m_{i-2}`, :math:`h = \lambda_i - \lambda_{i-1}` and
:math:`r = (\lambda_{i-1} - \lambda_{i-2}) / h`.

References:
    - J. Song et al., "Denoising diffusion implicit models", 2020, arXiv:2010.02502.
    - C. Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    - W. Zhao et al., "UniPC", 2023, arXiv:2302.04867.
    - T. Karras et al., 2022, arXiv:2206.00364 (Heun).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from infotorch.core._checks import check_choice
from infotorch.generative.multistep import (
    Denoiser,
    MultistepSolver,
    check_start,
    finished,
    move_weights,
    prediction_function,
)
from infotorch.generative.schedules import NoiseGrid, as_grid

__all__ = ["DDIM", "DPMSolver2M", "UniPC2", "heun_sample"]


class DDIM(MultistepSolver):
    """First order: the prediction is constant over a step.

    Args:
        grid: A `NoiseGrid`, or noise levels of the EDM form.

    Reference: J. Song et al., 2020, arXiv:2010.02502.

    >>> DDIM([2.0, 1.0, 0.0]).step(torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[0.5000]])
    """


class DPMSolver2M(MultistepSolver):
    r"""DPM-Solver++(2M): the Euler move plus :math:`\frac{g}{2r} D_1`, g the weight of the prediction.

    Args:
        grid: A `NoiseGrid`, or noise levels of the EDM form.
        lower_order_final: Take the last step in first order (always where the last noise level is 0).

    Reference: C. Lu et al., 2022, arXiv:2211.01095.

    >>> solver = DPMSolver2M([4.0, 2.0, 1.0, 0.0])
    >>> x = solver.step(torch.zeros(1, 1), torch.zeros(1, 1))
    >>> solver.step(torch.ones(1, 1), x)  # Euler's 0.5, and half the weight times the difference
    tensor([[0.7500]])
    """

    def __init__(self, grid: Tensor | Sequence[float] | NoiseGrid, *, lower_order_final: bool = True) -> None:
        super().__init__(grid)
        self.lower_order_final = lower_order_final or self.grid.sigmas[-1] == 0

    def predict(self) -> Tensor:
        """Second order from the second step on."""
        assert self.base is not None
        i = self.i
        if len(self.outputs) < 2 or (i == self.grid.steps and self.lower_order_final):
            return self.base
        slope = (self.outputs[-1] - self.outputs[-2]) * (self.log_step(i) / self.log_step(i - 1))
        return self.base + 0.5 * self.move(i)[1] * slope


class UniPC2(MultistepSolver):
    """UniPC of order 2: the predictor of DPM-Solver++(2M), and a corrector that raises the order by one.

    Args:
        grid: A `NoiseGrid`, or noise levels of the EDM form.
        variant: ``"bh1"`` or ``"bh2"``, two choices of a function B(h).
        lower_order_final: Take the last step in first order (always where the last noise level is 0).

    Raises:
        ValueError: Unknown variant.

    Reference: W. Zhao et al., 2023, arXiv:2302.04867.

    >>> solver = UniPC2([4.0, 2.0, 1.0, 0.0])
    >>> x = solver.step(torch.zeros(1, 1), torch.zeros(1, 1))
    >>> solver.step(torch.ones(1, 1), x)
    tensor([[0.8750]])
    """

    def __init__(
        self,
        grid: Tensor | Sequence[float] | NoiseGrid,
        *,
        variant: str = "bh2",
        lower_order_final: bool = True,
    ) -> None:
        self.variant = check_choice("variant", variant, ("bh1", "bh2"))
        super().__init__(grid)
        self.lower_order_final = lower_order_final or self.grid.sigmas[-1] == 0

    def _weight(self, i: int) -> tuple[float, float]:
        r"""Step h and :math:`-\alpha_i B(h)`."""
        h = self.log_step(i)
        return h, self.alphas[i] * (h if self.variant == "bh1" else -math.expm1(-h))

    def predict(self) -> Tensor:
        """Second order from the second step on."""
        assert self.base is not None
        i = self.i
        if len(self.outputs) < 2 or (i == self.grid.steps and self.lower_order_final):
            return self.base
        h, weight = self._weight(i)
        slope = (self.outputs[-1] - self.outputs[-2]) * (h / self.log_step(i - 1))
        return self.base + 0.5 * weight * slope

    def correct(self, x: Tensor, m: Tensor) -> Tensor:
        """Match the prediction at the new point; where it can, the one before the last as well."""
        assert self.base is not None
        i = self.i
        h, weight = self._weight(i)
        new = m - self.outputs[-1]
        if len(self.outputs) < 2:
            return self.base + 0.5 * weight * new
        b = -h if self.variant == "bh1" else math.expm1(-h)
        phi2 = math.expm1(-h) / -h - 1
        moments = torch.tensor([phi2 / b, 2 * (phi2 / -h - 0.5) / b], dtype=torch.float64)
        place = -self.log_step(i - 1) / h
        powers = torch.tensor([[1.0, 1.0], [place, 1.0]], dtype=torch.float64)
        old_weight, new_weight = torch.linalg.solve(powers, moments).tolist()
        old = (self.outputs[-2] - self.outputs[-1]) / place
        return self.base + weight * (old_weight * old + new_weight * new)


@torch.no_grad()
def heun_sample(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor | Sequence[float] | NoiseGrid,
    *,
    prediction: str = "denoised",
) -> Tensor:
    r"""Heun's method on :math:`d(x/\alpha)/d\kappa = (x/\alpha - m)/\kappa`, two calls a step; Euler into noise 0.

    Args:
        model: As in :func:`~infotorch.generative.run_solver`.
        x: Start, shape ``(B, ...)``.
        sigmas: Noise levels of the EDM form, or a `NoiseGrid`.
        prediction: What the model predicts.

    Returns:
        The sample, in the shape and type of ``x``.

    Raises:
        TypeError: As :func:`~infotorch.generative.run_solver`.
        ValueError: As :func:`~infotorch.generative.run_solver`.

    Reference: T. Karras et al., 2022, arXiv:2206.00364.

    >>> heun_sample(lambda x, t: 0 * x, torch.ones(1, 1), [1.0, 0.5, 0.0])
    tensor([[0.]])
    """
    grid = as_grid(sigmas)
    state = check_start(x)
    if state.dtype in (torch.float16, torch.bfloat16):
        state = state.float()
    predict = prediction_function(model, grid, x, prediction, None, 1.0)
    moves = move_weights(grid)
    alphas, kappas = grid.alphas.tolist(), (grid.sigmas / grid.alphas).tolist()
    for i in range(1, grid.steps + 1):
        before = predict(state, i - 1)
        shrink, gain = moves[i - 1]
        trial = shrink * state + gain * before
        if kappas[i] > 0:
            slope = (state / alphas[i - 1] - before) / kappas[i - 1]
            slope = slope + (trial / alphas[i] - predict(trial, i)) / kappas[i]
            trial = alphas[i] * (state / alphas[i - 1] + 0.5 * (kappas[i] - kappas[i - 1]) * slope)
        state = trial
    return finished(state, x)
