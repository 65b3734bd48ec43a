"""Entropy-SFT and TEA against the authors' functions."""

from __future__ import annotations

import torch
from helpers import dispatch
from torch.nn.functional import pad

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
    surplus = (-stats.log_probs - p["entropy_coef"] * stats.entropy).detach()
    for name, value in {"ce": -stats.log_probs, "entropy": stats.entropy, "delta": surplus}.items():
        case.close(name, value, where=mask, **FLOAT64)  # whatever the file holds at ignored labels is not compared
    grad, at_labels = torch.autograd.grad(out.loss, [logits, stats.log_probs])
    chosen, expected = at_labels != 0, case.out("selected").bool()
    assert int(chosen.sum()) == int(case.out("k"))
    # Which of the tokens that tie with the last one theirs takes is arbitrary; ours takes those of lowest index.
    tied = mask & (surplus == surplus[expected].min())
    free = tied if (tied & ~expected).any() else torch.zeros_like(tied)
    assert torch.equal(chosen[~free], expected[~free])
    if (chosen == expected).all() or len(stats.log_probs[free].unique()) == 1:
        case.close("loss", out.loss, **FLOAT64)
    case.seen.add("loss")
    rows = pad(~free, (0, 1), value=True).unsqueeze(-1)  # the last position predicts nothing
    case.close("grad_logits", grad, where=rows, **FLOAT64)


def check_tea(case) -> None:
    case.allow_params("cov_alpha", "clip_cov_ub", "detach_coeff", "agg", "softmax_over")
    p = case.params
    assert p["agg"] == "token-mean"
    assert p["softmax_over"].endswith("per sequence")
    mask = case.inputs["mask"].bool()
    found = {}
    for detach in (False, True):
        leaves = [case.inputs[name].clone().requires_grad_() for name in ("logp", "entropy")]
        batch = TokenBatch(log_probs=leaves[0], entropy=leaves[1], mask=mask, advantages=case.inputs["advantages"])
        out = tea(batch, detach=detach, scale=p["cov_alpha"], cap=p["clip_cov_ub"])
        grads = torch.autograd.grad(out.loss, leaves, allow_unused=True)
        found[detach] = (out, [torch.zeros_like(leaves[0]) if g is None else -g for g in grads])
    out, (grad_logp, grad_entropy) = found[bool(p["detach_coeff"])]
    _, (none, plain) = found[True]
    assert not none.any()
    values = {
        "entropy_bonus": -out.loss,
        "coeff_mean": out.metrics["tea_weight"],
        "coeff": plain * mask.sum(),  # without a gradient through them the weights are the entropy's gradient
        "grad_logp": grad_logp,
        "grad_entropy": grad_entropy,
        "grad_entropy_if_coeff_detached": plain,
    }
    # Deviation: a row without tokens is NaN there, and so are the sums over all rows.
    assert mask.any(1).all() or not values["coeff"][~mask.any(1)].any()
    for name, value in values.items():
        known = ~case.outputs[name].isnan()
        assert known.all() or not mask.any(1).all()
        case.close(name, value, where=known, **COUNT_PLUS_1E8)
