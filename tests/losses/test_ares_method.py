"""ARES: difficulties, windows at their edges, state over rollout batches, and the recipe."""

from __future__ import annotations

import pytest
import torch

from infotorch.losses import (
    Ares,
    AresKL,
    TokenBatch,
    ares_kl,
    ares_reward,
    ares_score,
    ares_strength,
    branch_points,
    difficulty,
    high_entropy_windows,
    recipe,
    trigger_counts,
    window_threshold,
)


def batch(seed: int = 0, groups: int = 3, samples: int = 4, length: int = 12, **more) -> TokenBatch:
    g = torch.Generator().manual_seed(seed)
    rows = groups * samples
    log_probs = -torch.rand(rows, length, generator=g, dtype=torch.float64)
    fields = {
        "log_probs": log_probs,
        "ref_log_probs": log_probs + 0.2 * torch.randn(rows, length, generator=g, dtype=torch.float64),
        "mask": torch.arange(length) < torch.randint(5, length + 1, (rows, 1), generator=g),
        "rewards": (torch.rand(rows, generator=g, dtype=torch.float64) > 0.5).double(),
        "group": torch.arange(rows) // samples,
        "tokens": torch.randint(9, (rows, length), generator=g),
        "entropy": torch.rand(rows, length, generator=g, dtype=torch.float64),
    }
    return TokenBatch(**{**fields, **more})


def rewards_of(rows: TokenBatch) -> torch.Tensor:
    assert rows.rewards is not None
    return rows.rewards


def test_difficulty_at_its_borders() -> None:
    correct = torch.tensor([1, 1, 0, 1, 0, 0, 0, 0, 0], dtype=torch.bool)
    assert difficulty(correct, torch.tensor([4, 4, 4, 2, 2, 2, 0, 0, 0])).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_short_responses_have_no_window() -> None:
    entropy, mask = torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)
    assert not high_entropy_windows(entropy, mask, 0.0, 5).any()
    assert not torch.stack(trigger_counts(entropy, mask, mask, 0.0, 4)).any()
    assert high_entropy_windows(entropy, mask, 0.0, 4).tolist() == [[True, False, False, False]]


def test_window_may_not_reach_beyond_the_response() -> None:
    mask = torch.tensor([[True, True, True, False]])
    assert high_entropy_windows(torch.ones(1, 4), mask, 0.5, 2).tolist() == [[True, True, False, False]]


