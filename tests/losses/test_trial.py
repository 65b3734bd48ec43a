"""Recipes are tried out where they are written, before anything is trained."""

from __future__ import annotations

import pytest
import torch
from repeater import Repeater

from infotorch.losses import Recipe, recipe, recipe_names
from infotorch.losses._trial import try_out


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_passes_and_keeps_its_state(name) -> None:
    method, before = recipe(name), torch.random.get_rng_state()
    state = {k: v.clone() for k, v in method.state_dict().items() if isinstance(v, torch.Tensor)}
    try_out(method)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in state.items():  # some are NaN until something is known
        torch.testing.assert_close(method.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip_cov", {"ratio": 2.0}, r"ratio: expected a number in \[0, 1\], got 2.0"),
        ("tempered_advantage", {"max_gap": -1.0}, "max_gap: expected"),
        ("tool_reward", {"decay": 0}, "decay: expected"),
        ("arbitrary_entropy", {"fraction": 1.5}, "fraction: expected"),
        ("empg", {"goal_weight": -1.0}, "goal_weight"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        try_out(recipe(name, **options))


def test_a_generator_of_the_users_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    try_out(recipe("clip_cov", ratio=0.5, lower=0.0, generator=generator))
    assert torch.equal(generator.get_state(), before)


def test_parts_of_a_users_own_are_left_alone() -> None:
    part = Repeater()
    try_out(Recipe("ppo", advantage="grpo", regularizers=[part]))
    assert not part.seen
