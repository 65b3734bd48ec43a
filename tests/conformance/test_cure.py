"""CURE: selection and re-concatenation against the authors' functions, the loss against verl's."""

from __future__ import annotations

import torch
from helpers import differentiate, dispatch
from torch import Tensor

from infotorch.core import Aggregation
from infotorch.losses import LossOutput, Recipe, TokenBatch, cure_origins, overlong_reward, ppo, recipe
from infotorch.losses._groups import Groups
from infotorch.rollout import critical_positions, reconcatenate

SLUG = "cure"
# verl forms a group's mean and deviation in float32.
VERL = {"rtol": 1e-5, "atol": 1e-7}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_select(case) -> None:
    case.allow_params("P", "chosen", "pad_id", "special_ids", "top_k")
    p, x = case.params, case.inputs
    assert p["chosen"].startswith("candidate of highest entropy")
    allowed = x["token_stripped_len"] > 1
    allowed[p["special_ids"]] = False
    mask = torch.arange(x["responses"].shape[1]) < x["resp_len"].unsqueeze(1)
    found = critical_positions(x["entropy"], x["responses"], mask, allowed, top_k=p["top_k"])
    assert torch.equal(found, case.out("candidates"))
    assert torch.equal((found >= 0).sum(1), case.out("n_candidates"))
    chosen = found[:, 0].clamp(min=0)
    assert torch.equal(chosen, case.out("chosen"))
    width = x["prompts"].shape[1]
    prompt_mask = torch.arange(width) >= width - x["prompt_len"].unsqueeze(1)
    branch = reconcatenate(x["prompts"], prompt_mask, x["responses"], chosen, width=p["P"], pad_id=p["pad_id"])
    assert torch.equal(branch.input_ids, case.out("branch_input_ids"))
    assert torch.equal(branch.attention_mask, case.out("branch_attention_mask"))
    assert torch.equal(branch.position_ids, case.out("branch_position_ids"))


def check_loss(case) -> None:
    case.allow_params("adv_eps", "agg", "clip_c", "clip_high", "clip_low", "n1", "n2")
    p, x = case.params, case.inputs
    mask = x["mask"].bool()

    def make(leaf: list[Tensor]) -> TokenBatch:
        leaf.append(x["logp"].clone().requires_grad_())
        batch = TokenBatch(
            log_probs=leaf[0], old_log_probs=x["old_logp"], mask=mask, rewards=x["reward"], group=x["group_id"]
        )
        # The recipe as published, without the length penalty that the case's rewards already hold or lack.
        published = recipe("cure_stage1").to_dict()
        published["advantage"]["eps"] = p["adv_eps"]
        return Recipe.from_dict({key: published[key] for key in ("advantage", "policy")}).prepare(batch)

    ours = make([]).advantages
    assert ours is not None
    # Deviation: groups of equal rewards get exactly 0; theirs get what rounding of their mean leaves, divided by eps.
    groups = Groups(x["group_id"])
    equal = ((groups.size > 1) & groups.uniform(x["reward"])).unsqueeze(1)
    assert not (equal & (ours != 0)).any()
    case.close("adv", ours, where=~equal, **VERL)
    advantages = torch.where(equal, case.outputs["adv"], ours)  # to compare losses on the same advantages

    def loss(batch: TokenBatch) -> LossOutput:
        clip = {"clip_low": p["clip_low"], "clip_high": p["clip_high"], "dual_clip": p["clip_c"]}
        return ppo(batch.replace(advantages=advantages), aggregation=Aggregation(p["agg"]), **clip)

    result = differentiate(loss, make)
    case.close("loss", result.out.loss, **VERL)
    case.close("grad_logp", result.grad, **VERL)
    metrics = {"clipfrac": "clip_fraction", "ppo_kl": "approx_kl", "clipfrac_dual": "clip_fraction_lower"}
    for theirs, ours in metrics.items():
        case.close(theirs, result.out.metrics[ours], **VERL)
    origins = cure_origins(x["group_id"], originals=p["n1"], branches=p["n2"])
    assert torch.equal(origins, case.out("origin_row_in_group"))


def check_overlong(case) -> None:
    case.allow_params("buffer_len", "factor", "max_resp_len")
    p, lengths = case.params, case.inputs["resp_len"]
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    batch = TokenBatch(log_probs=torch.zeros(mask.shape), mask=mask, rewards=case.inputs["score"])
    found = overlong_reward(batch, max_length=p["max_resp_len"], buffer=p["buffer_len"], factor=p["factor"])
    # Past the limit, which no sampler passes, theirs goes on falling; ours stays at the full penalty.
    within = lengths <= p["max_resp_len"]
    expected = case.out("reward")
    torch.testing.assert_close(found[within], expected[within], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[~within], (case.inputs["score"] - p["factor"])[~within], rtol=1e-12, atol=0)


def test_published_loss_settings() -> None:
    for stage in ("cure_stage1", "cure_stage2"):
        options = recipe(stage).policy.options
        assert (options["clip_low"], options["clip_high"], options["dual_clip"]) == (0.2, 0.28, 10.0)


CHECKS = {
    r"select_\w+": check_select,
    r"loss_\w+": check_loss,
    r"overlong\w*": check_overlong,
}
