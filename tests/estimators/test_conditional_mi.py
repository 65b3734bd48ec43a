"""ConditionalMI, KLEntropy and TransferEntropy: values, error bars, tests that keep the condition."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from infotorch.core.differential import kl_entropy, ksg_cmi
from infotorch.core.transfer import transfer_entropy
from infotorch.estimators import KSG, ConditionalMI, EstimationWarning, KLEntropy, TransferEntropy
from infotorch.estimators.conditional import near_orders

TRUTH = -math.log(1 - 0.64) / 2


def triple(n: int, seed: int = 0, tie: float = 0.8):
    x, noise, z = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x + z, tie * x + math.sqrt(1 - tie**2) * noise + z, z


def series(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    noise, x, y = rng.normal(size=(2, n)), np.zeros(n), np.zeros(n)
    for t in range(1, n):
        x[t] = 0.6 * x[t - 1] + noise[0, t]
        y[t] = 0.5 * y[t - 1] + 0.6 * x[t - 1] + noise[1, t]
    return x, y


# ---------------------------------------------------------------- conditional mutual information


def test_core_and_truth():
    x, y, z = triple(1500)
    found = ConditionalMI(confidence=None).fit(x, y, z)
    want = ksg_cmi(*((v - v.mean()) / v.std() for v in (x, y, z)))
    assert found.mutual_information_ == pytest.approx(float(want))
    assert found.mutual_information_ == pytest.approx(TRUTH, abs=0.05)
    assert (found.n_features_x_, found.n_features_y_, found.n_features_z_) == (1, 1, 1)
    assert found.local_.mean() == pytest.approx(found.mutual_information_)


def test_a_constant_condition_changes_nothing():
    x, y, _ = triple(200)
    with pytest.warns(EstimationWarning, match="z: constant columns"):
        found = ConditionalMI(permutations=19).fit(x, y, torch.ones(200))
    assert found.mutual_information_ == pytest.approx(KSG(confidence=None).estimate(x, y))
    assert found.p_value_ == 0.05
    with pytest.warns(EstimationWarning, match="x: constant columns"):
        found = ConditionalMI(permutations=9).fit(torch.ones(200), y, x)
    assert (found.mutual_information_, found.interval_, found.p_value_) == (0.0, (0.0, 0.0), 1.0)


def test_near_orders():
    z = torch.randn(60, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orders = near_orders(z, 20, 5, torch.Generator().manual_seed(1))
    distances = (z - z.T).abs()
    reach = distances.sort(1).values[:, 5]
    assert (distances[torch.arange(60), orders] <= reach).all()
    repeats = 60 - torch.tensor([len(o.unique()) for o in orders])
    assert repeats.double().mean() < 8  # most places are used once
    assert (orders != torch.arange(60)).double().mean() > 0.6
    again = near_orders(z, 20, 5, torch.Generator().manual_seed(1))
    assert torch.equal(orders, again)
    coarse = torch.arange(3).repeat(20).double().unsqueeze(1)  # neighbors at distance 0 are drawn from all of them
    moved = near_orders(coarse, 50, 5, torch.Generator().manual_seed(0))
    assert (coarse.squeeze(1)[moved] == coarse.squeeze(1)).all()
    assert len(moved[:, 0].unique()) > 3
    free = near_orders(z[:, :0], 4, 5, torch.Generator().manual_seed(0))
    assert torch.equal(free.sort(1).values, torch.arange(60).expand(4, 60))


def test_the_test_keeps_the_condition():
    """x and y are tied through z alone: shuffling over all points would find them dependent every time."""
    kept, shuffled = [], []
    for seed in range(12):
        x, y, z = triple(120, seed, tie=0.0)
        kept.append(ConditionalMI(permutations=39, confidence=None, check_bias=False).fit(x, y, z).p_value_)
        shuffled.append(KSG(permutations=39, confidence=None, check_bias=False).fit(x, y).p_value_)
    assert np.median(shuffled) <= 0.05
    assert np.median(kept) > 0.2
    assert np.mean(np.array(kept) <= 0.05) < 0.35
    found = ConditionalMI(permutations=39, confidence=None).fit(*triple(200))
    assert found.p_value_ == 1 / 40
    assert found.null_.shape == (39,)


def test_cmi_intervals():
    found = [ConditionalMI(check_bias=False, resamples=25).fit(*triple(250, seed)) for seed in range(40)]
    values = np.array([f.mutual_information_ for f in found])
    assert 0.75 < np.mean([f.std_error_ for f in found]) / values.std(ddof=1) < 1.5
    for center in (values.mean(), TRUTH):
        assert np.mean([f.interval_[0] <= center <= f.interval_[1] for f in found]) >= 0.85


def test_cmi_warnings_and_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimationWarning)
        ConditionalMI().fit(*triple(1000))
    x, y, z = torch.randn(3, 500, 6, generator=torch.Generator().manual_seed(0))
    with pytest.warns(EstimationWarning, match=r"x, y, z: 500 points in 6 \+ 6 \+ 6 dimensions"):
        found = ConditionalMI(confidence=None).fit(x, y, z)
    assert found.reference_bias_ < -0.1
    x, y, z = triple(30)
    with pytest.raises(ValueError, match="k: expected 1 <= k < n with n=30 points, got 30"):
        ConditionalMI(30).fit(x, y, z)
    with pytest.raises(ValueError, match="x, y, z: expected equal numbers of points, got 30 and 30 and 5"):
        ConditionalMI().fit(x, y, z[:5])
    signs = [v.sign() for v in (x, y, z)]
    with pytest.raises(ValueError, match="points coincide with k=3 or more others"):
        ConditionalMI().fit(*signs)
    assert math.isfinite(ConditionalMI(noise=1e-10).estimate(*signs))


# ---------------------------------------------------------------- differential entropy


@pytest.mark.parametrize("d", [1, 3])
def test_entropy(d):
    x = 3 * torch.randn(1000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = d * (math.log(2 * math.pi * math.e) / 2 + math.log(3))
    found = KLEntropy().fit(x)
    assert found.entropy_ == pytest.approx(truth, abs=0.15)
    assert found.interval_[0] < truth < found.interval_[1]
    assert KLEntropy(standardize=False, confidence=None).estimate(x) == pytest.approx(float(kl_entropy(x)))
    units = torch.tensor([1e4, 1e-3, 1.0])[:d]
    moved = KLEntropy(confidence=None).estimate(x * units + 7)
    assert moved == pytest.approx(found.entropy_ + float(units.log().sum()), abs=1e-6)


def test_entropy_intervals():
    draws = [torch.rand(150, generator=torch.Generator().manual_seed(s)) for s in range(60)]
    found = [KLEntropy(check_bias=False).fit(x) for x in draws]
    values = np.array([f.entropy_ for f in found])
    assert 0.8 < np.mean([f.std_error_ for f in found]) / values.std(ddof=1) < 1.6
    assert np.mean([f.interval_[0] <= values.mean() <= f.interval_[1] for f in found]) >= 0.88


def test_entropy_is_never_infinite():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    want = KLEntropy().estimate(x)
    with pytest.warns(EstimationWarning, match="x: constant columns"):
        assert KLEntropy().estimate(torch.cat((x, torch.ones(100, 1)), 1)) == pytest.approx(want)
    with pytest.warns(EstimationWarning, match="x: columns that repeat another"):
        assert KLEntropy().estimate(torch.cat((x, 2 * x), 1)) == pytest.approx(want)
    with pytest.raises(ValueError, match="x: expected a column that varies, got constants"):
        KLEntropy().fit(torch.ones(10))
    with pytest.raises(ValueError, match=r"x: more than k=3 points coincide.* minus infinity .*add noise"):
        KLEntropy().fit(torch.arange(4).repeat(25).double())
    with pytest.raises(ValueError, match="x: a column is a linear combination of others"):
        KLEntropy().fit(torch.cat((x, x.sum(1, keepdim=True)), 1))
    assert math.isfinite(KLEntropy(noise=1e-3).estimate(torch.arange(4).repeat(25).double()))
    with pytest.warns(EstimationWarning, match=r"300 points in 15 dimensions .* the estimator is off by \+[0-9.]+"):
        KLEntropy(confidence=None).fit(torch.randn(300, 15, generator=torch.Generator().manual_seed(0)))


# ---------------------------------------------------------------- transfer entropy


def test_transfer_both_ways():
    x, y = series(400)
    found = TransferEntropy(permutations=39, resamples=20).fit(x, y)
    a, b = ((torch.from_numpy(v) - v.mean()) / v.std(ddof=1) for v in (x, y))
    assert found.transfer_entropy_ == found.value_ == pytest.approx(float(transfer_entropy(a, b)))
    assert found.reverse_transfer_entropy_ == pytest.approx(float(transfer_entropy(b, a)))
    assert (found.p_value_, found.null_.shape) == (1 / 40, (39,))
    assert isinstance(found.reverse_null_, np.ndarray)
    assert found.reverse_p_value_ > 0.05
    assert found.interval_[0] > 0.05
    assert found.reverse_interval_[0] < 0.03
    other = TransferEntropy(source_history=2, dest_history=3, lag=2, confidence=None).fit(x, y)
    want = transfer_entropy(a, b, source_history=2, dest_history=3, lag=2)
    assert other.transfer_entropy_ == pytest.approx(float(want))


def test_transfer_intervals():
    """Consecutive steps share their past; errors from single steps would be too small."""
    found = [TransferEntropy(resamples=25).fit(*series(200, seed)) for seed in range(40)]
    values = np.array([f.transfer_entropy_ for f in found])
    assert 0.75 < np.mean([f.std_error_ for f in found]) / values.std(ddof=1) < 1.5
    assert np.mean([f.interval_[0] <= values.mean() <= f.interval_[1] for f in found]) >= 0.85


def test_discrete_transfer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (400,), generator=generator)
    flip = torch.rand(400, generator=generator) < 0.1
    y = x.roll(1) ^ flip
    found = TransferEntropy(permutations=19).fit(x, y)
    truth = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    assert found.interval_[0] < truth < found.interval_[1]
    assert found.p_value_ == 0.05
    names = np.array(["no", "yes"])
    assert TransferEntropy(confidence=None).estimate(names[x], names[y]) == pytest.approx(found.transfer_entropy_)
    with pytest.raises(TypeError, match="x, y: expected both discrete or both continuous series"):
        TransferEntropy().fit(x, y.double())
    with pytest.warns(EstimationWarning, match="12 steps are too few for a confidence interval"):
        TransferEntropy().fit(x[:13], y[:13])
