"""HAPO: borders of the signal, advantages that sum to nothing, statistics of a rollout batch, the sampler's rule."""

from __future__ import annotations

import math

import pytest
import torch
from batches import fields, make

from infotorch.losses import (
    HAPO,
    ModulationState,
    Recipe,
    TokenBatch,
    adaptive_temperature,
    entropy_modulation,
    hapo,
    hapo_advantage,
    recipe,
    redistribute_advantages,
)
from infotorch.rollout import TemperatureProcessor


def signal(*entropies: float, **options):
    entropy = torch.tensor([entropies], dtype=torch.float64)
    return entropy_modulation(entropy, torch.ones_like(entropy, dtype=torch.bool), **options)


def test_the_signal_by_hand() -> None:
    h, state = signal(math.e**-3, math.e**-1, 1.0, math.e, pivot=0.5)  # rank 1.5 rounds to 2: the pivot is log 1 = 0
    assert state.quantile == 0.0
    assert state.spread.item() == pytest.approx(math.sqrt((9 + 1 + 0 + 1) / 4))
    assert h.squeeze().tolist() == pytest.approx([-1, -1 / 3, 0, 1])
    _, about_mean = signal(math.e**-3, math.e**-1, 1.0, math.e, pivot=0.5, spread="std")
    assert about_mean.spread.item() == pytest.approx(math.sqrt((2.25**2 + 0.25**2 + 0.75**2 + 1.75**2) / 4))


def test_equal_entropies_carry_no_signal() -> None:
    h, _ = signal(0.7, 0.7, 0.7)
    assert not h.any()


def test_an_empty_mask_carries_no_signal_and_leaves_the_temperature_alone() -> None:
    h, state = entropy_modulation(torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert not h.any()
    assert adaptive_temperature(torch.randn(4, 6), state, base=0.7, tau=0.1).tolist() == pytest.approx([0.7] * 4)


def test_an_entropy_of_zero_squeezes_the_others_less_with_a_higher_floor() -> None:
    low = [signal(0.0, 0.2, 0.5, 1.0, pivot=0.9, eps=eps)[0][0, 1].item() for eps in (1e-8, 1e-4)]
    assert -0.2 < low[0] < 0
    assert low[1] < 1.5 * low[0]
    assert signal(-1e-3, 0.2, 1.0)[0].isfinite().all()  # bfloat16 entropies can fall below 0


def test_new_entropies_are_clamped_to_the_range_of_those_seen() -> None:
    _, state = signal(0.1, 0.5, 1.0, pivot=0.5)
    assert state.signal(torch.tensor([1e-3, 0.1, 1.0, 5.0])).tolist() == pytest.approx([-1, -1, 1, 1], abs=1e-6)


def test_temperatures_rise_with_uncertainty_and_fall_with_the_sign_error() -> None:
    flat, peaked = torch.zeros(1, 8), torch.tensor([[12.0] + [0.0] * 7])
    logits = torch.cat([flat, peaked])
    _, right = signal(0.01, 0.1, 1.0, 1.5, pivot=0.5)
    _, wrong = signal(0.01, 0.1, 1.0, 1.5, pivot=0.5, sign_bug_compat=True)
    assert adaptive_temperature(logits, right, tau=0.1).tolist() == pytest.approx([1.1, 0.9])
    assert adaptive_temperature(logits, wrong, tau=0.1).tolist() == pytest.approx([1.1, 1.1])
    masked = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    two = adaptive_temperature(torch.zeros(1, 2), right, tau=0.1)
    torch.testing.assert_close(adaptive_temperature(masked, right, tau=0.1), two)
    entropy = math.log(8)
    expected = 1 + 0.1 * (math.log(entropy) - right.quantile.item()) / (right.spread.item() + 1e-6)
    assert adaptive_temperature(flat, right, tau=0.1, form="paper").item() == pytest.approx(expected, rel=1e-5)
    assert adaptive_temperature(1e4 * peaked, right, tau=0.9, form="paper").item() > 0


def test_the_rule_as_a_logits_processor() -> None:
    _, state = signal(0.01, 0.1, 1.0, 1.5, pivot=0.5)
    scores = torch.randn(3, 8, dtype=torch.bfloat16)

    def rule(logits):
        assert logits.dtype == torch.float32
        return adaptive_temperature(logits, state, tau=0.1)

    found = TemperatureProcessor(rule)(torch.zeros(3, 1, dtype=torch.long), scores)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), scores.float() / rule(scores.float())[:, None], rtol=1e-2, atol=1e-2)


