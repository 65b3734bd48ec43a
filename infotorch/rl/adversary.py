r"""A second player that pushes bodies of a simulator, and physical parameters that change under the first.

Environments of gymnasium: those on MuJoCo, where a body takes a Cartesian force, and those of classic control with
continuous actions, Pendulum and MountainCarContinuous.

Reference: A. Reddi et al., 2024, arXiv:2311.01642; L. Pinto et al., "Robust adversarial reinforcement learning",
2017, arXiv:1703.02702.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from infotorch.core._checks import check_choice, did_you_mean

__all__ = ["AdversaryWrapper", "Turn", "set_parameter"]

AXES = "xyz"


class Turn(NamedTuple):
    """What one step of the environment gives.

    Attributes:
        observation: The next one, float32.
        reward: The protagonist's; the adversary gets its negative.
        absorbing: The episode ended for good.
        over: It ended, for good or because time ran out.
    """

    observation: np.ndarray
    reward: float
    absorbing: bool
    over: bool


class AdversaryWrapper:
    """Let a second player push bodies of an environment.

    Args:
        env: Environment of gymnasium with a time limit and boxes of observations and actions: on MuJoCo; Pendulum,
            whose one body ``"pole"`` moves in x, to the side, and z, upwards, and is pushed at its center; or
            MountainCarContinuous, whose ``"car"`` is pushed in x, at 1 as hard as by its own engine.
        bodies: Names of the bodies pushed.
        axes: Directions of the force, such as ``"xz"``, for all bodies or for each.
        max_force: Largest force along an axis, in the simulator's units (newton on MuJoCo), for all bodies or for each.

    Both players act in boxes of [-1, 1]: the protagonist's is stretched to the environment's, the adversary's, one
    entry per body and axis, to the largest force.

    Raises:
        TypeError: Spaces of observations or actions that are not flat, finite boxes; an environment of another kind.
        ValueError: No time limit, an unknown body or axis, a negative force, not as many axes or forces as bodies.

    Deviation: on Pendulum the force acts on the state that a step of the environment leaves, so that a velocity at
    the limit of 8 is cut twice.

    >>> import gymnasium
    >>> env = AdversaryWrapper(gymnasium.make("Pendulum-v1"), ["pole"], "xz", 1.0)
    >>> env.observation_size, env.action_size, env.adversary_size
    (3, 1, 2)
    >>> env.reset(seed=0).shape, env.step([0.5], [1.0, 0.0]).over
    ((3,), False)
    """

    def __init__(
        self,
        env: Any,
        bodies: Sequence[str],
        axes: str | Sequence[str] = "xz",
        max_force: float | Sequence[float] = 1.0,
    ) -> None:
        for name in ("observation_space", "action_space"):
            space = getattr(env, name, None)
            if type(space).__name__ != "Box" or len(space.shape) != 1:  # pyright: ignore[reportOptionalMemberAccess]
                raise TypeError(f"env: expected a flat box as {name}, got {space}")
        if not np.isfinite([env.action_space.low, env.action_space.high]).all():
            raise TypeError(f"env: expected an action space with finite bounds, got {env.action_space}")
        if getattr(env.spec, "max_episode_steps", None) is None:
            raise ValueError("env: expected a time limit (gymnasium.make(..., max_episode_steps=N)), got none")
        if isinstance(bodies, str) or not len(bodies):
            raise ValueError(f"bodies: expected a sequence of at least one name, got {bodies!r}")
        each = [axes] * len(bodies) if isinstance(axes, str) else list(axes)
        forces = list(np.broadcast_to(max_force, len(bodies))) if np.ndim(max_force) == 0 else list(max_force)  # pyright: ignore[reportArgumentType]
        for name, given in (("axes", each), ("max_force", forces)):
            if len(given) != len(bodies):
                raise ValueError(f"{name}: expected one or {len(bodies)} (one per body), got {len(given)}")
        if not all(0 <= force < np.inf for force in forces):
            raise ValueError(f"max_force: expected finite numbers of at least 0, got {max_force}")
        self.env, self.base, self.bodies = env, env.unwrapped, list(bodies)
        known, directions = _bodies(self.base)
        for body in bodies:
            check_choice("bodies", body, known)
        self.pushes = list[tuple[str, int]]()
        for body, directed in zip(bodies, each, strict=True):
            if not directed or not set(directed) <= set(directions):
                raise ValueError(f"axes: expected some of {directions} for {body!r}, got {directed!r}")
            self.pushes += [(body, AXES.index(axis)) for axis in directed]
        self.scale = np.repeat(np.asarray(forces, dtype=np.float64), [len(directed) for directed in each])
        self._push = _pusher(self.base, self.pushes)
        self.observation_size = int(env.observation_space.shape[0])
        self.action_size = int(env.action_space.shape[0])
        self.adversary_size = len(self.pushes)
        low, high = np.float64(env.action_space.low), np.float64(env.action_space.high)
        self._center, self._half = (high + low) / 2, (high - low) / 2

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start an episode."""
        self._push(0.0)
        return np.asarray(self.env.reset(seed=seed)[0], dtype=np.float32)

    def step(self, action: Any, force: Any = None) -> Turn:
        """Both players act at once.

        Args:
            action: The protagonist's, in [-1, 1].
            force: The adversary's, in [-1, 1]; None for no force. Both are clipped to their range.

        Raises:
            ValueError: Actions of a wrong length, or NaN.
        """
        action = _checked("action", action, self.action_size)
        if force is not None:
            self._push(_checked("force", force, self.adversary_size) * self.scale)
        command = (self._center + self._half * action).astype(self.env.action_space.dtype)
        observation, reward, terminated, truncated, _ = self.env.step(command)
        if force is not None:
            self._push(0.0)
        return Turn(np.asarray(observation, dtype=np.float32), float(reward), terminated, terminated or truncated)

    def set_parameter(self, name: str, value: float) -> float:
        """See :func:`set_parameter`."""
        return set_parameter(self.env, name, value)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def set_parameter(env: Any, name: str, value: float) -> float:
    """Change a physical parameter of an environment.

    Args:
        env: On MuJoCo, Pendulum, or MountainCarContinuous.
        name: Pendulum: ``"mass"``, ``"length"`` or ``"gravity"``. MountainCarContinuous: ``"power"`` or
            ``"max_speed"``. MuJoCo: ``"mass:BODY"``, which scales the body's inertia along, ``"friction"``, the sliding
            friction of everything, or ``"friction:GEOM"`` of one geometry.
        value: The new value, positive.

    Returns:
        The value before (of ``"friction"``, the mean).

    Raises:
        TypeError: An environment of another kind.
        ValueError: An unknown name, a value that is not positive.

    >>> import gymnasium
    >>> set_parameter(gymnasium.make("Pendulum-v1"), "mass", 2.0)
    1.0
    """
    if not 0 < value < np.inf:
        raise ValueError(f"value: expected a positive number, got {value}")
    base = env.unwrapped
    _bodies(base)
    if not _on_mujoco(base):
        known = CLASSIC[type(base).__name__].parameters
        key = known[check_choice("name", name, known)]
        old = float(getattr(base, key))
        setattr(base, key, value)
        return old
    kind, _, part = name.partition(":")
    model = base.model
    if kind == "mass" and part:
        row = _index(model, "body", part)
        old = float(model.body_mass[row])
        if old == 0.0:
            raise ValueError(f"name: expected a body with a mass, {part!r} has none")
        model.body_mass[row] = value
        model.body_inertia[row] *= value / old
        return old
    if kind == "friction":
        rows = slice(None) if not part else slice(row := _index(model, "geom", part), row + 1)
        old = float(model.geom_friction[rows, 0].mean())
        model.geom_friction[rows, 0] = value
        return old
    raise ValueError(f"name: expected 'mass:BODY', 'friction' or 'friction:GEOM', got {name!r}")


