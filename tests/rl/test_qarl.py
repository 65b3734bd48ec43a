from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from common import plain_trainer, quiet_lightning

from infotorch.rl import (
    QARL,
    AdversaryWrapper,
    FixedTemperature,
    GammaCurriculum,
    Player,
    Replay,
    act_with,
    fresh_adversary,
    play_against,
    robustness_grid,
)

gymnasium = pytest.importorskip("gymnasium")
quiet_lightning()


def make_env(steps: int = 20) -> AdversaryWrapper:
    return AdversaryWrapper(gymnasium.make("Pendulum-v1", max_episode_steps=steps), ["pole"], "xz", 2.0)


SMALL = {"hidden": (8,), "batch": 16, "initial": 30, "warmup": 50, "episodes": 2, "evaluation": 1, "iterations": 4}


def make(method: str = "qarl", **options) -> QARL:
    return QARL(make_env(), method=method, **{**SMALL, **options})


def weights(model: QARL) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", QARL.METHODS)
def test_all_methods_train(method):
    model = make(method, performance_bound=-1e9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain_trainer(max_epochs=4).fit(model)
    assert model.iteration == 4
    assert set(model.replays) == ({"protagonist"} if method == "sac" else {"protagonist", "adversary"})
    assert all(steps == 4 * 2 * 20 for steps in model.env_steps.values())
    for name, value in model.state_dict().items():
        assert bool(value.isfinite().all())
        assert not torch.equal(value, before[name]) or name.endswith("bias"), name
    last = model.history[-1]
    assert last["env_steps"] == sum(model.env_steps.values())
    assert ("attacked" in last) == (method != "sac")
    assert ("temperature" in last) == (method not in ("sac", "rarl"))
    learned = [name for name in model.players if model._player(name).log_temperature is not None]
    assert ("adversary" in learned) == (method in ("rarl", "force"))


def test_temperature_is_the_last_entry_of_what_both_see():
    model = make(curriculum=FixedTemperature(0.25))
    plain_trainer(max_epochs=1).fit(model)
    for replay in model.replays.values():
        rows = replay.sample(20, torch.Generator().manual_seed(0))
        assert bool((rows.observation[:, -1] == 0.25).all())
        assert bool((rows.following[:, -1] == 0.25).all())
    adversary = model._player("adversary")
    assert torch.equal(adversary.temperature(rows.observation), torch.full((20,), 0.25))


def test_rewards_are_opposite_and_time_limits_not_absorbing():
    model = make("rarl")
    plain_trainer(max_epochs=1).fit(model)
    for name, sign in (("protagonist", -1), ("adversary", 1)):
        rows = model.replays[name].sample(40, torch.Generator().manual_seed(0))
        assert bool((rows.reward.sign() == sign).all())
        assert float(rows.absorbing.sum()) == 0.0


def test_force_curriculum_bounds_the_actions():
    model = make("force", curriculum=FixedTemperature(0.1))
    plain_trainer(max_epochs=1).fit(model)
    actions = model.replays["adversary"].sample(40, torch.Generator().manual_seed(0)).action
    assert 0.05 < float(actions.abs().max()) <= 0.1 + 1e-6


def test_curriculum_moves_while_the_return_is_kept_and_else_stands():
    for bound, moves in ((-1e9, True), (1e9, False)):
        model = make(curriculum=GammaCurriculum(episodes=4, performance_bound=bound))
        plain_trainer(max_epochs=2).fit(model)
        assert (model.temperature != 0.05) == moves


def test_relative_bound_follows_the_return_without_force():
    model = make(relative_bound=0.5)
    plain_trainer(max_epochs=2).fit(model)
    assert isinstance(model.curriculum, GammaCurriculum)
    assert model.curriculum.performance_bound == 0.5 * model.history[0]["discounted_return"] < 0


def test_a_seed_gives_the_same_result():
    a, b, c = (make(seed=seed) for seed in (1, 1, 2))
    for model in (a, b, c):
        plain_trainer(max_epochs=2).fit(model)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))
    assert a.history == b.history


