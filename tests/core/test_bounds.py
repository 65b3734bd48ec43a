"""core.bounds against loops over pairs, limits and inequalities that tie the bounds together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp
from torch import Tensor

from infotorch.core import bounds as B

quick = settings(max_examples=25, deadline=None, derandomize=True)
matrices = st.integers(2, 7).flatmap(lambda b: hnp.arrays(np.float64, (b, b), elements=st.floats(-12, 12)))
ALL = {
    "dv": B.donsker_varadhan,
    "mine": lambda s: B.mine(s)[0],
    "nwj": B.nwj,
    "tuba": lambda s: B.tuba(s, torch.zeros(s.shape[-1], dtype=s.dtype)),
    "infonce": B.infonce,
    "infonce_symmetric": lambda s: B.infonce(s, symmetric=True),
    "alpha": lambda s: B.alpha_tuba(s, torch.ones(s.shape[-1], dtype=s.dtype), 0.3),
    "js": B.jensen_shannon,
    "js_mi": B.js_mi_nwj,
    "smile": lambda s: B.smile(s, 2.0),
    "club": B.club,
    "club_off": lambda s: B.club(s, off_diagonal=True),
    "leave_one_out": B.leave_one_out,
}
each = pytest.mark.parametrize("bound", ALL.values(), ids=ALL.keys())


def scores(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(s: np.ndarray, baseline: np.ndarray, alpha: float) -> dict[str, float]:
    b = len(s)
    pairs = [(i, j) for i in range(b) for j in range(b) if i != j]
    off = np.array([s[i, j] for i, j in pairs])
    lme = logsumexp(off) - math.log(len(off))

    def c(i: int, j: int) -> float:
        others = np.mean([math.exp(s[i, m]) for m in range(b) if m != j])
        return math.log(alpha * others + (1 - alpha) * math.exp(baseline[i]))

    return {
        "dv": np.trace(s) / b - lme,
        "nwj": 1 + np.trace(s - 1) / b - np.exp(off - 1).mean(),
        "tuba": 1 + (np.diag(s) - baseline).mean() - np.mean([math.exp(s[i, j] - baseline[i]) for i, j in pairs]),
        "infonce": np.mean([s[i, i] - logsumexp(s[i]) for i in range(b)]) + math.log(b),
        "alpha": 1
        + np.mean([s[i, i] - c(i, j) for i, j in pairs])
        - np.mean([math.exp(s[i, j] - c(i, i)) for i, j in pairs]),
        "js": -np.logaddexp(0, -np.diag(s)).mean() - np.logaddexp(0, off).mean(),
        "club": np.trace(s) / b - s.mean(),
        "club_off": np.trace(s) / b - off.mean(),
        "leave_one_out": np.mean(
            [s[j, j] - math.log(np.mean([math.exp(s[i, j]) for i in range(b) if i != j])) for j in range(b)]
        ),
    }


@pytest.mark.parametrize("size", [2, 3, 8])
def test_against_loops(size):
    s = scores(size, size)
    baseline = scores(size, seed=1) / 4
    want = by_loops(s.numpy(), baseline.numpy(), 0.3)
    ours = ALL | {"tuba": lambda z: B.tuba(z, baseline), "alpha": lambda z: B.alpha_tuba(z, baseline, 0.3)}
    for name, value in want.items():
        assert float(ours[name](s)) == pytest.approx(value, rel=1e-10), name


@each
def test_batches_and_gradients(bound):
    s = scores(2, 3, 5, 5)
    each_alone = torch.stack([bound(m) for m in s.flatten(0, 1)]).view(2, 3)
    torch.testing.assert_close(bound(s), each_alone)
    assert torch.autograd.gradcheck(bound, (s[0, 0].clone().requires_grad_(),))
    assert bound(s.bfloat16()).dtype == torch.float32


@each
def test_errors(bound):
    with pytest.raises(ValueError, match=r"expected shape \(\.\.\., B, B\), got \(2, 3\)"):
        bound(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected B >= 2, because one pair has no negatives, got B = 1"):
        bound(torch.zeros(1, 1))
    with pytest.raises(TypeError, match="expected a floating-point tensor"):
        bound(torch.zeros(2, 2, dtype=torch.long))


SAMPLED = {
    "dv": B.donsker_varadhan,
    "mine": lambda s, **k: B.mine(s, torch.tensor(0.5), **k)[0],
    "nwj": B.nwj,
    "tuba": lambda s, **k: B.tuba(s, torch.arange(s.shape[-1]) / 7, **k),
    "infonce": B.infonce,
    "alpha": lambda s, **k: B.alpha_tuba(s, torch.arange(s.shape[-1]) / 7, 0.3, **k),
    "js": B.jensen_shannon,
    "js_mi": B.js_mi_nwj,
    "smile": lambda s, **k: B.smile(s, 2.0, js_gradient=True, **k),
}
sampled = pytest.mark.parametrize("bound", SAMPLED.values(), ids=SAMPLED.keys())


@sampled
def test_all_others_as_negatives_are_the_matrix(bound):
    s = scores(3, 5, 5).requires_grad_()
    others = torch.stack([torch.cat((s[:, i, :i], s[:, i, i + 1 :]), -1) for i in range(5)], 1)
    want = bound(s)
    got = bound(s.diagonal(dim1=-2, dim2=-1), negatives=others)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(v.sum(), s, retain_graph=True) for v in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_few_negatives_by_definition():
    joint, product = scores(6), scores(6, 2, seed=1)
    mean = product.exp().mean()
    torch.testing.assert_close(B.donsker_varadhan(joint, negatives=product), joint.mean() - mean.log())
    torch.testing.assert_close(B.nwj(joint, negatives=product), joint.mean() - mean / math.e)
    rows = torch.cat((joint.unsqueeze(1), product), 1)
    nce = (joint - rows.logsumexp(1)).mean() + math.log(3)
    torch.testing.assert_close(B.infonce(joint, negatives=product), nce)


@sampled
def test_errors_of_negatives(bound):
    with pytest.raises(ValueError, match=r"expected shapes .* not empty, got \(4,\) and \(3, 2\)"):
        bound(torch.zeros(4), negatives=torch.zeros(3, 2))
    with pytest.raises(TypeError, match="negatives: expected a floating-point tensor"):
        bound(torch.zeros(4), negatives=torch.zeros(4, 2, dtype=torch.long))


def test_option_errors():
    s = scores(3, 3)
    with pytest.raises(ValueError, match="symmetric: expected False with negatives"):
        B.infonce(s[0], symmetric=True, negatives=s)
    with pytest.raises(ValueError, match=r"tau: expected a number in \(0, inf\], got 0"):
        B.smile(s, 0)
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\], got 2"):
        B.alpha_tuba(s, torch.zeros(3), 2)
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\), got 1"):
        B.mine(s, decay=1)
    with pytest.raises(ValueError, match=r"log_baseline: expected a shape that broadcasts to \(3,\), got \(2,\)"):
        B.tuba(s, torch.zeros(2))


@quick
@given(matrices)
def test_how_the_bounds_relate(matrix):
    s = torch.from_numpy(matrix)
    dv = B.donsker_varadhan(s)
    assert B.infonce(s) <= math.log(len(s)) + 1e-9
    assert B.nwj(s) <= dv + 1e-9  # NWJ is DV with the logarithm's tangent
    torch.testing.assert_close(B.nwj(s - dv_shift(s)), dv)  # and touches it at the right shift
    torch.testing.assert_close(B.donsker_varadhan(s + 3), dv)
    torch.testing.assert_close(B.smile(s, math.inf), dv)
    torch.testing.assert_close(B.tuba(s, torch.tensor(1.0)), B.nwj(s))
    torch.testing.assert_close(B.alpha_tuba(s, torch.ones(len(s)), 0.0), B.nwj(s))
    torch.testing.assert_close(B.js_mi_nwj(s), B.nwj(s + 1))
    torch.testing.assert_close(B.infonce(s, symmetric=True), B.infonce(s.T, symmetric=True))
    torch.testing.assert_close(B.club(s), B.club(s, off_diagonal=True) * (1 - 1 / len(s)))


def dv_shift(s: Tensor) -> Tensor:
    off = s[~torch.eye(len(s), dtype=torch.bool)]
    return off.logsumexp(0) - math.log(len(off)) - 1


def test_smile_trains_by_jensen_shannon():
    s = scores(4, 4).requires_grad_()
    value = B.smile(s, 1.0, js_gradient=True)
    torch.testing.assert_close(value, B.smile(s, 1.0))
    (got,) = torch.autograd.grad(value, s)
    (want,) = torch.autograd.grad(B.jensen_shannon(s), s)
    torch.testing.assert_close(got, want)


def test_jensen_shannon_of_large_matrices():
    s = scores(100, 100).requires_grad_()
    s.data[0, :3] = torch.tensor([0.0, 200.0, -200.0])
    off = ~torch.eye(100, dtype=torch.bool)
    want = -torch.logaddexp(-s.diagonal(), torch.zeros(())).mean() - torch.logaddexp(s[off], torch.zeros(())).mean()
    got = B.jensen_shannon(s)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(v, s)[0] for v in (got, want)))


def test_mine_divides_by_its_moving_average():
    s, later = scores(4, 4).requires_grad_(), scores(4, 4, seed=3).requires_grad_()
    _, average = B.mine(s)
    value, moved = B.mine(later, average, decay=0.9)
    off = ~torch.eye(4, dtype=torch.bool)
    means = [z.detach()[off].exp().mean() for z in (s, later)]
    torch.testing.assert_close(moved.exp(), 0.9 * means[0] + 0.1 * means[1])
    torch.testing.assert_close(value, B.donsker_varadhan(later))
    (got,) = torch.autograd.grad(value, later)
    (want,) = torch.autograd.grad(later.diagonal().mean() - later[off].exp().mean() / moved.exp(), later)
    torch.testing.assert_close(got, want)


def test_large_scores_stay_finite_in_the_log_domain():
    s = (1e4 * torch.eye(3) + torch.tensor([[0.0, 1.0, 2.0]])).requires_grad_()
    for name in ("dv", "mine", "infonce", "js", "smile"):
        value = ALL[name](s)
        (grad,) = torch.autograd.grad(value, s)
        assert value.isfinite(), name
        assert grad.isfinite().all(), name


def test_nwj_and_infonce_on_the_optimal_critic():
    """Of a bivariate normal: NWJ's expectation is the MI, InfoNCE stays below it."""
    rho, n = 0.8, 4000
    x, noise = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    true = -math.log(1 - rho**2) / 2
    gap = (y - rho * x.unsqueeze(1)) ** 2 / (1 - rho**2)
    s = (y**2 - gap) / 2 - math.log(1 - rho**2) / 2
    assert float(B.nwj(s + 1)) == pytest.approx(true, abs=0.05)
    assert float(B.donsker_varadhan(s)) == pytest.approx(true, abs=0.05)
    assert true - 0.1 < float(B.infonce(s)) < true + 0.03
