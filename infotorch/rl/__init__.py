"""Reinforcement learning with entropy at its center."""

from infotorch.rl.adversary import AdversaryWrapper, Turn, set_parameter
from infotorch.rl.episodes import Episode, act_with, play
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
from infotorch.rl.player import Player, Replay, Transitions
from infotorch.rl.qarl import METHODS, QARL
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
from infotorch.rl.temperature import (
    Curriculum,
    FixedTemperature,
    GammaCurriculum,
    LinearTemperature,
    TeacherStep,
    gamma_kl,
    importance_return,
    teacher_step,
)

__all__ = [
    "MATCHING_PENNIES",
    "METHODS",
    "QARL",
    "ROCK_PAPER_SCISSORS",
    "AdversaryWrapper",
    "Curriculum",
    "Episode",
    "FixedTemperature",
    "GammaCurriculum",
    "Grid",
    "LinearTemperature",
    "Play",
    "Player",
    "QuantalResponse",
    "Replay",
    "SquashedGaussian",
    "TeacherStep",
    "Transitions",
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
    "play",
    "polyak_",
    "robustness_grid",
    "set_parameter",
    "squash",
    "teacher_step",
    "temperature_loss",
]
