"""core.neighbors against plain distance matrices: every search, every comparison at the boundary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from sklearn.neighbors import KDTree
from torch import Tensor

from infotorch.core import _brute, neighbors
from infotorch.core.neighbors import count_within, joint_counts, knn

NAMES = {"max": "chebyshev", "euclidean": "euclidean"}
quick = settings(max_examples=25, deadline=None, derandomize=True)
# Few distinct values: coordinates, distances and radii collide all the time.
lattice = hnp.arrays(
    np.float64, st.tuples(st.integers(6, 40), st.integers(1, 4)), elements=st.sampled_from([-0.3, 0.0, 0.1, 0.2, 1e3])
)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(x: Tensor, metric: str) -> np.ndarray:
    return cdist(x.numpy(), x.numpy(), NAMES[metric])


def off_diagonal(distances: np.ndarray) -> np.ndarray:
    return np.where(np.eye(len(distances), dtype=bool), np.inf, distances)


@pytest.fixture(params=[None, 700], ids=["one tile", "many tiles"], autouse=True)
def tile(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(_brute, "_CPU_TILE", request.param)


@pytest.mark.parametrize("metric", ["max", "euclidean"])
@pytest.mark.parametrize("backend", ["auto", "tree", "brute"])
@pytest.mark.parametrize(("n", "d", "k"), [(5, 1, 4), (150, 1, 3), (150, 2, 1), (700, 3, 5), (150, 7, 3)])
def test_knn(metric, backend, n, d, k):
    x = normal(n, d)
    distances, indices = knn(x, k, metric=metric, backend=backend)
    want = off_diagonal(plain(x, metric))
    np.testing.assert_allclose(distances.numpy(), np.sort(want, 1)[:, :k], rtol=1e-12)
    np.testing.assert_array_equal(indices.numpy(), np.argsort(want, 1)[:, :k])


@pytest.mark.parametrize("metric", ["max", "euclidean"])
@pytest.mark.parametrize("kind", ["far clusters", "tiny", "huge", "beyond float32", "duplicates", "constant"])
def test_brute_force_where_quick_arithmetic_fails(metric, kind):
    x = normal(120, 5)
    if kind == "far clusters":
        x[::2] += 1e9
    elif kind == "duplicates":
        x[40:] = x[:40].repeat(2, 1)
    elif kind == "constant":
        x[:] = 3.0
    else:
        x = x * {"tiny": 1e-60, "huge": 1e25, "beyond float32": 1e60}[kind]
    distances, _ = knn(x, 3, metric=metric, backend="brute")
    np.testing.assert_allclose(distances.numpy(), np.sort(off_diagonal(plain(x, metric)), 1)[:, :3], rtol=1e-12)


@pytest.mark.parametrize("metric", ["max", "euclidean"])
@pytest.mark.parametrize("backend", ["auto", "tree", "brute"])
@pytest.mark.parametrize(("n", "q", "d", "k"), [(40, 7, 1, 1), (40, 90, 3, 40), (300, 20, 12, 3)])
def test_neighbors_of_queries(metric, backend, n, q, d, k, monkeypatch):
    monkeypatch.setattr(neighbors, "_CROSS_TILE", 500)
    x, queries = normal(n, d), normal(q, d, seed=1)
    queries[0] = x[3]  # not left out
    distances, indices = knn(x, k, queries=queries, metric=metric, backend=backend)
    want = cdist(queries.numpy(), x.numpy(), NAMES[metric])
    np.testing.assert_allclose(distances.numpy(), np.sort(want, 1)[:, :k], rtol=1e-12)
    np.testing.assert_array_equal(indices.numpy(), np.argsort(want, 1)[:, :k])
    assert distances[0, 0] == 0


def test_neighbors_against_scikit_learn():
    x = normal(300, 4)
    for metric, name in NAMES.items():
        tree = KDTree(x.numpy(), metric=name)
        want = tree.query(x.numpy(), 6)[0][:, 1:]
        np.testing.assert_allclose(knn(x, 5, metric=metric)[0].numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("metric", ["max", "euclidean"])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_counts(metric, d):
    x = normal(200, d, seed=1)
    radii = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2
    want = (off_diagonal(plain(x, metric)) < radii.numpy()[:, None]).sum(1)
    assert count_within(x, radii, metric=metric).tolist() == want.tolist()


@quick
@given(lattice)
def test_ties_are_exact(points):
    """Neighbors' own distances as radii: strict leaves them out, inclusive takes them in, on every backend."""
    x = torch.from_numpy(points)
    distances = off_diagonal(plain(x, "max"))
    for backend in ("tree", "brute"):
        near = knn(x, 3, backend=backend)[0]
        np.testing.assert_array_equal(near.numpy(), np.sort(distances, 1)[:, :3])
        for strict, compare in ((True, np.less), (False, np.less_equal)):
            want = compare(distances, near[:, 2:].numpy()).sum(1)
            assert count_within(x, near[:, 2], strict=strict).tolist() == want.tolist()


@quick
@given(hnp.arrays(np.float64, st.integers(5, 60), elements=st.floats(-1e6, 1e6)), st.integers(1, 4))
def test_sorted_column_counts_what_differences_say(column, k):
    x = torch.from_numpy(column)
    distances = off_diagonal(np.abs(column[:, None] - column[None, :]))
    radii = np.sort(distances, 1)[:, k - 1]
    for strict, compare in ((True, np.less), (False, np.less_equal)):
        want = compare(distances, radii[:, None]).sum(1)
        assert count_within(x, torch.from_numpy(radii), strict=strict).tolist() == want.tolist()


