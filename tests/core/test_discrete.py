"""core.discrete against scipy, scikit-learn, quadrature, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats
from sklearn import metrics
from torch import Tensor

from infotorch.core import discrete as D

quick = settings(max_examples=25, deadline=None, derandomize=True)
counts_strategy = hnp.arrays(np.int64, st.integers(1, 8), elements=st.integers(0, 30)).filter(lambda n: n.sum() > 0)
codes = hnp.arrays(np.int64, st.integers(2, 40), elements=st.integers(-2, 2))


def integers(n: int, high: int, seed: int) -> Tensor:
    return torch.randint(high, (n,), generator=torch.Generator().manual_seed(seed))


def test_plugin_and_miller_madow():
    n = torch.tensor([[6, 2, 0, 9], [1, 1, 1, 1]])
    np.testing.assert_allclose(D.plugin_entropy(n), stats.entropy(n.numpy(), axis=-1), rtol=1e-12)
    want = stats.entropy(n.numpy(), axis=-1) + np.array([2 / 34, 3 / 8])
    np.testing.assert_allclose(D.miller_madow_entropy(n), want, rtol=1e-12)


def test_grassberger_by_its_series():
    """G(n) = psi(n) + (-1)^n sum_m (-1)^m / (n + m), and G(2n + 1) = G(2n)."""
    n = torch.arange(1.0, 12.0, dtype=torch.float64)
    total = 20 + n
    value = D.grassberger_entropy(torch.stack((n, torch.full_like(n, 20)), 1))
    terms = np.arange(200_000)
    tails = [(-1) ** int(i) * np.mean(np.cumsum((-1.0) ** terms / (i + terms))[-2:]) for i in n.tolist()]
    g = special.digamma(n.numpy()) + np.array(tails)
    g20 = special.digamma(20) + np.mean(np.cumsum((-1.0) ** terms / (20 + terms))[-2:])
    np.testing.assert_allclose(value, np.log(total) - (n.numpy() * g + 20 * g20) / total.numpy(), atol=1e-9)
    np.testing.assert_allclose(g[1::2][:5], g[2::2][:5], atol=1e-9)
    old = D.grassberger_entropy(torch.tensor([3, 2]), 1988)
    want = math.log(5) - (3 * (special.digamma(3) - 1 / 4) + 2 * (special.digamma(2) + 1 / 3)) / 5
    assert float(old) == pytest.approx(want)


def test_chao_shen_corners():
    assert float(D.chao_shen_entropy(torch.tensor([7, 0]))) == 0
    assert float(D.chao_shen_entropy(torch.tensor([1]))) == 0
    all_once = D.chao_shen_entropy(torch.ones(6))
    p = (1 - 5 / 6) / 6
    assert float(all_once) == pytest.approx(-6 * p * math.log(p) / (1 - (1 - p) ** 6))


def test_shrinkage_reaches_both_ends():
    assert float(D.shrinkage_entropy(torch.tensor([2, 1, 1]))) == pytest.approx(math.log(3))
    many = torch.tensor([900_000, 100_000])
    assert float(D.shrinkage_entropy(many)) == pytest.approx(float(D.plugin_entropy(many)), abs=1e-5)
    assert float(D.shrinkage_entropy(torch.tensor([1, 0]))) == 0
    wide = D.shrinkage_entropy(torch.tensor([5, 3]), alphabet_size=4)
    padded = np.array([5, 3, 0, 0]) / 8
    weight = (1 - (padded**2).sum()) / (7 * ((1 / 4 - padded) ** 2).sum())
    assert float(wide) == pytest.approx(stats.entropy(min(1, weight) / 4 + (1 - min(1, weight)) * padded))


@pytest.mark.parametrize(
    ("counts", "size"),
    [([2, 2], 2), ([1, 1, 1], 10), ([400, 3], 2), ([30, 20, 10, 1], 4), ([5000, 4000, 1000], 3), ([1], 2)],
)
def test_nsb_by_adaptive_quadrature(counts, size):
    from scipy.integrate import quad

    n = np.array(counts + [0] * (size - len(counts)), dtype=float)
    total = n.sum()

    def log_weight(u: float) -> float:
        b = math.exp(u)
        slope = size * special.polygamma(1, size * b + 1) - special.polygamma(1, b + 1)
        value = special.gammaln(size * b) - special.gammaln(total + size * b)
        value += (special.gammaln(n + b) - special.gammaln(b)).sum()
        return value + math.log(max(slope, 1e-300)) + u

    def entropy(u: float) -> float:
        b = math.exp(u)
        mean = ((n + b) * special.digamma(n + b + 1)).sum() / (total + size * b)
        return special.digamma(total + size * b + 1) - mean

    grid = np.linspace(-18, 14, 2001)
    top = max(map(log_weight, grid))
    peak = grid[np.argmax([log_weight(u) for u in grid])]
    options = {"points": [peak], "limit": 500, "epsabs": 1e-12, "epsrel": 1e-9}
    mass = quad(lambda u: math.exp(log_weight(u) - top), -18, 14, **options)[0]
    mean = quad(lambda u: math.exp(log_weight(u) - top) * entropy(u), -18, 14, **options)[0]
    assert float(D.nsb_entropy(torch.tensor(counts), size)) == pytest.approx(mean / mass, abs=1e-6)


def test_nsb_on_a_narrow_posterior():
    """Ten thousand cells pin the concentration down to a hair; the estimate must still be the uniform entropy."""
    n = torch.full((10_000,), 50)
    assert float(D.nsb_entropy(n)) == pytest.approx(math.log(10_000), abs=1e-3)


@pytest.mark.parametrize("name", D.ESTIMATORS)
def test_batches_zeros_and_order_do_not_matter(name):
    n = torch.tensor([[[6, 2, 3], [1, 1, 0]], [[4, 0, 0], [9, 9, 9]]])
    value = D.entropy_from_counts(n, name)
    assert value.shape == (2, 2)
    assert value.dtype == torch.float64
    alone = [D.entropy_from_counts(row[row > 0].flip(0), name) for row in n.flatten(0, 1)]
    torch.testing.assert_close(value.flatten(), torch.stack(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "below"), [("grassberger", 0.02), ("chao_shen", 0.05), ("nsb", 0.05)])
def test_corrections_beat_the_plugin_on_few_samples(name, below):
    """30 draws from a geometric-like source, 200 times: the mean error is small where the plug-in's is large."""
    p = torch.softmax(-0.3 * torch.arange(16, dtype=torch.float64), 0)
    draws = torch.multinomial(p, 200 * 30, True, generator=torch.Generator().manual_seed(0)).view(200, 30)
    n = torch.nn.functional.one_hot(draws, 16).sum(1)
    true = float(-(p * p.log()).sum())
    options = {"alphabet_size": 16} if name == "nsb" else {}
    assert abs(float(D.entropy_from_counts(n, name, **options).mean()) - true) < below
    assert true - float(D.plugin_entropy(n).mean()) > 0.1


