"""COPO against the bodies of the authors' functions (float64, with float32 entropies)."""

from __future__ import annotations

import math

import torch
from helpers import OLD_VERL_MODES, close_loss, dispatch, ids
from torch import Tensor

from infotorch.losses import LossOutput, TokenBatch, blended_policy_loss, copo_advantages, copo_weight
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
    rewards, group = x["token_level_rewards"].sum(1), ids(x["index"])
    options = {"normalize": p["norm_by_std"], "eps": p["eps"]}
    found = copo_advantages(rewards, group, ids(x["answers"]), discount=p["reward_coef"], **options)
    size = (group.unsqueeze(0) == group.unsqueeze(1)).sum(1)
    disagreement = found.entropy / math.log(p["log_base"])
    case.close("entropy_bits", disagreement, **ENTROPY)
    # Deviation: a group of one completion has local advantage 0 (theirs: its raw reward).
    assert not found.local[size == 1].any()
    case.close("local_adv", spread(found.local, x["mask"]), where=(size > 1).unsqueeze(1))

    means = torch.stack([rewards[group == own].mean() for own in group])
    if p["reward_coef"]:
        means = means * (1 - (1 - 1 / size) / size.log().clamp(min=1e-9) * math.log(p["log_base"]) * disagreement)
    # Theirs is NaN for a single prompt, where ours is 0; and with lambda = 0/0 of a group of one, whose answers ours
    # takes for consistent.
    tolerance = ENTROPY if p["reward_coef"] else {}
    if (group == group[0]).all():
        assert not found.prompt.any()
    for name, actual in (("global_reward", means), ("global_adv", spread(found.prompt, x["mask"]))):
        case.close(name, actual, where=~case.outputs[name].isnan(), **tolerance)
    # Deviation: without normalization theirs leaves the rewards of the zero rule at 0, ours are the rewards.
    case.close("local_reward", rewards if p["norm_by_std"] else torch.zeros_like(rewards), rtol=0, atol=0)


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
            log_probs=leaf[0],
            old_log_probs=x["old_log_prob"],
            mask=mask,
            advantages=x["local_adv"],
            extras={"global": x["global_adv"], "weight": weight},
            validate=False,
        )

    clip = {"clip_low": p["clip_low"], "clip_high": p["clip_high"], "dual_clip": p["clip_c"]}

    def blend(batch: TokenBatch) -> LossOutput:
        other, share = batch.extras["global"], batch.extras["weight"]
        return blended_policy_loss(batch, other, share, aggregation=OLD_VERL_MODES[p["agg"]], **clip)

    close_loss(case, blend, make)


CHECKS = {
    r"adv_\d+_coef[01]_norm[01]": check_advantages,
    r"loss_\d+_[a-z-]+_k[\d.e+-]+_[a-z-]+": check_loss,
}
