r"""Runs of uncertain tokens: windows of high entropy, as ARES counts them.

A single uncertain token may be a matter of wording; several in a row are where a model hesitates. The paper averages
the entropy of a window that starts at a token and compares it with a quantile; the released code looks at the tokens
after a trigger word.

Reference:
    "ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping", 2025, arXiv:2510.08457.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core.reduce import masked_mean, masked_quantile, masked_sum, zero_outside
from infotorch.losses._select import SCOPES, summed
from infotorch.losses.batch import widen

TAU_OVER = ("tokens", "windows")


def top_k_entropy(log_probs: Tensor, *, tail: bool = True) -> Tensor:
    r"""Entropy from the K best log-probabilities alone, :math:`-\sum_k p_k \log p_k - q \log q`, nats.

    Args:
        log_probs: Shape ``(..., K)``, in any order.
        tail: Count the remaining mass :math:`q = \max(0, 1 - \sum_k p_k)` as one more entry.

    >>> top_k_entropy(torch.tensor([0.5, 0.25]).log())
    tensor(1.0397)
    """
    p = widen(log_probs).exp()
    rest = (1 - p.sum(-1)).clamp(min=0)
    return torch.special.entr(p).sum(-1) + (torch.special.entr(rest) if tail else 0.0)


def window_entropy(entropy: Tensor, mask: Tensor, window: int = 4) -> tuple[Tensor, Tensor]:
    r"""Mean entropy of the window that starts at each token, :math:`\frac1w \sum_{u=t}^{t+w-1} H_u`.

    Args:
        entropy: Nats, shape ``(B, T)``.
        mask: Valid tokens, boolean, ``(B, T)``.
        window: Length w.

    Returns:
        Means, and a boolean that holds where a complete window starts; both ``(B, T)``.

    Raises:
        ValueError: ``window < 1``.

    >>> window_entropy(torch.tensor([[1.0, 3.0, 5.0]]), torch.ones(1, 3, dtype=torch.bool), 2)
    (tensor([[2., 4., 0.]]), tensor([[ True,  True, False]]))
    """
    check_range("window", window, 1)
    check_bool_mask("mask", mask, entropy.shape)
    entropy = zero_outside(widen(entropy), mask)
    complete = pad(mask, (0, window - 1)).unfold(1, window, 1).all(-1)
    means = pad(entropy, (0, window - 1)).unfold(1, window, 1).mean(-1)
    return zero_outside(means, complete), complete


def window_threshold(
    entropy: Tensor,
    mask: Tensor,
    *,
    window: int = 4,
    quantile: float = 0.95,
    over: str = "tokens",
    scope: str = "local",
) -> Tensor:
    """Mean over responses of a quantile of their token entropies, or of their window means; a scalar, nats.

    The paper takes tokens. Window means are less spread than tokens, so that hardly any exceeds it unless entropies of
    neighbors go together; ``over="windows"`` compares like with like.

    Args:
        entropy: Nats, ``(B, T)``.
        mask: Valid tokens, boolean, ``(B, T)``.
        window: Length of a window.
        quantile: In ``[0, 1]``.
        over: ``"tokens"`` or ``"windows"``.
        scope: Mean over this batch, or over all data-parallel ranks (``"global"``).

    Returns:
        The threshold; infinite where there is no response.

    Raises:
        ValueError: An option out of range, an unknown choice.

    >>> window_threshold(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.ones(2, 2, dtype=torch.bool), quantile=0.5)
    tensor(1.5000)
    """
    check_choice("over", over, TAU_OVER)
    check_choice("scope", scope, SCOPES)
    check_range("quantile", quantile, 0.0, 1.0)
    values = widen(entropy.detach())
    if over == "windows":
        values, mask = window_entropy(values, mask, window)
    rows = mask.any(1)
    own = masked_quantile(values, mask, quantile, dim=1)
    total = summed(torch.stack((masked_sum(own, rows), rows.sum().to(own.dtype))), scope)
    return torch.where(total[1] > 0, total[0] / total[1].clamp(min=1), torch.inf)


def high_entropy_windows(entropy: Tensor, mask: Tensor, threshold: float | Tensor, window: int = 4) -> Tensor:
    """Where a complete window starts whose mean entropy exceeds the threshold; boolean ``(B, T)``.

    Raises:
        ValueError: ``window < 1``.

    >>> h = torch.tensor([[0.0, 2.0, 2.0, 0.0]])
    >>> high_entropy_windows(h, torch.ones(1, 4, dtype=torch.bool), 1.5, 2)
    tensor([[False,  True, False, False]])
    """
    means, complete = window_entropy(entropy, mask, window)
    return complete & (means > threshold)


def covered_by(starts: Tensor, window: int) -> Tensor:
    """Tokens that lie within a window whose start is marked; boolean ``(B, T)``.

    >>> covered_by(torch.tensor([[False, True, False, False]]), 2)
    tensor([[False,  True,  True, False]])
    """
    return pad(starts, (window - 1, 0)).unfold(1, window, 1).any(-1)


def branch_points(starts: Tensor, most: int = 4) -> Tensor:
    """First position of every run of marked windows, at most ``most`` a row: where a sampler may branch.

    >>> branch_points(torch.tensor([[True, True, False, True]]))
    tensor([[ True, False, False,  True]])
    """
    first = starts & ~pad(starts, (1, 0))[:, :-1]
    return first & (first.cumsum(1) <= most)


def _following(entropy: Tensor, mask: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean entropy of the ``window`` tokens after each, and where there are as many."""
    means, complete = window_entropy(entropy, mask, window)
    return pad(means, (0, 1))[:, 1:], pad(complete, (0, 1))[:, 1:] & mask


