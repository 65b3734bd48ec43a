"""Temporal differences by hand, the learners on problems with known values, and exact resumption."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from infotorch.nn import C51, HLGauss
from infotorch.rl import (
    CategoricalDQN,
    OfflineDQN,
    PlanesBody,
    QNetwork,
    ScalarHead,
    Transitions,
    bootstrap,
    cql_penalty,
    make_envs,
    temporal_difference,
    value_head,
)
from infotorch.rl.heads import HEADS

gym = pytest.importorskip("gymnasium")
Trainer = pytest.importorskip("lightning").Trainer


def trainer(steps: int, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, **(quiet | options))


def fit(module, steps: int, ckpt_path=None, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer(steps, **options).fit(module, ckpt_path=ckpt_path)
    return module


def networks(head: str, seed: int = 0):
    torch.manual_seed(seed)
    return [QNetwork((3,), 4, value_head(head, -3.0, 3.0, 13), hidden=(8,)) for _ in range(2)]


def batch(n: int = 6, seed: int = 0) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    obs, following = torch.randn(2, n, 3, generator=g)
    reward, discount = torch.randn(n, generator=g), torch.rand(n, generator=g).round() * 0.9
    return Transitions(obs, torch.randint(4, (n,), generator=g), reward, following, discount)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_temporal_difference_row_by_row(head, double):
    online, target = networks(head)
    rows = batch()
    found = temporal_difference(online, target, rows, double=double)
    for i, (s, a, r, after, discount) in enumerate(zip(*rows, strict=True)):
        theirs = target.values(after[None])[0]
        best = int((online.values(after[None])[0] if double else theirs).argmax())
        y = r + discount * theirs[best]
        torch.testing.assert_close(found.target[i], y)
        outputs = online(s[None])[0, a]
        torch.testing.assert_close(found.error[i], online.head(outputs) - y)
        if head == "c51":
            q = target(after[None])[0, best].softmax(-1)
            p = online.head.project(q[None], r[None], discount[None])[0]
            expected = -(p * outputs.log_softmax(-1)).sum()
        elif head in ("mse", "huber"):
            function = torch.nn.functional.mse_loss if head == "mse" else torch.nn.functional.huber_loss
            expected = function(outputs[0], y)
        else:
            expected = online.head.loss(outputs, y)
        torch.testing.assert_close(found.loss[i], expected)
    found.loss.mean().backward()
    assert all(p.grad is None for p in target.parameters())
    report = found.range_report(online.head, rows)
    assert 0 <= report.cut <= 1


@pytest.mark.parametrize("head", HEADS)
def test_temporal_difference_compiles_whole(head):
    online, target = networks(head)
    rows = batch()

    def loss(obs, action, reward, following, discount):
        given = Transitions(obs, action, reward, following, discount)
        return temporal_difference(online, target, given).loss.mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*rows), loss(*rows))


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_networks_learn_in_float32(head):
    online, target = (network.bfloat16() for network in networks(head))
    found = temporal_difference(online, target, batch())
    assert found.loss.dtype == found.target.dtype == torch.float32
    found.loss.mean().backward()
    assert online.out.weight.grad.isfinite().all()


def test_bootstrap_of_an_ended_episode_is_the_reward():
    online, target = networks("hl_gauss")
    rows = batch()._replace(discount=torch.zeros(6))
    torch.testing.assert_close(bootstrap(online, target, rows)[0], rows.reward)


def test_cql_penalty_by_hand():
    values = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    expected = torch.tensor([math.log(math.e + math.e**2) - 2, math.log(1 + math.exp(5))])
    torch.testing.assert_close(cql_penalty(values, torch.tensor([1, 0])), expected)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_scalar_head_has_the_interface_of_histograms(kind):
    head, y = ScalarHead(kind, -1.0, 1.0), torch.tensor([0.5, 7.0, math.nan])
    outputs = torch.tensor([[0.0], [0.0], [math.nan]], requires_grad=True)
    mask = torch.tensor([True, True, False])
    loss = head.loss(outputs, y, mask=mask)
    loss.backward()
    assert loss.item() == pytest.approx((0.25 + 1) / 2 if kind == "mse" else (0.125 + 0.5) / 2)
    assert outputs.grad[2] == 0
    assert head.range_report(y[:2]).above == 0.5
    with pytest.raises(ValueError, match="got NaN"):
        head.loss(outputs, y)


def test_images_and_bytes():
    network = QNetwork((10, 10, 4), 3, value_head("two_hot", 0.0, 1.0, 5))
    assert isinstance(network.body, PlanesBody)
    flags = torch.rand(2, 10, 10, 4) < 0.5
    torch.testing.assert_close(network(flags), network(flags.float()))
    torch.testing.assert_close(network(flags.to(torch.uint8) * 255), network(flags.float()))


class Corridor(gym.Env):
    """Four cells; action 1 goes right and pays 1 at the end, action 0 ends the episode with 0.2."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(0, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(4))
        return self._obs(), {}

    def step(self, action):
        if action == 0:
            return self._obs(), 0.2, True, False, {}
        last = self.cell == 3
        self.cell = min(self.cell + 1, 3)
        return self._obs(), float(last), last, False, {}

    def _obs(self):
        return np.eye(4, dtype=np.float32)[self.cell]


