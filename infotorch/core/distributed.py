"""The only file that speaks to ``torch.distributed``: counts, sums and gathers that fall back to one process.

Every function is the identity without an initialized process group, so callers need no branches of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """All ranks' rows; backward sums the upstream gradients and keeps the own rows, as every rank's loss saw them."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, group: ProcessGroup | None) -> Tensor:
        counts = gather_counts(x.shape[0], x.device, group)
        start = sum(counts[: rank(group)])
        ctx.group, ctx.own = group, slice(start, start + len(x))  # pyright: ignore[reportAttributeAccessIssue]
        return gather_cat(x, group)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(grads[0], ctx.group)[ctx.own], None  # pyright: ignore[reportAttributeAccessIssue]


def gather_cat_with_grad(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Concatenate every process's ``x`` along dim 0, with gradients as those of :func:`all_reduce_sum_with_grad`.

    >>> gather_cat_with_grad(torch.ones(2, requires_grad=True)).requires_grad
    True
    """
    return _GatherWithGradient.apply(x, group) if is_active() else x  # pyright: ignore[reportReturnType]


def rows_before(count: int, device: torch.device, group: ProcessGroup | None = None) -> int:
    """Where this process's rows begin in what :func:`gather_cat` gives; 0 without a group."""
    return sum(gather_counts(count, device, group)[: rank(group)])


def gather_counts(count: int, device: torch.device, group: ProcessGroup | None = None) -> list[int]:
    """Every process's ``count``, in rank order."""
    if not is_active():
        return [count]
    own = torch.tensor([count], device=device)
    parts = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(parts, own, group=group)
    return [int(part) for part in parts]


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Every process's states of the global generators, ``[processes, bytes]`` by kind of device, for a checkpoint.

    >>> list(random_states(torch.device("cpu")))
    ['cpu']
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: gather_cat(state.to(device)[None]).cpu() for name, state in states.items()}


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on from the states of :func:`random_states`.

    Raises:
        ValueError: Another number of processes.

    >>> states = random_states(torch.device("cpu"))
    >>> first = torch.rand(())
    >>> set_random_states(states, torch.device("cpu"))
    >>> bool(torch.rand(()) == first)
    True
    """
    if len(states["cpu"]) != world_size():
        raise ValueError(
            f"checkpoint: it was saved by {len(states['cpu'])} processes and can only be continued by as many, "
            f"got {world_size()}"
        )
    torch.set_rng_state(states["cpu"][rank()])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"][rank()], device)
