"""HAPO against the authors' functions, as released and with the sign of the signal corrected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import OLD_VERL_MODES, differentiate, dispatch, from_case, ids

from infotorch.losses import (
    ModulationState,
    TokenBatch,
    adaptive_clip_widths,
    adaptive_temperature,
    entropy_modulation,
    group_advantages,
    hapo,
    hapo_advantage,
)

SLUG = "hapo"
# verl adds 1e-8 to every count it divides by; ours divides by the count.
COUNT_PLUS_1E8 = {"rtol": 2e-8, "atol": 1e-9}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def official(case) -> bool:
    """Whether the case has the sign error."""
    kinds = [part for part in case.name.split("_") if part in ("official", "fixed")]
    assert len(kinds) == 1, case.name
    return kinds == ["official"]


def check_signal(case) -> None:
    case.allow_params("rho", "eps", "clip_low", "clip_high", "clip_alpha")
    p, mask = case.params, case.inputs["mask"].bool()
    h, state = entropy_modulation(
        case.inputs["entropy"], mask, pivot=p["rho"], eps=p["eps"], sign_bug_compat=official(case)
    )
    case.close("h_hat", h, where=mask)
    assert not h[~mask].any()
    case.close("quantile", state.quantile)
    case.close("std", state.spread)
    case.close("scale_pos", state.scale_high)
    case.close("scale_neg", state.scale_low)
    widths = adaptive_clip_widths(h, clip_low=p["clip_low"], clip_high=p["clip_high"], alpha=p["clip_alpha"])
    for name, width in zip(("clip_low", "clip_high"), widths, strict=True):
        case.close(name, width, where=mask)


def token_statistics(rewards, lengths):
    """Mean and population deviation over a group's tokens, one by one."""
    values = torch.cat([reward.expand(int(length)) for reward, length in zip(rewards, lengths, strict=True)])
    return values.mean(), values.std(correction=0)


def through_float32(rewards: torch.Tensor, divisor: float) -> dict[str, Any]:
    """Tolerance of the code's GRPO advantages, whose means and deviations are rounded to float32."""
    rounding = 4 * torch.finfo(torch.float32).eps * float(rewards.abs().max())
    return {"rtol": 1e-6, "atol": 1e-6 + rounding / divisor}


def check_advantage(case) -> None:
    case.allow_params("eps", "norm_by_std", "fallback_abs")
    p, mask, group = case.params, case.inputs["mask"].bool(), ids(case.inputs["index"])
    rewards = case.inputs["token_level_rewards"].sum(1)
    scale = "group" if p["norm_by_std"] else "none"
    options = {"scale": scale, "eps": p["eps"], "fallback": p["fallback_abs"]}
    batch = TokenBatch(log_probs=torch.zeros_like(mask, dtype=rewards.dtype), mask=mask, rewards=rewards, group=group)
    ours, theirs = hapo_advantage(batch, **options), case.out("advantages")
    grpo = case.out("advantages_grpo") if "advantages_grpo" in case.outputs else None
    usual = group_advantages(rewards, group, scale=scale, eps=p["eps"]).unsqueeze(1) * mask
    assert not ours[~mask].any()
    for g in group.unique():
        rows = group == g
        kept = mask[rows]
        mean, std = token_statistics(rewards[rows], kept.sum(1))
        divisor = std + p["eps"] if p["norm_by_std"] else 1.0
        alone = rows.sum() == 1
        spread = 1.0 if alone else float(rewards[rows].std())
        rounded = through_float32(rewards[rows], spread + p["eps"] if p["norm_by_std"] else 1.0)
        if grpo is not None:
            torch.testing.assert_close(usual[rows], grpo[rows], **rounded)
        valid = ((rewards[rows] - mean) / divisor)[kept.any(1)]
        if rewards[rows].unique().numel() == 1:
            # Stated deviation: exactly 0, whatever rounding or a group of one makes of it elsewhere.
            assert not ours[rows].any()
            if not alone:
                torch.testing.assert_close(theirs[rows][kept], ours[rows][kept], **rounded)
        elif (valid.abs() >= p["fallback_abs"]).any():
            torch.testing.assert_close(ours[rows][kept], theirs[rows][kept], **rounded)
        elif (~kept).any() and (mean / divisor).abs() >= p["fallback_abs"]:
            # Stated deviation: there, padding counts as a reward of 0 and triggers the fallback.
            expected = ((rewards[rows] - mean) / divisor).unsqueeze(1).expand_as(kept)
            case.near(ours[rows][kept], expected[kept])
        else:
            case.near(ours[rows][kept], theirs[rows][kept])


def check_loss(case) -> None:
    case.allow_params(
        "adaptive_advantage",
        "adaptive_clip",
        "adv_beta",
        "agg",
        "clip_alpha",
        "clip_c",
        "clip_high",
        "clip_low",
        "rho",
    )
    p = case.params
    options = {
        "alpha": p["clip_alpha"] if p["adaptive_clip"] else 0.0,
        "beta": p["adv_beta"] if p["adaptive_advantage"] else 0.0,
        "pivot": p["rho"],
        "clip_low": p["clip_low"],
        "clip_high": p["clip_high"],
        "dual_clip": p["clip_c"],
        "sign_bug_compat": official(case),
        "statistics": "batch",
    }
    make = from_case(case, mask="mask", entropy=case.inputs["entropy"])
    result = differentiate(hapo, make, aggregation=OLD_VERL_MODES[p["agg"]], **options)
    case.close("loss", result.out.loss, **COUNT_PLUS_1E8)
    case.close("grad_log_prob", result.grad, **COUNT_PLUS_1E8)
    case.close("clipfrac", result.out.metrics["clip_fraction"], **COUNT_PLUS_1E8)


def check_temperature(case) -> None:
    case.allow_params("T_base", "eps", "quantile", "std", "scale_pos", "scale_neg", "tau")
    p = case.params
    assert p["eps"] == 1e-6, "the sampler's slack is not an option"
    names = ("quantile", "std", "scale_pos", "scale_neg")
    state = ModulationState(*(torch.tensor(p[name], dtype=torch.float64) for name in names))
    assert official(case) == (p["scale_neg"] < 0)
    found = adaptive_temperature(case.inputs["logits"], state, base=p["T_base"], tau=p["tau"])
    case.close("temperature", found, rtol=1e-6, atol=1e-6)


def test_both_signs_are_there() -> None:
    """The correction is one of certain tokens only: there the two signals are each other's opposite."""
    entropy = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(3, 5, dtype=torch.bool)
    right, wrong = (entropy_modulation(entropy, mask, sign_bug_compat=bug)[0] for bug in (False, True))
    torch.testing.assert_close(right.abs(), wrong)
    assert right.min() == pytest.approx(-1.0)


CHECKS = {
    r"entropy_h_(official|fixed)_\d+_\S+": check_signal,
    r"tlga_\w+": check_advantage,
    r"loss_(official|fixed)_\d+_clip[01]_adv[01]_[\w-]+": check_loss,
    r"temperature_(official|fixed)_\d+": check_temperature,
}
