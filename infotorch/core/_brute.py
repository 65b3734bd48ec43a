"""Exact neighbor search by tiles: all distances of a few points at a time, ``O(n * rows)`` memory.

Distances are float64 differences, never the expanded square, wherever a value is returned or compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_CPU_TILE = 320_000  # elements; a tile and its buffers should stay in the second-level cache
_GPU_TILE = 2**26
_GROUPS = 16
_SPARE = 2  # candidates beyond k + 1 whose exact distance is computed, so that most rows are certain at once


def row_tiles(n: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows whose distances to all ``n`` points make up one tile."""
    rows = max(1, (_CPU_TILE if device.type == "cpu" else _GPU_TILE) // n)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


class Tiles:
    """Distances within each block of columns, from a few rows to all points.

    One set of buffers serves every tile: fresh ones would cost more in page faults than the arithmetic.
    """

    def __init__(self, blocks: Sequence[Tensor], metric: str, buffers: int = 0) -> None:
        n, device = len(blocks[0]), blocks[0].device
        self.blocks, self.columns, self.metric = blocks, [x.T.contiguous() for x in blocks], metric
        self.slices = list(row_tiles(n, device))
        rows = self.slices[0].stop
        self._space = blocks[0].new_empty(len(blocks) + 1 + buffers, rows, n)

    def buffer(self, i: int, rows: slice) -> Tensor:
        """A spare buffer of the tile's shape; the last one is clobbered by :meth:`distances`."""
        return self._space[len(self.blocks) + i, : rows.stop - rows.start]

    def distances(self, rows: slice) -> list[Tensor]:
        """One tile ``[rows, n]`` per block, valid until the next call."""
        scratch = self.buffer(0, rows)
        return [
            fill(x[rows], columns, self._space[i, : len(scratch)], scratch, self.metric)
            for i, (x, columns) in enumerate(zip(self.blocks, self.columns, strict=True))
        ]


def fill(x: Tensor, columns: Tensor, tile: Tensor, scratch: Tensor, metric: str) -> Tensor:
    """Write the distances between the rows ``x [r, d]`` and the points ``columns [d, m]`` into ``tile [r, m]``."""
    torch.sub(x[:, :1], columns[0], out=tile)
    if metric == "max":
        tile.abs_()
        for i in range(1, x.shape[1]):
            torch.maximum(tile, torch.sub(x[:, i : i + 1], columns[i], out=scratch).abs_(), out=tile)
        return tile
    if x.shape[1] == 1:
        return tile.abs_()
    tile.square_()
    for i in range(1, x.shape[1]):
        torch.sub(x[:, i : i + 1], columns[i], out=scratch)
        tile.addcmul_(scratch, scratch)
    return tile.sqrt_()


def smallest(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest of every row, ascending, and their columns.

    The k smallest lie in the k groups of smallest minimum, and minima of strided groups cost one vectorized
    pass, so that only ``k * 16`` entries of a row are ever sorted.
    """
    rows, n = tile.shape
    width = n // _GROUPS
    if width < 8 * k:
        return tile.topk(k, largest=False)
    head = tile[:, : width * _GROUPS].unflatten(1, (_GROUPS, width))
    best = head.amin(1).topk(k, largest=False, sorted=False).indices
    steps = torch.arange(_GROUPS, device=tile.device) * width
    columns = (best.unsqueeze(-1) + steps).flatten(1)
    tail = torch.arange(width * _GROUPS, n, device=tile.device).expand(rows, -1)
    columns = torch.cat((columns, tail), 1)
    values, picked = tile.gather(1, columns).topk(k, largest=False)
    return values, columns.gather(1, picked)


def exclude_self(tile: Tensor, rows: slice) -> None:
    """Put every point infinitely far from itself."""
    here = torch.arange(rows.stop - rows.start, device=tile.device)
    tile[here, here + rows.start] = torch.inf


def knn(blocks: Sequence[Tensor], k: int, metric: str) -> tuple[Tensor, Tensor]:
    """``(distances, indices) [n, k]`` under the largest of the blocks' distances."""
    if len(blocks) == 1 and blocks[0].shape[1] > 2:
        return (_euclidean_knn if metric == "euclidean" else _max_knn)(blocks[0], k)
    return _plain_knn(blocks, k, metric)


def _plain_knn(blocks: Sequence[Tensor], k: int, metric: str) -> tuple[Tensor, Tensor]:
    tiles = Tiles(blocks, metric)
    found = [smallest(_joint(tiles.distances(rows), tiles.buffer(0, rows), rows), k) for rows in tiles.slices]
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def count(x: Tensor, radii: Tensor, metric: str) -> Tensor:
    """How many points (the point itself included) lie within each point's radius, boundary included.

    Points are sorted by their widest column, so that a tile needs only the points within reach in that column.
    """
    n = len(x)
    values, order = x[:, int(x.var(0, correction=0).argmax())].sort()
    x, reach = x[order], radii[order]
    slack = 1e-9 * (values.abs() + reach.abs())  # the window may be too wide, never too narrow
    first = torch.searchsorted(values, values - reach - slack).tolist()
    last = torch.searchsorted(values, values + reach + slack, right=True).tolist()
    size = max(n, _CPU_TILE if x.device.type == "cpu" else _GPU_TILE)
    space, columns, found = x.new_empty(2, size), x.T.contiguous(), []
    start = 0
    while start < n:
        stop = min(n, start + max(1, size // (4 * max(1, last[start] - first[start]))))
        low, high = min(first[start:stop]), max(last[start:stop])
        if (stop - start) * (high - low) > size:
            stop = start + max(1, size // n)
            low, high = min(first[start:stop]), max(last[start:stop])
        tile, scratch = space[:, : (stop - start) * max(0, high - low)].view(2, stop - start, -1)
        fill(x[start:stop], columns[:, low:high], tile, scratch, metric)
        found.append(_count(tile, reach[start:stop], scratch))
        start = stop
    within = torch.cat(found)
    return torch.empty_like(within).scatter_(0, order, within)


def joint_counts(
    blocks: Sequence[Tensor], k: int, marginals: Sequence[Sequence[int]], metric: str, projected: bool
) -> tuple[Tensor, list[Tensor]]:
    """Joint distances ``[n, k]`` and, per marginal, the number of points (itself included) within the radius.

    One pass: the tile of distances that gave the radius is still there when it is compared with it.
    """
    tiles = Tiles(blocks, metric, buffers=1)
    near: list[Tensor] = []
    counts: list[list[Tensor]] = [[] for _ in marginals]
    for rows in tiles.slices:
        parts = tiles.distances(rows)
        spare, scratch = tiles.buffer(0, rows), tiles.buffer(1, rows)
        distances, indices = smallest(_joint(parts, spare, rows), k)
        near.append(distances)
        below = torch.nextafter(distances[:, -1], distances.new_tensor(-torch.inf))
        for found, members in zip(counts, marginals, strict=True):
            tile = parts[members[0]]
            for other in members[1:]:
                tile = torch.maximum(tile, parts[other], out=spare)
            found.append(_count(tile, tile.gather(1, indices).amax(1) if projected else below, scratch))
    return torch.cat(near), [torch.cat(found) for found in counts]


def _joint(parts: Sequence[Tensor], out: Tensor, rows: slice) -> Tensor:
    if len(parts) == 1:
        joint = parts[0]
    else:
        joint = torch.maximum(parts[0], parts[1], out=out)
        for part in parts[2:]:
            torch.maximum(joint, part, out=joint)
    exclude_self(joint, rows)
    return joint


def _count(tile: Tensor, radii: Tensor, scratch: Tensor) -> Tensor:
    # Summing floats is vectorized where summing booleans is not; counts below 2**53 are exact.
    return torch.le(tile, radii.unsqueeze(1), out=scratch).sum(1).long()


def _euclidean_knn(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Candidates from one matrix product per tile: the expanded square errs by about ``eps * |x|^2``.

    Where that could hide a neighbor (duplicates, tight clusters far from the center), rows are searched again.
    """
    n, d = x.shape
    centered = x - x.mean(0)
    square = centered.square().sum(1)
    left = torch.cat((-2 * centered, torch.ones_like(centered[:, :1])), 1)
    right = torch.cat((centered.T, square.unsqueeze(0)))
    slack = 8 * (d + 4) * torch.finfo(x.dtype).eps * (square.sqrt() + square.max().sqrt()).square()
    slices = list(row_tiles(n, x.device))
    space = x.new_empty(slices[0].stop, n)

    def nearest(rows: slice, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        tile = torch.mm(left[rows], right, out=space[: rows.stop - rows.start])
        exclude_self(tile, rows)
        values, columns = _few(tile, wanted, k)
        exact = (x[rows].unsqueeze(1) - x[columns]).square_().sum(-1).sqrt_()
        return (values[:, -1] + square[rows] - slack[rows]).clamp(min=0).sqrt(), columns, exact

    return _proven(x, k, slices, nearest, "euclidean")


def _max_knn(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Candidates from float32 differences, in half the time of float64 ones: they err by about ``eps * |x|``."""
    n = len(x)
    centered = x - x.mean(0)
    size = float(centered.abs().max())
    if not 0 < size < torch.inf:
        return _plain_knn([x], k, "max")
    single = (centered / size).float()
    slack = 4 * torch.finfo(torch.float32).eps
    columns_of = single.T.contiguous()
    slices = list(row_tiles(n, x.device))
    space = single.new_empty(2, slices[0].stop, n)

    def nearest(rows: slice, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        tile, scratch = space[:, : rows.stop - rows.start]
        fill(single[rows], columns_of, tile, scratch, "max")
        exclude_self(tile, rows)
        values, columns = _few(tile, wanted, k)
        return (values[:, -1].double() - slack) * size, columns, (x[rows].unsqueeze(1) - x[columns]).abs_().amax(-1)

    return _proven(x, k, slices, nearest, "max")


def _few(tile: Tensor, wanted: int, k: int) -> tuple[Tensor, Tensor]:
    return smallest(tile, wanted) if wanted > k else tile.topk(wanted, largest=False)


def _proven(
    x: Tensor,
    k: int,
    slices: Sequence[slice],
    nearest: Callable[[slice, int], tuple[Tensor, Tensor, Tensor]],
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Exact neighbors from approximate distances, with a proof that none is missing.

    ``nearest`` gives some rows' nearest points by those distances: a bound below the true distance of all points that
    are not among them, their columns, and their exact distances. A row whose bound does not exceed its k-th exact
    distance is searched again by plain differences.
    """
    wanted = min(k + 1 + _SPARE, len(x) - 1)
    distances, indices, doubtful = [], [], []
    for rows in slices:
        bound, columns, exact = nearest(rows, wanted)
        near, order = exact.topk(k, largest=False)
        if wanted < len(x) - 1:
            doubtful.append((bound <= near[:, -1]).nonzero().squeeze(1) + rows.start)
        distances.append(near)
        indices.append(columns.gather(1, order))
    distance, index = torch.cat(distances), torch.cat(indices)
    again = torch.cat(doubtful) if doubtful else index.new_empty(0)
    if len(again):
        distance[again], index[again] = _plain_rows(x, again, k, metric)
    return distance, index


def _plain_rows(x: Tensor, which: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    tiles = Tiles([x], metric)
    tiles.blocks = [x[which]]
    found = []
    for rows in tiles.slices:
        if rows.start >= len(which):
            break
        rows = slice(rows.start, min(rows.stop, len(which)))
        tile = tiles.distances(rows)[0]
        tile[torch.arange(len(tile), device=x.device), which[rows]] = torch.inf
        found.append(smallest(tile, k))
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])
