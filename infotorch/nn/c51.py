r"""C51: bootstrapping the distribution of returns, not its mean, by projection onto a fixed grid.

Reference: M. Bellemare, W. Dabney and R. Munos, "A distributional perspective on reinforcement learning", 2017,
arXiv:1707.06887.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import is_traced
from infotorch.nn._chunks import rows_per_chunk
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
            ValueError: Shapes that do not fit, rewards or discounts that are NaN.
        """
        given = (next_probs.detach().reshape(-1, self.bins), *self._checked(next_probs, reward, discount))
        if is_traced():
            return self._projected(*given).view(next_probs.shape)
        size = rows_per_chunk(None, 8 * self.bins, next_probs.device)  # as many numbers are there at a time
        size *= torch.get_num_threads() if next_probs.device.type == "cpu" else 1
        out = given[1].new_empty(next_probs.shape)
        pieces = (x.split(size) for x in (out.view(-1, self.bins), *given))
        for piece, probs, rewards, discounts in zip(*pieces, strict=True):
            piece.copy_(self._projected(probs, rewards, discounts))
        return out

    def atoms(self, next_probs: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Where the next state's masses go before they are clipped and projected: ``(..., m)``, in values."""
        return self._atoms(*self._checked(next_probs, reward, discount)).view(next_probs.shape)

    def _checked(self, next_probs: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        self._check_logits(next_probs)
        for name, given in (("reward", reward), ("discount", discount)):
            if given.shape != next_probs.shape[:-1]:
                raise ValueError(f"{name}: expected shape {tuple(next_probs.shape[:-1])}, got {tuple(given.shape)}")
        return self._wide(reward, "reward").flatten(), self._wide(discount, "discount").flatten()

    def _atoms(self, reward: Tensor, discount: Tensor) -> Tensor:
        return reward.unsqueeze(-1) + discount.unsqueeze(-1) * self.transform.inverse(self.centers)

    def _projected(self, next_probs: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        mapped = self.transform.forward(self._atoms(reward, discount).clamp_(self.v_min, self.v_max))
        return categorical_projection(next_probs.to(mapped.dtype), mapped, self.centers, step=self._step)

    @torch.no_grad()
    def bootstrap_report(self, next_probs: Tensor, reward: Tensor, discount: Tensor) -> RangeReport:
        """As :meth:`range_report`, for the masses that :meth:`project` moves."""
        atoms = self.atoms(next_probs, reward, discount)
        below, above = atoms < self.v_min, atoms > self.v_max
        distance = (self.v_min - atoms).clamp(min=0) + (atoms - self.v_max).clamp(min=0)
        shares = ((next_probs * x).sum(-1).mean() for x in (below, above, distance))
        low, high, far = shares
        return RangeReport(low, high, far, low + high)
