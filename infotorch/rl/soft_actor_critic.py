r"""Losses of the soft actor-critic for one of two players, with a temperature per transition.

The temperature of QARL's adversary belongs to the episode and is part of its observation, so it enters the losses as a
vector; a protagonist learns its own, as usual. Temperatures stay on a linear scale: 0 is allowed in the losses.

References:
    - T. Haarnoja et al., "Soft actor-critic algorithms and applications", 2018, arXiv:1812.05905.
    - A. Reddi et al., 2024, arXiv:2311.01642.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_range, shape_of

__all__ = [
    "actor_loss",
    "critic_target",
    "polyak_",
    "squash",
    "temperature_loss",
]


class Squashed(NamedTuple):
    """Actions in (-1, 1) and their log-probabilities, in nats."""

    action: Tensor
    log_prob: Tensor


def squash(
    mu: Tensor,
    log_std: Tensor,
    noise: Tensor,
    *,
    eps: float = 1e-6,
    log_std_min: float = -20.0,
    log_std_max: float = 2.0,
) -> Squashed:
    r"""Action :math:`a = \tanh u`, with :math:`u = \mu + \sigma \epsilon`, and its log-probability.

    .. math:: \log \pi(a) = \sum_d \log \mathcal N(u_d; \mu_d, \sigma_d) - \log(1 - \tanh(u_d)^2 + 10^{-6})

    Args:
        mu: Means, shape ``(..., d)``.
        log_std: Logarithms of the standard deviations, shape ``(..., d)``.
        noise: Standard normal draws, shape ``(..., d)``.
        eps: Keeps the logarithm finite where the action saturates.
        log_std_min: ``log_std`` is clamped to it from below,
        log_std_max: and to this from above.

    Returns:
        Actions ``(..., d)`` and log-probabilities ``(...)`` in nats, float32 at least. The density is that of the unit
        range: rescaling the action adds no term.

    Raises:
        ValueError: Shapes that differ.

    >>> out = squash(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    >>> out.action, out.log_prob
    (tensor([0.]), tensor(-0.9189))
    """
    if not mu.shape == log_std.shape == noise.shape or mu.ndim < 1:
        raise ValueError(
            f"mu, log_std, noise: expected three of shape (..., d), got {shape_of(mu)}, {shape_of(log_std)}, "
            f"{shape_of(noise)}"
        )
    mu, log_std, noise = _wide(mu), _wide(log_std).clamp(log_std_min, log_std_max), _wide(noise)
    action = (mu + log_std.exp() * noise).tanh()
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    return Squashed(action, (log_normal - (1 - action.square() + eps).log()).sum(-1))


def actor_loss(log_prob: Tensor, q1: Tensor, q2: Tensor, temperature: Tensor) -> Tensor:
    r"""Policy loss :math:`\frac1B \sum_b \alpha_b \log \pi(a_b) - \min(Q_1, Q_2)`.

    Args:
        log_prob: Shape ``(B,)``, of fresh actions; nats.
        q1: Shape ``(B,)``, their values by the first critic,
        q2: and by the second.
        temperature: Shape ``(B,)`` or ``()``.

    Returns:
        0-d, float32 at least; an empty batch gives 0.

    Raises:
        ValueError: Shapes that differ.

    >>> actor_loss(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor(0.5))
    tensor(-1.5000)
    """
    _same_shape(log_prob=log_prob, q1=q1, q2=q2)
    _broadcasts("temperature", temperature, log_prob)
    loss = _wide(temperature) * _wide(log_prob) - torch.minimum(_wide(q1), _wide(q2))
    return loss.sum() / max(loss.numel(), 1)


def critic_target(
    reward: Tensor,
    absorbing: Tensor,
    q1: Tensor,
    q2: Tensor,
    log_prob: Tensor,
    temperature: Tensor,
    gamma: float | Tensor = 0.99,
) -> Tensor:
    r"""Target :math:`y = r + \gamma (1 - \mathrm{absorbing}) (\min(Q_1', Q_2') - \alpha \log \pi(a'))`.

    Args:
        reward: Shape ``(B,)``, the player's own: the adversary's is minus the protagonist's.
        absorbing: Shape ``(B,)``, where the episode ended for good; running out of time does not count.
        q1: Shape ``(B,)``, the first target critic at the next state and a fresh action,
        q2: and the second.
        log_prob: Shape ``(B,)``, of that action; nats.
        temperature: Shape ``(B,)`` or ``()``.
        gamma: Discount, or that of each row, ``(B,)``.

    Returns:
        Shape ``(B,)``, without gradient.

    Raises:
        ValueError: Shapes that differ, a discount outside [0, 1].

    >>> one = torch.ones(1)
    >>> critic_target(one, 0 * one, 2 * one, 3 * one, -one, 0.5 * one, gamma=0.5)
    tensor([2.2500])
    """
    _same_shape(reward=reward, absorbing=absorbing, q1=q1, q2=q2, log_prob=log_prob)
    _broadcasts("temperature", temperature, reward)
    if isinstance(gamma, Tensor):
        _broadcasts("gamma", gamma, reward)
    else:
        check_range("gamma", gamma, 0.0, 1.0)
    soft = torch.minimum(_wide(q1), _wide(q2)) - _wide(temperature) * _wide(log_prob)
    # Where the episode ended the next state's value is not looked at, whatever it is.
    ahead = torch.where(absorbing.bool(), 0.0, soft)
    return (_wide(reward) + gamma * ahead).detach()


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    r"""Loss :math:`-\frac1B \sum_b \log\alpha \, (\log \pi(a_b) + \bar H)` that holds a policy's entropy at a target.

    Args:
        log_temperature: 0-d, with gradient.
        log_prob: Shape ``(B,)``; no gradient flows into it.
        target_entropy: In nats; usually minus the number of action dimensions.

    Returns:
        0-d.

    Raises:
        ValueError: ``log_prob`` is no vector.

    >>> temperature_loss(torch.tensor(2.0), torch.tensor([1.0, 3.0]), -1.0)
    tensor(-2.)
    """
    if log_prob.ndim != 1:
        raise ValueError(f"log_prob: expected shape (B,), got {tuple(log_prob.shape)}")
    gap = _wide(log_prob.detach()) + target_entropy
    return -(_wide(log_temperature) * gap).sum() / max(len(log_prob), 1)


@torch.no_grad()
def polyak_(target: nn.Module, source: nn.Module, tau: float = 0.005) -> None:
    r"""Move a target network towards its source, :math:`\bar\theta \leftarrow (1 - \tau) \bar\theta + \tau \theta`.

    Raises:
        ValueError: ``tau`` outside [0, 1].

    >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> polyak_(a, b, tau=1.0)
    >>> torch.equal(a.weight, b.weight)
    True
    """
    check_range("tau", tau, 0.0, 1.0)
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1 or any(x.ndim != 1 for x in tensors.values()):
        raise ValueError(f"{', '.join(shapes)}: expected all of one shape (B,), got {list(shapes.values())}")


def _broadcasts(name: str, x: Tensor, like: Tensor) -> None:
    if x.ndim and x.shape != like.shape:
        raise ValueError(f"{name}: expected shape {tuple(like.shape)} or (), got {tuple(x.shape)}")
