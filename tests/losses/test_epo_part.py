"""What is special to EPO: the two penalties, the reference over steps, turns in rows and rows as turns, the cap."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.losses import (
    EPO,
    EntropyHistory,
    TokenBatch,
    corridor_penalty,
    entropy_bonus,
    entropy_cap,
    epo,
    phase_weight,
    recipe,
)
from infotorch.losses._turns import turns_of
from infotorch.rlvr import run_modular_sum


def batch_of(entropy: Tensor, **changes) -> TokenBatch:
    values = {"log_probs": torch.zeros_like(entropy.detach()), "mask": torch.ones_like(entropy, dtype=torch.bool)}
    return TokenBatch(**{**values, "entropy": entropy, **changes})


def test_hinge_and_its_gradient_by_hand() -> None:
    h = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64, requires_grad=True)
    value = corridor_penalty(h, 1.0, low=0.5, high=1.5)
    torch.testing.assert_close(value, torch.tensor([0.4, 0.0, 0.0, 0.0, 0.5], dtype=torch.float64))
    (grad,) = torch.autograd.grad(value.sum(), h)
    assert grad.tolist() == [-1.0, 0.0, 0.0, 0.0, 1.0], "0 at the kinks"


def test_indicator_counts_the_bounds_as_outside() -> None:
    h = torch.tensor([0.5, 0.50001, 1.0, 1.5], requires_grad=True)
    value = corridor_penalty(h, 1.0, low=0.5, high=1.5, penalty="indicator")
    assert value.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert not value.requires_grad


def test_entropy_below_zero_counts_as_zero_and_keeps_its_gradient() -> None:
    h = torch.tensor([-1e-3], requires_grad=True)
    value = corridor_penalty(h, 1.0, low=0.5, high=1.5)
    assert value.item() == 0.5
    assert torch.autograd.grad(value.sum(), h)[0].item() == -1.0


def test_indicator_trains_exactly_like_the_bonus() -> None:
    """The penalty of the released code has no gradient: after training, every parameter is that of the plain bonus."""
    entropies = {}
    for name, options in {
        "bonus": {"recipe": "entropy_bonus"},
        "indicator": {"recipe": "epo", "penalty": "indicator", "alpha": 5.0, "low": 0.9, "high": 1.1},
        "hinge": {"recipe": "epo", "alpha": 5.0, "low": 0.9, "high": 1.1},
    }.items():
        options = dict(options)
        history = run_modular_sum(recipe(options.pop("recipe"), coef=0.02, **options), steps=15, final_samples=1)
        entropies[name] = history.column("entropy")[1]
        if name != "bonus":
            assert max(history.column("loss/epo_outside")[1]) > 0.1, "tokens do leave the corridor"
    assert entropies["indicator"] == pytest.approx(entropies["bonus"], rel=1e-6)
    assert entropies["hinge"][-1] != pytest.approx(entropies["bonus"][-1], rel=1e-3)


def test_gradient_of_the_indicator_is_that_of_the_bonus_to_the_last_bit() -> None:
    h = torch.rand(4, 6, dtype=torch.float64, requires_grad=True)
    options = {"coef": 0.3, "reference": 0.5, "low": 0.9, "high": 1.1, "alpha": 7.0}
    (indicator,) = torch.autograd.grad(epo(batch_of(h), penalty="indicator", **options).loss, h)
    (bonus,) = torch.autograd.grad(entropy_bonus(batch_of(h), coef=0.3).loss, h)
    (hinge,) = torch.autograd.grad(epo(batch_of(h), **options).loss, h)
    assert torch.equal(indicator, bonus)
    assert not torch.allclose(hinge, bonus)


def test_phase_weights() -> None:
    assert phase_weight(0.0).item() == 2.0
    assert phase_weight(62.0, total_steps=125).item() == pytest.approx(1 + math.exp(-3))
    assert phase_weight(10_000.0).item() == pytest.approx(1.0)
    assert [phase_weight(k, total_steps=1).item() for k in (0.0, 1.0, 5.0)] == [2.0, 1.0, 1.0]
    assert phase_weight(7.0, schedule="none").item() == 1.0
    jump = phase_weight(torch.tensor([75.0, 76.0]), total_steps=150, schedule="code")
    torch.testing.assert_close(jump, torch.tensor([0.8270671, 0.7686315]))


def loop_over_trajectories(x: Tensor, mask: Tensor, trajectory: Tensor, turn: Tensor) -> float:
    groups: dict[int, dict[int, list[float]]] = {}
    for i, j in mask.nonzero().tolist():
        if turn[i, j] >= 0:
            turns = groups.setdefault(int(trajectory[i]), {})
            turns.setdefault(int(turn[i, j]), []).append(float(x[i, j]))
    means = [[sum(v) / len(v) for v in turns.values()] for turns in groups.values()]
    return sum(sum(m) / len(m) for m in means) / len(means)


@pytest.mark.parametrize("layout", ["turns in rows", "rows as turns", "both"])
def test_trajectory_aggregation_equals_the_loop(layout: str) -> None:
    g = torch.Generator().manual_seed(0)
    h = torch.rand(6, 8, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(6, 8, generator=g) < 0.7
    mask[4] = False
    rows = torch.arange(6)
    fields = {
        "turns in rows": {"turn": torch.tensor([0, 0, 1, 1, -1, 2, 2, 5]).expand(6, 8)},
        "rows as turns": {"trajectory": torch.tensor([5, 5, 2, 2, 2, 9])},
        "both": {
            "trajectory": torch.tensor([5, 5, 2, 2, 2, 9]),
            "turn": torch.tensor([0, 1, 0, 4, 2, 3])[:, None].expand(6, 8),
        },
    }[layout]
    batch = batch_of(h, mask=mask, **fields)
    trajectory = fields.get("trajectory", rows)
    turn = fields.get("turn", rows[:, None].expand(6, 8))
    out = epo(batch, coef=1.0, aggregation="trajectory", alpha=0.0)
    assert -out.loss.item() == pytest.approx(loop_over_trajectories(h.detach(), mask, trajectory, turn))
    (grad,) = torch.autograd.grad(out.loss, h)
    assert not grad[~mask].any()
    assert grad.sum().item() == pytest.approx(-1.0)
    # Micro-batches of whole trajectories that hold one row each add up to the whole.
    if layout == "turns in rows":
        parts = [batch.select(slice(i, i + 2)).replace(num_sequences=5.0) for i in (0, 2, 4)]
        total = sum(epo(part, coef=1.0, aggregation="trajectory", alpha=0.0).loss for part in parts)
        torch.testing.assert_close(total, out.loss)


def trajectories_on_rank() -> Tensor:
    g = torch.Generator().manual_seed(1)
    h, trajectory = torch.rand(6, 4, generator=g, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 3, 3])
    rows = slice(0, 2) if distributed.rank() == 0 else slice(2, 6)
    options = {"coef": 1.0, "reference": 0.4, "aggregation": "trajectory", "scope": "global"}
    own = batch_of(h[rows], trajectory=trajectory[rows], world_size=distributed.world_size(), num_sequences=6.0)
    whole = batch_of(h, trajectory=trajectory)
    return torch.stack((epo(own, **options).loss, epo(whole, **{**options, "scope": "local"}).loss))


def test_trajectories_over_ranks(run_distributed) -> None:
    first, second = run_distributed(trajectories_on_rank, 2)
    torch.testing.assert_close((first[0] + second[0]) / 2, first[1])


def test_turns_are_numbered_by_trajectory_then_turn() -> None:
    h = torch.zeros(3, 3)
    batch = batch_of(h, trajectory=torch.tensor([7, 3, 7]), turn=torch.tensor([[2, 2, -1], [0, 1, 1], [0, 0, 0]]))
    turns = turns_of(batch)
    assert turns.segment.tolist() == [[3, 3, -1], [0, 1, 1], [2, 2, 2]]
    assert turns.owner.tolist() == [0, 0, 1, 1, -1, -1, -1, -1, -1]
    assert turns.trajectories == 2


def test_seq_mode_judges_the_mean_of_a_turn() -> None:
    h = torch.tensor([[0.0, 2.0, 3.0, 9.0]], requires_grad=True)
    batch = batch_of(h, turn=torch.tensor([[0, 0, 1, 1]]), mask=torch.tensor([[True, True, True, False]]))
    options = {"coef": 1.0, "alpha": 1.0, "reference": 1.0, "low": 0.0, "high": 2.0, "schedule": "none"}
    out = epo(batch, mask_mode="seq", **options)
    assert out.per_token.tolist() == [[0.0, -2.0, -2.0, 0.0]]  # turn means 1 and 3, the latter 1 above 2
    assert out.metrics["epo_outside"].item() == pytest.approx(1 / 3)
    # A turn alone in the batch of its row: without turns the row is one.
    whole = epo(batch.replace(turn=None), mask_mode="seq", **options)
    assert whole.metrics["epo_penalty"] == 0  # mean 5/3


def test_gate_on_late_turns() -> None:
    batch = batch_of(
        torch.ones(2, 2), turn=torch.tensor([[0, 1], [2, 3]]), mask=torch.tensor([[True] * 2, [True, False]])
    )
    options = {"reference": 0.1}
    assert epo(batch, min_turn=2, **options).metrics["epo_penalty"] > 0
    assert epo(batch, min_turn=3, **options).metrics["epo_penalty"] == 0, "turn 3 is masked out"


def test_turns_without_a_reference_are_free() -> None:
    turn = torch.tensor([[0, 1, 2, 7]])
    reference = torch.tensor([0.1, math.nan, 0.1])
    out = epo(batch_of(torch.ones(1, 4), turn=turn), coef=1.0, alpha=1.0, reference=reference, schedule="none")
    torch.testing.assert_close(out.per_token, torch.tensor([[-0.2, -1.0, -0.2, -1.0]]))
    assert out.metrics["epo_reference"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("include_current", [False, True])
def test_before_the_first_rollout_no_turn_has_a_reference(include_current: bool) -> None:
    """As in a validation before training."""
    part = EPO(coef=1.0, per_turn=True, include_current=include_current).eval()
    out = part(batch_of(torch.ones(1, 3), turn=torch.tensor([[0, 1, -1]])))
    assert out.loss == -1
    assert out.metrics["epo_penalty"] == 0


def test_module_compares_with_past_steps_only() -> None:
    part = EPO(coef=1.0, alpha=0.5, low=0.5, high=1.5, schedule="none")
    now = EPO(coef=1.0, alpha=0.5, low=0.5, high=1.5, schedule="none", include_current=True)
    expected = [math.nan, 1.0, 2.0]
    for step, level in enumerate((1.0, 3.0, 5.0)):
        batch = batch_of(torch.full((1, 2), level))
        for each in (part, now):
            each.start_rollout()
            each.observe(batch)
        out = part(batch)
        reference = expected[step]
        penalty = 0.0 if step == 0 else max(0.0, level - 1.5 * reference)
        assert out.loss.item() == pytest.approx(-level + 0.5 * penalty)
        assert now(batch).metrics["epo_reference"].item() == pytest.approx((1.0, 2.0, 3.0)[step])
        assert part.step == step
    assert part.history.latest.tolist() == [5.0]


def test_history_per_turn_counts_only_what_occurred() -> None:
    history = EntropyHistory(per_turn=True)
    turn = torch.tensor([[0, 0, 1, 3]])
    history.update(torch.tensor([[1.0, 3.0, 4.0, 9.0]]), torch.tensor([[True, True, True, False]]), turn)
    history.update(torch.tensor([[4.0, 4.0, 9.0, 7.0]]), torch.tensor([[True, True, False, True]]), turn)
    assert torch.allclose(history.reference()[:2], torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert history.reference()[2].isnan()
    assert history.reference()[3] == 7
    assert history.steps.tolist() == [2, 1, 0, 1]
    other = EntropyHistory(per_turn=True)
    other.load_state_dict(copy.deepcopy(history.state_dict()))
    torch.testing.assert_close(other.reference(), history.reference(), equal_nan=True)
    history.update(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool), turn)
    torch.testing.assert_close(other.reference(), history.reference(), equal_nan=True)
    with pytest.raises(ValueError, match=r"turn: expected integers of shape \(B, T\) for a history per turn"):
        history.update(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool))


def per_turn_on_rank() -> Tensor:
    history = EntropyHistory(per_turn=True)
    if distributed.rank() == 0:
        history.update(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 0]]))
    else:
        history.update(torch.tensor([[6.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 2]]))
    return history.reference()


def test_history_over_ranks_weighs_tokens(run_distributed) -> None:
    for found in run_distributed(per_turn_on_rank, 2):
        torch.testing.assert_close(found, torch.tensor([3.0, math.nan, 4.0]).double(), equal_nan=True)


def test_collapse_warns_unless_the_reference_is_floored() -> None:
    part, floored = EPO(), EPO(min_ref=0.2)
    batch = batch_of(torch.zeros(1, 2))
    for each in (part, floored):
        each.start_rollout()
        each.observe(batch)
        each.start_rollout()
    with pytest.warns(UserWarning, match="epo: the reference entropy is 0"):
        part.observe(batch)
    floored.observe(batch)
    assert floored(batch).metrics["epo_reference"].item() == pytest.approx(0.2)


def test_cap_by_hand() -> None:
    h = torch.tensor([[1.0, 3.0, 0.5]], requires_grad=True)
    batch = batch_of(h, turn=torch.tensor([[0, 0, 1]]))
    out = entropy_cap(batch, coef=2.0, cap=1.5)
    torch.testing.assert_close(out.per_token, torch.tensor([[1.0, 1.0, 0.0]]))
    assert entropy_cap(batch, coef=2.0, cap=1.5, mask_mode="token").per_token.tolist() == [[0.0, 3.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "both"}, "penalty: expected one of hinge, indicator"),
        ({"mask_mode": "turn"}, "mask_mode: expected one of token, seq"),
        ({"schedule": "linear"}, "schedule: expected one of paper, code, none"),
        ({"scope": "world"}, "scope: expected one of local, global"),
        ({"coef": -1.0}, r"coef: expected a number in \[0, inf\], got -1.0"),
        ({"alpha": -1.0}, r"alpha: expected a number in \[0, inf\]"),
        ({"low": 2.0, "high": 1.0}, r"high: expected a number in \[2, inf\], got 1.0"),
        ({"min_ref": -0.1}, "min_ref: expected"),
        ({"total_steps": 0}, "total_steps: expected"),
        ({"reference": torch.zeros(2, 2)}, r"reference: expected a number or shape \(turns,\), got \(2, 2\)"),
        ({"reference": torch.zeros(3)}, r"epo needs TokenBatch\.turn"),
        ({"min_turn": 1}, r"epo needs TokenBatch\.turn"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        epo(batch_of(torch.ones(2, 3)), **options)


def test_a_history_per_turn_needs_turns() -> None:
    with pytest.raises(ValueError, match=r"epo needs TokenBatch\.turn"):
        EPO(per_turn=True).observe(batch_of(torch.ones(2, 3)))
