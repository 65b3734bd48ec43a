"""core.matrix against scipy, numpy and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infotorch.core.matrix import (
    gaussian_gram,
    matrix_entropy,
    matrix_joint_entropy,
    matrix_mutual_information,
    median_distance,
    squared_distances,
    von_neumann_entropy,
)

ALPHAS = (0.0, 0.5, 0.999, 1.0, 1.01, 2.0, 5.0, math.inf)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_distances_and_gram_equal_scipy():
    x, y = normal(20, 3) + 50, normal(7, 3, seed=1) + 50
    expected = scipy.spatial.distance.cdist(x.numpy(), y.numpy(), "sqeuclidean")
    np.testing.assert_allclose(squared_distances(x, y), expected, atol=1e-11)
    pairs = scipy.spatial.distance.pdist(x.numpy())
    assert float(median_distance(x)) == pytest.approx(np.sort(pairs)[(len(pairs) - 1) // 2])
    gram = np.exp(-(scipy.spatial.distance.squareform(pairs) ** 2) / (2 * 0.7**2))
    np.testing.assert_allclose(gaussian_gram(x, 0.7), gram, atol=1e-12)


def test_float32_distances_survive_a_large_mean():
    x = normal(30, 4)
    near = squared_distances(x.float() + 1000.0)
    torch.testing.assert_close(near, squared_distances(x).float(), rtol=1e-3, atol=1e-3)


def test_median_distance_of_duplicates():
    mostly = torch.tensor([[0.0]] * 9 + [[2.0]])
    assert median_distance(mostly) == 2
    assert median_distance(torch.zeros(3, 2)) == 1
    assert median_distance(torch.zeros(1, 2)) == 1
    batch = torch.stack([normal(9, 2), 3 * normal(9, 2)])
    torch.testing.assert_close(median_distance(batch), torch.stack([median_distance(x) for x in batch]))
    assert float(median_distance(normal(300, 2), max_n=100)) == pytest.approx(
        float(median_distance(normal(300, 2))), rel=0.2
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_entropy_of_identity_and_of_rank_one(alpha):
    n = 6
    assert float(matrix_entropy(3 * torch.eye(n, dtype=torch.float64), alpha)) == pytest.approx(math.log(n))
    ones = torch.ones(n, n, dtype=torch.float64)
    # Below 1, eigenvalues of 1e-17 that should be 0 count with a power of themselves.
    assert float(matrix_entropy(ones, alpha)) == pytest.approx(0.0, abs=1e-6 if alpha == 0.5 else 1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_entropy_equals_numpy_eigenvalues(alpha):
    gram = gaussian_gram(normal(15, 3), 1.0)
    p = np.linalg.eigvalsh(gram.numpy() / 15)
    with np.errstate(divide="ignore"):
        expected = {
            0.0: math.log(15),
            1.0: -(p * np.log(p)).sum(),
            math.inf: -math.log(p.max()),
        }.get(alpha)
        if expected is None:
            expected = math.log((p**alpha).sum()) / (1 - alpha)
    assert float(matrix_entropy(gram, alpha)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25, 1e35])
def test_order_2_in_float32_at_any_scale(scale):
    gram = gaussian_gram(normal(1200, 8), 2.0)
    want = -(gram / 1200).square().sum().log()
    single = (scale * gram).float().requires_grad_()
    value = matrix_entropy(single)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(want), abs=1e-6)
    (grad,) = torch.autograd.grad(value, single)
    assert grad.isfinite().all()
    double = gram.clone().requires_grad_()
    (exact,) = torch.autograd.grad(matrix_entropy(double), double)
    torch.testing.assert_close(grad.double() * scale, exact, rtol=1e-4, atol=1e-9)


def test_order_2_refuses_what_the_others_refuse():
    for bad in (math.nan, math.inf):
        broken = torch.eye(3)
        broken[0, 1] = bad
        with pytest.raises(ValueError, match="gram: expected finite values, got 1 NaN or infinite entries of 9"):
            matrix_entropy(broken)
    with pytest.raises(ValueError, match="gram: expected a positive trace, got 0"):
        matrix_entropy(torch.zeros(3, 3))


def test_von_neumann_entropy_is_tr_rho_log_rho():
    covariance = torch.from_numpy(np.cov(normal(4, 50).numpy()))
    rho = (covariance / covariance.trace()).numpy()
    assert float(von_neumann_entropy(covariance)) == pytest.approx(-np.trace(rho @ scipy.linalg.logm(rho)))


def test_joint_gram_is_that_of_the_concatenation():
    x, y = normal(12, 2), normal(12, 3, seed=1)
    both = gaussian_gram(torch.cat([x / 0.8, y / 1.7], 1), 1.0)
    joint = matrix_joint_entropy(gaussian_gram(x, 0.8), gaussian_gram(y, 1.7), alpha=1.5)
    torch.testing.assert_close(joint, matrix_entropy(both, 1.5))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 12), d=st.integers(1, 4), sigma=st.floats(0.1, 10), seed=st.integers(0, 999))
def test_entropy_properties(n, d, sigma, seed):
    x, y = normal(n, d, seed=seed), normal(n, d, seed=seed + 1)
    gram_x, gram_y = gaussian_gram(x, sigma), gaussian_gram(y, sigma)
    orders = (1.0, 1.5, 2.0, 3.0, math.inf)
    values = [float(matrix_entropy(gram_x, alpha)) for alpha in orders]
    assert all(-1e-12 <= value <= math.log(n) + 1e-12 for value in values)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values)), "decreasing in the order"
    for alpha in (1.0, 2.0):
        joint = matrix_joint_entropy(gram_x, gram_y, alpha=alpha)
        assert joint >= torch.maximum(matrix_entropy(gram_x, alpha), matrix_entropy(gram_y, alpha)) - 1e-9
        own = matrix_mutual_information(gram_x, gram_x, alpha)
        assert own >= -1e-9
        assert own <= matrix_entropy(gram_x, alpha) + 1e-9
    permuted = gaussian_gram(x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))], sigma)
    assert float(matrix_entropy(permuted, 1.0)) == pytest.approx(values[0], abs=1e-9)


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.5, 2.0, 3.0])
def test_entropy_gradients(alpha):
    x = normal(2, 6, 2).requires_grad_()  # a batch of two
    sigma = torch.tensor([0.9, 1.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s: matrix_entropy(gaussian_gram(x, s), alpha), (x, sigma))


def test_gradient_at_a_degenerate_spectrum_is_finite():
    x = normal(4, 2).repeat(2, 1).requires_grad_()  # duplicated points
    (grad,) = torch.autograd.grad(matrix_entropy(gaussian_gram(x, 1.0), 1.0), x)
    assert grad.isfinite().all()
    matrix = torch.eye(4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(matrix_entropy(matrix, 1.0), matrix)
    torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)  # a maximum


def test_matrix_errors():
    with pytest.raises(TypeError, match="gram: expected a floating-point tensor"):
        matrix_entropy(torch.eye(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"gram: expected square .* got \(2, 3\)"):
        matrix_entropy(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="alpha: expected a number in"):
        matrix_entropy(torch.eye(3), -1.0)
    with pytest.raises(ValueError, match=r"grams: .*sizes \[2, 3\]"):
        matrix_joint_entropy(torch.eye(2), torch.eye(3))
    with pytest.raises(ValueError, match="at least one"):
        matrix_joint_entropy()
    for sigma in (0.0, -1.0, "mean", math.inf):
        with pytest.raises(ValueError, match="sigma: expected"):
            gaussian_gram(torch.zeros(3, 2), sigma)
    with pytest.raises(ValueError, match=r"x: expected shape \(..., n, d\)"):
        gaussian_gram(torch.zeros(3))
