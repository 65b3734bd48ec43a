"""The record: shapes, values, selection."""

from __future__ import annotations

import pytest
import torch

from infotorch.losses import REPLAY, TokenBatch

B, T = 4, 3


def make(**changes):
    base = {"log_probs": -torch.ones(B, T), "mask": torch.ones(B, T, dtype=torch.bool)}
    return TokenBatch(**{**base, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_probs": torch.zeros(B)}, ValueError, r"log_probs: expected shape \(B, T\), got \(4,\)"),
        ({"log_probs": [[0.0]]}, TypeError, r"log_probs: expected a torch.Tensor, got list"),
        ({"mask": torch.ones(B, T)}, TypeError, r"mask: expected a boolean tensor, got torch.float32"),
        (
            {"mask": torch.ones(B, T + 1, dtype=torch.bool)},
            ValueError,
            r"mask: expected shape \(4, 3\), got \(4, 4\)",
        ),
        (
            {"advantages": torch.zeros(7, 1)},
            ValueError,
            r"advantages: expected shape \(B, T\) or \(B,\) with B=4, T=3, got \(7, 1\)",
        ),
        ({"old_log_probs": torch.zeros(B)}, ValueError, r"old_log_probs: expected shape \(B, T\)"),
        ({"rewards": torch.zeros(B, T)}, ValueError, r"rewards: expected shape \(B,\) with B=4, got \(4, 3\)"),
        ({"group": torch.zeros(B)}, TypeError, r"group: expected integers, got torch.float32"),
        (
            {"entropy": torch.zeros(B, T, dtype=torch.long)},
            TypeError,
            r"entropy: expected floats, got torch.int64",
        ),
        ({"extras": {"x": torch.zeros(2)}}, ValueError, r"extras\['x'\]: expected 4 rows, got shape \(2,\)"),
        ({"log_probs": torch.full((B, T), -torch.inf)}, ValueError, r"log_probs: expected finite values on valid"),
        (
            {"entropy": torch.full((B, T), torch.nan)},
            ValueError,
            r"entropy: expected finite values on valid tokens",
        ),
        ({"rewards": torch.tensor([0.0, torch.nan, 0.0, 0.0])}, ValueError, r"rewards: expected finite values in"),
        (
            {"log_probs": torch.zeros(0, T), "mask": torch.ones(0, T, dtype=torch.bool)},
            ValueError,
            r"expected at least one row and one token, got shape \(0, 3\)",
        ),
    ],
)
def test_bad_input(changes, error, message) -> None:
    with pytest.raises(error, match=message):
        make(**changes)


def test_padding_is_cleared_and_sends_no_gradient() -> None:
    log_probs = torch.full((B, T), torch.nan)
    log_probs[:, 0] = -1.0
    log_probs.requires_grad_()
    batch = make(log_probs=log_probs, mask=torch.arange(T).expand(B, T) == 0)
    assert torch.equal(batch.log_probs[:, 1:], torch.zeros(B, T - 1))
    batch.log_probs.sum().backward()
    assert torch.equal(log_probs.grad, (torch.arange(T).expand(B, T) == 0).float())


def test_validation_can_be_left_out() -> None:
    batch = make(log_probs=torch.full((B, T), -torch.inf), validate=False)
    assert batch.log_probs.isinf().all()


def test_on_policy_by_default() -> None:
    log_probs = torch.randn(B, T, requires_grad=True)
    batch = make(log_probs=log_probs)
    assert torch.equal(batch.log_ratio, torch.zeros(B, T))
    assert not batch.old_log_probs.requires_grad
    batch.log_ratio.sum().backward()
    assert torch.equal(log_probs.grad, torch.ones(B, T))


