"""Reinforcement learning with entropy at its center."""

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
    "ROCK_PAPER_SCISSORS",
    "Curriculum",
    "FixedTemperature",
    "GammaCurriculum",
    "LinearTemperature",
    "Play",
    "QuantalResponse",
    "SquashedGaussian",
    "TeacherStep",
    "TwinCritic",
    "actor_loss",
    "critic_target",
    "exploitability",
    "gamma_kl",
    "gradient_play",
    "importance_return",
    "logit_qre",
    "nash",
    "polyak_",
    "squash",
    "teacher_step",
    "temperature_loss",
]
