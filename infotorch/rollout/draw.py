"""Draw one token per row from logits by inverting the cumulative distribution at given uniform numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_tokens", "truncate"]


def truncate(probs: Tensor, *, top_p: float = 1.0, top_k: int = -1) -> Tensor:
    """Set the probabilities outside the nucleus (top-p) and outside the top-k to zero, without renormalizing.

    The nucleus is the smallest set of most likely tokens whose mass reaches ``top_p`` (Holtzman et al., 2020,
    arXiv 1904.09751); the most likely token always stays. Ties at the k-th place keep the lower token ids.

    Args:
        probs: ``[N, V]``.
        top_p: In (0, 1]; 1 switches it off.
        top_k: Positive, or -1 to switch it off.

    Example:
        >>> truncate(torch.tensor([[0.5, 0.3, 0.2]]), top_p=0.6)
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    if top_p >= 1.0 and not 0 < top_k < probs.shape[-1]:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_p < 1.0:
        keep &= ordered.cumsum(-1) - ordered < top_p
    if top_k > 0:
        keep[..., top_k:] = False
    keep[..., 0] = True
    return torch.zeros_like(probs).scatter(-1, order, torch.where(keep, ordered, 0.0))


def draw_tokens(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds ``u`` times the total.

    Args:
        probs: ``[N, V]`` non-negative weights (they need not sum to 1).
        uniforms: ``[N]`` numbers in (0, 1).

    Returns:
        int64 ``[N]``; a token of weight 0 is never drawn.

    Example:
        >>> draw_tokens(torch.tensor([[0.2, 0.0, 0.8]] * 2), torch.tensor([0.1, 0.3]))
        tensor([0, 2])
    """
    cumulative = probs.double().cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total also after rounding, so that a tail of zero weights cannot be reached.
    target = torch.minimum(uniforms.double()[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