def rewarded(rewards, lengths, group) -> TokenBatch:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TokenBatch(
        log_probs=torch.zeros(mask.shape, dtype=torch.float64),
        mask=mask,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.tensor(group),
    )


def test_advantages_sum_to_zero_over_tokens_whatever_the_lengths() -> None:
    batch = rewarded([1, 0, 0, 1, 0.3, 0.9], [2, 9, 4, 5, 7, 1], [4, 4, 4, 4, -1, -1])
    ours, usual = hapo_advantage(batch), recipe("grpo").advantage(batch)
    for g in (4, -1):
        rows = batch.group == g
        assert ours[rows].sum().item() == pytest.approx(0.0, abs=1e-9)
        assert abs(usual[rows].sum().item()) > 1
        spread = ours[rows][batch.mask[rows]].std(correction=0)
        assert spread.item() == pytest.approx(1.0, rel=1e-4)


def test_extreme_groups_fall_back_to_grpo_and_others_do_not() -> None:
    batch = rewarded([1, 0, 1, 0], [1, 60, 3, 3], [0, 0, 1, 1])
    usual = recipe("grpo").advantage(batch)
    torch.testing.assert_close(hapo_advantage(batch)[:2], usual[:2])
    assert (hapo_advantage(batch)[2:] != usual[2:]).any()
    kept = hapo_advantage(batch, fallback=None)
    assert kept[0, 0].item() == pytest.approx(math.sqrt(60), rel=1e-4)


def test_groups_without_a_difference_get_zero() -> None:
    alike = rewarded([0.1] * 3 + [0.7], [3, 5, 1, 4], [0, 0, 0, 1])  # the last is a group of one
    assert not hapo_advantage(alike, eps=0.0).any()
    empty = rewarded([0.1, 0.1, 0.9], [3, 2, 0], [0, 0, 0])  # the only other reward has no token
    assert not hapo_advantage(empty).any()


def test_redistribution_borders() -> None:
    """A ratio on the neutral zone's border is outside; h = 0 counts as certain, and 1 + 0 changes nothing."""
    h = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.0])
    ratio = torch.tensor([1.125, 1.0, 0.75, 1.0, 1.0])
    found = redistribute_advantages(torch.ones(5), h, ratio, clip_low=0.5, clip_high=0.25)
    assert found.tolist() == [1.5, 1.0, 1.0, 0.5, 1.0]


def test_gradient_flows_through_the_ratio_alone() -> None:
    values = fields()
    leaves = {name: values[name].clone().requires_grad_() for name in ("log_probs", "entropy")}
    batch = make({**values, **leaves, "rollout_weights": None})
    out = hapo(batch, aggregation="token-sum")
    grad, none = torch.autograd.grad(out.loss, list(leaves.values()), allow_unused=True)
    assert none is None
    # Where a token is not clipped its loss is -A' r, and so is its gradient.
    moves = grad != 0
    torch.testing.assert_close(grad[moves], out.per_token.detach()[moves])


def test_the_paper_measures_movement_against_the_base_clip() -> None:
    values = fields()
    values["old_log_probs"] = values["log_probs"] - 0.11  # a ratio of 1.116, within 1.14 but outside 1.1
    batch = make(values)
    adaptive, base = (hapo(batch, clip_high=0.2, neutral_zone=zone) for zone in ("adaptive", "base"))
    assert (adaptive.per_token != base.per_token).any()
    assert torch.equal(hapo(batch, alpha=0).per_token, hapo(batch, alpha=0, neutral_zone="base").per_token)


