r"""C51: bootstrapping the distribution of returns, not its mean, by projection onto a fixed grid.

Reference: M. Bellemare, W. Dabney and R. Munos, "A distributional perspective on reinforcement learning", 2017,
arXiv:1707.06887.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.nn.histogram import RangeReport, TwoHot
from infotorch.nn.supports import categorical_projection

__all__ = ["C51"]


class C51(TwoHot):
    r"""Two-hot head whose bootstrapped targets are distributions.

    .. math:: p = \Pi \Big( \sum_j q'_j \, \delta_{r + \gamma c_j} \Big)

    with the next state's probabilities q' on the centers c and :math:`\Pi` the
    :func:`~infotorch.nn.supports.categorical_projection`. Scalar targets (:meth:`probs`, :meth:`loss`) are two-hot.
    With a transform the atoms are those of the values, mapped again after the discount.

    >>> head = C51(0.0, 2.0, 3)
    >>> head.project(torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([0.5]), torch.tensor([0.5]))  # from 1.0 and 1.5
    tensor([[0.0000, 0.7500, 0.2500]])
    """

    def project(self, next_probs: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Targets ``(..., m)``.

        Args:
            next_probs: Probabilities in the next state, ``(..., m)``.
            reward: ``(...)``, of one or several steps.
            discount: ``(...)``: what the next state's value counts; 0 where the episode ended.

        Raises:
            ValueError: Shapes that do not fit, rewards that are NaN.
        """
        atoms = self.atoms(next_probs, reward, discount)
        mapped = self.transform.forward(atoms.clamp(self.v_min, self.v_max))
        return categorical_projection(next_probs.detach().to(mapped.dtype), mapped, self.centers)

    def atoms(self, next_probs: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Where the next state's masses go before they are clipped and projected: ``(..., m)``, in values."""
        self._check_logits(next_probs)
        for name, given in (("reward", reward), ("discount", discount)):
            if given.shape != next_probs.shape[:-1]:
                raise ValueError(f"{name}: expected shape {tuple(next_probs.shape[:-1])}, got {tuple(given.shape)}")
        values = self.transform.inverse(self.centers)
        return self._wide(reward).unsqueeze(-1) + discount.to(values.dtype).unsqueeze(-1) * values

    @torch.no_grad()
    def bootstrap_report(self, next_probs: Tensor, reward: Tensor, discount: Tensor) -> RangeReport:
        """As :meth:`range_report`, for the masses that :meth:`project` moves."""
        atoms = self.atoms(next_probs, reward, discount)
        below, above = atoms < self.v_min, atoms > self.v_max
        distance = (self.v_min - atoms).clamp(min=0) + (atoms - self.v_max).clamp(min=0)
        shares = ((next_probs * x).sum(-1).mean() for x in (below, above, distance))
        low, high, far = shares
        return RangeReport(low, high, far, low + high)
