"""Exact k nearest neighbors and range counts: the search under every nearest-neighbor estimator.

One interface, three searches, chosen by dimension, number of points and device: a sorted column (counts in one
dimension), scipy's k-d tree (few dimensions, CPU), and brute force by tiles in torch (many dimensions, or GPU).
All of them give float64 distances and agree on ties: a point exactly at the radius is never counted by rounding.
A point is not its own neighbor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core import _brute
from infotorch.core._checks import all_finite, check_choice
from infotorch.core._samples import as_samples, check_neighbors

METRICS = ("max", "euclidean")
BACKENDS = ("auto", "tree", "brute")
_LEAF = 16
_CROSS_TILE = 1 << 22  # distances between queries and points held at a time


def knn(
    x: Tensor, k: int, *, queries: Tensor | None = None, metric: str = "max", backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest neighbors of every point among the others, or of other points among these.

    Args:
        x: Shape ``(n, d)`` or ``(n,)``.
        k: How many, ``1 <= k < n`` (up to n for queries).
        queries: Shape ``(q, d)`` or ``(q,)``: look for their neighbors in ``x``; nothing is left out.
        metric: ``"max"`` (largest coordinate difference) or ``"euclidean"``.
        backend: ``"auto"``, ``"tree"`` or ``"brute"``.

    Returns:
        Distances in float64, ascending, and indices into ``x``, both ``(n, k)`` or ``(q, k)``, on the device of ``x``,
        without gradient. Which of several equidistant points is taken is free.

    Raises:
        ValueError: ``k`` out of range, values that are not finite, dimensions that differ, unknown metric or backend.

    >>> distances, indices = knn(torch.tensor([0.0, 1.0, 3.0]), k=1)
    >>> distances.squeeze(1), indices.squeeze(1)
    (tensor([1., 1., 2.], dtype=torch.float64), tensor([1, 0, 1]))
    """
    x = as_samples("x", x)
    if queries is not None:
        queries = as_samples("queries", queries).to(x.device)
        if queries.shape[1] != x.shape[1]:
            raise ValueError(f"queries: expected shape (q, {x.shape[1]}), got {tuple(queries.shape)}")
        check_neighbors(k, len(x), inclusive=True)
        brute = _choose([x], metric, backend) == "brute"
        return (_cross_brute if brute else _cross_tree)(queries, x, k, metric)
    check_neighbors(k, len(x))
    if _choose([x], metric, backend) == "brute":
        return _brute.knn([x], k, metric)
    return _tree_knn(x, k, metric)


def count_within(x: Tensor, radii: Tensor, *, strict: bool = True, metric: str = "max") -> Tensor:
    """How many other points lie within each point's own radius.

    One dimension is counted by bisection on the sorted column; more by tiles that hold only the points within
    reach in the widest column, which beats trees up to large ``n``.

    Args:
        x: Shape ``(n, d)`` or ``(n,)``.
        radii: Shape ``(n,)``.
        strict: Count distances below the radius (``True``) or up to it, inclusive (``False``).
        metric: ``"max"`` or ``"euclidean"``.

    Returns:
        int64, shape ``(n,)``.

    Raises:
        ValueError: Shapes that differ, values that are not finite, unknown metric.

    >>> count_within(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 3.0]))
    tensor([0, 0, 1])
    >>> count_within(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 3.0]), strict=False)
    tensor([1, 1, 2])
    """
    x = as_samples("x", x)
    check_choice("metric", metric, METRICS)
    radii = radii.detach().to(x)
    if radii.shape != x.shape[:1]:
        raise ValueError(f"radii: expected shape ({len(x)},), got {tuple(radii.shape)}")
    if not all_finite(radii):
        raise ValueError("radii: expected finite values, got NaN or infinity")
    if strict:
        # Below r means up to the next number below r, so every search needs the inclusive comparison only.
        radii = torch.nextafter(radii, radii.new_tensor(-torch.inf))
    within = _sorted_count(x[:, 0], radii) if x.shape[1] == 1 else _brute.count(x, radii, metric)
    return within - (radii >= 0).long()


@dataclass(frozen=True)
class JointCounts:
    """Neighbors in a joint space, and how many points its marginals hold within the same reach.

    Attributes:
        radius: Distance to the k-th neighbor in the joint space, ``(n,)``.
        nearest: Distance to the first; 0 where points coincide.
        counts: Other points within reach, one int64 ``(n,)`` per marginal.
    """

    radius: Tensor
    nearest: Tensor
    counts: list[Tensor]


