"""What is special to EMPG: neutral settings, shuffled control, trajectories over rows, its flaws and their options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infotorch.core import categorical, distributed
from infotorch.losses import EMPG, TokenBatch, empg_advantage, empg_steps, expected_score_norm, grpo_advantage, recipe


def dialogues(seed: int = 0, rows: int = 8, length: int = 12, **changes) -> TokenBatch:
    """Two groups of four dialogues with turns of three tokens."""
    g = torch.Generator().manual_seed(seed)
    values = {
        "log_probs": torch.zeros(rows, length, dtype=torch.float64),
        "mask": torch.rand(rows, length, generator=g) < 0.8,
        "entropy": torch.rand(rows, length, generator=g, dtype=torch.float64),
        "rewards": torch.randn(rows, generator=g, dtype=torch.float64),
        "group": torch.arange(rows) // 4,
        "turn": (torch.arange(length) // 3).expand(rows, length),
    }
    return TokenBatch(**{**values, **changes})


def test_without_scaling_bonus_and_centering_it_is_grpo() -> None:
    batch = dialogues()
    plain = empg_advantage(batch, k=0.0, zeta=0.0, center=False, eps=0.0)
    torch.testing.assert_close(plain, grpo_advantage(batch))
    centered = empg_advantage(batch, k=0.0, zeta=0.0, eps=0.0)
    shift = (grpo_advantage(batch) - centered)[batch.mask]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))


def test_scale_has_mean_one_and_falls_with_entropy() -> None:
    batch = dialogues(advantages=torch.ones(8, dtype=torch.float64))
    steps = empg_steps(batch)
    used = steps.used
    assert steps.scale[used].mean().item() == pytest.approx(1.0, abs=1e-7)
    order = steps.entropy[used].argsort()
    assert (steps.scale[used][order].diff() <= 0).all()
    assert steps.final[used].mean().item() == pytest.approx(0.0, abs=1e-12)


def test_shuffled_control_keeps_the_scales_and_breaks_their_tie_to_the_steps() -> None:
    batch = dialogues(rows=64, group=torch.arange(64) // 8, advantages=torch.ones(64, dtype=torch.float64))
    own = empg_steps(batch, zeta=0.0)
    control = empg_steps(batch, zeta=0.0, shuffle=True, generator=torch.Generator().manual_seed(1))
    again = empg_steps(batch, zeta=0.0, shuffle=True, generator=torch.Generator().manual_seed(1))
    used = own.used
    assert torch.equal(control.scale, again.scale)
    torch.testing.assert_close(control.scale[used].sort().values, own.scale[used].sort().values)
    assert torch.equal(control.entropy, own.entropy)

    def tie(scale: Tensor) -> float:
        return float(torch.corrcoef(torch.stack((own.entropy[used], scale[used])))[0, 1])

    assert tie(own.scale) < -0.99
    assert abs(tie(control.scale)) < 4 / used.sum().sqrt()  # four standard errors of no correlation


def test_bonus_comes_from_the_next_turn_that_occurred() -> None:
    turn = torch.tensor([[0, 0, 4, 9], [0, 0, 4, 9]])
    batch = TokenBatch(
        log_probs=torch.zeros(2, 4),
        mask=torch.tensor([[True] * 4, [True, True, False, True]]),
        entropy=torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.5, 0.0]]),
        advantages=torch.zeros(2),
        turn=turn,
    )
    steps = empg_steps(batch, zeta=1.0, center=False)
    e = torch.tensor(-1.0).exp()
    # Dialogue 0: turns 0, 4, 9; dialogue 1: 0 and 9, since turn 4 holds no valid token.
    torch.testing.assert_close(steps.final[:5], torch.stack([e, e / e, 0 * e, e / e, 0 * e]), atol=1e-6, rtol=1e-6)


def test_every_trajectory_has_one_vote_in_its_group() -> None:
    """Rows are turns; one dialogue has three of them, and must not count three times in the group's mean."""
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0])
    batch = TokenBatch(
        log_probs=torch.zeros(4, 1),
        mask=torch.ones(4, 1, dtype=torch.bool),
        entropy=torch.ones(4, 1),
        rewards=rewards,
        group=torch.zeros(4, dtype=torch.long),
        trajectory=torch.tensor([5, 5, 5, 8]),
        turn=torch.tensor([[0], [1], [2], [0]]),
    )
    found = empg_advantage(batch, k=0.0, zeta=0.0, center=False, scale="none")
    torch.testing.assert_close(found.squeeze(1), torch.tensor([0.5, 0.5, 0.5, -0.5]))


