from __future__ import annotations

import numpy as np
import pytest

from infotorch.rl import AdversaryWrapper, set_parameter

gymnasium = pytest.importorskip("gymnasium")


def pendulum(**options) -> AdversaryWrapper:
    return AdversaryWrapper(gymnasium.make("Pendulum-v1"), ["pole"], **options)


def hopper(bodies=("foot",), **options) -> AdversaryWrapper:
    pytest.importorskip("gymnasium.envs.mujoco")
    return AdversaryWrapper(gymnasium.make("Hopper-v5"), bodies, **options)


def test_without_force_the_environment_is_its_own():
    env, plain = pendulum(), gymnasium.make("Pendulum-v1")
    assert np.array_equal(env.reset(seed=3), plain.reset(seed=3)[0])
    for force in (None, [0.0, 0.0]):
        turn = env.step([0.3], force)
        observation, reward, *_ = plain.step(np.array([0.6], np.float32))
        np.testing.assert_allclose(turn.observation, observation, rtol=0, atol=0)
        assert turn.reward == reward


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5, -1.2])
@pytest.mark.parametrize("force", [(1.0, 0.0), (0.0, -1.0), (0.4, 0.8)])
def test_pendulum_moves_as_under_the_same_torque(angle, force):
    """Work of the force on the pole's center, put in as torque of the motor."""
    env, plain = pendulum(max_force=0.8), gymnasium.make("Pendulum-v1")
    env.reset(seed=0)
    plain.reset(seed=0)
    for base in (env.base, plain.unwrapped):
        base.state = np.array([angle, 0.3])
    shift = 1e-6
    center = [0.5 * np.array([-np.sin(angle + s), np.cos(angle + s)]) for s in (-shift, shift)]
    torque = 0.8 * np.dot(force, (center[1] - center[0]) / (2 * shift))
    pushed = env.step([0.0], force).observation
    driven = plain.step(np.array([torque], np.float64))[0]
    np.testing.assert_allclose(pushed, driven, atol=1e-6)


def test_downward_force_is_gravity():
    """A weight more: the same as a larger g."""
    env, heavy = pendulum(axes="z", max_force=2.0), gymnasium.make("Pendulum-v1", g=12.0)
    env.reset(seed=0)
    heavy.reset(seed=0)
    env.base.state = heavy.unwrapped.state = np.array([0.4, 0.0])
    np.testing.assert_allclose(env.step([0.0], [-1.0]).observation, heavy.step(np.zeros(1))[0], atol=1e-6)


def test_forces_act_below_other_wrappers():
    shifted = gymnasium.wrappers.TransformReward(gymnasium.make("Pendulum-v1"), lambda reward: reward + 1)
    envs = [AdversaryWrapper(shifted, ["pole"], "x", 5.0), pendulum(axes="x", max_force=5.0)]
    turns = []
    for env in envs:
        env.reset(seed=0)
        turns.append([env.step([0.0], [1.0]) for _ in range(3)])
    for a, b in zip(*turns, strict=True):
        assert np.array_equal(a.observation, b.observation)
        assert a.reward == pytest.approx(b.reward + 1)


def test_a_pushed_car_moves_as_under_the_same_engine():
    env, plain = (gymnasium.make("MountainCarContinuous-v0") for _ in range(2))
    env = AdversaryWrapper(env, ["car"], "x", 0.6)
    assert np.array_equal(env.reset(seed=1), plain.reset(seed=1)[0])
    for i in range(60):
        force = np.sin(0.1 * i)
        turn = env.step([0.4], [force])
        observation, *_ = plain.step(np.array([0.4 + 0.6 * force]))
        np.testing.assert_allclose(turn.observation, observation, atol=1e-5)
        assert turn.reward == pytest.approx(-0.1 * 0.4**2)  # the engine's cost only
    power = env.set_parameter("power", 0.1)
    assert env.set_parameter("power", power) == 0.1
    with pytest.raises(ValueError, match=r"^axes: expected some of x "):
        AdversaryWrapper(gymnasium.make("MountainCarContinuous-v0"), ["car"], "xz")


def test_the_same_push_twice_and_none_in_between():
    """A force lasts one step, and steps without one cost nothing and change nothing."""
    env, plain = pendulum(axes="x", max_force=4.0), pendulum(axes="x", max_force=4.0)
    for e in (env, plain):
        e.reset(seed=0)
    for force in ([1.0], None, [-0.5], None):
        a = env.step([0.1], force)
        b = plain.step([0.1], [0.0] if force is None else force)
        assert np.array_equal(a.observation, b.observation)


class Other(gymnasium.Env):
    """Boxes and a time limit, but a simulator that is not known."""

    observation_space = action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    spec = gymnasium.spec("Pendulum-v1")


def test_time_limit_is_not_absorbing():
    env = AdversaryWrapper(gymnasium.make("Pendulum-v1", max_episode_steps=1), ["pole"])
    env.reset(seed=0)
    turn = env.step([0.0])
    assert (turn.over, turn.absorbing) == (True, False)


