"""Arithmetic of one tile of logits: fold it into per-row partial sums, turn it into its gradient.

A tile is ``[R, v]``: R rows (tokens) and v consecutive vocabulary entries. For each row seven partial sums
are kept relative to the running maximum ``m`` of the raw logits, with ``d = (x - m) / T`` so that a common offset
of the logits cancels exactly before it meets the temperature::

    m   max x        s1  sum e^d       s2  sum e^d d      s3  sum e^d d^2
    zy  label's x                      q1  sum e^2d       q2  sum e^2d d

They merge across tiles and across vocabulary shards by rescaling to a common maximum, and everything that
:mod:`infotorch.core.tokens` returns is a closed form of them. All gradients share one shape,
``p (a0 + a1 s + a2 s^2 + p (b0 + b1 s))`` with ``s = log p + H``, so one pass writes them together.
"""

from __future__ import annotations

import torch
from torch import Tensor

M, S1, S2, ZY, S3, Q1, Q2 = range(7)
NUM_PARTIALS = 7
LOG_PROB, ENTROPY, LOG_NORMALIZER, VARENTROPY, COLLISION, ENTROPY_COVARIANCE, TOP_P_ENTROPY = range(7)
NUM_VALUES = 7
SHIFT, LOG_S1, NUCLEUS_SIZE, NUCLEUS_LOG_MASS = range(4)
NUM_SAVED = 4

# An eager backend wants tiles that fit its buffers, and only rows that are to be computed.
FUSED = False

_FLOOR = -1e4  # below this exp is exactly 0 in every type, while products with d stay finite


class Scratch:
    """Three work buffers that all tiles of a call share: fresh memory costs more than the arithmetic."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self._buffers = [torch.empty(0, dtype=dtype, device=device) for _ in range(3)]

    def __call__(self, index: int, shape: tuple[int, int]) -> Tensor:
        """Buffer ``index``, as a tensor of ``shape`` with undefined content."""
        numel = shape[0] * shape[1]
        if self._buffers[index].numel() < numel:
            self._buffers[index] = self._buffers[index].new_empty(numel)
        return self._buffers[index][:numel].view(shape)


def empty_partials(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Partial sums of no logits at all, shape ``(7, rows)``."""
    partials = torch.zeros(NUM_PARTIALS, rows, dtype=dtype, device=device)
    partials[M] = torch.finfo(dtype).min
    partials[ZY] = -torch.inf
    return partials


def rescale(partials: Tensor, m: Tensor, inv_t: Tensor) -> Tensor:
    """Partial sums relative to a larger maximum ``m``; the label's logit is left alone."""
    old, s1, s2, zy, s3, q1, q2 = partials
    shift = ((m - old) * inv_t).clamp(max=-_FLOOR)
    f = (-shift).exp()
    return torch.stack(
        (
            m,
            f * s1,
            f * (s2 - shift * s1),
            zy,
            f * (s3 - 2 * shift * s2 + shift.square() * s1),
            f * f * q1,
            f * f * (q2 - shift * q1),
        )
    )


def merge(a: Tensor, b: Tensor, inv_t: Tensor) -> Tensor:
    """Partial sums of two disjoint parts of the vocabulary, joined."""
    m = torch.maximum(a[M], b[M])
    a, b = rescale(a, m, inv_t), rescale(b, m, inv_t)
    total = a + b
    total[M] = m
    total[ZY] = torch.maximum(a[ZY], b[ZY])
    return total


