"""Class ratios, their divergences and the mutual information against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch

from infotorch.adaptation import class_ratio_kl, class_ratios, class_size_penalty, entropy_map, mutual_information
from infotorch.adaptation.ratios import pixel_sums


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5), (1, 4, 3, 2, 2)])
def test_pixel_sums_and_their_gradient(shape):
    z = logits(*shape).requires_grad_()
    p = z.softmax(1)
    mass, entropies = pixel_sums(z, None)
    torch.testing.assert_close(mass, p.flatten(2).sum(2))
    torch.testing.assert_close(entropies, -(p * p.log()).flatten(2).sum(2))
    assert torch.autograd.gradcheck(lambda x: pixel_sums(x, None), z)


def test_pixel_sums_of_valid_pixels_only():
    z = logits(2, 3, 4, 5).requires_grad_()
    valid = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    mass, _ = pixel_sums(z, valid)
    torch.testing.assert_close(mass, (z.softmax(1) * valid.unsqueeze(1)).flatten(2).sum(2))
    assert torch.autograd.gradcheck(lambda x: pixel_sums(x, valid), z)


def test_a_second_derivative_is_refused():
    z = logits(1, 2, 3).requires_grad_()
    (grad,) = torch.autograd.grad(pixel_sums(z, None)[1].sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


def test_infinite_and_saturated_logits():
    z = torch.tensor([[[0.0, 1e3, -1e3], [0.0, -1e3, 1e3], [-math.inf, -math.inf, -math.inf]]]).requires_grad_()
    mass, entropies = pixel_sums(z, None)
    torch.testing.assert_close(mass, torch.tensor([[1.5, 1.5, 0.0]]))
    torch.testing.assert_close(entropies.sum(), torch.tensor(math.log(2)))
    (grad,) = torch.autograd.grad(entropies.sum() + mass[0, 0], z)
    assert grad.isfinite().all()


def test_normmax_counts_the_arg_max_for_large_powers():
    z = logits(2, 3, 6, 6)
    counts = torch.nn.functional.one_hot(z.argmax(1), 3).double().mean((1, 2))
    torch.testing.assert_close(class_ratios(z, ratio="normmax", power=1e4), counts)
    p = z.softmax(1)
    r = (p / p.amax(1, keepdim=True)).square().flatten(2).sum(2)
    torch.testing.assert_close(class_ratios(z, ratio="normmax", power=2.0), r / r.sum(1, keepdim=True))
    assert torch.autograd.gradcheck(lambda x: class_ratios(x, ratio="normmax", power=2.0), z.requires_grad_())


@pytest.mark.parametrize("ratio", ["mean", "normmax"])
def test_ratios_of_valid_pixels(ratio):
    z = logits(1, 3, 4, 6)
    valid = torch.zeros(1, 4, 6, dtype=torch.bool)
    valid[:, :, :2] = True
    padded = torch.where(valid.unsqueeze(1), z, torch.nan)
    torch.testing.assert_close(class_ratios(padded, ratio=ratio, valid=valid), class_ratios(z[..., :2], ratio=ratio))


def test_divergences():
    ratios, prior = torch.tensor([[0.2, 0.8], [0.5, 0.5]]), torch.tensor([0.4, 0.6])
    expected = [sum(a * math.log(a / b) for a, b in zip(row, prior.tolist(), strict=True)) for row in ratios.tolist()]
    torch.testing.assert_close(class_ratio_kl(ratios, prior), torch.tensor(expected))
    swapped = [sum(b * math.log(b / a) for a, b in zip(row, prior.tolist(), strict=True)) for row in ratios.tolist()]
    torch.testing.assert_close(class_ratio_kl(ratios, prior, direction="forward"), torch.tensor(swapped))
    torch.testing.assert_close(class_size_penalty(ratios, 0.9 * prior, 1.1 * prior)[0], torch.tensor(0.16**2 + 0.14**2))
    assert class_size_penalty(prior.unsqueeze(0), 0.9 * prior, 1.1 * prior) == 0


def test_an_absent_class_costs_23_nats_per_unit_of_mass():
    ratios, prior = torch.tensor([[0.9, 0.1]]), torch.tensor([1.0, 0.0])
    expected = 0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - math.log(1e-10))
    torch.testing.assert_close(class_ratio_kl(ratios, prior), torch.tensor([expected]))


def test_mutual_information_lies_between_0_and_log_k():
    z = logits(5, 4, 8, 8, scale=5.0)
    found = mutual_information(z)
    tau = z.softmax(1).mean((2, 3))
    torch.testing.assert_close(found, -(tau * tau.log()).sum(1) - entropy_map(z).mean((1, 2)))
    assert ((found > 0) & (found < math.log(4))).all()
    torch.testing.assert_close(mutual_information(z[..., :1].expand(-1, -1, -1, 8)[:, :, :1]), torch.zeros(5).double())
    assert mutual_information(z, valid=torch.zeros(5, 8, 8, dtype=torch.bool)).eq(0).all()


Z = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: class_ratios([1.0]), TypeError, "logits: expected a torch.Tensor, got list"),
        (lambda: class_ratios(Z.long()), TypeError, "logits: expected a floating-point tensor"),
        (lambda: class_ratios(Z[:, :1]), ValueError, "K >= 2 classes.*activation='sigmoid'"),
        (lambda: class_ratios(Z[:, :, 0, 0]), ValueError, r"logits: expected shape \(B, K, \*pixels\)"),
        (lambda: class_ratios(Z, ratio="max"), ValueError, "ratio: expected one of mean, normmax"),
        (lambda: class_ratios(Z, ratio="normmax", power=0), ValueError, "power: expected"),
        (lambda: class_ratios(Z, valid=torch.ones(2, 4, 4)), TypeError, "valid: expected a boolean"),
        (
            lambda: class_ratios(Z, valid=torch.ones(2, 4, dtype=torch.bool)),
            ValueError,
            r"valid: expected shape \(2, 4, 4\), got \(2, 4\)",
        ),
        (lambda: class_ratio_kl(torch.ones(2, 3), torch.ones(2)), ValueError, r"prior: expected shape \(3,\) or"),
        (lambda: class_ratio_kl(torch.ones(2, 3), torch.ones(3), direction="back"), ValueError, "direction: expected"),
        (lambda: class_ratio_kl(torch.ones(2, 3), torch.ones(3), eps=0), ValueError, "eps: expected"),
        (
            lambda: class_size_penalty(torch.ones(2, 3), torch.ones(3), torch.ones(4)),
            ValueError,
            "high: expected shape",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
