"""Samplers against their own truths: moments, and estimators that are right on them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from infotorch.core.differential import kl_entropy, ksg_mi, mixture_mi
from infotorch.core.discrete import discrete_entropy, discrete_mutual_information
from infotorch.core.gaussian import copula_mi, estimate_gaussian_mi
from infotorch.distributions import (
    AdditiveUniform,
    DiscreteTable,
    DiscreteUniformMixture,
    Joint,
    Normal,
    Student,
    ZeroInflatedPoisson,
    additive_uniform_mi,
    beyond_normal_tasks,
    bivariate_normal,
    dense_covariance,
    latent_covariance,
    paired_covariance,
    student_mi,
    symmetric_channel,
)
from infotorch.distributions import transforms as t

TASKS = beyond_normal_tasks()
SMALL = [name for name, joint in TASKS.items() if joint.dim_x + joint.dim_y <= 3]
UNTRANSFORMED = [name for name in TASKS if name.startswith("multinormal")]
JOINTS: list[Joint] = [
    *TASKS.values(),
    AdditiveUniform((0.1, 0.5, 2.0)),
    DiscreteUniformMixture(),
    ZeroInflatedPoisson(),
    DiscreteTable(torch.tensor([[3, 0, 1], [0, 2, 2]])),
    symmetric_channel(5, 0.1),
]


def scaled(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("joint", JOINTS, ids=[*TASKS, "additive", "discrete uniform", "poisson", "table", "channel"])
def test_samples(joint):
    x, y = joint.sample(50, 3)
    assert (x.shape, y.shape) == ((50, joint.dim_x), (50, joint.dim_y))
    assert x.dtype == torch.float64
    assert x.isfinite().all()
    assert y.isfinite().all()
    assert joint.mutual_information() > 0
    again = joint.sample(50, torch.Generator().manual_seed(3))
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)
    assert not torch.equal(joint.sample(50, 4)[0], x)
    assert joint.sample(2, dtype=torch.float32)[1].dtype == torch.float32


@pytest.mark.parametrize("name", SMALL)
def test_ksg_finds_the_truth_in_low_dimension(name):
    """After rank-preserving rescaling where tails are heavy; the narrow additive band is hard for neighbors."""
    x, y = TASKS[name].sample(2000, 1)
    if "student" in name:
        x, y = x.asinh(), y.asinh()
    tolerance = 0.15 if name == "1v1-additive-0.1" else 0.1
    assert float(ksg_mi(scaled(x), scaled(y), k=5)) == pytest.approx(TASKS[name].mutual_information(), abs=tolerance)


@pytest.mark.parametrize("name", UNTRANSFORMED)
def test_gaussian_estimate_finds_the_truth_on_normals(name):
    x, y = TASKS[name].sample(4000, 1)
    assert float(estimate_gaussian_mi(x, y)) == pytest.approx(TASKS[name].mutual_information(), abs=0.07)


def test_neighbors_fall_short_in_high_dimension():
    """Documented, and no bug: 1000 points in 50 dimensions have no near neighbors."""
    joint = TASKS["multinormal-sparse-25-25-2-2.0"]
    assert float(ksg_mi(*joint.sample(1000, 0), k=5)) < joint.mutual_information() - 0.4


def test_copula_is_blind_to_marginal_transforms():
    names = ["multinormal-sparse-3-3-2-2.0", "normal_cdf-multinormal-sparse-3-3-2-2.0"]
    values = [copula_mi(*TASKS[name].sample(500, 2)) for name in names]
    torch.testing.assert_close(values[0], values[1])


def test_normal_moments():
    s = latent_covariance(2, 3, pairs=2, common=0.5, strength=1.0, within=0.7, noise=0.2)
    x, y = Normal(s, 2).sample(40_000, 0)
    torch.testing.assert_close(torch.cov(torch.cat((x, y), 1).T), s, rtol=0, atol=0.03)


def test_latent_covariance_entry_by_entry():
    s = latent_covariance(2, 2, pairs=1, common=0.5, strength=2.0, within=0.3, noise=3.0)
    var_tied, var_free = 1 + 0.25 + 0.09 + 4, 1 + 0.25 + 0.09 + 9
    assert float(s[0, 2]) == pytest.approx((0.25 + 4) / var_tied)
    assert float(s[1, 3]) == pytest.approx(0.25 / var_free)
    assert float(s[0, 1]) == pytest.approx((0.25 + 0.09) / math.sqrt(var_tied * var_free))
    torch.testing.assert_close(s.diagonal(), torch.ones(4, dtype=torch.float64))
    assert float(paired_covariance(3, 2)[0, 3]) == pytest.approx(0.8)


def test_student_marginals_and_shared_scale():
    x, y = Student(dense_covariance(2, 0.5), 1, df=3.0).sample(50_000, 0)
    for z in (x, y):
        assert stats.kstest(z[:, 0].numpy(), stats.t(3).cdf).statistic < 0.01
    identity = Student(torch.eye(2), 1, df=3.0)
    x, y = identity.sample(5000, 1)
    assert stats.spearmanr(x.abs().numpy(), y.abs().numpy())[0] > 0.1
    assert float(ksg_mi(x.asinh(), y.asinh())) == pytest.approx(identity.mutual_information(), abs=0.05)


def test_student_tends_to_normal():
    s = dense_covariance(5, 0.4)
    limit = Normal(s, 2).mutual_information()
    assert float(student_mi(s, 2, math.inf)) == pytest.approx(limit)
    gaps = [float(student_mi(s, 2, df)) - limit for df in (1.0, 10.0, 1e3, 1e6)]
    assert gaps[:3] == sorted(gaps[:3], reverse=True)
    assert abs(gaps[-1]) < 1e-6


def test_student_truth_by_monte_carlo():
    joint = Student(dense_covariance(3, 0.6), 1, df=4.0)
    x, y = (z.numpy() for z in joint.sample(20_000, 0))
    s = joint.dispersion.numpy()
    both = stats.multivariate_t(shape=s, df=4).logpdf(torch.cat((torch.tensor(x), torch.tensor(y)), 1).numpy())
    alone = stats.t(4).logpdf(x[:, 0]) + stats.multivariate_t(shape=s[1:, 1:], df=4).logpdf(y)
    assert float((both - alone).mean()) == pytest.approx(joint.mutual_information(), abs=0.02)


def test_mixed_pairs():
    uniform, poisson = DiscreteUniformMixture(4), ZeroInflatedPoisson(0.15)
    for joint, k in ((uniform, 5), (poisson, 5)):
        assert float(mixture_mi(*joint.sample(4000, 0), k=k)) == pytest.approx(joint.mutual_information(), abs=0.06)
    x, y = poisson.sample(5000, 0)
    assert float((y == 0).double().mean()) == pytest.approx(0.15 + 0.85 * 0.5, abs=0.02)
    assert float(x.mean()) == pytest.approx(1, abs=0.05)


def test_additive_pieces_meet():
    assert float(additive_uniform_mi(0.5)) == pytest.approx(0.5)
    assert float(additive_uniform_mi(0.5 + 1e-9)) == pytest.approx(0.5, abs=1e-6)
    joint = AdditiveUniform((0.2, 1.0))
    assert joint.mutual_information() == pytest.approx(0.2 - math.log(0.4) + 0.25)
    x, y = joint.sample(1000, 0)
    assert ((y - x).abs() <= torch.tensor([0.2, 1.0])).all()


def test_tables():
    """Against scipy, and a channel's closed form; samples have the table's frequencies and never an impossible cell."""
    table = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table[1], table[:, 5], table[2, 2] = 0.0, 0.0, 0.0
    joint = DiscreteTable(7 * table)
    p = joint.table.numpy()
    expected = stats.entropy(p.ravel(), (p.sum(1, keepdims=True) * p.sum(0)).ravel())
    assert joint.mutual_information() == pytest.approx(float(expected), abs=1e-12)
    entropies = joint.entropies()
    for value, q in ((entropies.x, p.sum(1)), (entropies.y, p.sum(0)), (entropies.joint, p.ravel())):
        assert value == pytest.approx(float(stats.entropy(q)), abs=1e-12)
    x, y = joint.sample(20_000, 0, dtype=torch.int64)
    counts = torch.zeros(4, 6).index_put_((x[:, 0], y[:, 0]), torch.ones(20_000), accumulate=True)
    assert not counts[table == 0].any()
    occurs = table > 0
    assert (
        stats.chisquare(counts[occurs].numpy(), (20_000 * joint.table[occurs]).numpy(), sum_check=False).pvalue > 0.01
    )
    assert float(discrete_mutual_information(x, y)) == pytest.approx(joint.mutual_information(), abs=0.01)
    k, error = 6, 0.2
    by_hand = math.log(k) + error * math.log(error / (k - 1)) + (1 - error) * math.log(1 - error)
    assert symmetric_channel(k, error).mutual_information() == pytest.approx(by_hand)
    assert symmetric_channel(k, 1 - 1 / k).mutual_information() == pytest.approx(0, abs=1e-12)
    independent = DiscreteTable(torch.tensor([0.3, 0.7]).unsqueeze(1) * torch.tensor([0.5, 0.2, 0.3]))
    assert 0 <= independent.mutual_information() < 1e-12
    assert DiscreteTable(torch.ones(1, 3)).mutual_information() == 0


@pytest.mark.parametrize(
    "joint",
    [
        Normal(latent_covariance(2, 1, pairs=1, strength=1.5), 2),
        Student(dense_covariance(3, 0.5), 1, df=3.0),
        AdditiveUniform((0.4,)),
    ],
    ids=["normal", "student", "uniform"],
)
def test_differential_entropies(joint):
    """Their balance is the mutual information; nearest neighbors find them."""
    found = joint.entropies()
    assert found.x + found.y - found.joint == pytest.approx(joint.mutual_information(), abs=1e-12)
    x, y = joint.sample(20_000, 1)
    for value, sample in ((found.x, x), (found.y, y), (found.joint, torch.cat((x, y), 1))):
        assert float(kl_entropy(sample, k=5)) == pytest.approx(value, abs=0.06)


def test_further_entropies():
    assert Student(torch.eye(2), 1, df=math.inf).entropies() == Normal(torch.eye(2), 1).entropies()
    s = dense_covariance(3, 0.4)
    t = Student(s, 1, df=4.0).entropies()
    assert t.joint == pytest.approx(float(stats.multivariate_t(shape=s.numpy(), df=4).entropy()), abs=1e-9)
    assert t.x == pytest.approx(float(stats.t(4).entropy()))
    mixed = DiscreteUniformMixture(4)
    found = mixed.entropies()
    assert found.joint == pytest.approx(math.log(4) + math.log(2))
    x, y = mixed.sample(5000, 0)
    assert float(discrete_entropy(x.long())) == pytest.approx(found.x, abs=0.01)
    assert float(kl_entropy(y)) == pytest.approx(found.y, abs=0.05)
    for without in (ZeroInflatedPoisson(), TASKS["wiggly-1v1-normal-0.75"]):
        with pytest.raises(NotImplementedError, match="no closed form"):
            without.entropies()


def test_bimodal_marginals():
    joint = TASKS["1v1-bimodal-0.75"]
    x, y = joint.sample(5000, 0)
    for z, weights, means in ((x, (0.3, 0.7), (0, 5)), (y, (0.5, 0.5), (-1, 3))):

        def cdf(v, weights=weights, means=means):
            return sum(w * stats.norm.cdf(v - m) for w, m in zip(weights, means, strict=True))

        assert stats.kstest(z[:, 0].numpy(), cdf).pvalue > 0.01


def test_transforms():
    v = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = t.spiral(v, plane=(1, 2))
    torch.testing.assert_close(turned.norm(dim=1), v.norm(dim=1))
    assert torch.equal(turned[:, 0], v[:, 0])
    angle = float(v[0].square().sum()) / 3
    generator = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(turned[0], torch.linalg.matrix_exp(angle * generator) @ v[0])
    u = torch.linspace(0, 1, 50, dtype=torch.float64).unsqueeze(1)
    radius = 1.5 * math.pi * (1 + 2 * u.squeeze(1)) / 21
    torch.testing.assert_close(t.swiss_roll(u).norm(dim=1), radius)
    line = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    for increasing in (t.half_cube, t.wiggly_x, t.wiggly_y, t.normal_to_mixture((1, 2), (-3, 4))):
        assert (increasing(line).diff() > 0).all()
    shift = t.normal_to_mixture((5.0,), (2.0,))
    torch.testing.assert_close(shift(line), line + 2)


def test_errors():
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        bivariate_normal(0.5).sample(0)
    with pytest.raises(ValueError, match=r"correlation: expected a number in \(-1, 1\), got 1.0"):
        bivariate_normal(1.0)
    with pytest.raises(ValueError, match="covariance: expected a positive definite matrix"):
        Normal(dense_covariance(3, -0.9), 1)
    with pytest.raises(ValueError, match=r"df: expected a number in \(0, inf\], got 0"):
        Student(torch.eye(2), 1, df=0.0)
    with pytest.raises(ValueError, match="width: expected positive numbers"):
        AdditiveUniform((0.1, -1.0))
    with pytest.raises(ValueError, match=r"pairs: expected a number in \[0, 2\], got 3"):
        paired_covariance(2, 5, pairs=3)
    with pytest.raises(ValueError, match=r"u: expected shape \(n, 1\), got \(3, 2\)"):
        t.swiss_roll(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="plane: expected two different columns below 2"):
        t.spiral(torch.zeros(3, 2), plane=(1, 2))
    with pytest.raises(ValueError, match="weights, means: expected equal lengths"):
        t.normal_to_mixture((1.0,), (1.0, 2.0))
    with pytest.raises(ValueError, match=r"zero: expected a number in \[0, 1\), got 1"):
        ZeroInflatedPoisson(1)
    with pytest.raises(ValueError, match=r"table: expected shape \(K, L\), not empty, got \(3,\)"):
        DiscreteTable(torch.ones(3))
    with pytest.raises(ValueError, match="table: expected non-negative entries that are not all 0"):
        DiscreteTable(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="table: expected finite values"):
        DiscreteTable(torch.full((2, 2), torch.nan))
    with pytest.raises(TypeError, match=r"table: expected real numbers, got torch\.complex64"):
        DiscreteTable(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"error: expected a number in \[0, 1\], got 2"):
        symmetric_channel(3, 2.0)
    with pytest.raises(ValueError, match="levels: expected a number in"):
        DiscreteUniformMixture(0)