def test_mutual_information_against_scikit_learn():
    x, y = integers(60, 4, 0), integers(60, 3, 1)
    value = D.discrete_mutual_information(x, y)
    assert float(value) == pytest.approx(metrics.mutual_info_score(x.numpy(), y.numpy()))
    table = torch.from_numpy(metrics.cluster.contingency_matrix(x.numpy(), y.numpy()))
    torch.testing.assert_close(D.mutual_information_from_counts(table), value)
    batch = D.mutual_information_from_counts(torch.stack((table, 2 * table)))
    torch.testing.assert_close(batch, value.expand(2))


def test_miller_madow_information_is_not_clipped():
    x, y = torch.tensor([0, 0, 1, 1]).repeat(5), torch.tensor([0, 1, 0, 1]).repeat(5)
    assert float(D.discrete_mutual_information(x, y, estimator="miller_madow")) == pytest.approx(-1 / 40)


@quick
@given(counts_strategy)
def test_bounds_on_entropy(n):
    n = torch.from_numpy(n)
    support = int((n > 0).sum())
    h = D.plugin_entropy(n)
    assert -1e-12 <= h <= math.log(support) + 1e-12
    assert h - 1e-9 <= D.shrinkage_entropy(n) <= math.log(support) + 1e-9
    assert -1e-9 <= D.nsb_entropy(n) <= math.log(support) + 1e-9
    assert D.nsb_entropy(n, support + 5) <= math.log(support + 5)


@quick
@given(codes)
def test_joint_codes_number_the_distinct_rows(x):
    rows = np.stack((x, x[::-1], x % 2), 1)
    got = D.joint_codes(torch.from_numpy(rows.copy()))
    want = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    assert got.tolist() == want.tolist()
    apart = D.joint_codes(torch.from_numpy(x), torch.from_numpy(x[::-1].copy()), torch.from_numpy(x % 2).bool())
    assert apart.tolist() == want.tolist()