def test_statistics_of_a_rollout_batch_hold_for_all_its_micro_batches() -> None:
    values = {**fields(groups=4), "rollout_weights": None}
    whole = make({**values, "num_tokens": values["mask"].sum()})
    parts = [whole.select(slice(0, 6)), whole.select(slice(6, None))]
    part, apart = HAPO(), HAPO(statistics="batch")
    part.observe(whole)
    torch.testing.assert_close(sum(part(p).loss for p in parts), hapo(whole).loss)
    torch.testing.assert_close(apart(parts[0]).loss, hapo(parts[0], statistics="batch").loss)
    assert sum(part(p).loss for p in parts) != sum(apart(p).loss for p in parts)
    restored = HAPO()
    restored.load_state_dict(part.state_dict())
    assert torch.equal(restored(parts[0]).loss, part(parts[0]).loss)


def test_a_recipes_aggregation_reaches_the_loss() -> None:
    values = {**fields(), "advantages": None, "rollout_weights": None}
    method = Recipe("hapo", advantage="hapo_advantage", aggregation="token-sum")
    batch = method.prepare(make(values))
    assert batch.advantages is not None
    torch.testing.assert_close(method(batch).loss, hapo(batch, aggregation="token-sum").loss)


def test_the_sampler_gets_the_statistics_of_the_last_rollout_batch() -> None:
    part, logits = HAPO(tau=0.1), torch.cat([torch.zeros(1, 6), torch.tensor([[9.0] + [0.0] * 5])])
    rule = part.sampling_temperature(0.8)
    assert rule is not None
    assert rule(logits).tolist() == pytest.approx([0.8, 0.8])  # nothing observed yet
    part.observe(make(fields()))
    assert rule(logits).tolist() == pytest.approx([0.8, 0.8])  # a rule is one rollout's
    rule = part.sampling_temperature(0.8)
    assert rule is not None
    expected = adaptive_temperature(logits, part.modulation, base=0.8, tau=0.1)
    assert torch.equal(rule(logits), expected)
    assert expected[0] > 0.8 > expected[1]
    assert HAPO(tau=0.0).sampling_temperature(0.8) is None


def test_entropies_are_missed_where_they_are_needed() -> None:
    batch = make({**fields(), "entropy": None, "old_entropy": None})
    with pytest.raises(ValueError, match=r"hapo needs TokenBatch.entropy of the rollout batch .* statistics='batch'"):
        HAPO().observe(batch)
    part = HAPO(statistics="batch")
    part.observe(batch)
    assert isinstance(part.modulation, ModulationState)
    assert not part.observed


def test_metrics_tell_certain_and_uncertain_tokens_apart() -> None:
    metrics = hapo(make(fields())).metrics
    batch = make(fields())
    h, _ = entropy_modulation(batch.sampling_entropy, batch.mask)
    above = batch.mask & (h > 0) & (batch.advantages > 0)
    clipped = above & (batch.log_ratio.exp() > 1 + 0.28 * (1 + h))
    expected = clipped.sum() / (batch.mask & (h > 0)).sum()
    torch.testing.assert_close(metrics["clip_high_uncertain"], expected.double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pivot": 1.2}, r"pivot: expected a number in \[0, 1\]"),
        ({"eps": 0.0}, r"eps: expected a number in \(0, inf\]"),
        ({"spread": "mad"}, "spread: expected one of rms, std"),
        ({"statistics": "epoch"}, "statistics: expected one of rollout, batch"),
        ({"neutral_zone": "none"}, "neutral_zone: expected one of adaptive, base"),
        ({"alpha": -1.0}, r"alpha: expected a number in \[0, inf\]"),
        ({"beta": 2.0}, r"beta: expected a number in \[0, 1\]"),
        ({"clip_low": -0.1}, "clip_low"),
        ({"tau": 1.0}, r"tau: expected a number in \[0, 1\)"),
    ],
)
def test_options_out_of_range(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        HAPO(**options)(make(fields()))
