r"""Estimators that fit a conditional density :math:`q(y|x)`: CLUB and the leave-one-out bound.

Both are upper bounds where q is the true conditional, and nothing certain elsewhere: the residuals of q are tested
on held-out pairs, and a q that does not fit gives a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotorch.core import bounds
from infotorch.estimators.base import warn
from infotorch.estimators.neural.base import NeuralEstimator
from infotorch.estimators.neural.held_out import HeldOut
from infotorch.estimators.neural.model import PairModel
from infotorch.estimators.neural.training import Pairs
from infotorch.nn import GaussianConditional

# What residuals of a q that fits stay within: the second moment is 1 there, the fourth 3 times its square.
SECOND_MOMENT = (0.7, 1.4)
KURTOSIS = (2.0, 4.5)
CORRELATION = 0.3
LIKELIHOOD_NATS = 0.1


@dataclass(kw_only=True, repr=False, eq=False)
class ConditionalEstimator(NeuralEstimator):
    """Neural estimators whose network is a density of y given x, fitted by likelihood.

    Args:
        critic: ``"gaussian"`` (:class:`infotorch.nn.GaussianConditional`), or a module that maps ``(B, d_x)`` and
            ``(C, d_y)`` to the log-densities ``(B, C)`` of every y given every x; a copy of it is trained. A method
            ``shifted`` (:class:`infotorch.nn.Critic`) spares it the product pairs while training.
    """

    critic: str | nn.Module = "gaussian"

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean log-density of y given x in a batch: ascend it to keep q close while ``bound`` trains what made x.

        Args:
            x: Shape ``(B, d)`` as in the fit, floating; pass it detached where q alone is to learn.
            y: Likewise.

        Returns:
            A scalar, nats; of y standardized as in the fit.
        """
        model = self.model_
        return _log_likelihood(model, *model.standardized(x, y))

    def _networks(self, dim_x: int, dim_y: int) -> tuple[nn.Module, nn.Module | None]:
        return self._own(self.critic, {"gaussian": lambda: GaussianConditional(dim_x, dim_y, hidden=self.hidden)}), None

    def _objective(self, model: PairModel, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: _log_likelihood(model, x, y)

    def _criterion(self, model: PairModel) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: _log_likelihood(model, x, y)

    def _examine(self, model: PairModel, found: HeldOut, test: list[Pairs]) -> None:
        x, y = (torch.cat(part) for part in zip(*test, strict=True))
        with torch.no_grad():
            faults = _faults(model, x, y)
        if faults:
            warn(f"q(y|x) is poor ({'; '.join(faults)}): {type(self).__name__} is no bound then")


@dataclass(kw_only=True, repr=False, eq=False)
class CLUB(ConditionalEstimator):
    r"""CLUB :math:`E_p[\log q(y|x)] - E_{pq}[\log q(y|x)]`: from above, where q is the true conditional.

    The slack is :math:`KL(p(x)p(y) \,\|\, p(x, y))`, which is larger than the mutual information and grows faster.

    Args:
        off_diagonal: Leave the joint pairs out of the second mean. The common code keeps them, which shrinks the
            value by the factor :math:`1 - 1/B`.

    Reference: P. Cheng et al., "CLUB: A contrastive log-ratio upper bound of mutual information", 2020,
    arXiv:2006.12013.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.6).sample(2000)  # 0.22 nats; of the reverse divergence: 0.34 nats
    >>> 0.4 < CLUB(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 0.7
    True
    """

    off_diagonal: bool = True

    def _value(self, scores: Tensor, baseline: Tensor | None) -> Tensor:
        return bounds.club(scores, off_diagonal=self.off_diagonal)


@dataclass(kw_only=True, repr=False, eq=False)
class LeaveOneOut(ConditionalEstimator):
    r"""Leave-one-out bound: :math:`\overline{\log q(y_j|x_j) - \log \frac{1}{B-1}\sum_{i \ne j} q(y_j|x_i)}`.

    From above where q is the true conditional, and much closer than :class:`CLUB`.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < LeaveOneOut(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    def _value(self, scores: Tensor, baseline: Tensor | None) -> Tensor:
        return bounds.leave_one_out(scores)


def _log_likelihood(model: PairModel, x: Tensor, y: Tensor) -> Tensor:
    if hasattr(model.critic, "shifted"):
        joint, _, _ = model.some_pairs(x, y, ())
        return joint.mean()
    return model.all_pairs(x, y)[0].diagonal().mean()


def _faults(model: PairModel, x: Tensor, y: Tensor) -> list[str]:
    """What held-out pairs say against q, in words."""
    faults = []
    n, d = y.shape
    reached = float(_log_likelihood(model, x, y))
    blind = float(-(y.var(0, correction=0).clamp(min=1e-12).log() + 1 + math.log(2 * math.pi)).sum() / 2)
    if reached < blind - LIKELIHOOD_NATS:
        faults.append(f"log-likelihood {reached:.2f}, a normal distribution that ignores x has {blind:.2f}")
    if isinstance(model.critic, GaussianConditional):
        mean, log_variance = model.critic.moments(x)
        residual = ((y - mean) * (-log_variance / 2).exp()).double()
        second = residual.square().mean(0)
        fourth = residual.pow(4).mean(0) / second.square().clamp(min=1e-300)
        faults += _outside("mean square of standardized residuals", second, SECOND_MOMENT, "1")
        faults += _outside("kurtosis of residuals", fourth, KURTOSIS, "3")
        if d > 1 and n > 3:
            correlation = torch.corrcoef(residual.T).fill_diagonal_(0.0).abs().max()
            if float(correlation) > CORRELATION + 3 / math.sqrt(n):
                faults.append(f"residuals of two columns correlate by {float(correlation):.2f}, q has them independent")
    return faults


def _outside(name: str, values: Tensor, limits: tuple[float, float], expected: str) -> list[str]:
    low, high = float(values.min()), float(values.max())
    worst = low if limits[0] - low > high - limits[1] else high
    return [] if limits[0] <= low and high <= limits[1] else [f"{name} {worst:.2f}, expected about {expected}"]
