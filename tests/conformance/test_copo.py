"""COPO against the bodies of the authors' functions (float64, with float32 entropies)."""

from __future__ import annotations

import math

import torch
from helpers import differentiate, dispatch
from torch import Tensor

from infotorch.losses import TokenBatch, blended_policy_loss, copo_advantages, copo_weight
from infotorch.losses.copo import copo_mode

SLUG = "copo"
# Their entropy is formed in float32, with 1e-8 added to every share.
ENTROPY = {"rtol": 1e-6, "atol": 1e-6}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    return values.unsqueeze(1) * mask


def check_advantages(case) -> None:
    case.allow_params("eps", "log_base", "norm_by_std", "reward_coef")
    p, x = case.params, case.inputs
    rewards, group = x["token_level_rewards"].sum(1), x["index"]
    options = {"normalize": p["norm_by_std"], "eps": p["eps"]}
    found = copo_advantages(rewards, group, x["answers"], discount=p["reward_coef"], **options)
    several = (group.unsqueeze(0) == group.unsqueeze(1)).sum(1) > 1
    prompts = len(group.unique())
    case.close("entropy_bits", found.entropy / math.log(p["log_base"]), **ENTROPY)
    # Deviation: a group of one completion has local advantage 0 (theirs: its raw reward).
    torch.testing.assert_close(
        spread(found.local, x["mask"])[several], case.out("local_adv")[several], rtol=1e-9, atol=1e-10
    )
    assert not found.local[~several].any()
    tolerance = ENTROPY if p["reward_coef"] else {}
    # Theirs is NaN where a group has one completion and lambda is 0/0, ours treats such a group as consistent.
    if bool(several.all()) or not p["reward_coef"]:
        means = torch.stack([rewards[group == own].mean() for own in group])
        disagreement = found.entropy / math.log(p["log_base"])
        size = (group.unsqueeze(0) == group.unsqueeze(1)).sum(1)
        factor = 1 - (1 - 1 / size) / size.log().clamp(min=1e-9) * math.log(p["log_base"]) * disagreement
        case.close("global_reward", means * factor if p["reward_coef"] else means, **tolerance)
    if prompts > 1:  # theirs is NaN for a single prompt, ours 0
        case.close("global_adv", spread(found.prompt, x["mask"]), **tolerance)
    else:
        case.out("global_adv")
        assert not found.prompt.any()
    # Deviation: without normalization theirs leaves the rewards of the zero rule at 0, ours are the rewards.
    filled = case.out("local_reward")
    assert torch.equal(filled, rewards if p["norm_by_std"] else torch.zeros_like(rewards))


def check_loss(case) -> None:
    case.allow_params("agg", "b", "clip_c", "clip_high", "clip_low", "k", "mode")
    p, x = case.params, case.inputs
    mask = x["mask"].bool()
    mode = copo_mode(p["mode"])
    weight = copo_weight(
        x["entropy_bits"] * math.log(2),
        mode=mode,
        slope=p["k"],
        midpoint=p["b"],
        rewards=x["local_reward"],
        advantages=x["local_adv"],
    )
    theirs = case.out("local_weight")
    if mode in ("forced", "soft_forced"):
        # Deviation: theirs asks the first position, ours the row. They differ where the first position is masked.
        same = mask[:, 0] | ~mask.any(1)
        torch.testing.assert_close(weight.unsqueeze(1).expand_as(mask)[same], theirs[same], rtol=1e-10, atol=1e-10)
        weight = torch.where(same, weight, theirs[:, 0])  # to compare losses on the same weights
    else:
        case.close("local_weight", weight.unsqueeze(1).expand_as(mask), rtol=1e-10, atol=1e-10)

    def make(leaf: list[Tensor]) -> TokenBatch:
        leaf.append(x["log_prob"].clone().requires_grad_())
        return TokenBatch(
            log_probs=leaf[0], old_log_probs=x["old_log_prob"], mask=mask, advantages=x["local_adv"], validate=False
        )

    clip = {"clip_low": p["clip_low"], "clip_high": p["clip_high"], "dual_clip": p["clip_c"]}
    result = differentiate(
        lambda batch: blended_policy_loss(batch, x["global_adv"], weight, aggregation=p["agg"], **clip),
        make,
    )
    if bool(mask.any(1).all()) or p["agg"] == "token-mean":
        case.close("loss", result.out.loss)
        case.close("grad_log_prob", result.grad)
    else:  # a row without tokens is 0/0 there; ours leaves it out
        case.seen.update(("loss", "grad_log_prob"))
        assert result.out.loss.isfinite()
        assert result.grad.isfinite().all()


CHECKS = {
    r"adv_\d+_coef[01]_norm[01]": check_advantages,
    r"loss_\d+_[a-z-]+_k[\d.]+_[a-z-]+": check_loss,
}
