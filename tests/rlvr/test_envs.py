"""The environments of the agent examples, and two hard tests in them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from infotorch.losses import Recipe, recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
envs = pytest.importorskip("_envs")


def play(environment, task: int, actions: list[int]) -> dict:
    state = environment.reset(torch.tensor([task]))
    for turn, action in enumerate(actions):
        environment.observe(state, turn)
        environment.step(state, turn, torch.tensor([action]))
    return {name: value.item() for name, value in state.items()}


def test_the_door_opens_with_the_key_only() -> None:
    env = envs.KeyDoor()
    right, pick, open_ = 1, 2, 3
    assert play(env, 2, [right, right, pick, right, right, open_])["reward"] == 1
    assert play(env, 2, [right, pick, right, right, right, open_])["reward"] == 0, "picked up where it does not lie"
    assert play(env, 2, [right, right, pick, open_])["reward"] == 0, "opened where there is no door"


def test_only_rooms_that_matter_matter() -> None:
    env = envs.NoiseRooms()
    way = env.right[:, 1].tolist()
    assert play(env, 1, way)["reward"] == 1
    noise = [(door + 1) % 4 if room in (1, 4, 7, 10) else door for room, door in enumerate(way)]
    assert play(env, 1, noise)["reward"] == 1
    assert play(env, 1, [*way[:3], (way[3] + 1) % 4, *way[4:]])["reward"] == 0
    policy = envs.TablePolicy(env, 0)
    env.head_start(policy, 0.9, steps=400)
    seen = torch.arange(12) * 4 + 1
    chance = policy(seen).softmax(-1).gather(-1, env.right[:, 1:2]).squeeze(1)
    torch.testing.assert_close(chance[env.matters], torch.full((8,), 0.9), atol=0.02, rtol=0)
    torch.testing.assert_close(chance[~env.matters], torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_a_chain_needs_its_calls_in_order() -> None:
    env = envs.ToolChain()
    calls = env.calls[5].tolist()
    done = play(env, 5, calls)
    assert (done["reward"], done["tool_turns"]) == (1, 4)
    second = [calls[0], (calls[1] + 1) % 6, *calls[2:]]
    assert play(env, 5, second)["reward"] == 1, "at the second place two tools will do"
    slow = play(env, 5, [6, calls[0], (calls[1] + 3) % 6, calls[1], 9, *calls[2:]])
    assert (slow["reward"], slow["tool_turns"]) == (1, 5)
    assert play(env, 5, [*calls[::-1], *calls[::-1]])["reward"] == 0


@pytest.mark.parametrize("policy", ["TablePolicy", "GRUPolicy"])
def test_step_by_step_is_the_whole_dialogue(policy) -> None:
    env = envs.KeyDoor()
    net = getattr(envs, policy)(env, 0)
    seen = torch.randint(env.observations, (3, 7))
    memory, logits = None, []
    for turn in range(7):
        out, memory = net.act(seen[:, turn], memory)
        logits.append(out)
    torch.testing.assert_close(torch.stack(logits, 1), net(seen))


def weights_after(method: Recipe, environment, steps: int = 25) -> torch.Tensor:
    policy = envs.GRUPolicy(environment, 0)
    envs.run_agent(method, environment, policy, steps=steps, seed=0, tasks=8)
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_the_indicator_of_epo_trains_like_the_bonus_to_the_last_bit() -> None:
    corridor = {"coef": 0.05, "low": 0.8, "high": 1.0, "alpha": 1.0}
    bonus = weights_after(recipe("entropy_bonus", coef=0.05), envs.KeyDoor())
    indicator = weights_after(recipe("epo", penalty="indicator", **corridor), envs.KeyDoor())
    hinge = weights_after(recipe("epo", **corridor), envs.KeyDoor())
    assert torch.equal(indicator, bonus)
    assert (hinge - bonus).abs().max() > 1e-4


@pytest.mark.parametrize("combine", ["sum", "alternate"])
def test_dialogues_are_repeated_as_they_were(combine) -> None:
    """Log-probabilities computed again for stored dialogues are those under which they were sampled."""
    env, seen = envs.ToolChain(), []

    method = recipe("spear", combine=combine, buffer={"size": 2, "fill": 0.5}, warmup=0, keep=1.0)
    part = method.regularizers[0]
    forward = part.forward
    part.forward = lambda batch: (seen.append(batch), forward(batch))[1]
    policy = envs.GRUPolicy(env, 0)
    envs.run_agent(method, env, policy, steps=12, seed=0, lr=0.0)  # the policy never moves
    repeated = [batch for batch in seen if batch.mask.any()]
    assert repeated
    for batch in repeated:
        assert batch.log_ratio.abs().max() < 1e-5
        assert (batch.advantages[batch.mask] > 0).all()
