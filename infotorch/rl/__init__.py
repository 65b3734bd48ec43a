"""Reinforcement learning: values learned by classification, and robust control against an adversary.

DQN and its offline variant with HL-Gauss, two-hot, C51 and scalar heads; QARL, two players and an adversary of growing
rationality, with matrix games to try it on. The Lightning modules are imported on first use. Environments need
gymnasium (``pip install 'infotorch[rl]'``).
"""

from typing import TYPE_CHECKING, Any

from infotorch.rl.adversary import AdversaryWrapper, Turn, set_parameter
from infotorch.rl.collect import Collector, Episode, make_envs, play
from infotorch.rl.episodes import Outcome, act_with, play_against
from infotorch.rl.heads import PlanesBody, QNetwork, ScalarHead, value_head
from infotorch.rl.matrix_games import (
    MATCHING_PENNIES,
    ROCK_PAPER_SCISSORS,
    Play,
    QuantalResponse,
    exploitability,
    gradient_play,
    logit_qre,
    nash,
)
from infotorch.rl.networks import SquashedGaussian, TwinCritic
from infotorch.rl.player import Player
from infotorch.rl.replay import ReplayBuffer, SumTree, Transitions
from infotorch.rl.robustness import Grid, fresh_adversary, robustness_grid
from infotorch.rl.soft_actor_critic import (
    actor_loss,
    critic_target,
    polyak_,
    squash,
    temperature_loss,
)
from infotorch.rl.td import Temporal, bootstrap, cql_penalty, temporal_difference
from infotorch.rl.teacher import TeacherStep, gamma_kl, importance_return, teacher_step
from infotorch.rl.temperature import Curriculum, FixedTemperature, GammaCurriculum, LinearTemperature

if TYPE_CHECKING:
    from infotorch.rl.dqn import CategoricalDQN
    from infotorch.rl.learner import QLearner
    from infotorch.rl.offline import OfflineDQN
    from infotorch.rl.qarl import QARL

__all__ = [
    "MATCHING_PENNIES",
    "QARL",
    "ROCK_PAPER_SCISSORS",
    "AdversaryWrapper",
    "CategoricalDQN",
    "Collector",
    "Curriculum",
    "Episode",
    "FixedTemperature",
    "GammaCurriculum",
    "Grid",
    "LinearTemperature",
    "OfflineDQN",
    "Outcome",
    "PlanesBody",
    "Play",
    "Player",
    "QLearner",
    "QNetwork",
    "QuantalResponse",
    "ReplayBuffer",
    "ScalarHead",
    "SquashedGaussian",
    "SumTree",
    "TeacherStep",
    "Temporal",
    "Transitions",
    "Turn",
    "TwinCritic",
    "act_with",
    "actor_loss",
    "bootstrap",
    "cql_penalty",
    "critic_target",
    "exploitability",
    "fresh_adversary",
    "gamma_kl",
    "gradient_play",
    "importance_return",
    "logit_qre",
    "make_envs",
    "nash",
    "play",
    "play_against",
    "polyak_",
    "robustness_grid",
    "set_parameter",
    "squash",
    "teacher_step",
    "temperature_loss",
    "temporal_difference",
    "value_head",
]

_LIGHTNING = {"CategoricalDQN": "dqn", "OfflineDQN": "offline", "QARL": "qarl", "QLearner": "learner"}


def __getattr__(name: str) -> Any:
    if name in _LIGHTNING:
        from importlib import import_module

        return getattr(import_module(f"infotorch.rl.{_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