def test_select_takes_the_rows_of_every_field() -> None:
    batch = make(
        advantages=torch.arange(B).float(),
        rewards=torch.arange(B).float(),
        group=torch.arange(B),
        extras={"x": torch.arange(B)},
        num_tokens=99,
    )
    rows = torch.tensor([3, 1])
    part = batch.select(rows)
    assert part.advantages[:, 0].tolist() == [3.0, 1.0]
    assert part.rewards.tolist() == [3.0, 1.0]
    assert part.group.tolist() == [3, 1]
    assert part.extras["x"].tolist() == [3, 1]
    assert part.num_tokens == 99


def test_replace_checks_shapes() -> None:
    with pytest.raises(ValueError, match="advantages: expected shape"):
        make().replace(advantages=torch.zeros(B + 1))


def test_half_precision_is_widened() -> None:
    batch = make(log_probs=-torch.ones(B, T, dtype=torch.bfloat16), rewards=torch.ones(B, dtype=torch.float16))
    assert batch.log_probs.dtype == batch.rewards.dtype == torch.float32


def test_sampling_entropy_can_be_required() -> None:
    for field in ("entropy", "old_entropy"):
        make(**{field: torch.ones(B, T)}).require("part", "sampling_entropy")
    with pytest.raises(ValueError, match=r"part needs TokenBatch.sampling_entropy, .* old_entropy=\.\.\. or entropy"):
        make().require("part", "sampling_entropy")


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="source: expected 0, 1 or 2 in every row"):
        make(source=torch.tensor([0, 1, 2, 3]))


def test_cat_pads_and_fills_up() -> None:
    long = make(
        advantages=torch.ones(B),
        turn=torch.zeros(B, T, dtype=torch.long),
        group=torch.arange(B),
        rollout_weights=torch.full((B, T), 2.0),
        extras={"bonus": torch.ones(B, T), "tool_turns": torch.arange(B), "hidden": torch.ones(B, T, 5)},
        num_tokens=9.0,
    )
    leaf = torch.full((2, 1), -3.0, requires_grad=True)
    short = TokenBatch(
        log_probs=leaf,
        mask=torch.tensor([[True], [False]]),
        entropy=torch.full((2, 1), 0.5),
        source=torch.full((2,), REPLAY),
        extras={"bonus": torch.full((2, 1), 4.0)},
    )
    whole = TokenBatch.cat([long, short])
    assert whole.source.tolist() == [0] * B + [REPLAY] * 2
    assert whole.mask[B:].tolist() == [[True, False, False], [False, False, False]]
    assert whole.log_probs[B:].tolist() == [[-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert whole.entropy[:B].eq(0).all()
    assert whole.group.tolist() == [0, 1, 2, 3, -1, -1]
    assert whole.turn[B:].eq(-1).all()
    assert whole.rollout_weights[B:].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert whole.extras["bonus"][B:].tolist() == [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert whole.extras["tool_turns"].tolist() == [0, 1, 2, 3, 0, 0]
    assert whole.extras["hidden"].shape == (B + 2, T, 5)
    assert whole.num_tokens is None
    whole.log_probs.sum().backward()
    assert leaf.grad.tolist() == [[1.0], [0.0]]
    assert TokenBatch.cat([long, long]).source is None
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        TokenBatch.cat([])
    with pytest.raises(ValueError, match=r"extras\['tool_turns'\]: expected shape \(2, 7\), as in other batches"):
        TokenBatch.cat(
            [
                long.replace(extras={"tool_turns": torch.zeros(B, 7)}),
                short.replace(extras={"tool_turns": torch.zeros(2)}),
            ]
        )


def test_counts_by_source_are_what_each_source_divides_by() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]).bool()
    batch = make(mask=mask)
    assert tuple(batch.counts()) == (6, 3)
    mixed = batch.replace(source=torch.tensor([0, 2, 0, 2]))
    assert [x.tolist() for x in mixed.counts()] == [[3, 0, 3], [1, 0, 2]]
    tokens, rows = mixed.counts()
    own = mixed.replace(num_tokens=tokens, num_sequences=rows).only(REPLAY)
    assert (own.num_tokens, own.num_sequences) == (3, 2)