def fold_tile(
    tile: Tensor,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    partials: Tensor,
    *,
    second: bool,
    square: bool,
    scratch: Scratch,
    overwrite: bool = False,
) -> None:
    """Add ``tile`` (vocabulary entries ``start``, ``start + 1``, ...) to ``partials`` in place.

    ``second`` asks for s3 (varentropy), ``square`` for q1 and q2 (collision and covariance);
    ``overwrite`` allows the tile's own memory to be used for work.
    """
    shape = (tile.shape[0], tile.shape[1])
    if tile.dtype != partials.dtype and not overwrite:
        # Widened once: maxima and differences of half-precision numbers are slow on a CPU.
        tile, overwrite = scratch(0, shape).copy_(tile), True
    own = empty_partials(shape[0], partials.dtype, partials.device)
    own[M] = torch.maximum(own[M], tile.amax(-1).to(own.dtype))
    if labels is not None:
        own[ZY] = _pick(tile, labels - start)
    d, e = tile if overwrite else scratch(0, shape), scratch(1, shape)
    torch.sub(tile, own[M].unsqueeze(1), out=d)
    if scale_matters(inv_t):
        d.mul_(inv_t.unsqueeze(1))
    d.clamp_(min=_FLOOR)  # -inf logits: e = 0 and e * d = 0 instead of NaN
    torch.exp(d, out=e)
    own[S1] = e.sum(-1)
    # Without the other sums d itself may be overwritten, which saves a buffer's traffic.
    ed = torch.mul(d, e, out=scratch(2, shape) if second or square else d)
    own[S2] = ed.sum(-1)
    if second:
        own[S3] = torch.linalg.vecdot(d, ed)
    if square:
        own[Q1] = torch.linalg.vecdot(e, e)
        own[Q2] = torch.linalg.vecdot(e, ed)
    if partials.device.type == "cpu" and not partials[S1].any():
        partials.copy_(own)  # a row's first tile: with whole rows, the merge would cost a tenth of the time
    else:
        partials.copy_(merge(partials, own, inv_t))


def scale_matters(inv_t: Tensor) -> bool:
    """Whether any temperature differs from 1 (always yes on a GPU, where asking would cost a sync)."""
    return inv_t.device.type != "cpu" or bool((inv_t != 1).any())


def _pick(tile: Tensor, columns: Tensor) -> Tensor:
    inside = (columns >= 0) & (columns < tile.shape[1])
    picked = tile.gather(1, torch.where(inside, columns, 0).unsqueeze(1)).squeeze(1)
    return torch.where(inside, picked, -torch.inf)


def finalize(partials: Tensor, inv_t: Tensor) -> tuple[Tensor, Tensor]:
    """``(values [7, R], saved [4, R])`` from complete partial sums."""
    m, s1, s2, zy, s3, q1, q2 = partials
    log_s1 = s1.log()
    mean_d = s2 / s1
    values = torch.stack(
        (
            (zy - m) * inv_t - log_s1,
            log_s1 - mean_d,
            m * inv_t + log_s1,
            (s3 / s1 - mean_d.square()).clamp(min=0),
            q1 / s1.square(),
            (q2 - q1 * mean_d) / s1.square(),
            torch.zeros_like(m),
        )
    )
    return values, torch.stack((m, log_s1, torch.zeros_like(m), torch.zeros_like(m)))


def nucleus_mask(tile: Tensor, size: Tensor) -> Tensor:
    """The ``size`` largest entries of each row (ties: lowest index first)."""
    order = tile.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(tile.shape[1], device=tile.device)
    return torch.zeros_like(tile, dtype=torch.bool).scatter_(1, order, rank < size.unsqueeze(1))


def fold_nucleus(
    tile: Tensor, inv_t: Tensor, values: Tensor, saved: Tensor, top_p: float, include_crossing: bool, top_k: int
) -> None:
    """Entropy of the renormalized nucleus of each row (the tile must hold the whole vocabulary), in place.

    The nucleus holds at most ``top_k`` entries; 0 is no bound.
    """
    log_p = ((tile - saved[SHIFT].unsqueeze(1)) * inv_t.unsqueeze(1) - saved[LOG_S1].unsqueeze(1)).clamp_(min=_FLOOR)
    ordered = log_p.sort(dim=-1, descending=True).values
    p = ordered.exp()
    cumulative = p.cumsum(-1)
    kept = (cumulative - p < top_p) if include_crossing else (cumulative < top_p)
    kept &= p > 0
    if top_k:
        kept[:, top_k:] = False
    mass, size = (p * kept).sum(-1), kept.sum(-1)
    log_mass = torch.where(mass > 0, mass, 1.0).log()
    # One token alone has entropy 0, not the rounding error of log(exp(x)) - x, which would rank such tokens.
    log_mass = torch.where(size == 1, ordered[:, 0], log_mass)
    saved[NUCLEUS_SIZE] = size.to(saved.dtype)
    saved[NUCLEUS_LOG_MASS] = log_mass
    q = (ordered - log_mass.unsqueeze(1)).exp() * kept
    values[TOP_P_ENTROPY] = (q * (log_mass.unsqueeze(1) - ordered)).sum(-1)


