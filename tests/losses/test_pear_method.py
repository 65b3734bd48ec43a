"""PEAR: where thinking ends, what bounds the reward, and what the module reports."""

from __future__ import annotations

import warnings

import pytest
import torch

from infotorch.losses import PEAR, TokenBatch, closing_span, pear_reward, recipe


def batch(tokens: list[list[int]], entropy: list[list[float]], lengths: list[int] | None = None, **more) -> TokenBatch:
    ids = torch.tensor(tokens)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if lengths is not None:
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths).unsqueeze(1)
    fields = {"rewards": torch.ones(len(ids)), **more}
    return TokenBatch(
        log_probs=torch.zeros(ids.shape), mask=mask, tokens=ids, old_entropy=torch.tensor(entropy), **fields
    )


def spans(tokens: list[int], mark: int | list[int], length: int | None = None) -> tuple[int, int]:
    ids = torch.tensor([tokens])
    start, stop = closing_span(ids, torch.arange(len(tokens)).unsqueeze(0) < (length or len(tokens)), mark)
    return int(start), int(stop)


def test_first_of_several_marks() -> None:
    assert spans([5, 9, 9, 6], 9) == (1, 2)


def test_mark_of_several_tokens() -> None:
    assert spans([8, 5, 8, 9, 6], [8, 9]) == (2, 4)
    assert spans([8, 5, 9, 8, 6], [8, 9]) == (5, 5)
    assert spans([8], [8, 9]) == (1, 1)


def test_mark_must_lie_within_the_response() -> None:
    assert spans([5, 6, 8, 9], [8, 9], length=3) == (4, 4)
    assert spans([5, 6, 9, 9], 9, length=2) == (4, 4)


def test_empty_mark() -> None:
    with pytest.raises(ValueError, match="think_end: expected at least one token id"):
        spans([1], [])


def test_entropies_of_the_mark_count_for_neither_phase() -> None:
    found = pear_reward(batch([[5, 8, 9, 6]], [[0.5, 7.0, 7.0, 0.2]]), think_end=[8, 9])
    torch.testing.assert_close(found, torch.tensor([0.7]))


def test_truncated_response_is_thinking_throughout() -> None:
    rows = batch([[5, 6, 7, 9]], [[0.3, 0.3, 0.9, 4.0]], lengths=[3])
    torch.testing.assert_close(pear_reward(rows, think_end=9), torch.tensor([0.5]))
    torch.testing.assert_close(pear_reward(rows, think_end=9, paper_k=True), torch.tensor([0.7]))
    torch.testing.assert_close(pear_reward(rows), torch.tensor([0.5]))


def test_wrong_and_empty_responses_get_the_constant() -> None:
    rows = batch([[5, 9], [5, 9]], [[0.1, 0.0], [0.1, 0.0]], lengths=[2, 0], rewards=torch.zeros(2))
    assert torch.equal(pear_reward(rows, think_end=9, wrong=0.25), torch.tensor([0.25, 0.25]))


def test_floor_bounds_correct_answers_only() -> None:
    rows = batch([[5, 9], [5, 9]], [[3.0, 0.0], [3.0, 0.0]], rewards=torch.tensor([1.0, 0.0]))
    assert torch.equal(pear_reward(rows, think_end=9, wrong=0.1), torch.tensor([-2.0, 0.1]))
    assert torch.equal(pear_reward(rows, think_end=9, wrong=0.1, floor=0.1), torch.tensor([0.1, 0.1]))


def test_negative_alpha_charges_the_answer_too_and_one_is_the_cap() -> None:
    rows = batch([[5, 9, 6]], [[0.2, 0.0, 0.3]])
    torch.testing.assert_close(pear_reward(rows, think_end=9, alpha=-1.0), torch.tensor([0.5]))
    assert pear_reward(rows, think_end=9, alpha=2.0) == 1


def test_metrics_of_the_module() -> None:
    part = PEAR(think_end=9)
    assert part.rollout_metrics() == {}
    rows = batch([[5, 9, 6], [5, 6, 7]], [[0.2, 0.0, 0.4], [3.0, 3.0, 3.0]])
    part(rows)
    found = {name: round(float(value), 5) for name, value in part.rollout_metrics().items()}
    assert found == {
        "pear_think_entropy": 1.6,
        "pear_answer_entropy": 0.2,
        "pear_no_mark": 0.5,
        "pear_below_wrong": 0.5,
    }


def test_warns_once_of_correct_answers_below_wrong_ones() -> None:
    rows = batch([[5, 6]], [[3.0, 3.0]], group=torch.zeros(1, dtype=torch.long))
    method = recipe("pear", think_end=9)
    with pytest.warns(UserWarning, match="some correct answers score below a wrong one"):
        assert not method.prepare(rows).advantages.any(), "a group of one teaches nothing"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.prepare(rows)
        recipe("pear", think_end=9, floor=0.0).prepare(rows)


@pytest.mark.parametrize(("option", "value"), [("score", 0.0), ("score", 1.5), ("wrong", 1.0), ("wrong", -0.1)])
def test_options_out_of_range(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        pear_reward(batch([[5, 9]], [[0.1, 0.0]]), **{option: value})
