r"""Where a new patch begins: rules on the entropies of a series, without a loop over the series.

An entropy :math:`e_t` is that of the prediction of step t + 1 from the steps up to t. A rule marks the steps t after
which something unexpected may come; a marked t opens a patch at t + 1. Position 0 always opens one. Positions run to L,
one more than the window has steps: the last one stands for the next, unknown step, so that lengths sum to L + 1.

Reference: S. Abeywickrama et al., "EntroPE: entropy-guided dynamic patch encoder for time series forecasting", 2025,
arXiv:2509.26157.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_choice, check_range, check_tensor
from infotorch.core.reduce import masked_quantile

__all__ = [
    "RULES",
    "boundary_mask",
    "fixed_starts",
    "patch_ids",
    "patch_lengths",
    "patch_starts",
    "random_starts",
    "start_ids",
]

RULES = ("quantile", "quantile_increase", "global", "relative", "global_relative")


def boundary_mask(
    entropies: Tensor,
    rule: str = "quantile",
    *,
    quantile: float = 0.9,
    threshold: float = 2.0,
    increase: float = 0.2,
) -> Tensor:
    r"""Steps after which a new patch begins.

    With :math:`d_t = e_t - e_{t-1}`, all comparisons strict:

    - ``"quantile"``: :math:`e_t` above the row's quantile.
    - ``"quantile_increase"``: :math:`d_t` above the quantile of the row's increases; t = 0 always.
    - ``"global"``: :math:`e_t` above ``threshold``.
    - ``"relative"``: :math:`d_t` above ``increase``; t = 0 always.
    - ``"global_relative"``: both of the last two from t = 2 on; t = 0 always, t = 1 never.

    Args:
        entropies: Shape ``(N, L)``, in nats.
        rule: One of `RULES`.
        quantile: Of the two quantile rules, in [0, 1].
        threshold: In nats.
        increase: In nats.

    Returns:
        Boolean, ``(N, L)``.

    Raises:
        TypeError: ``entropies`` is not a tensor.
        ValueError: Unknown rule, ``quantile`` out of range, another shape, fewer than two steps, entropies that are
            not finite.

    Deviations: none; the authors' first code has the last three rules, their second the first two.

    >>> boundary_mask(torch.tensor([[1.0, 1.0, 3.0, 1.0]]), quantile=0.75)
    tensor([[False, False,  True, False]])
    """
    check_choice("rule", rule, RULES)
    check_range("quantile", quantile, 0.0, 1.0)
    if check_tensor("entropies", entropies).ndim != 2 or entropies.shape[1] < 2:
        raise ValueError(f"entropies: expected shape (N, L) with L > 1, got {tuple(entropies.shape)}")
    if not bool(entropies.isfinite().all()):
        raise ValueError("entropies: expected finite values")
    e = entropies if entropies.dtype in (torch.float32, torch.float64) else entropies.float()
    if rule == "quantile":
        return e > _row_quantile(e, quantile)
    if rule == "global":
        return e > threshold
    d = e.diff(dim=1)
    marked = d > (_row_quantile(d, quantile) if rule == "quantile_increase" else increase)
    if rule == "global_relative":
        marked = marked & (e[:, 1:] > threshold)
        marked[:, 0] = False
    return torch.cat((torch.ones_like(marked[:, :1]), marked), 1)


def _row_quantile(x: Tensor, q: float) -> Tensor:
    return masked_quantile(x, torch.ones_like(x, dtype=torch.bool), q, dim=1).unsqueeze(1)


def patch_starts(mask: Tensor, max_length: int | None = None) -> Tensor:
    """Positions at which a patch starts, ``(N, L)`` marked steps to ``(N, L + 1)`` positions.

    Args:
        mask: Boolean, see :func:`boundary_mask`.
        max_length: Longer patches are cut into pieces of this length and a rest.

    Raises:
        TypeError: ``mask`` is not a boolean tensor.
        ValueError: ``mask`` is not a matrix, ``max_length`` is not positive.

    >>> patch_starts(torch.tensor([[False, True, False, False, False]]), max_length=3).int()
    tensor([[1, 0, 1, 0, 0, 1]], dtype=torch.int32)
    """
    if check_bool_mask("mask", mask).ndim != 2:
        raise ValueError(f"mask: expected shape (N, L), got {tuple(mask.shape)}")
    starts = torch.cat((torch.ones_like(mask[:, :1]), mask), 1)
    if max_length is None:
        return starts
    if max_length < 1:
        raise ValueError(f"max_length: expected a positive integer or None, got {max_length}")
    position = torch.arange(starts.shape[1], device=mask.device)
    since = position - torch.where(starts, position, 0).cummax(1).values
    return since % max_length == 0


def fixed_starts(rows: int, length: int, patch: int, device: torch.device | None = None) -> Tensor:
    """Starts ``(rows, length + 1)`` of patches of one length; the phantom position joins the last one.

    Raises:
        ValueError: ``patch`` is not in [1, length].

    >>> fixed_starts(1, 4, 2).int()
    tensor([[1, 0, 1, 0, 0]], dtype=torch.int32)
    """
    if not 1 <= patch <= length:
        raise ValueError(f"patch: expected an integer in [1, {length}] (the window's length), got {patch}")
    position = torch.arange(length + 1, device=device)
    return ((position % patch == 0) & (position < length)).expand(rows, -1)


def random_starts(starts: Tensor, tokens: Tensor, seed: int = 0) -> Tensor:
    """As many starts in every row, elsewhere: the control that shows whether the places matter or their number.

    Places depend on the row's tokens and the seed alone, so that a window has the same ones in every batch and epoch.
    The first start stays; patches may become longer than a limit that ``starts`` obeyed.

    Args:
        starts: Boolean, ``(N, L + 1)``.
        tokens: Integers, ``(N, L)``.
        seed: Another seed, other places.

    >>> starts = torch.tensor([[True, True, False, False, True]])
    >>> random_starts(starts, torch.tensor([[5, 6, 7, 8]])).sum().item()
    3
    """
    position = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    # A linear congruence of the row, then the finalizer of MurmurHash3 on 32 bits, for every position.
    key = (tokens * position.pow(3) * 0x9E3779B1 + seed).sum(1, keepdim=True)
    h = (key + position * 0x85EBCA6B) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    order = (h ^ (h >> 16)).sort(dim=1, stable=True).indices
    return torch.cat((starts[:, :1], starts[:, 1:].gather(1, order)), 1)


def start_ids(starts: Tensor) -> Tensor:
    """Positions of the starts, ``(N, P)`` with P that of the row with most, padded with ``L + 1``.

    >>> start_ids(torch.tensor([[True, False, True], [True, False, False]]))
    tensor([[0, 2],
            [0, 3]])
    """
    end = starts.shape[1]
    position = torch.where(starts, torch.arange(end, device=starts.device), end).sort(1).values
    return position[:, : int(starts.sum(1).max())]


def patch_lengths(starts: Tensor) -> Tensor:
    """Lengths of the patches, ``(N, P)``, 0 where a row has fewer than P; they sum to ``L + 1``.

    >>> patch_lengths(torch.tensor([[True, False, True], [True, False, False]]))
    tensor([[2, 1],
            [3, 0]])
    """
    first = start_ids(starts)
    return torch.cat((first, torch.full_like(first[:, :1], starts.shape[1])), 1).diff(dim=1)


def patch_ids(lengths: Tensor) -> Tensor:
    """Which patch every step belongs to, ``(N, P)`` lengths to ``(N, L)``.

    A last patch that holds the phantom position alone owns no step.

    Raises:
        ValueError: Rows of different sums.

    >>> patch_ids(torch.tensor([[2, 1, 2], [1, 4, 0]]))
    tensor([[0, 0, 1, 2],
            [0, 1, 1, 1]])
    """
    ends = lengths.cumsum(1)
    total = int(ends[0, -1])
    if not bool((ends[:, -1] == total).all()):
        raise ValueError(f"lengths: expected rows of one sum, got sums from {ends[:, -1].min()} to {ends[:, -1].max()}")
    return ids_of(ends, total - 1)


def ids_of(ends: Tensor, length: int) -> Tensor:
    """`patch_ids` from the patches' ends and the window's length, unchecked: it leaves the device alone."""
    position = torch.arange(length, device=ends.device).expand(len(ends), -1).contiguous()
    return torch.searchsorted(ends, position, right=True)
