"""Agentic AEPO against transcriptions of the authors' loss and of its rules for rollouts."""

from __future__ import annotations

import torch
from helpers import differentiate, dispatch, from_case

from infotorch.losses import agentic_aepo, entropy_aware_advantages, entropy_zscore
from infotorch.rollout import arpo_score, branching_score, entropy_proxy, initial_rollouts

SLUG = "agentic-aepo"


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_loss(case) -> None:
    case.allow_params(
        "agg", "alpha", "balanced_adv", "balanced_clip", "clip_c", "clip_high", "clip_low", "gate_high_entropy"
    )
    p, mask = case.params, case.inputs["mask"].bool()
    alpha = p["alpha"] if p["balanced_adv"] else 0.0
    z = entropy_zscore(case.inputs["entropy"], mask)
    case.close("entropy_z", z, rtol=1e-10, where=mask)
    scaled = entropy_aware_advantages(case.inputs["advantages"], z, alpha=alpha, clamp=False)
    case.close("adv", scaled, rtol=1e-10, where=mask)
    result = differentiate(
        agentic_aepo,
        from_case(case, mask="mask", entropy=case.inputs["entropy"]),
        alpha=alpha,
        clamp=False,
        preserve="above" if p["balanced_clip"] else "none",
        gate="positive_z" if p["gate_high_entropy"] else "all",
        clip_low=p["clip_low"],
        clip_high=p["clip_high"],
        dual_clip=p["clip_c"],
        aggregation=p["agg"],
    )
    case.close("loss", result.out.loss, rtol=1e-10)
    case.close("grad_log_prob", result.grad, rtol=1e-10)
    case.close("clipfrac", result.out.metrics["clip_fraction"], rtol=1e-10)


def check_budget(case) -> None:
    case.allow_params("beta", "formula", "n")
    assert case.params["formula"] == "clamp(floor(n*sigmoid(beta*(H_root-H_tool)))+1,1,n)"
    found = initial_rollouts(case.inputs["H_root"], case.inputs["H_tool"], case.params["n"], beta=case.params["beta"])
    assert torch.equal(found, case.out("initial_rollouts"))


def check_branch(case) -> None:
    case.allow_params("branch_probability", "entropy_weight", "penalty_per_branch")
    p, x = case.params, case.inputs
    ours = branching_score(
        x["u"],
        x["H_now"],
        x["H_init"],
        x["consecutive"],
        weight=p["entropy_weight"],
        penalty=p["penalty_per_branch"],
    )
    before = arpo_score(x["u"], x["H_now"], x["H_init"], weight=p["entropy_weight"])
    case.close("score_aepo", ours, rtol=1e-10)
    case.close("score_arpo", before, rtol=1e-10)
    assert torch.equal(ours >= p["branch_probability"], case.out("branch_aepo").bool())
    assert torch.equal(before <= p["branch_probability"], case.out("branch_arpo").bool())


def check_proxy(case) -> None:
    case.allow_params("K", "first_tokens", "vocab")
    p, top = case.params, case.inputs["top_logprobs"]
    assert top.shape[1] == p["K"]
    for name, reduce in (("official_sum", "sum"), ("mean", "mean")):
        found = entropy_proxy(top, p["vocab"], first_tokens=p["first_tokens"], reduce=reduce)
        case.close(name, found, rtol=1e-10)


CHECKS = {
    r"loss_\d+_clip[01]_adv[01]_gate[01]_[\w-]+|const_entropy_\w+": check_loss,
    r"budget": check_budget,
    r"branch": check_branch,
    r"entropy_proxy": check_proxy,
}