def coefficients(grad: Tensor, values: Tensor, inv_t: Tensor, higher: bool = True) -> Tensor:
    """Rows ``(label, a0, a1, a2, b0, b1)`` of the gradient's common form, temperature included."""
    g_logp, g_h, g_z, g_var, g_c, g_cov, _ = grad
    if not higher:  # with few rows in a tile the terms below are felt, even where they are zero
        none = torch.zeros_like(g_h)
        return inv_t * torch.stack((g_logp, g_z - g_logp, -g_h, none, none, none))
    var, c, cov = values[VARENTROPY], values[COLLISION], values[ENTROPY_COVARIANCE]
    return inv_t * torch.stack(
        (
            g_logp,
            g_z - g_logp - g_var * var - 2 * g_c * c - g_cov * (2 * cov + c),
            2 * g_var - g_h - g_cov * c,
            g_var,
            2 * g_c + g_cov,
            2 * g_cov,
        )
    )


def grad_tile(
    tile: Tensor,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    values: Tensor,
    saved: Tensor,
    grad: Tensor,
    *,
    higher: bool,
    nucleus: bool,
    scratch: Scratch,
    out: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Gradient with respect to the tile's logits, in ``out`` or a buffer that the next call overwrites.

    ``grad`` holds the upstream gradients of the seven values, shape ``(7, R)``; ``higher`` says that some
    may concern more than log-prob, entropy and normalizer, ``nucleus`` that the top-p entropy was asked for.
    ``overwrite`` allows the tile's own memory to be used for work.
    """
    shape = (tile.shape[0], tile.shape[1])
    label, a0, a1, a2, b0, b1 = coefficients(grad, values, inv_t, higher)
    d = tile if overwrite and not nucleus else scratch(0, shape)
    p = scratch(1, shape) if out is None else out
    if tile.dtype == d.dtype:
        torch.sub(tile, saved[SHIFT].unsqueeze(1), out=d)
    else:  # widened first, as in fold_tile
        d.copy_(tile).sub_(saved[SHIFT].unsqueeze(1))
    if scale_matters(inv_t):
        d.mul_(inv_t.unsqueeze(1))
    log_s1 = saved[LOG_S1]
    inv_s1 = (-log_s1).exp()
    if higher:
        d.sub_(log_s1.unsqueeze(1))
    d.clamp_(min=_FLOOR)
    torch.exp(d, out=p)
    if higher:
        s = d.add_(values[ENTROPY].unsqueeze(1))
        poly = a0.unsqueeze(1) + s * (a1.unsqueeze(1) + s * a2.unsqueeze(1))
        p.mul_(poly.addcmul_(p, b0.unsqueeze(1) + s * b1.unsqueeze(1)))
    elif d.device.type != "cpu" or a1.any():
        # p = e^d / s1 and s = d - log s1 + H, multiplied out so that one product and one sum do
        slope, offset = a1 * inv_s1, (a0 + a1 * (values[ENTROPY] - log_s1)) * inv_s1
        p.mul_(d.mul_(slope.unsqueeze(1)).add_(offset.unsqueeze(1)))
    else:
        p.mul_((a0 * inv_s1).unsqueeze(1))
    if nucleus:
        p.add_(_nucleus_grad(tile, inv_t, values, saved, grad))
    if labels is not None:
        column = labels - start
        inside = (column >= 0) & (column < shape[1])
        p.scatter_add_(1, torch.where(inside, column, 0).unsqueeze(1), torch.where(inside, label, 0.0).unsqueeze(1))
    return p


def _nucleus_grad(tile: Tensor, inv_t: Tensor, values: Tensor, saved: Tensor, grad: Tensor) -> Tensor:
    # Membership is found again by rank, not by a threshold: a recomputed logit may differ in its last bit.
    kept = nucleus_mask(tile, saved[NUCLEUS_SIZE])
    offset = saved[LOG_S1] + saved[NUCLEUS_LOG_MASS]
    log_q = ((tile - saved[SHIFT].unsqueeze(1)) * inv_t.unsqueeze(1) - offset.unsqueeze(1)).clamp_(min=_FLOOR)
    weight = -(grad[TOP_P_ENTROPY] * inv_t).unsqueeze(1)
    return weight * log_q.exp() * (log_q + values[TOP_P_ENTROPY].unsqueeze(1)) * kept
