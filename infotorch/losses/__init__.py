"""Policy optimization of language models with verifiable rewards: published losses from four kinds of parts.

>>> import torch
>>> from infotorch.losses import TokenBatch, recipe
>>> batch = TokenBatch(
...     log_probs=torch.zeros(4, 3, requires_grad=True), mask=torch.ones(4, 3, dtype=torch.bool),
...     rewards=torch.tensor([1.0, 0.0, 1.0, 1.0]), group=torch.tensor([0, 0, 1, 1]),
... )
>>> out = recipe("dapo")(batch)
>>> out.loss.backward()
"""

from infotorch.losses.advantages import (
    GRPO,
    DrGRPO,
    dr_grpo_advantage,
    group_advantages,
    grpo_advantage,
    uniform_groups,
)
from infotorch.losses.agentic_aepo import (
    AgenticAEPO,
    agentic_aepo,
    entropy_aware_advantages,
    entropy_zscore,
    own_tokens,
)
from infotorch.losses.arbitrary_entropy import ArbitraryEntropy, arbitrary_entropy, first_positives, mix_batches
from infotorch.losses.ares import Ares, ares_deviation, ares_reward, ares_score, ares_strength
from infotorch.losses.ares_kl import AresKL, KLController, ares_kl, difficulty
from infotorch.losses.ares_windows import (
    branch_points,
    covered_by,
    high_entropy_windows,
    top_k_entropy,
    trigger_counts,
    trigger_threshold,
    window_entropy,
    window_threshold,
)
from infotorch.losses.bapo import BAPO, RatioBounds, bapo, bapo_bounds
from infotorch.losses.batch import AUXILIARY, ON_POLICY, REPLAY, LossOutput, Replay, TokenBatch
from infotorch.losses.canon import CANON, canon_advantage, canon_advantages, cosine_restarts, inter_share
from infotorch.losses.cispo import CISPO, cispo
from infotorch.losses.copo import (
    COPO,
    COPOAdvantages,
    blended_policy_loss,
    copo,
    copo_advantages,
    copo_weight,
    prompt_advantages,
)
from infotorch.losses.cov_entropy import (
    ClipCov,
    EntropyLaw,
    KLCov,
    clip_cov,
    entropy_covariance,
    fit_entropy_law,
    kl_cov,
    predicted_entropy_change,
    token_covariance,
)
from infotorch.losses.cure import cure_origins
from infotorch.losses.empg import EMPG, EMPGSteps, empg_advantage, empg_steps, expected_score_norm
from infotorch.losses.entropy_bonus import (
    AdaptiveEntropyBonus,
    EntropyBonus,
    adaptive_entropy_bonus,
    entropy_bonus,
)
from infotorch.losses.entropy_clip import entropy_clip_terms, retained_by_clip, sampled_entropy_clip_terms
from infotorch.losses.entropy_history import EntropyHistory
from infotorch.losses.entropy_modulation import ModulationState, adaptive_temperature, entropy_modulation
from infotorch.losses.entropy_regularizer import EntropyRegularizer, entropy_regularizer, peak_mask
from infotorch.losses.entropy_target import EntropyTargetController, target_temperature
from infotorch.losses.epo import (
    EPO,
    EntropyCap,
    corridor_penalty,
    entropy_cap,
    epo,
    phase_weight,
)
from infotorch.losses.ettrl import (
    EAR,
    MajorityVote,
    ear_advantage,
    entropy_scale,
    majority_labels,
    majority_vote,
    training_rows,
    vote_diagnostics,
)
from infotorch.losses.forking_tokens import ForkingTokens, forking_mask, forking_tokens
from infotorch.losses.hapo import (
    HAPO,
    HAPOAdvantage,
    adaptive_clip_widths,
    hapo,
    hapo_advantage,
    redistribute_advantages,
)
from infotorch.losses.kl import KLRegularizer, KLReward, kl_estimate, kl_regularizer, kl_reward
from infotorch.losses.light_if import TEA, EntropySFT, entropy_sft, tea
from infotorch.losses.overlong import Overlong, overlong_reward
from infotorch.losses.pear import PEAR, closing_span, pear_reward, phase_entropies
from infotorch.losses.ppo import GSPO, PPO, gspo, ppo
from infotorch.losses.recipe import Recipe, part_table, recipe, recipe_names
from infotorch.losses.registry import (
    AuxiliarySampling,
    Part,
    PartInfo,
    ScheduledPart,
    build,
    info,
    names,
    presets,
    register,
    register_recipe,
)
from infotorch.losses.replay_buffer import ReplayBuffer, recalibrated_advantages, replay_count
from infotorch.losses.sapo import SAPO, sapo
from infotorch.losses.siren import Siren, siren
from infotorch.losses.spear import (
    DrBoT,
    SelfImitation,
    dr_bot_advantage,
    informative_groups,
    replay_weight,
    screened_mask,
    self_imitation,
)
from infotorch.losses.steer import Steer, entropy_change, steer, steer_weights
from infotorch.losses.tempered_advantage import (
    TemperedAdvantage,
    blend_tempered,
    tempered_advantage,
    tempered_weight,
)
from infotorch.losses.tool_reward import ToolReward, tool_reward, tool_value, tool_weight

