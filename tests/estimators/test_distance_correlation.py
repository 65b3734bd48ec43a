"""DistanceCorrelation and HSIC against dcor and hyppo."""

from __future__ import annotations

import dcor
import numpy as np
import pytest
import torch
from hyppo import independence

from infotorch.estimators import HSIC, DistanceCorrelation, EstimationWarning

torch.set_num_threads(1)  # importing numba, as both references do, raises it to all cores: slow for small tensors


def pair(n: int = 80, dx: int = 2, seed: int = 0):
    x, noise = np.random.default_rng(seed).normal(size=(2, n, dx))
    return x, (x**2).sum(1) + noise[:, 0]


def scaled(z):
    return (z - z.mean(0)) / z.std(0, ddof=1)


def test_distance_correlation_against_dcor_and_hyppo():
    x, y = pair()
    a, b = scaled(x), scaled(y)
    biased = DistanceCorrelation(confidence=None).estimate(x, y)
    assert biased == pytest.approx(dcor.distance_correlation(a, b))
    assert biased == pytest.approx(independence.Dcorr(bias=True).statistic(a, b[:, None]))
    unbiased = DistanceCorrelation(unbiased=True, confidence=None).estimate(x, y)
    assert unbiased == pytest.approx(dcor.u_distance_correlation_sqr(a, b))
    assert unbiased == pytest.approx(independence.Dcorr().statistic(a, b[:, None]))
    raw = DistanceCorrelation(exponent=1.5, standardize=False, confidence=None).estimate(x, y)
    assert raw == pytest.approx(dcor.distance_correlation(x, y, exponent=1.5))


def test_p_values_near_those_of_hyppo():
    x, y = pair(50)
    y = y + np.random.default_rng(1).normal(size=50) * 4  # neither clear nor absent
    want = independence.Dcorr().test(scaled(x), scaled(y)[:, None], reps=2000, auto=False, random_state=0).pvalue
    found = DistanceCorrelation(permutations=2000, confidence=None).fit(x, y)
    assert 0.005 < want < 0.5
    assert found.p_value_ == pytest.approx(want, abs=0.04)
    assert found.null_.shape == (2000,)


def test_hsic_against_hyppo():
    """hyppo's statistic is the root of a kernel correlation."""
    x, y = pair(60, 1)
    widths = 0.7, 1.9

    def value(a, b, sigma):
        return HSIC(sigma=sigma, unbiased=False, standardize=False, confidence=None).estimate(a, b)

    ours = value(x, y, widths) / np.sqrt(value(x, x, widths[:1] * 2) * value(y, y, widths[1:] * 2))
    kernels = [np.exp(-((z - z.T) ** 2) / (2 * s * s)) for z, s in ((x, widths[0]), (y[:, None], widths[1]))]
    want = independence.Hsic(compute_kernel=None, bias=True).statistic(*kernels)
    assert np.sqrt(ours) == pytest.approx(want)


def test_categories():
    x = np.array(list("aabbcc") * 20)
    y = np.arange(120) % 7 * 1.0
    shuffled = {"a": "z", "b": "q", "c": "k"}  # other names in another order: the same categories
    for make in (DistanceCorrelation, HSIC):
        found = make(confidence=None).estimate(x, y)
        assert found == pytest.approx(make(confidence=None).estimate(np.array([shuffled[v] for v in x]), y))
        assert make(permutations=19, confidence=None).fit(x, x).p_value_ == 0.05


@pytest.mark.parametrize("make", [lambda: DistanceCorrelation(resamples=25), lambda: HSIC(resamples=25)])
def test_intervals(make):
    found = [make().fit(*pair(100, 1, seed)) for seed in range(40)]
    values = np.array([f.value_ for f in found])
    assert 0.75 < np.mean([f.std_error_ for f in found]) / values.std(ddof=1) < 1.7
    assert np.mean([f.interval_[0] <= values.mean() <= f.interval_[1] for f in found]) >= 0.85


def test_names_and_useless_columns():
    x, y = pair()
    assert DistanceCorrelation().fit(x, y).distance_correlation_ > 0
    assert HSIC().fit(x, y).hsic_ > 0
    for make in (DistanceCorrelation, HSIC):
        with pytest.warns(EstimationWarning, match="x: constant columns"):
            found = make(permutations=9).fit(np.ones(80), y)
        assert (found.value_, found.p_value_) == (0.0, 1.0)
        with pytest.raises(ValueError, match="expected at least 4 points"):
            make(permutations=9, confidence=None).fit([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert torch.is_tensor(HSIC(permutations=9).fit(torch.from_numpy(x), torch.from_numpy(y)).null_)
