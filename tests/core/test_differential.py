"""core.differential and core.transfer against scikit-learn, plain loops and known values."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from sklearn import feature_selection
from torch import Tensor

from infotorch.core import differential as D
from infotorch.core import transfer as T

quick = settings(max_examples=10, deadline=None, derandomize=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(n: int, rho: float = 0.8, d: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, noise = normal(2, n, d, seed=seed)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def plain_ksg(x: np.ndarray, y: np.ndarray, k: int, variant: int) -> float:
    dx, dy = (np.abs(z[:, None] - z[None]).max(-1) for z in (x, y))
    np.fill_diagonal(dx, np.inf)
    joint, total = np.maximum(dx, dy), 0.0
    for i in range(len(x)):
        order = np.argsort(joint[i])[:k]
        others = np.arange(len(x)) != i
        if variant == 1:
            nx, ny = ((z[i][others] < joint[i, order[-1]]).sum() for z in (dx, dy))
            total += digamma(nx + 1) + digamma(ny + 1)
        else:
            nx, ny = ((z[i][others] <= z[i][order].max()).sum() for z in (dx, dy))
            total += digamma(nx) + digamma(ny) + 1 / k
    return digamma(k) + digamma(len(x)) - total / len(x)


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("d", [1, 2, 6])
def test_ksg_against_a_loop(variant, d):
    x, y = pair(80, d=d)
    want = plain_ksg(x.numpy(), y.numpy(), 4, variant)
    assert float(D.ksg_mi(x, y, k=4, variant=variant)) == pytest.approx(want, abs=1e-12)


def test_against_scikit_learn():
    x, y = pair(400)
    labels = (y.squeeze(1) > 0.3).long()
    options = {"n_neighbors": 3, "random_state": 0}
    want = feature_selection.mutual_info_regression(x.numpy(), y.squeeze(1).numpy(), **options)[0]
    assert float(D.ksg_mi(x, y)) == pytest.approx(want, abs=1e-3)  # it adds noise of 1e-10, which moves a rank or two
    want = feature_selection.mutual_info_classif(x.numpy(), labels.numpy(), **options)[0]
    assert float(D.ross_mi(x, labels)) == pytest.approx(want, abs=1e-3)


def test_truth_on_normal_samples():
    true = -math.log(1 - 0.81) / 2
    x, y = pair(4000, 0.9)
    for variant in (1, 2):
        assert float(D.ksg_mi(x, y, variant=variant)) == pytest.approx(true, abs=0.04)
        assert abs(float(D.ksg_mi(x, y.flip(0), variant=variant))) < 0.04
    assert float(D.mixture_mi(x, y)) == pytest.approx(true, abs=0.06)
    entropy = 1.5 * math.log(2 * math.pi * math.e)
    for metric in ("max", "euclidean"):
        assert float(D.kl_entropy(normal(3000, 3), metric=metric)) == pytest.approx(entropy, abs=0.06)
    assert float(D.kl_entropy(torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)))) == pytest.approx(
        0, abs=0.06
    )
    a, b, c = normal(3, 3000)
    assert abs(float(D.ksg_cmi(a + c, b + c, c))) < 0.05
    assert float(D.ksg_cmi(a, 0.9 * a + math.sqrt(0.19) * b, c)) == pytest.approx(true, abs=0.1)


def test_multi_information_is_a_sum():
    a, b, c = normal(3, 3000)
    y = 0.8 * a + 0.6 * b
    both = D.ksg_mi(a, y, 0.8 * y + 0.6 * c)
    assert float(both) == pytest.approx(2 * -math.log(1 - 0.64) / 2, abs=0.1)
    assert torch.isfinite(D.ksg_mi(a, y, c, variant=2))


@pytest.mark.parametrize("metric", ["max", "euclidean"])
def test_pointwise_terms_average_to_the_estimate(metric):
    x, y = pair(90, d=2)
    labels = (y[:, 0] > 0).long()
    labels[4] = 7  # alone in its class
    kept = torch.arange(90) != 4
    for function, arguments in (
        (D.ksg_mi, (x, y)),
        (D.mixture_mi, (x, y)),
        (D.ksg_cmi, (x, y, normal(90, 1, seed=5))),
        (D.kl_entropy, (x,)),
        (D.ross_mi, (x, labels)),
    ):
        terms = function(*arguments, metric=metric, pointwise=True)
        assert terms.shape == (90,)
        left = terms[kept] if function is D.ross_mi else terms
        torch.testing.assert_close(left.mean(), function(*arguments, metric=metric))
    assert D.ross_mi(x, labels, pointwise=True)[4].isnan()


@quick
@given(st.integers(0, 1000), st.sampled_from([1, 2]), st.integers(1, 5))
def test_invariances(seed, variant, k):
    x, y = pair(40, d=2, seed=seed)
    value = D.ksg_mi(x, y, k=k, variant=variant)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(D.ksg_mi(x[order], y[order], k=k, variant=variant), value)
    torch.testing.assert_close(D.ksg_mi(y, x, k=k, variant=variant), value)
    torch.testing.assert_close(D.ksg_mi(-4 * x, 4 * y.flip(1), k=k, variant=variant), value)  # powers of 2 are exact
    shifted = D.kl_entropy(8 * x, k)
    torch.testing.assert_close(shifted, D.kl_entropy(x, k) + 2 * math.log(8))


@pytest.mark.parametrize("metric", ["max", "euclidean"])
def test_entropy_is_differentiable(metric):
    x = normal(15, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: D.kl_entropy(z, 2, metric=metric), (x,))
    torch.testing.assert_close(D.kl_entropy(x, metric=metric).detach(), D.kl_entropy(x.detach(), metric=metric))


def test_ties_fall_back_to_the_mixture_estimator():
    x = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0)).double()
    y = x + torch.randint(2, (200,), generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="200 of 200 points coincide with k=3 or more others.*falling back"):
        value = D.ksg_mi(x, y)
    torch.testing.assert_close(value, D.mixture_mi(x, y))
    with pytest.raises(ValueError, match="nearest neighbors are undefined"):
        D.ksg_mi(x, y, ties="raise")
    with pytest.raises(ValueError, match="nearest neighbors are undefined"):
        D.ksg_cmi(x, y, y)
    noisy = [D.jitter(z, generator=torch.Generator().manual_seed(i)) for i, z in enumerate((x, y))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert D.ksg_mi(*noisy).isfinite()
    few = torch.cat((normal(50), normal(50)[:2]))
    with pytest.warns(UserWarning, match="4 of 52 points coincide with another"):
        D.ksg_mi(few, few + 1)


def test_constant_columns():
    x, _ = pair(50)
    assert abs(float(D.ksg_mi(x, torch.ones(50)))) < 1e-12
    assert abs(float(D.ksg_mi(torch.ones(50), torch.ones(50)))) < 1e-12


def test_degenerate_samples_have_no_entropy():
    """Refused; or, if asked for, minus infinity with a warning and finite gradients."""
    x, y = pair(50)
    samples = {
        "a column is constant": torch.cat((x, torch.ones(50, 1)), 1),
        "more than k=3 points coincide": torch.cat((y, y[:1].expand(4, 1))),
        "a column is a linear combination": torch.cat((x, y, 3 * x - y + 1), 1),
    }
    for message, sample in samples.items():
        for metric in ("max", "euclidean"):
            with pytest.raises(ValueError, match=f"x: {message}.*is minus infinity .*degenerate='minus_inf'"):
                D.kl_entropy(sample, metric=metric)
            leaf = sample.clone().requires_grad_()
            with pytest.warns(UserWarning, match=f"x: {message}.*is minus infinity"):
                value = D.kl_entropy(leaf, metric=metric, degenerate="minus_inf")
            assert bool(value.isneginf())
            assert bool(torch.autograd.grad(value, leaf)[0].isfinite().all())
    with pytest.raises(ValueError, match="degenerate: expected one of raise, minus_inf"):
        D.kl_entropy(x, degenerate="ignore")
    assert D.kl_entropy(normal(8, 20), k=1).isfinite()  # too few points to tell


def test_mixture_forms_near_the_truth():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, (3000,), generator=generator)
    y = x + 2 * torch.rand(3000, generator=generator)
    true = math.log(5) - 0.8 * math.log(2)
    for form, k in (("code", 3), ("code", 20), ("paper", 60)):
        assert float(D.mixture_mi(x, y, k=k, form=form)) == pytest.approx(true, abs=0.08)
    assert true - float(D.mixture_mi(x, y, k=3, form="paper")) > 0.25  # what few neighbors cost the paper's form


def test_ross_near_the_truth_and_on_shuffled_labels():
    labels = torch.randint(2, (2000,), generator=torch.Generator().manual_seed(0))
    x = torch.rand(2000, generator=torch.Generator().manual_seed(1)) + labels
    assert float(D.ross_mi(x, labels)) == pytest.approx(math.log(2), abs=0.01)
    assert abs(float(D.ross_mi(x, labels.roll(1)))) < 0.05
    torch.testing.assert_close(D.ross_mi(x, labels.bool()), D.ross_mi(x, 5 - labels))


def with_ties(name: str, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A label and a number that depends on it and repeats its values."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) < 0.4).long()
    x = torch.randn(n, generator=generator, dtype=torch.float64) + labels
    zero = torch.rand(n, generator=generator) < 0.5
    values = {
        "rounded finely": (x / 0.05).round() * 0.05,
        "rounded": (x / 0.2).round() * 0.2,
        "grades": x.round(),
        "zero-inflated": torch.where(zero, 0.0, x),
        "censored": x.clamp(max=0.5),
        "independent, rounded": ((x - labels) / 0.05).round() * 0.05,
    }
    return values[name], labels


TIES = ["rounded finely", "rounded", "grades", "zero-inflated", "censored", "independent, rounded"]


@pytest.mark.parametrize("n", [300, 2000])
@pytest.mark.parametrize("name", TIES)
def test_ross_with_ties_is_what_noise_would_give(name, n):
    """scikit-learn adds noise of 1e-10, whose average over seeds is a number without ties."""
    found, want = [], []
    for seed in range(6):
        x, labels = with_ties(name, n, seed)
        found.append(float(D.ross_mi(x, labels)))
        noisy = (D.jitter(x, generator=torch.Generator().manual_seed(1000 + s)) for s in range(4))
        want += [float(D.ross_mi(z, labels)) for z in noisy]
        theirs = feature_selection.mutual_info_classif(x.unsqueeze(1).numpy(), labels.numpy(), random_state=seed)[0]
        assert found[-1] == pytest.approx(theirs, abs=0.15 if n < 1000 else 0.06)  # it clips at 0, and draws once
    assert np.mean(found) == pytest.approx(np.mean(want), abs=0.02 if n < 1000 else 0.01)


def test_ross_of_values_that_all_repeat_is_a_contingency_table():
    x = torch.tensor([0.0, 1.0, 5.0]).repeat_interleave(torch.tensor([80, 60, 60]))
    labels = torch.randint(2, (200,), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(3 * labels + torch.unique(x, return_inverse=True)[1]).double().view(2, 3)
    digammas = [(c * torch.digamma(c)).sum() / 200 for c in (counts, counts.sum(1), counts.sum(0))]
    want = torch.digamma(torch.tensor(200.0, dtype=torch.float64)) + digammas[0] - digammas[1] - digammas[2]
    torch.testing.assert_close(D.ross_mi(x, labels), want)
    assert float(D.ross_mi(labels.double(), labels)) == pytest.approx(math.log(2), abs=0.01)
    assert float(D.ross_mi(torch.zeros(200), labels)) == pytest.approx(0.0, abs=0.01)


def test_few_points_warn():
    with pytest.warns(UserWarning, match=r"k: 11 points are few for k=3 neighbors"):
        D.ksg_mi(normal(11), normal(11, seed=1))


def test_errors():
    x, y = pair(20)
    calls = [lambda **o: D.ksg_mi(x, y, **o), lambda **o: D.mixture_mi(x, y, **o), lambda **o: D.kl_entropy(x, **o)]
    calls += [lambda **o: D.ksg_cmi(x, y, y + x, **o), lambda **o: D.ross_mi(x, y > 0, **o)]
    for call in calls:
        with pytest.raises(ValueError, match="k: expected 1 <= k < n with n=20 points, got 20"):
            call(k=20)
        with pytest.raises(ValueError, match="metric: expected one of max, euclidean"):
            call(metric="l1")
    with pytest.raises(ValueError, match="x, y: expected equal numbers of points, got"):
        D.ksg_mi(x, y[:5])
    with pytest.raises(ValueError, match="y: expected finite values"):
        D.ksg_mi(x, y.log())
    with pytest.raises(ValueError, match="variant: expected 1 or 2, got 3"):
        D.ksg_mi(x, y, variant=3)
    with pytest.raises(ValueError, match="form: expected one of code, paper"):
        D.mixture_mi(x, y, form="script")
    with pytest.raises(TypeError, match=r"labels: expected integers or booleans, got torch\.float64"):
        D.ross_mi(x, y)
    with pytest.raises(ValueError, match="labels: expected a class of at least 2 points"):
        D.ross_mi(x, torch.arange(20))


def test_lagged_variables():
    x, y = torch.arange(8), torch.arange(10, 18)
    present, past, own = T.lagged(x, y, source_history=2, dest_history=3, lag=2)
    assert present.squeeze(1).tolist() == [13, 14, 15, 16, 17]
    assert past.tolist() == [[1, 0], [2, 1], [3, 2], [4, 3], [5, 4]]
    assert own[0].tolist() == [12, 11, 10]
    assert T.lagged(normal(9, 2), normal(9, 3))[1].shape == (8, 2)


def test_transfer_goes_one_way():
    source, noise = normal(2, 800)
    dest = torch.zeros(800, dtype=torch.float64)
    dest[1:] = 0.8 * source[:-1] + 0.6 * noise[1:]
    forth, back = T.transfer_entropy(source, dest), T.transfer_entropy(dest, source)
    assert float(forth) == pytest.approx(-math.log(1 - 0.64) / 2, abs=0.12)
    assert abs(float(back)) < 0.06
    assert T.transfer_entropy(source, dest, pointwise=True).shape == (799,)
    options = {"surrogates": 19, "generator": torch.Generator().manual_seed(0)}
    found = T.transfer_entropy_test(source, dest, **options)
    assert found.p_value == 0.05
    assert found.surrogates.shape == (19,)
    assert T.transfer_entropy_test(dest, source, **options).p_value > 0.05


def test_discrete_transfer():
    source = torch.randint(2, (500,), generator=torch.Generator().manual_seed(0))
    dest = source.roll(1)
    assert float(T.transfer_entropy(source, dest)) == pytest.approx(math.log(2), abs=0.01)
    low = T.transfer_entropy(dest, source, estimator="miller_madow")
    assert abs(float(low)) < 0.01


def test_transfer_errors():
    x = normal(10)
    with pytest.raises(ValueError, match="lag: expected an int >= 1, got 0"):
        T.transfer_entropy(x, x, lag=0)
    with pytest.raises(ValueError, match="source, dest: expected more than 12 steps for these histories, got 10"):
        T.transfer_entropy(x, x, dest_history=12)
    with pytest.raises(TypeError, match="source, dest: expected both discrete or both continuous"):
        T.transfer_entropy(x, x > 0)
    with pytest.raises(ValueError, match="pointwise: expected False for discrete series"):
        T.transfer_entropy(x > 0, x > 0, pointwise=True)
    with pytest.raises(ValueError, match="surrogates: expected at least 1, got 0"):
        T.transfer_entropy_test(x, x, surrogates=0)
