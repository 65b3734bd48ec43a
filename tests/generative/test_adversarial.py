"""Adversarial losses and R1 against their definitions; coverage of modes on samples counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from infotorch.generative import (
    coverage_of_labels,
    discriminator_loss,
    generator_loss,
    mode_coverage,
    r1_penalty,
)
from infotorch.generative.adversarial import LOSSES


def codes(seed):
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_losses_by_definition():
    real, fake = codes(0), codes(1)
    s, r = real.mean(1), fake.mean(1)
    expected = {
        "mean": (r.mean() - s.mean(), -r.mean()),
        "hinge": ((1 - s).clamp(min=0).mean() + (1 + r).clamp(min=0).mean(), -r.mean()),
        "non_saturating": (-(s.sigmoid().log().mean() + (1 - r.sigmoid()).log().mean()), -r.sigmoid().log().mean()),
    }
    assert set(expected) == set(LOSSES)
    for kind, (discriminator, generator) in expected.items():
        torch.testing.assert_close(discriminator_loss(real, fake, kind), discriminator)
        torch.testing.assert_close(generator_loss(fake, kind), generator)
        torch.testing.assert_close(discriminator_loss(s, r, kind), discriminator)


def test_large_scores_stay_finite():
    big = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = discriminator_loss(big, big, "non_saturating")
    assert bool(torch.autograd.grad(loss, big)[0].isfinite().all())


def test_losses_compile():
    compiled = torch.compile(discriminator_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(codes(0), codes(1), "hinge"), discriminator_loss(codes(0), codes(1), "hinge"))


def test_losses_refuse_bad_input():
    with pytest.raises(ValueError, match="kind: expected one of mean, hinge, non_saturating"):
        generator_loss(codes(0), "hing")
    with pytest.raises(ValueError, match="real: expected shape"):
        discriminator_loss(torch.zeros(0), torch.zeros(3))
    with pytest.raises(TypeError, match="fake: expected a floating"):
        generator_loss(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="x: expected a tensor that requires gradients"):
        r1_penalty(torch.zeros(2), torch.zeros(2, 3))


def test_r1_of_a_linear_map_is_its_squared_norm_and_trains_it():
    weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    x = torch.randn(4, 3, requires_grad=True)
    penalty = r1_penalty(x @ weight, x)
    torch.testing.assert_close(penalty, weight.square().sum())
    torch.testing.assert_close(torch.autograd.grad(penalty, weight)[0], 2 * weight)


def test_coverage_counts_modes_shares_and_divergence():
    centers = torch.tensor([[0.0, 0.0], [4.0, 0.0], [8.0, 0.0], [12.0, 0.0]])
    samples = torch.cat((torch.zeros(4, 2), torch.tensor([[4.0, 0.0], [4.1, 0.0], [8.0, 1.5], [8.0, 1.5]])))
    found = mode_coverage(samples, centers, radius=0.5, least=2)
    assert (found.covered, found.share) == (2, 0.75)
    p = torch.tensor([0.5, 0.25, 0.25])
    assert found.reverse_kl == pytest.approx((p * (p * 4).log()).sum().item())


def test_coverage_of_one_mode_and_of_all():
    assert coverage_of_labels(torch.zeros(9, dtype=torch.long), 10).reverse_kl == pytest.approx(math.log(10))
    even = coverage_of_labels(torch.arange(30) % 10, 10, least=3)
    assert (even.covered, even.reverse_kl) == (10, pytest.approx(0.0, abs=1e-12))


def test_coverage_refuses_bad_input():
    centers = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"centers: expected shape \(K, 3\)"):
        mode_coverage(torch.zeros(4, 3), centers, radius=1.0)
    with pytest.raises(ValueError, match="radius: expected"):
        mode_coverage(torch.zeros(4, 2), centers, radius=0.0)
    with pytest.raises(ValueError, match="samples: expected finite"):
        mode_coverage(torch.full((4, 2), torch.nan), centers, radius=1.0)
    with pytest.raises(TypeError, match="labels: expected integers"):
        coverage_of_labels(torch.zeros(3), 4)
    with pytest.raises(ValueError, match=r"labels: .* \[0, 4\)"):
        coverage_of_labels(torch.tensor([4]), 4)
