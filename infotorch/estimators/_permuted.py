"""Nearest-neighbor estimates under many permutations of y.

Permuting y changes who is near whom in the joint space and nothing in the marginal ones: their distances are computed
once, and every permutation costs a gather, a selection of the k smallest and two counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from infotorch.core import _brute
from infotorch.estimators.base import recorded

_DENSE = 2048  # points up to which all distances are kept on a CPU
_DENSE_GPU = 16384
_TOGETHER = defaultdict(lambda: 1 << 26, cpu=0)  # distances of several permutations that are held at once
_COLUMNS, _FEW = 3, 512  # columns up to which, and points above which, a fresh tree a permutation is faster on a CPU


def one_by_one(value_of: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
    """The estimate under every order of y, each from scratch."""
    with recorded():
        return torch.tensor([value_of(x, y[o]) for part in orders for o in part], dtype=torch.float64)


def dense(x: Tensor, y: Tensor) -> bool:
    """Whether keeping all distances is possible and worth it."""
    if x.device.type != "cpu":
        return len(x) <= _DENSE_GPU
    return len(x) <= _FEW or (len(x) <= _DENSE and x.shape[1] + y.shape[1] > _COLUMNS)


def ksg_values(x: Tensor, y: Tensor, orders: Iterator[Tensor], *, k: int, variant: int, metric: str) -> Tensor:
    """:func:`infotorch.core.differential.ksg_mi` under every order; NaN where points coincide."""
    rule, more = ("strict", 1) if variant == 1 else ("projected", 0)
    constant = _psi(k) + _psi(len(x)) - (0.0 if variant == 1 else 1 / k)
    found = _counts(x, y, orders, k, metric, rule)
    return _values(found, lambda nx, ny: constant - (_psi(nx + more) + _psi(ny + more)).mean(1))


def mixture_values(x: Tensor, y: Tensor, orders: Iterator[Tensor], *, k: int, form: str, metric: str) -> Tensor:
    """:func:`infotorch.core.differential.mixture_mi` under every order; NaN where points coincide."""
    rule, size = ("strict", _psi) if form == "code" else ("inclusive", torch.log)
    constant = _psi(k) + math.log(len(x))
    found = _counts(x, y, orders, k, metric, rule)
    return _values(found, lambda nx, ny: constant - (size(nx + 1) + size(ny + 1)).mean(1))


def _values(found: Iterator[tuple[Tensor, Tensor, Tensor]], value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.cat([torch.where((radius > 0).all(1), value(nx, ny), torch.nan).cpu() for radius, nx, ny in found])


def _counts(
    x: Tensor, y: Tensor, orders: Iterator[Tensor], k: int, metric: str, rule: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For some orders at a time: joint radii, and counts within them in x and in y, ``[p, n]`` each."""
    n = len(x)
    by_x, by_y = (_distances(z, metric) for z in (x, y))
    tiles = list(_brute.row_tiles(n, x.device))
    together = max(1, _TOGETHER[x.device.type] // (n * n))
    space = x.new_empty(3, together, tiles[0].stop, n)
    for part in orders:
        for some in part.split(together):
            found = [_near(by_x[rows], by_y, some, rows, k, space, rule) for rows in tiles]
            yield tuple(torch.cat(parts, 1) for parts in zip(*found, strict=True))  # pyright: ignore[reportReturnType]


def _near(
    by_x: Tensor, by_y: Tensor, orders: Tensor, rows: slice, k: int, space: Tensor, rule: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of it, in buffers that serve all of them."""
    (size, n), p = by_x.shape, len(orders)
    # Reshaped from the start: a view of a part of the buffer has to be contiguous.
    moved, joint, scratch = (buffer.view(-1)[: p * size * n].view(p, size, n) for buffer in space)
    torch.index_select(by_y, 0, orders[:, rows].flatten(), out=joint.view(-1, n))
    torch.gather(joint, 2, orders.unsqueeze(1).expand(p, size, n), out=moved)
    near, which = _brute.smallest(torch.maximum(by_x, moved, out=joint).view(-1, n), k)
    radius = near[:, -1].reshape(p, size)
    if rule == "projected":
        which = which.view(p, size, k)
        reach = by_x.expand_as(moved).gather(2, which).amax(2), moved.gather(2, which).amax(2)
    else:
        reach = (radius if rule == "inclusive" else torch.nextafter(radius, radius.new_tensor(-torch.inf)),) * 2
    nx, ny = (torch.le(tile, r.unsqueeze(2), out=scratch).sum(2) for tile, r in zip((by_x, moved), reach, strict=True))
    return radius, nx, ny


def _distances(z: Tensor, metric: str) -> Tensor:
    """All distances, every point infinitely far from itself."""
    tile, scratch = z.new_empty(2, len(z), len(z))
    return _brute.fill(z, z.T.contiguous(), tile, scratch, metric).fill_diagonal_(torch.inf)


def _psi(x: Tensor | int) -> Tensor:
    return torch.digamma(torch.as_tensor(x, dtype=torch.float64))
