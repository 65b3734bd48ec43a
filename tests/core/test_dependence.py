"""core.dependence against dcor, hyppo and dense transcriptions of the formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.stats import ks_2samp
from sklearn.metrics import mutual_info_score
from torch import Tensor

from infotorch.core import dependence as D
from infotorch.core.dependence import _dominance, _joint, _line, _tiles
from infotorch.core.discrete import discrete_mutual_information

quick = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def categories(n: int, kinds: int, seed: int = 0) -> Tensor:
    return torch.randint(kinds, (n,), generator=generator(seed))


def distances(x: Tensor, exponent: float = 1.0) -> Tensor:
    """Dense distances; of categories: whether they differ."""
    if not x.is_floating_point():
        return (x.unsqueeze(1) != x).double()
    x = x.unsqueeze(1) if x.ndim == 1 else x
    square = (x.unsqueeze(1) - x).square().sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).pow(exponent / 2), 0.0)


def v_centered(a: Tensor, w: Tensor) -> Tensor:
    means = a @ w
    return a - means.unsqueeze(1) - means + means @ w


def u_centered(a: Tensor) -> Tensor:
    n = len(a)
    a = a - torch.diag(a.diagonal())
    rows = a.sum(1)
    found = a - (rows.unsqueeze(1) + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return found - torch.diag(found.diagonal())


def v_mean(a: Tensor, b: Tensor, w: Tensor | None = None) -> Tensor:
    w = torch.full((len(a),), 1 / len(a), dtype=a.dtype) if w is None else w / w.sum()
    return w @ (v_centered(a, w) * v_centered(b, w)) @ w


def u_mean(a: Tensor, b: Tensor) -> Tensor:
    n = len(a)
    return (u_centered(a) * u_centered(b)).sum() / (n * (n - 3))


def same(found: Tensor, expected: Tensor, *leaves: Tensor, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Compare values, and gradients with respect to the leaves."""
    if found.dtype == torch.float32:  # of categories only
        found, rtol = found.double(), 1e-6
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    if leaves:
        grads = (torch.autograd.grad(value, leaves, retain_graph=True) for value in (found, expected))
        for ours, theirs in zip(*grads, strict=True):
            assert ours is not None
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------
# Distance covariance
# ---------------------------------------------------------------------------------------------------------

N = 45
VARIABLES = {
    "line": lambda seed: normal(N, seed=seed),
    "ties": lambda seed: (2 * normal(N, seed=seed)).round(),
    "points": lambda seed: normal(N, 3, seed=seed),
    "duplicates": lambda seed: torch.nn.functional.one_hot(categories(N, 3, seed)).double(),
    "categories": lambda seed: categories(N, 4, seed),
}


@pytest.mark.parametrize("exponent", [1.0, 0.6, 1.7])
@pytest.mark.parametrize(("left", "right"), itertools.product(VARIABLES, repeat=2))
def test_every_kind_of_pair_against_dense_matrices(left, right, exponent, monkeypatch):
    """Values and gradients, for every path: sorting, cells and (several, uneven) tiles."""
    monkeypatch.setattr(_tiles, "_CPU_SIDE", 16)
    x, y = VARIABLES[left](1), VARIABLES[right](2)
    leaves = [v.requires_grad_() for v in (x, y) if v.is_floating_point()]
    a, b = distances(x, exponent), distances(y, exponent)
    same(D.distance_covariance_sqr(x, y, exponent=exponent), v_mean(a, b), *leaves)
    same(D.u_distance_covariance_sqr(x, y, exponent=exponent), u_mean(a, b), *leaves)
    v_scale = (v_mean(a, a) * v_mean(b, b)).sqrt()
    same(D.distance_correlation_sqr(x, y, exponent=exponent), v_mean(a, b) / v_scale, *leaves)
    u_scale = (u_mean(a, a) * u_mean(b, b)).sqrt()
    same(D.u_distance_correlation_sqr(x, y, exponent=exponent), u_mean(a, b) / u_scale, *leaves)
    w = torch.rand(N, dtype=torch.float64, generator=generator(3)) * (torch.arange(N) % 5 > 0)
    same(D.distance_covariance_sqr(x, y, exponent=exponent, weights=w), v_mean(a, b, w), *leaves)


