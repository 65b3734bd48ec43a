"""What is special to COPO: numbers by hand, the authors' flaw, and statistics that outlive mini-batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from infotorch.losses import (
    REPLAY,
    TokenBatch,
    blended_policy_loss,
    copo,
    copo_advantages,
    copo_weight,
    ppo,
    prompt_advantages,
    recipe,
)

# Prompt 0: two of four right; 1: all right; 2: all wrong, one answer; 3: all wrong, four answers.
REWARDS = torch.tensor([1, 1, 0, 0] + [1] * 4 + [0] * 8, dtype=torch.float64)
GROUP = torch.arange(4).repeat_interleave(4)
ANSWER = torch.tensor([7, 7, 1, 2] + [7] * 4 + [3] * 4 + [1, 2, 3, 4])


def make(order: Tensor | None = None, **changes) -> TokenBatch:
    g = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(16, 5, generator=g, dtype=torch.float64)
    fields = {
        "log_probs": log_probs,
        "old_log_probs": log_probs + 0.2 * torch.randn(16, 5, generator=g, dtype=torch.float64),
        "mask": torch.arange(5) < torch.randint(1, 6, (16, 1), generator=g),
        "rewards": REWARDS,
        "group": GROUP,
        "answer": ANSWER,
        **changes,
    }
    return TokenBatch(**{k: v if order is None else v[order] for k, v in fields.items()})


def test_prompts_by_hand() -> None:
    found = copo_advantages(REWARDS, GROUP, ANSWER, eps=0.0)
    means = torch.tensor([0.5, 1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.prompt[::4], (means - means.mean()) / means.std())
    torch.testing.assert_close(found.entropy[::4] / math.log(2), torch.tensor([1.5, 0, 0, 2], dtype=torch.float64))
    assert not found.local[4:].any()


def test_every_prompt_counts_once() -> None:
    rewards, group = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 0, 1])
    torch.testing.assert_close(
        prompt_advantages(rewards, group, eps=0.0), torch.tensor([1, 1, 1, 1, -1]) * math.sqrt(0.5)
    )


@pytest.mark.parametrize("rewards", [torch.full((6,), 0.1), torch.tensor([0.1, 0.2, 0.3] * 2)])
def test_equal_prompts_and_a_single_prompt_give_zero(rewards) -> None:
    assert not prompt_advantages(rewards, torch.tensor([0, 0, 0, 1, 1, 1])).any()
    assert not prompt_advantages(rewards, torch.zeros(6, dtype=torch.long), eps=0.0).any()


def test_a_group_of_one_teaches_nothing_within_the_prompt() -> None:
    found = copo_advantages(torch.tensor([1.0, 0.0]), torch.tensor([0, 1]), torch.tensor([1, 2]), discount=True)
    assert found.local.tolist() == [0, 0]
    assert found.entropy.tolist() == [0, 0]
    assert found.prompt[0] == -found.prompt[1] > 0


def test_discount_leaves_an_nth_under_full_disagreement() -> None:
    rewards = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    answers, group = torch.tensor([1, 2, 3, 4, 5, 5]), torch.tensor([0, 0, 0, 0, 1, 1])
    found = copo_advantages(rewards, group, answers, discount=True, normalize=False)
    torch.testing.assert_close(found.prompt[0] - found.prompt[-1], torch.tensor(0.25))  # 1/4 against 0


def test_failed_extractions_agree_or_do_not() -> None:
    answers, group = torch.full((4,), -1), torch.zeros(4, dtype=torch.long)
    zeros = torch.zeros(4)
    assert copo_advantages(zeros, group, answers).entropy[0] == 0
    assert copo_advantages(zeros, group, answers, missing="distinct").entropy[0] == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("mode", "weights"),
    [  # of the sixteen rows: prompt 0 right and wrong, prompt 1, prompt 2, prompt 3
        ("soft", ["w1.5", "w1.5", "w0", "w0", "w2"]),
        ("soft_zero", ["w1.5", "w1.5", "w0", 0, 0]),
        ("soft-with-zero", ["w1.5", 0, "w0", 0, 0]),
        ("soft_zero_per_response", ["w1.5", 0, "w0", 0, 0]),
        ("soft with forced", ["w1.5", "w1.5", 0, 0, 0]),
        ("only zero", [1, 0, 1, 0, 0]),
        ("forced", [1, 1, 0, 0, 0]),
        ("no-global", [1, 1, 1, 1, 1]),
        ("only global", [0, 0, 0, 0, 0]),
    ],
)
def test_modes(mode, weights) -> None:
    found = copo_advantages(REWARDS, GROUP, ANSWER)
    weight = copo_weight(found.entropy, mode=mode, rewards=REWARDS, group=GROUP, advantages=found.local)
    expected = [1 / (1 + math.exp(-5 * (float(w[1:]) - 1))) if isinstance(w, str) else w for w in weights]
    assert weight[[0, 2, 4, 8, 12]].tolist() == pytest.approx(expected, abs=1e-9)


def test_modes_name_what_they_lack() -> None:
    entropy = torch.zeros(2)
    with pytest.raises(ValueError, match="rewards: mode 'zero' needs them"):
        copo_weight(entropy, mode="zero")
    with pytest.raises(ValueError, match="group: mode 'soft_zero' needs the prompt ids"):
        copo_weight(entropy, rewards=entropy)
    with pytest.raises(ValueError, match="advantages: mode 'forced' needs the local advantages"):
        copo_weight(entropy, mode="forced")
    with pytest.raises(ValueError, match=r"mode: expected one of soft_zero, .* got 'soft zero'"):
        copo(make(advantages=torch.zeros(16)), mode="soft zero")


def test_the_published_mode_reinforces_wrong_answers_of_easy_prompts() -> None:
    """Prompt 0 stands above the mean; its wrong answers get -A r < 0, a reward, under the authors' rule only."""
    batch = make(old_log_probs=None)  # ratios of 1
    signs = {}
    for mode in ("soft_zero", "soft_zero_per_response"):
        prepared = recipe("copo", mode=mode).prepare(batch)
        signs[mode] = copo(prepared, mode=mode).per_token[2, 0]
    assert signs["soft_zero_per_response"] < 0 < signs["soft_zero"]


