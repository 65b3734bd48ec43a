"""Branch positions against loops written as the papers' code is."""

from __future__ import annotations

import math

import pytest
import torch

from infotorch.rollout import (
    allowed_tokens,
    critical_positions,
    draw_position,
    fork_costs,
    fork_positions,
    reconcatenate,
)


def draw(seed: int, rows: int = 7, length: int = 12, vocab: int = 9):
    g = torch.Generator().manual_seed(seed)
    entropy = torch.randint(0, 6, (rows, length), generator=g) / 2.0  # with ties
    tokens = torch.randint(0, vocab, (rows, length), generator=g)
    mask = torch.arange(length) < torch.randint(0, length + 1, (rows, 1), generator=g)
    return entropy, tokens, mask, torch.rand(vocab, generator=g) < 0.6, g


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("distance", [0, 1, 3])
@pytest.mark.parametrize("forks", [0, 1, 3, 20])
def test_forks_equal_a_loop(seed: int, distance: int, forks: int) -> None:
    entropy, _, mask, _, _ = draw(seed)
    found = fork_positions(entropy, mask, forks, min_distance=distance)
    assert found.shape == (len(entropy), forks)
    for row in range(len(entropy)):
        chosen: list[int] = []
        order = sorted(range(int(mask[row].sum())), key=lambda t: -float(entropy[row, t]))
        for t in order:
            if len(chosen) < forks and all(abs(t - c) >= distance for c in chosen):
                chosen.append(t)
        assert found[row].tolist() == sorted(chosen) + [-1] * (forks - len(chosen))


def test_forks_never_stand_on_padding_or_nan() -> None:
    entropy = torch.tensor([[math.nan, -math.inf, 0.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert fork_positions(entropy, mask, 3).tolist() == [[1, 2, -1]]
    costs = fork_costs(fork_positions(entropy, mask, 3), branches=2)
    assert costs.rollouts == 1 + 2 * 2
    assert costs.planned_rollouts == 1 + 3 * 2
    assert costs.kept_prefix_tokens == 2 * (1 + 2)


@pytest.mark.parametrize(("forks", "branches", "ratio"), [(3, 2, 4 / 7), (2, 2, 3 / 5), (2, 0, 1.0), (0, 2, 1.0)])
def test_expected_cost(forks: int, branches: int, ratio: float) -> None:
    assert fork_costs(torch.zeros(12, forks, dtype=torch.long), branches).uniform_token_ratio == pytest.approx(ratio)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top_k", [1, 4, 30])
def test_candidates_equal_a_loop(seed: int, top_k: int) -> None:
    entropy, tokens, mask, allowed, _ = draw(seed)
    found = critical_positions(entropy, tokens, mask, allowed, top_k=top_k)
    for row in range(len(entropy)):
        kept = []
        for t in sorted(range(entropy.shape[1]), key=lambda t: -float(entropy[row, t])):
            if t != 0 and mask[row, t] and allowed[tokens[row, t]] and len(kept) < top_k:
                kept.append(t)
        assert found[row].tolist() == kept + [-1] * (top_k - len(kept))


def test_random_candidates_pass_the_same_filters() -> None:
    entropy, tokens, mask, allowed, _ = draw(1)
    options = {"top_k": 12, "mode": "random"}
    one, two, other = (
        critical_positions(entropy, tokens, mask, allowed, generator=torch.Generator().manual_seed(seed), **options)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    ordered = critical_positions(entropy, tokens, mask, allowed, top_k=12)
    assert torch.equal(one.sort(1).values, ordered.sort(1).values)


def test_tokens_behind_the_mask_may_be_anything() -> None:
    entropy = torch.tensor([[0.0, 1.0, 2.0]])
    mask = torch.tensor([[True, True, False]])
    found = critical_positions(entropy, torch.tensor([[0, 0, -100]]), mask, torch.tensor([True]), top_k=2)
    assert found.tolist() == [[1, -1]]


def test_draws_are_uniform_over_the_candidates() -> None:
    candidates = torch.tensor([[4, 7, -1]]).expand(4000, 3)
    drawn = draw_position(candidates, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {4, 7}
    assert (drawn == 4).float().mean() == pytest.approx(0.5, abs=0.03)
    assert draw_position(torch.full((3, 2), -1)).tolist() == [0, 0, 0]


def test_the_table_of_allowed_tokens() -> None:
    texts = ["<pad>", "<eos>", " the", "a", "\t", "42", ";"]
    assert allowed_tokens(texts, [0, 1]).tolist() == [False, False, True, False, False, True, False]
    assert allowed_tokens(texts, [0, 1, 6], min_chars=1).tolist() == [False, False, True, True, False, True, False]
    with pytest.raises(ValueError, match=r"special_ids: expected a number in \[0, 6\], got 7"):
        allowed_tokens(texts, [7])


@pytest.mark.parametrize("width", [3, 6, 30])
def test_reconcatenation_equals_a_loop(width: int) -> None:
    _, responses, _, _, g = draw(3, vocab=50)
    rows, prompt_width = len(responses), 5
    prompts = torch.randint(0, 50, (rows, prompt_width), generator=g)  # real tokens may equal the padding id
    lengths = torch.randint(1, prompt_width + 1, (rows,), generator=g)
    prompt_mask = torch.arange(prompt_width) >= prompt_width - lengths.unsqueeze(1)
    at = torch.randint(0, responses.shape[1] + 1, (rows,), generator=g)
    found = reconcatenate(prompts, prompt_mask, responses, at, width=width, pad_id=0)
    for row in range(rows):
        whole = [*prompts[row, prompt_mask[row]].tolist(), *responses[row, : at[row]].tolist()][:width]
        left = width - len(whole)
        assert found.input_ids[row].tolist() == [0] * left + whole
        assert found.attention_mask[row].tolist() == [0] * left + [1] * len(whole)
        assert found.position_ids[row].tolist() == [0] * left + list(range(len(whole)))
        assert int(found.kept[row]) == max(0, min(int(at[row]), width - int(lengths[row])))


def test_errors_name_the_argument() -> None:
    entropy, tokens, mask, allowed, _ = draw(0)
    with pytest.raises(TypeError, match="mask: expected a boolean tensor"):
        fork_positions(entropy, mask.long())
    with pytest.raises(ValueError, match="forks: expected a number in"):
        fork_positions(entropy, mask, -1)
    with pytest.raises(ValueError, match=r"tokens: expected shape \(7, 12\), as entropy has, got \(6, 12\)"):
        critical_positions(entropy, tokens[:6], mask, allowed)
    with pytest.raises(ValueError, match="mode: expected one of entropy, random"):
        critical_positions(entropy, tokens, mask, allowed, mode="top")
    row = torch.ones(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="prompt_mask: expected padding on the left only"):
        reconcatenate(row, torch.tensor([[True, False]]), row, torch.tensor([1]), width=4, pad_id=0)
    with pytest.raises(ValueError, match=r"at: expected positions in \[0, 2\], got \[3\]"):
        reconcatenate(row, row.bool(), row, torch.tensor([3]), width=4, pad_id=0)
    with pytest.raises(ValueError, match=r"at: expected one per row of prompts and responses \(1\), got 2"):
        reconcatenate(row, row.bool(), row, torch.tensor([1, 1]), width=4, pad_id=0)
