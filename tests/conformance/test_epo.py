"""EPO against the authors' functions (indicator, gate, reference per turn) and a transcription of Eqs. 2 to 6."""

from __future__ import annotations

import torch
from helpers import OLD_VERL_MODES, dispatch, ids

from infotorch.core import token_stats
from infotorch.losses import EntropyHistory, Recipe, TokenBatch, corridor_penalty, epo, phase_weight

SLUG = "epo"
# The released masked means carry 1e-8 in their denominators; ours divide by the count.
OFFICIAL = {"rtol": 2e-8, "atol": 1e-8}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_code_schedule(case) -> None:
    case.allow_params("max_epochs")
    epoch = case.inputs["epoch"].double()
    case.close("weight", phase_weight(epoch, total_steps=case.params["max_epochs"], schedule="code"), **EXACT)


def check_paper_schedule(case) -> None:
    case.allow_params("K", "gamma")
    k = case.inputs["k"].double()
    case.close("beta", phase_weight(k, total_steps=case.params["K"], gamma=case.params["gamma"]), **EXACT)


def by_turn(case, value: torch.Tensor) -> torch.Tensor:
    """One number per row as one per token."""
    return value.long().unsqueeze(1).expand(case.inputs["mask"].shape)


def history_mean(case) -> torch.Tensor:
    """The reference that our history keeps after the steps of the case, one row of entropies per step."""
    history = EntropyHistory(per_turn=True)
    for step in case.inputs["entropy_history"]:
        row = step.unsqueeze(0)
        history.update(row, torch.ones_like(row, dtype=torch.bool), torch.arange(step.numel()).unsqueeze(0))
    return history.reference()


