"""What is special to ETTRL: votes and their ties, diagnostics, reshaping and its flipped signs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from infotorch.losses import (
    EAR,
    MajorityVote,
    TokenBatch,
    ear_advantage,
    entropy_scale,
    grpo_advantage,
    majority_labels,
    majority_vote,
    recipe,
    training_rows,
    vote_diagnostics,
)


def make(**changes) -> TokenBatch:
    fields = {
        "log_probs": torch.zeros(6, 3),
        "mask": torch.arange(3) < torch.tensor([[1], [2], [3], [3], [2], [1]]),
        "entropy": torch.tensor([0.1, 0.1, 0.7, 1.0, 1.0, 1.0]).unsqueeze(1).expand(6, 3),
        "rewards": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]),
        "group": torch.tensor([0, 0, 0, 1, 1, 1]),
        "answer": torch.tensor([4, 4, 2, -1, 9, 8]),
    }
    return TokenBatch(**{**fields, **changes})


def by_counter(answers: list[int]) -> int:
    counted = Counter(a for a in answers if a != -1)
    return counted.most_common(1)[0][0] if counted else -1  # ties: first seen


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_those_of_a_counter(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    answer, group = torch.randint(-1, 4, (30,), generator=g), torch.randint(5, (30,), generator=g)
    found = majority_labels(answer, group)
    for own in group.unique():
        expected = by_counter(answer[group == own].tolist())
        assert (found[group == own] == expected).all()
    agrees = (answer == found) & (found != -1)
    batch = TokenBatch(
        log_probs=torch.zeros(30, 1), mask=torch.ones(30, 1, dtype=torch.bool), answer=answer, group=group
    )
    assert torch.equal(majority_vote(batch), agrees.float())


def test_ties() -> None:
    answer, group = torch.tensor([7, 3, 3, 7, 1, -1, -1, -1]), torch.zeros(8, dtype=torch.long)
    labels = {ties: int(majority_labels(answer, group, ties=ties)[0]) for ties in ("first", "lowest", "none")}
    assert labels == {"first": 7, "lowest": 3, "none": -1}, "three failures are no majority"
    assert int(majority_labels(answer.flip(0), group)[0]) == 7
    assert int(majority_labels(answer[[1, 0, 2, 3]], group[:4])[0]) == 3
    assert int(majority_labels(torch.tensor([5, 5, 2]), group[:3], ties="none")[0]) == 5
    with pytest.raises(ValueError, match="ties: expected one of first, lowest, none"):
        majority_labels(answer, group, ties="random")


def test_ids_may_be_large() -> None:
    big = (1 << 63) - 2
    answer, group = torch.tensor([big, big, 0]), torch.zeros(3, dtype=torch.long)
    for ties in ("first", "lowest", "none"):
        assert majority_labels(answer, group, ties=ties)[0] == big


def test_nothing_to_parse_teaches_nothing() -> None:
    batch = make(answer=torch.full((6,), -1))
    assert not majority_vote(batch).any()
    prepared = recipe("ettrl").prepare(batch.replace(ref_log_probs=batch.log_probs))
    assert not prepared.advantages.any()
    assert float(vote_diagnostics(batch.answer, batch.group)["majority_ratio"]) == 0


def test_diagnostics_count_every_prompt_once() -> None:
    answer = torch.tensor([4, 4, 2, 9, 9, 9, 9, 1])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    correct = torch.tensor([True, True, False, False, False, False, False, True])
    found = {k: float(v) for k, v in vote_diagnostics(answer, group, correct).items()}
    assert found == pytest.approx(
        {
            "majority_ratio": (2 / 3 + 4 / 5) / 2,
            "label_accuracy": 0.5,
            "reward_accuracy": (1 + 0) / 2,
            "ground_truth_ratio": (2 / 3 + 1 / 5) / 2,
            "pass_at_n": 1.0,
        }
    )


def test_the_module_compares_with_true_rewards_and_replaces_them() -> None:
    method = recipe("ettrl")
    assert isinstance(method.rewards[0], MajorityVote)
    assert isinstance(method.advantage, EAR)
    batch = make(ref_log_probs=torch.zeros(6, 3))
    prepared = method.prepare(batch)
    assert prepared.rewards.tolist() == [1, 1, 0, 0, 1, 0]
    metrics = method(prepared).metrics
    assert float(metrics["label_accuracy"]) == 0.5  # 4 was right once, 9 never
    assert float(metrics["reward_accuracy"]) == pytest.approx((1 / 3 + 1 / 3) / 2)
    unlabeled = recipe("ettrl")
    prepared = unlabeled.prepare(batch.replace(rewards=None))
    assert "majority_ratio" in unlabeled(prepared).metrics
    assert "label_accuracy" not in unlabeled(prepared).metrics


def test_scale_by_hand() -> None:
    """Confident responses count more, and the mean factor of a prompt is 1."""
    h, group = torch.tensor([0.2, 0.6, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    found = entropy_scale(h, group)
    torch.testing.assert_close(found, torch.tensor([2 - 1 / 3, 1.0, 2 - 5 / 3, 1.0, 1.0]))
    assert found[:3].mean() == pytest.approx(1.0)


def test_above_twice_the_mean_the_advantage_flips() -> None:
    rewards = torch.tensor([0.0, 0.0, 1.0])
    entropy = torch.tensor([[0.1], [0.1], [1.0]])
    batch = TokenBatch(
        log_probs=torch.zeros(3, 1),
        mask=torch.ones(3, 1, dtype=torch.bool),
        entropy=entropy,
        rewards=rewards,
        group=torch.zeros(3, dtype=torch.long),
    )
    plain = grpo_advantage(batch)
    assert plain[2] > 0 > ear_advantage(batch)[2]
    assert ear_advantage(batch, y_min=0.0)[2] == 0
    fractions = []
    for options in ({}, {"y_min": 0.0}):
        method = recipe("ear", **options)
        fractions.append(float(method(method.prepare(batch)).metrics["negative_scale_fraction"]))
    assert fractions == pytest.approx([1 / 3, 0.0])
    clipping = recipe("ear", mode="clip")
    assert "negative_scale_fraction" not in clipping(clipping.prepare(batch)).metrics


def test_clip_and_equal_rewards() -> None:
    found = ear_advantage(make(), mode="clip", beta=0.5)
    assert found.abs().amax() == 0.5
    assert not ear_advantage(make(rewards=torch.ones(6))).any()
    with pytest.raises(ValueError, match="beta: expected a number in"):
        ear_advantage(make(), beta=0.0)
    with pytest.raises(ValueError, match="mode: expected one of res, clip"):
        ear_advantage(make(), mode="both")


def test_entropies_of_the_sampling_policy_are_used() -> None:
    batch = make(old_entropy=make().entropy, entropy=torch.rand(6, 3))
    torch.testing.assert_close(ear_advantage(batch), ear_advantage(make()))


def test_branches_may_bring_the_entropy_of_their_whole_trajectory() -> None:
    whole = torch.tensor([0.4, 0.4, 0.1, 0.5, 0.5, 0.5])
    batch = make(extras={"trajectory_entropy": whole})
    found = ear_advantage(batch, response_entropy="trajectory_entropy")
    expected = grpo_advantage(batch) * entropy_scale(whole, batch.group).unsqueeze(1)
    torch.testing.assert_close(found, expected)
    method = recipe("ear", response_entropy="trajectory_entropy")
    torch.testing.assert_close(method.prepare(batch).advantages, expected)
    with pytest.raises(ValueError, match=r"ear needs TokenBatch\.extras\.trajectory_entropy"):
        ear_advantage(make(), response_entropy="trajectory_entropy")


def test_rows_to_train_on() -> None:
    group = torch.tensor([0] * 6 + [1] * 6)
    tree = torch.arange(12) // 3  # two trees a prompt

    def chosen(rows: Tensor) -> list[int]:
        return rows.nonzero().squeeze(1).tolist()

    assert chosen(training_rows(group, 2, select="first")) == [0, 1, 6, 7]
    assert chosen(training_rows(group, 2, tree=tree)) == [0, 3, 6, 9]
    assert chosen(training_rows(group, 3, tree=tree)) == [0, 1, 3, 6, 7, 9]
    assert chosen(training_rows(group, 2)) == [0, 1, 6, 7]
    assert training_rows(group, 99).all()
    one = training_rows(group, 4, select="random", generator=torch.Generator().manual_seed(0))
    two = training_rows(group, 4, select="random", generator=torch.Generator().manual_seed(0))
    assert torch.equal(one, two)
    assert one[:6].sum() == one[6:].sum() == 4
    with pytest.raises(ValueError, match="select: expected one of first, random, balanced"):
        training_rows(group, 2, select="last")
