"""BAPO: the search against the loops it replaces, borders of the search, bounds of a step, the Entropy-Clip rule."""

from __future__ import annotations

import itertools

import pytest
import torch
from batches import fields, make

from infotorch.core import categorical
from infotorch.losses import (
    BAPO,
    TokenBatch,
    bapo,
    bapo_bounds,
    entropy_clip_terms,
    entropy_covariance,
    ppo,
    recipe,
    sampled_entropy_clip_terms,
)

RANGES = {"low": 0.6, "low_max": 0.75, "low_step": 0.04, "high": 1.2, "high_max": 1.63, "high_step": 0.1}


def data(seed: int, scale: float = 0.6, negatives: float = 1.3):
    g = torch.Generator().manual_seed(seed)
    ratio = (scale * torch.randn(5, 7, generator=g, dtype=torch.float64)).exp()
    advantages = torch.randn(5, 7, generator=g, dtype=torch.float64)
    advantages = torch.where(advantages < 0, negatives * advantages, advantages)
    return ratio, advantages, torch.rand(5, 7, generator=g) < 0.8


def contributions(r, a, mask, low, high, contribution):
    """P and N of one pair of bounds, a token at a time."""
    positive = negative = 0.0
    for ratio, advantage in zip(r[mask].tolist(), a[mask].tolist(), strict=True):
        if contribution == "surrogate":
            value = min(ratio * advantage, min(max(ratio, low), high) * advantage)
        else:
            silenced = ratio > high if advantage > 0 else ratio < low
            value = 0.0 if silenced else ratio * advantage
        positive, negative = positive + max(value, 0.0), negative + max(-value, 0.0)
    return positive, negative


def loop(r, a, mask, variant, target, contribution):
    """The published loops, one step and one evaluation at a time."""
    low, high, o = RANGES["low"], RANGES["high"], RANGES

    def met():
        p, n = contributions(r, a, mask, low, high, contribution)
        return n <= 0 or p / (p + n) >= target

    if variant == "paper":
        while not met() and low + o["low_step"] <= o["low_max"] + 1e-9:
            if high + o["high_step"] <= o["high_max"] + 1e-9:
                high += o["high_step"]
            else:
                low += o["low_step"]
        return low, high
    while not met() and low < o["low_max"]:
        low = min(low + o["low_step"], o["low_max"])
    while not met() and high < o["high_max"]:
        high = min(high + o["high_step"], o["high_max"])
    return low, high


@pytest.mark.parametrize("variant", ["paper", "verl"])
@pytest.mark.parametrize("contribution", ["surrogate", "active"])
def test_search_equals_the_loop(variant, contribution) -> None:
    chosen = set()
    for seed, target in itertools.product(range(12), [0.2, *(0.34 + 0.01 * i for i in range(16)), 0.9]):
        r, a, mask = data(seed)
        found = bapo_bounds(r, a, mask, variant=variant, target=target, contribution=contribution, **RANGES)
        low, high = loop(r, a, mask, variant, target, contribution)
        assert (found.low.item(), found.high.item()) == pytest.approx((low, high), abs=1e-9)
        for kind, pair in (
            ("surrogate", (found.positive, found.negative)),
            ("active", (found.active_positive, found.active_negative)),
        ):
            assert tuple(map(float, pair)) == pytest.approx(contributions(r, a, mask, low, high, kind), rel=1e-12)
        chosen.add((round(low, 6), round(high, 6)))
    assert len(chosen) > 4  # the searches really end in different places


def test_raising_the_lower_bound_lowers_the_published_share_and_raises_the_active_one() -> None:
    r, a, mask = data(0)
    fixed = {"high": 1.2, "high_max": 1.2, "low_step": 0.0, "high_step": 0.0, "low_max": 1.0}
    bounds = [bapo_bounds(r, a, mask, low=low, **fixed) for low in (0.5, 0.7, 0.9)]
    shares, active = [b.share.item() for b in bounds], [b.active_share.item() for b in bounds]
    assert shares == sorted(shares, reverse=True)
    assert active == sorted(active)
    assert shares[0] > shares[-1]
    assert active[0] < active[-1]


def test_unreachable_targets_end_at_the_maxima_and_steps_of_zero_stay() -> None:
    r, a, mask = data(1)
    a = -a.abs()
    for variant in ("paper", "verl"):
        out = bapo_bounds(r, a, mask, variant=variant, target=1.0, low_max=0.8, low_step=0.1, high_step=0.3)
        assert (out.low.item(), out.high.item()) == pytest.approx((0.8, 3.0))
        out = bapo_bounds(r, a, mask, variant=variant, target=1.0, low_step=0.0)
        assert (out.low.item(), out.high.item()) == pytest.approx((0.6, 3.0))
        out = bapo_bounds(r, a, mask, variant=variant, target=1.0, high_step=0.0)
        assert (out.low.item(), out.high.item()) == pytest.approx((0.9, 1.2))


def test_the_paper_moves_nothing_without_room_below() -> None:
    r, a, mask = data(1)
    options = {"target": 1.0, "low": 0.89, "low_max": 0.9, "low_step": 0.02}
    assert bapo_bounds(r, a, mask, **options).high == 1.2
    assert bapo_bounds(r, a, mask, variant="verl", **options).high == 3.0


