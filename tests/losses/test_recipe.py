"""Registry and recipes."""

from __future__ import annotations

import pytest
import torch

from infotorch.core import aggregate
from infotorch.losses import (
    PPO,
    LossOutput,
    Recipe,
    TokenBatch,
    build,
    entropy_bonus,
    grpo_advantage,
    names,
    part_table,
    ppo,
    recipe,
    recipe_names,
    register,
)
from infotorch.losses.registry import Part


def rollout(**changes) -> TokenBatch:
    g = torch.Generator().manual_seed(0)
    values = {
        "log_probs": -torch.rand(8, 5, generator=g, dtype=torch.float64).requires_grad_(),
        "old_log_probs": -torch.rand(8, 5, generator=g, dtype=torch.float64),
        "mask": torch.arange(5) < torch.randint(1, 6, (8, 1), generator=g),
        "rewards": torch.randint(0, 2, (8,), generator=g).double(),
        "group": torch.arange(8) // 4,
        "entropy": torch.rand(8, 5, generator=g, dtype=torch.float64),
        "ref_log_probs": -torch.rand(8, 5, generator=g, dtype=torch.float64),
    }
    return TokenBatch(**{**values, **changes})


def test_composition_is_the_sum_of_its_parts() -> None:
    batch = rollout()
    r = Recipe("ppo", advantage="grpo", regularizers=[{"name": "entropy_bonus", "coef": 0.1}])
    by_hand = batch.replace(advantages=grpo_advantage(batch))
    expected = ppo(by_hand).loss + entropy_bonus(by_hand, coef=0.1).loss
    assert torch.equal(r(batch).loss, expected)
    assert torch.equal(r(r.prepare(batch)).loss, expected)
    assert r(batch).loss.requires_grad


def test_from_dict_equals_objects() -> None:
    config = {
        "rewards": [{"name": "overlong", "max_length": 4, "buffer": 2}],
        "advantage": {"name": "grpo", "eps": 1e-4},
        "policy": {"name": "ppo", "clip_high": 0.28},
        "regularizers": [{"name": "kl", "coef": 0.01}],
        "aggregation": "seq-mean-token-mean",
    }
    objects = Recipe(
        PPO(clip_high=0.28),
        advantage={"name": "grpo", "eps": 1e-4},
        regularizers=[build({"name": "kl", "coef": 0.01})],
        rewards=config["rewards"],
        aggregation="seq-mean-token-mean",
    )
    assert torch.equal(Recipe.from_dict(config)(rollout()).loss, objects(rollout()).loss)


def test_reward_shaping_comes_before_advantages() -> None:
    r = Recipe("ppo", advantage="dr_grpo", rewards=[{"name": "overlong", "max_length": 4, "buffer": 4}])
    prepared = r.prepare(rollout())
    shaped = rollout().rewards - (rollout().mask.sum(1) / 4).clamp(0, 1)
    torch.testing.assert_close(prepared.rewards, shaped)
    centered = shaped - shaped.view(2, 4).mean(1).repeat_interleave(4)
    torch.testing.assert_close(prepared.advantages, centered.unsqueeze(1) * prepared.mask)


def test_aggregation_reaches_every_part_that_sets_none() -> None:
    mode = "seq-mean-token-sum"
    r = Recipe("ppo", advantage="grpo", regularizers=[{"name": "entropy_bonus", "coef": 1.0}], aggregation=mode)
    batch = r.prepare(rollout())
    out = r(batch)
    torch.testing.assert_close(out.loss, aggregate(out.per_token, batch.mask, mode))


def test_mini_batches_with_global_counts_add_up() -> None:
    r = recipe("entropy_bonus", coef=0.3)
    mask = rollout().mask
    batch = r.prepare(rollout(num_tokens=mask.sum().double(), num_sequences=8.0))
    whole = torch.autograd.grad(r(batch).loss, batch.log_probs)[0]
    batch = r.prepare(rollout(num_tokens=mask.sum().double(), num_sequences=8.0))
    total = sum(r(batch.select(slice(i, i + 2))).loss for i in range(0, 8, 2))
    torch.testing.assert_close(torch.autograd.grad(total, batch.log_probs)[0], whole)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains(name: str) -> None:
    r = recipe(name)
    batch = rollout()
    out = r(batch)
    assert isinstance(out, LossOutput)
    (grad,) = torch.autograd.grad(out.loss, batch.log_probs)
    assert grad.isfinite().all()
    assert grad.any()
    assert {"loss", "policy_loss"} <= set(out.metrics)


def test_options_find_their_part() -> None:
    r = recipe("entropy_bonus", coef=0.5, clip_high=0.4, eps=1e-3)
    assert r.regularizers[0].options == {"coef": 0.5}
    assert r.policy.options == {"clip_high": 0.4}
    assert r.advantage.options == {"eps": 1e-3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipe("clip_conv"), r"recipe: .*got 'clip_conv' \(did you mean 'clip_cov'\?\)"),
        (lambda: recipe("clip_cov", rato=0.1), r"clip_cov: unknown option 'rato' \(did you mean 'ratio'\?\)"),
        (lambda: build("pppo"), r"part: .*did you mean 'ppo'"),
        (lambda: build({"ratio": 1}), r"expected a name or a mapping with the key 'name', got keys \['ratio'\]"),
        (lambda: Recipe.from_dict({"policy": "ppo", "regularisers": []}), r"did you mean 'regularizers'"),
        (lambda: Recipe.from_dict({"advantage": "grpo"}), r"expected the key 'policy', got \['advantage'\]"),
        (lambda: Recipe("entropy_bonus"), r"expected a part of kind 'policy', got 'regularizer'"),
        (lambda: Recipe("ppo", regularizers="kl"), r"regularizers: expected a list of parts, got 'kl'"),
        (lambda: recipe("grpo", aggregation="token_mean")(rollout()), r"did you mean 'token-mean'"),
        (lambda: register("ppo", "policy")(ppo), r"'ppo' is registered already"),
        (lambda: register("new", "polcy")(ppo), r"kind: .*did you mean 'policy'"),
        (lambda: Recipe("ppo")(rollout()), r"ppo needs TokenBatch.advantages, which is missing"),
        (lambda: recipe("kl")(rollout(ref_log_probs=None)), r"kl needs TokenBatch.ref_log_probs"),
        (lambda: recipe("grpo")(rollout(rewards=None)), r"grpo needs TokenBatch.rewards"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_required_fields() -> None:
    assert recipe("forking_tokens").required == {"advantages", "entropy", "rewards", "group"}


def test_part_table_lists_everything() -> None:
    assert [row["name"] for row in part_table()] == [
        n for k in ("reward", "advantage", "policy", "regularizer") for n in names(k)
    ]
    assert all(row["summary"] for row in part_table())


def test_state_of_a_recipe_is_in_its_state_dict() -> None:
    r = recipe("adaptive_entropy_bonus", initial=0.1, target=5.0)
    r(rollout())
    r.after_step()
    assert r.regularizers[0].coef == pytest.approx(0.105)
    other = recipe("adaptive_entropy_bonus", initial=0.1, target=5.0)
    other.load_state_dict(r.state_dict())
    assert other.regularizers[0].coef == r.regularizers[0].coef


def test_modules_are_parts() -> None:
    assert isinstance(build("ppo"), Part)
    with pytest.raises(ValueError, match="ppo: expected a part of kind 'advantage'"):
        build("ppo", "advantage")
