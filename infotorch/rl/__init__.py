"""Reinforcement learning with entropy at its center: robust control against an adversary of growing rationality.

The Lightning module is imported on first use. Environments need gymnasium (``pip install 'infotorch[rl]'``).
"""

from typing import TYPE_CHECKING, Any

from infotorch.rl.adversary import AdversaryWrapper, Turn, set_parameter
from infotorch.rl.episodes import Outcome, act_with, play_against
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
from infotorch.rl.player import Player, Replay, ReplayRows
from infotorch.rl.robustness import Grid, fresh_adversary, robustness_grid
from infotorch.rl.soft_actor_critic import (
    SquashedGaussian,
    TwinCritic,
    actor_loss,
    critic_target,
    polyak_,
    squash,
    temperature_loss,
)
from infotorch.rl.teacher import TeacherStep, gamma_kl, importance_return, teacher_step
from infotorch.rl.temperature import Curriculum, FixedTemperature, GammaCurriculum, LinearTemperature

if TYPE_CHECKING:
    from infotorch.rl.qarl import QARL

__all__ = [
    "MATCHING_PENNIES",
    "QARL",
    "ROCK_PAPER_SCISSORS",
    "AdversaryWrapper",
    "Curriculum",
    "FixedTemperature",
    "GammaCurriculum",
    "Grid",
    "LinearTemperature",
    "Outcome",
    "Play",
    "Player",
    "QuantalResponse",
    "Replay",
    "ReplayRows",
    "SquashedGaussian",
    "TeacherStep",
    "Turn",
    "TwinCritic",
    "act_with",
    "actor_loss",
    "critic_target",
    "exploitability",
    "fresh_adversary",
    "gamma_kl",
    "gradient_play",
    "importance_return",
    "logit_qre",
    "nash",
    "play_against",
    "polyak_",
    "robustness_grid",
    "set_parameter",
    "squash",
    "teacher_step",
    "temperature_loss",
]

_LIGHTNING = {"QARL": "qarl"}


def __getattr__(name: str) -> Any:
    if name in _LIGHTNING:
        from importlib import import_module

        return getattr(import_module(f"infotorch.rl.{_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