@pytest.mark.parametrize("method", ["qarl", "rarl", "sac"])
def test_a_resumed_run_is_the_run(method, tmp_path):
    options = {"curriculum": GammaCurriculum(episodes=6, performance_bound=-1e9)} if method == "qarl" else {}
    whole = make(method, **options)
    plain_trainer(max_epochs=4).fit(whole)
    if method == "qarl":
        options = {"curriculum": GammaCurriculum(episodes=6, performance_bound=-1e9)}
    trainer = plain_trainer(max_epochs=2)
    trainer.fit(make(method, **options))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    if method == "qarl":
        options = {"curriculum": GammaCurriculum(episodes=6, performance_bound=-1e9)}
    resumed = make(method, **options)
    plain_trainer(max_epochs=4).fit(resumed, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.history == resumed.history
    assert whole.temperature == resumed.temperature


def test_update_is_a_descent_on_its_losses():
    """A critic that learns to predict a constant reward."""
    torch.manual_seed(0)
    player, generator = Player(2, 1, hidden=(16,)), torch.Generator().manual_seed(0)
    replay = Replay(2, 1)
    for _ in range(50):
        replay.add(np.ones(2), np.zeros(1), 3.0, True, np.ones(2))
    optimizers = player.optimizers(1e-3, 1e-2)
    for _ in range(200):
        metrics = player.update(replay.sample(16, generator), optimizers, generator=generator)
    assert float(metrics["critic"]) < 1e-2
    q1, q2 = player.critic(torch.ones(1, 2), torch.zeros(1, 1))
    assert float(torch.minimum(q1, q2).detach()) == pytest.approx(3.0, abs=0.2)
    assert all(p.requires_grad for p in player.critic.parameters())
    assert not any(p.requires_grad for p in player.target.parameters())


@pytest.mark.parametrize("capacity", [3, 2000])
def test_replay_keeps_the_last(capacity):
    replay = Replay(1, 1, capacity)
    for i in range(2500):
        replay.add([i], [0.0], float(i), False, [i + 1])
    assert len(replay) == capacity
    again = Replay(1, 1, capacity)
    again.load_state_dict(replay.state_dict())
    for r in (replay, again):
        r.add([-1], [0.0], -1.0, False, [0])
    drawn = [r.sample(500, torch.Generator().manual_seed(0)).reward for r in (replay, again)]
    assert torch.equal(*drawn)
    kept = set(drawn[0].tolist())
    assert kept <= {-1.0, *map(float, range(2500 - capacity + 1, 2500))}


def test_returns_of_an_episode():
    episode = play_against(make_env(5), lambda seen: np.zeros(1), seed=0, gamma=0.5)
    env, rewards = gymnasium.make("Pendulum-v1"), []
    env.reset(seed=0)
    for _ in range(5):
        rewards.append(env.step(np.zeros(1, np.float32))[1])
    assert episode.total == pytest.approx(sum(rewards))
    assert episode.discounted == pytest.approx(sum(0.5**t * r for t, r in enumerate(rewards)))


def test_grid_puts_the_parameters_back():
    env = make_env(5)
    policy = act_with(Player(3, 1, hidden=(4,), generator=torch.Generator().manual_seed(0)).actor)
    grid = robustness_grid(env, policy, {"mass": [1.0, 2.0], "length": [0.5, 1.0, 2.0]}, episodes=2)
    assert (env.base.m, env.base.l) == (1.0, 1.0)
    nominal = [play_against(env, policy, seed=k).total for k in range(2)]
    assert float(grid.returns[0, 1]) == pytest.approx(sum(nominal) / 2)
    assert grid.score == pytest.approx(float(grid.returns.mean()))
    assert len(set(grid.returns.flatten().tolist())) == 6
    with pytest.raises(ValueError, match="positive"):
        robustness_grid(env, policy, {"mass": [2.0], "length": [-1.0]})
    assert env.base.m == 1.0


def test_fresh_adversary_is_reproducible_and_sees_the_temperature():
    env = make_env(10)
    policies = [
        fresh_adversary(
            env, lambda seen: np.zeros(1), steps=60, initial=20, batch=8, hidden=(8,), temperature_seen=0.0, seed=4
        )
        for _ in range(2)
    ]
    seen = np.ones(4, np.float32)
    assert np.array_equal(policies[0](seen), policies[1](seen))


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: QARL(gymnasium.make("Pendulum-v1")), TypeError, "env"),  # pyright: ignore[reportArgumentType]
        (lambda: make("qarrl"), ValueError, "method"),
        (lambda: make("rarl", curriculum=FixedTemperature()), ValueError, "curriculum"),
        (lambda: make("linear", relative_bound=0.5), ValueError, "relative_bound"),
        (lambda: make(relative_bound=2.0), ValueError, "relative_bound"),
        (lambda: make(iterations=0), ValueError, "iterations"),
        (lambda: make(steps_per_update=0), ValueError, "steps_per_update"),
        (lambda: make(gamma=1.1), ValueError, "gamma"),
        (lambda: make(lr_actor=math.nan), ValueError, "lr_actor"),
        (lambda: Player(3, 1, temperature=0.0), ValueError, "temperature"),
        (lambda: Replay(3, 1, 0), ValueError, "capacity"),
        (lambda: Replay(3, 1).sample(1), ValueError, "replay"),
        (lambda: Replay(3, 1).add([1.0], [1.0], 0.0, False, [1.0]), ValueError, "transition"),
        (lambda: robustness_grid(make_env(), lambda s: s, {"mass": [1.0]}), ValueError, "parameters"),
        (lambda: fresh_adversary(make_env(), lambda s: s, steps=0), ValueError, "steps"),
    ],
)
def test_bad_input_is_named(call, error, name):
    with pytest.raises(error, match=f"^{name}: expected"):
        call()