def corridors(count: int = 2):
    return gym.vector.SyncVectorEnv([Corridor] * count, autoreset_mode=gym.vector.AutoresetMode.DISABLED)


VALUES = torch.tensor([[0.2, 0.9**3], [0.2, 0.9**2], [0.2, 0.9], [0.2, 1.0]])


def learner(head: str = "hl_gauss", **options) -> CategoricalDQN:
    given = {"v_min": 0.0, "v_max": 1.0, "bins": 11, "hidden": (32,), "learning_starts": 64, "batch_size": 32}
    given |= {"gamma": 0.9, "target_sync": 20, "lr": 1e-2, "epsilon_steps": 400, "seed": 3, "num_envs": 2}
    given |= {"head_options": {"pad_sigma": 3}} if head == "hl_gauss" else {}
    given |= options
    return CategoricalDQN(given.pop("envs", None) or corridors(given["num_envs"]), head, **given)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        *((head, {}) for head in HEADS),
        ("hl_gauss", {"n_step": 3, "alpha": 0.6, "epsilon": (0.3, 0.02)}),
        ("c51", {"alpha": 0.6, "double": False}),
    ],
)
def test_dqn_finds_the_values_of_a_corridor(head, options):
    dqn = fit(learner(head, **options), 400)
    values = dqn(torch.eye(4)).detach()
    torch.testing.assert_close(values[:, 1], VALUES[:, 1], rtol=0, atol=0.08)
    assert (values.argmax(-1) == 1).all()
    if "n_step" not in options:  # n steps of other actions are off-policy
        torch.testing.assert_close(values, VALUES, rtol=0, atol=0.08)
    assert {e.reward for e in dqn.evaluate(corridors(), 6)} == {1.0}


@pytest.mark.parametrize("head", HEADS)
def test_offline_learning_finds_them_too_and_the_penalty_lowers_unseen_actions(head):
    obs = torch.eye(4).repeat(10, 1)
    right = Transitions(
        obs,
        torch.ones(40).long(),
        torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(10),
        torch.eye(4)[[1, 2, 3, 3]].repeat(10, 1),
        torch.tensor([0.9, 0.9, 0.9, 0.0]).repeat(10),
    )
    left = right._replace(action=torch.zeros(40).long(), reward=torch.full((40,), 0.2), discount=torch.zeros(40))
    both = Transitions(*(torch.cat(pair) for pair in zip(left, right, strict=True)))
    options = {"v_min": 0.0, "v_max": 1.0, "bins": 11, "hidden": (32,), "target_sync": 20, "lr": 1e-2}
    plain = fit(OfflineDQN(both, 2, head, cql=0.0, **options), 300)
    tolerance = 0.1 if head == "hl_gauss" else 0.05  # the support is not padded
    torch.testing.assert_close(plain(torch.eye(4)).detach(), VALUES, rtol=0, atol=tolerance)
    careful = fit(OfflineDQN(right, 2, head, cql=1.0, **options), 300)(torch.eye(4)).detach()
    assert (careful[:, 1] > careful[:, 0] + 0.1).all()


def same(a, b) -> None:
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("options", [{}, {"alpha": 0.6, "n_step": 3}, {"env": "CartPole-v1"}])
@pytest.mark.parametrize("head", ["hl_gauss", "mse"])
def test_resumed_training_is_bitwise_the_uninterrupted_one(head, options, tmp_path):
    options = dict(options)
    name = options.pop("env", None)

    def fresh():
        torch.manual_seed(0)  # must not matter
        return learner(head, envs=make_envs(name, 2) if name else None, **options)

    whole = fit(fresh(), 60)

    class Stops(CategoricalDQN):
        def on_train_batch_end(self, *args):
            if self.updates == 25:
                self.trainer.save_checkpoint(tmp_path / "some.ckpt")

    first = fresh()
    first.__class__ = Stops
    fit(first, 31)
    torch.manual_seed(7)
    second = fresh()
    torch.rand(3)
    fit(second, 60, ckpt_path=tmp_path / "some.ckpt")
    assert second.updates == 60
    same(whole.network, second.network)
    same(whole.target, second.target)
    assert whole.episodes == second.episodes
    assert torch.equal(whole.collector.obs, second.collector.obs)
    for a, b in zip(whole.replay.state_dict()["rows"], second.replay.state_dict()["rows"], strict=True):
        assert torch.equal(a, b)
    assert torch.load(tmp_path / "some.ckpt", weights_only=True)["dqn"]["updates"] == 25


def test_resumed_offline_training_is_bitwise_the_uninterrupted_one(tmp_path):
    def fresh():
        return OfflineDQN(batch(50), 4, "hl_gauss", v_min=-3.0, v_max=3.0, hidden=(8,), target_sync=7)

    whole = fit(fresh(), 30)
    first = fresh()
    session = trainer(13)
    session.fit(first)
    session.save_checkpoint(tmp_path / "some.ckpt")
    second = fit(fresh(), 30, ckpt_path=tmp_path / "some.ckpt")
    same(whole.network, second.network)
    same(whole.target, second.target)