def _push_pendulum(base: Any, step: Callable[[Any], Any], action: Any, force: np.ndarray) -> Any:
    angle = base.state[0]
    _, *rest = step(action)
    # Angles grow from upright to the left: the center is at l / 2 (-sin, cos). A rod turns with m l^2 / 3.
    torque = -base.l / 2 * (force[0] * math.cos(angle) + force[2] * math.sin(angle))
    reached, speed = base.state
    pushed = speed + 3.0 / (base.m * base.l**2) * torque * base.dt
    pushed = max(-base.max_speed, min(base.max_speed, pushed))
    base.state = np.array([reached + (pushed - speed) * base.dt, pushed])
    return base._get_obs(), *rest


def _push_car(base: Any, step: Callable[[Any], Any], action: Any, force: np.ndarray) -> Any:
    # A step adds the engine's share to this speed in the same way, and its reward does not look at the speed.
    base.state = np.array([base.state[0], base.state[1] + force[0] * base.power])
    return step(action)


class Classic(NamedTuple):
    """An environment of classic control: its body, the axes it moves along, how a force acts in a step, parameters."""

    body: str
    axes: str
    push: Callable[..., Any]
    parameters: dict[str, str]


CLASSIC = {
    "PendulumEnv": Classic("pole", "xz", _push_pendulum, {"mass": "m", "length": "l", "gravity": "g"}),
    "Continuous_MountainCarEnv": Classic("car", "x", _push_car, {"power": "power", "max_speed": "max_speed"}),
}


