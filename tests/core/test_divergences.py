"""core.categorical beyond the basics: further divergences, and orders near 1 in float32."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from strategies import logits as logits_strategy
from torch import Tensor

from infotorch.core import categorical as C

INF = math.inf
quick = settings(max_examples=20, deadline=None, derandomize=True)
NEW = (C.total_variation, C.chi2_divergence, C.squared_hellinger)


def sample(seed: int) -> Tensor:
    return 2 * torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_values():
    x, y = sample(1), sample(2)
    p, q = x.softmax(-1), y.softmax(-1)
    torch.testing.assert_close(C.total_variation(x, y), (p - q).abs().sum(-1) / 2)
    torch.testing.assert_close(C.chi2_divergence(x, y), ((p - q) ** 2 / q).sum(-1))
    torch.testing.assert_close(C.squared_hellinger(x, y), ((p.sqrt() - q.sqrt()) ** 2).sum(-1) / 2)
    torch.testing.assert_close(C.min_entropy(x), -p.amax(-1).log())
    torch.testing.assert_close(C.perplexity(x), C.entropy(x).exp())
    torch.testing.assert_close(C.normalized_entropy(x), C.entropy(x) / math.log(6))


@pytest.mark.parametrize("function", NEW)
def test_forbidden_entries_and_gradients(function):
    x, y = sample(5), sample(6)
    kept = [0, 1, 2, 5]
    full = [z.index_fill(1, torch.tensor([3, 4]), -INF).requires_grad_() for z in (x, y)]
    short = [z[:, kept].requires_grad_() for z in (x, y)]
    value = function(*full)
    torch.testing.assert_close(value, function(*short))
    torch.testing.assert_close(function(p_probs=full[0].softmax(-1), q_probs=full[1].softmax(-1)), value)
    grads = torch.autograd.grad(value.sum(), full)
    for grad, want in zip(grads, torch.autograd.grad(function(*short).sum(), short), strict=True):
        torch.testing.assert_close(grad[:, kept], want)
        assert (grad[:, [3, 4]] == 0).all()
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), y.requires_grad_()))


def test_disjoint_supports():
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert [float(f(p_probs=p, q_probs=q)) for f in NEW] == [1.0, INF, 1.0]


@quick
@given(logits_strategy)
def test_bounds_between_divergences(x: Tensor):
    y = x.flip(-1)
    tv, chi2, h2 = (f(x, y) for f in NEW)
    kl = C.kl_divergence(x, y)
    assert ((h2 <= tv + 1e-9) & (tv <= (2 * h2).clamp(min=0).sqrt() + 1e-7)).all()
    assert (tv.square() <= kl / 2 + 1e-9).all()  # Pinsker
    assert (kl <= chi2.log1p() + 1e-9).all()
    assert ((C.normalized_entropy(x) >= -1e-9) & (C.normalized_entropy(x) <= 1 + 1e-9)).all()
    for f in NEW:
        assert f(x, x).abs().max() < 1e-9


@pytest.mark.parametrize("order", [0.95, 0.999, 1 - 1e-5, 1 + 1e-5, 1.001, 1.05])
@pytest.mark.parametrize("family", [C.renyi_entropy, C.tsallis_entropy])
def test_orders_near_one_keep_float32(family, order):
    """The textbook quotient would lose all digits: the error is the entropy's own, not that over (1 - order)."""
    x = sample(3).float()
    torch.testing.assert_close(family(x, order).double(), family(x.double(), order), rtol=2e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda z: family(z, order), (sample(4).requires_grad_(),))


def test_large_order_and_order_zero():
    x = sample(3).requires_grad_()
    p = x.detach().softmax(-1)
    want = (p.amax(-1).log() * 50 + ((p / p.amax(-1, keepdim=True)) ** 50).sum(-1).log()) / -49
    torch.testing.assert_close(C.renyi_entropy(x, 50.0).detach(), want)
    (grad,) = torch.autograd.grad(C.renyi_entropy(x, 0.0).sum(), x)
    assert not grad.any()


def test_underflowing_probabilities_keep_their_logarithms():
    x, y = torch.tensor([0.0, -200.0]), torch.tensor([-200.0, 0.0])  # exp(-200) is 0 in float32
    assert float(C.kl_divergence(x, y)) == pytest.approx(200)
    assert float(C.renyi_entropy(x, 0.0)) == pytest.approx(math.log(2))
    assert float(C.renyi_entropy(x, 0.25)) == pytest.approx(math.exp(-50) / 0.75, rel=1e-4, abs=1e-20)
    assert float(C.normalized_entropy(torch.tensor([0.0, -INF]))) == 0
