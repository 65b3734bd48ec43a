"""CURE's settings and the layout of its groups."""

from __future__ import annotations

import pytest
import torch

from infotorch.losses import cure_origins, recipe, uniform_groups


def test_layout() -> None:
    group = torch.tensor([5] * 16 + [2] * 16)
    found = cure_origins(group)
    assert found[:16].tolist() == [0, 1, 2, 3, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(found[:16], found[16:])
    assert cure_origins(torch.zeros(4, dtype=torch.long), branches=0).tolist() == [0, 1, 2, 3]


def test_a_group_of_another_size_is_refused() -> None:
    group = torch.tensor([0] * 8 + [3] * 7)
    with pytest.raises(
        ValueError, match=r"expected 8 rows .*\(2 originals and 3 branches of each\), got 7 of prompt 3"
    ):
        cure_origins(group, originals=2, branches=3)
    with pytest.raises(ValueError, match="originals: expected a number in"):
        cure_origins(group, originals=0)


def test_stages_differ_in_their_length_limit_alone() -> None:
    one, two = (recipe(f"cure_stage{i}").to_dict() for i in (1, 2))
    assert one["rewards"][0].pop("max_length") == 2596
    assert two["rewards"][0].pop("max_length") == 3584
    assert one == two
    shorter = recipe("cure_stage1", max_length=100, buffer=10)
    assert shorter.rewards[0].options["max_length"] == 100
    assert shorter.rewards[0].options["buffer"] == 10


def test_prompts_that_dynamic_sampling_drops() -> None:
    rewards, group = torch.tensor([1.0, 1.0, -1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    assert uniform_groups(rewards, group).tolist() == [True, True, False, False]
