"""What is special to Clip-Cov, KL-Cov, the entropy identity and law, and the forking-token mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infotorch.core import categorical
from infotorch.losses import (
    TokenBatch,
    clip_cov,
    entropy_covariance,
    fit_entropy_law,
    forking_mask,
    forking_tokens,
    kl_cov,
    predicted_entropy_change,
    token_covariance,
)
from infotorch.losses._select import fraction, lowest


def batch_of(b: int = 8, t: int = 16, seed: int = 0, **changes) -> TokenBatch:
    g = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(b, t, generator=g, dtype=torch.float64) * 3
    values = {
        "log_probs": log_probs.requires_grad_(),
        "old_log_probs": log_probs.detach() + 0.2 * torch.randn(b, t, generator=g, dtype=torch.float64),
        "advantages": torch.randn(b, t, generator=g, dtype=torch.float64),
        "mask": torch.rand(b, t, generator=g) < 0.8,
        "entropy": torch.rand(b, t, generator=g, dtype=torch.float64),
    }
    return TokenBatch(**{**values, **changes})


def test_covariance_is_the_centered_product() -> None:
    batch = batch_of()
    a, lp = batch.advantages[batch.mask], batch.log_probs[batch.mask].detach()
    torch.testing.assert_close(token_covariance(batch)[batch.mask], (a - a.mean()) * (lp - lp.mean()))


def test_tokens_without_a_finite_log_prob_are_left_out() -> None:
    batch = batch_of()
    row, column = batch.mask.nonzero()[0].tolist()
    broken = batch.log_probs.detach().clone()
    broken[row, column] = -torch.inf
    fewer = batch.mask.clone()
    fewer[row, column] = False
    found = token_covariance(TokenBatch(log_probs=broken, mask=batch.mask, advantages=batch.advantages, validate=False))
    expected = token_covariance(batch.replace(mask=fewer))
    torch.testing.assert_close(found, expected)


def test_clip_cov_draws_uniformly_and_reproducibly() -> None:
    batch = batch_of()
    options = {"ratio": 0.1, "lower": 0.05}

    def drawn(seed: int) -> torch.Tensor:
        out = clip_cov(batch, generator=torch.Generator().manual_seed(seed), **options)
        return (out.per_token == 0) & batch.mask

    assert torch.equal(drawn(3), drawn(3))
    counts = torch.stack([drawn(seed) for seed in range(400)]).double().mean(0)
    all_of_them = (clip_cov(batch, ratio=1.0, lower=0.05).per_token == 0) & batch.mask
    number = int(all_of_them.sum())
    share = int(fraction(batch.mask.sum(), 0.1)) / number
    assert not counts[~all_of_them].any(), "none but candidates"
    # Five standard errors of a proportion over 400 draws.
    bound = 5 * (share * (1 - share) / 400) ** 0.5
    assert (counts[all_of_them] - share).abs().max() < bound


def test_clip_cov_keeps_the_denominator() -> None:
    batch = batch_of()
    out = clip_cov(batch, ratio=1.0, lower=0.05)
    torch.testing.assert_close(out.loss, out.per_token.sum() / batch.mask.sum())


def test_kl_cov_is_inert_on_policy() -> None:
    batch = batch_of(old_log_probs=None)
    grads = [
        torch.autograd.grad(kl_cov(batch, ratio=0.5, coef=c).loss, batch.log_probs, retain_graph=True)[0]
        for c in (0.0, 5.0)
    ]
    assert torch.equal(grads[0], grads[1])


def test_kl_cov_only_positive() -> None:
    batch = batch_of(advantages=torch.ones(8, 16, dtype=torch.float64))
    assert kl_cov(batch, ratio=0.5).metrics["selected_fraction"] > 0.4
    assert kl_cov(batch, ratio=0.5, only_positive=True).metrics["selected_fraction"] == 0


def test_kl_cov_bounds_the_ratio_and_not_the_penalty() -> None:
    batch = batch_of()
    far = batch.replace(old_log_probs=batch.log_probs.detach() - 900.0)
    out = kl_cov(far, ratio=1.0, coef=0.1)
    surrogate = -far.advantages * torch.tensor(20.0, dtype=torch.float64).exp()
    torch.testing.assert_close(out.per_token, torch.where(far.mask, surrogate + 90.0, 0.0), rtol=1e-12, atol=0)
    assert torch.autograd.grad(out.loss, batch.log_probs)[0].isfinite().all()
    assert kl_cov(far, ratio=1.0, log_ratio_bound=None).loss.isnan(), "infinities of both signs"


def test_kl_cov_weighs_in_full_precision() -> None:
    batch = batch_of()
    braked, free = (kl_cov(batch, ratio=1.0, coef=c).per_token for c in (0.1, 0.0))
    expected = torch.where(batch.mask, 0.1 * batch.log_ratio.abs(), 0.0)
    torch.testing.assert_close(braked - free, expected, rtol=0, atol=1e-14)


def test_at_least_one_token_is_selected() -> None:
    assert kl_cov(batch_of(), ratio=0.0).metrics["selected_fraction"] > 0


@pytest.mark.parametrize("ratio", [0.29, 0.07, 0.3, 0.1])
def test_fraction_is_exact_at_integers(ratio: float) -> None:
    assert int(fraction(torch.tensor(100), ratio)) == round(100 * ratio)


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 1.0, float("inf"), -float("inf")]), min_size=1, max_size=20),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_lowest_against_sorting(scores: list[float], data) -> None:
    n = len(scores)
    eligible = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    count = data.draw(st.integers(0, n + 2))
    ranked = sorted((i for i in range(n) if eligible[i]), key=lambda i: (scores[i], i))[:count]
    found = lowest(torch.tensor(scores), torch.tensor(eligible), torch.tensor(count))
    assert found.nonzero().flatten().tolist() == sorted(ranked)


@given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from(["natural", "vanilla"]))
@settings(max_examples=40, deadline=None)
def test_identity_is_the_derivative_of_entropy(seed: int, actions: int, kind: str) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(actions, generator=g, dtype=torch.float64) * 2
    advantages = torch.randn(actions, generator=g, dtype=torch.float64)
    p = logits.softmax(-1)
    delta = advantages if kind == "natural" else p * (advantages - (p * advantages).sum())
    _, slope = torch.autograd.functional.jvp(categorical.entropy, logits, delta)
    torch.testing.assert_close(-entropy_covariance(logits, advantages, kind), slope)
    torch.testing.assert_close(predicted_entropy_change(logits, advantages, 0.5, kind), 0.5 * slope)


def test_identity_with_a_forbidden_action() -> None:
    logits = torch.tensor([0.3, -torch.inf, 1.0], dtype=torch.float64)
    free = logits[[0, 2]]
    advantages = torch.tensor([1.0, 7.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(entropy_covariance(logits, advantages), entropy_covariance(free, advantages[[0, 2]]))
    with pytest.raises(ValueError, match="kind: expected one of natural, vanilla"):
        entropy_covariance(logits, advantages, "npg")


def test_law_recovers_its_coefficients_and_forecasts() -> None:
    h = torch.linspace(2, 0.1, 30, dtype=torch.float64)
    law = fit_entropy_law(h, 0.7 - 0.05 * h.exp(), first=10)
    assert law.a == pytest.approx(0.05)
    assert law.b == pytest.approx(0.7)
    assert law.ceiling == pytest.approx(0.65)
    assert law.r2 == pytest.approx(1.0)
    assert law.forecast_rmse == pytest.approx(0.0, abs=1e-12)
    assert fit_entropy_law(h, 0.7 - 0.05 * h.exp()).forecast_rmse is None


@pytest.mark.parametrize(
    ("entropy", "reward", "message"),
    [
        ([1.0, 1.0, 1.0], [0.1, 0.2, 0.3], "entropy: expected at least 2 distinct values"),
        ([1.0, 2.0], [0.1], "entropy, reward: expected equal lengths, got 2 and 1"),
        ([1.0, float("nan")], [0.1, 0.2], "expected finite values"),
        ([1.0], [0.1], "first: expected a number in"),
    ],
)
def test_law_errors(entropy, reward, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_entropy_law(torch.tensor(entropy), torch.tensor(reward))


def test_forking_selections_partition_the_tokens() -> None:
    batch = batch_of()
    top = forking_mask(batch.entropy, batch.mask, ratio=0.2)
    bottom = forking_mask(batch.entropy, batch.mask, ratio=0.2, select="bottom")
    random = forking_mask(
        batch.entropy, batch.mask, ratio=0.2, select="random", generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(top ^ bottom, batch.mask)
    assert batch.entropy[top].min() > batch.entropy[bottom].max()
    assert int(random.sum()) == int(top.sum())
    assert not torch.equal(random, top)
    assert not (random & ~batch.mask).any()


def test_forking_threshold() -> None:
    batch = batch_of()
    kept = forking_mask(batch.entropy, batch.mask, threshold=0.7)
    assert torch.equal(kept, batch.mask & (batch.entropy >= 0.7))


def test_forking_quantile_against_torch() -> None:
    batch = batch_of()
    for ratio in (0.0, 0.13, 0.5, 1.0):
        tau = torch.quantile(batch.entropy[batch.mask].float(), 1 - ratio)
        kept = forking_mask(batch.entropy, batch.mask, ratio=ratio, method="quantile")
        assert torch.equal(kept, batch.mask & (batch.entropy >= tau))


def test_kept_normalization_is_larger_by_the_ratio() -> None:
    batch = batch_of()
    every, kept = (forking_tokens(batch, normalize=n).loss for n in ("all", "kept"))
    share = forking_tokens(batch).metrics["kept_fraction"]
    torch.testing.assert_close(every, kept * share)


def test_forking_sends_no_gradient_to_dropped_tokens_or_entropies() -> None:
    entropy = torch.rand(8, 16, dtype=torch.float64, requires_grad=True)
    batch = batch_of(entropy=entropy)
    grad_log_probs, grad_entropy = torch.autograd.grad(
        forking_tokens(batch).loss, [batch.log_probs, entropy], allow_unused=True
    )
    kept = forking_mask(entropy, batch.mask, ratio=0.2)
    assert not grad_log_probs[~kept].any()
    assert grad_entropy is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.2}, r"ratio: expected a number in \[0, 1\], got 1.2"),
        ({"select": "middle"}, "select: expected one of top, bottom, random"),
        ({"method": "sort"}, "method: expected one of count, quantile"),
        ({"scope": "world"}, "scope: expected one of local, global"),
        ({"normalize": "some"}, "normalize: expected one of all, kept"),
    ],
)
def test_forking_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        forking_tokens(batch_of(), **options)


@pytest.mark.parametrize("function", [clip_cov, kl_cov])
def test_cov_errors(function) -> None:
    with pytest.raises(ValueError, match=r"ratio: expected a number in \[0, 1\], got 2"):
        function(batch_of(), ratio=2.0)
    with pytest.raises(ValueError, match="scope: expected one of"):
        function(batch_of(), scope="worldwide")