def test_mujoco_forces_last_one_step():
    env, plain = hopper(axes="xz", max_force=20.0), gymnasium.make("Hopper-v5")
    assert env.adversary_size == 2
    a, b = env.reset(seed=0), plain.reset(seed=0)[0]
    np.testing.assert_allclose(a, b, atol=1e-6)
    turn = env.step(np.zeros(3))
    np.testing.assert_allclose(turn.observation, plain.step(np.zeros(3))[0], atol=1e-6)
    pushed = env.step(np.zeros(3), [1.0, 0.0]).observation
    assert not np.allclose(pushed, plain.step(np.zeros(3))[0], atol=1e-3)
    assert not env.base.data.xfrc_applied.any()
    # The same force by hand.
    plain.reset(seed=0)
    plain.step(np.zeros(3))
    plain.unwrapped.data.body("foot").xfrc_applied[:] = [20.0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(pushed, plain.step(np.zeros(3))[0], atol=1e-6)


def test_bodies_may_differ():
    env = hopper(("foot", "torso"), axes=["x", "xyz"], max_force=[1.0, 5.0])
    assert env.scale.tolist() == [1.0, 5.0, 5.0, 5.0]
    assert [axis for _, axis in env.pushes] == [0, 0, 1, 2]


def test_actions_are_stretched_and_clipped():
    env = pendulum()
    env.reset(seed=0)
    env.step([9.0], [5.0, 0.0])
    assert env.base.last_u == 2.0


def test_parameters_change_and_return():
    env = pendulum()
    for name, key in (("mass", "m"), ("length", "l"), ("gravity", "g")):
        old = set_parameter(env.env, name, 1.7)
        assert getattr(env.base, key) == 1.7
        assert set_parameter(env.env, name, old) == 1.7
    env = hopper()
    model = env.base.model
    inertia = model.body("torso").inertia.copy()
    old = env.set_parameter("mass:torso", 2 * float(model.body("torso").mass[0]))
    np.testing.assert_allclose(model.body("torso").inertia, 2 * inertia)
    env.set_parameter("mass:torso", old)
    np.testing.assert_allclose(model.body("torso").inertia, inertia)
    env.set_parameter("friction", 0.3)
    assert set(model.geom_friction[:, 0]) == {0.3}
    env.set_parameter("friction:floor", 1.5)
    assert float(model.geom("floor").friction[0]) == 1.5
    for name in ("mass:tail", "friction:tail", "color"):
        with pytest.raises(ValueError, match=r"^name: expected"):
            env.set_parameter(name, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: AdversaryWrapper(gymnasium.make("CartPole-v1"), ["pole"]), TypeError, "env: .*action_space.*Discrete"),
        (lambda: AdversaryWrapper(Other(), ["car"]), TypeError, "env: .*MuJoCo or .*got Other"),
        (lambda: AdversaryWrapper(gymnasium.make("Pendulum-v1").unwrapped, ["pole"]), ValueError, "env: .*time limit"),
        (lambda: AdversaryWrapper(None, ["pole"]), TypeError, "env: expected a flat box"),
        (lambda: AdversaryWrapper(gymnasium.make("Pendulum-v1"), ["poll"]), ValueError, "bodies: .*mean 'pole'"),
        (lambda: AdversaryWrapper(gymnasium.make("Pendulum-v1"), "pole"), ValueError, "bodies: expected"),
        (lambda: AdversaryWrapper(gymnasium.make("Pendulum-v1"), []), ValueError, "bodies: expected"),
        (lambda: pendulum(axes="y"), ValueError, "axes: expected some of xz"),
        (lambda: pendulum(axes=""), ValueError, "axes: expected"),
        (lambda: pendulum(axes=["x", "z"]), ValueError, "axes: expected one or 1"),
        (lambda: pendulum(max_force=-1.0), ValueError, "max_force: expected"),
        (lambda: pendulum(max_force=float("nan")), ValueError, "max_force: expected"),
        (lambda: pendulum(max_force=[1.0, 2.0]), ValueError, "max_force: expected one or 1"),
        (lambda: pendulum().step([0.0, 0.0]), ValueError, "action: expected shape"),
        (lambda: pendulum().step([0.0], [0.0]), ValueError, "force: expected shape"),
        (lambda: pendulum().step([float("nan")]), ValueError, "action: expected numbers"),
        (lambda: pendulum().step([0.0], [0.0, float("nan")]), ValueError, "force: expected numbers"),
        (lambda: pendulum().set_parameter("mas", 1.0), ValueError, "name: .*mean 'mass'"),
        (lambda: pendulum().set_parameter("mass", 0.0), ValueError, "value: expected a positive"),
        (lambda: set_parameter(gymnasium.make("CartPole-v1"), "mass", 1.0), TypeError, "env: expected"),
        (lambda: hopper(("feet",)), ValueError, "bodies: expected one of torso"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=f"^{match}"):
        call()