__all__ = [
    "AUXILIARY",
    "BAPO",
    "CANON",
    "CISPO",
    "COPO",
    "EAR",
    "EMPG",
    "EPO",
    "GRPO",
    "GSPO",
    "HAPO",
    "ON_POLICY",
    "PEAR",
    "PPO",
    "REPLAY",
    "SAPO",
    "TEA",
    "AdaptiveEntropyBonus",
    "AgenticAEPO",
    "ArbitraryEntropy",
    "Ares",
    "AresKL",
    "AuxiliarySampling",
    "COPOAdvantages",
    "ClipCov",
    "DrBoT",
    "DrGRPO",
    "EMPGSteps",
    "EntropyBonus",
    "EntropyCap",
    "EntropyHistory",
    "EntropyLaw",
    "EntropyRegularizer",
    "EntropySFT",
    "EntropyTargetController",
    "ForkingTokens",
    "HAPOAdvantage",
    "KLController",
    "KLCov",
    "KLRegularizer",
    "KLReward",
    "LossOutput",
    "MajorityVote",
    "ModulationState",
    "Overlong",
    "Part",
    "PartInfo",
    "RatioBounds",
    "Recipe",
    "Replay",
    "ReplayBuffer",
    "ScheduledPart",
    "SelfImitation",
    "Siren",
    "Steer",
    "TemperedAdvantage",
    "TokenBatch",
    "ToolReward",
    "adaptive_clip_widths",
    "adaptive_entropy_bonus",
    "adaptive_temperature",
    "agentic_aepo",
    "arbitrary_entropy",
    "ares_deviation",
    "ares_kl",
    "ares_reward",
    "ares_score",
    "ares_strength",
    "bapo",
    "bapo_bounds",
    "blend_tempered",
    "blended_policy_loss",
    "branch_points",
    "build",
    "canon_advantage",
    "canon_advantages",
    "cispo",
    "clip_cov",
    "closing_span",
    "copo",
    "copo_advantages",
    "copo_weight",
    "corridor_penalty",
    "cosine_restarts",
    "covered_by",
    "cure_origins",
    "difficulty",
    "dr_bot_advantage",
    "dr_grpo_advantage",
    "ear_advantage",
    "empg_advantage",
    "empg_steps",
    "entropy_aware_advantages",
    "entropy_bonus",
    "entropy_cap",
    "entropy_change",
    "entropy_clip_terms",
    "entropy_covariance",
    "entropy_modulation",
    "entropy_regularizer",
    "entropy_scale",
    "entropy_sft",
    "entropy_zscore",
    "epo",
    "expected_score_norm",
    "first_positives",
    "fit_entropy_law",
    "forking_mask",
    "forking_tokens",
    "group_advantages",
    "grpo_advantage",
    "gspo",
    "hapo",
    "hapo_advantage",
    "high_entropy_windows",
    "info",
    "informative_groups",
    "inter_share",
    "kl_cov",
    "kl_estimate",
    "kl_regularizer",
    "kl_reward",
    "majority_labels",
    "majority_vote",
    "mix_batches",
    "names",
    "overlong_reward",
    "own_tokens",
    "part_table",
    "peak_mask",
    "pear_reward",
    "phase_entropies",
    "phase_weight",
    "ppo",
    "predicted_entropy_change",
    "presets",
    "prompt_advantages",
    "recalibrated_advantages",
    "recipe",
    "recipe_names",
    "redistribute_advantages",
    "register",
    "register_recipe",
    "replay_count",
    "replay_weight",
    "retained_by_clip",
    "sampled_entropy_clip_terms",
    "sapo",
    "screened_mask",
    "self_imitation",
    "siren",
    "steer",
    "steer_weights",
    "target_temperature",
    "tea",
    "tempered_advantage",
    "tempered_weight",
    "token_covariance",
    "tool_reward",
    "tool_value",
    "tool_weight",
    "top_k_entropy",
    "training_rows",
    "trigger_counts",
    "trigger_threshold",
    "uniform_groups",
    "vote_diagnostics",
    "window_entropy",
    "window_threshold",
]
