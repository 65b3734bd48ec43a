"""Generation for policy optimization: samplers that return log-probabilities and entropies with the tokens."""

from infotorch.rollout.agentic_branching import arpo_score, branching_score, entropy_proxy, initial_rollouts
from infotorch.rollout.branching import (
    ForkCosts,
    Reconcatenated,
    allowed_tokens,
    critical_positions,
    draw_position,
    fork_costs,
    fork_positions,
    reconcatenate,
)
from infotorch.rollout.random import hash_uniform, mix64
from infotorch.rollout.records import PaddedRollouts, Rollouts
from infotorch.rollout.sampler import HFSampler, Sampler
from infotorch.rollout.temperature import TemperatureProcessor

__all__ = [
    "ForkCosts",
    "HFSampler",
    "PaddedRollouts",
    "Reconcatenated",
    "Rollouts",
    "Sampler",
    "TemperatureProcessor",
    "allowed_tokens",
    "arpo_score",
    "branching_score",
    "critical_positions",
    "draw_position",
    "entropy_proxy",
    "fork_costs",
    "fork_positions",
    "hash_uniform",
    "initial_rollouts",
    "mix64",
    "reconcatenate",
]
