"""A denoiser that is exact: Gaussian mixtures, for tests of samplers and for learning what they do."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import check_tensor
from infotorch.generative.schedules import EDMSchedule, NoiseSchedule

__all__ = ["MixtureDenoiser"]


class MixtureDenoiser:
    r"""Posterior mean of clean data from a Gaussian mixture with diagonal covariances, given a noisy sample.

    :math:`m(x, t) = \sum_k r_k\,[\mu_k + \frac{\alpha v_k}{\alpha^2 v_k + \sigma^2} (x - \alpha\mu_k)]` with
    :math:`r_k \propto w_k\,\mathcal N(x;\, \alpha\mu_k,\, \alpha^2 v_k + \sigma^2)`.

    Args:
        weights: Shape ``(K,)``, positive; normalized here.
        means: Shape ``(K, D)``.
        variances: Shape ``(K, D)``, positive.
        schedule: Signal and noise levels as functions of time; EDM by default.

    Raises:
        ValueError: Shapes that differ, weights or variances that are not positive.

    >>> pair = MixtureDenoiser(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.01))
    >>> pair(torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor(0.1)).squeeze(1)
    tensor([0.0000, 0.7500, 1.0000])
    """

    def __init__(
        self, weights: Tensor, means: Tensor, variances: Tensor, schedule: NoiseSchedule | None = None
    ) -> None:
        for name, value in (("weights", weights), ("means", means), ("variances", variances)):
            check_tensor(name, value)
        if means.ndim != 2 or variances.shape != means.shape or weights.shape != means.shape[:1]:
            raise ValueError(
                "weights, means, variances: expected shapes (K,), (K, D), (K, D), got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(variances.shape)}"
            )
        if not bool((weights > 0).all() and (variances > 0).all()):
            raise ValueError("weights, variances: expected positive numbers")
        self.log_weights = (weights / weights.sum()).log()
        self.means, self.variances = means, variances
        self.schedule = EDMSchedule() if schedule is None else schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Clean data expected at ``x``, shape ``(B, ...)`` with D numbers a sample, at the time ``t`` (0-d)."""
        alpha, sigma = self.schedule.alpha(t).to(x), self.schedule.sigma(t).to(x)
        means, variances = self.means.to(x), self.variances.to(x)
        gap = x.flatten(1).unsqueeze(1) - alpha * means
        spread = alpha.square() * variances + sigma.square()
        share = (self.log_weights.to(x) - 0.5 * (gap.square() / spread + spread.log()).sum(-1)).softmax(-1)
        return (share.unsqueeze(-1) * (means + alpha * variances / spread * gap)).sum(1).view_as(x)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Clean data, shape ``(n, D)``.

        Args:
            n: How many.
            generator: Source of randomness.
        """
        kinds = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[kinds] + self.variances[kinds].sqrt() * noise
