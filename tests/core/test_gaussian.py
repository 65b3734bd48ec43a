"""core.gaussian against closed forms, scipy and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from infotorch.core import gaussian as G


def correlated(n: int, rho: float = 0.6, d: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, noise = torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def random_covariance(d: int) -> Tensor:
    a = torch.randn(d, 2 * d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    return a @ a.T


def test_closed_forms():
    s = random_covariance(5)
    assert float(G.gaussian_entropy(s)) == pytest.approx(stats.multivariate_normal(cov=s.numpy()).entropy())
    parts = G.gaussian_entropy(s[:2, :2]) + G.gaussian_entropy(s[2:, 2:]) - G.gaussian_entropy(s)
    torch.testing.assert_close(G.gaussian_mi(s, 2), parts)
    torch.testing.assert_close(G.gaussian_mi(torch.stack((s, 3 * s)), 2), parts.expand(2))
    assert torch.autograd.gradcheck(lambda z: G.gaussian_mi(z @ z.T, 2), (s.requires_grad_(),))


def test_plugin_is_the_formula_of_the_sample_covariance():
    x, y = correlated(50)
    want = G.gaussian_mi(torch.cov(torch.cat((x, y), 1).T), 2)
    torch.testing.assert_close(G.estimate_gaussian_mi(x, y, corrected=False), want)
    rho = G.canonical_correlations(x, y)
    torch.testing.assert_close(-(1 - rho.square()).log().sum() / 2, want)
    moved = x @ torch.tensor([[2.0, 1.0], [0.0, -3.0]], dtype=torch.float64) + 1e3
    torch.testing.assert_close(G.estimate_gaussian_mi(moved, 1e-4 * y, corrected=False), want, rtol=1e-8, atol=0)


def test_one_column_gives_the_correlation():
    x, y = correlated(30, d=1)
    rho = stats.pearsonr(x[:, 0], y[:, 0])[0]
    value = G.estimate_gaussian_mi(x.squeeze(1), y, corrected=False)
    assert float(value) == pytest.approx(-math.log(1 - rho**2) / 2)


def test_correction_removes_the_bias():
    values = torch.stack(
        [
            torch.stack([G.estimate_gaussian_mi(*correlated(25, seed=s), corrected=c) for c in (False, True)])
            for s in range(400)
        ]
    )
    true = -math.log(1 - 0.36)
    assert float(values[:, 0].mean()) - true > 0.06
    assert abs(float(values[:, 1].mean()) - true) < 0.025


def test_gradient():
    x, y = correlated(12)
    assert torch.autograd.gradcheck(
        lambda a, b: G.estimate_gaussian_mi(a, b), (x.requires_grad_(), y.requires_grad_()), atol=1e-6
    )


def test_normal_scores_and_copula():
    x = torch.tensor([3.0, 1.0, 1.0, 9.0])
    want = stats.norm.ppf(stats.rankdata(x.numpy()) / 5)
    np.testing.assert_allclose(G.normal_scores(x).squeeze(1), want, atol=1e-12)
    mixed = torch.stack([torch.randint(5, (40,)).double(), torch.randn(40, dtype=torch.float64), torch.zeros(40)], 1)
    want = stats.norm.ppf(stats.rankdata(mixed.numpy(), axis=0) / 41)
    np.testing.assert_allclose(G.normal_scores(mixed), want, atol=1e-12)
    torch.testing.assert_close(G.scores_of_rows(torch.stack((mixed.T, -mixed.T)))[1], -G.normal_scores(mixed).T)
    x, y = correlated(300)
    value = G.copula_mi(x, y)
    assert float(G.copula_mi(x.exp(), y**3)) == pytest.approx(float(value), abs=1e-12)
    assert abs(float(value) + math.log(1 - 0.36)) < 0.15


def test_degenerate_samples():
    x, y = correlated(40)
    constant = torch.cat((x, torch.full((40, 1), 7.0)), 1)
    torch.testing.assert_close(G.estimate_gaussian_mi(constant, y), G.estimate_gaussian_mi(x, y))
    assert float(G.estimate_gaussian_mi(torch.ones(40), y)) == 0
    with pytest.warns(UserWarning, match="1 columns are combinations of others and are left out"):
        repeated = G.estimate_gaussian_mi(torch.cat((x, x.sum(1, keepdim=True)), 1), y)
    torch.testing.assert_close(repeated, G.estimate_gaussian_mi(x, y))
    with pytest.warns(UserWarning, match="their mutual information is infinite"):
        assert G.estimate_gaussian_mi(x, x.flip(1) * 2).isposinf()


def test_errors():
    x, y = correlated(10)
    with pytest.raises(ValueError, match="x, y: expected equal numbers of points, got"):
        G.estimate_gaussian_mi(x, y[:9])
    with pytest.raises(ValueError, match=r"x, y: expected more points than columns \(2 \+ 2\), got 4 points"):
        G.estimate_gaussian_mi(x[:4], y[:4])
    with pytest.raises(ValueError, match="covariance: expected a positive definite matrix"):
        G.gaussian_mi(-torch.eye(2), 1)
    with pytest.raises(ValueError, match=r"covariance: expected shape \(\.\.\., d, d\), got \(2, 3\)"):
        G.gaussian_entropy(torch.ones(2, 3))
    with pytest.raises(ValueError, match="dim_x: expected 0 < dim_x < 2, got 2"):
        G.gaussian_mi(torch.eye(2), 2)
    with pytest.raises(ValueError, match="y: expected finite values"):
        G.estimate_gaussian_mi(x, y * float("nan"))