@pytest.mark.parametrize("n", [4, 5, 31, 32, 33, 65, 300, 1100])
def test_sorting_against_dense_matrices_at_all_depths(n):
    x, y = normal(n, seed=n).requires_grad_(), (normal(n, seed=n + 1) * 3).round().requires_grad_()
    same(D.distance_covariance_sqr(x, y), v_mean(distances(x), distances(y)), x, y)
    same(D.u_distance_covariance_sqr(y, x), u_mean(distances(y), distances(x)), x, y)


@pytest.mark.parametrize("shape", [(), (3,)], ids=["line", "points"])
def test_against_dcor(shape):
    import dcor  # this and hyppo load a compiler, which takes seconds

    x, y = normal(50, *shape, seed=1), normal(50, *shape, seed=2)
    y = y + x.square()
    for name in (
        "distance_covariance",
        "distance_covariance_sqr",
        "u_distance_covariance_sqr",
        "distance_correlation",
        "distance_correlation_sqr",
        "u_distance_correlation_sqr",
    ):
        for options in ({}, {"exponent": 0.5}):
            options["compile_mode"] = dcor.CompileMode.NO_COMPILE  # compiling takes longer than the test
            expected = float(getattr(dcor, name)(x.numpy(), y.numpy(), **options))
            del options["compile_mode"]
            assert float(getattr(D, name)(x, y, **options)) == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_partial_against_dcor_and_dense_projections(exponent):
    import dcor

    z = normal(40, 2)
    x, y = (z[:, 0] + normal(40, seed=1)).requires_grad_(), (normal(40, 2, seed=2) + z).requires_grad_()
    a, b, c = (u_centered(distances(v, exponent)) for v in (x, y, z))
    a, b = (m - (m * c).sum() / (c * c).sum() * c for m in (a, b))
    covariance = (a * b).sum() / (40 * 37)
    same(D.partial_distance_covariance(x, y, z, exponent=exponent), covariance, x, y)
    cosine = (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()
    same(D.partial_distance_correlation(x, y, z, exponent=exponent), cosine, x, y)
    if exponent == 1:
        arrays = [v.detach().numpy() for v in (x, y, z)]
        assert covariance.item() == pytest.approx(dcor.partial_distance_covariance(*arrays), rel=1e-9)
        assert cosine.item() == pytest.approx(dcor.partial_distance_correlation(*arrays), rel=1e-9)


def test_partial_takes_a_common_cause_off():
    z = normal(400)
    x, y = z + 0.3 * normal(400, seed=1), z + 0.3 * normal(400, seed=2)
    assert float(D.u_distance_correlation_sqr(x, y)) > 0.5
    assert abs(float(D.partial_distance_correlation(x, y, z))) < 0.2
    torch.testing.assert_close(D.partial_distance_correlation(x, y, 0 * z), D.u_distance_correlation_sqr(x, y))
    leaf = x.clone().requires_grad_()
    value = D.partial_distance_correlation(leaf, y, leaf.detach())
    assert value == 0
    assert bool(torch.autograd.grad(value, leaf)[0].isfinite().all())
    groups = categories(400, 3)
    shifted = D.partial_distance_correlation(x + 9 * groups, y + 9 * groups, groups)
    assert float(shifted) < float(D.u_distance_correlation_sqr(x + 9 * groups, y + 9 * groups))


def test_biased_correlation_of_wide_independent_samples():
    x, y = normal(20, 500), normal(20, 500, seed=1)
    with pytest.warns(UserWarning, match=r"20 points of 500 \+ 500 columns"):
        assert float(D.distance_correlation_sqr(x, y)) > 0.9
    assert abs(float(D.u_distance_correlation_sqr(x, y))) < 0.2


def test_against_hyppo():
    from hyppo import independence

    x, y = normal(80, 2, seed=1), normal(80, 1, seed=2)
    y = y + x[:, :1].square()
    dcorr = independence.Dcorr().statistic(x.numpy(), y.numpy())
    assert float(D.u_distance_correlation_sqr(x, y)) == pytest.approx(dcorr, rel=1e-9)
    # hyppo reports the normalized criterion, with a width given by gamma = 1 / (2 sigma^2).
    hsic = independence.Hsic(gamma=0.5).statistic(x.numpy(), y.numpy())
    own = (D.u_hsic(x, x, sigma=1.0) * D.u_hsic(y, y, sigma=1.0)).sqrt()
    assert float(D.u_hsic(x, y, sigma=1.0) / own) == pytest.approx(hsic, rel=1e-6)


def test_gradients_numerically():
    x, y, z = normal(9).requires_grad_(), normal(9, seed=1).requires_grad_(), normal(9, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(D.distance_correlation, (x, y))
    assert torch.autograd.gradcheck(D.u_distance_correlation_sqr, (x, z))
    assert torch.autograd.gradcheck(lambda u, v: D.distance_covariance_sqr(u, v, exponent=1.3), (x, z))
    assert torch.autograd.gradcheck(lambda u, v: D.hsic(u, v, sigma=(0.7, 1.2)), (x, z))
    assert torch.autograd.gradcheck(lambda u, v: D.u_mmd_sqr(u, v, sigma=0.9), (z, normal(5, 2).requires_grad_()))
    assert torch.autograd.gradcheck(lambda *v: D.u_jdcov_sqr(v, c=0.7), (x, y, z))


def test_second_derivatives_are_refused():
    x, y, z = normal(9).requires_grad_(), normal(9, seed=1), normal(9, 2)
    for value in (D.distance_covariance_sqr(x, y), D.distance_covariance_sqr(x, z), D.hsic(x, y), D.jdcov_sqr([x, y])):
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            grad.square().sum().backward()


@quick
@given(seeds, st.floats(0.1, 10), st.floats(-100, 100), st.integers(1, 3))
def test_invariances(seed, scale, shift, dim):
    x, y = normal(20, dim, seed=seed), normal(20, seed=seed + 1)
    base = D.distance_covariance_sqr(x, y)
    near = {"rtol": 1e-7, "atol": 1e-12}
    rotation = torch.linalg.qr(normal(dim, dim, seed=seed + 2))[0]
    order = torch.randperm(20, generator=generator(seed))
    torch.testing.assert_close(D.distance_covariance_sqr(scale * x + shift, y), scale * base, **near)
    torch.testing.assert_close(D.distance_covariance_sqr(x @ rotation, -y), base, **near)
    torch.testing.assert_close(D.distance_covariance_sqr(y, x), base, **near)
    torch.testing.assert_close(D.distance_covariance_sqr(x[order], y[order]), base, **near)
    correlation = D.distance_correlation_sqr(x, y)
    torch.testing.assert_close(D.distance_correlation_sqr(scale * x + shift, y), correlation, **near)
    assert 0 <= float(correlation) <= 1
    torch.testing.assert_close(D.distance_correlation_sqr(y, 3 - scale * y), torch.ones_like(base))


@pytest.mark.parametrize("kind", ["line", "points", "categories"])
def test_unbiased_under_independence(kind):
    """Over many independent samples the mean is 0 within its standard error, and the V-statistic's is not."""
    draws = [(VARIABLES[kind](2 * s + 10), normal(N, seed=2 * s + 11)) for s in range(50)]
    for unbiased, biased in (
        (D.u_distance_covariance_sqr, D.distance_covariance_sqr),
        (D.u_hsic, D.hsic),
    ):
        found = torch.stack([unbiased(x, y) for x, y in draws])
        assert found.mean().abs() < 3.5 * found.std() / math.sqrt(len(draws))
        assert torch.stack([biased(x, y) for x, y in draws]).mean() > found.std()


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("constant", [torch.full((N,), 0.1), torch.full((N, 2), 0.1), torch.zeros(N, dtype=torch.long)])
def test_a_constant_depends_on_nothing(kind, constant):
    x = VARIABLES[kind](1)
    leaves = [v.requires_grad_() for v in (x, constant.clone()) if v.is_floating_point()]
    for name in ("distance_covariance", "distance_correlation", "u_distance_correlation_sqr"):
        value = getattr(D, name)(x, leaves[-1] if constant.is_floating_point() else constant)
        assert float(value.detach()) == pytest.approx(0.0, abs=1e-8)
        if leaves:
            value.backward()
            assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves if leaf.grad is not None)


@pytest.mark.parametrize("shape", [(), (2,)], ids=["line", "points"])
def test_float32_does_not_cancel(shape):
    """float32 inputs far from the origin give float64's value for the same numbers, and float32 gradients."""
    x = (normal(150, *shape) + 1000).float().requires_grad_()
    y = normal(150, seed=1).float()
    wide = x.detach().double().requires_grad_()
    found, expected = D.u_distance_covariance_sqr(x, y), D.u_distance_covariance_sqr(wide, y.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    grad = torch.autograd.grad(found, x)[0]
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), torch.autograd.grad(expected, wide)[0], rtol=1e-4, atol=1e-9)
    assert D.distance_covariance_sqr(x.detach().bfloat16(), y.bfloat16()).dtype == torch.float32


