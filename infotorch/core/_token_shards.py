"""Token statistics of a vocabulary that is split over processes (tensor parallelism).

Each process folds its own part of the vocabulary into partial sums; a few numbers a row are then combined over the
group, and the gradient of each part needs no further communication but the sum over the group of what hidden states
receive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infotorch.core import _tiles, _token_ops, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class VocabShard:
    """Which part of the vocabulary this process holds, under tensor parallelism.

    Attributes:
        start: Index in the full vocabulary of the first entry held here.
        group: Process group over which the vocabulary is split; the default group if None.
    """

    start: int
    group: ProcessGroup | None = None


def _combine(partials: Tensor, inv_t: Tensor, group: ProcessGroup | None) -> Tensor:
    """Partial sums of the whole vocabulary from each process's own: two reductions of a few numbers a row."""
    largest = distributed.all_reduce_max(partials[[_tiles.M, _tiles.ZY]], group)
    own = _tiles.rescale(partials, largest[0], inv_t)
    own[_tiles.ZY] = 0  # keep -inf out of the sum
    total = distributed.all_reduce_sum(own, group)
    total[_tiles.M], total[_tiles.ZY] = largest
    return total


class ShardedLogits(torch.autograd.Function):
    """Values ``[7, N]`` from this process's logits; the gradient is that of the local part."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, common: tuple[Any, ...], shard: VocabShard) -> Tensor:
        labels, mask, inv_t, second, square, _, _, _, backend = common
        partials = _token_ops.fold_masked_logits(logits, labels, shard.start, inv_t, mask, second, square, backend)
        values, saved = _tiles.finalize(_combine(partials, inv_t, shard.group), inv_t)
        values = _token_ops.clear_inactive(values, mask)
        ctx.save_for_backward(logits, labels, mask, inv_t, values, saved)
        ctx.options = (shard.start, second or square, backend)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, mask, inv_t, values, saved = ctx.saved_tensors
        start, higher, backend = ctx.options
        grad = _token_ops.under_mask(grads[0], mask)
        local = _token_ops.grad_logits(grad, logits, labels, start, inv_t, values, saved, higher, False, backend)
        return local, None, None


class ShardedHidden(torch.autograd.Function):
    """Values ``[7, N]`` from hidden states and this process's part of the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        common: tuple[Any, ...],
        shard: VocabShard,
    ) -> Tensor:
        labels, mask, inv_t, second, square, _, _, _, backend = common
        partials = _token_ops.fold_hidden(hidden, weight, bias, labels, shard.start, inv_t, second, square, backend)
        values, saved = _tiles.finalize(_combine(partials, inv_t, shard.group), inv_t)
        values = _token_ops.clear_inactive(values, mask)
        ctx.save_for_backward(hidden, weight, bias, labels, mask, inv_t, values, saved)
        ctx.options = (shard, second or square, backend)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, mask, inv_t, values, saved = ctx.saved_tensors
        shard, higher, backend = ctx.options
        grad = _token_ops.under_mask(grads[0], mask)
        needs = tuple(ctx.needs_input_grad[:3])
        local = _token_ops.grad_hidden(
            grad,
            hidden,
            weight,
            bias,
            labels,
            shard.start,
            inv_t,
            values,
            saved,
            higher,
            False,
            needs,
            backend,
        )
        out: list[Tensor | None] = [g if need else None for g, need in zip(local, needs, strict=True)]
        if out[0] is not None:  # every process holds all of hidden, and a part of its gradient
            out[0] = distributed.all_reduce_sum(out[0], shard.group)
        return *out, None, None
