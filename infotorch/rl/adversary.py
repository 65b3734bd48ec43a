r"""A second player that pushes bodies of a simulator, and physical parameters that change under the first.

Environments of gymnasium: those on MuJoCo, where a body takes a Cartesian force, and the torque-driven Pendulum of
classic control.

Reference: A. Reddi et al., 2024, arXiv:2311.01642; L. Pinto et al., "Robust adversarial reinforcement learning",
2017, arXiv:1703.02702.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from infotorch.core._checks import check_choice, did_you_mean

__all__ = ["AdversaryWrapper", "Turn", "set_parameter"]

AXES = "xyz"
PENDULUM = {"mass": "m", "length": "l", "gravity": "g"}


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
        env: Environment of gymnasium with a time limit and boxes of observations and actions: on MuJoCo, or Pendulum
            (whose one body ``"pole"`` moves in x, to the side, and z, upwards, and is pushed at its center).
        bodies: Names of the bodies pushed.
        axes: Directions of the force, such as ``"xz"``, for all bodies or for each.
        max_force: Largest force along an axis, in the simulator's units (newton), for all bodies or for each.

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
        known, directions, self._push = _simulator(self.base)
        for body in bodies:
            check_choice("bodies", body, known)
        self.pushes: list[tuple[str, int]] = []
        for body, directed in zip(bodies, each, strict=True):
            if not directed or not set(directed) <= set(directions):
                raise ValueError(f"axes: expected some of {directions} for {body!r}, got {directed!r}")
            self.pushes += [(body, AXES.index(axis)) for axis in directed]
        self.scale = np.repeat(np.asarray(forces, dtype=np.float64), [len(directed) for directed in each])
        self.observation_size = int(env.observation_space.shape[0])
        self.action_size = int(env.action_space.shape[0])
        self.adversary_size = len(self.pushes)
        low, high = np.float64(env.action_space.low), np.float64(env.action_space.high)
        self._center, self._half = (high + low) / 2, (high - low) / 2

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start an episode."""
        self._push(self.pushes, np.zeros(self.adversary_size))
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
        push = np.zeros(self.adversary_size) if force is None else _checked("force", force, self.adversary_size)
        self._push(self.pushes, push * self.scale)
        command = (self._center + self._half * action).astype(self.env.action_space.dtype)
        observation, reward, terminated, truncated, _ = self.env.step(command)
        self._push(self.pushes, np.zeros(self.adversary_size))
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
        env: On MuJoCo, or Pendulum.
        name: Pendulum: ``"mass"``, ``"length"`` or ``"gravity"``. MuJoCo: ``"mass:BODY"``, which scales the body's
            inertia along, ``"friction"``, the sliding friction of everything, or ``"friction:GEOM"`` of one geometry.
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
    _simulator(base, hook=False)
    if not hasattr(base, "model"):
        key = PENDULUM[check_choice("name", name, PENDULUM)]
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


Push = Callable[[Sequence[tuple[str, int]], np.ndarray], None]


def _simulator(base: Any, *, hook: bool = True) -> tuple[list[str], str, Push]:
    """Bodies, axes and how to push them."""
    if hasattr(base, "model") and hasattr(base, "data") and hasattr(base.data, "xfrc_applied"):

        def push(where: Sequence[tuple[str, int]], forces: np.ndarray) -> None:
            for (body, axis), force in zip(where, forces, strict=True):
                base.data.body(body).xfrc_applied[axis] = force

        return _names(base.model, "body")[1:], AXES, push  # the first is the world, which does not move
    if type(base).__name__ == "PendulumEnv":
        return ["pole"], "xz", _hook_pendulum(base) if hook else lambda where, forces: None
    raise TypeError(f"env: expected an environment on MuJoCo or Pendulum, got {type(base).__name__}")


def _hook_pendulum(base: Any) -> Push:
    """Let a force at the pole's center act in every step of the environment, below all other wrappers."""
    current = np.zeros(3)
    inner = type(base).step.__get__(base)

    def push(where: Sequence[tuple[str, int]], forces: np.ndarray) -> None:
        current[:] = 0.0
        for (_, axis), force in zip(where, forces, strict=True):
            current[axis] = force

    def step(action: Any) -> Any:
        angle = base.state[0]
        observation, *rest = inner(action)
        if current.any():
            # Angles grow from upright to the left: the center is at l / 2 (-sin, cos). A rod turns with m l^2 / 3.
            torque = -base.l / 2 * (current[0] * np.cos(angle) + current[2] * np.sin(angle))
            reached, speed = base.state
            pushed = np.clip(speed + 3.0 / (base.m * base.l**2) * torque * base.dt, -base.max_speed, base.max_speed)
            base.state = np.array([reached + (pushed - speed) * base.dt, pushed])
            observation = base._get_obs()
        return observation, *rest

    base.step = step
    return push


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
    if np.isnan(found).any():
        raise ValueError(f"{name}: expected numbers in [-1, 1], got NaN")
    return found.clip(-1.0, 1.0)
