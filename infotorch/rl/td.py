r"""Temporal differences for any head: bootstrapped targets, their loss and their error; the conservative penalty.

References:
    - J. Farebrother et al., 2024, arXiv:2403.03950 (scalar targets as histograms).
    - M. Bellemare, W. Dabney and R. Munos, 2017, arXiv:1707.06887 (C51).
    - H. van Hasselt, A. Guez and D. Silver, 2016, arXiv:1509.06461 (double Q-learning).
    - A. Kumar et al., "Conservative Q-learning for offline reinforcement learning", 2020, arXiv:2006.04779.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from infotorch.nn import C51, RangeReport
from infotorch.rl.heads import QNetwork
from infotorch.rl.replay import Transitions

__all__ = ["Temporal", "bootstrap", "cql_penalty", "pick", "temporal_difference"]


def pick(outputs: Tensor, action: Tensor) -> Tensor:
    """Of ``(B, actions, ...)`` the rows of the actions ``(B,)``: ``(B, ...)``.

    >>> pick(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
    tensor([2., 3.])
    """
    return outputs[torch.arange(len(action), device=outputs.device), action]


@torch.no_grad()
def bootstrap(
    online: QNetwork, target: QNetwork, batch: Transitions, *, double: bool = True
) -> tuple[Tensor, Tensor | None]:
    r"""Targets :math:`y = R + \gamma' Q_{target}(s', a')`, and for C51 the next state's probabilities.

    Args:
        online: The network that learns.
        target: Its older copy.
        batch: Transitions.
        double: :math:`a'` is the best action of the online network (double Q-learning), else of the target.

    Returns:
        Values ``(B,)``; probabilities ``(B, m)`` of the next state for :class:`~infotorch.nn.C51`, else None.
    """
    outputs = target(batch.next_obs)
    values = target.head(outputs)
    action = (online.values(batch.next_obs) if double else values).argmax(-1)
    y = batch.reward + batch.discount * pick(values, action)
    return y, pick(outputs, action).float().softmax(-1) if isinstance(target.head, C51) else None


class Temporal(NamedTuple):
    """Temporal differences of a batch.

    Attributes:
        loss: Of each row, ``(B,)``: the head's.
        error: Value minus target, ``(B,)``, without gradient.
        values: Action values of the states, ``(B, actions)``.
        target: Scalar targets, ``(B,)``.
        next_probs: C51's, else None.
    """

    loss: Tensor
    error: Tensor
    values: Tensor
    target: Tensor
    next_probs: Tensor | None

    def range_report(self, head: torch.nn.Module, batch: Transitions) -> RangeReport:
        """How the targets fit the head's support; for C51 how the masses do."""
        if self.next_probs is not None and isinstance(head, C51):
            return head.bootstrap_report(self.next_probs, batch.reward, batch.discount)
        return head.range_report(self.target)  # pyright: ignore[reportCallIssue]


def temporal_difference(online: QNetwork, target: QNetwork, batch: Transitions, *, double: bool = True) -> Temporal:
    r"""Loss of the taken actions' outputs: cross-entropy of histograms, or a scalar head's error.

    HL-Gauss and two-hot turn the scalar target into a histogram; C51 projects the next state's distribution.

    Args:
        online: The network that learns.
        target: Its older copy.
        batch: Transitions, on the networks' device.
        double: See :func:`bootstrap`.

    Reference: J. Farebrother et al., 2024, arXiv:2403.03950.

    >>> from infotorch.nn import HLGauss
    >>> network = QNetwork((2,), 3, HLGauss(0.0, 1.0, 11))
    >>> one = torch.ones(4)
    >>> batch = Transitions(torch.zeros(4, 2), torch.zeros(4).long(), one / 2, torch.zeros(4, 2), 0 * one)
    >>> temporal_difference(network, network, batch).target
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    y, next_probs = bootstrap(online, target, batch, double=double)
    outputs, head = online(batch.obs), online.head
    taken, values = pick(outputs, batch.action), head(outputs)
    if next_probs is not None and isinstance(head, C51):
        projected = head.project(next_probs, batch.reward, batch.discount)
        loss = head.cross_entropy(taken, projected, reduction="none")
    else:
        loss = head.loss(taken, y, reduction="none")
    return Temporal(loss, (pick(values, batch.action) - y).detach(), values, y, next_probs)


def cql_penalty(values: Tensor, action: Tensor) -> Tensor:
    r"""How much higher the values of all actions are than that of the data, :math:`\log \sum_a e^{Q(s,a)} - Q(s, a_D)`.

    Args:
        values: Action values ``(B, actions)``; of histograms the expected ones.
        action: The data's actions, ``(B,)``.

    Returns:
        Shape ``(B,)``, positive.

    Reference: A. Kumar et al., 2020, arXiv:2006.04779 (its variant H, for discrete actions).

    >>> cql_penalty(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """
    return values.logsumexp(-1) - pick(values, action)
