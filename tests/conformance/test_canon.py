"""CANON against the authors' functions, and Dr. GRPO where they say so."""

from __future__ import annotations

from typing import Any

import torch
from helpers import VERL_MODES, differentiate, dispatch
from torch import Tensor

from infotorch.losses import TokenBatch, canon_advantage, dr_grpo_advantage, inter_share, ppo

SLUG = "canon"
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
# Theirs keeps the raw reward of a group of one.
PARITY: dict[str, Any] = {"singleton": "raw"}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def make(case, **changes) -> TokenBatch:
    x = case.inputs
    return TokenBatch(
        **{
            "log_probs": torch.zeros_like(x["entropy"]),
            "mask": x["mask"].bool(),
            "entropy": x["entropy"],
            "rewards": x["token_level_rewards"].sum(1),
            "group": x["index"],
            **changes,
        }
    )


def check_advantages(case) -> None:
    case.allow_params("mu", "alpha", "beta", "max_length")
    for key in list(case.outputs):
        metric = {"adv_entropy": "entropy", "adv_length": "length"}[key]
        case.close(key, canon_advantage(make(case), metric=metric, **case.params, **PARITY), **TOLERANCE)


def check_variants(case) -> None:
    case.allow_params("max_length")
    options = {**case.params, **PARITY}
    batch = make(case)
    found = {
        "adv_accuracy_schedule": canon_advantage(batch, schedule="accuracy", **options),
        "adv_random": canon_advantage(batch, metric="random", **options),
    }
    for key, value in found.items():
        case.close(key, value, **TOLERANCE)
    # Dr. GRPO is the equal mixture of the two, for even groups.
    group = case.inputs["index"]
    even = (group.unsqueeze(0) == group.unsqueeze(1)).sum(1) % 2 == 0
    expected = case.out("adv_drgrpo")
    for metric in ("entropy", "length", "random"):
        half = canon_advantage(batch, metric=metric, mu=0.5, **options)
        torch.testing.assert_close(half[even], expected[even], rtol=1e-12, atol=1e-12)
    plain = dr_grpo_advantage(batch) / case.params["max_length"]
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-12)


def check_cosine(case) -> None:
    case.allow_params("max_length", "step")
    names = {"adv_cosine": "cosine", "adv_cosine_r": "cosine_reversed"}
    for key in list(case.outputs):
        found = canon_advantage(make(case), schedule=names[key], **case.params, **PARITY)
        case.close(key, found, **TOLERANCE)


def check_schedule(case) -> None:
    case.allow_params("total", "warmup", "cycles")
    names = {"intra_weight_cosine": "cosine", "intra_weight_cosine_r": "cosine_reversed"}
    for key in list(case.outputs):
        share = inter_share(names[key], step=case.inputs["step"], **case.params)
        case.close(key, 1 - torch.as_tensor(share), **TOLERANCE)


def check_loss(case) -> None:
    case.allow_params("agg", "alpha", "clip_c", "clip_high", "clip_low", "max_length", "mu", "beta")
    p = case.params
    options = {key: p[key] for key in ("alpha", "beta", "mu", "max_length") if key in p}
    advantages = canon_advantage(make(case), **options, **PARITY)
    case.close("advantages", advantages, **TOLERANCE)

    def batch(leaf: list[Tensor]) -> TokenBatch:
        leaf.append(case.inputs["log_prob"].clone().requires_grad_())
        return make(case, log_probs=leaf[0], old_log_probs=case.inputs["old_log_prob"], advantages=advantages)

    clip = {"clip_low": p["clip_low"], "clip_high": p["clip_high"], "dual_clip": p["clip_c"]}
    result = differentiate(ppo, batch, aggregation=VERL_MODES[p["agg"]], **clip)
    case.close("loss", result.out.loss, **TOLERANCE)
    case.close("grad_log_prob", result.grad, **TOLERANCE)


CHECKS = {
    r"canon_\d+_mu[\d.]+_a[\d.]+": check_advantages,
    r"variants_\d+": check_variants,
    r"cosine_\d+_step\d+": check_cosine,
    r"schedule": check_schedule,
    r"loss": check_loss,
}