def _on_mujoco(base: Any) -> bool:
    return hasattr(base, "model") and hasattr(getattr(base, "data", None), "xfrc_applied")


def _bodies(base: Any) -> tuple[list[str], str]:
    """Bodies and axes."""
    if _on_mujoco(base):
        return _names(base.model, "body")[1:], AXES  # the first is the world, which does not move
    if (classic := CLASSIC.get(type(base).__name__)) is not None:
        return [classic.body], classic.axes
    raise TypeError(f"env: expected an environment on MuJoCo or one of {', '.join(CLASSIC)}, got {type(base).__name__}")


def _pusher(base: Any, pushes: Sequence[tuple[str, int]]) -> Callable[[Any], None]:
    """How to set the forces along the given bodies and axes."""
    axes = [axis for _, axis in pushes]
    if _on_mujoco(base):
        rows = [_names(base.model, "body").index(body) for body, _ in pushes]

        def push(forces: Any) -> None:
            base.data.xfrc_applied[rows, axes] = forces

        return push
    # Below all other wrappers: the environment's own step.
    current, step = np.zeros(3), type(base).step.__get__(base)
    act = CLASSIC[type(base).__name__].push
    base.step = lambda action: act(base, step, action, current) if current.any() else step(action)

    def push_classic(forces: Any) -> None:
        current[axes] = forces

    return push_classic


def _names(model: Any, kind: str) -> list[str]:
    return [getattr(model, kind)(i).name for i in range(getattr(model, f"n{kind}"))]


def _index(model: Any, kind: str, name: str) -> int:
    names = [known for known in _names(model, kind) if known]
    if name not in names:
        raise ValueError(f"name: expected a {kind} among {', '.join(names)}; got {name!r}{did_you_mean(name, names)}")
    return _names(model, kind).index(name)


def _checked(name: str, value: Any, size: int) -> np.ndarray:
    found = np.asarray(value, dtype=np.float64)
    if found.shape != (size,):
        raise ValueError(f"{name}: expected shape ({size},), got {found.shape}")
    if math.isnan(found @ found):
        raise ValueError(f"{name}: expected numbers in [-1, 1], got NaN")
    return np.minimum(np.maximum(found, -1.0), 1.0)
