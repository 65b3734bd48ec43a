"""Entropies and divergences of categorical distributions, from logits or probabilities.

Every function takes ``logits`` (unnormalized log-probabilities) or, by keyword, ``probs``. Terms of zero
probability (``-inf`` logits) contribute 0 to values and gradients. Half precision is computed in float32.
All results are in nats and reduce the last dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infotorch.core._checks import check_range

_ONE = 1e-12  # |alpha - 1| below this is 1: the difference would be 1e-12 of the varentropy
_KL_BAND = 1e-6  # divergences: |alpha - 1| below this is KL, because (alpha - 1) is only noise
_NEAR_ONE = 0.1  # |alpha - 1| below this: sums of p^alpha - p, because sum p^alpha - 1 cancels


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities in at least float32; ``-inf`` logits stay ``-inf``.

    >>> log_softmax(torch.tensor([0.0, 0.0], dtype=torch.bfloat16)).dtype
    torch.float32
    """
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return torch.log_softmax(wide / temperature if temperature != 1.0 else wide, dim=-1)


def _resolve(logits: Tensor | None, probs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``(p, log p, support)`` with ``log p = 0`` off the support, so that products with p are exact and smooth."""
    if (logits is None) == (probs is None):
        raise ValueError("logits, probs: expected exactly one of them")
    if logits is not None:
        log_p = log_softmax(logits)
        support = log_p > -math.inf  # wider than p > 0: a probability may underflow where its logarithm does not
        # Masked before the exponential is reused: 0 * -inf must appear in neither direction.
        return log_p.exp(), log_p.masked_fill(~support, 0.0), support
    assert probs is not None
    p = probs if probs.dtype in (torch.float32, torch.float64) else probs.float()
    positive = p > 0
    return p, torch.where(positive, p, 1.0).log(), positive


def _power_excess(p: Tensor, log_p: Tensor, order: float) -> Tensor:
    """``sum p^order - 1`` for orders near 1, where the difference would cancel."""
    exponent = (order - 1) * log_p
    near = exponent.abs() < 1
    return torch.where(near, p * torch.where(near, exponent, 0.0).expm1(), (order * log_p).exp() - p).sum(-1)


def _log_power(log_p: Tensor, support: Tensor, order: float) -> Tensor:
    """``log sum p^order`` over the support."""
    return torch.logsumexp((order * log_p).masked_fill(~support, -math.inf), -1)


def entropy(logits: Tensor | None = None, *, probs: Tensor | None = None) -> Tensor:
    r"""Shannon entropy :math:`H = -\sum_v p_v \log p_v` in nats.

    Args:
        logits: Shape ``(..., V)``.
        probs: Shape ``(..., V)``, rows that sum to one, instead of ``logits``.

    Returns:
        Shape ``(...)``.

    Raises:
        ValueError: Both or neither of ``logits`` and ``probs`` are given.

    >>> entropy(torch.zeros(4))  # log 4
    tensor(1.3863)
    """
    p, log_p, _ = _resolve(logits, probs)
    return -(p * log_p).sum(-1)


def varentropy(logits: Tensor | None = None, *, probs: Tensor | None = None) -> Tensor:
    r"""Variance of the surprisal, :math:`\sum_v p_v (\log p_v + H)^2`, in nats squared.

    >>> varentropy(torch.zeros(4))
    tensor(0.)
    """
    p, log_p, _ = _resolve(logits, probs)
    h = -(p * log_p).sum(-1, keepdim=True)
    return (p * (log_p + h).square()).sum(-1)


def collision(logits: Tensor | None = None, *, probs: Tensor | None = None) -> Tensor:
    r"""Collision probability :math:`\sum_v p_v^2` (``exp`` of minus the Rényi-2 entropy).

    >>> collision(torch.zeros(4))
    tensor(0.2500)
    """
    p, _, _ = _resolve(logits, probs)
    return p.square().sum(-1)


def entropy_covariance(logits: Tensor | None = None, *, probs: Tensor | None = None) -> Tensor:
    r"""Covariance of probability and log-probability under the policy, :math:`\sum_v p_v^2 (\log p_v + H)`.

    A policy-gradient step on one sampled token ``y`` with weight ``w`` moves the logits by
    :math:`\eta w (1_y - p)` and the entropy, to first order, by
    :math:`-\eta w \, [\, p_y (\log p_y + H) - \mathrm{Cov}_{a \sim p}(p_a, \log p_a) \,]`. This is the
    bracket's second term, the only one that needs the whole vocabulary.

    >>> entropy_covariance(torch.zeros(4))
    tensor(0.)
    """
    p, log_p, _ = _resolve(logits, probs)
    h = -(p * log_p).sum(-1, keepdim=True)
    return (p.square() * (log_p + h)).sum(-1)


def renyi_entropy(logits: Tensor | None = None, alpha: float = 2.0, *, probs: Tensor | None = None) -> Tensor:
    r"""Rényi entropy :math:`\log \sum_v p_v^\alpha / (1 - \alpha)` in nats.

    ``alpha = 0`` is the log of the support's size (Hartley), 1 is Shannon, infinity is min-entropy.

    Raises:
        ValueError: ``alpha`` is negative.

    Reference: A. Rényi, "On measures of entropy and information", 1961.

    >>> renyi_entropy(torch.tensor([0.0, 0.0, float("-inf")]), alpha=2.0)
    tensor(0.6931)
    """
    check_range("alpha", alpha, 0.0)
    p, log_p, support = _resolve(logits, probs)
    if math.isinf(alpha):
        return -log_p.masked_fill(~support, -math.inf).amax(-1)
    if abs(alpha - 1) < _ONE:
        return -(p * log_p).sum(-1)
    near = abs(alpha - 1) < _NEAR_ONE
    return (_power_excess(p, log_p, alpha).log1p() if near else _log_power(log_p, support, alpha)) / (1 - alpha)


def min_entropy(logits: Tensor | None = None, *, probs: Tensor | None = None) -> Tensor:
    r"""Min-entropy :math:`-\log \max_v p_v` in nats: the Rényi entropy of infinite order.

    >>> min_entropy(probs=torch.tensor([0.5, 0.25, 0.25]))
    tensor(0.6931)
    """
    return renyi_entropy(logits, math.inf, probs=probs)


def perplexity(logits: Tensor | None = None, *, probs: Tensor | None = None) -> Tensor:
    r"""Perplexity :math:`e^H`: the size of the uniform distribution of equal entropy.

    >>> perplexity(torch.zeros(4))
    tensor(4.)
    """
    return entropy(logits, probs=probs).exp()


def normalized_entropy(logits: Tensor | None = None, *, probs: Tensor | None = None) -> Tensor:
    r"""Entropy as a fraction of its maximum, :math:`H / \log |\mathrm{support}|`, in [0, 1].

    The support is what a mask of ``-inf`` logits leaves; on a single category the result is 0.

    >>> normalized_entropy(torch.tensor([0.0, 0.0, float("-inf")]))
    tensor(1.)
    """
    p, log_p, support = _resolve(logits, probs)
    size = support.sum(-1).clamp(min=2).to(p.dtype)
    return -(p * log_p).sum(-1) / size.log()


def tsallis_entropy(logits: Tensor | None = None, q: float = 2.0, *, probs: Tensor | None = None) -> Tensor:
    r"""Tsallis entropy :math:`(1 - \sum_v p_v^q) / (q - 1)`; Shannon at ``q = 1``.

    Raises:
        ValueError: ``q`` is negative.

    Reference: C. Tsallis, "Possible generalization of Boltzmann-Gibbs statistics", 1988.

    >>> tsallis_entropy(torch.zeros(2), q=2.0)
    tensor(0.5000)
    """
    check_range("q", q, 0.0)
    p, log_p, support = _resolve(logits, probs)
    if abs(q - 1) < _ONE:
        return -(p * log_p).sum(-1)
    if abs(q - 1) < _NEAR_ONE:
        return _power_excess(p, log_p, q) / (1 - q)
    return _log_power(log_p, support, q).expm1() / (1 - q)


def _two(
    p_logits: Tensor | None, q_logits: Tensor | None, p_probs: Tensor | None, q_probs: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    first, second = _resolve(p_logits, p_probs), _resolve(q_logits, q_probs)
    p, q = first[0], second[0]
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(f"q: expected {p.shape[-1]} categories in the last dimension as p has, got {q.shape[-1]}")
    return first, second


def cross_entropy(
    p_logits: Tensor | None = None,
    q_logits: Tensor | None = None,
    *,
    p_probs: Tensor | None = None,
    q_probs: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy :math:`-\sum_v p_v \log q_v` in nats; infinite where ``q`` misses mass of ``p``.

    >>> cross_entropy(torch.zeros(2), torch.zeros(2))
    tensor(0.6931)
    """
    (p, _, p_support), (_, log_q, q_support) = _two(p_logits, q_logits, p_probs, q_probs)
    missed = (p_support & ~q_support).any(-1)
    return (-(p * log_q).sum(-1)).masked_fill(missed, math.inf)


def kl_divergence(
    p_logits: Tensor | None = None,
    q_logits: Tensor | None = None,
    *,
    p_probs: Tensor | None = None,
    q_probs: Tensor | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\sum_v p_v \log(p_v / q_v)` in nats.

    Infinite where ``q`` misses mass of ``p``.

    >>> kl_divergence(p_probs=torch.tensor([1.0, 0.0]), q_probs=torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    (p, log_p, p_support), (_, log_q, q_support) = _two(p_logits, q_logits, p_probs, q_probs)
    missed = (p_support & ~q_support).any(-1)
    return (p * (log_p - log_q)).sum(-1).masked_fill(missed, math.inf)


def js_divergence(
    p_logits: Tensor | None = None,
    q_logits: Tensor | None = None,
    *,
    p_probs: Tensor | None = None,
    q_probs: Tensor | None = None,
) -> Tensor:
    r"""Jensen-Shannon divergence :math:`H(m) - (H(p) + H(q)) / 2`, ``m`` the midpoint; at most ``log 2``.

    >>> js_divergence(p_probs=torch.tensor([1.0, 0.0]), q_probs=torch.tensor([0.0, 1.0]))
    tensor(0.6931)
    """
    (p, log_p, _), (q, log_q, _) = _two(p_logits, q_logits, p_probs, q_probs)
    return entropy(probs=(p + q) / 2) + ((p * log_p).sum(-1) + (q * log_q).sum(-1)) / 2


def renyi_divergence(
    p_logits: Tensor | None = None,
    q_logits: Tensor | None = None,
    alpha: float = 2.0,
    *,
    p_probs: Tensor | None = None,
    q_probs: Tensor | None = None,
) -> Tensor:
    r"""Rényi divergence :math:`\log \sum_v p_v^\alpha q_v^{1-\alpha} / (\alpha - 1)`; KL at ``alpha = 1``.

    Raises:
        ValueError: ``alpha`` is not positive and finite.

    >>> renyi_divergence(p_probs=torch.tensor([1.0, 0.0]), q_probs=torch.tensor([0.5, 0.5]), alpha=2.0)
    tensor(0.6931)
    """
    check_range("alpha", alpha, 0.0, math.inf, low_open=True, high_open=True)
    if abs(alpha - 1) < _KL_BAND:
        return kl_divergence(p_logits, q_logits, p_probs=p_probs, q_probs=q_probs)
    (_, log_p, p_support), (_, log_q, q_support) = _two(p_logits, q_logits, p_probs, q_probs)
    both = p_support & q_support
    # A row with no common support has an empty sum: log 0, which is +inf on either side of alpha = 1.
    total = torch.logsumexp((alpha * log_p + (1 - alpha) * log_q).masked_fill(~both, -math.inf), -1)
    result = total / (alpha - 1)
    if alpha > 1:
        result = result.masked_fill((p_support & ~q_support).any(-1), math.inf)
    return result


def total_variation(
    p_logits: Tensor | None = None,
    q_logits: Tensor | None = None,
    *,
    p_probs: Tensor | None = None,
    q_probs: Tensor | None = None,
) -> Tensor:
    r"""Total variation distance :math:`\tfrac12 \sum_v |p_v - q_v|`, in [0, 1].

    >>> total_variation(p_probs=torch.tensor([1.0, 0.0]), q_probs=torch.tensor([0.5, 0.5]))
    tensor(0.5000)
    """
    (p, _, _), (q, _, _) = _two(p_logits, q_logits, p_probs, q_probs)
    return (p - q).abs().sum(-1) / 2


def chi2_divergence(
    p_logits: Tensor | None = None,
    q_logits: Tensor | None = None,
    *,
    p_probs: Tensor | None = None,
    q_probs: Tensor | None = None,
) -> Tensor:
    r"""Pearson divergence :math:`\chi^2(p \| q) = \sum_v p_v^2 / q_v - 1`.

    Infinite where ``q`` misses mass of ``p``.

    >>> chi2_divergence(p_probs=torch.tensor([1.0, 0.0]), q_probs=torch.tensor([0.5, 0.5]))
    tensor(1.)
    """
    return renyi_divergence(p_logits, q_logits, 2.0, p_probs=p_probs, q_probs=q_probs).expm1()


def squared_hellinger(
    p_logits: Tensor | None = None,
    q_logits: Tensor | None = None,
    *,
    p_probs: Tensor | None = None,
    q_probs: Tensor | None = None,
) -> Tensor:
    r"""Squared Hellinger distance :math:`1 - \sum_v \sqrt{p_v q_v}`, in [0, 1].

    >>> squared_hellinger(p_probs=torch.tensor([1.0, 0.0]), q_probs=torch.tensor([0.25, 0.75]))
    tensor(0.5000)
    """
    (_, log_p, p_support), (_, log_q, q_support) = _two(p_logits, q_logits, p_probs, q_probs)
    affinity = torch.logsumexp(((log_p + log_q) / 2).masked_fill(~(p_support & q_support), -math.inf), -1)
    return -affinity.expm1()