def test_groups_of_equal_rewards_still_get_the_bonus_unless_told_otherwise() -> None:
    batch = dialogues(rewards=torch.tensor([1.0] * 4 + [0.0, 1.0, 0.0, 1.0]).double())
    assert empg_advantage(batch)[:4].abs().max() > 1e-3
    safe = empg_advantage(batch, bonus_on_zero_adv=False)
    assert not safe[:4].any()
    # The others are what they are without the uniform group, up to the batch's range and mean of scales.
    assert safe[4:].abs().max() > 0.1
    votes = empg_steps(batch.replace(advantages=grpo_advantage(batch)), bonus_on_zero_adv=False)
    assert votes.final.sum().item() == pytest.approx(0.0, abs=1e-10)


def test_an_outlier_squeezes_the_scales_unless_clipped() -> None:
    entropy = torch.rand(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    entropy[0, :3] = 500.0
    batch = dialogues(entropy=entropy, mask=torch.ones(8, 12, dtype=torch.bool), advantages=torch.ones(8).double())
    spread = empg_steps(batch).normalized[: 8 * 4].sort().values
    clipped = empg_steps(batch, clip_quantile=0.05).normalized[: 8 * 4].sort().values
    assert spread[-2] < 0.01
    assert clipped[-2] > 0.5
    assert (clipped >= 0).all()
    assert (clipped <= 1).all()


def test_equal_entropies_leave_the_length_of_the_dialogue() -> None:
    for dtype in (torch.float32, torch.float64):
        entropy = torch.full((8, 12), 0.7, dtype=dtype)
        batch = dialogues(entropy=entropy, advantages=torch.zeros(8, dtype=dtype), log_probs=torch.zeros_like(entropy))
        steps = empg_steps(batch, zeta=0.1, center=False)
        assert not steps.normalized.any(), "rounding of the means is no difference"
        assert set(steps.final[steps.used].unique().tolist()) == {0.0, torch.tensor(0.1, dtype=dtype).item()}


def test_a_single_step_warns() -> None:
    batch = dialogues(rows=1, length=3, mask=torch.ones(1, 3, dtype=torch.bool))
    assert not empg_advantage(batch).any()
    with pytest.warns(UserWarning, match="empg: the batch is a single step"):
        EMPG().observe(batch)
    EMPG(center=False).observe(batch)
    assert empg_advantage(batch, center=False, singleton="raw").any()


def quantiles_on_rank() -> Tensor:
    batch = dialogues()
    rows = slice(0, 4) if distributed.rank() == 0 else slice(4, None)
    return empg_advantage(batch.select(rows), clip_quantile=0.1, scope="global")


def test_quantiles_over_ranks(run_distributed) -> None:
    found = torch.cat(run_distributed(quantiles_on_rank, 2))
    torch.testing.assert_close(found, empg_advantage(dialogues(), clip_quantile=0.1))


def test_score_norm_by_brute_force() -> None:
    logits = torch.randn(20, 7, dtype=torch.float64) * torch.tensor([0.1, 1.0, 10.0, 100.0]).repeat(5)[:, None]
    p = logits.softmax(-1)
    score = torch.autograd.functional.jacobian(lambda z: z.log_softmax(-1), logits[0])
    expected = (p[0] * score.square().sum(-1)).sum()
    torch.testing.assert_close(expected_score_norm(logits[0]), expected)
    torch.testing.assert_close(
        expected_score_norm(logits), 1 - (-categorical.renyi_entropy(logits, 2.0)).exp(), atol=1e-12, rtol=1e-9
    )
    # Where one action is certain the closed form must not round to 0.
    certain = torch.tensor([40.0, 0.0], dtype=torch.float64)
    q = certain.softmax(-1)[1]
    assert expected_score_norm(certain).item() == pytest.approx(float(2 * q), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1.0}, r"k: expected a number in \[0, inf\], got -1.0"),
        ({"k_f": -1.0}, "k_f: expected"),
        ({"zeta": -0.1}, "zeta: expected"),
        ({"clip_quantile": 0.5}, r"clip_quantile: expected a number in \[0, 0.5\), got 0.5"),
        ({"scope": "world"}, "scope: expected one of local, global"),
        ({"scale": "batch"}, "scale: expected one of group, none"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        empg_advantage(dialogues(), **options)


def test_recipe_takes_its_options() -> None:
    assert recipe("empg", zeta=0.1, clip_high=0.28).advantage.options == {"zeta": 0.1}