@pytest.mark.parametrize("sign", [1.0, 0.0])
def test_nothing_negative_nothing_searched(sign) -> None:
    r, a, mask = data(2)
    for variant in ("paper", "verl"):
        out = bapo_bounds(r, sign * a.abs(), mask, variant=variant, target=1.0)
        assert (out.low.item(), out.high.item(), out.share.item()) == (0.6, 1.2, 1.0)
    empty = bapo_bounds(r, a, torch.zeros_like(mask))
    assert (empty.low.item(), empty.high.item(), empty.share.item()) == (0.6, 1.2, 1.0)


def test_padding_holds_anything() -> None:
    r, a, mask = data(3)
    dirty = [torch.where(mask, x, torch.nan) for x in (r, a)]
    assert bapo_bounds(*dirty, mask) == bapo_bounds(r, a, mask)


def test_a_cap_keeps_an_outlier_from_deciding_alone() -> None:
    r = torch.tensor([[1.0, 1.0, 4e8]], dtype=torch.float64)
    a = torch.tensor([[1.0, 1.0, -0.5]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert bapo_bounds(r, a, mask).high == 3.0
    assert bapo_bounds(r, a, mask, negative_cap=3.0).high == 1.2
    silenced = bapo_bounds(r, a, mask, contribution="active", dual_clip=3.0)
    assert (silenced.high.item(), silenced.active_negative.item()) == (1.2, 0.0)


def test_balance_on_policy_meets_the_papers_target_and_not_quite_the_codes() -> None:
    r, mask = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool)
    a = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 3)
    assert bapo_bounds(r, a, mask, target=0.5).high == 1.2
    # eps = 1e-8 in the denominator makes P / N fall short of 1.
    assert bapo_bounds(r, a, mask, target=0.5, variant="verl").high == 3.0


def test_one_pair_of_bounds_for_a_step_of_micro_batches() -> None:
    values = {**fields(groups=4), "rollout_weights": None}
    values["advantages"] = torch.where(values["advantages"] < 0, 1.5, 1.0) * values["advantages"]
    whole = make({**values, "num_tokens": values["mask"].sum()})
    parts = [whole.select(slice(0, 4)), whole.select(slice(4, None))]
    step, apart = BAPO(bounds_per="step", target=0.45), BAPO(target=0.45)
    assert step.sees_step
    assert not apart.sees_step
    step.before_step(whole)
    bounds = {step(part).metrics["ratio_high"].item() for part in parts}
    assert bounds == {bapo(whole, target=0.45).metrics["ratio_high"].item()}
    assert len({apart(part).metrics["ratio_high"].item() for part in parts}) == 2
    torch.testing.assert_close(sum(step(part).loss for part in parts), bapo(whole, target=0.45).loss)
    step.after_step()
    assert step(parts[0]).metrics["ratio_high"] == apart(parts[0]).metrics["ratio_high"]


def test_the_loss_is_ppo_within_the_bounds() -> None:
    batch = make(fields())
    found = bapo(batch, target=0.55)
    low, high = found.metrics["ratio_low"].item(), found.metrics["ratio_high"].item()
    assert high > 1.2
    expected = ppo(batch, clip_low=1 - low, clip_high=high - 1, dual_clip=None)
    torch.testing.assert_close(found.per_token, expected.per_token)


def test_the_recipe_of_the_code_has_its_configuration() -> None:
    assert recipe("bapo_verl").policy.options["dual_clip"] == 3.0
    assert recipe("bapo_verl", target=0.4).policy.options["target"] == 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "trl"}, "variant: expected one of paper, verl"),
        ({"contribution": "net"}, "contribution: expected one of surrogate, active"),
        ({"target": 1.5}, r"target: expected a number in \[0, 1\]"),
        ({"low_max": 0.5}, r"low_max: expected a number in \[0.6, 1\], got 0.5"),
        ({"high": 0.9}, r"high: expected a number in \[1, inf\]"),
        ({"high_max": 1.1}, r"high_max: expected a number in \[1.2, inf\]"),
        ({"high_step": -0.1}, r"high_step: expected a number in \[0, inf\]"),
        ({"negative_cap": 0.0}, r"negative_cap: expected a number in \(0, inf\]"),
        ({"bounds_per": "epoch"}, "bounds_per: expected one of micro_batch, step"),
        ({"dual_clip": 1.0}, r"dual_clip: expected a number in \(1, inf\]"),
    ],
)
def test_options_out_of_range(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        bapo(make(fields()), **options)


def test_the_rule_is_the_entropy_identity_with_silenced_advantages() -> None:
    g = torch.Generator().manual_seed(0)
    logits, advantages = (torch.randn(6, 8, generator=g, dtype=torch.float64) for _ in range(2))
    logits[0, 3] = -torch.inf
    ratio = (0.4 * torch.randn(6, 8, generator=g, dtype=torch.float64)).exp()
    terms = entropy_clip_terms(logits, advantages, ratio)
    kept = advantages * (((advantages > 0) & (ratio < 1.2)) | ((advantages < 0) & (ratio > 0.8)))
    torch.testing.assert_close(terms.sum(-1), -entropy_covariance(logits, kept))
    # Every action as a sample, weighted by its probability: the sampled rule has the same mean.
    log_p = logits[1:].log_softmax(-1)
    batch = TokenBatch(
        log_probs=log_p,
        old_log_probs=log_p - ratio[1:].log(),
        mask=torch.ones(5, 8, dtype=torch.bool),
        advantages=advantages[1:],
        entropy=categorical.entropy(logits[1:]).unsqueeze(1).expand(5, 8),
    )
    torch.testing.assert_close((log_p.exp() * sampled_entropy_clip_terms(batch)).sum(-1), terms[1:].sum(-1))
