"""Vector environments: the same transitions in all reset modes, n steps by hand, seeds and resumption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infotorch.rl import Collector, make_envs, play

gym = pytest.importorskip("gymnasium")
AutoresetMode = gym.vector.AutoresetMode


class Counter(gym.Env):
    """Observes the step of the episode; action 1 ends it, and the time limit of five cuts it off."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-1e9, 1e9, (2,), np.float64)

    def __init__(self, jitter: bool = False) -> None:
        self.t, self.episode, self.jitter = 0, -1, jitter

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        reward = float(self.np_random.normal()) if self.jitter else float(self.t)
        return self._obs(), reward, action == 1, self.t == 5, {}

    def _obs(self):
        return np.array([self.t, 0.0 if self.jitter else self.episode], dtype=np.float64)


def vector(mode: str = "DISABLED", count: int = 2, **options):
    return gym.vector.SyncVectorEnv([lambda: Counter(**options)] * count, autoreset_mode=AutoresetMode[mode])


def rows_of(collector: Collector, actions: list[list[int]]) -> list[tuple]:
    """Transitions of each step as plain tuples, without the observation's second entry."""
    found = []
    for row in actions:
        out = collector.step(torch.tensor(row))
        if out is not None:
            found += [
                (*o.tolist(), int(a), float(r), *n.tolist(), round(float(d), 6))
                for o, a, r, n, d in zip(*out, strict=True)
            ]
    return found


def by_hand(n: int, gamma: float, endings: list[list[int]]) -> list[tuple]:
    """Transitions of one environment: episodes given by their actions."""
    found = []
    for episode, actions in enumerate(endings):
        length = len(actions)
        for t in range(length):
            k = min(n, length - t)
            ended = t + k == length and actions[-1] == 1
            total = sum(gamma**j * (t + j + 1) for j in range(k))
            found.append((t, episode, actions[t], total, t + k, episode, 0.0 if ended else round(gamma**k, 6)))
    return found


@pytest.mark.parametrize("mode", ["DISABLED", "SAME_STEP", "NEXT_STEP"])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_every_reset_mode_gives_the_transitions_counted_by_hand(mode, n):
    endings = [[0, 0, 1], [0, 0, 0, 0, 0], [1], [0, 0, 0, 0, 1]]  # ended, cut off, at once, both at the same time
    actions = []
    for ending in endings:
        actions += ending + ([1] if mode == "NEXT_STEP" else [])  # this action is ignored
    collector = Collector(vector(mode, 1), gamma=0.5, n_step=n)
    found = rows_of(collector, [[a] for a in actions])
    expected = by_hand(n, 0.5, endings)
    assert sorted(found) == sorted(expected)
    assert collector.steps == sum(map(len, endings))
    assert [(e.length, e.reward) for e in collector.episodes] == [(3, 6.0), (5, 15.0), (1, 1.0), (5, 15.0)]


