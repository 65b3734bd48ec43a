"""Entropy-SFT and TEA against the authors' functions."""

from __future__ import annotations

import torch
from helpers import dispatch

from infotorch.core import token_stats
from infotorch.losses import TokenBatch, entropy_sft, tea

SLUG = "light-if"
FLOAT64 = {"rtol": 1e-9, "atol": 1e-11}
# Their masked means divide by the count plus 1e-8.
COUNT_PLUS_1E8 = {"rtol": 1e-7, "atol": 1e-9}


def test_case(case) -> None:
    dispatch(case, {r"sft_\w+": check_sft, r"tea_\w+": check_tea})


def check_sft(case) -> None:
    case.allow_params("entropy_coef", "token_ratio", "num_items_in_batch", "ignore_index")
    p = case.params
    logits = case.inputs["logits"].clone().requires_grad_()
    labels = case.inputs["labels"][:, 1:]
    mask = labels != p["ignore_index"]
    stats = token_stats(logits[:, :-1], torch.where(mask, labels, 0), mask=mask)
    assert stats.log_probs is not None
    batch = TokenBatch(log_probs=stats.log_probs, entropy=stats.entropy, mask=mask, num_tokens=p["num_items_in_batch"])
    out = entropy_sft(batch, ratio=p["token_ratio"], coef=p["entropy_coef"])
    surplus = -stats.log_probs - p["entropy_coef"] * stats.entropy
    for name, value in {"ce": -stats.log_probs, "entropy": stats.entropy, "delta": surplus}.items():
        # Whatever the file holds at ignored labels is not compared.
        case.close(name, torch.where(mask, value.detach(), case.out(name)), **FLOAT64)
    chosen = entropy_sft(batch.replace(log_probs=stats.log_probs.detach() - 1.0), **options_at_shift(p)).per_token != 0
    assert torch.equal(chosen, case.out("selected").bool())
    assert int(chosen.sum()) == int(case.out("k"))
    case.close("loss", out.loss, **FLOAT64)
    (grad,) = torch.autograd.grad(out.loss, logits)
    case.close("grad_logits", grad, **FLOAT64)


def options_at_shift(p) -> dict:
    """A common shift of log-probabilities ranks alike and leaves no token at a loss of 0."""
    return {"ratio": p["token_ratio"], "coef": p["entropy_coef"]}


def check_tea(case) -> None:
    case.allow_params("cov_alpha", "clip_cov_ub", "detach_coeff", "agg", "softmax_over")
    p = case.params
    assert p["agg"] == "token-mean"
    assert p["softmax_over"].endswith("per sequence")
    mask = case.inputs["mask"].bool()
    options = {"scale": p["cov_alpha"], "cap": p["clip_cov_ub"]}
    found = {}
    for detach in (False, True):
        leaves = {
            k: case.inputs[n].clone().requires_grad_() for k, n in (("log_probs", "logp"), ("entropy", "entropy"))
        }
        batch = TokenBatch(**leaves, mask=mask, advantages=case.inputs["advantages"])
        out = tea(batch, detach=detach, **options)
        grads = torch.autograd.grad(out.loss, list(leaves.values()), allow_unused=True)
        found[detach] = (out, [torch.zeros_like(case.inputs["logp"]) if g is None else -g for g in grads])
    official = bool(p["detach_coeff"])
    out, (grad_logp, grad_entropy) = found[official]
    case.close("entropy_bonus", -out.loss, **COUNT_PLUS_1E8)
    case.close("coeff_mean", out.metrics["tea_weight"], **COUNT_PLUS_1E8)
    entropy = torch.where(mask, case.inputs["entropy"], 1.0)
    weights = torch.where(mask, -out.per_token.detach() / entropy, case.out("coeff"))
    case.close("coeff", weights, **COUNT_PLUS_1E8)
    case.close("grad_logp", grad_logp, **COUNT_PLUS_1E8)
    case.close("grad_entropy", grad_entropy, **COUNT_PLUS_1E8)
    _, (none, plain) = found[True]
    case.close("grad_entropy_if_coeff_detached", plain, **COUNT_PLUS_1E8)
    assert not none.any()
