r"""QARL: robust control against an adversary whose rationality grows, and the baselines it is compared with.

An adversary pushes the bodies of the environment and earns the negative of the protagonist's reward. Its soft
actor-critic has a temperature :math:`\alpha`: at a high one it pushes at random, at zero it is a best response.

.. math:: \max_\mu \min_\nu \; E \sum_t \gamma^t \left( r_t + \tau H(\mu) - \alpha H(\nu) \right)

A curriculum lowers :math:`\alpha` while the protagonist keeps its return, so that it meets the worst case only when it
is ready for it.

Reference: A. Reddi et al., "Robust adversarial reinforcement learning via bounded rationality curricula", 2024,
arXiv:2311.01642.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from lightning import LightningModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from infotorch.core import distributed as dist
from infotorch.core._checks import check_choice, check_range
from infotorch.rl.adversary import AdversaryWrapper, Turn
from infotorch.rl.episodes import Act, Outcome, act_with, play_against, transition
from infotorch.rl.player import Player
from infotorch.rl.replay import ReplayBuffer
from infotorch.rl.temperature import Curriculum, FixedTemperature, GammaCurriculum, LinearTemperature

__all__ = ["QARL"]

METHODS = ("qarl", "linear", "fixed", "force", "rarl", "sac")
# The adversary's temperature is part of what both players see.
CONDITIONED = ("qarl", "linear", "fixed")


class QARL(LightningModule):
    """Train a protagonist, alone or against an adversary.

    It runs in one process. An epoch is an iteration: ``episodes`` episodes that train the adversary, then as many that
    train the protagonist, both players drawing their actions; then an evaluation. Train with
    ``Trainer(max_epochs=iterations)``; gradient steps are taken while the episodes run.

    Args:
        env: The environment.
        method: ``"qarl"``, the Gamma curriculum; ``"linear"`` and ``"fixed"`` temperatures; ``"rarl"``, an adversary
            that learns its temperature like the protagonist; ``"force"``, the same with a curriculum of the largest
            force; ``"sac"``, no adversary.
        curriculum: Instead of the method's default. Of ``"force"`` it is one of the bound on the adversary's actions;
            by default a Gamma distribution of rate 50 whose shape goes from 1 to 50.
        performance_bound: Discounted return below which a default curriculum stands still.
        relative_bound: Replace a Gamma curriculum's bound, from the second iteration on, by this share of the
            discounted return without force at the last evaluation. None: keep it.
        iterations: How many are planned; linear temperatures depend on it.
        episodes: Episodes of each player in an iteration.
        gamma: Discount.
        batch: Transitions of a gradient step.
        capacity: Transitions that each player keeps.
        initial: Transitions before a player's first gradient step.
        warmup: Transitions before the first of its policy.
        steps_per_update: Steps in the environment per gradient step.
        lr_actor, lr_critic: Learning rates; that of a learned temperature is the critics'.
        tau: Share of the critics that moves into the target critics.
        hidden: Widths of the hidden layers.
        evaluation: Episodes of an evaluation, against the adversary and without it.
        seed: Of weights, episodes and actions.

    Raises:
        TypeError: ``env`` is no `AdversaryWrapper`.
        ValueError: An unknown method, an option out of range, a curriculum for a method that has none.
        RuntimeError: On training in several processes.

    Reference: A. Reddi et al., 2024, arXiv:2311.01642; L. Pinto et al., 2017, arXiv:1703.02702 (RARL).

    Deviations from the authors' code: the teacher is solved exactly (:func:`infotorch.rl.teacher_step`); a temperature
    too small for a float stays positive; the bound of ``"force"`` follows the same teacher, as a share of the
    largest force, and stays unseen by the players.

    >>> import gymnasium
    >>> env = AdversaryWrapper(gymnasium.make("Pendulum-v1"), ["pole"], "x", 1.0)
    >>> model = QARL(env, hidden=(8,))
    >>> model.temperature, model.evaluate(1)["steps"]
    (0.05, 200.0)
    """

    METHODS = METHODS

    def __init__(
        self,
        env: AdversaryWrapper,
        *,
        method: str = "qarl",
        curriculum: Curriculum | None = None,
        performance_bound: float = 10.0,
        relative_bound: float | None = None,
        iterations: int = 200,
        episodes: int = 5,
        gamma: float = 0.99,
        batch: int = 256,
        capacity: int = 1_000_000,
        initial: int = 3000,
        warmup: int = 5000,
        steps_per_update: int = 3,
        lr_actor: float = 1e-4,
        lr_critic: float = 3e-4,
        tau: float = 0.005,
        hidden: tuple[int, ...] = (256, 256, 256),
        evaluation: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if not isinstance(env, AdversaryWrapper):
            raise TypeError(f"env: expected an AdversaryWrapper, got {type(env).__name__}")
        check_choice("method", method, METHODS)
        counts = {"iterations": iterations, "episodes": episodes, "batch": batch, "initial": initial}
        for name, value in {**counts, "steps_per_update": steps_per_update, "evaluation": evaluation}.items():
            check_range(name, value, 1)
        check_range("warmup", warmup, 0)
        for name, value in {"gamma": gamma, "tau": tau}.items():
            check_range(name, value, 0.0, 1.0)
        for name, value in {"lr_actor": lr_actor, "lr_critic": lr_critic}.items():
            check_range(name, value, 0.0, 1.0, low_open=True)
        if relative_bound is not None:
            check_range("relative_bound", relative_bound, 0.0, 1.0)
        if curriculum is not None and method in ("rarl", "sac"):
            raise ValueError(f"curriculum: expected None for {method!r}, got {type(curriculum).__name__}")
        self.env, self.method, self.iterations, self.episodes = env, method, iterations, episodes
        self.gamma, self.tau, self.batch, self.initial, self.warmup = gamma, tau, batch, initial, warmup
        self.steps_per_update, self.lr_actor, self.lr_critic = steps_per_update, lr_actor, lr_critic
        self.evaluation, self.seed = evaluation, seed
        self.curriculum = curriculum or _default(method, performance_bound)
        if relative_bound is not None and not isinstance(self.curriculum, GammaCurriculum):
            raise ValueError(f"relative_bound: expected None for {method!r}, whose curriculum has no bound")
        self.relative_bound = relative_bound
        self.conditioned = method in CONDITIONED
        self.generator = Generator().manual_seed(seed)
        seen = env.observation_size + self.conditioned
        sizes = {"protagonist": env.action_size} | ({} if method == "sac" else {"adversary": env.adversary_size})
        self.players = torch.nn.ModuleDict(
            {
                name: Player(
                    seen,
                    size,
                    conditioned=self.conditioned and name == "adversary",
                    hidden=hidden,
                    generator=self.generator,
                )
                for name, size in sizes.items()
            }
        )
        self.replays = {name: ReplayBuffer(capacity, seed=seed * 1_009 + i) for i, name in enumerate(sizes)}
        self.env_steps = dict.fromkeys(sizes, 0)
        self.iteration = 0
        self.history: list[dict[str, float]] = []

    @property
    def temperature(self) -> float | None:
        """Mean temperature of the adversary's curriculum (bound of its actions for ``"force"``), None without one."""
        return None if self.curriculum is None else self.curriculum.mean

    def protagonist(self, generator: Generator | None = None) -> Act:
        """The trained policy: the mode of its actions, or draws of a generator."""
        return act_with(self._player("protagonist").actor, generator)

    def adversary(self, generator: Generator | None = None) -> Act | None:
        """The adversary's policy, None if there is none."""
        return act_with(self._player("adversary").actor, generator) if "adversary" in self.players else None

    def setup(self, stage: str) -> None:
        """Refuse several processes.

        Raises:
            RuntimeError: There is more than one.
        """
        if dist.world_size() > 1:
            raise RuntimeError(f"QARL: expected one process (Trainer(devices=1)), got {dist.world_size()}")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One iteration."""
        drawn = None if self.curriculum is None else self.curriculum.sample(self.episodes, self.generator)
        earned: list[Outcome] = []
        metrics: dict[str, list[Tensor]] = {}
        for trained in reversed(list(self.players)):  # the adversary first
            for index in range(self.episodes):
                level = None if drawn is None else float(drawn[index])
                seed = self._episode_seed(len(earned))
                earned.append(self._train_episode(trained, level, seed, metrics))
        self.iteration += 1
        if self.curriculum is not None and drawn is not None:
            if self.relative_bound is not None and self.history and isinstance(self.curriculum, GammaCurriculum):
                self.curriculum.performance_bound = self.relative_bound * self.history[-1]["discounted_return"]
            returns = torch.tensor([episode.discounted for episode in earned])
            self.curriculum.update(drawn.repeat(len(self.players)), returns, self.iteration / self.iterations)
        row = {name: float(torch.stack(values).mean()) for name, values in metrics.items()}
        row |= {"training_return": mean(e.total for e in earned), "discounted": mean(e.discounted for e in earned)}
        row |= self.evaluate(self.evaluation, level=self.temperature)
        if self.temperature is not None:
            row["temperature"] = self.temperature
        self.history.append({"iteration": self.iteration, "env_steps": sum(self.env_steps.values())} | row)
        self.log_dict(row, batch_size=1)

    def evaluate(self, episodes: int = 10, *, level: float | None = None) -> dict[str, float]:
        """Mean undiscounted returns of the policies' modes.

        Args:
            episodes: How many; they start alike at every call.
            level: Temperature that the players are told (bound of the force for ``"force"``); by default 0, the
                adversary that is fully rational (the full force).

        Returns:
            ``return``, without force; ``attacked``, against the trained adversary, if there is one; without force
            also the mean ``discounted_return`` and number of ``steps``.
        """
        kinds: dict[str, Act | None] = {"return": None}
        if "adversary" in self.players:
            kinds["attacked"] = self.adversary()
        found = {
            kind: [self.play(self.protagonist(), other, level, 1_000_000_007 + i) for i in range(episodes)]
            for kind, other in kinds.items()
        }
        means = {kind: mean(e.total for e in played) for kind, played in found.items()}
        alone = found["return"]
        means["discounted_return"] = mean(e.discounted for e in alone)
        return means | {"steps": float(mean(e.steps for e in alone))}

    def play(
        self, protagonist: Act, adversary: Act | None, level: float | None = None, seed: int = 0, **options: Any
    ) -> Outcome:
        """An episode as the method sees it: temperature in the observation, or force cut to a bound."""
        if self.conditioned:
            options["temperature"] = level or 0.0
        elif level is not None:
            options["force"] = level
        return play_against(self.env, protagonist, adversary, seed=seed, gamma=self.gamma, **options)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for each player's policy, critics and learned temperature."""
        return [self._player(name).optimizer(self.lr_actor, self.lr_critic) for name in self.players]

    def train_dataloader(self) -> DataLoader[Any]:
        """One batch, which says nothing: an epoch is an iteration."""
        return DataLoader([0])  # pyright: ignore[reportArgumentType]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add replay, curriculum, counters and the random state."""
        checkpoint["qarl"] = {
            "replays": {name: replay.state_dict() for name, replay in self.replays.items()},
            "curriculum": None if self.curriculum is None else self.curriculum.state_dict(),
            "iteration": self.iteration,
            "env_steps": dict(self.env_steps),
            "history": [dict(row) for row in self.history],
            "generator": self.generator.get_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint of this module."""
        state = checkpoint["qarl"]
        for name, replay in self.replays.items():
            replay.load_state_dict(state["replays"][name])
        if self.curriculum is not None:
            self.curriculum.load_state_dict(state["curriculum"])
        self.iteration, self.env_steps = state["iteration"], dict(state["env_steps"])
        self.history = [dict(row) for row in state["history"]]
        self.generator.set_state(state["generator"])

    def _player(self, name: str) -> Player:
        return self.players[name]  # pyright: ignore[reportReturnType]

    def _episode_seed(self, index: int) -> int:
        return ((self.seed * 1_009 + self.iteration) * 1_009 + index) % 2**31

    def _train_episode(self, trained: str, level: float | None, seed: int, metrics: dict[str, list[Tensor]]) -> Outcome:
        player, replay = self._player(trained), self.replays[trained]
        optimizers: Any = self.optimizers()
        own = optimizers[list(self.players).index(trained)] if len(self.players) > 1 else optimizers

        def learn(seen: Any, action: Any, push: Any, turn: Turn, following: Any) -> None:
            mine = (action, turn.reward) if trained == "protagonist" else (push, -turn.reward)
            replay.add(transition(seen, *mine, turn, following, self.gamma))
            self.env_steps[trained] += 1
            steps = self.env_steps[trained]
            if len(replay) < self.initial or steps % self.steps_per_update:
                return
            found = player.update(
                replay.sample(self.batch)[0].to(self.device),
                own,
                tau=self.tau,
                generator=self.generator,
                policy=steps > self.warmup,
                backward=self.manual_backward,
            )
            for name, value in found.items():
                metrics.setdefault(f"{trained}/{name}", []).append(value)

        return self.play(
            self.protagonist(self.generator), self.adversary(self.generator), level, seed, after_step=learn
        )


def _default(method: str, bound: float) -> Curriculum | None:
    if method == "qarl":
        return GammaCurriculum(performance_bound=bound)
    if method == "force":
        return GammaCurriculum(start=1.0, target=50.0, rate=50.0, performance_bound=bound, high=1.0)
    return {"linear": LinearTemperature, "fixed": FixedTemperature}[method]() if method in CONDITIONED else None