def test_threshold_over_tokens_lets_windows_of_independent_entropies_pass_seldom() -> None:
    entropy = torch.rand(64, 200, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(entropy, dtype=torch.bool)
    share = {}
    for over in ("tokens", "windows"):
        tau = window_threshold(entropy, mask, over=over)
        share[over] = float(high_entropy_windows(entropy, mask, tau).double().mean())
    assert share["tokens"] < 0.002
    assert share["windows"] == pytest.approx(0.05, abs=0.01)


def test_no_response_no_threshold() -> None:
    assert window_threshold(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).isinf()


def test_branches_are_capped() -> None:
    starts = torch.tensor([[True, False, True, True, False, True]])
    assert branch_points(starts, 2).nonzero()[:, 1].tolist() == [0, 2]


def test_strength_is_zero_where_the_target_is_the_mean_of_the_batch() -> None:
    counts, level = torch.tensor([1.0, 3.0, 5.0, 2.0]), torch.tensor([0, 0, 1, 2])
    assert not ares_strength(counts, level, torch.tensor([2.0, 5.0, 2.0])).any()


def test_sign_of_hard_prompts() -> None:
    counts, level, targets = torch.tensor([1.0, 3.0]), torch.tensor([2, 2]), torch.tensor([0.0, 0.0, 4.0])
    assert ares_strength(counts, level, targets, hard_sign_fix=False)[2] == 0
    torch.testing.assert_close(ares_strength(counts, level, targets)[2], torch.tensor(2.0))


def test_code_pays_every_wrong_answer() -> None:
    level = torch.tensor([0, 1, 2])
    scores = ares_score(torch.zeros(3), level, torch.zeros(3, dtype=torch.bool), torch.zeros(3), torch.full((3,), 0.5))
    torch.testing.assert_close(scores, torch.tensor([0.15, 0.2, 0.3]))


def test_first_batch_is_not_shaped_and_targets_follow() -> None:
    part = Ares(window=2, quantile=0.5)
    first = batch(0)
    assert torch.equal(part(first), rewards_of(first))
    part.observe(first)
    targets = part.targets.clone()
    assert targets.isfinite().any()
    second = batch(1)
    expected = ares_reward(second, window=2, quantile=0.5, targets=targets)
    torch.testing.assert_close(part(second), expected)
    assert not torch.equal(expected, rewards_of(second))
    part.observe(second)
    assert not torch.equal(part.targets, targets)


def test_code_starts_with_its_second_batch() -> None:
    part = Ares(variant="code", window=2)
    first, second = batch(0), batch(1)
    assert torch.equal(part(first), rewards_of(first))
    part.observe(first)
    assert part.threshold.isfinite()
    assert torch.equal(part.alpha, torch.full((3,), 0.5, dtype=torch.float64))
    assert not torch.equal(part(second), rewards_of(second))
    threshold = part.threshold.clone()
    part.observe(second)
    assert 0 < (part.threshold - threshold).abs() < 0.01


def test_trigger_words_and_none_of_them() -> None:
    rows = batch()
    assert rows.tokens is not None
    options = {"variant": "code", "window": 2, "threshold": 0.1, "scope": "local"}
    every, none, two = (ares_reward(rows, trigger_tokens=t, **options) for t in (None, [], [1, 2]))
    assert not torch.equal(every, none)
    top = torch.zeros_like(rows.tokens)
    top[rows.tokens == 1] = 3
    top[rows.tokens == 2] = 3
    moved = rows.replace(extras={"top_tokens": top})
    assert torch.equal(ares_reward(moved, trigger_tokens=[3], **options), two)


def test_evaluation_takes_no_note() -> None:
    method = recipe("ares", window=2).eval()
    before = {name: x.clone() for name, x in method.state_dict().items() if isinstance(x, torch.Tensor)}
    method(method.prepare(batch()))
    method.after_step()
    assert all(torch.equal(method.state_dict()[name], x) for name, x in before.items())


def test_mini_batches_of_incomplete_groups_add_up() -> None:
    method = recipe("ares", window=2, quantile=0.5, targets=(0.5, 0.5, 0.5))
    whole = method.prepare(batch())
    tokens, rows = whole.counts()
    whole = whole.replace(num_tokens=tokens.double(), num_sequences=rows.double())
    part = next(part for part in method.parts() if part.info.name == "ares_kl")
    order = torch.randperm(len(whole.mask), generator=torch.Generator().manual_seed(0))
    pieces = [part(whole.select(rows)).loss for rows in order.split(5)]
    torch.testing.assert_close(sum(pieces), part(whole).loss)


def test_difficulty_is_that_of_the_answers_not_of_shaped_rewards() -> None:
    rows = batch()
    method = recipe("ares", variant="code", window=2, threshold=0.1, alpha=2.0)
    prepared = method.prepare(rows)
    assert rows.rewards is not None
    assert rows.group is not None
    assert torch.equal(prepared.extras["ares_difficulty"], difficulty(rows.rewards > 0.5, rows.group))
    assert not prepared.extras["ares_high_entropy"].any()


def test_auxiliary_rows_make_no_prompt_harder() -> None:
    own = batch()
    further = batch(seed=1, rewards=torch.zeros(12, dtype=torch.float64), source=torch.ones(12, dtype=torch.long))
    method = recipe("ares_kl", window=2, quantile=0.5)
    alone = method.prepare(own).extras
    both = method.prepare(TokenBatch.cat([own, further])).extras
    for name in ("ares_difficulty", "ares_high_entropy"):
        assert torch.equal(both[name][:12], alone[name])
        assert not both[name][12:].any()


def test_accumulation_does_not_change_the_controller() -> None:
    rows = batch()
    one, two = AresKL(interval=1), AresKL(interval=1)
    whole = one.rearrange(rows)
    one(whole)
    for part in (slice(0, 5), slice(5, None)):
        two(whole.select(part))
    for part in (one, two):
        part.after_step()
    torch.testing.assert_close(one.controller.betas, two.controller.betas)
    assert not torch.equal(one.controller.betas, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "options", [{"variant": "both"}, {"tau_over": "rows"}, {"scope": "world"}, {"decay": 2.0}, {"window": 0}]
)
def test_bad_options(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ares_reward(batch(), **options)


def test_bad_relaxation() -> None:
    with pytest.raises(ValueError, match="rho"):
        ares_kl(batch(), rho=1.5)


@pytest.mark.parametrize(("part", "option"), [(Ares, "targets"), (AresKL, "betas"), (AresKL, "target")])
def test_one_number_or_one_for_each_difficulty(part, option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option}: expected one number, or three .*, got shape \(2,\)"):
        part(**{option: (1.0, 2.0)})
