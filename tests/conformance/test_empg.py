"""EMPG against an independent transcription of its equations (no code was released), and the score-norm identity."""

from __future__ import annotations

import torch
from helpers import dispatch
from torch import Tensor

from infotorch.core import categorical, segment_spread
from infotorch.losses import TokenBatch, empg_steps, expected_score_norm

SLUG = "empg"
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def steps_as_turns(segments: Tensor, shape: torch.Size) -> Tensor:
    """Spans ``[start, end)`` of trajectories, numbered as they come; -1 outside."""
    turn = torch.full(shape, -1)
    for number, (row, start, end) in enumerate(segments.tolist()):
        turn[row, start:end] = number
    return turn


def in_rows(turn: Tensor, case) -> dict:
    """A dialogue per row."""
    mask = case.inputs["mask"].bool() if "mask" in case.inputs else turn >= 0
    return {
        "entropy": case.inputs["token_entropy"],
        "advantages": case.inputs["advantages"],
        "turn": turn,
        "mask": mask,
    }


def rows_as_steps(turn: Tensor, case) -> dict:
    """The same steps, one per row, in an order that is not theirs."""
    fields = in_rows(turn, case)
    order = torch.randperm(len(case.inputs["segments"]), generator=torch.Generator().manual_seed(0))
    owner = case.inputs["segments"][order, 0].long()
    own = turn[owner] == order[:, None]
    return {
        "entropy": fields["entropy"][owner],
        "advantages": fields["advantages"][owner],
        "turn": order[:, None].expand_as(own),
        "trajectory": owner,
        "mask": fields["mask"][owner] & own,
    }


def check_steps(case) -> None:
    case.allow_params("k", "k_f", "zeta", "eps")
    turn = steps_as_turns(case.inputs["segments"], case.inputs["token_entropy"].shape)
    by_trajectory = case.inputs["segments"][:, 0].argsort(stable=True)
    tolerance = dict(TOLERANCE)
    expected = case.out("step_entropy")
    rounding = 16 * torch.finfo(expected.dtype).eps * float(expected.max())
    if expected.max() - expected.min() <= rounding:
        # Stated deviation: ours are equal; there, rounding between equal means is divided by eps.
        tolerance["atol"] += rounding / case.params["eps"]
    for layout in (in_rows, rows_as_steps):
        fields = layout(turn, case)
        found = empg_steps(TokenBatch(log_probs=torch.zeros_like(fields["entropy"]), **fields), **case.params)
        for name, value in {
            "step_entropy": found.entropy,
            "H_norm": found.normalized,
            "g": found.scale,
            "f": found.confidence,
            "step_adv_mod": found.modulated,
            "step_adv_final": found.final,
        }.items():
            # Ours numbers steps by trajectory and time; the file's trajectories may come in any order.
            case.near(value[found.used], case.out(name)[by_trajectory], name, **tolerance)
            assert not value[~found.used].any()
        if layout is in_rows and "token_adv" in case.outputs:
            case.close("token_adv", segment_spread(found.final, found.segment), **tolerance)


def check_identity(case) -> None:
    case.allow_params()
    logits = case.inputs["logits"]
    p = logits.softmax(-1)
    scores = torch.eye(logits.shape[-1], dtype=logits.dtype) - p.unsqueeze(-2)  # of every action
    case.close("expected_sq_score_norm", (p * scores.square().sum(-1)).sum(-1), **TOLERANCE)
    case.close("renyi2", categorical.renyi_entropy(logits, 2.0), **TOLERANCE)
    case.close("one_minus_exp_neg_renyi2", expected_score_norm(logits), **TOLERANCE)


CHECKS = {
    r"empg_\d+_k\S+|equal_entropy": check_steps,
    r"score_norm_identity": check_identity,
}