def test_mini_batches_keep_the_statistics_of_the_rollout_batch() -> None:
    method = recipe("copo", aggregation="token-mean")
    prepared = method.prepare(make())
    whole = method(prepared)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    tokens = prepared.mask.sum()
    parts = [method(prepared.select(rows).replace(num_tokens=tokens)).loss for rows in order.split(3)]
    torch.testing.assert_close(sum(parts), whole.loss)
    # Without what prepare keeps, three rows would pass for a whole batch.
    lost = [method(prepared.select(rows).replace(num_tokens=tokens, extras={})).loss for rows in order.split(3)]
    assert abs(sum(lost) - whole.loss) > 1e-3


def test_rows_of_other_sources_stand_outside() -> None:
    method = recipe("copo")
    batch = make()
    rows = torch.arange(16).repeat(2)  # the second half is replayed, with other rewards
    twice = batch.select(rows).replace(source=torch.tensor([0] * 16 + [REPLAY] * 16))
    twice = twice.replace(rewards=torch.where(torch.arange(32) < 16, REWARDS[rows], 1.0))
    found, alone = method.prepare(twice), method.prepare(batch)
    for name in alone.extras:
        torch.testing.assert_close(found.extras[name][:16], alone.extras[name])
        assert not found.extras[name][16:].any()


def test_blend_is_the_mixture_of_two_losses() -> None:
    batch = make(advantages=torch.randn(16, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    assert batch.advantages is not None
    other, weight = -2 * batch.advantages[:, 0], torch.linspace(0, 1, 16, dtype=torch.float64)
    found = blended_policy_loss(batch, other, weight, aggregation="token-mean")
    w = weight.unsqueeze(1)
    expected = w * ppo(batch).per_token + (1 - w) * ppo(batch.replace(advantages=other)).per_token
    torch.testing.assert_close(found.per_token, expected)
