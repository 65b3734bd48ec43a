"""GaussianMI and CopulaMI: values, error bars, tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from infotorch.core.dependence.permutation import permutation_orders
from infotorch.core.gaussian import copula_mi, estimate_gaussian_mi
from infotorch.distributions import bivariate_normal
from infotorch.distributions.tasks import beyond_normal_tasks
from infotorch.estimators import CopulaMI, EstimationWarning, GaussianMI
from infotorch.estimators.base import generator_of

TASKS = beyond_normal_tasks()


def test_against_the_correlation_of_numpy():
    x, y = (z.numpy()[:, 0] for z in bivariate_normal(0.75).sample(300))
    want = -math.log(1 - np.corrcoef(x, y)[0, 1] ** 2) / 2
    assert GaussianMI(corrected=False, confidence=None).estimate(1e6 * x + 3, y) == pytest.approx(want)
    assert GaussianMI(confidence=None).fit(x, y).canonical_correlations_ == pytest.approx(abs(np.corrcoef(x, y)[0, 1]))


@pytest.mark.parametrize("task", ["1v1-normal-0.75", "multinormal-dense-5-5-0.5"])
@pytest.mark.parametrize("errors", ["bootstrap", "analytic"])
@pytest.mark.parametrize("make", [GaussianMI, CopulaMI])
def test_intervals_cover_what_they_say(task, errors, make):
    joint, repeats = TASKS[task], 40 if errors == "bootstrap" else 200
    found = [make(errors=errors, resamples=50).fit(*joint.sample(200, seed)) for seed in range(repeats)]
    values = np.array([f.mutual_information_ for f in found])
    assert 0.75 < np.mean([f.std_error_ for f in found]) / values.std(ddof=1) < 1.4
    for center in (values.mean(), joint.mutual_information()):
        assert np.mean([f.interval_[0] <= center <= f.interval_[1] for f in found]) >= 0.87


def test_the_bootstrap_does_not_need_normal_data():
    """Heavy tails spread correlations far more than the formula for normal data knows."""
    generator = torch.Generator().manual_seed(0)
    ratio = {}
    for errors in ("bootstrap", "analytic"):
        found = []
        for _ in range(60):
            scale = torch.rand(300, 1, generator=generator).double() ** -0.3  # three moments
            x, y = (scale * z for z in bivariate_normal(0.6).sample(300, generator))
            found.append(GaussianMI(errors=errors, resamples=50).fit(x, y))
        spread = np.std([f.mutual_information_ for f in found], ddof=1)
        ratio[errors] = np.mean([f.std_error_ for f in found]) / spread
    assert ratio["analytic"] < 0.8 * ratio["bootstrap"]


@pytest.mark.parametrize("corrected", [True, False])
def test_permuted_values_agree_with_a_loop(corrected):
    x, y = TASKS["multinormal-dense-2-2-0.5"].sample(100)
    orders = list(permutation_orders(100, 19, generator_of(0, "permutations"), x.device))[1]
    for make, measure in ((GaussianMI, estimate_gaussian_mi), (CopulaMI, copula_mi)):
        found = make(corrected=corrected, permutations=19, confidence=None).fit(x, y)
        torch.testing.assert_close(found.null_, torch.stack([measure(x, y[o], corrected=corrected) for o in orders]))
        assert found.p_value_ == 0.05
        assert found.mutual_information_ == pytest.approx(float(measure(x, y, corrected=corrected)))


def test_degenerate_columns():
    x, y = TASKS["multinormal-dense-2-2-0.5"].sample(100)
    want = GaussianMI(confidence=None).estimate(x, y)
    extra = torch.cat((x, x[:, :1] * 2, torch.ones(100, 1)), 1)
    with pytest.warns(EstimationWarning, match="left out"):
        found = GaussianMI(confidence=None).estimate(extra, y)
    assert found == pytest.approx(want)
    with pytest.warns(EstimationWarning, match="1 columns are combinations of others"):
        found = GaussianMI(permutations=9, resamples=5).fit(torch.cat((x, x.sum(1, keepdim=True)), 1), y)
    assert found.mutual_information_ == pytest.approx(want)
    assert found.null_.isfinite().all()
    with pytest.warns(EstimationWarning, match="their mutual information is infinite"):
        found = GaussianMI(permutations=9, resamples=5).fit(x, x[:, :1] + x[:, 1:])
    assert found.mutual_information_ == math.inf
    assert found.p_value_ == 0.1
    with pytest.warns(EstimationWarning, match="x: constant columns"):
        assert CopulaMI().fit(torch.ones(50), y[:50, 0]).interval_ == (0.0, 0.0)
    with pytest.warns(EstimationWarning, match="x: integers or categories"):
        CopulaMI(confidence=None).fit((10 * x).long(), y)


def test_errors():
    x, y = bivariate_normal(0.5).sample(20)
    with pytest.raises(ValueError, match="errors: expected one of bootstrap, analytic"):
        GaussianMI(errors="delta").fit(x, y)
    with pytest.raises(ValueError, match="expected more points than columns"):
        GaussianMI().fit(torch.randn(5, 4), torch.randn(5, 3))
