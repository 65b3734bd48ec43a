"""What is special to CANON: its identities, odd and tied groups, schedules, and the direction it finds."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.losses import (
    CANON,
    TokenBatch,
    canon_advantage,
    canon_advantages,
    cosine_restarts,
    group_advantages,
    inter_share,
    recipe,
)


def draw(size: int, seed: int = 0, groups: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, scattered groups of one size, and a metric without ties."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(groups * size, generator=g)
    group = torch.arange(groups).repeat_interleave(size)[order]
    return (
        torch.randn(len(order), generator=g, dtype=torch.float64),
        group,
        torch.randn(len(order), generator=g, dtype=torch.float64),
    )


def make(**changes) -> TokenBatch:
    g = torch.Generator().manual_seed(1)
    fields = {
        "log_probs": -torch.rand(8, 4, generator=g),
        "entropy": torch.rand(8, 4, generator=g),
        "mask": torch.arange(4) < torch.tensor([[1], [2], [3], [4], [4], [3], [2], [1]]),
        "rewards": torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]),
        "group": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
    }
    return TokenBatch(**{**fields, **changes})


@pytest.mark.parametrize("size", [2, 4, 8])
def test_half_and_half_is_dr_grpo_for_even_groups(size) -> None:
    rewards, group, metric = draw(size)
    plain = group_advantages(rewards, group, scale="none")
    torch.testing.assert_close(canon_advantages(rewards, group, metric, mu=0.5), plain)


def test_odd_groups_need_the_median_out_of_both_halves_for_that() -> None:
    rewards, group, metric = draw(5)
    plain = group_advantages(rewards, group, scale="none")
    assert not torch.allclose(canon_advantages(rewards, group, metric, mu=0.5), plain)
    found = canon_advantages(rewards, group, metric, mu=0.5, odd="drop_median")
    medians = torch.stack([metric[group == own].median() for own in group]) == metric
    torch.testing.assert_close(found[medians], plain[medians])
    # The halves' own mean is not the prompt's; over the two halves the identity holds.
    for own in range(5):
        rest = (group == own) & ~medians
        expected = group_advantages(rewards[rest], group[rest], scale="none")
        torch.testing.assert_close(found[rest], expected)


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
def test_sums_to_zero_and_forgets_a_constant(mu) -> None:
    rewards, group, metric = draw(6)
    found = canon_advantages(rewards, group, metric, mu=mu)
    torch.testing.assert_close(torch.zeros(5).double().index_add(0, group, found), torch.zeros(5).double())
    torch.testing.assert_close(canon_advantages(rewards + 3.0, group, metric, mu=mu), found)


def test_pairs_compete_with_each_other() -> None:
    rewards, group, metric = draw(2)
    inter, intra = (canon_advantages(rewards, group, metric, mu=mu) for mu in (1.0, 0.0))
    assert not intra.any()
    for row in range(len(rewards)):
        other = int(((group == group[row]) & (torch.arange(len(group)) != row)).nonzero())
        assert inter[row] == pytest.approx(float(rewards[row] - rewards[other]))


def test_one_setting_finds_either_direction() -> None:
    """The half that does better wins on average, whichever it is; an intra-group comparison says nothing of it."""
    metric = torch.arange(8.0)
    group = torch.zeros(8, dtype=torch.long)
    longer_wins = torch.tensor([0.0, 0, 0, 1, 0, 1, 1, 1])
    for rewards in (longer_wins, longer_wins.flip(0)):
        inter = canon_advantages(rewards, group, metric)
        intra = canon_advantages(rewards, group, metric, mu=0.0)
        sign = 1 if rewards is longer_wins else -1
        assert sign * (inter[4:].mean() - inter[:4].mean()) == pytest.approx(1.0)
        assert intra[4:].mean() == pytest.approx(0, abs=1e-6)


def test_alpha_pushes_its_direction_even_where_all_are_right() -> None:
    ones, group, length = torch.ones(4), torch.zeros(4, dtype=torch.long), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert not canon_advantages(ones, group, length).any()
    short = canon_advantages(ones, group, length, alpha=0.8, weighted="high")
    torch.testing.assert_close(short, torch.tensor([0.2, 0.2, -0.2, -0.2]))
    shifted = canon_advantages(ones, group, length, beta=0.1)
    torch.testing.assert_close(shifted, torch.tensor([-0.1, -0.1, 0.1, 0.1]))
    low_entropy = canon_advantages(ones, group, length, alpha=1.2)
    assert (low_entropy[:2] > 0).all()
    assert (low_entropy[2:] < 0).all()


def test_groups_of_one() -> None:
    rewards, group, metric = torch.tensor([1.0, 0.5]), torch.tensor([3, 8]), torch.zeros(2)
    assert not canon_advantages(rewards, group, metric, alpha=0.7).any()
    torch.testing.assert_close(canon_advantages(rewards, group, metric, singleton="raw"), rewards)


def test_ties_keep_batch_order_or_step_aside() -> None:
    rewards, group, metric = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long), torch.ones(4)
    assert canon_advantages(rewards, group, metric)[1] == 0  # in the lower half with the right one, by its place alone
    found = canon_advantages(rewards, group, metric, ties="average")
    torch.testing.assert_close(found, rewards - 0.25)


def test_metrics() -> None:
    batch = make(old_entropy=torch.rand(8, 4, generator=torch.Generator().manual_seed(7)))
    assert batch.rewards is not None
    assert batch.group is not None
    rows = {
        "entropy": (batch.sampling_entropy * batch.mask).sum(1) / batch.mask.sum(1),
        "length": batch.mask.sum(1),
        "random": torch.arange(8),
    }
    for name, metric in rows.items():
        found = canon_advantage(batch, metric=name)
        expected = canon_advantages(batch.rewards, batch.group, metric)
        torch.testing.assert_close(found, expected.unsqueeze(1) * batch.mask)
    mine = torch.tensor([4.0, 3.0, 2.0, 1.0] * 2)
    found = canon_advantage(make(extras={"depth": mine}), metric="extras.depth")
    torch.testing.assert_close(found[:, 0], canon_advantages(batch.rewards, batch.group, mine))
    with pytest.raises(ValueError, match=r"canon needs TokenBatch\.extras\.depth"):
        canon_advantage(batch, metric="extras.depth")
    with pytest.raises(ValueError, match=r"metric: expected entropy, length, random or extras\.<name>, got 'depth'"):
        canon_advantage(batch, metric="depth")


def test_empty_responses_stand_in_the_lower_half() -> None:
    mask = make().mask.clone()
    mask[3] = False
    batch = make(mask=mask)
    assert batch.entropy is not None
    metric = batch.entropy.sum(1) / mask.sum(1).clamp(min=1)
    assert metric[3] == 0
    found = canon_advantage(batch, metric="entropy")
    torch.testing.assert_close(found, canon_advantages(batch.rewards, batch.group, metric).unsqueeze(1) * mask)
    assert not found[3].any()
    # Out of the loss, its reward still counts in a mean.
    other = canon_advantage(make(mask=mask, rewards=torch.tensor([0.0, 0, 1, 0, 1, 0, 1, 0])), metric="entropy")
    assert not torch.equal(found[:3], other[:3])


def test_a_metric_that_is_not_finite_is_refused() -> None:
    rewards, group, metric = draw(4)
    metric[2] = math.nan
    with pytest.raises(ValueError, match="metric: expected finite numbers, got nan"):
        canon_advantages(rewards, group, metric)
    with pytest.raises(ValueError, match=r"metric: expected shape \(20,\), as rewards have, got \(3,\)"):
        canon_advantages(rewards, group, metric[:3])
    with pytest.raises(ValueError, match=r"mu: expected a number in \[0, 1\], got 1.5"):
        canon_advantages(rewards, group, metric.nan_to_num(), mu=1.5)


def test_schedules_by_hand() -> None:
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert inter_share("constant", mu=0.3) == 0.3
    assert float(inter_share("accuracy", rewards=rewards)) == 0.75
    assert float(inter_share("accuracy_reversed", rewards=rewards)) == 0.25
    assert float(inter_share("cosine", step=0)) == pytest.approx(0.98)
    assert float(inter_share("cosine_reversed", step=29)) == pytest.approx(1.0)
    assert float(cosine_restarts(7, high=1.0, low=0.0, total=8, warmup=0, cycles=2)) == pytest.approx(
        (1 + math.cos(3 * math.pi / 4)) / 2
    )
    with pytest.raises(ValueError, match=r"schedule 'accuracy' needs rewards in \[0, 1\], got -1 to 1"):
        inter_share("accuracy", rewards=torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="warmup: expected a number in"):
        cosine_restarts(0, high=1.0, low=0.0, total=10, warmup=10)


def test_the_module_counts_rollout_batches() -> None:
    method = recipe("canon", schedule="cosine", warmup=2, total=8, cycles=1)
    assert isinstance(method.advantage, CANON)
    for step in range(4):
        prepared = method.prepare(make())
        expected = canon_advantage(make(), schedule="cosine", warmup=2, total=8, cycles=1, step=step)
        torch.testing.assert_close(prepared.advantages, expected)
        share = inter_share("cosine", warmup=2, total=8, cycles=1, step=step)
        assert float(method(prepared).metrics["inter_share"]) == pytest.approx(float(share))


def test_odd_groups_are_warned_of_once() -> None:
    odd = make().select(torch.tensor([0, 1, 2, 4, 5, 6, 7]))
    method = recipe("canon")
    with pytest.warns(UserWarning, match="odd number of completions"):
        method.prepare(odd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.prepare(odd)
        recipe("canon", odd="drop_median").prepare(odd)
        recipe("canon").prepare(make())


def unequal() -> TokenBatch:
    return make(rewards=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]))


def on_rank() -> Tensor:
    rows = slice(0, 4) if distributed.rank() == 0 else slice(4, 8)
    return canon_advantage(unequal().select(rows), schedule="accuracy", scope="global")


def test_accuracy_over_all_ranks(run_distributed) -> None:
    found = run_distributed(on_rank, 2)
    torch.testing.assert_close(torch.cat(found), canon_advantage(unequal(), schedule="accuracy"))