@pytest.mark.parametrize("metric", ["max", "euclidean"])
@pytest.mark.parametrize("rule", ["joint", "projected"])
@pytest.mark.parametrize("dims", [(1, 1, 1), (2, 1, 3)])
def test_joint_counts(metric, rule, dims):
    blocks = [normal(120, d, seed=d + i) for i, d in enumerate(dims)]
    marginals = [(0,), (2,), (0, 1), (1, 2)]
    parts = [off_diagonal(plain(x, metric)) for x in blocks]
    joint = np.max(parts, 0)
    order = np.argsort(joint, 1)[:, :4]
    for backend in ("auto", "brute") if metric == "euclidean" else ("auto", "tree", "brute"):
        found = joint_counts(blocks, 4, marginals, rule=rule, metric=metric, backend=backend)
        np.testing.assert_allclose(found.radius.numpy(), np.sort(joint, 1)[:, 3], rtol=1e-12)
        np.testing.assert_allclose(found.nearest.numpy(), np.sort(joint, 1)[:, 0], rtol=1e-12)
        for members, counts in zip(marginals, found.counts, strict=True):
            within = np.max([parts[i] for i in members], 0)
            if rule == "joint":
                want = (within < np.sort(joint, 1)[:, 3:4]).sum(1)
            else:
                want = (within <= np.take_along_axis(within, order, 1).max(1, keepdims=True)).sum(1)
            assert counts.tolist() == want.tolist()


def test_duplicates_far_from_the_center_are_found_exactly():
    """Squares lose them: 1e6 from the center, the expanded square cannot tell 1e-6 from 0."""
    x = torch.cat([normal(60, 6), 1e6 + 1e-6 * normal(60, 6, seed=1), torch.full((5, 6), -1e6, dtype=torch.float64)])
    distances, _ = knn(x, 2, metric="euclidean", backend="brute")
    np.testing.assert_allclose(distances.numpy(), np.sort(off_diagonal(plain(x, "euclidean")), 1)[:, :2], rtol=1e-12)
    assert (distances[-5:] == 0).all()


def test_more_duplicates_than_neighbors():
    x = torch.zeros(9, 2)
    for backend in ("tree", "brute"):
        distances, indices = knn(x, 2, backend=backend)
        assert (distances == 0).all()
        assert (indices != torch.arange(9).unsqueeze(1)).all()
        assert count_within(x, torch.zeros(9), strict=False).tolist() == [8] * 9
        assert count_within(x, torch.zeros(9)).tolist() == [0] * 9


def test_dispatch_by_dimension_and_size():
    def chosen(n: int, d: int, metric: str = "max") -> str:
        return neighbors._choose([torch.empty(n, d)], metric, "auto")

    assert chosen(10_000, 2) == chosen(100_000, 5) == "tree"
    assert chosen(10_000, 20) == chosen(2000, 16, "euclidean") == "brute"


def test_integer_and_half_inputs():
    x = torch.tensor([0, 3, 4])
    assert knn(x, 1)[0].squeeze(1).tolist() == [3, 1, 1]
    assert knn(x.half(), 1)[0].dtype == torch.float64


def test_errors():
    x = normal(10, 2)
    with pytest.raises(ValueError, match="k: expected 1 <= k < n with n=10 points, got 10"):
        knn(x, 10)
    with pytest.raises(ValueError, match="k: expected 1 <= k <= n with n=10 points, got 11"):
        knn(x, 11, queries=x)
    with pytest.raises(ValueError, match=r"queries: expected shape \(q, 2\), got \(4, 3\)"):
        knn(x, 1, queries=normal(4, 3))
    with pytest.raises(TypeError, match="k: expected an int, got float"):
        knn(x, 1.0)
    with pytest.raises(ValueError, match=r"metric: expected one of max, euclidean; got 'euclid'"):
        knn(x, 1, metric="euclid")
    with pytest.raises(ValueError, match="backend: expected one of auto, tree, brute"):
        knn(x, 1, backend="ball")
    with pytest.raises(ValueError, match=r"radii: expected shape \(10,\), got \(3,\)"):
        count_within(x, torch.ones(3))
    with pytest.raises(ValueError, match="radii: expected finite values, got NaN or infinity"):
        count_within(x, torch.full((10,), torch.inf))
    with pytest.raises(ValueError, match="x: expected finite values, got NaN or infinity"):
        knn(torch.tensor([0.0, float("nan"), 1.0]), 1)
    with pytest.raises(ValueError, match=r"x: expected shape \(n, d\) or \(n,\), not empty, got \(2, 2, 2\)"):
        knn(torch.zeros(2, 2, 2), 1)
    with pytest.raises(ValueError, match=r"blocks: expected equal numbers of points, got \[10, 9\]"):
        joint_counts([x, x[:9]], 1, [(0,), (1,)])
    with pytest.raises(ValueError, match='backend: expected "brute" for several Euclidean blocks'):
        joint_counts([x, x], 1, [(0,)], metric="euclidean", backend="tree")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", ["max", "euclidean"])
def test_gpu_agrees(metric):
    x = normal(500, 9)
    for a, b in zip(knn(x.cuda(), 4, metric=metric), knn(x, 4, metric=metric), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-12, atol=0)