def joint_counts(
    blocks: Sequence[Tensor],
    k: int,
    marginals: Sequence[Sequence[int]],
    *,
    rule: str = "joint",
    metric: str = "max",
    backend: str = "auto",
) -> JointCounts:
    r"""k-th neighbor under the largest of the blocks' distances, and counts within the marginals.

    Args:
        blocks: Variables, each ``(n, d_b)`` or ``(n,)``.
        k: Which neighbor sets the reach.
        marginals: Groups of block numbers; a group's distance is the largest of its blocks'.
        rule: ``"joint"`` counts distances strictly below the joint k-th distance; ``"projected"`` counts those
            up to the k neighbors' largest distance within the group, inclusive.
        metric: Distance inside a block, ``"max"`` or ``"euclidean"``.
        backend: ``"auto"``, ``"tree"`` or ``"brute"``. Euclidean blocks of several columns need ``"brute"``.

    Raises:
        ValueError: Different numbers of points, ``k`` out of range, values that are not finite, unknown rule,
            metric or backend, a tree asked to mix metrics.

    >>> x, y = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 2.0, 2.5])
    >>> found = joint_counts([x, y], 1, [(0,), (1,)])
    >>> found.radius, found.counts
    (tensor([2., 2., 2.], dtype=torch.float64), [tensor([1, 1, 0]), tensor([0, 1, 1])])
    """
    blocks = [as_samples(f"blocks[{i}]", x) for i, x in enumerate(blocks)]
    n = len(blocks[0])
    if any(len(x) != n for x in blocks):
        raise ValueError(f"blocks: expected equal numbers of points, got {[len(x) for x in blocks]}")
    check_neighbors(k, n)
    check_choice("rule", rule, ("joint", "projected"))
    sizes = [sum(blocks[i].shape[1] for i in members) for members in marginals]
    if _choose(blocks, metric, backend, sizes) == "brute":
        distances, within = _brute.joint_counts(blocks, k, marginals, metric, projected=rule == "projected")
        radius = distances[:, -1]
        reached = (radius > 0) | (rule == "projected")
        return JointCounts(radius, distances[:, 0], [c - reached.long() for c in within])
    distances, indices = _tree_knn(torch.cat(blocks, 1), k, "max")
    radius = distances[:, -1]
    counts = []
    for members in marginals:
        x = torch.cat([blocks[i] for i in members], 1)
        reach = radius if rule == "joint" else (x.unsqueeze(1) - x[indices]).abs().amax((1, 2))
        counts.append(count_within(x, reach, strict=rule == "joint"))
    return JointCounts(radius, distances[:, 0], counts)


def _choose(blocks: Sequence[Tensor], metric: str, backend: str, counted: Sequence[int] = ()) -> str:
    """Which search to use; ``counted`` holds the dimensions in which points will be counted."""
    check_choice("metric", metric, METRICS)
    check_choice("backend", backend, BACKENDS)
    mixed = metric == "euclidean" and len(blocks) > 1 and any(x.shape[1] > 1 for x in blocks)
    if mixed and backend == "tree":
        raise ValueError('backend: expected "brute" for several Euclidean blocks of several columns, got "tree"')
    if backend != "auto":
        return backend
    if mixed or blocks[0].device.type != "cpu":
        return "brute"
    n, d = len(blocks[0]), sum(x.shape[1] for x in blocks)
    # Nanoseconds a point, fitted to normal samples of 1e3 and 1e4 points on one core.
    share = min(1.0, 1.4 * n ** (-1 / d))  # of the points that are within reach in one column
    tree = 600 * n ** (0.045 * d) + share * n * sum(0.5 + 0.6 * m for m in counted if m > 1)
    alone = 3.3 if metric == "euclidean" else 1 + 0.4 * d  # products, and differences in float32
    brute = 8000 + n * (alone if not counted else 1 + 0.8 * d + 1.2 * len(counted))
    return "tree" if tree < brute else "brute"


def _tree_knn(x: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree  # a fifth of a second that other users of the core need not pay

    points = x.cpu().numpy()
    # Tight boxes pay from three dimensions on. Medians would be a little faster on normal data, and several times
    # slower on heavy tails.
    tree = KDTree(points, leafsize=_LEAF, balanced_tree=False, compact_nodes=x.shape[1] > 2)
    # Asking in the tree's own order keeps its nodes in the cache.
    order = torch.from_numpy(tree.indices)
    found = tree.query(points[tree.indices], k + 1, p=torch.inf if metric == "max" else 2)
    distances, indices = (torch.from_numpy(part) for part in found)
    own = indices == order.unsqueeze(1)
    if bool(own[:, 0].all()):
        distances, indices = distances[:, 1:], indices[:, 1:]
    else:
        # The point itself is among its k + 1 nearest, but not first if it has duplicates; with more than k of them it
        # may be missing, and any of the equidistant ones can be left out in its place.
        own[~own.any(1), -1] = True
        kept = (~own).nonzero()[:, 1].view(-1, k)
        distances, indices = distances.gather(1, kept), indices.gather(1, kept)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return distances.index_select(0, back).to(x.device), indices.index_select(0, back).to(x.device)


def _cross_tree(queries: Tensor, x: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree

    tree = KDTree(x.cpu().numpy(), leafsize=_LEAF)
    found = tree.query(queries.cpu().numpy(), k, p=torch.inf if metric == "max" else 2)
    distances, indices = (torch.as_tensor(part).view(-1, k).to(x.device) for part in found)
    return distances, indices


def _cross_brute(queries: Tensor, x: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """By plain differences, some queries at a time."""
    p, exact = (torch.inf if metric == "max" else 2.0), "donot_use_mm_for_euclid_dist"
    parts = queries.split(max(1, _CROSS_TILE // len(x)))
    found = [torch.cdist(part, x, p=p, compute_mode=exact).topk(k, largest=False) for part in parts]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _sorted_count(x: Tensor, radii: Tensor) -> Tensor:
    """Points within the radius on a line, the point itself included.

    Rounded differences grow with the distance, so a bisection on the very comparison ``|x_j - x_i| <= r_i`` is
    exact where a search for ``x_i + r_i`` would be off by one at the boundary (where a neighbor always sits).
    """
    values, order = x.sort()
    reach = radii[order]
    n = len(x)
    here = torch.arange(n, device=x.device)
    inside, outside = here.clone(), torch.full_like(here, n)
    inside_left, outside_left = here.clone(), torch.full_like(here, -1)
    for _ in range(n.bit_length()):
        middle = (inside + outside) >> 1
        near = values[middle] - values <= reach
        inside, outside = torch.where(near, middle, inside), torch.where(near, outside, middle)
        middle = (inside_left + outside_left + 1) >> 1
        near = values - values[middle] <= reach
        inside_left, outside_left = torch.where(near, middle, inside_left), torch.where(near, outside_left, middle)
    found = torch.where(reach >= 0, inside - inside_left + 1, 0)
    return torch.empty_like(found).scatter_(0, order, found)