@pytest.mark.parametrize("mode", ["DISABLED", "SAME_STEP", "NEXT_STEP"])
def test_environments_do_not_mix(mode):
    collector = Collector(vector(mode, 3), n_step=2, gamma=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        out = collector.step((torch.rand(3, generator=generator) < 0.3).long())
        if out is None:
            continue
        assert torch.equal(out.obs[:, 1], out.next_obs[:, 1])  # never across a reset
        gap = out.next_obs[:, 0] - out.obs[:, 0]
        assert ((gap == 1) | (gap == 2)).all()
        expected = torch.where(gap == 1, out.obs[:, 0] + 1, 2 * out.obs[:, 0] + 3)
        torch.testing.assert_close(out.reward.double(), expected)


def test_a_time_limit_goes_on_bootstrapping():
    found = rows_of(Collector(vector(count=1), gamma=0.9), [[0]] * 5)
    assert found[-1][-1] == pytest.approx(0.9)
    assert found[-1][4] == 5.0  # the last observation, not that of the reset


def test_seeds_name_episodes():
    first, second, third = (Collector(vector(jitter=True), seed=seed) for seed in (3, 3, 4))
    rewards = [[row[3] for row in rows_of(c, [[0, 1], [0, 0]] * 4)] for c in (first, second, third)]
    assert rewards[0] == rewards[1]
    assert rewards[0] != rewards[2]
    assert len(set(rewards[0])) == len(rewards[0])


@pytest.mark.parametrize("env", ["Counter", "CartPole-v1"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stop", [1, 7, 23, 40])
def test_resumed_collection_goes_on_as_if_nothing_had_happened(env, n, stop):
    def fresh():
        envs = vector(jitter=True, count=3) if env == "Counter" else make_envs(env, 3)
        return Collector(envs, n_step=n, seed=5)

    actions = (torch.rand(60, 3, generator=torch.Generator().manual_seed(1)) < 0.5).long()
    whole = fresh()
    for row in actions[:stop]:
        whole.step(row)
    state = whole.state_dict()
    resumed = fresh()
    for row in actions[:11]:
        resumed.step(row)  # must not matter
    resumed.load_state_dict(state)
    for row in actions[stop:]:
        for a, b in zip(whole.step(row) or (), resumed.step(row) or (), strict=True):
            assert torch.equal(a, b)
    assert whole.episodes == resumed.episodes
    assert whole.steps == resumed.steps


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_environments_that_reset_themselves_resume_with_fresh_episodes(mode):
    collector = Collector(vector(mode))
    collector.step(torch.tensor([0, 0]))
    state = collector.state_dict()
    with pytest.warns(UserWarning, match="cannot be resumed, they reset themselves"):
        collector.load_state_dict(state)
    assert (collector.obs[:, 0] == 0).all()
    assert collector.steps == 2


class Unseeded(Counter):
    """Draws from outside its seed."""

    def _obs(self):
        return np.array([self.t, np.random.default_rng().normal()])


def test_an_environment_that_ignores_its_seed_is_found_out():
    envs = gym.vector.SyncVectorEnv([Unseeded], autoreset_mode=AutoresetMode.DISABLED)
    collector = Collector(envs)
    collector.step(torch.tensor([0]))
    with pytest.warns(UserWarning, match="the same seed and actions led elsewhere"):
        collector.load_state_dict(collector.state_dict())


def test_minatar_episodes_follow_from_their_seed():
    pytest.importorskip("minatar")
    runs = []
    for before in (0, 40):
        envs = make_envs("MinAtar/Breakout-v1", 2)
        collector = Collector(envs, seed=9)
        generator = torch.Generator().manual_seed(before)
        for _ in range(before):
            collector.step(torch.randint(3, (2,), generator=generator))
        collector._numbers = [0, 0]
        collector._start(*envs.reset(seed=collector._seeds()))
        generator = torch.Generator().manual_seed(1)
        runs.append([collector.step(torch.randint(3, (2,), generator=generator)).obs for _ in range(20)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_play_takes_the_first_episodes_of_every_environment():
    found = play(lambda obs: torch.tensor([1, 0]), vector(), 4)
    assert sorted((e.env, e.length) for e in found) == [(0, 1), (0, 1), (1, 5), (1, 5)]


class Continuous(Counter):
    action_space = gym.spaces.Box(-1, 1, (1,))


class Shifted(Counter):
    action_space = gym.spaces.Discrete(2, start=1)


class Words(Counter):
    observation_space = gym.spaces.Discrete(3)


class Broken(Counter):
    def step(self, action):
        return self._obs(), float("nan"), False, False, {}


def one(kind):
    return gym.vector.SyncVectorEnv([kind], autoreset_mode=AutoresetMode.DISABLED)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: Collector(one(Continuous)), r"envs: expected actions in Discrete\(n\) .* got Box"),
        (ValueError, lambda: Collector(one(Shifted)), "start at 0"),
        (ValueError, lambda: Collector(one(Words)), "envs: expected observations in a Box, got Discrete"),
        (TypeError, lambda: Collector(Counter()), "expected a gymnasium.vector.VectorEnv .* got Counter"),
        (ValueError, lambda: Collector(vector(), gamma=1.1), "gamma: expected"),
        (ValueError, lambda: Collector(vector(), n_step=0), "n_step: expected"),
        (ValueError, lambda: Collector(vector(), seed=-1), "seed: expected"),
        (ValueError, lambda: Collector(vector()).step(torch.zeros(3).long()), r"actions: expected shape \(2,\)"),
        (ValueError, lambda: Collector(one(Broken)).step(torch.zeros(1).long()), "expected finite rewards"),
        (ValueError, lambda: Collector(vector()).load_state_dict(Collector(vector(count=3)).state_dict()), "got 3"),
        (ValueError, lambda: make_envs("CartPole-v1", 0), "count: expected"),
        (ValueError, lambda: play(lambda obs: torch.zeros(2).long(), vector(), 0), "episodes: expected"),
    ],
)
def test_bad_input_is_named(error, call, message):
    with pytest.raises(error, match=message):
        call()
