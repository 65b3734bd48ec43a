"""ETTRL: votes against TTRL's code, advantages against verl, reshaping and forks against transcriptions."""

from __future__ import annotations

import torch
from helpers import dispatch
from torch import Tensor

from infotorch.core import categorical
from infotorch.core.reduce import masked_mean, zero_outside
from infotorch.losses import (
    TokenBatch,
    ear_advantage,
    entropy_scale,
    grpo_advantage,
    majority_labels,
    majority_vote,
    vote_diagnostics,
)
from infotorch.rollout import fork_costs, fork_positions

SLUG = "ettrl"
# verl forms a group's mean and deviation in float32.
VERL = {"rtol": 1e-5, "atol": 1e-6}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_vote(case) -> None:
    case.allow_params("ground_truth")
    texts = [str(text) for text in case.inputs["answers"].tolist()]
    truth = str(case.params.get("ground_truth", ""))  # unknown for real prompts without labels
    known = list(dict.fromkeys(text for text in (*texts, truth) if text))
    answer = torch.tensor([known.index(text) if text else -1 for text in texts])
    group = torch.zeros_like(answer)
    label = int(majority_labels(answer, group)[0])
    expected = str(case.out("label"))
    assert (known[label] if label >= 0 else "") == expected
    shape = (len(texts), 1)
    batch = TokenBatch(
        log_probs=torch.zeros(shape, dtype=torch.float64),
        mask=torch.ones(shape, dtype=torch.bool),
        group=group,
        answer=answer,
    )
    case.close("rewards", majority_vote(batch))
    correct = torch.tensor([text == truth != "" for text in texts])
    found = vote_diagnostics(answer, group, correct)
    for key in list(case.outputs):
        if key not in ("label", "rewards"):
            case.close(key, found[key])


def check_ear(case) -> None:
    case.allow_params("avg_over", "beta", "eps", "std")
    p, x = case.params, case.inputs
    assert (p["avg_over"], p["std"]) == ("group", "unbiased")
    mask = x["mask"].bool()
    entropy = categorical.entropy(x["logits"].double())
    case.close("token_entropy", zero_outside(entropy, mask))
    response = masked_mean(entropy, mask, dim=1)
    case.close("resp_entropy", response)
    group = torch.zeros(len(mask), dtype=torch.long)
    case.close("Y", entropy_scale(response, group))
    batch = TokenBatch(
        log_probs=torch.zeros_like(entropy), mask=mask, entropy=entropy, rewards=x["rewards"], group=group
    )
    found = {
        "adv": grpo_advantage(batch, eps=p["eps"]),
        "adv_res": ear_advantage(batch, eps=p["eps"]),
        "adv_clip": ear_advantage(batch, mode="clip", beta=p["beta"], eps=p["eps"]),
    }
    equal = len(mask) > 1 and bool((x["rewards"] == x["rewards"][0]).all())
    # Deviation: equal rewards give exactly 0; theirs is what rounding of their mean leaves, divided by eps. That of
    # whole numbers leaves nothing.
    rounded = equal and bool(x["rewards"][0] % 1 != 0)
    for name, value in found.items():
        assert not (equal and value.any())
        case.close(name, value, where=torch.full_like(mask, not rounded), **VERL)


def check_forks(case) -> None:
    case.allow_params("N", "B", "M")
    p = case.params
    entropy: Tensor = case.inputs["entropy"]
    mask = torch.arange(entropy.shape[1]) < case.inputs["length"].unsqueeze(1)
    assert len(entropy) == p["M"]
    positions = fork_positions(entropy, mask, p["N"])
    assert torch.equal(positions, case.out("fork_pos"))
    costs = fork_costs(positions, p["B"])
    # The file holds M (1 + N B), short roots or not.
    case.close("n_rollouts", torch.tensor(costs.planned_rollouts))
    assert costs.rollouts == p["M"] + p["B"] * int((case.outputs["fork_pos"] >= 0).sum())
    case.close("token_ratio_uniform", torch.tensor(costs.uniform_token_ratio, dtype=torch.float64))
    case.close("kept_prefix_tokens", torch.tensor(costs.kept_prefix_tokens))


CHECKS = {
    r"vote_\w+": check_vote,
    r"ear_\w+": check_ear,
    r"forks_\w+": check_forks,
}
