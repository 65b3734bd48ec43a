"""SIREN against the authors' functions (float32): nucleus entropy, peak mask, squared error, aggregation modes."""

from __future__ import annotations

import torch
from helpers import dispatch
from torch import Tensor

from infotorch.core import aggregate, masked_quantile, token_stats
from infotorch.losses import TokenBatch, peak_mask, siren

SLUG = "siren"
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def nucleus_entropy(logits: Tensor, **options) -> Tensor:
    found = token_stats(logits, extras=["top_p_entropy"], **options).top_p_entropy
    assert found is not None
    return found


def cancellation(logits: Tensor) -> dict[str, float]:
    """Tolerance of the code's full entropies: the difference of two numbers as large as the logits."""
    return {**FLOAT32, "atol": max(FLOAT32["atol"], 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max()))}


def check_siren(case) -> None:
    case.allow_params("p", "topk", "tau", "anchor", "entropy_coeff", "agg")
    p = case.params
    assert p["agg"] == "seq-mean-token-mean"
    mask = case.inputs["response_mask"].bool()
    logits = case.inputs["logits"].clone().requires_grad_()
    entropy = nucleus_entropy(logits, mask=mask, top_p=p["p"], top_k=p["topk"], include_crossing=False)
    case.close("nucleus_entropy", entropy, **FLOAT32)
    full = torch.where(mask, token_stats(logits.detach()).entropy, case.out("full_entropy"))
    case.close("full_entropy", full, **cancellation(case.inputs["logits"]))

    peaks = peak_mask(entropy, mask, ratio=p["tau"])
    assert torch.equal(peaks, case.out("peak_mask"))
    twice = peak_mask(torch.where(peaks, entropy, 0.0), mask, ratio=p["tau"]) & peaks
    assert torch.equal(twice, case.out("peak_mask_applied_twice"))
    bound = masked_quantile(entropy.detach(), mask, p["tau"], dim=1)
    torch.testing.assert_close(bound.unsqueeze(1), case.out("lower_bound"), equal_nan=True, **FLOAT32)

    batch = TokenBatch(log_probs=torch.zeros(mask.shape), mask=mask, top_p_entropy=entropy)
    options = {"mask_ratio": p["tau"], "target": p["anchor"], "coef": p["entropy_coeff"], "count_empty_rows": True}
    out = siren(batch, **options)
    case.close("mean_peak_entropy", out.metrics["regularized_entropy"], **FLOAT32)
    if case.empty:
        # Stated deviation: a batch without a token is 0, there the squared anchor.
        case.out("reg_loss")
        assert out.loss == 0
    else:
        case.close("reg_loss", out.loss, **FLOAT32)
    (grad,) = torch.autograd.grad(out.loss, logits)
    case.close("grad_logits", grad, rtol=1e-5, atol=1e-7)


def check_nucleus(case) -> None:
    case.allow_params("p")
    logits, p = case.inputs["logits"], case.params["p"]
    case.close("entropy_official", nucleus_entropy(logits, top_p=p, include_crossing=False), **FLOAT32)
    case.close("entropy_standard_top_p", nucleus_entropy(logits.double(), top_p=p), rtol=1e-8, atol=1e-8)
    case.close("entropy_full", token_stats(logits).entropy, **cancellation(logits))


def check_aggregation(case) -> None:
    """This fork's sequence means divide by all rows, empty ones too: our ``batch-mean`` modes."""
    case.allow_params()
    values, mask = case.inputs["loss_mat"], case.inputs["mask"].bool()
    for mode in list(case.outputs):
        case.close(mode, aggregate(values, mask, mode.replace("seq-mean", "batch-mean")), **FLOAT32)


CHECKS = {
    r"siren_\w+": check_siren,
    r"nucleus_rules": check_nucleus,
    r"agg_loss_variants": check_aggregation,
}
