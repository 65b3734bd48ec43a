"""What is special to SPEAR: the curriculum, what the buffer keeps and repeats, its checkpoint, several processes."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.losses import (
    REPLAY,
    Recipe,
    ReplayBuffer,
    SelfImitation,
    TokenBatch,
    clip_cov,
    dr_bot_advantage,
    dr_grpo_advantage,
    informative_groups,
    recalibrated_advantages,
    recipe,
    replay_weight,
    screened_mask,
    self_imitation,
    tool_reward,
    tool_weight,
)


def rollout(step: int = 0, groups: int = 4, size: int = 4, length: int = 5, **changes) -> TokenBatch:
    """Groups with binary rewards, rows of different length, and advantages."""
    g = torch.Generator().manual_seed(step)
    rows = groups * size
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows,), generator=g)[:, None]
    values: dict[str, Any] = {
        "log_probs": -torch.rand(rows, length, generator=g),
        "mask": mask,
        "rewards": (torch.rand(rows, generator=g) < 0.4).float(),
        "group": torch.arange(rows) // size,
        "extras": {"tool_turns": torch.randint(0, 12, (rows,), generator=g), "ok": torch.rand(rows, generator=g) < 0.5},
    }
    batch = TokenBatch(**{**values, **changes})
    return batch.replace(advantages=dr_grpo_advantage(batch))


def ids(step: int, batch: TokenBatch) -> dict[str, list[Tensor]]:
    """A payload of as many numbers as a row has tokens."""
    lengths = batch.mask.sum(1).tolist()
    return {"id": [torch.full((n,), 100 * step + i) for i, n in enumerate(lengths)]}


def filled(steps: int = 3, **options) -> ReplayBuffer:
    buffer = ReplayBuffer(**{"size": 2, **options})
    for step in range(steps):
        buffer.store(rollout(step), ids(step, rollout(step)), step)
    return buffer


def test_tool_reward_by_hand() -> None:
    batch = rollout(extras={"tool_turns": torch.arange(16)})
    bonus = tool_reward(batch, step=50, decay=200) - batch.rewards
    weight = (1 + math.cos(math.pi / 4)) / 2
    torch.testing.assert_close(bonus, weight * (0.1 * torch.arange(16)).clamp(max=1.0))
    assert torch.equal(tool_reward(batch, step=201, decay=200), batch.rewards)
    assert torch.equal(tool_reward(batch, schedule="none"), batch.rewards)
    assert tool_weight(10_000.0, schedule="constant") == 1.0


def test_the_curriculum_moves_with_the_rollout_batches() -> None:
    r = Recipe("ppo", advantage="grpo", rewards=[{"name": "tool_reward", "decay": 2}])
    batch = rollout()
    found = [r.prepare(batch).rewards - batch.rewards for _ in range(4)]
    value = (0.1 * batch.extras["tool_turns"]).clamp(max=1.0)
    for bonus, weight in zip(found, (1.0, 0.5, 0.0, 0.0), strict=True):
        torch.testing.assert_close(bonus, weight * value)


def test_dr_bot_is_dr_grpo_on_the_groups_that_differ_most() -> None:
    rewards = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.4, 0.6, 0.3, 0.3])
    batch = rollout(groups=4, size=2, rewards=rewards)
    kept = informative_groups(rewards, batch.group, ratio=0.5)
    assert kept.tolist() == [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2
    torch.testing.assert_close(dr_bot_advantage(batch, keep=0.5), dr_grpo_advantage(batch) * kept[:, None])
    assert torch.equal(dr_bot_advantage(batch, keep=1.0), dr_grpo_advantage(batch))
    assert informative_groups(rewards, batch.group, ratio=0.0).sum() == 2, "at least one group"


def test_screening_keeps_failures_that_tried() -> None:
    mask = torch.ones(5, 3, dtype=torch.bool)
    flags = {name: torch.zeros(5, dtype=torch.bool) for name in ("overlong", "unfinished", "repetitive", "unreadable")}
    for row, name in enumerate(flags):
        flags[name][row] = True
    assert screened_mask(mask, **flags).any(1).tolist() == [False] * 4 + [True]
    tools = torch.ones(5, dtype=torch.long)
    assert screened_mask(mask, **flags, tool_turns=tools).any(1).tolist() == [False, True, False, False, True]
    with pytest.raises(TypeError, match="overlong: expected a boolean tensor"):
        screened_mask(mask, overlong=torch.ones(5))
    with pytest.raises(ValueError, match=r"overlong: expected shape \(5,\), got \(4,\)"):
        screened_mask(mask, overlong=torch.ones(4, dtype=torch.bool))


def test_only_good_rows_are_stored_with_their_own_log_probs() -> None:
    batch = rollout()
    buffer = ReplayBuffer(size=2)
    buffer.store(batch, ids(0, batch), 0)
    good = [i for i in range(16) if batch.advantages[i].sum() > 0]
    assert [int(row.payload["id"][0]) for row in buffer.rows] == good
    for row, i in zip(buffer.rows, good, strict=True):
        torch.testing.assert_close(row.ragged["old_log_probs"], batch.old_log_probs[i, : len(row.ragged["mask"])])
        assert row.ragged["mask"].sum() == batch.mask[i].sum()
    equal = rollout(rewards=torch.ones(16))
    buffer.store(equal, {}, 1)
    assert len(buffer) == len(good), "equal rewards teach nothing"
    chosen = ReplayBuffer(size=2, eligible="ok")
    chosen.store(batch, {}, 0)
    assert len(chosen) == sum(bool(batch.extras["ok"][i]) for i in good)


def test_rows_grow_old_and_groups_leave_first_in_first_out() -> None:
    buffer = filled(steps=6, tolerate=2, baseline_size=9)
    assert {int(row.numbers[2]) for row in buffer.rows} == {3, 4, 5}
    # Four groups a step: two steps fit into nine, whole steps leave.
    assert buffer.groups[:, 0].tolist() == [4.0] * 4 + [5.0] * 4
    rewards = rollout(4).rewards.view(4, 4)
    torch.testing.assert_close(buffer.baseline(5)[0][:4], rewards.mean(1).double())
    torch.testing.assert_close(buffer.baseline(5)[1][:4], rewards.std(1).double())


def test_replay_starts_when_there_is_enough_and_then_empties_the_rows() -> None:
    buffer = filled(steps=1, size=32)
    assert buffer.draw(0) is None
    assert buffer.latest["usable"] > 0
    assert len(buffer) > 0
    buffer = filled(steps=3, size=4)
    stored, means = len(buffer), buffer.baseline(2)[0]
    found = buffer.draw(2)
    assert found is not None
    assert len(found.batch.mask) == 4
    assert buffer.latest["stored"] == stored
    assert len(buffer) == 0
    assert torch.equal(buffer.baseline(2)[0], means), "the groups stay"
    assert found.batch.source.eq(REPLAY).all()
    rewards = found.batch.rewards
    torch.testing.assert_close(found.batch.advantages[:, 0], (rewards - means.quantile(0.5)).float())
    assert (found.batch.advantages[found.batch.mask] > 0).all()
    assert not found.batch.advantages[~found.batch.mask].any()
    for row, number in enumerate(found.payload["id"][:, 0].tolist()):
        source = rollout(number // 100)
        i, end = number % 100, found.batch.mask.shape[1]
        torch.testing.assert_close(found.batch.old_log_probs[row], source.old_log_probs[i, :end])
        assert torch.equal(found.batch.mask[row], source.mask[i, :end])


def test_draws_are_seeded() -> None:
    def numbers(seed: int, step: int = 2) -> list[int]:
        return filled(steps=3, size=4, seed=seed).draw(step).payload["id"][:, 0].tolist()

    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)
    many = {tuple(numbers(seed)) for seed in range(10)}
    assert len(many) > 5


def test_median_filter_and_its_variants() -> None:
    # Four groups of two: means 0, 0.5, 0.5, 1; the first three steps' rows with reward 1 are better than 0.5.
    rewards = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    batch = rollout(groups=4, size=2, rewards=rewards)
    found = ReplayBuffer(size=1, fill=0.0)
    found.store(batch, {}, 0)
    assert found.draw(0).batch.advantages[0, 0] == 0.5
    spread = ReplayBuffer(size=1, fill=0.0, recalibrate="median-std")
    spread.store(batch, {}, 0)
    std = torch.tensor([0.0, 0.5**0.5, 0.5**0.5, 0.0]).quantile(0.5)
    torch.testing.assert_close(spread.draw(0).batch.advantages[0, 0], 0.5 / (std + 1e-6))
    # As good as the median: all groups but one at 1.
    level = rollout(groups=3, size=2, rewards=torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    for keep_zero in (False, True):
        buffer = ReplayBuffer(size=1, fill=0.0, keep_zero=keep_zero, take="all")
        buffer.store(level, {}, 0)
        buffer.fill = -1.0  # no row is above the median
        assert (buffer.draw(0) is not None) == keep_zero


def test_decay_repeats_the_rows_own_advantages() -> None:
    batch = rollout()
    buffer = ReplayBuffer(size=16, fill=0.1, recalibrate="decay", weight_decay=0.5, take="all")
    buffer.store(batch, ids(0, batch), 0)
    found = buffer.draw(0)
    for row, i in enumerate(found.payload["id"][:, 0].tolist()):
        torch.testing.assert_close(found.batch.advantages[row], 0.5 * batch.advantages[i, : found.batch.mask.shape[1]])


def test_reshaping_judges_old_rows_by_todays_weight() -> None:
    """With a fading bonus, rows stored early look better than they are unless they are shaped again."""
    options = {"decay": 10, "per_turn": 0.2}
    shaped = {step: rollout(step) for step in (0, 8)}
    plain, again = ReplayBuffer(size=1, tolerate=20), ReplayBuffer(size=1, tolerate=20, reshape=options)
    truth = []
    for step, batch in shaped.items():
        bonus = tool_reward(batch, step=step, **options) - batch.rewards
        paid = batch.replace(rewards=batch.rewards + bonus, advantages=batch.mask.float())
        for buffer in (plain, again):
            buffer.store(paid, {}, step)
        truth.append(tool_reward(batch, step=8, **options))
    torch.testing.assert_close(again.rewards(8), torch.cat(truth).double())
    assert (plain.rewards(8)[:16] >= again.rewards(8)[:16] - 1e-6).all()
    means, stds = again.baseline(8)
    groups = torch.cat(truth).view(8, 4).double()
    torch.testing.assert_close(means, groups.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stds, groups.std(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="reshape: expected one of per_turn, cap, schedule, decay; got 'weight'"):
        ReplayBuffer(reshape={"weight": 1})


def test_checkpoint_continues_the_same_replay(tmp_path) -> None:
    one, two = (SelfImitation(buffer={"size": 8, "seed": 3}, warmup=2) for _ in range(2))
    for step in range(2):
        one.start_rollout()
        assert one.replay(rollout(step), ids(step, rollout(step))) is None
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for part in (one, two):
        part.start_rollout()
    batch = rollout(2)
    a, b = (part.replay(batch, ids(2, batch)) for part in (one, two))
    assert a is not None
    assert torch.equal(a.batch.old_log_probs, b.batch.old_log_probs)
    assert torch.equal(a.batch.advantages, b.batch.advantages)
    assert torch.equal(a.payload["id"], b.payload["id"])
    empty = SelfImitation()
    empty.load_state_dict(copy.deepcopy(SelfImitation().state_dict()))
    assert len(empty.buffer) == 0


def test_nothing_is_repeated_at_weight_zero() -> None:
    part = SelfImitation(buffer={"size": 2}, warmup=10)
    part.start_rollout()
    assert part.replay(rollout(0), {}) is None
    assert len(part.buffer) > 3, "but it is stored"
    part.start_rollout()
    assert part.replay(rollout(1), {}) is not None
    off = SelfImitation(buffer={"size": 2}, coef=0.0)
    for step in range(3):
        off.start_rollout()
        assert off.replay(rollout(step), {}) is None


def test_a_buffer_that_can_never_fill_warns_once() -> None:
    with pytest.warns(UserWarning, match="16 rows a step that stay for 5 steps cannot exceed fill"):
        buffer = filled(steps=1, size=2048)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.store(rollout(1), {}, 1)
        filled(steps=1, size=32)


def test_imitation_loss_is_clip_cov_times_its_weight() -> None:
    batch = rollout(log_probs=torch.rand(16, 5) - 1.5, old_log_probs=torch.rand(16, 5) - 1.5)
    options = {"ratio": 1.0, "lower": 0.01, "clip_low": 0.2, "clip_high": 0.28}
    for step in (0.0, 30.0, 100.0, 500.0):
        out = self_imitation(batch, step=step, warmup=100, coef=0.7, **options)
        weight = replay_weight(step, coef=0.7, warmup=100)
        torch.testing.assert_close(out.loss, weight * clip_cov(batch, **options, upper=40.0).loss)
    assert replay_weight(0.0, warmup=0) == 1.0
    free = self_imitation(batch, step=500, covariance_clip=False)
    assert free.metrics["replay_silenced"] == 0


def test_stale_rows_stay_finite() -> None:
    old = torch.tensor([[-200.0, -1.0]])
    now = torch.tensor([[-1.0, -200.0]], requires_grad=True)
    batch = TokenBatch(
        log_probs=now, old_log_probs=old, mask=torch.ones(1, 2, dtype=torch.bool), advantages=torch.ones(1)
    )
    for clip in (True, False):
        out = self_imitation(batch, step=500, covariance_clip=clip)
        (grad,) = torch.autograd.grad(out.loss, now, retain_graph=True)
        assert out.loss.isfinite()
        assert grad.isfinite().all()


def test_recipe_is_the_sum_of_its_parts() -> None:
    r = recipe("spear", buffer={"size": 2}, warmup=0)
    assert [part.info.name for part in r.parts()] == ["dr_bot", "clip_cov", "self_imitation"]
    batch = r.prepare(rollout(0).replace(advantages=None))
    replay = r.replay(batch)
    assert replay is not None
    assert not replay.separate
    whole = TokenBatch.cat([batch, replay.batch])
    tokens, rows = whole.counts()
    torch.manual_seed(0)
    out = r(whole.replace(num_tokens=tokens, num_sequences=rows))
    torch.manual_seed(0)
    length = {"mode": "batch-mean-token-sum-norm", "length": whole.mask.shape[1]}
    own = r.policy.info.function(batch, **{**r.policy.options, "aggregation": length})
    again = self_imitation(replay.batch, **{**r.regularizers[0].options, "aggregation": length})
    torch.testing.assert_close(out.loss, own.loss + again.loss)
    assert recipe("spear", combine="alternate", buffer={"size": 2}, warmup=0).replays


def on_rank() -> dict[str, Any]:
    world, rank = distributed.world_size(), distributed.rank()
    found: dict[str, Any] = {}
    for take in ("pow2", "all"):
        part = SelfImitation(buffer={"size": 9, "take": take}, warmup=0)
        for step in range(3):
            batch = rollout(step)
            payload = ids(step, batch)
            # Unequal shares; in the last step the first process has no good row.
            rows = slice(0, 4) if rank == 0 else slice(4, None)
            own = batch.select(rows) if world > 1 else batch
            mine = {name: x[rows] for name, x in payload.items()} if world > 1 else payload
            part.start_rollout()
            replay = part.replay(own, mine)
        assert replay is not None
        found[take] = {
            "state": part.buffer.get_extra_state(),
            "latest": part.buffer.latest,
            "mask": replay.batch.mask,
            "ids": replay.payload["id"],
        }
    return found


def test_processes_share_one_buffer_and_one_draw(run_distributed) -> None:
    whole, (first, second) = on_rank(), run_distributed(on_rank, 2)
    for take in ("pow2", "all"):
        one, a, b = whole[take], first[take], second[take]
        for found in (a, b):
            torch.testing.assert_close(found["state"], one["state"])
            assert found["latest"] == one["latest"]
        assert len(a["mask"]) == len(b["mask"]), "every process has equally many rows"
        repeated = [found["ids"][found["mask"].any(1)][:, 0].tolist() for found in (a, b)]
        expected = one["ids"][:, 0].tolist()
        assert sorted(repeated[0] + repeated[1]) == sorted(expected)
        assert repeated == [expected[0::2], expected[1::2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"size: expected a number in \[1, inf\], got 0"),
        ({"fill": -1.0}, "fill: expected"),
        ({"tolerate": -1}, "tolerate: expected"),
        ({"baseline_size": 0}, "baseline_size: expected"),
        ({"recalibrate": "mean"}, "recalibrate: expected one of median, median-std, decay"),
        ({"weight_decay": 0.0}, r"weight_decay: expected a number in \(0, 1\], got 0.0"),
        ({"take": "half"}, "take: expected one of pow2, all"),
    ],
)
def test_buffer_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "both"}, "combine: expected one of sum, alternate"),
        ({"buffer": {"sice": 4}}, r"buffer: expected one of size, .* got 'sice' \(did you mean 'size'\?\)"),
        ({"coef": -1.0}, "coef: expected"),
        ({"warmup": -1}, "warmup: expected"),
        ({"ratio": 2.0}, "ratio: expected"),
    ],
)
def test_loss_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SelfImitation(**options)(rollout())


def test_missing_fields_and_empty_baselines() -> None:
    batch = rollout()
    with pytest.raises(ValueError, match=r"replay buffer needs TokenBatch\.group"):
        ReplayBuffer(size=2).store(batch.replace(group=None), {}, 0)
    with pytest.raises(ValueError, match=r"replay buffer needs TokenBatch\.extras\.fine"):
        ReplayBuffer(size=2, eligible="fine").store(batch, {}, 0)
    with pytest.raises(ValueError, match="group_means: expected at least one group"):
        recalibrated_advantages(torch.ones(2), torch.zeros(0))
    assert ReplayBuffer(size=2).draw(0) is None