@quick
@given(codes)
def test_chain_rule(x):
    x = torch.from_numpy(x)
    y, z = x.flip(0), x.abs()
    cmi = D.discrete_conditional_mutual_information(x, y, z)
    both = D.discrete_mutual_information(x, torch.stack((y, z), 1))
    torch.testing.assert_close(cmi, both - D.discrete_mutual_information(x, z))
    assert cmi >= -1e-9
    torch.testing.assert_close(D.discrete_mutual_information(x, x), D.discrete_entropy(x))


def test_errors():
    with pytest.raises(ValueError, match="counts: expected finite numbers >= 0, got a minimum of -1"):
        D.plugin_entropy(torch.tensor([1, -1]))
    with pytest.raises(ValueError, match="counts: expected at least one observation in every row"):
        D.plugin_entropy(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="counts: expected whole numbers, got fractions"):
        D.grassberger_entropy(torch.tensor([1.5, 2.0]))
    with pytest.raises(ValueError, match="variant: expected 1988 or 2003, got 2004"):
        D.grassberger_entropy(torch.tensor([1, 2]), 2004)
    with pytest.raises(ValueError, match=r"alphabet_size: expected a number in \[3, inf\), got 2"):
        D.nsb_entropy(torch.tensor([1, 2, 3]), 2)
    with pytest.raises(ValueError, match=r"estimator: expected one of .* \(did you mean 'plugin'\?\)"):
        D.entropy_from_counts(torch.tensor([1]), "plug-in")
    with pytest.raises(ValueError, match=r"table: expected shape \(\.\.\., Kx, Ky\), got \(3,\)"):
        D.mutual_information_from_counts(torch.ones(3))
    with pytest.raises(TypeError, match=r"y: expected integers or booleans, got torch.float32 \(write y.long\(\)\)"):
        D.discrete_mutual_information(torch.tensor([1, 2]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"x, y: expected equal numbers of points, got \[2, 1\]"):
        D.discrete_mutual_information(torch.tensor([1, 2]), torch.tensor([1]))
    with pytest.raises(ValueError, match="columns: expected at least one, got none"):
        D.joint_codes()


@pytest.mark.parametrize("missing", ["equal", "distinct"])
def test_answers_of_each_question_against_scipy(missing):
    answers, group = integers(60, 5, 0) - 1, integers(60, 7, 1) - 3
    found = D.answer_entropy(answers, group, base=2, missing=missing)
    shares = D.answer_shares(answers, group, missing=missing)
    for row in range(60):
        own = answers[group == group[row]].tolist()
        if missing == "distinct":
            own = [a if a != -1 else f"none {i}" for i, a in enumerate(own)]
        counts = np.unique(np.array([str(a) for a in own]), return_counts=True)[1]
        assert float(found[row]) == pytest.approx(stats.entropy(counts, base=2), abs=1e-12)
        if answers[row] != -1 or missing == "equal":
            assert float(shares[row]) == pytest.approx(own.count(int(answers[row])) / len(own))
        else:
            assert float(shares[row]) == pytest.approx(1 / len(own))


def test_agreement_is_plus_zero_and_full_disagreement_the_logarithm():
    agree = D.answer_entropy(torch.tensor([3, 3, 3]), torch.zeros(3, dtype=torch.long))
    assert torch.equal(agree, torch.zeros(3, dtype=torch.float64))
    assert not agree.signbit().any()
    failed = torch.full((4,), -1)
    one = torch.zeros(4, dtype=torch.long)
    assert float(D.answer_entropy(failed, one)[0]) == 0
    assert float(D.answer_entropy(failed, one, missing="distinct")[0]) == pytest.approx(math.log(4))


def test_answer_entropy_compiles():
    answers, group = integers(12, 3, 0), integers(12, 4, 1)
    compiled = torch.compile(D.answer_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(answers, group), D.answer_entropy(answers, group))


def test_answers_refuse_what_cannot_be_ids():
    ids = torch.zeros(3, dtype=torch.long)
    with pytest.raises(TypeError, match=r"answers: expected integers, got torch\.float32"):
        D.answer_entropy(torch.zeros(3), ids)
    with pytest.raises(ValueError, match=r"expected one shape \(n,\)"):
        D.answer_entropy(ids[:2], ids)
    with pytest.raises(ValueError, match="missing: expected one of equal, distinct"):
        D.answer_entropy(ids, ids, missing="none")
    with pytest.raises(ValueError, match="base: expected a number in"):
        D.answer_entropy(ids, ids, base=1.0)
