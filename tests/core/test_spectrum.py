"""core.spectrum, moments and power_law against torch.linalg, numpy, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infotorch.core.rank_phases import rank_phases
from infotorch.core.spectrum import (
    Moments,
    alpha_req,
    effective_rank,
    eigenspectrum,
    fit_power_law,
    last_token_features,
    lidar,
    lidar_spectrum,
    nesum,
    participation_ratio,
    rankme,
    stable_rank,
)

FEW = pytest.mark.filterwarnings("ignore:.*below 2 rows per feature:UserWarning")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (300, 300), (600, 9)])
@pytest.mark.parametrize("center", [True, False])
@FEW
def test_spectrum_equals_singular_values(n, d, center):
    x = normal(n, d) * torch.arange(1.0, d + 1).pow(-0.7) + 3
    s = torch.linalg.svdvals(x - x.mean(0) if center else x)
    for source in (x, Moments.of(x), x.clone().requires_grad_()):
        torch.testing.assert_close(
            eigenspectrum(source, center=center).detach(), s.square() / s.square().sum(), rtol=1e-8, atol=1e-14
        )
        singular = rankme(source, spectrum="singular", center=center, eps=0.0).detach()
        p = s / s.sum()
        p = p[p > 1e-9]
        torch.testing.assert_close(singular, (-(p * p.log()).sum()).exp())
        torch.testing.assert_close(stable_rank(source, center=center).detach(), s.square().sum() / s[0] ** 2)


def test_streaming_equals_batch():
    x = normal(500, 6, dtype=torch.float32) * 3 + 1e4
    moments = Moments.zero(6)
    for part in x.split([1, 7, 92, 400]):
        moments = moments.add(part)
    wide = x.double()
    assert moments.shape == (500, 6)
    torch.testing.assert_close(moments.mean, wide.mean(0))
    torch.testing.assert_close(moments.covariance(), wide.mT.cov(), rtol=1e-9, atol=1e-12)
    left, right = Moments.of(x[:123]), Moments.of(x[123:])
    for merged in (left.merge(right), right.merge(left), Moments.zero(6).merge(left).merge(right)):
        torch.testing.assert_close(merged.scatter, moments.scatter, rtol=1e-9, atol=1e-9)
    assert torch.equal(moments.all_reduce().scatter, moments.scatter)
    torch.testing.assert_close(rankme(moments), rankme(x))


def test_scatter_by_panels_is_the_whole_product():
    x = normal(700, 530)
    centered = x - x.mean(0)
    torch.testing.assert_close(Moments.of(x).scatter, centered.mT @ centered, rtol=1e-11, atol=1e-10)


def test_single_precision_products():
    x = normal(3000, 300, dtype=torch.float32) * torch.arange(1.0, 301.0).pow(-0.5) + 5
    fast, exact = Moments.of(x, precision="float32"), Moments.of(x)
    assert fast.scatter.dtype is torch.float64
    assert (fast.scatter - exact.scatter).abs().max() < 1e-6 * exact.scatter.diagonal().max()
    torch.testing.assert_close(rankme(fast), rankme(exact), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="precision: expected one of float64, float32"):
        Moments.of(x, precision="bfloat16")


def test_trailing_dimensions_and_half_precision():
    x = normal(64, 2, 3, dtype=torch.float32)
    assert torch.equal(eigenspectrum(x), eigenspectrum(x.flatten(1)))
    assert float(rankme(x.bfloat16())) == pytest.approx(float(rankme(x)), rel=1e-2)
    assert rankme(x.half()).dtype is torch.float64


def test_closed_forms():
    flat = torch.ones(10)
    for value in (effective_rank(flat), stable_rank(flat), nesum(flat), participation_ratio(flat)):
        assert float(value) == pytest.approx(10)
    assert float(rankme(flat, eps=0.0)) == pytest.approx(10)
    one = torch.tensor([1.0, 0.0, 0.0])
    for value in (effective_rank(one), stable_rank(one), nesum(one), participation_ratio(one)):
        assert float(value) == 1
    spectrum = torch.tensor([0.5, 0.25, 0.25])
    assert float(effective_rank(spectrum)) == pytest.approx(2**1.5)
    assert float(effective_rank(spectrum, math.inf)) == pytest.approx(float(stable_rank(spectrum)))
    assert float(effective_rank(spectrum, 2.0)) == pytest.approx(float(participation_ratio(spectrum)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("weights", ["inverse_rank", "uniform"])
def test_power_laws_are_recovered(alpha, weights):
    law = fit_power_law(3 * torch.arange(1.0, 301.0, dtype=torch.float64) ** -alpha, weights=weights)
    assert float(law.alpha) == pytest.approx(alpha, abs=1e-12)
    assert float(law.log_scale) == pytest.approx(math.log(3))
    assert float(law.r2) == pytest.approx(1)


def test_fit_equals_numpy_weighted_polyfit():
    spectrum = (torch.arange(1.0, 301.0, dtype=torch.float64) ** -1 * normal(300).mul(0.2).exp()).sort(descending=True)[
        0
    ]
    ranks = np.arange(15, 81)
    y = np.log(spectrum.numpy()[14:80])
    slope, intercept = np.polyfit(np.log(ranks), y, 1, w=ranks**-0.5)  # polyfit squares its weights
    law = fit_power_law(spectrum, ranks=(15, 80))
    assert float(law.alpha) == pytest.approx(-slope)
    assert float(law.log_scale) == pytest.approx(intercept)
    assert torch.autograd.gradcheck(lambda e: fit_power_law(e, ranks=(15, 80)).alpha, spectrum.requires_grad_())


def test_alpha_of_features_with_a_power_law():
    x = normal(4096, 128) * torch.arange(1.0, 129.0).pow(-0.75)
    assert float(alpha_req(x).alpha) == pytest.approx(1.5, abs=0.1)


def test_short_spectra():
    spectrum = torch.arange(1.0, 61.0) ** -1
    with pytest.warns(UserWarning, match="fitted ranks 12 to 59"):
        law = fit_power_law(spectrum)
    assert (law.first, law.last) == (12, 59)
    assert float(law.alpha) == pytest.approx(1, abs=1e-5)
    with pytest.warns(UserWarning, match="too few"):
        assert fit_power_law(spectrum[:30]).alpha.isnan()
    hard_zeros = torch.cat([torch.arange(1.0, 61.0) ** -1, torch.zeros(100)])
    with pytest.warns(UserWarning, match="fitted ranks 12 to 59"):
        assert float(fit_power_law(hard_zeros).alpha) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@FEW
def test_rows_that_are_all_the_same(value):
    x = torch.full((9, 4), value)
    for source in (x, Moments.of(x), x.clone().requires_grad_()):
        assert eigenspectrum(source).tolist() == [1, 0, 0, 0]
        assert float(rankme(source, eps=0.0).detach()) == 1
    with pytest.warns(UserWarning, match="too few"):
        assert alpha_req(x).alpha.isnan()


def test_standardized_spectrum_is_that_of_the_correlation():
    x = normal(200, 5) * torch.tensor([1.0, 1e4, 1.0, 1e-3, 1.0])
    expected = torch.linalg.eigvalsh(x.mT.corrcoef()).flip(0) / 5
    for source in (x, Moments.of(x), x.clone().requires_grad_()):
        torch.testing.assert_close(eigenspectrum(source, standardize=True).detach(), expected)
    x[:, 2] = 7.0  # a constant column stays out
    assert eigenspectrum(x, standardize=True)[-1] < 1e-12


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)])
@pytest.mark.parametrize("options", [{}, {"center": False, "spectrum": "singular"}, {"standardize": True}])
@FEW
def test_rankme_gradients(n, d, options):
    # Centered wide features have one eigenvalue 0, whose share's logarithm only the epsilon keeps finite.
    eps = 1e-3 if n < d else 0.0
    assert torch.autograd.gradcheck(lambda x: rankme(x, eps=eps, **options), normal(n, d).requires_grad_())


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 30), d=st.integers(1, 12), seed=st.integers(0, 999))
@FEW
def test_rank_properties(n, d, seed):
    x = normal(n, d, seed=seed)
    rank = float(rankme(x, eps=0.0))
    assert 1 - 1e-9 <= rank <= min(n - 1, d) + 1e-9
    rotation = torch.linalg.qr(normal(d, d, seed=seed + 1))[0]
    assert float(rankme(5 * x @ rotation + 2, eps=0.0)) == pytest.approx(rank, rel=1e-6)
    assert 1 - 1e-9 <= float(nesum(x)) <= float(participation_ratio(x)) + 1e-9 <= rank + 1e-8


def test_lidar_against_scipy():
    views = normal(20, 4, 5) + 2 * normal(20, 1, 5, seed=1)
    means = views.mean(1)
    between = np.cov(means.numpy().T)
    residual = (views - means.unsqueeze(1)).reshape(-1, 5).numpy()
    within = residual.T @ residual / (20 * 3) + 1e-4 * np.eye(5)
    expected = scipy.linalg.eigh(between, within, eigvals_only=True)[::-1].copy()
    torch.testing.assert_close(lidar_spectrum(views), torch.from_numpy(expected))
    assert torch.autograd.gradcheck(lidar, normal(5, 3, 2).requires_grad_())


def test_last_token_wherever_padding_stands():
    hidden = normal(4, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]])
    expected = torch.stack([hidden[row, last] for row, last in enumerate((2, 4, 4, 3))])
    for marks in (mask, mask.bool()):
        assert torch.equal(last_token_features(hidden, marks), expected)
    with pytest.raises(ValueError, match="expected a token in every sequence, got none in 1"):
        last_token_features(hidden, mask * torch.tensor([[1], [1], [0], [1]]))
    with pytest.raises(ValueError, match=r"expected shapes \(B, T, d\) and \(B, T\), got \(4, 5\)"):
        last_token_features(hidden[..., 0], mask)


def test_phases_of_rank():
    down, up = [10.0, 9.0, 7.0, 6.0, 5.0], [5.0, 6.0, 8.0, 9.0, 9.2]
    constant = rank_phases([5.0, 5.1, 5.0, 4.9, 5.0])
    assert (constant.minimum, constant.maximum, constant.compressing) == (None, None, False)
    collapse = rank_phases(down + [5.0] * 4, window=1)
    assert (collapse.minimum, collapse.maximum) == (4, None)
    both = rank_phases(down + up, window=1)
    assert (both.minimum, both.maximum, both.compressing) == (4, 9, False)
    three = rank_phases(torch.tensor(down + up + [9.0, 8.0, 7.0]), window=1)
    assert (three.minimum, three.maximum, three.compressing) == (4, 9, True)
    assert rank_phases([5.0, 7.0, 9.0, 12.0], window=1).minimum is None  # only rises
    late = rank_phases([5.0, 7.0, 9.0, 6.0, 5.0, 8.0], window=1)
    assert (late.minimum, late.maximum) == (4, 5)
    outlier = rank_phases([*down, 50.0, *up], window=5)
    assert outlier.smoothed.max() < math.log(11)
    expected = np.median(np.log([10.0, 9.0, 7.0])), np.median(np.log(down))
    assert outlier.smoothed[0] == pytest.approx(expected[0])
    assert outlier.smoothed[2] == pytest.approx(expected[1])
    for bad, message in (([], "positive numbers"), ([1.0, 0.0], "positive numbers"), ([math.nan], "finite")):
        with pytest.raises(ValueError, match=f"ranks: expected {message}"):
            rank_phases(bad)
    with pytest.raises(ValueError, match="window: expected an odd number, got 4"):
        rank_phases([1.0], window=4)


def test_spectrum_errors():
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        nesum(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2 rows, got 0"):
        eigenspectrum(Moments.zero(3))
    with pytest.raises(ValueError, match="1 NaN or infinite entries of 12"):
        Moments.of(torch.tensor([[0.0, math.nan, 1.0]] + [[1.0, 2.0, 3.0]] * 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        eigenspectrum(torch.full((4, 3), math.inf).requires_grad_())
    with pytest.raises(TypeError, match=r"floating-point features, got torch\.int64"):
        eigenspectrum(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"torch.Tensor, got list"):
        eigenspectrum([[1.0]])
    with pytest.raises(ValueError, match="non-negative"):
        eigenspectrum(torch.tensor([1.0, -0.5]))
    with pytest.raises(ValueError, match="did you mean 'singular'"):
        rankme(torch.zeros(4, 1), spectrum="singulars")
    with pytest.raises(ValueError, match="ranks: expected"):
        fit_power_law(torch.ones(200), ranks=(100, 12))
    with pytest.raises(ValueError, match=r"views: expected shape \(n, q, d\)"):
        lidar(torch.zeros(4, 1, 3))
    with pytest.raises(ValueError, match="other: expected 3 features, got 4"):
        Moments.zero(3).merge(Moments.zero(4))
    with pytest.raises(ValueError, match="more than 1 rows"):
        Moments.of(torch.zeros(1, 2)).covariance()
    with pytest.warns(UserWarning, match="4 rows of 3 features"):
        rankme(normal(4, 3))


def test_moments_over_processes(run_distributed):
    counts = (1, 60)
    x = normal(sum(counts), 4) + 100
    whole = Moments.of(x)
    for found in run_distributed(reduced_scatter, len(counts), x, counts):
        torch.testing.assert_close(found, torch.cat([whole.scatter, whole.mean.unsqueeze(0)]), rtol=1e-9, atol=1e-9)


def reduced_scatter(x: Tensor, counts: tuple[int, ...]) -> Tensor:
    from infotorch.core import distributed

    moments = Moments.of(x.split(counts)[distributed.rank()]).all_reduce()
    return torch.cat([moments.scatter, moments.mean.unsqueeze(0)])
