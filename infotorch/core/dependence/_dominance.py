"""What comes before a point in two orders at once: the sums over pairs behind measures on a line."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST, _MOST = 32, 96  # points that are compared pair by pair: fewer cost calls, more cost comparisons
_SPREAD = 2  # entries of the largest table per point
_CHUNK = 1 << 16  # comparisons at a time, for them to stay in a CPU's second-level cache
_CHUNK_GPU = 1 << 24
_ROWS = 2048  # entries per part of a table from which adding its rows one by one is quicker


def dominance(rank: Tensor, masses: Tensor) -> Tensor:
    """Sum, for every entry, the masses of the entries before it that have a lower rank.

    Ranks are divided into ranges, those into smaller ones, and so on. Of the entries of a range, in their order, those
    of lower parts count: by a table where they lie in an earlier block of entries, by comparisons in the same block.
    What is left, pairs within the smallest parts, is compared as well. So there are a few wide levels in place of
    many halvings.

    Args:
        rank: Shape ``(..., n)``, a permutation of ``0 .. n - 1`` in every row.
        masses: Shape ``(k, ..., n)``, float64.

    Returns:
        Shape ``(k, ..., n)``, in the order of the entries.

    References: X. Huo and G. J. Székely, 2016, arXiv:1410.1503 (the statistic in ``O(n log n)``);
    A. Chaudhuri and W. Hu, 2019, arXiv:1810.11332 (level by level).

    >>> dominance(torch.tensor([1, 0, 2]), torch.tensor([[1.0, 2.0, 4.0]]).double())
    tensor([[0., 0., 3.]], dtype=torch.float64)
    """
    shape, n = masses.shape, rank.shape[-1]
    part, fan, depth = _plan(n)
    size = part * fan**depth
    if size > n:  # padding comes last in both orders and weighs nothing
        rank = torch.nn.functional.pad(rank, (0, size - n))
        rank[..., n:] = torch.arange(n, size, device=rank.device)
        masses = torch.nn.functional.pad(masses, (0, size - n))
    masses, rank = masses.reshape(len(masses), -1), rank.reshape(-1, size)
    if len(rank) > 1:  # rows follow each other
        rank = rank + torch.arange(0, rank.numel(), size, device=rank.device).unsqueeze(1)
    rank = rank.flatten()
    entries = torch.arange(rank.numel(), device=rank.device, dtype=torch.int32)
    entries = torch.empty_like(entries).scatter_(0, rank, entries)  # in the order of ranks
    rank = rank.to(torch.int32)
    found = _take(_compared(entries.view(-1, part), _take(masses, entries)), rank)
    for level in range(depth):
        width = part * fan ** (depth - level)
        if level == 0:
            found += _of_lower_parts(rank, masses, width, part, fan)
            continue
        # Range by range, each in the order of the entries: torch sorts few small numbers many times faster.
        ranges = rank // width
        order = ranges.to(torch.int16 if len(rank) < width << 15 else torch.int32).sort(stable=True).indices
        here = _of_lower_parts(rank.index_select(0, order), _take(masses, order), width, part, fan)
        for row, values in zip(found, here, strict=True):
            row.scatter_add_(0, order, values)
    return found.view(*shape[:-1], size)[..., :n]


def _plan(n: int) -> tuple[int, int, int]:
    """Entries that are compared, parts of a range, and levels of ranges."""
    if n <= _LEAST:
        return n, 1, 0
    depth = 1
    # With d levels of W parts, blocks of s take tables of n W / s entries, and n = s W^d.
    while (part := (n / _SPREAD**depth) ** (1 / (depth + 1))) > _MOST:
        depth += 1
    part = max(_LEAST, 8 * round(part / 8))  # whole vectors of doubles
    fan = max(1, int((n / part) ** (1 / depth)))
    return part, fan + (part * fan**depth < n), depth


def _take(masses: Tensor, index: Tensor) -> Tensor:
    found = torch.empty_like(masses)
    for row, out in zip(masses, found, strict=True):
        torch.index_select(row, 0, index, out=out)
    return found


def _of_lower_parts(rank: Tensor, masses: Tensor, width: int, part: int, fan: int) -> Tensor:
    """What lower parts of the same range have before each entry; ranges of ``width`` entries follow each other."""
    child = (rank // (width // fan)).remainder_(fan).view(-1, part)
    found = _compared(child, masses)
    # And among whole blocks: a table of parts by blocks with an empty margin, and its corner before an entry's cell.
    blocks = width // part
    block = torch.arange(len(child), device=rank.device)
    start = block % blocks + block // blocks * ((fan + 1) * (blocks + 1))
    corner = (start.unsqueeze(1) + child * (blocks + 1)).flatten()
    cell = corner + (blocks + 2)
    length = (len(child) // blocks) * (fan + 1) * (blocks + 1)
    for row, mass in zip(found, masses, strict=True):
        table = mass.new_zeros(length).scatter_add_(0, cell, mass).view(-1, fan + 1, blocks + 1).cumsum_(-1)
        row += _summed_over_parts(table).flatten().index_select(0, corner)
    return found


def _summed_over_parts(table: Tensor) -> Tensor:
    """Running sums of ``table [r, parts, blocks]`` over parts, in place."""
    if table.device.type != "cpu" or table.numel() < _ROWS * table.shape[1]:
        return table.cumsum_(1)
    for part in range(1, table.shape[1]):  # on a CPU several times faster than cumsum over an inner dimension
        table[:, part] += table[:, part - 1]
    return table


def _compared(key: Tensor, masses: Tensor) -> Tensor:
    """Sums of masses of earlier entries of the same row of ``key [b, s]`` that have a lower key, by comparing all."""
    count, side = key.shape
    key = key.to(masses.dtype)  # else torch converts every comparison
    step = max(1, (_CHUNK if key.device.type == "cpu" else _CHUNK_GPU) // side**2)
    found = torch.empty_like(masses)
    rows, out = (m.view(len(m), count, side).transpose(0, 1) for m in (masses, found))
    earlier = masses.new_ones(side, side).triu_(1)
    buffer = masses.new_empty(min(step, count), side, side)
    for start in range(0, count, step):
        keys = key[start : start + step]
        lower = torch.lt(keys.unsqueeze(2), keys.unsqueeze(1), out=buffer[: len(keys)])
        out[start : start + step] = torch.bmm(rows[start : start + step], lower.mul_(earlier))
    return found
