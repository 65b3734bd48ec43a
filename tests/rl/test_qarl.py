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
    Transitions,
    act_with,
    actor_loss,
    critic_target,
    fresh_adversary,
    play_against,
    robustness_grid,
    temperature_loss,
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
        rows, *_ = replay.sample(20)
        assert bool((rows.obs[:, -1] == 0.25).all())
        assert bool((rows.next_obs[:, -1] == 0.25).all())
        assert torch.equal(model._player("adversary").temperature(rows.obs), torch.full((20,), 0.25))


def test_rewards_are_opposite_and_time_limits_not_absorbing():
    model = make("rarl")
    plain_trainer(max_epochs=1).fit(model)
    for name, sign in (("protagonist", -1), ("adversary", 1)):
        rows, *_ = model.replays[name].sample(40)
        assert bool((rows.reward.sign() == sign).all())
        assert bool((rows.discount == torch.tensor(model.gamma)).all())


def test_an_episode_that_ends_for_good_is_absorbing():
    pytest.importorskip("gymnasium.envs.mujoco")
    env = AdversaryWrapper(gymnasium.make("InvertedPendulum-v5", max_episode_steps=50), ["pole"], "x", 30.0)
    model = QARL(env, method="sac", **SMALL)
    plain_trainer(max_epochs=1).fit(model)
    discounts = model.replays["protagonist"].sample(400)[0].discount
    assert set(discounts.unique().tolist()) == {0.0, float(np.float32(0.99))}


def test_force_curriculum_bounds_the_actions():
    model = make("force", curriculum=FixedTemperature(0.1))
    plain_trainer(max_epochs=1).fit(model)
    actions = model.replays["adversary"].sample(40)[0].action
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


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("infotorch.core.distributed.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="QARL: expected one process"):
        plain_trainer(max_epochs=1).fit(make())


def test_update_is_a_descent_on_its_losses():
    """A critic that learns to predict a constant reward."""
    torch.manual_seed(0)
    player, generator = Player(2, 1, hidden=(16,)), torch.Generator().manual_seed(0)
    rows, three = torch.ones(16, 2), torch.full((16,), 3.0)
    batch = Transitions(rows, torch.zeros(16, 1), three, rows, torch.zeros(16))
    optimizer = player.optimizer(1e-3, 1e-2)
    for _ in range(200):
        metrics = player.update(batch, optimizer, generator=generator)
    assert float(metrics["critic"]) < 1e-2
    values = player.critic(torch.ones(1, 2), torch.zeros(1, 1))
    assert min(float(q.detach()) for q in values) == pytest.approx(3.0, abs=0.2)
    assert all(p.requires_grad for p in player.critic.parameters())
    assert not any(p.requires_grad for p in player.target.parameters())


def test_update_is_one_step_on_each_loss_of_its_own():
    """One backward pass over their sum: no loss reaches the parameters of another."""
    rows = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    batch = Transitions(rows[0], rows[1, :, :2].tanh(), rows[1, :, 2], rows[2], torch.full((8,), 0.9))
    player, apart = (Player(4, 2, hidden=(8,), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    player.update(batch, player.optimizer(1e-2, 1e-2), generator=torch.Generator().manual_seed(2))
    generator, alpha = torch.Generator().manual_seed(2), apart.temperature(rows[0])
    with torch.no_grad():
        ahead = apart.actor(batch.next_obs, generator)
        y = critic_target(
            batch.reward,
            torch.zeros(8),
            *apart.target(batch.next_obs, ahead.action),
            ahead.log_prob,
            alpha,
            gamma=0.9,
        )
    own = apart.actor(batch.obs, generator)
    assert apart.log_temperature is not None
    losses = {
        "actor": (apart.actor, actor_loss(own.log_prob, *apart.critic(batch.obs, own.action), alpha)),
        "critic": (apart.critic, sum((q - y).square().mean() for q in apart.critic(batch.obs, batch.action))),
    }
    for module, loss in losses.values():
        parameters = list(module.parameters())
        grads = torch.autograd.grad(loss, parameters, retain_graph=True)
        found = player.actor if module is apart.actor else player.critic
        for grad, parameter in zip(grads, found.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, grad)
    (grad,) = torch.autograd.grad(temperature_loss(apart.log_temperature, own.log_prob, -2.0), apart.log_temperature)
    assert player.log_temperature is not None
    torch.testing.assert_close(player.log_temperature.grad, grad)


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
        (lambda: make(capacity=0), ValueError, "capacity"),
        (lambda: robustness_grid(make_env(), lambda s: s, {"mass": [1.0]}), ValueError, "parameters"),
        (lambda: fresh_adversary(make_env(), lambda s: s, steps=0), ValueError, "steps"),
    ],
)
def test_bad_input_is_named(call, error, name):
    with pytest.raises(error, match=f"^{name}: expected"):
        call()