def test_memory_is_linear(monkeypatch):
    """No tensor of n x n entries is ever asked for."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                largest = max(largest, t.numel() if isinstance(t, Tensor) else 0)
            return out

    monkeypatch.setattr(_tiles, "_CPU_SIDE", 50)
    n = 200
    x, y, z = normal(n, 2).requires_grad_(), normal(n, seed=1).requires_grad_(), categories(n, 5)
    with Watch():
        D.u_distance_correlation_sqr(x, y).backward()
        D.distance_covariance_sqr(y, y.detach() + normal(n)).backward()
        D.jdcov_sqr([x, y, z]).backward()
        D.hsic(x, y, sigma=1.0).backward()
        D.u_mmd_sqr(y, x[:, 0], sigma=1.0).backward()
    assert largest < n * n / 2


# ---------------------------------------------------------------------------------------------------------
# Joint forms
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1.0, 0.3])
@pytest.mark.parametrize("part", ["all", "first"])
def test_jdcov_against_the_sum_over_subsets(c, part, monkeypatch):
    monkeypatch.setattr(_tiles, "_CPU_SIDE", 16)
    variables = [
        normal(N).requires_grad_(),
        normal(N, 2, seed=1).requires_grad_(),
        categories(N, 3),
        categories(N, 2, 9),
    ]
    leaves = variables[:2]
    w = torch.full((N,), 1 / N, dtype=torch.float64)
    for unbiased in (False, True):
        centered = [-(u_centered(a) if unbiased else v_centered(a, w)) for a in map(distances, variables)]
        total = torch.zeros((), dtype=torch.float64)
        for size in range(2, 5):
            for subset in itertools.combinations(range(4), size):
                if part == "first" and 0 not in subset:
                    continue
                product = math.prod([centered[m] for m in subset[1:]], start=centered[subset[0]])
                total = total + c ** (4 - size) * product.sum() / (N * (N - 3) if unbiased else N * N)
        function = D.u_jdcov_sqr if unbiased else D.jdcov_sqr
        found = function(variables, c=c, part=part)
        same(found, total, *leaves)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("part", ["all", "first"])
@pytest.mark.parametrize("scaled", [False, True])
def test_jdcov_by_cells_is_that_by_tiles(scaled, part, unbiased, monkeypatch):
    """One variable on a line, the others categories; and categories alone."""
    x, a, b = normal(90).requires_grad_(), categories(90, 3), categories(90, 2, 1)
    function = getattr(D, f"{'u_' * unbiased}jd{'cor' if scaled else 'cov'}_sqr")
    by_cells, sets = [], ([x, a, b], [a, x, b], [a, b])
    with monkeypatch.context() as patch:
        patch.setattr(_joint._JointMean, "apply", None)  # all pairs are not visited
        by_cells += [function(variables, c=0.7, part=part) for variables in sets]
    monkeypatch.setattr(_joint, "MAX_CELLS", 0)
    for found, variables in zip(by_cells, sets, strict=True):
        by_tiles = function(variables, c=0.7, part=part)
        if len(variables) == 3:
            same(found, by_tiles, x)
        else:
            torch.testing.assert_close(found, by_tiles)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("part", ["all", "first"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_jdcov_of_two_numbers_by_cells_is_that_by_tiles(ties, scaled, part, unbiased, monkeypatch):
    """Two variables on a line beside categories, with gradients of both."""
    n = 400
    x, y = normal(n), normal(n, seed=1) + (categories(n, 3) == 0)
    x, y = ((2 * v).round().requires_grad_() if ties else v.requires_grad_() for v in (x, y))
    a, b = categories(n, 3), categories(n, 2, 1)
    function = getattr(D, f"{'u_' * unbiased}jd{'cor' if scaled else 'cov'}_sqr")
    sets = [x, a, y, b], [x, y, a]
    with monkeypatch.context() as patch:
        patch.setattr(_joint._JointMean, "apply", None)
        by_cells = [function(variables, c=0.7, part=part) for variables in sets]
    monkeypatch.setattr(_joint, "MAX_CELLS", 0)
    for found, variables in zip(by_cells, sets, strict=True):
        same(found, function(variables, c=0.7, part=part), x, y)


@pytest.mark.parametrize("numbers", [1, 2])
def test_jdcov_by_cells_takes_weights(numbers, monkeypatch):
    n = 200
    x, y, a, b = normal(n).requires_grad_(), normal(n, seed=1), categories(n, 3), categories(n, 2, 1)
    w = torch.rand(n, dtype=torch.float64, generator=generator()) * (torch.arange(n) % 5 > 0)
    variables = [x, a, b] if numbers == 1 else [x, y, a]
    found = D.jdcov_sqr(variables, weights=w)
    monkeypatch.setattr(_joint, "MAX_CELLS", 0)
    same(found, D.jdcov_sqr(variables, weights=w), x)


def test_joint_correlations():
    """Of two variables they are the distance correlation; scales do not count; constants are independent."""
    x, y, a = normal(60), normal(60, 2, seed=1), categories(60, 3)
    for prefix in ("", "u_"):
        joint, concatenated = getattr(D, prefix + "jdcor_sqr"), getattr(D, prefix + "ccdcor_sqr")
        pair = getattr(D, prefix + "distance_correlation_sqr")
        for other in (y, a):
            torch.testing.assert_close(joint([x, other]), pair(x, other))
            torch.testing.assert_close(concatenated(x, [other]), pair(x, other))
        both = torch.cat((y, torch.nn.functional.one_hot(a) / math.sqrt(2)), 1)
        torch.testing.assert_close(concatenated(x, [y, a]), pair(x, both))
        torch.testing.assert_close(joint([9 * x, y / 7, a]), joint([x, y, a]))
        torch.testing.assert_close(joint([x, y], exponent=0.5), pair(x, y, exponent=0.5))
        assert float(joint([torch.ones(60), a])) == pytest.approx(0.0, abs=1e-12)


def test_jdcov_of_two_is_distance_covariance():
    x, y = normal(30), normal(30, 2, seed=1)
    torch.testing.assert_close(D.jdcov_sqr([x, y], c=2.0), D.distance_covariance_sqr(x, y))
    torch.testing.assert_close(D.u_jdcov_sqr([x, y]), D.u_distance_covariance_sqr(x, y))
    w = torch.rand(30, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(D.jdcov_sqr([x, y], weights=w), D.distance_covariance_sqr(x, y, weights=w))


@pytest.mark.parametrize("kinds", [2, 30], ids=["few cells", "many cells"])
@pytest.mark.parametrize("exponent", [1.0, 0.7])
def test_ccdcov_against_dense_matrices(kinds, exponent):
    """All categories (few cells: sorted; many: tiles), and categories with numbers."""
    x, a, b, c = normal(N).requires_grad_(), categories(N, kinds), categories(N, 2, 1), normal(N, seed=2)
    for attributes in ([a], [a, b], [a, b, c]):
        square = sum(distances(s).square() for s in attributes)
        group = distances(torch.zeros(0)) if isinstance(square, int) else square.pow(exponent / 2)
        same(D.ccdcov_sqr(x, attributes, exponent=exponent), v_mean(distances(x, exponent), group), x)
        same(D.u_ccdcov_sqr(x, attributes, exponent=exponent), u_mean(distances(x, exponent), group), x)


def test_intersections_are_seen():
    """Of x = a xor b each attribute alone knows nothing; together they know all."""
    a, b = categories(2000, 2), categories(2000, 2, 1)
    x = (a ^ b).double() + 0.1 * normal(2000)
    alone = [float(D.u_distance_covariance_sqr(x, s)) for s in (a, b)]
    assert max(map(abs, alone)) < 2e-3
    assert float(D.u_ccdcov_sqr(x, [a, b])) > 0.03
    assert float(D.u_jdcov_sqr([x, a, b])) > 0.05


def test_group_divergence_against_scipy():
    x, groups = normal(200), torch.stack((categories(200, 2), categories(200, 3, 1)), 1)
    w = torch.rand(200, dtype=torch.float64, generator=generator())
    edges = torch.linspace(float(x.min()), float(x.max()), 11, dtype=torch.float64)
    whole = torch.histogram(x, edges, weight=w).hist / w.sum()
    expected = 0.0
    for cell in itertools.product(range(2), range(3)):
        inside = (groups == torch.tensor(cell)).all(1)
        part = torch.histogram(x[inside], edges, weight=w[inside]).hist
        expected += float(part.sum() / w.sum()) * float(special.rel_entr(part / part.sum(), whole).sum())
    assert float(D.group_js_divergence(x, groups, bins=10, weights=w)) == pytest.approx(expected, rel=1e-9)
    assert float(D.group_js_divergence(torch.ones(4), torch.tensor([0, 1, 0, 1]))) == 0


# ---------------------------------------------------------------------------------------------------------
# Kernels and permutations
# ---------------------------------------------------------------------------------------------------------


def gram(x: Tensor, sigma: float) -> Tensor:
    return torch.exp(-distances(x).square() / (2 * sigma**2)) if x.is_floating_point() else 1 - distances(x)


@pytest.mark.parametrize(("left", "right"), itertools.product(["line", "points", "categories"], repeat=2))
def test_hsic_against_dense_matrices(left, right, monkeypatch):
    monkeypatch.setattr(_tiles, "_CPU_SIDE", 16)
    x, y = VARIABLES[left](1), VARIABLES[right](2)
    leaves = [v.requires_grad_() for v in (x, y) if v.is_floating_point()]
    k, m = gram(x, 0.8), gram(y, 1.3)
    same(D.hsic(x, y, sigma=(0.8, 1.3)), v_mean(k, m), *leaves)
    same(D.u_hsic(x, y, sigma=(0.8, 1.3)), u_mean(k, m), *leaves)
    features = [v.reshape(N, -1) if v.is_floating_point() else torch.nn.functional.one_hot(v).double() for v in (x, y)]
    k, m = (f @ f.T for f in features)
    same(D.hsic(x, y, kernel="linear"), v_mean(k, m), *leaves)
    same(D.u_hsic(x, y, kernel="linear"), u_mean(k, m), *leaves)


def test_hsic_of_two_variables_by_trace():
    x, y = normal(20, 2), normal(20, seed=1)
    h = torch.eye(20, dtype=torch.float64) - 1 / 20
    expected = torch.trace(gram(x, 1.0) @ h @ gram(y, 1.0) @ h) / 400
    torch.testing.assert_close(D.hsic(x, y, sigma=1.0), expected)


def test_mmd_against_dense_matrices(monkeypatch):
    monkeypatch.setattr(_tiles, "_CPU_SIDE", 16)
    x, y = normal(30, 2).requires_grad_(), (normal(20, 2, seed=1) + 0.5).requires_grad_()
    k = gram(torch.cat((x, y)), 0.9)
    xx, yy, xy = k[:30, :30], k[30:, 30:], k[:30, 30:]
    same(D.mmd_sqr(x, y, sigma=0.9), xx.mean() + yy.mean() - 2 * xy.mean(), x, y)
    unbiased = (xx.sum() - 30) / (30 * 29) + (yy.sum() - 20) / (20 * 19) - 2 * xy.mean()
    same(D.u_mmd_sqr(x, y, sigma=0.9), unbiased, x, y)
    median = torch.pdist(torch.cat((x, y)).detach()).quantile(0.5, interpolation="lower")
    assert float(D.mmd_sqr(x, y).detach()) == pytest.approx(
        float(D.mmd_sqr(x, y, sigma=float(median)).detach()), rel=1e-2
    )


@pytest.mark.parametrize(
    ("x", "y", "measure"),
    [
        (normal(25), normal(25, seed=1), "distance_covariance"),
        (normal(25, 2), normal(25, seed=1), "distance_covariance"),
        (categories(25, 3), normal(25, seed=1), "distance_covariance"),
        (normal(25), categories(25, 3, seed=1), "distance_covariance"),
        (normal(25).round(), categories(25, 3, seed=1), "distance_covariance"),
        (categories(25, 2), categories(25, 3, seed=1), "distance_covariance"),
        (normal(25), normal(25, seed=1), "hsic"),
        (categories(25, 3), normal(25, seed=1), "hsic"),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_null_statistics_are_those_of_permuted_data(x, y, measure, dense, monkeypatch):
    from infotorch.core.dependence import permutation

    monkeypatch.setattr(permutation, "_DENSE", 1 << 24 if dense else 0)
    monkeypatch.setattr(permutation, "_BATCH", 80)
    sigma = (1.1, 0.9)
    result = D.independence_test(x, y, measure=measure, permutations=7, sigma=sigma, generator=generator(5))
    source = generator(5)
    orders = [torch.randperm(25, generator=source) for _ in range(7)]

    def statistic(z: Tensor) -> Tensor:
        return D.u_hsic(x, z, sigma=sigma) if measure == "hsic" else D.u_distance_covariance_sqr(x, z)

    torch.testing.assert_close(result.statistic, statistic(y).double())
    torch.testing.assert_close(result.null, torch.stack([statistic(y[order]) for order in orders]).double())
    assert result.p_value == (1 + int((result.null >= result.statistic).sum())) / 8


@pytest.mark.parametrize(("levels", "n"), [((3, 4), 200), ((12, 15), 60)])  # dense: random tables; sparse: pairings
def test_information_of_permuted_categories(levels, n):
    x, y = categories(n, levels[0]), categories(n, levels[1], seed=1)
    result = D.independence_test(x, y, measure="mutual_information", permutations=400, generator=generator(2))
    torch.testing.assert_close(result.statistic, discrete_mutual_information(x, y))
    again = D.independence_test(x, y, measure="mutual_information", permutations=400, generator=generator(2))
    torch.testing.assert_close(result.null, again.null, rtol=0, atol=0)
    source = np.random.default_rng(0)
    shuffled = [mutual_info_score(x, source.permutation(y.numpy())) for _ in range(400)]
    assert ks_2samp(result.null.numpy(), shuffled).pvalue > 0.01
    assert result.p_value == (1 + int((result.null >= result.statistic - 1e-12).sum())) / 401
    constant = D.independence_test(x, x * 0, measure="mutual_information", permutations=9, generator=generator())
    assert constant.p_value == 1.0
    assert constant.null.shape == (9,)
    dependent = D.independence_test(x, x, measure="mutual_information", permutations=99, generator=generator())
    assert dependent.p_value == 0.01


def test_two_sample_null_statistics():
    x, y = normal(12, 2), normal(9, 2, seed=1)
    result = D.two_sample_test(x, y, permutations=5, sigma=1.0, generator=generator(5))
    source, z = generator(5), torch.cat((x, y))
    orders = [torch.randperm(21, generator=source) for _ in range(5)]
    expected = [D.u_mmd_sqr(z[order[:12]], z[order[12:]], sigma=1.0) for order in orders]
    torch.testing.assert_close(result.null, torch.stack(expected))
    torch.testing.assert_close(result.statistic, D.u_mmd_sqr(x, y, sigma=1.0))


def test_p_values_are_calibrated_and_have_power():
    under_null = [
        D.independence_test(normal(20, seed=3 * s), normal(20, seed=3 * s + 1), permutations=19, generator=generator(s))
        for s in range(80)
    ]
    rejected = sum(result.p_value <= 0.1 for result in under_null)
    assert 1 <= rejected <= 19  # 8 expected, 2.7 standard deviation
    x = normal(60)
    dependent = D.independence_test(x, x.square() + 0.1 * normal(60, seed=1), permutations=99, generator=generator())
    assert dependent.p_value == 0.01


# ---------------------------------------------------------------------------------------------------------
# Errors, and the parts
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: D.distance_covariance_sqr(normal(5), normal(6)), ValueError, "x, y: expected equal numbers"),
        (
            lambda: D.distance_covariance_sqr(normal(5, 2, 2), normal(5)),
            ValueError,
            "x: expected real numbers of shape",
        ),
        (lambda: D.distance_covariance_sqr([1.0], normal(1)), TypeError, "x: expected a torch.Tensor"),
        (lambda: D.distance_covariance_sqr(normal(5), normal(5) / 0), ValueError, "y: expected finite"),
        (lambda: D.distance_covariance_sqr(normal(5), categories(5, 2).view(5, 1)), ValueError, "y.double"),
        (lambda: D.distance_covariance_sqr(normal(5), normal(5), exponent=2.0), ValueError, "exponent: expected"),
        (lambda: D.distance_covariance_sqr(normal(5), normal(5), weights=-torch.ones(5)), ValueError, "weights"),
        (lambda: D.u_distance_covariance_sqr(normal(3), normal(3)), ValueError, "at least 4 points"),
        (lambda: D.jdcov_sqr([]), ValueError, "variables: expected at least one"),
        (lambda: D.jdcov_sqr([normal(5)], c=0.0), ValueError, "c: expected"),
        (lambda: D.jdcov_sqr([normal(5)], part="frist"), ValueError, "did you mean 'first'"),
        (lambda: D.ccdcov_sqr(normal(5), []), ValueError, "attributes: expected at least one"),
        (lambda: D.hsic(normal(5), normal(5), sigma=0.0), ValueError, "sigma: expected"),
        (lambda: D.hsic(normal(5), normal(5), kernel="rbf"), ValueError, "kernel: expected one of"),
        (lambda: D.mmd_sqr(normal(5, 2), normal(5, 3)), ValueError, "x, y: expected floats of shapes"),
        (lambda: D.u_mmd_sqr(normal(1), normal(5)), ValueError, "at least 2 points"),
        (lambda: D.independence_test(normal(5), normal(5), permutations=0), ValueError, "permutations: expected"),
        (
            lambda: D.independence_test(normal(5), categories(5, 2), measure="mutual_information"),
            TypeError,
            "expected integers or booleans for mutual_information",
        ),
        (lambda: D.group_js_divergence(normal(5), normal(5)), TypeError, "groups: expected integers"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("least", "most"), [(32, 96), (2, 4)], ids=["compared", "divided"])
@settings(quick, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, n=st.integers(1, 300))
def test_dominance_against_loops(least, most, seed, n, monkeypatch):
    """With blocks as they are, and so small that there are several levels."""
    monkeypatch.setattr(_dominance, "_LEAST", least)
    monkeypatch.setattr(_dominance, "_MOST", most)
    rank = torch.stack([torch.randperm(n, generator=generator(seed + i)) for i in range(2)])
    mass = normal(3, 2, n, seed=seed)
    found = _dominance.dominance(rank, mass)
    before = torch.ones(n, n).tril(-1).bool() & (rank.unsqueeze(-2) < rank.unsqueeze(-1))
    expected = (before.double() @ mass.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected)


def test_equal_weights_are_counted_without_rounding():
    """49 points weigh 1/49 each, whose running sums round; ones do not."""
    x = torch.arange(49, dtype=torch.float64)
    w = torch.full((49,), 1 / 49, dtype=torch.float64)
    means = 49 * _line.distance_means(x, w)
    torch.testing.assert_close(means, (x.unsqueeze(1) - x).abs().sum(1), rtol=1e-15, atol=0)
