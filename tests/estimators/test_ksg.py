"""KSG, MixedKSG and RossMI: values, error bars, permutation tests and warnings."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from infotorch.core.dependence.permutation import permutation_orders
from infotorch.core.differential import ksg_mi, mixture_mi
from infotorch.core.gaussian import normal_scores
from infotorch.distributions import (
    DiscreteUniformMixture,
    Normal,
    bivariate_normal,
    dense_covariance,
    paired_covariance,
)
from infotorch.distributions.tasks import beyond_normal_tasks
from infotorch.estimators import KSG, AtomicMI, EstimationWarning, MixedKSG, RossMI, _permuted
from infotorch.estimators._spread import bootstrap_error, half_sample_error
from infotorch.estimators.base import generator_of

TASKS = beyond_normal_tasks()
bare = {"confidence": None, "check_bias": False}


def normal(n: int, rho: float = 0.75, seed: int = 0):
    return bivariate_normal(rho).sample(n, seed)


def silent(estimator, *data):
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimationWarning)
        return estimator.fit(*data)


def test_against_scikit_learn():
    x, y = (z.numpy() for z in normal(500))
    want = mutual_info_regression(x, y[:, 0], random_state=0)[0]
    assert KSG(**bare).estimate(x, y) == pytest.approx(want, abs=1e-3)  # it adds noise, which moves a rank or two
    labels = y[:, 0] > 0.4
    want = mutual_info_classif(x, labels, random_state=0)[0]
    assert RossMI(confidence=None).estimate(x, labels) == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("metric", ["max", "euclidean"])
def test_core_on_scaled_columns(variant, metric):
    x, y = TASKS["multinormal-dense-2-2-0.5"].sample(200)
    units = x * torch.tensor([1e3, 1e-4]) + 5
    scaled = [(z - z.mean(0)) / z.std(0) for z in (x, y)]
    found = silent(KSG(5, variant=variant, metric=metric, **bare), units, y)
    assert found.mutual_information_ == pytest.approx(float(ksg_mi(*scaled, k=5, variant=variant, metric=metric)))
    torch.testing.assert_close(found.local_.mean(), torch.tensor(found.mutual_information_, dtype=torch.float64))
    raw = KSG(5, variant=variant, metric=metric, standardize=False, **bare).estimate(x, y)
    assert raw == pytest.approx(float(ksg_mi(x, y, k=5, variant=variant, metric=metric)))
    ranks = KSG(5, variant=variant, metric=metric, standardize="normal_scores", **bare).estimate(x.exp(), y**3)
    want = ksg_mi(normal_scores(x), normal_scores(y), k=5, variant=variant, metric=metric)
    assert ranks == pytest.approx(float(want))


def test_truths():
    x, y = normal(2000)
    for estimator in (KSG(**bare), KSG(variant=2, **bare), MixedKSG(**bare)):
        assert estimator.estimate(x, y) == pytest.approx(0.413, abs=0.05)
    mixture = DiscreteUniformMixture(5)
    x, y = mixture.sample(2000)
    assert MixedKSG(**bare).estimate(x, y) == pytest.approx(mixture.mutual_information(), abs=0.05)
    assert MixedKSG(40, form="paper", **bare).estimate(x, y) == pytest.approx(mixture.mutual_information(), abs=0.1)
    assert RossMI(confidence=None).estimate(y, x.long()) == pytest.approx(mixture.mutual_information(), abs=0.05)


def test_heavy_tails_are_reported_and_normal_scores_mend_them():
    joint = TASKS["student-identity-1-1-1"]
    plain, ranks = [], []
    for seed in range(8):
        x, y = joint.sample(500, seed)
        with pytest.warns(EstimationWarning, match=r'column 0 has heavy tails .*standardize="normal_scores"'):
            plain.append(KSG(**bare).estimate(x, y))
        ranks.append(silent(KSG(standardize="normal_scores", **bare), x, y).mutual_information_)
    truth = joint.mutual_information()
    assert abs(np.mean(ranks) - truth) < abs(np.mean(plain) - truth) / 2


def test_nominal_categories_are_never_near():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (600,), generator=generator)
    y = torch.rand(600, generator=generator) + label
    names = np.array(["b", "zz", "a"])[label.numpy()]
    found = silent(MixedKSG(**bare), names, y.numpy())
    assert found.mutual_information_ == pytest.approx(math.log(3), abs=0.03)
    other = np.array(["q", "a", "m"])[label.numpy()]  # another order of the codes
    assert silent(MixedKSG(**bare), other, y.numpy()).mutual_information_ == pytest.approx(found.mutual_information_)


# ---------------------------------------------------------------- error bars


def test_half_samples_scale_to_the_spread_of_the_whole():
    """Of a mean the spread is known: the deviation over the root of n."""
    z = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    error = half_sample_error(lambda rows: float(z[rows].mean()), 400, resamples=2000, generator=generator_of(0))
    assert error == pytest.approx(float(z.std()) / 20, rel=0.05)
    large = torch.randn(20000, generator=torch.Generator().manual_seed(0)).double()  # sub-samples are smaller than half
    error = half_sample_error(lambda rows: float(large[rows].mean()), 20000, resamples=500, generator=generator_of(0))
    assert error == pytest.approx(float(large.std()) / math.sqrt(20000), rel=0.1)


def test_repeated_points_break_neighbors_and_halves_do_not():
    x, y = normal(400)
    rows = torch.randint(400, (400,), generator=torch.Generator().manual_seed(0))
    half = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:200]
    assert float(mixture_mi(x[rows], y[rows])) > 0.413 + 0.4
    assert float(ksg_mi(x[half], y[half])) == pytest.approx(0.413, abs=0.2)


@pytest.mark.parametrize(
    ("make", "joint"),
    [
        (lambda: KSG(check_bias=False, resamples=25), bivariate_normal(0.75)),
        (lambda: KSG(check_bias=False, variant=2, resamples=25), bivariate_normal(0.0)),
        (lambda: MixedKSG(check_bias=False, resamples=25), DiscreteUniformMixture(5)),
        (lambda: RossMI(standardize=False, resamples=25), None),
    ],
    ids=["normal", "independent", "mixture", "labels"],
)
def test_intervals_cover_what_they_say(make, joint):
    n, repeats = 150, 60
    values, errors, intervals = [], [], []
    for seed in range(repeats):
        if joint is None:
            generator = torch.Generator().manual_seed(seed)
            y = torch.randint(2, (n,), generator=generator)
            x, truth = torch.rand(n, generator=generator) + 0.3 * y, 0.3 * math.log(2)
        else:
            (x, y), truth = joint.sample(n, seed), joint.mutual_information()
        found = make().fit(x, y)
        values.append(found.mutual_information_)
        errors.append(found.std_error_)
        intervals.append(found.interval_)
    values, (low, high) = np.array(values), np.array(intervals).T
    assert 0.8 < np.mean(errors) / values.std(ddof=1) < 1.6  # conservative, within what 60 repeats can tell
    for center in (values.mean(), truth):  # at this size the bias of these is small
        assert np.mean((low <= center) & (center <= high)) >= 0.88


def test_bias_is_not_covered_and_is_reported():
    """Heavy tails: no interval of the spread reaches as far as the truth, and the docs say so."""
    joint = TASKS["student-identity-1-1-1"]
    with pytest.warns(EstimationWarning, match="heavy tails"):
        found = KSG().fit(*joint.sample(1600))
    assert found.interval_[1] < joint.mutual_information()
    assert found.interval_[0] < found.mutual_information_ < found.interval_[1]


def test_confidence_and_clip():
    x, y = normal(300, 0.0)
    narrow, wide = (KSG(confidence=c, check_bias=False).fit(x, y) for c in (0.5, 0.99))
    assert wide.interval_[0] < narrow.interval_[0] < narrow.interval_[1] < wide.interval_[1]
    assert narrow.std_error_ == wide.std_error_
    none = KSG(**bare).fit(x, y)
    assert none.interval_ is None
    assert none.std_error_ is None
    seeds = [s for s in range(20) if KSG(**bare).estimate(*normal(100, 0.0, s)) < 0]
    x, y = normal(100, 0.0, seeds[0])
    clipped, free = KSG(clip=True, check_bias=False).fit(x, y), KSG(check_bias=False).fit(x, y)
    assert clipped.mutual_information_ == clipped.interval_[0] == 0 > free.mutual_information_ > free.interval_[0]
    assert clipped.interval_[1] == free.interval_[1]


def test_too_few_points_for_halves():
    x, y = normal(7)
    with pytest.warns(EstimationWarning, match="x: 7 points are too few for a confidence interval"):
        found = KSG(k=3).fit(x, y)
    assert found.interval_ is None


def test_bootstrap_of_a_mean():
    z = torch.randn(300, generator=torch.Generator().manual_seed(0)).double()
    error = bootstrap_error(lambda rows: float(z[rows].mean()), 300, resamples=2000, generator=generator_of(0))
    assert error == pytest.approx(float(z.std()) / math.sqrt(300), rel=0.05)


# ---------------------------------------------------------------- permutations


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("metric", ["max", "euclidean"])
@pytest.mark.parametrize("together", [0, 1 << 16])
def test_kept_distances_give_the_same_values(d, metric, together, monkeypatch):
    monkeypatch.setitem(_permuted._TOGETHER, "cpu", together)
    monkeypatch.setattr("infotorch.core._brute._CPU_TILE", 2000)  # several tiles
    x, y = Normal(dense_covariance(2 * d, 0.5), d).sample(90)

    def orders():
        return permutation_orders(90, 9, torch.Generator().manual_seed(0), x.device)

    for variant in (1, 2):
        found = _permuted.ksg_values(x, y, orders(), k=4, variant=variant, metric=metric)
        want = [ksg_mi(x, y[o], k=4, variant=variant, metric=metric) for part in orders() for o in part]
        torch.testing.assert_close(found, torch.stack(want))
    for form in ("code", "paper"):
        found = _permuted.mixture_values(x, y, orders(), k=4, form=form, metric=metric)
        want = [mixture_mi(x, y[o], k=4, form=form, metric=metric) for part in orders() for o in part]
        torch.testing.assert_close(found, torch.stack(want))
    tied = torch.cat((x[:4], x[:1].expand(86, -1)))
    assert _permuted.ksg_values(tied, tied, orders(), k=4, variant=1, metric=metric).isnan().any()


@pytest.mark.parametrize("n", [100, 600])
def test_p_values(n):
    for make in (lambda: KSG(permutations=39, **bare), lambda: MixedKSG(permutations=39, **bare)):
        found = make().fit(*normal(n))
        assert found.p_value_ == 1 / 40
        assert found.null_.shape == (39,)
        assert abs(float(found.null_.mean())) < 0.1
        p = [make().fit(*normal(60, 0.0, seed)).p_value_ for seed in range(30)]
        assert 0.3 < np.mean(p) < 0.7
        assert min(p) >= 1 / 40
    x, y = normal(n)
    found = RossMI(permutations=39, confidence=None).fit(x, y > 0)
    assert found.p_value_ == 1 / 40
    assert RossMI(permutations=39, confidence=None).fit(x, (y > 0).roll(n // 2, 0)).p_value_ > 1 / 40
    assert KSG(**bare).fit(x, y).p_value_ is None


def test_tied_permutations_agree_with_a_loop():
    x = torch.randint(4, (80, 1), generator=torch.Generator().manual_seed(0)).double()
    found = MixedKSG(permutations=19, **bare).fit(x, x)
    orders = list(permutation_orders(80, 19, generator_of(0, "permutations"), x.device))[1]
    z = (x - x.mean(0)) / x.std(0)
    torch.testing.assert_close(found.null_, torch.stack([mixture_mi(z, z[o]) for o in orders]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    x, y = TASKS["multinormal-dense-2-2-0.5"].sample(300)
    for make in (lambda: KSG(permutations=29), lambda: MixedKSG(permutations=29)):
        here, there = make().fit(x, y), make().fit(x.cuda(), y.cuda())
        assert there.mutual_information_ == pytest.approx(here.mutual_information_, abs=1e-9)
        assert there.interval_ == pytest.approx(here.interval_, abs=1e-9)
        assert there.p_value_ == here.p_value_
        assert there.local_.is_cuda


# ---------------------------------------------------------------- warnings and errors


@pytest.mark.parametrize("task", ["multinormal-dense-25-25-0.5", "multinormal-sparse-25-25-2-2.0"])
def test_high_dimension_warns_with_the_figure(task):
    joint = TASKS[task]
    x, y = joint.sample(1000)
    with pytest.warns(
        EstimationWarning, match=r"x, y: 1000 points in 25 \+ 25 dimensions leave neighbors too far apart"
    ):
        found = KSG(confidence=None).fit(x, y)
    actual = found.mutual_information_ - joint.mutual_information()
    assert actual < -0.4
    assert found.reference_bias_ == pytest.approx(actual, abs=0.35)  # it is simulated from this very distribution
    assert "expect a value too low" in found.warnings_[0]


def test_one_dimension_does_not_warn():
    for seed in range(3):
        for rho in (0.0, 0.75, 0.95):
            found = silent(KSG(), *normal(1000, rho, seed))
            assert abs(found.reference_bias_) < 0.06
    silent(KSG(), *normal(100))
    silent(MixedKSG(), *normal(300))


def test_independent_columns_in_high_dimension_warn_too():
    """Nothing is there to be missed, and the user cannot know: a quarter nat would not have been seen."""
    x, y = torch.randn(2, 400, 20, generator=torch.Generator().manual_seed(0))
    with pytest.warns(EstimationWarning, match=r"and 0\.25 nats the estimator says 0\.0"):
        KSG(confidence=None).fit(x, y)


def test_more_columns_than_points():
    x, y = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0))
    with pytest.warns(EstimationWarning, match=r"30 points in 40 \+ 40 dimensions"):
        KSG().fit(x, y)


def test_useless_columns():
    x, y = normal(200)
    want = KSG(**bare).estimate(x, y)
    wide = torch.cat((torch.ones(200, 1), x, -3 * x + 1, x), 1)
    with pytest.warns(EstimationWarning) as caught:
        found = KSG(**bare).fit(wide, y)
    texts = [str(w.message) for w in caught]
    assert any("x: constant columns carry no information and are left out: 0" in t for t in texts)
    assert any("are left out: 1 of 0, 2 of 0" in t for t in texts)
    assert found.mutual_information_ == pytest.approx(want)
    assert found.n_features_x_ == 4
    for estimator in (KSG(permutations=9), MixedKSG(permutations=9), RossMI(permutations=9)):
        with pytest.warns(EstimationWarning, match="x: constant columns"):
            found = estimator.fit(torch.ones(200), y > 0)
        assert (found.mutual_information_, found.interval_, found.std_error_) == (0.0, (0.0, 0.0), 0.0)
        assert found.p_value_ == 1.0
        assert found.local_.shape == (200,)
    with pytest.warns(EstimationWarning, match="y: one category only"):
        assert RossMI().fit(x, np.array(["a"] * 200)).mutual_information_ == 0
    with pytest.warns(EstimationWarning, match=r"x, y: 1 columns stand on both sides \(x 0 is y 0"):
        assert math.isfinite(KSG(**bare).estimate(x, 2 * x))


def test_types_and_ties():
    x = torch.randint(6, (200,), generator=torch.Generator().manual_seed(0))
    y = x + torch.randint(2, (200,), generator=torch.Generator().manual_seed(1))
    with pytest.warns(EstimationWarning) as caught:
        found = KSG(**bare).fit(x, y)
    texts = " ".join(str(w.message) for w in caught)
    assert "x: integers or categories (6 distinct values in 200 points) given to an estimator of continuous" in texts
    assert "200 of 200 points coincide with k=3 or more others" in texts
    assert found.mutual_information_ == pytest.approx(silent(MixedKSG(**bare), x, y).mutual_information_)
    a, b = normal(200)
    noisy = silent(KSG(noise=1e-10, **bare), a.round(), b)
    assert math.isfinite(noisy.mutual_information_)
    with pytest.warns(
        EstimationWarning, match=r"y: floats given .* each of 200 distinct values .*\(200 of them occur once"
    ):
        assert_no_pairs(a, b)
    with pytest.warns(EstimationWarning, match="y: 1 of 3 categories occur once and are left out"):
        found = RossMI(confidence=None).fit(a[:50], [0] * 20 + [1] * 29 + [2])
    assert found.local_[-1].isnan()
    with pytest.warns(EstimationWarning, match="y: 1 of 2 categories have no more than k=3 points"):
        RossMI(confidence=None).fit(a[:50], [0] * 47 + [1] * 3)
    with pytest.warns(EstimationWarning, match="k: 11 points are few for k=3 neighbors"):
        KSG(**bare).fit(a[:11], b[:11])


def test_atomic_splits_off_what_repeats():
    def value(kind, *data):
        return silent(kind(confidence=None), *data).mutual_information_

    x, y = (z[:, 0] for z in normal(600))
    y = 0.8 * x + 0.6 * y
    rounded = [(20 * z).round() / 20 for z in (x, y.flip(0))]
    found = AtomicMI(permutations=19).fit(*rounded)
    assert found.interval_[0] < 0.0 < found.interval_[1]
    assert found.p_value_ > 0.05
    assert silent(MixedKSG(**bare), *rounded).mutual_information_ > 0.1  # what it is there to mend
    assert value(AtomicMI, x, y) == pytest.approx(value(KSG, x, y), abs=1e-6)
    words = np.where(x.numpy() > 0, "up", "down")
    assert value(AtomicMI, words, y) == pytest.approx(value(RossMI, y, words), abs=1e-6)
    assert value(AtomicMI, words, words) == pytest.approx(math.log(2), abs=0.01)
    rare = y > 1.9  # fewer than 5 % of the points, and a category all the same
    assert value(AtomicMI, x, rare) == pytest.approx(value(RossMI, x, rare), abs=0.02)
    zeros = torch.zeros(600, dtype=x.dtype).where(x < 0, x)
    assert value(AtomicMI, zeros, y) > value(KSG, x[x > 0], y[x > 0]) / 2  # and what the zeros tell
    with pytest.warns(EstimationWarning, match="constant columns carry no information"):
        assert AtomicMI().estimate(torch.ones(600), y) == 0.0
    with pytest.raises(ValueError, match="x: expected one column, got 2"):
        AtomicMI().fit(torch.stack((x, y), 1), y)
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\], got 2"):
        AtomicMI(share=2.0).fit(x, y)


def assert_no_pairs(x, y):
    with pytest.raises(ValueError, match="expected a class of at least 2 points"):
        RossMI().fit(x, y)


def test_errors():
    x, y = normal(20)
    for estimator in (KSG(20), MixedKSG(20), RossMI(20)):
        with pytest.raises(ValueError, match="k: expected 1 <= k < n with n=20 points, got 20"):
            estimator.fit(x, y > 0 if isinstance(estimator, RossMI) else y)
    for estimator in (KSG(), MixedKSG(), RossMI()):
        with pytest.raises(ValueError, match="x, y: expected equal numbers of points, got 20 and 5"):
            estimator.fit(x, y[:5])
        with pytest.raises(ValueError, match="x: expected finite values, got 20 that are NaN or infinity"):
            estimator.fit(x / 0, y)
    for options, text in (
        ({"variant": 3}, "variant: expected 1 or 2, got 3"),
        ({"metric": "l1"}, "metric: expected one of max, euclidean"),
        ({"standardize": "z"}, "standardize: expected True, False or \"normal_scores\", got 'z'"),
        ({"noise": -1.0}, r"noise: expected a number in \[0, inf\], got -1"),
        ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), got 1"),
        ({"resamples": 1}, "resamples: expected an int >= 2, got 1"),
        ({"permutations": -1}, r"permutations: expected a number in \[0, inf\], got -1"),
        ({"random_state": -1}, "random_state: expected a seed of at least 0"),
    ):
        with pytest.raises(ValueError, match=text):
            KSG(**options).fit(x, y)
    with pytest.raises(ValueError, match="form: expected one of code, paper"):
        MixedKSG(form="script").fit(x, y)


def test_paired_columns_matter():
    x, y = Normal(paired_covariance(2, 2, pairs=1), 2).sample(500)
    assert KSG(**bare).estimate(x, y) > 0.3
    assert abs(KSG(**bare).estimate(x[:, 1], y[:, 1])) < 0.1
