"""Masked reductions: the one place where a mask meets a denominator.

Entries outside the mask are replaced by zero before anything is summed, so padding may hold anything,
NaN and infinities included, and gets a gradient of exactly zero. An empty mask gives 0, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core._choice import zero_outside

AGGREGATION_MODES = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
    "batch-mean-token-sum",
    "batch-mean-token-mean",
    "batch-mean-token-sum-norm",
)


def masked_sum(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Sum of the entries under the mask, ``sum_i m_i x_i``.

    Args:
        x: Any shape.
        mask: Boolean, broadcastable to ``x``.
        dim: Dimension(s) to reduce; all of them by default.

    Raises:
        TypeError: ``mask`` is not boolean.

    >>> masked_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True]))
    tensor(5.)
    """
    check_bool_mask("mask", mask)
    kept = zero_outside(x, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_count(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Number of entries of ``x`` under the mask, in ``x``'s floating type."""
    mask = mask.expand_as(x)
    return (mask.sum() if dim is None else mask.sum(dim)).to(x.dtype)


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of the entries under the mask; 0 where none is.

    Raises:
        TypeError: ``mask`` is not boolean.

    >>> x, mask = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, True], [False, False]])
    >>> masked_mean(x, mask, dim=1)
    tensor([2., 0.])
    """
    return masked_sum(x, mask, dim) / masked_count(x, mask, dim).clamp(min=1)


def masked_share(condition: Tensor, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Share of the entries under the mask for which a condition holds; 0 where there are none.

    Raises:
        TypeError: One of the two is not boolean.

    >>> masked_share(torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    tensor(0.5000)
    """
    check_bool_mask("condition", condition)
    check_bool_mask("mask", mask)
    return (condition & mask).sum().to(dtype) / mask.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None, *, correction: float = 1.0) -> Tensor:
    """Variance of the entries under the mask, ``sum m (x - mean)^2 / (n - correction)``.

    With ``n <= correction`` there is no variance to speak of and the result is 0.

    Raises:
        TypeError: ``mask`` is not boolean.

    >>> masked_var(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    check_bool_mask("mask", mask)
    mean = masked_mean(x, mask, dim)
    if dim is not None:
        mean = masked_mean(x, mask, dim).reshape(_keepdim_shape(x, dim))
    squares = masked_sum((zero_outside(x, mask) - mean).square(), mask, dim)
    denominator = masked_count(x, mask, dim) - correction
    return torch.where(denominator > 0, squares / denominator.clamp(min=torch.finfo(x.dtype).tiny), 0.0)


def _keepdim_shape(x: Tensor, dim: int | tuple[int, ...]) -> list[int]:
    dims = {d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)}
    return [1 if i in dims else n for i, n in enumerate(x.shape)]


def segment_ids(*keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """Number the distinct tuples of integer keys ``0, 1, ...`` in lexicographic order; -1 outside the mask.

    With ``(trajectory, turn)`` as keys, the segment after a turn is the trajectory's next turn, if there is one. Shapes
    are fixed (``unique`` would not compile).

    Args:
        keys: Integer tensors that broadcast to one shape, the most significant first.
        mask: Boolean, of that shape: which entries to number.

    Raises:
        ValueError: No key.
        TypeError: A key that holds no integers, a mask that is not boolean.

    >>> turn = torch.tensor([[4, 4, 9], [9, 9, 4]])
    >>> row = torch.arange(2).unsqueeze(1)
    >>> segment_ids(row, turn, mask=turn.new_ones(2, 3, dtype=torch.bool))
    tensor([[0, 0, 1],
            [3, 3, 2]])
    """
    if not keys:
        raise ValueError("keys: expected at least one tensor, got none")
    for key in keys:
        if key.is_floating_point() or key.dtype == torch.bool:
            raise TypeError(f"keys: expected integers, got {key.dtype}")
    keys = torch.broadcast_tensors(*keys)
    shape, flat = keys[0].shape, [key.reshape(-1) for key in keys]
    valid = torch.ones_like(flat[0], dtype=torch.bool)
    if mask is not None:
        valid = check_bool_mask("mask", mask, shape).reshape(-1)
    order = torch.arange(valid.numel(), device=valid.device)
    for key in (*reversed(flat), (~valid).to(torch.uint8)):  # least significant first; entries outside come last
        order = order[key[order].sort(stable=True).indices]
    starts = torch.zeros_like(valid)
    for key in flat:
        ordered = key[order]
        starts[1:] |= ordered[1:] != ordered[:-1]
    number = starts.to(torch.int64).cumsum(0)
    return torch.where(valid, torch.empty_like(number).scatter_(0, order, number), -1).reshape(shape)


def segment_sum(x: Tensor, segment: Tensor, size: int | None = None) -> Tensor:
    """Sum of ``x`` over each segment, with gradient; entries of a negative segment may hold anything.

    Args:
        x: Any shape; half precision is summed in float32.
        segment: Integers of that shape, below ``size``; negative where an entry belongs to none.
        size: Number of segments; default: the number of entries, which always suffices and is known beforehand.

    Returns:
        Shape ``(size,)``, 0 for segments without an entry.

    Raises:
        ValueError: Shapes that differ.

    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0, float("nan")]), torch.tensor([0, 2, 0, -1]), 3)
    tensor([5., 0., 2.])
    """
    if x.shape != segment.shape:
        raise ValueError(f"segment: expected shape {tuple(x.shape)}, as x has, got {tuple(segment.shape)}")
    size = segment.numel() if size is None else size
    index = torch.where(segment >= 0, segment, size).reshape(-1)  # one slot more for what belongs to none
    kept = zero_outside(x, segment >= 0).reshape(-1)
    kept = kept.float() if kept.dtype in (torch.bfloat16, torch.float16) else kept
    return kept.new_zeros(size + 1).index_add(0, index, kept)[:size]


def segment_count(segment: Tensor, size: int | None = None) -> Tensor:
    """Number of entries of each segment, int64 ``(size,)``; see :func:`segment_sum`.

    >>> segment_count(torch.tensor([[0, 2], [0, -1]]), 3)
    tensor([2, 0, 1])
    """
    return segment_sum(torch.ones_like(segment, dtype=torch.int64), segment, size)


def segment_mean(x: Tensor, segment: Tensor, size: int | None = None) -> Tensor:
    """Mean of ``x`` over each segment, with gradient; 0 for segments without an entry.

    The mean entropy of every turn, say, with ``segment`` from :func:`segment_ids`; arguments as for
    :func:`segment_sum`. :func:`segment_spread` takes it back to the entries.

    Raises:
        ValueError: Shapes that differ.

    >>> segment_mean(torch.tensor([1.0, 2.0, 4.0, float("nan")]), torch.tensor([0, 2, 0, -1]), 3)
    tensor([2.5000, 0.0000, 2.0000])
    """
    return segment_sum(x, segment, size) / segment_count(segment, size).clamp(min=1)


def segment_spread(values: Tensor, segment: Tensor) -> Tensor:
    """Every entry's segment's value, 0 (with gradient 0) where an entry belongs to none; the shape of ``segment``.

    >>> segment_spread(torch.tensor([2.5, 0.0, 2.0]), torch.tensor([[0, 2], [0, -1]]))
    tensor([[2.5000, 2.0000],
            [2.5000, 0.0000]])
    """
    return zero_outside(values[segment.clamp(min=0)], segment >= 0)


def masked_quantile(
    x: Tensor, mask: Tensor, q: float, dim: int | None = None, *, interpolation: str = "linear"
) -> Tensor:
    """Quantile of the entries under the mask, as ``torch.quantile``, with fixed shapes and no limit on the size.

    Args:
        x: Any shape.
        mask: Boolean, of the same shape.
        q: In ``[0, 1]``; 0.5 is the median.
        dim: Dimension to reduce; all of them by default.
        interpolation: ``"linear"``, or ``"nearest"``: the entry of rank ``q * (n - 1)``, rounded half to even.

    Returns:
        Without ``dim``, in float32 for half precision; NaN where the mask is empty, since there is no such value.

    Raises:
        ValueError: ``q`` out of range, unknown interpolation, a mask of another shape.
        TypeError: ``mask`` is not boolean.

    >>> x = torch.tensor([[1.0, 2.0, 9.0], [0.0, 4.0, 8.0]])
    >>> mask = torch.tensor([[True, True, False], [True, True, True]])
    >>> masked_quantile(x, mask, 0.5), masked_quantile(x, mask, 0.5, dim=1)
    (tensor(2.), tensor([1.5000, 4.0000]))
    """
    check_range("q", q, 0.0, 1.0)
    check_choice("interpolation", interpolation, ("linear", "nearest"))
    valid = check_bool_mask("mask", mask, x.shape)
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if dim is None:
        x, valid, dim = x.reshape(-1), valid.reshape(-1), 0
    ordered = torch.where(valid, x, torch.inf).sort(dim).values
    count = valid.sum(dim, keepdim=True)
    last = (count - 1).clamp(min=0).double()
    # The rank of a q rounded to x's type, without further rounding, as torch has it: it decides which of an entry and
    # the quantile that should be that entry is the larger.
    position = torch.tensor(q, dtype=x.dtype, device=x.device).double() * last
    below = position.round() if interpolation == "nearest" else position.floor()
    low = ordered.gather(dim, below.long())
    if interpolation == "linear":
        high = ordered.gather(dim, torch.minimum(below + 1, last).long())
        # Between equal neighbors there is nothing to interpolate, which matters where they are infinite.
        between = torch.lerp(low, high, (position - below).to(x.dtype))
        low = torch.where((low == high) | (position == below), low, between)
    return torch.where(count > 0, low, torch.nan).squeeze(dim)


def aggregate(
    x: Tensor,
    mask: Tensor,
    mode: str = "token-mean",
    *,
    num_tokens: Tensor | float | None = None,
    num_sequences: Tensor | float | None = None,
    length: float | None = None,
    world_size: int = 1,
    row_eps: float = 0.0,
    legacy_norm: bool = False,
) -> Tensor:
    r"""Reduce a ``[B, T]`` matrix of per-token values to a scalar, in every way that RLVR code uses.

    With row sums :math:`S_i = \sum_t m_{it} x_{it}` and row counts :math:`n_i = \sum_t m_{it}`:

    ============================= ==========================================================
    mode                          value
    ============================= ==========================================================
    ``token-mean``                :math:`\sum_i S_i / \sum_i n_i` (DAPO, bnpo)
    ``token-sum``                 :math:`\sum_i S_i`
    ``seq-mean-token-sum``        mean of :math:`S_i` over non-empty rows
    ``seq-mean-token-mean``       mean of :math:`S_i / n_i` over non-empty rows (GRPO)
    ``seq-mean-token-sum-norm``   ``seq-mean-token-sum`` divided by the constant ``length``
    ``batch-mean-token-sum``      mean of :math:`S_i` over all rows (LUSPO)
    ``batch-mean-token-mean``     mean of :math:`S_i / n_i` over all rows (TRL's ``grpo``)
    ``batch-mean-token-sum-norm`` :math:`\sum_i S_i / (B \cdot \mathrm{length})` (Dr. GRPO)
    ============================= ==========================================================

    Args:
        x: Per-token values, shape ``(B, T)``.
        mask: Boolean, shape ``(B, T)``.
        mode: One of the modes above.
        num_tokens: Global number of valid tokens of the optimizer step, over all micro-batches and
            ranks. Default: this batch's own.
        num_sequences: Global number of sequences, likewise.
        length: Divisor of the ``-norm`` modes; default ``T``. A constant (the longest allowed completion)
            is better, since ``T`` changes from batch to batch.
        world_size: Multiplies the result, so that the mean of gradients that data parallelism takes over
            ranks is the gradient of the global objective. Leave at 1 without global counts.
        row_eps: Added to each row's count in ``seq-mean-token-mean`` (verl adds 1e-8).
        legacy_norm: ``seq-mean-token-sum-norm`` does not divide by the number of rows, as verl 0.5, 0.6.

    Raises:
        ValueError: Unknown mode, or a mask of another shape.
        TypeError: The mask is not boolean.

    Deviations:
        An empty mask gives 0 with gradient 0 (verl: NaN). Row means are exact (``row_eps=0``).

    >>> x, mask = torch.tensor([[1.0, 3.0], [8.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    >>> aggregate(x, mask, "token-mean"), aggregate(x, mask, "seq-mean-token-mean")
    (tensor(4.), tensor(5.))
    """
    check_choice("mode", mode, AGGREGATION_MODES)
    aggregation = Aggregation(mode, length=length, row_eps=row_eps, legacy_norm=legacy_norm)
    return aggregation(x, mask, num_tokens=num_tokens, num_sequences=num_sequences, world_size=world_size)


def _at_least_one(count: Tensor | float, like: Tensor) -> Tensor:
    """The divisor as a tensor; zero counts become one, because their numerators are zero too."""
    return torch.as_tensor(count, dtype=like.dtype, device=like.device).clamp(min=1)


@dataclass(frozen=True)
class Aggregation:
    """An aggregation mode together with its options, for configuration files.

    Attributes mirror :func:`aggregate`. Losses accept a mode's name, a mapping or this object.

    >>> Aggregation.of("token-mean")
    Aggregation(mode='token-mean', length=None, row_eps=0.0, legacy_norm=False)
    """

    mode: str = "token-mean"
    length: float | None = None
    row_eps: float = 0.0
    legacy_norm: bool = False

    def __post_init__(self) -> None:
        check_choice("aggregation", self.mode, AGGREGATION_MODES)

    @classmethod
    def of(cls, value: str | Mapping[str, Any] | Aggregation) -> Aggregation:
        """Build one from a mode's name, a mapping of its fields, or another ``Aggregation``."""
        if isinstance(value, Aggregation):
            return value
        if isinstance(value, Mapping):
            return cls(**value)
        return cls(value)

    def __call__(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        num_tokens: Tensor | float | None = None,
        num_sequences: Tensor | float | None = None,
        world_size: int = 1,
    ) -> Tensor:
        """Apply :func:`aggregate` with these options."""
        check_bool_mask("mask", mask, x.shape)
        if x.ndim != 2:
            raise ValueError(f"x: expected shape (B, T), got {tuple(x.shape)}")
        return self.of_zeroed(
            zero_outside(x, mask), mask, num_tokens=num_tokens, num_sequences=num_sequences, world_size=world_size
        )

    def of_zeroed(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        num_tokens: Tensor | float | None = None,
        num_sequences: Tensor | float | None = None,
        world_size: int = 1,
    ) -> Tensor:
        """The same for values that are 0 outside the mask already, unchecked: one pass less.

        The mask may be ones and zeros of a floating type.
        """
        total, count = self._quotient(x, mask, num_tokens, num_sequences)
        value = total if count is None else total / count
        return value if world_size == 1 else value * world_size

    def _quotient(
        self, x: Tensor, mask: Tensor, num_tokens: Tensor | float | None, num_sequences: Tensor | float | None
    ) -> tuple[Tensor, Tensor | None]:
        """What is summed over the batch and what it is divided by, if by anything."""
        if self.mode == "token-sum":
            return x.sum(), None
        if self.mode == "token-mean":
            return x.sum(), _at_least_one(mask.sum() if num_tokens is None else num_tokens, x)

        counts, rows = mask.sum(-1).to(x.dtype), x.sum(-1)
        if self.mode.endswith("token-mean"):
            # Empty rows have sum 0; the clamp only spares them a 0/0.
            rows = rows / (counts + self.row_eps if self.row_eps else counts.clamp(min=1.0))
        if self.mode.endswith("-norm"):
            length = x.shape[1] if self.length is None else self.length
            rows = rows / check_range("length", length, 0.0, low_open=True)
        if self.mode == "seq-mean-token-sum-norm" and self.legacy_norm:
            return rows.sum(), None
        if num_sequences is None:
            num_sequences = counts.clamp(max=1).sum() if self.mode.startswith("seq-") else x.shape[0]
        return rows.sum(), _at_least_one(num_sequences, x)
