"""DiscreteMI and DiscreteEntropy: values, error bars, tests."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from infotorch.core.discrete import ESTIMATORS, discrete_entropy, discrete_mutual_information
from infotorch.estimators import DiscreteEntropy, DiscreteMI, EstimationWarning

P = torch.tensor([[4.0, 1, 1], [1, 4, 1], [1, 1, 4]], dtype=torch.float64) / 18
TRUTH = float(torch.special.xlogy(P, P).sum() - 2 * torch.special.xlogy(P.sum(0), P.sum(0)).sum())


def draw(n: int, seed: int = 0, p: torch.Tensor = P):
    cell = torch.multinomial(p.flatten(), n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return cell // p.shape[1], cell % p.shape[1]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_core_values(estimator):
    x, y = draw(200)
    want = float(discrete_mutual_information(x, y, estimator=estimator))
    assert DiscreteMI(estimator, confidence=None).estimate(x.numpy(), y.numpy()) == pytest.approx(want, abs=1e-12)
    want = float(discrete_entropy(x, y, estimator=estimator))
    both = torch.stack((x, y), 1)
    assert DiscreteEntropy(estimator, confidence=None).estimate(both) == pytest.approx(want, abs=1e-12)


def test_against_scikit_learn():
    x, y = (z.numpy() for z in draw(100))
    assert DiscreteMI("plugin", confidence=None).estimate(x, y) == pytest.approx(mutual_info_score(x, y))
    names = np.array(["low", "middle", "high"])
    assert DiscreteMI("plugin", confidence=None).estimate(names[x], y) == pytest.approx(mutual_info_score(x, y))
    score = adjusted_mutual_info_score(x, y, average_method="min")
    most = min(DiscreteEntropy("plugin", confidence=None).estimate(z) for z in (x, y))
    assert DiscreteMI("adjusted", confidence=None).estimate(x, y) == pytest.approx(score * most)


@pytest.mark.parametrize("errors", ["half_samples", "bootstrap", "analytic"])
@pytest.mark.parametrize("estimator", ["plugin", "grassberger", "adjusted"])
def test_intervals_cover_what_they_say(errors, estimator):
    found = [DiscreteMI(estimator, errors=errors).fit(*draw(300, seed)) for seed in range(200)]
    values = np.array([f.mutual_information_ for f in found])
    low, high = np.array([f.interval_ for f in found]).T
    assert np.mean([f.std_error_ for f in found]) == pytest.approx(values.std(ddof=1), rel=0.2)
    for center in (values.mean(), TRUTH):
        assert np.mean((low <= center) & (center <= high)) >= 0.9


def test_sparse_tables_need_half_samples():
    """Where most points are alone in their cell, the bootstrap shows too little spread; halves do not."""
    p = torch.ones(10, 10, dtype=torch.float64) + 10 * torch.eye(10)
    ratios = {}
    for errors in ("half_samples", "bootstrap"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EstimationWarning)
            found = [DiscreteMI(errors=errors).fit(*draw(100, seed, p)) for seed in range(100)]
        spread = np.std([f.mutual_information_ for f in found], ddof=1)
        ratios[errors] = np.mean([f.std_error_ for f in found]) / spread
    assert ratios["bootstrap"] < 0.85 < ratios["half_samples"] < 1.3


@pytest.mark.parametrize("errors", ["half_samples", "bootstrap", "analytic"])
def test_entropy_intervals(errors):
    p = torch.arange(1, 6).double() / 15
    truth = -float(torch.special.xlogy(p, p).sum())
    generator = torch.Generator().manual_seed(0)
    draws = [torch.multinomial(p, 200, replacement=True, generator=generator) for _ in range(200)]
    found = [DiscreteEntropy(errors=errors).fit(x) for x in draws]
    spread = np.std([f.entropy_ for f in found], ddof=1)
    assert np.mean([f.std_error_ for f in found]) == pytest.approx(spread, rel=0.2)
    assert np.mean([f.interval_[0] <= truth <= f.interval_[1] for f in found]) >= 0.9


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "adjusted"])
def test_p_values(estimator):
    found = DiscreteMI(estimator, permutations=49, confidence=None).fit(*draw(100))
    assert found.p_value_ == 1 / 50
    assert found.null_.shape == (49,)
    assert float(found.null_.mean()) < found.mutual_information_
    independent = torch.ones(3, 3)
    p = [
        DiscreteMI(estimator, permutations=19, confidence=None).fit(*draw(60, s, independent)).p_value_
        for s in range(30)
    ]
    assert 0.3 < np.mean(p) < 0.7


def test_warnings():
    x, y = draw(100)
    with pytest.warns(
        EstimationWarning, match="x: floats given .* each of 3 distinct values in 100 points is a category"
    ):
        assert DiscreteMI(confidence=None).estimate(x.double(), y) == DiscreteMI(confidence=None).estimate(x, y)
    with pytest.warns(EstimationWarning, match="y: one category only"):
        found = DiscreteMI(permutations=9).fit(x, y * 0)
    assert found.mutual_information_ == pytest.approx(0, abs=1e-12)
    assert found.p_value_ == 1.0
    with pytest.warns(
        EstimationWarning, match=r"x, y: 100 of 100 points are alone in their cell of the table \(100 x 3"
    ):
        DiscreteMI().fit(torch.arange(100), y)
    with pytest.warns(EstimationWarning, match="x: 100 of 100 points are alone in their category"):
        DiscreteEntropy().fit(torch.arange(100))
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimationWarning)
        found = DiscreteMI().fit(x, y)
    assert found.n_cells_ == (3, 3, 9)
    three = DiscreteMI("plugin")
    with pytest.warns(EstimationWarning, match="3 points are too few for a confidence interval"):
        assert three.fit([0, 0, 1], [0, 0, 1]).interval_ is None


def test_options():
    x, y = draw(300)
    assert DiscreteEntropy("nsb", alphabet_size=50, confidence=None).estimate(x) == pytest.approx(
        float(discrete_entropy(x, estimator="nsb", alphabet_size=50))
    )
    independent = draw(300, 3, torch.ones(3, 3))
    found = [DiscreteMI("miller_madow", clip=clip).fit(*independent) for clip in (False, True)]
    assert found[0].interval_[0] < 0 == found[1].interval_[0]
    for make, text in (
        (lambda: DiscreteMI("nope").fit(x, y), "estimator: expected one of plugin"),
        (lambda: DiscreteMI(errors="jackknife").fit(x, y), "errors: expected one of half_samples, bootstrap, analytic"),
        (lambda: DiscreteEntropy("adjusted").fit(x), "estimator: expected one of plugin"),
        (lambda: DiscreteEntropy(alphabet_size=5).fit(x), "alphabet_size: expected None for grassberger, got 5"),
        (lambda: DiscreteMI().fit(x, y[:4]), "x, y: expected equal numbers of points, got 300 and 4"),
        (lambda: DiscreteMI().fit(np.array(["a", None], dtype=object), y[:2]), "x: expected no missing values, got 1"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