def trigger_counts(
    entropy: Tensor, mask: Tensor, trigger: Tensor, threshold: float | Tensor, window: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """The released code's count: trigger words followed by an uncertain window.

    Args:
        entropy: Nats, ``(B, T)``; there :func:`top_k_entropy`.
        mask: Valid tokens, boolean, ``(B, T)``.
        trigger: Where a trigger word is the most likely token, boolean, ``(B, T)``.
        threshold: Least mean entropy of the ``window`` tokens that follow.
        window: Length of a window.

    Returns:
        Triggers at or above the threshold, triggers below it, and the summed excess in nats; ``(B,)`` each. A trigger
        with fewer tokens after it counts for neither.

    Raises:
        ValueError: ``window < 1``.

    >>> h, all_tokens = torch.tensor([[0.0, 2.0, 1.0, 0.0]]), torch.ones(1, 4, dtype=torch.bool)
    >>> trigger_counts(h, all_tokens, all_tokens, 1.0, 2)
    (tensor([1]), tensor([1]), tensor([0.5000]))
    """
    check_bool_mask("trigger", trigger, mask.shape)
    means, complete = _following(entropy, mask, window)
    seen = trigger & complete
    valid = seen & (means >= threshold)
    excess = masked_sum((means - threshold).clamp(min=0), valid, dim=1)
    return valid.sum(1), (seen & ~valid).sum(1), excess


def trigger_threshold(entropy: Tensor, mask: Tensor, *, window: int = 4, quantile: float = 0.95) -> Tensor:
    """Each response's quantile of the mean entropies of the windows after its tokens, ``(B,)``; NaN for an empty one.

    As in the released code, where too few tokens follow, the mean of the windows before stands in, and the token's own
    entropy where there is none. There the entropy is :func:`top_k_entropy` without the tail.

    Raises:
        ValueError: An option out of range.

    >>> trigger_threshold(torch.tensor([[9.0, 1.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool), window=1, quantile=1.0)
    tensor([3.])
    """
    check_range("quantile", quantile, 0.0, 1.0)
    means, complete = _following(entropy, mask, window)
    stand_in = torch.where(complete.any(1, keepdim=True), masked_mean(means, complete, dim=1).unsqueeze(1), entropy)
    return masked_quantile(torch.where(complete, means, stand_in), mask, quantile, dim=1)
