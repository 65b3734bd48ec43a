"""core.categorical against scipy, torch.distributions and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import special, stats
from strategies import logits as logits_strategy
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from infotorch.core import categorical as C

INF = math.inf
quick = settings(max_examples=20, deadline=None, derandomize=True)


def sample(rows: int = 3, columns: int = 6, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(x: Tensor) -> np.ndarray:
    return x.softmax(-1).numpy()


def test_entropy_and_divergences_against_scipy():
    x, y = sample(seed=1), sample(seed=2)
    p, q = softmax(x), softmax(y)
    m = (p + q) / 2
    cases = {
        "entropy": (C.entropy(x), stats.entropy(p, axis=-1)),
        "kl": (C.kl_divergence(x, y), stats.entropy(p, q, axis=-1)),
        "cross": (C.cross_entropy(x, y), stats.entropy(p, axis=-1) + stats.entropy(p, q, axis=-1)),
        "js": (C.js_divergence(x, y), (special.rel_entr(p, m) + special.rel_entr(q, m)).sum(-1) / 2),
        "collision": (C.collision(x), (p**2).sum(-1)),
        "varentropy": (C.varentropy(x), np.sum(p * np.log(p) ** 2, -1) - stats.entropy(p, axis=-1) ** 2),
        "covariance": (
            C.entropy_covariance(x),
            np.array([np.cov(np.stack((r, np.log(r))), aweights=r, bias=True)[0, 1] for r in p]),
        ),
        "tsallis": (C.tsallis_entropy(x, 3.0), (1 - (p**3).sum(-1)) / 2),
        "renyi": (C.renyi_entropy(x, 0.5), 2 * np.log(np.sqrt(p).sum(-1))),
        "min-entropy": (C.renyi_entropy(x, INF), -np.log(p.max(-1))),
        "renyi divergence": (C.renyi_divergence(x, y, 2.0), np.log((p**2 / q).sum(-1))),
    }
    for name, (got, want) in cases.items():
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-10, err_msg=name)


def test_against_torch_distributions():
    x, y = sample(seed=3), sample(seed=4)
    torch.testing.assert_close(C.entropy(x), Categorical(logits=x).entropy())
    torch.testing.assert_close(C.kl_divergence(x, y), torch_kl(Categorical(logits=x), Categorical(logits=y)))


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (C.entropy, {}),
        (C.varentropy, {}),
        (C.collision, {}),
        (C.entropy_covariance, {}),
        (C.renyi_entropy, {"alpha": 0.5}),
        (C.renyi_entropy, {"alpha": 1.0}),
        (C.renyi_entropy, {"alpha": 3.0}),
        (C.renyi_entropy, {"alpha": INF}),
        (C.tsallis_entropy, {"q": 0.5}),
        (C.tsallis_entropy, {"q": 1.0}),
        (C.tsallis_entropy, {"q": 2.5}),
    ],
)
def test_entropies_with_forbidden_entries(function, options):
    """Values and gradients are those without the -inf columns, and probs say the same as logits."""
    x = sample()
    forbidden = torch.tensor([1, 4])
    full = x.index_fill(1, forbidden, -INF).requires_grad_()
    kept = [0, 2, 3, 5]
    short = x[:, kept].requires_grad_()
    value = function(full, **options)
    torch.testing.assert_close(value, function(short, **options))
    torch.testing.assert_close(function(probs=full.detach().softmax(-1), **options), value.detach())
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (grad,) = torch.autograd.grad((value * weights).sum(), full)
    (want,) = torch.autograd.grad((function(short, **options) * weights).sum(), short)
    torch.testing.assert_close(grad[:, kept], want)
    assert (grad[:, forbidden] == 0).all()
    if not math.isinf(options.get("alpha", 1.0)):
        assert torch.autograd.gradcheck(lambda z: function(z, **options), (x.clone().requires_grad_(),))


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (C.cross_entropy, {}),
        (C.kl_divergence, {}),
        (C.js_divergence, {}),
        (C.renyi_divergence, {"alpha": 0.5}),
        (C.renyi_divergence, {"alpha": 2.0}),
    ],
)
def test_divergences_with_forbidden_entries(function, options):
    x, y = sample(seed=5), sample(seed=6)
    kept = [0, 1, 2, 5]
    full = [z.index_fill(1, torch.tensor([3, 4]), -INF).requires_grad_() for z in (x, y)]
    short = [z[:, kept].requires_grad_() for z in (x, y)]
    value = function(*full, **options)
    torch.testing.assert_close(value, function(*short, **options))
    by_probs = function(p_probs=full[0].detach().softmax(-1), q_probs=full[1].detach().softmax(-1), **options)
    torch.testing.assert_close(by_probs, value.detach())
    grads = torch.autograd.grad(value.sum(), full)
    wants = torch.autograd.grad(function(*short, **options).sum(), short)
    for grad, want in zip(grads, wants, strict=True):
        torch.testing.assert_close(grad[:, kept], want)
        assert (grad[:, [3, 4]] == 0).all()
    assert torch.autograd.gradcheck(
        lambda a, b: function(a, b, **options), (x.clone().requires_grad_(), y.clone().requires_grad_())
    )


def test_missing_mass_is_infinitely_far():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0]])
    log2 = math.log(2)
    assert C.kl_divergence(p_probs=p, q_probs=q).tolist() == pytest.approx([INF, log2, INF])
    assert C.cross_entropy(p_probs=p, q_probs=q).tolist() == pytest.approx([INF, 2 * log2, INF])
    assert C.renyi_divergence(p_probs=p, q_probs=q, alpha=2.0).tolist() == pytest.approx([INF, log2, INF])
    # Below one only disjoint supports are infinitely far.
    assert C.renyi_divergence(p_probs=p, q_probs=q, alpha=0.5).tolist() == pytest.approx([log2, log2, INF])
    assert C.js_divergence(p_probs=p, q_probs=q)[2].item() == pytest.approx(log2)


def test_special_orders():
    x = torch.tensor([[0.0, 0.0, 1.0, -INF]])
    assert C.renyi_entropy(x, 0.0).item() == pytest.approx(math.log(3))
    for alpha in (1 - 1e-9, 1.0, 1 + 1e-9):
        torch.testing.assert_close(C.renyi_entropy(x, alpha), C.entropy(x))
        torch.testing.assert_close(C.tsallis_entropy(x, alpha), C.entropy(x))
    y = torch.tensor([[1.0, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(C.renyi_divergence(x, y, 1.0), C.kl_divergence(x, y))
    torch.testing.assert_close(C.renyi_divergence(x, y, 1.001), C.kl_divergence(x, y), rtol=1e-3, atol=0)
    torch.testing.assert_close(C.tsallis_entropy(x, 0.0), torch.tensor([2.0]))  # support size - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = sample(4, 500, 7).to(dtype), sample(4, 500, 8).to(dtype)
    for function in (C.entropy, C.varentropy, C.collision, C.entropy_covariance, C.renyi_entropy):
        got = function(x)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), function(x.double()), rtol=1e-5, atol=1e-6)
    for divergence in (C.kl_divergence, C.js_divergence, C.cross_entropy, C.renyi_divergence):
        got = divergence(x, y)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), divergence(x.double(), y.double()), rtol=1e-5, atol=1e-5)
    assert C.entropy(probs=x.softmax(-1)).dtype == torch.float32


def test_temperature_of_log_softmax():
    x = sample()
    torch.testing.assert_close(C.log_softmax(x, 0.7), (x / 0.7).log_softmax(-1))


@quick
@given(logits_strategy)
def test_entropy_bounds_and_symmetry(x: Tensor):
    support = (x > -INF).sum(-1).double()
    h = C.entropy(x)
    assert (h >= 0).all()
    assert (h <= support.log() + 1e-9).all()
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    for function in (C.entropy, C.varentropy, C.collision, C.entropy_covariance, C.renyi_entropy):
        torch.testing.assert_close(function(x[:, order]), function(x), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(function(x + 100), function(x), rtol=1e-7, atol=1e-9)


@quick
@given(logits_strategy)
def test_renyi_entropy_decreases_in_its_order(x: Tensor):
    values = torch.stack([C.renyi_entropy(x, alpha) for alpha in (0.0, 0.3, 1.0, 2.0, 7.0, INF)])
    assert (values.diff(dim=0) <= 1e-9).all()
    assert (values[-1] >= -1e-12).all()
    torch.testing.assert_close(values[3], -C.collision(x).log(), rtol=1e-9, atol=1e-12)


@quick
@given(logits_strategy)
def test_divergence_bounds(x: Tensor):
    y = x.flip(-1)
    kl, js = C.kl_divergence(x, y), C.js_divergence(x, y)
    assert (kl >= -1e-9).all()
    assert ((js >= -1e-9) & (js <= math.log(2) + 1e-9)).all()
    torch.testing.assert_close(js, C.js_divergence(y, x), rtol=1e-9, atol=1e-12)
    misses = ((x > -INF) & (y == -INF)).any(-1)
    assert torch.equal(kl.isinf(), misses)
    assert C.kl_divergence(x, x).abs().max() < 1e-12
    assert C.js_divergence(x, x).abs().max() < 1e-9


def test_errors():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="logits, probs: expected exactly one of them"):
        C.entropy()
    with pytest.raises(ValueError, match="logits, probs: expected exactly one of them"):
        C.collision(x, probs=x)
    with pytest.raises(ValueError, match="q: expected 3 categories in the last dimension as p has, got 4"):
        C.kl_divergence(x, torch.zeros(4))
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, inf\], got -1"):
        C.renyi_entropy(x, -1)
    with pytest.raises(ValueError, match=r"q: expected a number in \[0, inf\], got -2"):
        C.tsallis_entropy(x, -2)
    for alpha in (0.0, INF):
        with pytest.raises(ValueError, match=r"alpha: expected a number in \(0, inf\)"):
            C.renyi_divergence(x, x, alpha)
