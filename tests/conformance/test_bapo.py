"""BAPO against the authors' function, a transcription of the paper's algorithm, and one of the Entropy-Clip rule."""

from __future__ import annotations

import pytest
import torch
from helpers import VERL_MODES, differentiate, dispatch, from_case

from infotorch.core import categorical
from infotorch.losses import bapo, bapo_bounds, entropy_clip_terms, retained_by_clip

SLUG = "bapo"
# verl adds 1e-8 to every count it divides by; ours divides by the count.
COUNT_PLUS_1E8 = {"rtol": 2e-8, "atol": 1e-9}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def options_of_the_code(case) -> dict:
    case.allow_params(
        "ratio_lower_start",
        "ratio_lower_max",
        "ratio_lower_step",
        "ratio_upper_start",
        "ratio_upper_max",
        "ratio_upper_step",
        "adv_ratio_target",
        "eps",
        "clip_ratio_c",
        "loss_agg_mode",
    )
    p = case.params
    return {
        "variant": "verl",
        "target": p["adv_ratio_target"] / (1 + p["adv_ratio_target"]),
        "low": p["ratio_lower_start"],
        "low_max": p["ratio_lower_max"],
        "low_step": p["ratio_lower_step"],
        "high": p["ratio_upper_start"],
        "high_max": p["ratio_upper_max"],
        "high_step": p["ratio_upper_step"],
    }


def options_of_the_paper(case) -> dict:
    case.allow_params("a_minus", "b_minus", "a_plus", "b_plus", "delta1_upper", "delta2_lower", "rho0", "loss_agg_mode")
    p = case.params
    return {
        "target": p["rho0"],
        "low": p["a_minus"],
        "low_max": p["b_minus"],
        "low_step": p["delta2_lower"],
        "high": p["a_plus"],
        "high_max": p["b_plus"],
        "high_step": p["delta1_upper"],
    }


def bounds_of(case, **options):
    batch = from_case(case)([])
    ratio = batch.log_ratio.clamp(-20, 20).exp()
    return bapo_bounds(ratio, case.inputs["advantages"], batch.mask, **options)


def check_code(case) -> None:
    options, p = options_of_the_code(case), case.params
    result = differentiate(
        bapo,
        from_case(case),
        dual_clip=p["clip_ratio_c"],
        aggregation=VERL_MODES[p["loss_agg_mode"]],
        **options,
    )
    case.close("loss", result.out.loss)
    case.close("grad_log_prob", result.grad)
    metrics = result.out.metrics
    case.close("clip_low", metrics["ratio_low"], atol=1e-9)
    case.close("clip_high", metrics["ratio_high"], atol=1e-9)
    bounds = bounds_of(case, eps=p["eps"], **options)
    if "pos_neg_ratio" in case.outputs:
        case.close("pos_neg_ratio", bounds.positive / (bounds.negative + p["eps"]))
    if "pos_neg_ratio_is_inf" in case.outputs:
        assert bool(case.out("pos_neg_ratio_is_inf")) == bool(bounds.negative <= 0)
    for theirs, ours in (
        ("clipfrac", "clip_fraction"),
        ("ppo_kl", "approx_kl"),
        ("clipfrac_lower", "clip_fraction_lower"),
    ):
        if theirs in case.outputs:
            case.close(theirs, metrics[ours], **COUNT_PLUS_1E8)


def check_paper(case) -> None:
    options = options_of_the_paper(case)
    result = differentiate(bapo, from_case(case), aggregation=VERL_MODES[case.params["loss_agg_mode"]], **options)
    case.close("loss", result.out.loss)
    case.close("grad_log_prob", result.grad)
    case.close("clip_low", result.out.metrics["ratio_low"], atol=1e-9)
    case.close("clip_high", result.out.metrics["ratio_high"], atol=1e-9)
    case.close("rho", result.out.metrics["positive_share"])
    # The search step by step: the share at every pair that the transcription visited, and that the last one is ours.
    trace = case.out("trace")
    for low, high, share in trace.tolist():
        low = min(low, 1.0)  # which a sum of steps exceeds by rounding
        fixed = {"low": low, "low_max": 1.0, "high": high, "high_max": high}
        there = bounds_of(case, **{**fixed, "low_step": 0.0, "high_step": 0.0})
        assert float(there.share) == pytest.approx(share, rel=1e-9, abs=1e-6 if case.single else 1e-10)
    if len(trace):
        last = torch.stack([result.out.metrics["ratio_low"], result.out.metrics["ratio_high"]])
        case.near(last, trace[-1, :2], rtol=0, atol=1e-9)


def check_rule(case) -> None:
    case.allow_params("eps", "eta")
    logits, advantages, ratio = (case.inputs[name] for name in ("logits", "advantages", "ratio"))
    width = {"clip_low": case.params["eps"], "clip_high": case.params["eps"]}
    retained = retained_by_clip(advantages, ratio, **width)
    terms = entropy_clip_terms(logits, advantages, ratio, **width)
    assert torch.equal(retained, case.out("retained").bool())
    case.close("per_token", terms)
    case.close("dH_first_order_per_eta", terms.sum(-1))
    eta = case.params["eta"]
    exact = categorical.entropy(logits + eta * advantages * retained) - categorical.entropy(logits)
    case.close("dH_exact", exact, rtol=1e-6, atol=1e-14)  # a difference of close numbers
    torch.testing.assert_close(terms.sum(-1), exact / eta, rtol=1e-4, atol=20 * eta)


CHECKS = {
    r"bapo_code_\w+|edge_\w+": check_code,
    r"bapo_paper_\w+": check_paper,
    r"entropy_clip_rule": check_rule,
}