def test_a_seed_gives_the_same_run_and_another_does_not():
    runs = [fit(learner(seed=seed), 20) for seed in (1, 1, 2)]
    same(runs[0].network, runs[1].network)
    assert runs[0].episodes == runs[1].episodes
    assert runs[0].episodes != runs[2].episodes


def test_logs_say_how_the_targets_fit_the_range():
    seen = {}

    class Watched(CategoricalDQN):
        def log_dict(self, values, **options):
            seen.update({name: float(value) for name, value in values.items()})

    dqn = learner(v_max=0.15, log_every=5)
    dqn.__class__ = Watched
    fit(dqn, 20)
    assert seen["range/above"] > 0.2
    assert {"range/below", "range/cut", "range/distance", "loss", "error", "value", "episode_return"} <= set(seen)


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_environments_that_reset_themselves_train_too(mode):
    envs = gym.vector.SyncVectorEnv([Corridor] * 2, autoreset_mode=gym.vector.AutoresetMode[mode])
    dqn = fit(learner(envs=envs), 400)
    torch.testing.assert_close(dqn(torch.eye(4)).detach(), VALUES, rtol=0, atol=0.08)


def test_environments_that_are_one_batch_of_states_train_too():
    envs = gym.make_vec("CartPole-v1", num_envs=3)  # gymnasium's own; takes a single seed and resets itself
    dqn = fit(learner(envs=envs, v_max=10.0), 60)
    assert dqn.updates == 60
    assert all(episode.length > 5 for episode in dqn.episodes)
    rows = dqn.replay.sample(200)[0]
    moved = (rows.next_obs - rows.obs)[:, 0].abs()
    assert moved.max() < 0.1  # no row leads from the end of an episode into the next


def test_minatar_runs():
    pytest.importorskip("minatar")
    dqn = learner(envs=make_envs("MinAtar/Breakout-v1", 2), v_max=30.0, learning_starts=40)
    fit(dqn, 5)
    assert dqn.replay.sample(1)[0].obs.dtype == torch.bool
    assert dqn.network.actions == 3


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: learner("hl_gaus"), r"name: expected one of .* \(did you mean 'hl_gauss'\?\)"),
        (ValueError, lambda: learner(v_min=1.0), "v_min < v_max, got 1"),
        (ValueError, lambda: learner(batch_size=0), "batch_size: expected"),
        (ValueError, lambda: learner(lr=0.0), "lr: expected"),
        (ValueError, lambda: learner(learning_starts=10, capacity=5), "learning_starts: expected 1 to capacity=5"),
        (ValueError, lambda: learner(epsilon=(1.0, 1.5)), "epsilon: expected"),
        (ValueError, lambda: learner(steps_per_update=0), "steps_per_update, epsilon_steps: expected"),
        (ValueError, lambda: learner(seed=-1), "seed: expected a non-negative int, got -1"),
        (ValueError, lambda: learner(hidden=()), "hidden: expected at least one width"),
        (TypeError, lambda: learner(torch.nn.Linear(2, 2)), "head: expected a head or one of .*, got Linear"),
        (ValueError, lambda: CategoricalDQN("Pendulum-v1"), r"envs: expected actions in Discrete\(n\)"),
        (TypeError, lambda: CategoricalDQN(Corridor()), "expected a gymnasium.vector.VectorEnv"),
        (ValueError, lambda: value_head("mse", 0.0, 1.0, sigma_ratio=1.0), "options: expected none for mse"),
        (ValueError, lambda: ScalarHead("l1"), "loss: expected one of mse, huber"),
        (ValueError, lambda: ScalarHead("mse", 1.0, 0.0), "v_min < v_max"),
        (ValueError, lambda: ScalarHead().loss(torch.zeros(2, 1), torch.zeros(3)), "target: expected shape"),
        (ValueError, lambda: QNetwork((3, 3), 2, HLGauss(0, 1)), "shape: expected a vector or"),
        (ValueError, lambda: QNetwork((3,), 0, C51(0, 1)), "actions: expected"),
        (ValueError, lambda: PlanesBody((2, 9, 1)), "at least 3 x 3"),
        (ValueError, lambda: OfflineDQN(batch(), 2), r"action: expected indices in \[0, 2\)"),
        (ValueError, lambda: OfflineDQN(batch(), 4, cql=-1.0), "cql: expected"),
        (ValueError, lambda: OfflineDQN(batch()._replace(obs=math.nan * batch().obs), 4), "obs: expected numbers"),
    ],
)
def test_bad_input_is_named(error, call, message):
    with pytest.raises(error, match=message):
        call()


def test_a_range_that_follows_the_targets_needs_no_bounds():
    from infotorch.nn import RunningRange

    dqn = fit(learner(RunningRange(HLGauss(-3.0, 3.0, 51, pad_sigma=3))), 400)
    torch.testing.assert_close(dqn(torch.eye(4)).detach(), VALUES, rtol=0, atol=0.1)
    assert dqn.target.head.stats[0] > 0