def check_official(case) -> None:
    case.allow_params(
        "agg",
        "clip_c",
        "clip_high",
        "clip_low",
        "enable_smooth_weights",
        "entropy_coeff",
        "entropy_smooth_coeff",
        "epoch",
        "mask_mode",
        "max_ratio",
        "max_step",
        "min_ratio",
        "out_range_penalty",
    )
    p, mask = case.params, case.inputs["mask"].bool()
    logits = case.inputs["logits"].clone().requires_grad_()
    stats = token_stats(logits, case.inputs["actions"])
    case.close("entropy", stats.entropy, **EXACT)
    case.close("log_prob", stats.log_probs, **EXACT)
    reference = history_mean(case)
    case.close("hist_mean", reference, **EXACT)
    turn = by_turn(case, case.inputs["turn"])
    batch = TokenBatch(
        log_probs=stats.log_probs,
        old_log_probs=case.inputs["old_log_prob"],
        advantages=case.inputs["advantages"],
        entropy=stats.entropy,
        mask=mask,
        turn=turn,
    )
    schedule = "code" if p["enable_smooth_weights"] else "none"
    options = {
        "coef": p["entropy_coeff"],
        "alpha": p["out_range_penalty"] * p["entropy_smooth_coeff"],
        "low": p["min_ratio"],
        "high": p["max_ratio"],
        "penalty": "indicator",
        "mask_mode": p["mask_mode"],
        "reference": reference,
        "min_turn": p["max_step"] // 2,
        "schedule": schedule,
        "total_steps": 150,
        "step": p["epoch"],
    }
    aggregation = OLD_VERL_MODES[p["agg"]]
    clip = {"clip_low": p["clip_low"], "clip_high": p["clip_high"], "dual_clip": p["clip_c"]}
    recipe = Recipe(
        {"name": "ppo", **clip, "log_ratio_bound": None},
        regularizers=[{"name": "epo", **options}],
        aggregation=aggregation,
    )
    out = recipe(batch)
    (grad,) = torch.autograd.grad(out.loss, logits)
    case.close("grad_logits", grad, **OFFICIAL)  # the indicator has none, so that gradients agree in every mode
    case.close("pg_loss", out.metrics["policy_loss"], **OFFICIAL)
    case.close("entropy_loss", aggregation(stats.entropy, mask), **OFFICIAL)

    # The released code applies the gate to the whole batch and the phase's weight inside the penalty; its "seq" mode
    # averages a row's entropies over padding too, ours over valid tokens.
    weight = phase_weight(torch.tensor(float(p["epoch"]), dtype=torch.float64), total_steps=150, schedule=schedule)
    applied = (turn >= options["min_turn"]).any()
    assert bool(applied) == bool(case.out("applied"))
    scale = p["out_range_penalty"] * weight * applied
    corridor = {"low": p["min_ratio"], "high": p["max_ratio"], "penalty": "indicator"}

    def penalty(judged: torch.Tensor) -> torch.Tensor:
        return scale * corridor_penalty(judged, reference[turn], **corridor)

    token_mode = p["mask_mode"] == "token"
    theirs = penalty(stats.entropy if token_mode else stats.entropy.mean(1, keepdim=True).expand_as(mask))
    row_mean = torch.where(mask, stats.entropy, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    ours = penalty(stats.entropy if token_mode else row_mean.expand_as(mask))
    case.close("penalty", theirs, **OFFICIAL)
    case.close("penalty_loss", aggregation(theirs, mask), **OFFICIAL)
    padding = p["entropy_coeff"] * p["entropy_smooth_coeff"] * (aggregation(theirs, mask) - aggregation(ours, mask))
    case.close("loss", out.loss + padding, **OFFICIAL)


def paper_options(case) -> dict:
    p = case.params
    return {
        "coef": p["lam"],
        "alpha": p["alpha"],
        "low": p["kappa_l"],
        "high": p["kappa_r"],
        "gamma": p["gamma"],
        "total_steps": p["K"],
        "step": p["k"],
    }


def check_paper(case, reference: torch.Tensor, options: dict, **fields) -> None:
    p, mask = case.params, case.inputs["mask"].bool()
    logits = case.inputs["logits"].clone().requires_grad_()
    entropy = token_stats(logits).entropy
    case.close("entropy", entropy, **EXACT)
    batch = TokenBatch(log_probs=torch.zeros_like(entropy.detach()), entropy=entropy, mask=mask, **fields)
    out = epo(batch, **{**paper_options(case), **options})
    (grad,) = torch.autograd.grad(out.loss, logits)
    case.close("reg_loss", out.loss, **EXACT)
    case.close("grad_logits", grad, **EXACT)
    case.close("beta", out.metrics["epo_weight"], **EXACT)
    bonus = epo(batch, **{**paper_options(case), **options, "alpha": 0.0}).loss
    case.close("L_H", -bonus / p["lam"], **EXACT)
    case.close("L_smooth", (out.loss - bonus) / (p["lam"] * out.metrics["epo_weight"]), **EXACT)
    per_token = reference if reference.ndim == 0 else reference[fields["turn"]]
    case.close("hinge", corridor_penalty(entropy, per_token, low=p["kappa_l"], high=p["kappa_r"]), **EXACT)


def check_trajectory(case) -> None:
    case.allow_params("Hbar", "K", "alpha", "gamma", "k", "kappa_l", "kappa_r", "lam")
    reference = torch.tensor(case.params["Hbar"], dtype=torch.float64)
    # The first step has no past. Every row is one turn, so that its number does not matter.
    known = reference if case.params["k"] > 0 else None
    check_paper(case, reference, {"reference": known, "aggregation": "trajectory"}, trajectory=ids(case.inputs["traj"]))


def check_per_turn(case) -> None:
    case.allow_params("K", "alpha", "gamma", "k", "kappa_l", "kappa_r", "lam")
    reference = history_mean(case)
    check_paper(case, reference, {"reference": reference}, turn=by_turn(case, case.inputs["turn"]))


CHECKS = {
    r"code_weight_schedule": check_code_schedule,
    r"paper_beta_schedule": check_paper_schedule,
    r"official_\d+": check_official,
    r"paper_traj_\d+": check_trajectory,
    r"paper_token_perturn_\d+": check_per_turn,
}
