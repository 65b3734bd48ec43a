r"""What multistep samplers share: one network call per step, and the exact move under a constant prediction.

A solver sees the grid once and then, at point i, the network's prediction there; it answers with the state at which the
network is wanted next. A predictor-corrector therefore corrects its last state first, when the prediction at it has
come. This is the order in which diffusion pipelines call a scheduler, too.

Reference: C. Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, for the data-prediction form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_tensor
from infotorch.generative.schedules import (
    PREDICTIONS,
    NoiseGrid,
    as_grid,
    denoised_from,
    dynamic_threshold,
)

__all__ = ["Denoiser", "MultistepSolver", "run_solver"]

Denoiser = Callable[[Tensor, Tensor], Tensor]


def move_weights(grid: NoiseGrid) -> list[tuple[float, float]]:
    r"""Weights of state and prediction in every Euler (DDIM) move, which takes the prediction for constant.

    :math:`x_i = q_i x_{i-1} + (\alpha_i - q_i \alpha_{i-1})\, m` with :math:`q_i = \sigma_i / \sigma_{i-1}`. The first
    pair is that of the first move.

    >>> move_weights(as_grid([4.0, 2.0, 0.0]))
    [(0.5, 0.5), (0.0, 1.0)]
    """
    shrink = grid.sigmas[1:] / grid.sigmas[:-1]
    return list(zip(shrink.tolist(), (grid.alphas[1:] - shrink * grid.alphas[:-1]).tolist(), strict=True))


class MultistepSolver:
    """Base of the solvers: keeps place, Euler base and recent predictions; a subclass predicts and corrects.

    Args:
        grid: Points to walk along, or noise levels of the EDM form.
        keep: How many predictions are kept.
    """

    def __init__(self, grid: Tensor | Sequence[float] | NoiseGrid, *, keep: int = 2) -> None:
        self.grid = as_grid(grid)
        self.keep = keep
        # Plain numbers: a step is a few small operations, and reading tensors would cost as much as these.
        self.alphas, self.lambdas = self.grid.alphas.tolist(), self.grid.lambdas.tolist()
        self._moves = move_weights(self.grid)
        self._steps = self.grid.steps
        self.reset()

    def reset(self) -> None:
        """Forget everything but the grid."""
        self.i = 0
        self.outputs: list[Tensor] = []
        self.base: Tensor | None = None

    def predict(self) -> Tensor:
        """State at point i, from ``base`` (the Euler move there) and ``outputs``, newest last."""
        assert self.base is not None
        return self.base

    def correct(self, x: Tensor, m: Tensor) -> Tensor:
        """State at point i again, now that the prediction ``m`` at it is known; ``x`` is what was predicted."""
        return x

    @property
    def calls(self) -> int:
        """Predictions that it needs to reach the end."""
        return self.grid.steps

    def step(self, m: Tensor, x: Tensor) -> Tensor:
        """Take the prediction at the current point and go on.

        Args:
            m: Predicted clean data, of the shape of ``x``.
            x: The state that was given to the network: what the last call returned.

        Returns:
            Where the network is wanted next; after the last call, the sample.

        Raises:
            RuntimeError: Called more often than there are steps.
            ValueError: Shapes that differ.
        """
        if self.i >= self.calls:
            raise RuntimeError(f"step: expected at most {self.calls} calls before reset(), got one more")
        if m.shape != x.shape:
            raise ValueError(f"model: expected an output of shape {tuple(x.shape)}, got {tuple(m.shape)}")
        if self.i:
            x = self.correct(x, m)
        self.outputs = [*self.outputs, m][-self.keep :]
        if self.i < self._steps:
            self.i += 1
            shrink, gain = self._moves[self.i - 1]
            self.base = (shrink * x).add_(gain * m)
            return self.predict()
        self.i += 1
        return x

    def log_step(self, i: int) -> float:
        r""":math:`\lambda_i - \lambda_{i-1}`."""
        return self.lambdas[i] - self.lambdas[i - 1]

    def move(self, i: int) -> tuple[float, float]:
        """Weights of state and prediction in the Euler move to point i."""
        return self._moves[i - 1]


def check_start(x: object) -> Tensor:
    """A state to start from: floating, finite, with a batch axis."""
    x = check_tensor("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x: expected shape (B, D), (B, C, H, W) or more axes, got {tuple(x.shape)}")
    if not _finite(x):
        raise ValueError("x: expected finite numbers, got NaN or infinity")
    return x


def _finite(x: Tensor) -> bool:
    """As ``x.isfinite().all()``, which took as long as five steps of a sampler: 0 times infinity or NaN is NaN."""
    return not bool((x * 0).sum().isnan())


def finished(state: Tensor, x: Tensor) -> Tensor:
    """The sample in the type of ``x``; one look at the end finds what any call returned."""
    if not _finite(state):
        raise ValueError("model: expected finite outputs, got NaN or infinity in the sample that they lead to")
    return state.to(x.dtype)


def prediction_function(
    model: Denoiser,
    grid: NoiseGrid,
    x: Tensor,
    prediction: str,
    threshold: float | None,
    threshold_max: float,
) -> Callable[[Tensor, int], Tensor]:
    """Clean data predicted at a state and a point; computed in at least float32, the network called in ``x``'s type."""
    check_choice("prediction", prediction, PREDICTIONS)
    times = grid.times.to(x.device)
    levels = list(zip(grid.alphas.tolist(), grid.sigmas.tolist(), strict=True))

    def predict(state: Tensor, i: int) -> Tensor:
        output = check_tensor("model's output", model(state.to(x.dtype), times[i])).to(state.dtype)
        m = denoised_from(output, state, *levels[i], prediction)
        return m if threshold is None else dynamic_threshold(m, threshold, threshold_max)

    return predict


@torch.no_grad()
def run_solver(
    model: Denoiser,
    x: Tensor,
    solver: MultistepSolver,
    *,
    prediction: str = "denoised",
    threshold: float | None = None,
    threshold_max: float = 1.0,
    denoise_to_zero: bool = False,
) -> Tensor:
    """Sample with any solver: the loop that all of them share.

    Args:
        model: ``(x, t) -> prediction`` with ``t`` a 0-d float64 tensor, a time of the grid (EDM form: the noise level).
        x: Start, shape ``(B, ...)``: noise of the grid's first level. No gradient flows.
        solver: A fresh or reset solver; it holds the grid.
        prediction: What the model predicts: ``"denoised"``, ``"epsilon"`` or ``"v"``.
        threshold: Quantile of dynamic thresholding (0.995 in the literature); None: off.
        threshold_max: Size of clean data for thresholding.
        denoise_to_zero: End with one more call, and return what it predicts.

    Returns:
        The sample, in the shape and type of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``x`` has fewer than two axes or is not finite; the model's output has another shape or is
            not finite; the last noise level is 0 and would have to be given to the model.

    >>> from infotorch.generative import DDIM
    >>> run_solver(lambda x, t: 0 * x + 3, torch.ones(1, 1), DDIM([1.0, 0.5, 0.0]))
    tensor([[3.]])
    """
    state = check_start(x)
    if state.dtype in (torch.float16, torch.bfloat16):
        state = state.float()
    grid = solver.grid
    if grid.sigmas[-1] == 0 and (denoise_to_zero or solver.calls > grid.steps):
        raise ValueError("sigmas: expected a last noise level above 0 where the model is called there, got 0")
    predict = prediction_function(model, grid, x, prediction, threshold, threshold_max)
    for i in range(solver.calls):
        state = solver.step(predict(state, i), state)
    if denoise_to_zero:
        state = predict(state, grid.steps)
    return finished(state, x)
