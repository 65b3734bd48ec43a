"""Penalties on dependence."""

from __future__ import annotations

import pytest
import torch
from processes import run_in_processes
from torch import nn

from infotorch.core.dependence import ccdcov_sqr, distance_covariance_sqr, jdcov_sqr, u_ccdcov_sqr
from infotorch.fairness import (
    CCdCovPenalty,
    CorrelationPenalty,
    DistanceCovariancePenalty,
    JdCovPenalty,
    scale_prediction,
)
from infotorch.fairness.penalties import PENALTIES

DISTANCE = (DistanceCovariancePenalty, JdCovPenalty, CCdCovPenalty)
every = pytest.mark.parametrize("kind", PENALTIES.values())


def people(n: int = 60, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(2, (n,), generator=generator) for _ in range(2))
    age = torch.randn(n, generator=generator, dtype=torch.float64)
    f = (a ^ b) + 0.5 * age + torch.randn(n, generator=generator, dtype=torch.float64)
    return f, [a, b, age]


def test_values_are_the_core_functions():
    f, attributes = people()
    options = {"scale": "none", "estimator": "v"}
    marginal = sum(distance_covariance_sqr(f, a) for a in attributes)
    torch.testing.assert_close(DistanceCovariancePenalty(**options)(f, attributes), marginal)
    torch.testing.assert_close(CCdCovPenalty(**options)(f, attributes), ccdcov_sqr(f, attributes))
    expected = jdcov_sqr([f, *attributes], c=2.0) - 2.0 * jdcov_sqr(attributes, c=2.0)
    torch.testing.assert_close(JdCovPenalty(c=2.0, **options)(f, attributes), expected)
    torch.testing.assert_close(CCdCovPenalty(scale="none")(f, attributes), u_ccdcov_sqr(f, attributes))


@pytest.mark.parametrize("kind", DISTANCE)
def test_only_joint_penalties_see_a_combination(kind):
    a, b = torch.tensor([0, 0, 1, 1] * 20), torch.tensor([0, 1, 0, 1] * 20)
    value = kind(estimator="v")((a ^ b).double(), [a, b])
    assert (float(value) < 1e-12) == (kind is DistanceCovariancePenalty)


@pytest.mark.parametrize("kind", DISTANCE)
@pytest.mark.parametrize("scale", ["std", "dcor"])
def test_shrinking_is_no_way_out(kind, scale):
    f, attributes = people()
    f.requires_grad_()
    penalty = kind(scale=scale)
    torch.testing.assert_close(penalty(f, attributes), penalty(0.01 * f + 3, attributes))
    (slope,) = torch.autograd.grad(penalty(f, attributes), f)
    assert abs(float(slope @ f.detach())) < 1e-9 * float(slope.norm() * f.detach().norm()) + 1e-12
    plain = kind(scale="none")
    torch.testing.assert_close(plain(0.5 * f, attributes), 0.5 * plain(f, attributes))


@pytest.mark.parametrize("kind", DISTANCE)
def test_unbiased_on_small_batches(kind):
    """Batches of 16 of an independent prediction average to 0 with U-statistics, and well above with V-statistics."""
    values = {"u": [], "v": []}
    for seed in range(80):
        f = torch.randn(16, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
        attributes = people(16, seed)[1][1:]
        for estimator, found in values.items():
            found.append(kind(estimator=estimator, scale="none")(f, attributes))
    u, v = (torch.stack(values[e]) for e in ("u", "v"))
    assert abs(u.mean()) < 3 * u.std() / len(u) ** 0.5
    assert v.mean() > 5 * v.std() / len(v) ** 0.5


@every
@pytest.mark.parametrize("scale", ["none", "std", "dcor"])
def test_constant_prediction(kind, scale):
    _, attributes = people()
    f = torch.full((60,), 0.1, requires_grad=True)
    value = kind(scale=scale)(f, attributes)
    assert abs(float(value.detach())) < 1e-9
    value.backward()
    assert f.grad.isfinite().all()


@every
def test_half_precision(kind):
    f, attributes = people()
    value = kind()(f.bfloat16(), attributes)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, kind()(f.bfloat16().float(), attributes))


@every
def test_gradients(kind):
    f, attributes = people(12)
    for scale in ("none", "std", "dcor"):
        assert torch.autograd.gradcheck(lambda f, s=scale: kind(scale=s)(f, attributes), f.clone().requires_grad_())


def test_several_outputs():
    f, attributes = people()
    both = torch.stack((f, -f), 1)
    value = CCdCovPenalty(scale="none")(both, attributes)
    torch.testing.assert_close(value, 2**0.5 * CCdCovPenalty(scale="none")(f, attributes))
    torch.testing.assert_close(CCdCovPenalty()(f.unsqueeze(1), attributes), CCdCovPenalty()(f, attributes))


def test_correlation():
    f, attributes = people()
    numbers = torch.stack((f, *(a.double() for a in attributes)))
    expected = torch.corrcoef(numbers)[0, 1:].square().sum()
    torch.testing.assert_close(CorrelationPenalty()(f, attributes), expected)
    three = torch.arange(60) % 3
    assert CorrelationPenalty()(f, [three]) > 0


def test_bad_input():
    f, attributes = people()
    with pytest.raises(ValueError, match=r'prediction: expected at least 4 rows for estimator="u", got 3'):
        CCdCovPenalty()(f[:3], [attributes[0][:3]])
    with pytest.raises(ValueError, match=r"attributes\[1\]: expected 60 rows, as the prediction has, got 59"):
        CCdCovPenalty()(f, [attributes[0], attributes[1][1:]])
    with pytest.raises(ValueError, match="attributes: expected at least one, got none"):
        JdCovPenalty()(f, [])
    with pytest.raises(TypeError, match="prediction: expected a floating-point tensor"):
        JdCovPenalty()(f.long(), attributes)
    with pytest.raises(ValueError, match="scale: expected one of none, std, dcor"):
        JdCovPenalty(scale="max")
    with pytest.raises(ValueError, match="exponent: expected a number in"):
        CCdCovPenalty(exponent=2.0)
    with pytest.raises(ValueError, match="c: expected a number in"):
        JdCovPenalty(c=0.0)
    nan = attributes[2].clone()
    nan[0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        CCdCovPenalty()(f, [nan])
    with pytest.raises(ValueError, match="scale: expected one of"):
        scale_prediction(f, "sd")


def shares(sizes: list[int]) -> dict[str, torch.Tensor]:
    """The gradient of a linear model, averaged over processes with shares of these sizes."""
    from infotorch.core.distributed import all_reduce_sum, rank, world_size

    f, attributes = people(24)
    x = torch.stack((f, attributes[2]), 1)
    start = sum(sizes[: rank()])
    own = slice(start, start + sizes[rank()])
    found = {}
    for name, kind in PENALTIES.items():
        torch.manual_seed(0)
        model = nn.Linear(2, 1).double()
        value = kind(gather=True)(model(x[own]), [a[own] for a in attributes])
        value.backward()
        found[name] = torch.cat((value.detach().view(1), all_reduce_sum(model.weight.grad.flatten()) / world_size()))
    return found


def test_processes_equal_one(tmp_path):
    one = shares([24])
    for found in run_in_processes(tmp_path, shares, 2, [9, 15]):
        for name, value in one.items():
            torch.testing.assert_close(found[name], value)
