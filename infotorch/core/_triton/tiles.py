"""The two functions of :mod:`infotorch.core._tiles`, one pass over memory each.

One program handles one row, or a part of a long row, in blocks along the vocabulary. Two things go beyond the
eager functions, and :mod:`infotorch.core._token_ops` counts on them (``FUSED``): tiles may be the whole logits,
of shape ``[R, v]`` or ``[B, T, v]`` with any row strides and any floating type, and rows are skipped without
the host having to know which: those whose inverse temperature is not positive are not folded, those whose
upstream gradients are all zero get zeros.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from infotorch.core import _tiles

FUSED = True

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_PROGRAMS = 1024  # enough to fill a large GPU several times; fewer rows than that are split
_MERGE_ROWS = 128

# exp is exactly 0 below, while products with it stay finite (as in _tiles)
_FLOOR = tl.constexpr(_tiles._FLOOR)


@triton.jit
def _merge(
    m,
    s1,
    s2,
    s3,
    q1,
    q2,
    other_m,
    other_s1,
    other_s2,
    other_s3,
    other_q1,
    other_q2,
    inv_t,
    SECOND: tl.constexpr,
    SQUARE: tl.constexpr,
):
    """Partial sums of two parts of a row, relative to the larger of their maxima."""
    largest = tl.maximum(m, other_m)
    shift = tl.minimum((largest - m) * inv_t, -_FLOOR)
    other_shift = tl.minimum((largest - other_m) * inv_t, -_FLOOR)
    f = tl.exp(-shift)
    g = tl.exp(-other_shift)
    if SQUARE:
        q2 = f * f * (q2 - shift * q1) + g * g * (other_q2 - other_shift * other_q1)
        q1 = f * f * q1 + g * g * other_q1
    if SECOND:
        s3 = f * (s3 + shift * (shift * s1 - 2 * s2))
        s3 += g * (other_s3 + other_shift * (other_shift * other_s1 - 2 * other_s2))
    s2 = f * (s2 - shift * s1) + g * (other_s2 - other_shift * other_s1)
    s1 = f * s1 + g * other_s1
    return largest, s1, s2, s3, q1, q2


@triton.jit
def _fold_kernel(
    tile,
    labels,
    inv_ts,
    partials,
    columns,
    start,
    inner,
    outer_stride,
    inner_stride,
    partial_stride,
    part_stride,
    part_columns,
    LOWEST: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    SECOND: tl.constexpr,
    SQUARE: tl.constexpr,
    FRESH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fold a part of a row; write its partial sums (``FRESH``) or merge them into those that are there."""
    ACC: tl.constexpr = inv_ts.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    inv_t = tl.load(inv_ts + row)
    if inv_t > 0:
        logits = tile + (row // inner) * outer_stride + (row % inner) * inner_stride
        lanes = tl.arange(0, BLOCK)
        m = tl.full((), LOWEST, ACC)
        # Sums stay per lane, all relative to the row's running maximum, so that the loop holds a single
        # reduction across the block.
        s1 = tl.zeros((BLOCK,), ACC)
        s2 = tl.zeros((BLOCK,), ACC)
        s3 = tl.zeros((BLOCK,), ACC)
        q1 = tl.zeros((BLOCK,), ACC)
        q2 = tl.zeros((BLOCK,), ACC)
        first = part * part_columns
        for offset in range(first, tl.minimum(first + part_columns, columns), BLOCK):
            column = offset + lanes
            x = tl.load(logits + column, mask=column < columns, other=float("-inf")).to(ACC)
            largest = tl.maximum(m, tl.max(x, 0))
            shift = tl.minimum((largest - m) * inv_t, -_FLOOR)
            f = tl.exp(-shift)
            d = (x - largest) * inv_t
            d = tl.where(d < _FLOOR, _FLOOR, d)  # unlike maximum, this lets NaN through
            e = tl.exp(d)
            ed = e * d
            if SQUARE:
                q2 = f * f * (q2 - shift * q1) + e * ed
                q1 = f * f * q1 + e * e
            if SECOND:
                s3 = f * (s3 + shift * (shift * s1 - 2 * s2)) + ed * d
            s2 = f * (s2 - shift * s1) + ed
            s1 = f * s1 + e
            m = largest
        t1 = tl.sum(s1, 0)
        t2 = tl.sum(s2, 0)
        t3 = tl.sum(s3, 0)
        u1 = tl.sum(q1, 0)
        u2 = tl.sum(q2, 0)
        zy = tl.full((), float("-inf"), ACC)
        if HAS_LABELS:
            label = tl.load(labels + row) - start
            inside = (label >= 0) & (label < columns) & (part == 0)
            zy = tl.load(logits + label, mask=inside, other=float("-inf")).to(ACC)
        own = partials + part * part_stride + row
        if not FRESH:
            m, t1, t2, t3, u1, u2 = _merge(
                tl.load(own),
                tl.load(own + partial_stride),
                tl.load(own + 2 * partial_stride),
                tl.load(own + 4 * partial_stride),
                tl.load(own + 5 * partial_stride),
                tl.load(own + 6 * partial_stride),
                m,
                t1,
                t2,
                t3,
                u1,
                u2,
                inv_t,
                SECOND,
                SQUARE,
            )
            zy = tl.maximum(zy, tl.load(own + 3 * partial_stride))
        tl.store(own, m)
        tl.store(own + partial_stride, t1)
        tl.store(own + 2 * partial_stride, t2)
        tl.store(own + 3 * partial_stride, zy)
        tl.store(own + 4 * partial_stride, t3)
        tl.store(own + 5 * partial_stride, u1)
        tl.store(own + 6 * partial_stride, u2)


@triton.jit
def _merge_kernel(
    parts,
    inv_ts,
    partials,
    rows,
    num_parts,
    partial_stride,
    SECOND: tl.constexpr,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge ``parts [num_parts, 7, rows]`` into ``partials [7, rows]``."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = row < rows
    inv_t = tl.load(inv_ts + row, mask=valid, other=0)
    valid = valid & (inv_t > 0)
    own = partials + row
    m = tl.load(own, mask=valid, other=0)
    s1 = tl.load(own + partial_stride, mask=valid, other=0)
    s2 = tl.load(own + 2 * partial_stride, mask=valid, other=0)
    zy = tl.load(own + 3 * partial_stride, mask=valid, other=0)
    s3 = tl.load(own + 4 * partial_stride, mask=valid, other=0)
    q1 = tl.load(own + 5 * partial_stride, mask=valid, other=0)
    q2 = tl.load(own + 6 * partial_stride, mask=valid, other=0)
    part = parts + row
    for _ in range(num_parts):
        m, s1, s2, s3, q1, q2 = _merge(
            m,
            s1,
            s2,
            s3,
            q1,
            q2,
            tl.load(part, mask=valid, other=0),
            tl.load(part + rows, mask=valid, other=0),
            tl.load(part + 2 * rows, mask=valid, other=0),
            tl.load(part + 4 * rows, mask=valid, other=0),
            tl.load(part + 5 * rows, mask=valid, other=0),
            tl.load(part + 6 * rows, mask=valid, other=0),
            inv_t,
            SECOND,
            SQUARE,
        )
        zy = tl.maximum(zy, tl.load(part + 3 * rows, mask=valid, other=0))
        part += 7 * rows
    tl.store(own, m, mask=valid)
    tl.store(own + partial_stride, s1, mask=valid)
    tl.store(own + 2 * partial_stride, s2, mask=valid)
    tl.store(own + 3 * partial_stride, zy, mask=valid)
    tl.store(own + 4 * partial_stride, s3, mask=valid)
    tl.store(own + 5 * partial_stride, q1, mask=valid)
    tl.store(own + 6 * partial_stride, q2, mask=valid)


@triton.jit
def _grad_kernel(
    tile,
    labels,
    inv_ts,
    values,
    saved,
    grads,
    out,
    columns,
    start,
    inner,
    outer_stride,
    inner_stride,
    out_stride,
    value_stride,
    saved_stride,
    grad_stride,
    part_columns,
    HAS_LABELS: tl.constexpr,
    HIGHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of a part of a row; see ``_tiles.coefficients`` for its form."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * part_columns
    last = tl.minimum(first + part_columns, columns)
    lanes = tl.arange(0, BLOCK)
    result = out + row * out_stride
    grad = grads + row
    g_logp = tl.load(grad)
    g_h = tl.load(grad + grad_stride)
    g_z = tl.load(grad + 2 * grad_stride)
    live = (g_logp != 0) | (g_h != 0) | (g_z != 0)
    if HIGHER:
        g_var = tl.load(grad + 3 * grad_stride)
        g_c = tl.load(grad + 4 * grad_stride)
        g_cov = tl.load(grad + 5 * grad_stride)
        live = live | (g_var != 0) | (g_c != 0) | (g_cov != 0)
    if live:
        inv_t = tl.load(inv_ts + row)
        shift = tl.load(saved + row)
        log_s1 = tl.load(saved + saved_stride + row)
        value = values + row
        h = tl.load(value + value_stride)
        a0 = g_z - g_logp
        a1 = -g_h
        if HIGHER:
            var = tl.load(value + 3 * value_stride)
            c = tl.load(value + 4 * value_stride)
            cov = tl.load(value + 5 * value_stride)
            a0 = a0 - g_var * var - 2 * g_c * c - g_cov * (2 * cov + c)
            a1 = a1 + 2 * g_var - g_cov * c
            a2 = g_var * inv_t
            b0 = (2 * g_c + g_cov) * inv_t
            b1 = 2 * g_cov * inv_t
        a0 = a0 * inv_t
        a1 = a1 * inv_t
        if HAS_LABELS:
            label = tl.load(labels + row) - start
            at_label = g_logp * inv_t
        logits = tile + (row // inner) * outer_stride + (row % inner) * inner_stride
        for offset in range(first, last, BLOCK):
            column = offset + lanes
            inside = column < columns
            x = tl.load(logits + column, mask=inside, other=float("-inf")).to(shift.dtype)
            log_p = (x - shift) * inv_t - log_s1
            log_p = tl.where(log_p < _FLOOR, _FLOOR, log_p)
            p = tl.exp(log_p)
            s = log_p + h
            poly = a0 + s * a1
            if HIGHER:
                poly = a0 + s * (a1 + s * a2) + p * (b0 + s * b1)
            g = p * poly
            if HAS_LABELS:
                g = tl.where(column == label, g + at_label, g)
            tl.store(result + column, g.to(out.dtype.element_ty), mask=inside)
    else:
        zero = tl.zeros((BLOCK,), out.dtype.element_ty)
        for offset in range(first, last, BLOCK):
            column = offset + lanes
            tl.store(result + column, zero, mask=column < columns)


def fold_tile(
    tile: Tensor,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    partials: Tensor,
    *,
    second: bool,
    square: bool,
    scratch: _tiles.Scratch,
    overwrite: bool = False,
) -> None:
    """Add ``tile [..., v]`` to ``partials [7, R]`` in place; rows without positive ``inv_t`` are left alone.

    ``scratch`` and ``overwrite`` are there for the eager function's sake; no work memory is needed.
    """
    tile, inner, outer_stride, inner_stride = _layout(tile)
    rows, columns = inv_t.shape[0], tile.shape[-1]
    if rows == 0:
        return
    if partials.stride(1) != 1:
        raise ValueError(f"partials: expected unit stride along the rows, got {partials.stride()}")
    inv_t = inv_t.contiguous()
    block, warps = _block(columns, 2048 if second or square else 4096)
    num_parts = max(1, min(triton.cdiv(_PROGRAMS, rows), triton.cdiv(columns, 2 * block)))
    part_columns = triton.cdiv(triton.cdiv(columns, num_parts), block) * block
    num_parts = triton.cdiv(columns, part_columns)
    split = num_parts > 1
    into = partials.new_empty(num_parts, _tiles.NUM_PARTIALS, rows) if split else partials.unsqueeze(0)
    with _on(tile.device):
        _fold_kernel[(rows, num_parts)](
            tile,
            inv_t if labels is None else labels.contiguous(),
            inv_t,
            into,
            columns,
            start,
            inner,
            outer_stride,
            inner_stride,
            into.stride(1),
            into.stride(0),
            part_columns,
            LOWEST=torch.finfo(inv_t.dtype).min,
            HAS_LABELS=labels is not None,
            SECOND=second,
            SQUARE=square,
            FRESH=split,
            BLOCK=block,
            num_warps=warps,
        )
        if split:
            _merge_kernel[(triton.cdiv(rows, _MERGE_ROWS),)](
                into,
                inv_t,
                partials,
                rows,
                num_parts,
                partials.stride(0),
                SECOND=second,
                SQUARE=square,
                BLOCK=_MERGE_ROWS,
                num_warps=_MERGE_ROWS // 32,
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
    scratch: _tiles.Scratch,
    out: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Gradient with respect to the tile's logits, in ``out [R, v]``, else in the tile itself or in new memory.

    With ``nucleus`` the tile must be ``[R, v]``, and without ``out`` the result has the accumulator's type.
    """
    original = tile
    tile, inner, outer_stride, inner_stride = _layout(tile)
    rows, columns = inv_t.shape[0], tile.shape[-1]
    result = out
    if nucleus:
        # The nucleus' share is added in full precision, before the result is rounded to its type.
        result = scratch(1, (rows, columns))
    elif result is None:
        reusable = overwrite and tile is original and tile.ndim == 2
        result = tile if reusable else tile.new_empty(rows, columns)
    if rows:
        inv_t, values, saved, grad = (t.contiguous() for t in (inv_t, values, saved, grad))
        block, warps = _block(columns, 4096)
        part_columns = 4 * block
        with _on(tile.device):
            _grad_kernel[(rows, triton.cdiv(columns, part_columns))](
                tile,
                inv_t if labels is None else labels.contiguous(),
                inv_t,
                values,
                saved,
                grad,
                result,
                columns,
                start,
                inner,
                outer_stride,
                inner_stride,
                result.stride(0),
                values.stride(0),
                saved.stride(0),
                grad.stride(0),
                part_columns,
                HAS_LABELS=labels is not None,
                HIGHER=higher,
                BLOCK=block,
                num_warps=warps,
            )
    if nucleus:
        result.add_(_tiles._nucleus_grad(original, inv_t, values, saved, grad))
        return result if out is None else out.copy_(result)
    return result


def _layout(tile: Tensor) -> tuple[Tensor, int, int, int]:
    """``(tile, inner, outer stride, inner stride)``: row ``r`` starts at ``r // inner`` and ``r % inner`` strides.

    A view wherever two strides can say it (``[R, v]``, ``[B, T, v]``, slices of them), a copy elsewhere.
    """
    if tile.device.type != "cuda" and not _INTERPRETED:
        raise ValueError(f"backend: expected CUDA tensors for 'triton', got {tile.device.type}")
    if tile.ndim < 2:
        tile = tile.reshape(1, -1)
    if tile.stride(-1) != 1 and tile.shape[-1] > 1:
        tile = tile.contiguous()
    if tile.ndim > 3:
        tile = tile.flatten(0, -3)
    if tile.ndim == 2:
        return tile, max(1, tile.shape[0]), 0, tile.stride(0)
    return tile, max(1, tile.shape[1]), tile.stride(0), tile.stride(1)


def _block(columns: int, largest: int) -> tuple[int, int]:
    """Block length along the vocabulary and the number of warps that share it."""
    block = min(largest, max(128, triton.next_power_of_2(columns)))
    return block, max(1, block * 8 // largest)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
