"""Budgets and branches of agentic rollouts: borders, and the rules that follow from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from infotorch.rollout import arpo_score, branching_score, entropy_proxy, initial_rollouts


def test_the_proxy_reaches_the_published_range() -> None:
    uniform = torch.full((40, 10), 0.1, dtype=torch.float64).log()
    assert entropy_proxy(uniform, 150_000).item() == pytest.approx(20 * math.log(10) / math.log(150_000))
    assert entropy_proxy(uniform[:3], 150_000, reduce="mean").item() == pytest.approx(math.log(10) / math.log(150_000))


def test_the_proxy_of_nothing_and_of_certainty() -> None:
    assert entropy_proxy(torch.zeros(0, 10), 100) == 0
    assert entropy_proxy(torch.zeros(0, 10), 100, reduce="mean") == 0
    certain = torch.tensor([[0.0, -torch.inf]])
    assert entropy_proxy(certain, 100) == 0
    assert entropy_proxy(torch.full((2, 2), -0.7, dtype=torch.bfloat16), 100).dtype == torch.float32


def test_the_budget_stays_between_one_and_all() -> None:
    root, tool = torch.tensor([0.0, 1e3, 0.0]), torch.tensor([0.0, 0.0, 1e3])
    assert initial_rollouts(root, tool, 16).tolist() == [9, 16, 1]
    assert initial_rollouts(root, tool, 1).tolist() == [1, 1, 1]
    rising = initial_rollouts(torch.linspace(-8, 8, 50), torch.zeros(50), 16)
    assert (rising.diff() >= 0).all()


def test_after_ten_branches_only_risen_entropy_branches_and_after_twenty_none() -> None:
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    change = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    for count in (10, 15, 19, 20, 30):
        branches = branching_score(u, change, torch.zeros(1000), torch.full((1000,), count)) >= 0.5
        assert (change[branches] > 0).all()
        assert count < 20 or not branches.any()
    fresh = branching_score(u, change, torch.zeros(1000), torch.zeros(1000, dtype=torch.long)) >= 0.5
    assert (change[fresh] < 0).any()


def test_both_scores_favor_risen_entropy() -> None:
    u, change, zero = torch.full((3,), 0.5), torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(3)
    assert branching_score(u, change, zero, torch.zeros(3, dtype=torch.long)).tolist() == pytest.approx([0.3, 0.5, 0.7])
    assert arpo_score(u, change, zero).tolist() == pytest.approx([0.7, 0.5, 0.3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: entropy_proxy(x, 10), r"top_logprobs: expected shape \(tokens, K\), got \(3,\)"),
        (lambda x: entropy_proxy(x[:, None], 1), r"vocab_size: expected a number in \[2, inf\]"),
        (lambda x: entropy_proxy(x[:, None], 10, reduce="max"), "reduce: expected one of sum, mean"),
        (lambda x: initial_rollouts(x, x, 0), r"budget: expected a number in \[1, inf\]"),
        (lambda x: initial_rollouts(x, x, 4, beta=-1), "beta: expected"),
        (lambda x: branching_score(x, x, x, x, penalty=-1), "penalty: expected"),
        (lambda x: arpo_score(x, x, x, weight=-1), "weight: expected"),
    ],
)
def test_bad_arguments(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3))
