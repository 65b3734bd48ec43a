"""The only file that speaks to ``torch.distributed``: counts, sums and gathers that fall back to one process.

Every function is the identity without an initialized process group, so callers need no branches of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_alone = False


def is_active() -> bool:
    """Whether a default process group exists and is in use, see :func:`one_process`."""
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def one_process() -> Iterator[None]:
    """Within this context every function here behaves as in one process: for data gathered from all beforehand.

    >>> with one_process():
    ...     is_active()
    False
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size(group: ProcessGroup | None = None) -> int:
    """Number of processes in the group; 1 without one.

    >>> world_size()
    1
    """
    return dist.get_world_size(group) if is_active() else 1


def rank(group: ProcessGroup | None = None) -> int:
    """This process's index in the group; 0 without one."""
    return dist.get_rank(group) if is_active() else 0


def all_reduce_sum(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum over processes, as a new tensor without gradient.

    >>> all_reduce_sum(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    total = x.detach().clone()
    if is_active():
        dist.all_reduce(total, group=group)
    return total


def all_reduce_max(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Maximum over processes, as a new tensor without gradient."""
    largest = x.detach().clone()
    if is_active():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return largest


class _SumWithGradient(torch.autograd.Function):
    """Sum over ranks; backward sums the upstream gradients, since every rank's loss saw the sum."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group  # pyright: ignore[reportAttributeAccessIssue]
        return all_reduce_sum(x, group)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(grads[0], ctx.group), None  # pyright: ignore[reportAttributeAccessIssue]


def all_reduce_sum_with_grad(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum over processes through which gradients flow back to every process's ``x``.

    The gradient is that of the sum of all ranks' losses; data parallelism then divides by the world size, so
    that a loss which every rank computes alike from global statistics gets exactly its own gradient.
    """
    return _SumWithGradient.apply(x, group) if is_active() else x


def from_first_rank(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Rank 0's ``x`` on every process, as a new tensor without gradient."""
    shared = x.detach().clone()
    if is_active():
        dist.broadcast(shared, group=group, group_src=0)
    return shared


def gather_cat(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Concatenate every process's ``x`` along dim 0, in rank order, without gradient; lengths may differ.

    >>> gather_cat(torch.arange(3))
    tensor([0, 1, 2])
    """
    x = x.detach()
    if not is_active():
        return x
    counts = gather_counts(x.shape[0], x.device, group)
    longest = max(counts)
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherWithGradient(torch.autograd.Function):
    """Concatenation over ranks; backward sums the upstream gradients and keeps this rank's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, group: ProcessGroup | None) -> Tensor:
        counts = gather_counts(x.shape[0], x.device, group)
        before = sum(counts[: rank(group)])
        ctx.group, ctx.rows = group, slice(before, before + len(x))  # pyright: ignore[reportAttributeAccessIssue]
        return gather_cat(x, group)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        total = all_reduce_sum(grads[0], ctx.group)  # pyright: ignore[reportAttributeAccessIssue]
        return total[ctx.rows], None  # pyright: ignore[reportAttributeAccessIssue]


def gather_cat_with_grad(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """As :func:`gather_cat`, with gradients that flow back to every process's ``x``.

    The gradient is that of the sum of all ranks' losses, as in :func:`all_reduce_sum_with_grad`.
    """
    return _GatherWithGradient.apply(x, group) if is_active() else x


def gather_counts(count: int, device: torch.device, group: ProcessGroup | None = None) -> list[int]:
    """Every process's ``count``, in rank order."""
    if not is_active():
        return [count]
    own = torch.tensor([count], device=device)
    parts = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(parts, own, group=group)
    return [int(part) for part in parts]
