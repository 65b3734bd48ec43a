"""SFDA against the released losses (normmax ratios, float32) and a float64 transcription of the text (mean ratios)."""

from __future__ import annotations

import math

import torch
from helpers import dispatch

from infotorch.adaptation import class_ratio_kl, class_ratios, entropy_map, sfda_loss, weighted_entropy

SLUG = "sfda-segmentation"
RELEASED = {"rtol": 1e-4, "atol": 1e-6}
HALF_ULP = 6e-8  # the transcription's float64 logits were rounded to float32 for the file
REDUCTION = "sum over classes, mean over batch for KL; pixel mean for entropy"


def test_case(case) -> None:
    dispatch(case, {r".*": check_loss})


def check_loss(case) -> None:
    case.allow_params("power", "lamb_se", "lamb_kl", "eps", "reduction")
    assert set(case.inputs) == {"logits", "prior", "weights"}
    params, prior, nu = case.params, case.inputs["prior"], case.inputs["weights"]
    assert params.get("reduction", REDUCTION) == REDUCTION
    eps = params["eps"]
    logits = case.inputs["logits"].clone().requires_grad_()
    out = sfda_loss(
        logits,
        prior,
        class_weights=nu,
        entropy_weight=params["lamb_se"],
        prior_weight=params["lamb_kl"],
        ratio="normmax",
        power=params["power"],
        eps=eps,
    )
    case.close("total", out.loss, **RELEASED)
    case.close("grad_logits", torch.autograd.grad(out.loss, logits)[0], **RELEASED)
    case.close("entropy", params["lamb_se"] * out.entropy, **RELEASED)
    case.close("kl", params["lamb_kl"] * out.divergence, **RELEASED)
    case.close("prop", out.ratios, **RELEASED)

    entropy = weighted_entropy(logits, nu)
    case.close("entropy_only", entropy, **RELEASED)
    case.close("entropy_only_grad", torch.autograd.grad(entropy, logits)[0], **RELEASED)

    exact = logits.detach().double()
    rounding = HALF_ULP * max(1.0, float(exact.abs().max()))
    ratios = class_ratios(exact)
    case.close("prop_mean", ratios, rtol=1e-8, atol=rounding)
    case.close("entropy_map", entropy_map(exact), rtol=1e-8, atol=2 * rounding)
    # A class ratio's error is multiplied by a logarithm that eps caps.
    for found in (class_ratio_kl(ratios, prior, eps=eps).mean(), sfda_loss(exact, prior, eps=eps).divergence):
        case.close("kl_mean", found, rtol=1e-8, atol=-rounding * math.log(eps))
